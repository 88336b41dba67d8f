//! The ledger and what lies beside it: the index and the audit file know its last row, and each row
//! goes to the audit file.

use std::path::Path;

use super::{Error, Parts, facts};
use crate::decision::{Decision, Kind, Target};
use crate::fault::Fault;
use crate::index::KnownLedger;
use crate::job::{Actor, Remarks};
use crate::ledger::{AuditFile, AuditTask, KnownEnd};

impl Parts {
    /// Compares the ledger with what the index and the audit file know of it, and has each row
    /// written to that file from then on. Comes before anything is named.
    ///
    /// # Errors
    /// When the audit file cannot be opened, or the ledger cannot be read.
    pub(crate) async fn start_audit(
        &self,
        path: Option<&Path>,
    ) -> Result<Option<AuditTask>, Error> {
        let Some(path) = path else {
            self.check_ledger(None).await.map_err(Error::Unreadable)?;
            return Ok(None);
        };
        let opened = AuditFile::open(path).map_err(|reason| Error::Audit {
            path: path.into(),
            reason,
        });
        let (mut audit, known) = opened?;
        let checked = self.check_ledger(known.as_ref()).await;
        if checked.map_err(Error::Unreadable)? {
            audit.start_over();
        }
        Ok(Some(self.ledger.keep_audit(audit).await))
    }

    /// Compares the ledger with what the index and the audit file know of it. One that they
    /// contradict is another one than before, or a copy: decisions may be missing, so everything is
    /// held. Returns whether the audit file contradicts it.
    async fn check_ledger(&self, audit: Option<&KnownEnd>) -> Result<bool, Fault> {
        let indexed = self.index.ledger().await.map(|known| KnownEnd {
            ledger: known.id,
            id: known.last_row,
            hash: known.hash,
        });
        let by_index = self.contradiction(indexed.as_ref()).await?;
        let by_audit = self.contradiction(audit).await?;
        let contradicts =
            |what| move |text: &String| format!("{what} contradicts the ledger: {text}");
        let why = by_index.as_ref().map(contradicts("index.db"));
        if let Some(why) = why.or(by_audit.as_ref().map(contradicts("the audit file"))) {
            self.hold_everything(&why).await?;
        }
        self.remember_ledger().await;
        Ok(by_audit.is_some())
    }

    async fn contradiction(&self, known: Option<&KnownEnd>) -> Result<Option<String>, Fault> {
        match known {
            Some(known) => self.ledger.contradicted_by(known).await,
            None => Ok(None),
        }
    }

    async fn hold_everything(&self, why: &str) -> Result<(), Fault> {
        tracing::error!(
            why,
            "the ledger is not the one that was here before; everything is held until `blobferry release`"
        );
        let remarks = Remarks {
            reason: why.parse().ok(),
            claimed_actor: None,
        };
        let actor = Actor::daemon().saying(remarks);
        let hold = Decision::about(&Target::Everything, actor);
        self.ledger
            .decide(Kind::Hold, hold, facts(""))
            .await
            .map(drop)
    }

    /// Has the index know the ledger and its last row.
    pub(super) async fn remember_ledger(&self) {
        if let Ok(end) = self.ledger.end().await {
            let known = KnownLedger {
                id: end.ledger,
                last_row: end.id,
                hash: end.hash,
            };
            self.index.remember_ledger(known).await;
        }
    }
}
