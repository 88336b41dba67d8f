//! Backups: what a moving tag named is kept under another tag before it moves.

use std::time::Duration;

use blobferry::oci::Digest;

use super::super::trace::{BACKUP, Place, Rules};
use super::Oracle;

/// A backup may be this old when its tag moves: a naming ends after five minutes.
const KEPT: Duration = Duration::from_secs(400);

impl Oracle {
    /// The rules by which a tag is the backup of another. An order goes by those that it began with.
    pub(super) fn rules_of_backup(&self, process: u32, place: &Place) -> Option<Rules> {
        let acts = self
            .guards
            .acts_in(process, &place.registry, &place.repository);
        let former = self.former.get(&process).filter(|_| acts);
        let all = self.rules.get(&process).into_iter().chain(former).flatten();
        let mut here = all.filter(|rules| rules.leads_to(&place.registry, &place.repository));
        here.find(|rules| rules.backed_up(&place.tag).is_some())
            .cloned()
    }

    /// A backup tag is written: with what its tag named, and over nothing that a person put there.
    pub(super) fn judge_backup(
        &mut self,
        process: u32,
        rules: &Rules,
        place: &Place,
        digest: Digest,
    ) {
        let Some(view) = self.judge_production(process, place) else {
            return;
        };
        let cell = self.cell_by_rules(rules, true, place, digest, view);
        self.judge_cell(place, true, cell);
        let Some(original) = rules.backed_up(&place.tag) else {
            return;
        };
        let moving = beside(place, original);
        if !self.has_named(&moving, digest, self.at.saturating_sub(KEPT)) {
            let text = format!("{original} did not name it");
            self.find("a backup tag gets what its tag named", Some(place), text);
        }
    }

    /// A moving tag is written over what production names: that has its backup.
    pub(super) fn judge_backed_up(
        &mut self,
        rules: &Rules,
        place: &Place,
        digest: Digest,
        production: Option<Digest>,
    ) {
        let is_wanted = rules.backs_up && rules.is_moving(&place.tag);
        let Some(there) = production.filter(|there| is_wanted && *there != digest) else {
            return;
        };
        let backup = backup_of(place);
        let is_kept = self.has_named(&backup, there, self.at.saturating_sub(KEPT));
        if !is_kept && !self.guards.may_be_denied(there) {
            let text = format!("{} did not name what it names", backup.tag);
            let promise = "what a moving tag named is kept before it moves";
            self.find(promise, Some(place), text);
        }
    }

    /// Whether the backup of a moving tag may be written in the end.
    pub(super) fn may_be_backed_up(
        &self,
        rules: &Rules,
        place: &Place,
        production: Option<Digest>,
    ) -> bool {
        let is_wanted = rules.backs_up && rules.is_moving(&place.tag);
        let Some(there) = production.filter(|_| is_wanted) else {
            return true;
        };
        let backup = backup_of(place);
        let is_kept = self.now(&backup) == Some(there);
        is_kept
            || !self.closed.contains(&backup)
                && !self.guards.may_be_held(&backup, there, &rules.route)
                && self.is_due_by_table(rules, true, &backup, there)
    }

    /// A process is told of a backup tag: where it names what its tag has named, both may be taken
    /// for agreed.
    pub(super) fn compare_backup(&mut self, process: u32, place: &Place) {
        let Some(rules) = self.rules_of_backup(process, place) else {
            return;
        };
        let view = self.views.get(&(process, place.clone()));
        let named = view.and_then(|view| view.digest);
        let original = rules.backed_up(&place.tag);
        let Some((there, original)) = named.zip(original) else {
            return;
        };
        if self.has_named(&beside(place, original), there, Duration::ZERO) {
            let known = self.ledger.entry(place.clone()).or_default();
            known.uncertain.insert(there);
            known.may_be_agreed = true;
        }
    }

    /// Whether a tag has named a digest at some time since.
    pub(super) fn has_named(&self, place: &Place, digest: Digest, since: Duration) -> bool {
        self.named_since(place, since).contains(&digest)
    }
}

fn backup_of(place: &Place) -> Place {
    beside(place, &format!("{BACKUP}{}", place.tag))
}

/// Another tag of the same repository.
fn beside(place: &Place, tag: &str) -> Place {
    Place {
        tag: tag.into(),
        ..place.clone()
    }
}
