//! The two traits over a registry in memory.

use std::collections::VecDeque;
use std::fmt::Display;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use blobferry::endpoint::{
    Abilities, Begin, BlobBody, Cursor, Destination, Offset, Origin, Page, Presence, Put, Resolved,
    Resume, Sent, Source, Tag, Tally, Upload,
};
use blobferry::fault::Fault;
use blobferry::oci::media_type::OCI_MANIFEST;
use blobferry::oci::{self, Descriptor, Digest, Manifest, MediaType, RepositoryName, Target};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{Call, Operation, Planned, ReadFault, Registry, State};

/// Length of the frames that blobs are read in, in bytes.
const FRAME: usize = 16 * 1024;

/// One repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(super) registry: Registry,
    pub(super) name: RepositoryName,
    pub(super) tally: Option<Arc<Tally>>,
}

impl Repository {
    /// Logs a call and lets what was planned for it happen. `Some`: its answer will be lost.
    async fn enter(
        &self,
        operation: Operation,
        about: impl Display,
        offset: u64,
    ) -> Result<Option<Fault>, Fault> {
        if let Some(tally) = &self.tally {
            tally.add();
        }
        let planned = {
            let mut state = self.registry.state();
            state.log.push(Call {
                operation,
                repository: self.name.to_string(),
                about: about.to_string(),
                offset,
                at: Instant::now(),
            });
            state
                .planned
                .get_mut(&operation)
                .and_then(VecDeque::pop_front)
        };
        let fault = |class| {
            Fault::new(
                class,
                format!("{operation:?} of {}: planned by the test", self.address()),
            )
        };
        match planned {
            None | Some(Planned::Nothing) => {}
            Some(Planned::Fail(class)) => return Err(fault(class)),
            Some(Planned::LoseAnswer(class)) => return Ok(Some(fault(class))),
            Some(Planned::Hold { reached, go_on }) => {
                let _ = reached.send(());
                let _ = go_on.await;
            }
            Some(Planned::Before(happens)) => happens(&self.registry),
        }
        Ok(None)
    }

    async fn call<T>(
        &self,
        operation: Operation,
        about: impl Display,
        work: impl FnOnce(&mut State) -> T,
    ) -> Result<T, Fault> {
        let lost = self.enter(operation, about, 0).await?;
        let done = work(&mut self.registry.state());
        lost.map_or(Ok(done), Err)
    }

    fn rejected(&self, text: impl Display) -> Fault {
        Fault::rejected(format!("{}: {text}", self.address()))
    }

    /// Takes a body into a session, frame by frame, as a server would.
    async fn receive(
        &self,
        session: &str,
        offset: u64,
        length: u64,
        mut body: BlobBody,
    ) -> Result<Option<Sent>, Fault> {
        let (cut, slow) = {
            let mut state = self.registry.state();
            let settings = state.settings.clone();
            let Some(held) = state.sessions.get(session) else {
                return Ok(Some(Sent::Gone));
            };
            let held = held.len() as u64;
            if held != offset {
                let told = if settings.tells_offset {
                    Offset::At(held)
                } else {
                    Offset::Unknown
                };
                return Ok(Some(Sent::Misplaced(told)));
            }
            (
                state.upload_cuts.pop_front(),
                state.slow_uploads.pop_front(),
            )
        };
        let mut left = cut.unwrap_or(length).min(length);
        let (start, rate, mut taken_so_far) =
            (Instant::now(), self.registry.state().settings.rate, 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.inspect_err(|_| self.was_cut(session))?;
            let taken = frame.slice(..frame.len().min(left as usize));
            // What fits into one frame is never slow.
            if let Some((_, rate)) =
                slow.filter(|(after, _)| length > FRAME as u64 && length - left >= *after)
            {
                at_rate(taken.len(), rate).await;
            }
            left -= taken.len() as u64;
            taken_so_far += taken.len() as u64;
            if let Some(rate) = rate {
                tokio::time::sleep_until(
                    start + Duration::from_secs_f64(taken_so_far as f64 / rate as f64),
                )
                .await;
            }
            let mut state = self.registry.state();
            let Some(held) = state.sessions.get_mut(session) else {
                return Ok(Some(Sent::Gone));
            };
            held.extend_from_slice(&taken);
            if taken.len() < frame.len() {
                break;
            }
        }
        let received = self
            .registry
            .state()
            .sessions
            .get(session)
            .map_or(0, |held| held.len() as u64);
        if cut.is_some() || received != offset + length {
            self.was_cut(session);
            return Err(Fault::retryable(format!(
                "{}: the connection broke",
                self.address()
            )));
        }
        Ok(None)
    }

    fn was_cut(&self, session: &str) {
        let mut state = self.registry.state();
        if state.settings.abilities.resume == Resume::Never {
            state.sessions.remove(session);
        }
    }
}

impl Source for Repository {
    fn registry(&self) -> &str {
        &self.registry.0.name
    }

    fn origin(&self) -> &Origin {
        &self.registry.0.origin
    }

    fn repository(&self) -> &RepositoryName {
        &self.name
    }

    fn address(&self) -> String {
        format!("{}/{}", self.registry.0.name, self.name)
    }

    fn counted(&self, tally: &Arc<Tally>) -> Repository {
        Repository {
            tally: Some(tally.clone()),
            ..self.clone()
        }
    }

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<Tag>>, Fault> {
        let after: Option<oci::Tag> = match cursor.map(|cursor| cursor.0.parse()).transpose() {
            Ok(after) => after,
            Err(error) => return Err(self.rejected(error)),
        };
        self.call(
            Operation::Tags,
            after.as_ref().map_or("", oci::Tag::as_str),
            |state| {
                let content = state.repositories.get(&self.name)?;
                let digests = state.settings.lists_digests;
                let rest = content
                    .tags
                    .iter()
                    .filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after));
                let mut entries: Vec<Tag> = rest
                    .map(|(name, digest)| Tag {
                        name: name.clone(),
                        digest: digests.then_some(*digest),
                        pushed: None,
                    })
                    .collect();
                let more = entries.len() > state.settings.page;
                entries.truncate(state.settings.page);
                let next = entries
                    .last()
                    .filter(|_| more)
                    .map(|last| Cursor(last.name.to_string()));
                Some(Page {
                    entries,
                    invalid: 0,
                    next,
                })
            },
        )
        .await
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        self.call(Operation::Resolve, target, |state| {
            if let Target::Tag(tag) = target
                && let Some(claimed) = state.claims.get(&(self.name.clone(), tag.clone()))
            {
                return Some(Resolved {
                    digest: Some(*claimed),
                    media_type: MediaType::new(OCI_MANIFEST),
                    size: None,
                    index: None,
                });
            }
            let (digest, media_type, bytes) = state.manifest(&self.name, target)?;
            let claims = state.settings.claims_digests;
            Some(Resolved {
                digest: claims.then_some(digest),
                media_type,
                size: claims.then_some(bytes.len() as u64),
                index: None,
            })
        })
        .await
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        let found = self.call(Operation::Manifest, target, |state| {
            let (digest, media_type, bytes) = state.manifest(&self.name, target)?;
            let bytes = if state.rotten.contains(&digest) {
                spoiled(&bytes, 0)
            } else {
                bytes
            };
            Some((digest, media_type, bytes))
        });
        let Some((digest, media_type, bytes)) = found.await? else {
            return Ok(None);
        };
        if Digest::of(digest.algorithm(), &bytes) != digest {
            return Err(Fault::corrupt(format!(
                "{}: the bytes of {target} do not have their digest",
                self.address()
            )));
        }
        let parsed = Manifest::parse(bytes, Some(media_type.as_str()), digest.algorithm());
        parsed.map(Some).map_err(|error| self.rejected(error))
    }

    fn lists_referrers(&self) -> Option<bool> {
        Some(self.registry.state().settings.referrers)
    }

    async fn referrers(
        &self,
        subject: &Digest,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        if cursor.is_some() {
            return Err(self.rejected("no such page"));
        }
        self.call(Operation::Referrers, subject, |state| {
            if !state.settings.referrers {
                return None;
            }
            let manifests = state
                .repositories
                .get(&self.name)
                .into_iter()
                .flat_map(|content| &content.manifests);
            let parsed = manifests.filter_map(|(digest, (served, bytes))| {
                Manifest::parse(bytes.clone(), Some(served.as_str()), digest.algorithm()).ok()
            });
            let naming = parsed.filter(|manifest| {
                manifest
                    .subject
                    .as_ref()
                    .is_some_and(|named| named.digest == *subject)
            });
            Some(Page {
                entries: naming.map(|manifest| manifest.descriptor()).collect(),
                invalid: 0,
                next: None,
            })
        })
        .await
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        self.read(Operation::ReadBlob, blob, offset..blob.size)
            .await
    }

    async fn read_part(
        &self,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        self.read(Operation::ReadPart, blob, part).await
    }
}

impl Repository {
    async fn read(
        &self,
        operation: Operation,
        blob: &Descriptor,
        wanted: Range<u64>,
    ) -> Result<Option<BlobBody>, Fault> {
        let lost = self.enter(operation, blob.digest, wanted.start).await?;
        let mut state = self.registry.state();
        if !state.holds(&self.name, &blob.digest) {
            return lost.map_or(Ok(None), Err);
        }
        let bytes = state
            .blobs
            .get(&blob.digest)
            .expect("a held blob has bytes")
            .clone();
        if bytes.len() as u64 != blob.size || wanted.start > blob.size {
            return Err(Fault::corrupt(format!(
                "{}: {} is {} bytes long",
                self.address(),
                blob.digest,
                bytes.len()
            )));
        }
        let planned = state
            .read_faults
            .get_mut(&blob.digest)
            .and_then(VecDeque::pop_front);
        let wrong =
            matches!(planned, Some(ReadFault::Corrupt)) || state.rotten.contains(&blob.digest);
        let bytes = if wrong {
            spoiled(&bytes, wanted.start as usize)
        } else {
            bytes
        };
        let mut frames = Frames {
            rest: bytes.slice(wanted.start as usize..wanted.end as usize),
            cut: None,
            slow: state.settings.read_rate.map(|rate| (0, rate)),
            panic: None,
            pause: None,
        };
        match planned {
            Some(ReadFault::CutAfter(after)) => frames.cut = Some(after),
            Some(ReadFault::SlowAfter(after, rate)) => frames.slow = Some((after, rate)),
            Some(ReadFault::PanicAfter(after)) => frames.panic = Some(after),
            _ => {}
        }
        lost.map_or(Ok(Some(BlobBody::new(frames))), Err)
    }
}

impl Destination for Repository {
    fn abilities(&self) -> Abilities {
        self.registry.state().settings.abilities
    }

    async fn has_blob(&self, digest: &Digest) -> Result<Presence, Fault> {
        self.call(Operation::HasBlob, digest, |state| {
            if !state.holds(&self.name, digest) {
                return Presence::Absent;
            }
            Presence::Present {
                size: state.blobs.get(digest).map(|bytes| bytes.len() as u64),
            }
        })
        .await
    }

    async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        self.call(Operation::BeginUpload, digest, |state| {
            if from.is_some_and(|from| state.may_mount(from, &self.name, digest)) {
                state.content(self.name.as_str()).blobs.insert(*digest);
                return Begin::Mounted;
            }
            state.sessions_opened += 1;
            let location = format!("session-{}", state.sessions_opened);
            state.sessions.insert(location.clone(), Vec::new());
            Begin::Session(Upload { location })
        })
        .await
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let lost = self
            .enter(Operation::SendChunk, &upload.location, offset)
            .await?;
        let refused = self.receive(&upload.location, offset, length, body).await?;
        let sent = refused.unwrap_or_else(|| Sent::Accepted {
            reported: Some(offset + length),
        });
        lost.map_or(Ok(sent), Err)
    }

    async fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let lost = self.enter(Operation::FinishUpload, digest, offset).await?;
        if let Some(refused) = self.receive(&upload.location, offset, length, body).await? {
            return lost.map_or(Ok(refused), Err);
        }
        {
            let mut state = self.registry.state();
            let bytes = Bytes::from(state.sessions.remove(&upload.location).unwrap_or_default());
            if state.settings.verifies_blobs && Digest::of(digest.algorithm(), &bytes) != *digest {
                return Err(Fault::corrupt(format!(
                    "{}: the upload does not have the digest {digest}",
                    self.address()
                )));
            }
            state.blobs.insert(*digest, bytes);
            state.content(self.name.as_str()).blobs.insert(*digest);
        }
        lost.map_or(
            Ok(Sent::Accepted {
                reported: Some(offset + length),
            }),
            Err,
        )
    }

    async fn upload_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        self.call(Operation::UploadOffset, &upload.location, |state| {
            let held = state
                .sessions
                .get(&upload.location)
                .map(|held| held.len() as u64);
            match (held, state.settings.abilities.resume) {
                (None, _) => Offset::Gone,
                (Some(held), Resume::Status) => Offset::At(held),
                (Some(_), Resume::Never) => Offset::Unknown,
            }
        })
        .await
    }

    async fn cancel_upload(&self, upload: Upload) -> Result<(), Fault> {
        self.call(Operation::CancelUpload, &upload.location, |state| {
            state.sessions.remove(&upload.location);
        })
        .await
    }

    async fn put_manifest(&self, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
        if let Target::Digest(digest) = target
            && Digest::of(digest.algorithm(), &manifest.bytes) != *digest
        {
            return Err(Fault::corrupt(format!(
                "{}: the manifest does not have the digest {digest}",
                self.address()
            )));
        }
        self.call(Operation::PutManifest, target, |state| {
            state.put(&self.name, target, manifest)
        })
        .await
    }
}

/// The bytes with one of them wrong, at `at` where there are so many.
fn spoiled(bytes: &Bytes, at: usize) -> Bytes {
    let mut wrong = bytes.to_vec();
    let last = wrong.len().saturating_sub(1);
    if let Some(byte) = wrong.get_mut(at.min(last)) {
        *byte ^= 0x01;
    }
    wrong.into()
}

/// The time that so many bytes take; at rate 0 it never ends.
async fn at_rate(bytes: usize, rate: u64) {
    match rate {
        0 => std::future::pending().await,
        rate => tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await,
    }
}

struct Frames {
    rest: Bytes,
    cut: Option<u64>,
    slow: Option<(u64, u64)>,
    panic: Option<u64>,
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Some((0, rate)) = self.slow {
            let pause = self
                .pause
                .get_or_insert_with(|| Box::pin(at_rate(FRAME, rate)));
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        assert_ne!(self.panic, Some(0), "a part of the program fails");
        if self.cut == Some(0) {
            self.rest.clear();
            self.cut = None;
            return Poll::Ready(Some(Err(Fault::retryable("the connection broke"))));
        }
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let most = self
            .cut
            .map_or(FRAME, |left| FRAME.min(left as usize))
            .min(self.rest.len());
        self.cut = self.cut.map(|left| left - most as u64);
        self.panic = self.panic.map(|left| left.saturating_sub(most as u64));
        if let Some((after, _)) = &mut self.slow {
            *after = after.saturating_sub(most as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(most)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
