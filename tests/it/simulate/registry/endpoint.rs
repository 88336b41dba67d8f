//! The two traits of endpoints over a registry in memory.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use blobferry::endpoint::{
    self, Abilities, Begin, BlobBody, Cursor, Destination, Offset, Origin, Page, Presence, Put,
    Resolved, Resume, Sent, Source, Tally, Upload,
};
use blobferry::fault::{Class, Fault};
use blobferry::oci::{
    Algorithm, Descriptor, Digest, Manifest, MediaType, RepositoryName, Tag, Target,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::super::trace::{About, Answer, By, Call, Event, Operation, Trace};
use super::{
    Blob, Content, Fate, Referrers, Registry, Session, State, TroubleKind, survives_a_cut,
};

/// Length of the frames that blobs are read in, in bytes.
const FRAME: usize = 32 * 1024;
/// How long a process waits for one answer, or for the next bytes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One repository, as one process sees it. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    registry: Registry,
    process: u32,
    name: RepositoryName,
    tally: Option<Arc<Tally>>,
}

/// A request that is under way: when it is dropped before its answer, the trace says so.
struct Waiting {
    trace: Trace,
    request: u64,
    bytes: u64,
    answered: bool,
}

impl Waiting {
    fn answered(mut self, answer: Answer) {
        self.answered = true;
        self.trace.note(Event::Answered {
            request: self.request,
            answer,
        });
    }

    fn failed(self, fault: &Fault) {
        let after = match fault.class() {
            Class::Retryable { after } => after.map(|after| after.as_secs()),
            _ => None,
        };
        self.answered(Answer::Failed {
            class: fault.class().name(),
            after,
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered {
            self.trace.note(Event::Abandoned {
                request: self.request,
                bytes: self.bytes,
            });
        }
    }
}

/// What an act of the registry works on.
struct Act<'a> {
    registry: &'a Registry,
    state: &'a mut State,
    repository: &'a RepositoryName,
    process: u32,
    request: u64,
}

impl Act<'_> {
    fn content(&mut self) -> &mut Content {
        self.state.content(self.repository)
    }

    fn found(&self, target: &Target) -> Option<Manifest> {
        let content = self.state.repositories.get(self.repository)?;
        let digest = match target {
            Target::Tag(tag) => *content.tags.get(tag)?,
            Target::Digest(digest) => *digest,
        };
        content.manifests.get(&digest).cloned()
    }
}

impl Repository {
    pub(super) fn new(registry: Registry, process: u32, name: RepositoryName) -> Repository {
        Repository {
            registry,
            process,
            name,
            tally: None,
        }
    }

    fn trace(&self) -> &Trace {
        &self.registry.0.trace
    }

    fn send(
        &self,
        operation: Operation,
        about: &About,
        content: Option<Digest>,
    ) -> (Waiting, Fate) {
        if let Some(tally) = &self.tally {
            tally.add();
        }
        let (process, registry, repository) = (
            self.process,
            self.registry.0.name.clone(),
            self.name.as_str().into(),
        );
        let call = Call {
            process,
            registry,
            repository,
            operation,
            about: about.clone(),
            content,
        };
        let request = self.trace().sent(call);
        let fate = self.registry.fate(operation, &self.name, about);
        (
            Waiting {
                trace: self.trace().clone(),
                request,
                bytes: 0,
                answered: false,
            },
            fate,
        )
    }

    /// One request without a body that matters: it arrives, the registry acts, the answer comes
    /// back.
    async fn ask<T: Send + 'static>(
        &self,
        operation: Operation,
        about: About,
        content: Option<Digest>,
        act: impl FnOnce(&mut Act<'_>) -> Result<T, Fault> + Send + 'static,
        answer: impl FnOnce(&T) -> Answer,
    ) -> Result<T, Fault> {
        let (waiting, fate) = self.send(operation, &about, content);
        let (reply, answered) = oneshot::channel();
        let (registry, repository, process, request) = (
            self.registry.clone(),
            self.name.clone(),
            self.process,
            waiting.request,
        );
        tokio::spawn(async move {
            sleep(fate.out).await;
            if reply.is_closed() && !fate.lands {
                return;
            }
            let acted = match fate.before() {
                Some(fault) => Err(fault),
                None => {
                    let mut state = registry.state();
                    act(&mut Act {
                        registry: &registry,
                        state: &mut state,
                        repository: &repository,
                        process,
                        request,
                    })
                }
            };
            let came = match (acted, fate.after()) {
                (Ok(_), Some(lost)) => Err(lost),
                (acted, _) => acted,
            };
            sleep(fate.back).await;
            // A process that was killed no longer listens.
            let _ = reply.send(came);
        });
        let came = match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(came)) => came,
            Ok(Err(_)) => Err(Fault::retryable("connection closed")),
            Err(_) => Err(Fault::retryable("no answer in time")),
        };
        match &came {
            Ok(value) => waiting.answered(answer(value)),
            Err(fault) => waiting.failed(fault),
        }
        came
    }

    /// Takes a body into a session, frame by frame, as a server would. `Some`: it was refused.
    async fn receive(
        &self,
        waiting: &mut Waiting,
        fate: &Fate,
        session: &str,
        offset: u64,
        length: u64,
        mut body: BlobBody,
    ) -> Result<Option<Sent>, Fault> {
        sleep(fate.out).await;
        if let Some(fault) = fate.before() {
            return Err(fault);
        }
        {
            let mut state = self.registry.state();
            match fate.kind {
                Some(TroubleKind::Vanish) => drop(state.sessions.remove(session)),
                Some(TroubleKind::Spoil) => {
                    if let Some(session) = state.sessions.get_mut(session) {
                        session.spoiled = true;
                    }
                }
                _ => {}
            }
            let Some(open) = state.sessions.get(session) else {
                return Ok(Some(Sent::Gone));
            };
            if open.spoiled {
                return Err(Fault::retryable("internal server error"));
            }
            let held = open.bytes.len() as u64;
            if held != offset {
                return Ok(Some(Sent::Misplaced(Offset::At(held))));
            }
        }
        let cut = (fate.kind == Some(TroubleKind::Cut)).then(|| fate.at % length.max(1));
        let mut cutting = Cutting {
            repository: self,
            session,
            armed: true,
        };
        let (start, mut taken) = (Instant::now(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            let left = cut.unwrap_or(u64::MAX).saturating_sub(taken);
            let kept = frame.slice(..frame.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            taken += kept.len() as u64;
            waiting.bytes = taken;
            if let Some(rate) = fate.drip {
                tokio::time::sleep_until(
                    start + Duration::from_secs_f64(taken as f64 / rate as f64),
                )
                .await;
            }
            let mut state = self.registry.state();
            let Some(open) = state.sessions.get_mut(session) else {
                return Ok(Some(Sent::Gone));
            };
            open.bytes.extend_from_slice(&kept);
            if kept.len() < frame.len() {
                break;
            }
        }
        if cut.is_some() || taken != length {
            return Err(Fault::retryable("connection reset within the body"));
        }
        cutting.armed = false;
        Ok(None)
    }
}

/// A body that is being received: when it breaks off, some registries destroy the session.
struct Cutting<'a> {
    repository: &'a Repository,
    session: &'a str,
    armed: bool,
}

impl Drop for Cutting<'_> {
    fn drop(&mut self) {
        let mut state = self.repository.registry.state();
        if self.armed && !survives_a_cut(&state.settings.abilities) {
            state.sessions.remove(self.session);
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

    async fn tags(&self, cursor: Option<&Cursor>) -> Result<Option<Page<endpoint::Tag>>, Fault> {
        let after: Option<Tag> = cursor.and_then(|cursor| cursor.0.parse().ok());
        let act = move |act: &mut Act<'_>| {
            let (settings, now) = (&act.state.settings, act.registry.0.trace.now());
            let Some(content) = act
                .state
                .repositories
                .get(act.repository)
                .filter(|_| !settings.hides_list)
            else {
                return Ok(None);
            };
            let shown = if settings.lag.is_zero() {
                content.tags.clone()
            } else {
                content.tags_at(now.saturating_sub(settings.lag))
            };
            let rest = shown
                .into_iter()
                .filter(|(name, _)| after.as_ref().is_none_or(|after| name > after));
            let entry = |(name, digest)| endpoint::Tag {
                name,
                digest: settings.lists_digests.then_some(digest),
                pushed: None,
            };
            let mut entries: Vec<_> = rest.map(entry).collect();
            let more = entries.len() > settings.page;
            entries.truncate(settings.page);
            let next = entries
                .last()
                .filter(|_| more)
                .map(|last| Cursor(last.name.to_string()));
            Ok(Some(Page {
                entries,
                invalid: 0,
                next,
            }))
        };
        let first = cursor.is_none();
        let answer = |page: &Option<Page<endpoint::Tag>>| {
            let shown = |page: &Page<endpoint::Tag>| {
                page.entries
                    .iter()
                    .map(|tag| (tag.name.as_str().into(), tag.digest))
                    .collect()
            };
            let last = page.as_ref().is_none_or(|page| page.next.is_none());
            Answer::Listed {
                tags: page.as_ref().map(shown),
                first,
                last,
            }
        };
        self.ask(Operation::Tags, About::Repository, None, act, answer)
            .await
    }

    async fn resolve(&self, target: &Target) -> Result<Option<Resolved>, Fault> {
        let wanted = target.clone();
        let act = move |act: &mut Act<'_>| {
            let found = act.found(&wanted);
            if let (None, Target::Digest(digest), true) =
                (&found, &wanted, act.state.settings.agrees)
            {
                let media_type = MediaType::new(blobferry::oci::media_type::OCI_MANIFEST);
                return Ok((
                    Some(Resolved {
                        digest: Some(*digest),
                        media_type,
                        size: Some(500),
                        index: None,
                    }),
                    None,
                ));
            }
            let claims = act.state.settings.claims_digests;
            let resolved = |manifest: &Manifest| Resolved {
                digest: claims.then_some(manifest.digest),
                media_type: manifest.media_type.clone(),
                size: claims.then_some(manifest.bytes.len() as u64),
                index: None,
            };
            Ok((
                found.as_ref().map(resolved),
                found.map(|manifest| manifest.digest),
            ))
        };
        let claimed = |(resolved, digest): &(Option<Resolved>, Option<Digest>)| match resolved {
            // Without a word on the digest the process has learnt nothing yet.
            Some(Resolved { digest: None, .. }) => Answer::Done { bytes: 0 },
            _ => Answer::Names(*digest),
        };
        Ok(self
            .ask(Operation::Resolve, about(target), None, act, claimed)
            .await?
            .0)
    }

    async fn manifest(&self, target: &Target) -> Result<Option<Manifest>, Fault> {
        let wanted = target.clone();
        let act = move |act: &mut Act<'_>| Ok(act.found(&wanted));
        let answer = |manifest: &Option<Manifest>| {
            Answer::Names(manifest.as_ref().map(|manifest| manifest.digest))
        };
        self.ask(Operation::Manifest, about(target), None, act, answer)
            .await
    }

    fn lists_referrers(&self) -> Option<bool> {
        self.registry.state().lists_referrers
    }

    async fn referrers(
        &self,
        subject: &Digest,
        _cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Descriptor>>, Fault> {
        let wanted = *subject;
        let act = move |act: &mut Act<'_>| {
            let settings = &act.state.settings;
            let is_missing = act
                .state
                .repositories
                .get(act.repository)
                .is_none_or(|held| !held.manifests.contains_key(&wanted));
            // An answer about a subject tells nothing about the endpoint.
            if settings.referrers != Referrers::MissingSubject || !is_missing {
                act.state.lists_referrers = Some(settings.referrers != Referrers::None);
            }
            let empty = Content::default();
            let content = act.state.repositories.get(act.repository).unwrap_or(&empty);
            match act.state.settings.referrers {
                Referrers::None => return Ok(None),
                Referrers::MissingSubject if !content.manifests.contains_key(&wanted) => {
                    return Ok(None);
                }
                _ => {}
            }
            let entries = content.naming(&wanted).map(Manifest::descriptor).collect();
            Ok(Some(Page {
                entries,
                invalid: 0,
                next: None,
            }))
        };
        let answer = |_: &Option<Page<Descriptor>>| Answer::Done { bytes: 0 };
        self.ask(
            Operation::Referrers,
            About::Content(*subject),
            None,
            act,
            answer,
        )
        .await
    }

    async fn read_blob(&self, blob: &Descriptor, offset: u64) -> Result<Option<BlobBody>, Fault> {
        let (waiting, fate) = self.send(Operation::ReadBlob, &About::Content(blob.digest), None);
        sleep(fate.out + fate.back).await;
        if let Some(fault) = fate.before().or(fate.after()) {
            waiting.failed(&fault);
            return Err(fault);
        }
        let held = {
            let state = self.registry.state();
            let held = state
                .holds_blob(&self.name, &blob.digest)
                .then(|| state.blobs.get(&blob.digest).cloned());
            held.flatten()
        };
        let Some(Blob { bytes, sound }) = held else {
            waiting.answered(Answer::Names(None));
            return Ok(None);
        };
        if bytes.len() as u64 != blob.size || offset > blob.size {
            let fault = Fault::corrupt("the blob has another length");
            waiting.failed(&fault);
            return Err(fault);
        }
        let wrong = !sound || fate.kind == Some(TroubleKind::Corrupt);
        let bytes = if wrong {
            spoiled(&bytes, offset as usize)
        } else {
            bytes
        };
        let rest = bytes.slice(offset as usize..);
        let somewhere = fate.at % (rest.len() as u64).max(1);
        let reading = Reading {
            cut: (fate.kind == Some(TroubleKind::Cut)).then_some(somewhere),
            panics: fate.kind == Some(TroubleKind::Panic),
            rate: fate.drip,
            pause: None,
            read: 0,
            rest,
            trace: self.trace().clone(),
            request: waiting.request,
        };
        waiting.answered(Answer::Done { bytes: 0 });
        Ok(Some(BlobBody::new(reading)))
    }
}

impl Destination for Repository {
    fn abilities(&self) -> Abilities {
        self.registry.state().settings.abilities
    }

    async fn has_blob(&self, digest: &Digest) -> Result<Presence, Fault> {
        let wanted = *digest;
        let act = move |act: &mut Act<'_>| {
            if !act.state.holds_blob(act.repository, &wanted) {
                return Ok(Presence::Absent);
            }
            Ok(Presence::Present {
                size: act
                    .state
                    .blobs
                    .get(&wanted)
                    .map(|blob| blob.bytes.len() as u64),
            })
        };
        self.ask(
            Operation::HasBlob,
            About::Content(*digest),
            None,
            act,
            |_| Answer::Done { bytes: 0 },
        )
        .await
    }

    async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Begin, Fault> {
        let (wanted, from) = (*digest, from.cloned());
        let act = move |act: &mut Act<'_>| {
            let offered =
                from.is_some_and(|from| act.state.may_mount(&from, act.repository, &wanted));
            let mut draw = act
                .registry
                .0
                .chance
                .of(("mount", act.repository.as_str(), wanted));
            if offered && !draw.percent(act.state.settings.mounts_refused) {
                act.content().blobs.insert(wanted);
                return Ok(Begin::Mounted);
            }
            act.state.opened += 1;
            let location = format!("session-{}", act.state.opened);
            let session = Session {
                process: act.process,
                told: false,
                bytes: Vec::new(),
                spoiled: false,
            };
            act.state.sessions.insert(location.clone(), session);
            Ok(Begin::Session(Upload { location }))
        };
        let answer = |_: &Begin| Answer::Done { bytes: 0 };
        let begun = self
            .ask(
                Operation::BeginUpload,
                About::Content(*digest),
                None,
                act,
                answer,
            )
            .await?;
        if let Begin::Session(upload) = &begun
            && let Some(session) = self.registry.state().sessions.get_mut(&upload.location)
        {
            session.told = true;
        }
        Ok(begun)
    }

    async fn send_chunk(
        &self,
        upload: &mut Upload,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let (mut waiting, fate) = self.send(Operation::SendChunk, &session_of(upload), None);
        let came = match self
            .receive(&mut waiting, &fate, &upload.location, offset, length, body)
            .await
        {
            Ok(Some(refused)) => Ok(refused),
            Ok(None) => Ok(Sent::Accepted {
                reported: Some(offset + length),
            }),
            Err(fault) => Err(fault),
        };
        sleep(fate.back).await;
        answered(waiting, &fate, came)
    }

    async fn finish_upload(
        &self,
        upload: &mut Upload,
        digest: &Digest,
        offset: u64,
        length: u64,
        body: BlobBody,
    ) -> Result<Sent, Fault> {
        let (mut waiting, fate) =
            self.send(Operation::FinishUpload, &About::Content(*digest), None);
        let came = match self
            .receive(&mut waiting, &fate, &upload.location, offset, length, body)
            .await
        {
            Ok(Some(refused)) => Ok(refused),
            Ok(None) => self
                .registry
                .close_session(&self.name, &upload.location, digest)
                .map(|()| Sent::Accepted {
                    reported: Some(offset + length),
                }),
            Err(fault) => Err(fault),
        };
        sleep(fate.back).await;
        answered(waiting, &fate, came)
    }

    async fn upload_offset(&self, upload: &mut Upload) -> Result<Offset, Fault> {
        let location = upload.location.clone();
        let act = move |act: &mut Act<'_>| match act.state.sessions.get(&location) {
            None => Ok(Offset::Gone),
            Some(open) if open.spoiled => Err(Fault::retryable("internal server error")),
            Some(open) => Ok(match act.state.settings.abilities.resume {
                Resume::Status => Offset::At(open.bytes.len() as u64),
                Resume::Never => Offset::Unknown,
            }),
        };
        self.ask(
            Operation::UploadOffset,
            session_of(upload),
            None,
            act,
            |_| Answer::Done { bytes: 0 },
        )
        .await
    }

    async fn cancel_upload(&self, upload: Upload) -> Result<(), Fault> {
        let about = session_of(&upload);
        let act = move |act: &mut Act<'_>| {
            act.state.sessions.remove(&upload.location);
            Ok(())
        };
        self.ask(Operation::CancelUpload, about, None, act, |_| {
            Answer::Done { bytes: 0 }
        })
        .await
    }

    async fn put_manifest(&self, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
        let (wanted, written) = (target.clone(), manifest.clone());
        let act = move |act: &mut Act<'_>| put(act, &wanted, &written);
        let answer = |put: &Put| match put {
            Put::Accepted { .. } => Answer::Accepted,
            Put::Immutable => Answer::Immutable,
            Put::Missing(_) => Answer::Missing,
        };
        self.ask(
            Operation::PutManifest,
            about(target),
            Some(manifest.digest),
            act,
            answer,
        )
        .await
    }
}

impl Registry {
    fn close_session(
        &self,
        repository: &RepositoryName,
        location: &str,
        digest: &Digest,
    ) -> Result<(), Fault> {
        let mut state = self.state();
        let bytes = Bytes::from(
            state
                .sessions
                .remove(location)
                .map(|session| session.bytes)
                .unwrap_or_default(),
        );
        if state
            .settings
            .quota
            .is_some_and(|quota| bytes.len() as u64 > quota)
        {
            return Err(Fault::rejected("the quota of this project is used up"));
        }
        let sound = Digest::of(digest.algorithm(), &bytes) == *digest;
        if state.settings.verifies_blobs && !sound {
            return Err(Fault::corrupt("the upload has another digest"));
        }
        state.blobs.insert(*digest, Blob { bytes, sound });
        state.content(repository).blobs.insert(*digest);
        Ok(())
    }
}

/// Writes a manifest, under a tag where one is given.
fn put(act: &mut Act<'_>, target: &Target, manifest: &Manifest) -> Result<Put, Fault> {
    let missing = act.state.missing(act.repository, &manifest.bytes);
    if act.state.settings.checks_content && !missing.is_empty() {
        return Ok(Put::Missing(missing));
    }
    if act.state.settings.refuses_artifacts && manifest.subject.is_some() {
        return Err(Fault::rejected(
            "manifests with a subject are not supported",
        ));
    }
    let kept = act.state.settings.referrers != Referrers::None;
    if let Target::Tag(tag) = target {
        if act.state.settings.denied.contains(tag.as_str()) {
            return Err(Fault::new(Class::Auth, format!("{tag} may not be written")));
        }
        let refused = (act.repository.to_string(), tag.to_string());
        if act.state.settings.refused.contains(&refused) {
            return Err(Fault::rejected("this tag is protected"));
        }
        if act.state.settings.immutable && act.content().tags.contains_key(tag) {
            return Ok(Put::Immutable);
        }
        if !missing.is_empty() {
            act.registry.0.trace.note(Event::Incomplete {
                request: act.request,
                missing,
            });
        }
        act.content().store(manifest);
        act.registry.move_tag(
            act.state,
            act.repository,
            tag,
            Some(manifest.digest),
            By::Process(act.process),
        );
        if let Some(subject) = subject_of_list(tag) {
            for child in &manifest.children {
                act.registry.attached(act.repository, subject, child.digest);
            }
        }
    } else {
        act.content().store(manifest);
    }
    if let Some(subject) = manifest.subject.as_ref().filter(|_| kept) {
        act.registry
            .attached(act.repository, subject.digest, manifest.digest);
    }
    Ok(Put::Accepted {
        subject: kept && manifest.subject.is_some(),
    })
}

/// The subject whose referrers a fallback tag lists.
fn subject_of_list(tag: &Tag) -> Option<Digest> {
    let hex = tag
        .as_str()
        .strip_prefix("sha256-")
        .filter(|hex| hex.len() == 64)?;
    format!("sha256:{hex}").parse().ok()
}

fn about(target: &Target) -> About {
    match target {
        Target::Tag(tag) => About::Tag(tag.as_str().into()),
        Target::Digest(digest) => About::Content(*digest),
    }
}

fn session_of(upload: &Upload) -> About {
    About::Content(Digest::of(Algorithm::Sha256, upload.location.as_bytes()))
}

fn answered(waiting: Waiting, fate: &Fate, came: Result<Sent, Fault>) -> Result<Sent, Fault> {
    let came = match (came, fate.after()) {
        (Ok(_), Some(lost)) => Err(lost),
        (came, _) => came,
    };
    match &came {
        Ok(_) => {
            let bytes = waiting.bytes;
            waiting.answered(Answer::Done { bytes });
        }
        Err(fault) => waiting.failed(fault),
    }
    came
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

/// A blob on its way to a process.
struct Reading {
    rest: Bytes,
    cut: Option<u64>,
    panics: bool,
    rate: Option<u64>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    read: u64,
    trace: Trace,
    request: u64,
}

impl Body for Reading {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let begun = self.read > 0 || self.rest.len() <= FRAME;
        if self.panics && begun {
            // As a panic, but without a report on standard error: it is no failure of the test.
            std::panic::resume_unwind(Box::new("a panic that the seed has drawn"));
        }
        if self.cut.is_some_and(|cut| self.read >= cut) {
            self.rest.clear();
            self.cut = None;
            return Poll::Ready(Some(Err(Fault::retryable(
                "connection reset within the body",
            ))));
        }
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let left = self.cut.map_or(FRAME as u64, |cut| cut - self.read);
        let length = FRAME.min(left as usize).min(self.rest.len());
        if let Some(rate) = self.rate {
            let time = Duration::from_secs_f64(length as f64 / rate as f64);
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(time)));
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        self.read += length as u64;
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let (request, bytes, whole) = (self.request, self.read, self.rest.is_empty());
        self.trace.note(Event::BodyEnded {
            request,
            bytes,
            whole,
        });
    }
}
