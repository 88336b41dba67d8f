//! Questions to programs, services and scanners, which are asked beside the jobs.
//!
//! A program or a service may take minutes, and so may many pages of findings. A job waits for a
//! short answer; one that takes longer goes on without the job, which ends as waiting, and the tag is
//! looked at again when the answer has come. While a gate has a question that is open for long, jobs
//! do not wait for it at all, so a gate that hangs holds up neither jobs nor looks of others.
//!
//! Each program and service, and the scanner of each registry, is asked a few questions at once. A
//! pass of a program or a service holds for [`HOLDS`], for the same question by the same gate; any
//! other answer counts once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::fault::{Class, Fault};
use crate::gate;
use crate::gate::http::{Asker, Service};
use crate::job::gates::{Command, Http};
use crate::job::{GateKind, Judgement, Key, NextJudgement, Scan};
use crate::oci::Digest;

/// How long an answer holds.
pub(super) const HOLDS: Duration = Duration::from_secs(60);
/// A gate with a question that is open for longer is slow.
const SLOW: Duration = Duration::from_secs(1);
/// Questions that one program, service or scanner is asked at once.
const AT_ONCE: usize = 16;
/// Most questions, open and answered.
const MOST: usize = 4096;

/// A program or a service of the config.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Command(Command),
    Http(Http),
}

impl Asked {
    fn kind(&self) -> GateKind {
        match self {
            Asked::Command(_) => GateKind::Command,
            Asked::Http(_) => GateKind::Http,
        }
    }

    fn name(&self) -> &str {
        match self {
            Asked::Command(command) => command.run.first().map_or("", String::as_str),
            Asked::Http(http) => http.url.host_str().unwrap_or_default(),
        }
    }

    async fn answer(self, service: Arc<dyn Service>, question: Vec<u8>) -> Judgement {
        match self {
            Asked::Command(command) => {
                let run = gate::command::run(&command, &question).await;
                gate::command::judge(&command, &run)
            }
            Asked::Http(http) => gate::http::judge(&http, service.ask(&http, question).await),
        }
    }
}

/// What judges by an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Judge {
    /// A program or a service.
    Asked(Asked),
    /// A gate, by what the scanner of a registry has found in an image.
    Scan {
        gate: Box<Scan>,
        registry: String,
        image: Digest,
    },
}

/// What answers a few questions at once. A registry has one scanner for all images.
#[derive(Clone, Debug, PartialEq)]
enum Turns {
    Asked(Asked),
    Scanner(String),
}

/// What is done to get an answer.
pub(super) type Work = BoxFuture<'static, Result<Judgement, Fault>>;

impl Judge {
    fn kind(&self) -> GateKind {
        match self {
            Judge::Asked(asked) => asked.kind(),
            Judge::Scan { .. } => GateKind::Scan,
        }
    }

    /// The name in reasons.
    fn name(&self) -> &str {
        match self {
            Judge::Asked(asked) => asked.name(),
            Judge::Scan { registry, .. } => registry,
        }
    }

    fn turns(&self) -> Turns {
        match self {
            Judge::Asked(asked) => Turns::Asked(asked.clone()),
            Judge::Scan { registry, .. } => Turns::Scanner(registry.clone()),
        }
    }

    /// Why a job goes without the answer.
    fn is_open(&self) -> String {
        match self {
            Judge::Asked(asked) => format!("{} has not answered yet", asked.name()),
            Judge::Scan {
                registry, image, ..
            } => format!("the findings of {image} are being read from {registry}"),
        }
    }

    /// Whether a pass is kept for other jobs. What a scanner finds may change meanwhile: each job
    /// keeps its own.
    fn is_kept(&self) -> bool {
        matches!(self, Judge::Asked(_))
    }

    fn waits(&self, reason: String) -> Judgement {
        Judgement::wait(self.kind(), reason, Value::Null, NextJudgement::Soon)
    }
}

/// An answer, and when it came.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) judgement: Judgement,
    pub(super) at: Instant,
}

/// What came of a question, and when: a judgement, or why there is none.
#[derive(Clone, Debug)]
struct Came {
    result: Result<Judgement, (Class, String)>,
    at: Instant,
}

impl Came {
    fn is_pass(&self) -> bool {
        self.result.as_ref().is_ok_and(Judgement::is_pass)
    }

    fn answer(self) -> Result<Answer, Fault> {
        let at = self.at;
        let judgement = self.result.map_err(|(class, text)| Fault::new(class, text));
        judgement.map(|judgement| Answer { judgement, at })
    }
}

/// Where the answer comes, and whether its gate is slow.
type Begun = (watch::Receiver<Option<Came>>, bool);

/// The kind of gate, and the digest of the question.
type QuestionId = (GateKind, Digest);

struct Question {
    judge: Judge,
    asked: Instant,
    answer: watch::Receiver<Option<Came>>,
    /// The tags of the jobs that have gone without the answer.
    wakes: BTreeSet<Key>,
    task: AbortHandle,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Question {
    fn answered(&self) -> Option<Came> {
        self.answer.borrow().clone()
    }

    fn is_over(&self) -> bool {
        self.answered()
            .is_some_and(|came| came.at.elapsed() >= HOLDS)
    }
}

#[derive(Default)]
struct State {
    questions: HashMap<QuestionId, Question>,
    turns: Vec<(Turns, Weak<Semaphore>)>,
    /// Tags with answers that came after their jobs.
    answered: BTreeSet<Key>,
}

/// The questions of all jobs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Questions {
    state: Arc<Mutex<State>>,
    service: Arc<dyn Service>,
    news: Arc<Notify>,
}

impl Default for Questions {
    fn default() -> Questions {
        Questions::asked_by(Arc::<Asker>::default())
    }
}

impl Questions {
    /// No questions yet; those of `http` gates go to `service`.
    pub(super) fn asked_by(service: Arc<dyn Service>) -> Questions {
        Questions {
            state: Arc::default(),
            service,
            news: Arc::default(),
        }
    }

    /// The tags with answers that came after their jobs; waits for the first.
    pub(super) async fn answered(&self) -> BTreeSet<Key> {
        loop {
            let answered = std::mem::take(&mut lock(&self.state).answered);
            if !answered.is_empty() {
                return answered;
            }
            self.news.notified().await;
        }
    }

    /// A pass that still holds.
    pub(super) fn passed(&self, judge: &Judge, question: &[u8]) -> Option<Answer> {
        let state = lock(&self.state);
        let id = (judge.kind(), Digest::sha256(question));
        let known = state.questions.get(&id);
        let known = known.filter(|known| known.judge == *judge && !known.is_over())?;
        let came = known.answered().filter(Came::is_pass)?;
        came.answer().ok()
    }

    /// What asks a program or a service.
    pub(super) fn work(&self, asked: &Asked, question: Vec<u8>) -> Work {
        let answer = asked.clone().answer(self.service.clone(), question);
        answer.map(Ok).boxed()
    }

    /// The answer to a question about the tag of a job. `work` is prepared only where the question
    /// is neither open nor answered. `patience`: how long the job waits for the answer; `None`:
    /// until it is there.
    ///
    /// # Errors
    /// What kept the work from an answer, or from being prepared.
    pub(super) async fn ask(
        &self,
        judge: &Judge,
        question: &[u8],
        key: &Key,
        patience: Option<Duration>,
        work: impl Future<Output = Result<Work, Fault>>,
    ) -> Result<Answer, Fault> {
        let id = (judge.kind(), Digest::sha256(question));
        let known = lock(&self.state).known(id, judge);
        let begun = match known {
            Some(known) => Some(known),
            None => self.begin(id, judge, work.await?),
        };
        let Some((mut answer, is_slow)) = begun else {
            let reason = format!("{} has {MOST} questions to answer before", judge.name());
            return Ok(now(judge.waits(reason)));
        };
        let patience = patience.map(|patience| if is_slow { Duration::ZERO } else { patience });
        let came = async { answer.wait_for(Option::is_some).await.ok()?.clone() };
        let came = match patience {
            Some(patience) => timeout(patience, came).await.ok().flatten(),
            None => came.await,
        };
        self.take(id, judge, key, came)
    }

    /// The question, asked now unless another job has asked it meanwhile.
    fn begin(&self, id: QuestionId, judge: &Judge, work: Work) -> Option<Begun> {
        let mut state = lock(&self.state);
        if let Some(known) = state.known(id, judge) {
            return Some(known);
        }
        if state.questions.len() >= MOST {
            state.questions.retain(|_, question| !question.is_over());
        }
        if state.questions.len() >= MOST {
            return None;
        }
        let (sender, answer) = watch::channel(None);
        let turns = state.turns_of(judge);
        let asking = Asking {
            state: Arc::downgrade(&self.state),
            news: self.news.clone(),
            judge: judge.clone(),
            id,
        };
        let task = tokio::spawn(asking.run(work, turns, sender)).abort_handle();
        let question = Question {
            judge: judge.clone(),
            asked: Instant::now(),
            answer: answer.clone(),
            wakes: BTreeSet::new(),
            task,
        };
        let is_slow = state.is_slow(judge);
        state.questions.insert(id, question);
        Some((answer, is_slow))
    }

    /// What a job goes by. An answer that is no pass is gone once each job that went without it has
    /// come back, and so is each of a scan.
    fn take(
        &self,
        id: QuestionId,
        judge: &Judge,
        key: &Key,
        came: Option<Came>,
    ) -> Result<Answer, Fault> {
        let mut state = lock(&self.state);
        let known = state.questions.get_mut(&id);
        let mut known = known.filter(|known| known.judge == *judge);
        let came = came.or_else(|| known.as_ref()?.answered());
        let Some(came) = came else {
            if let Some(known) = known {
                known.wakes.insert(key.clone());
            }
            return Ok(now(judge.waits(judge.is_open())));
        };
        if came.is_pass() && judge.is_kept() {
            return came.answer();
        }
        // Another job may have asked the same anew meanwhile.
        let answered = known.as_mut().filter(|known| known.answered().is_some());
        if let Some(known) = answered {
            known.wakes.remove(key);
            if known.wakes.is_empty() {
                state.questions.remove(&id);
            }
        }
        came.answer()
    }
}

fn now(judgement: Judgement) -> Answer {
    let at = Instant::now();
    Answer { judgement, at }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// A question that is open or answered.
    fn known(&self, id: QuestionId, judge: &Judge) -> Option<Begun> {
        let known = self.questions.get(&id);
        let known = known.filter(|known| known.judge == *judge && !known.is_over())?;
        Some((known.answer.clone(), self.is_slow(judge)))
    }

    fn is_slow(&self, judge: &Judge) -> bool {
        let mut open = self.questions.values();
        open.any(|question| {
            question.judge == *judge
                && question.asked.elapsed() > SLOW
                && question.answered().is_none()
        })
    }

    fn turns_of(&mut self, judge: &Judge) -> Arc<Semaphore> {
        let asked = judge.turns();
        self.turns.retain(|(_, turns)| turns.strong_count() > 0);
        let known = self.turns.iter().find(|(of, _)| *of == asked);
        if let Some(turns) = known.and_then(|(_, turns)| turns.upgrade()) {
            return turns;
        }
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        self.turns.push((asked, Arc::downgrade(&turns)));
        turns
    }
}

/// A question that is being asked. It belongs to its [`Question`], which ends it when it is
/// dropped.
struct Asking {
    state: Weak<Mutex<State>>,
    news: Arc<Notify>,
    judge: Judge,
    id: QuestionId,
}

impl Asking {
    async fn run(self, work: Work, turns: Arc<Semaphore>, sender: watch::Sender<Option<Came>>) {
        let Ok(_turn) = turns.acquire().await else {
            return;
        };
        let result = work.await;
        let came = Came {
            result: result.map_err(|fault| (fault.class(), fault.chain())),
            at: Instant::now(),
        };
        let Some(state) = self.state.upgrade() else {
            return;
        };
        let mut state = lock(&state);
        sender.send_replace(Some(came));
        let asked = state.questions.get(&self.id);
        let asked = asked.filter(|asked| asked.judge == self.judge);
        let wakes = asked.map(|asked| asked.wakes.clone()).unwrap_or_default();
        if !wakes.is_empty() {
            state.answered.extend(wakes);
            self.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::endpoint::Origin;
    use crate::job::{ScanOrigin, ScanSide, TagId};

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));

    fn judge() -> Judge {
        let gate = Scan {
            from: ScanOrigin::Registry(ScanSide::default()),
            refuse: Vec::new(),
            grace: BTreeMap::new(),
            ignore: BTreeMap::new(),
            wait: Duration::ZERO,
        };
        Judge::Scan {
            gate: Box::new(gate),
            registry: "staging".into(),
            image: Digest::sha256(b"image"),
        }
    }

    fn key(tag: &str) -> Key {
        Key {
            route: "app".into(),
            source: "app".parse().unwrap(),
            tag: tag.parse().unwrap(),
            destination: TagId {
                origin: Origin::new("https://production.example"),
                repository: "app".parse().unwrap(),
                tag: tag.parse().unwrap(),
            },
        }
    }

    /// A reading of ten seconds with that result, counted where it begins.
    fn reading(count: &Arc<AtomicUsize>, result: Result<(), Fault>) -> Work {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let pass = Judgement::pass(GateKind::Scan, "nothing found", Value::Null);
            result.map(|()| pass)
        }
        .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn tags_of_one_image_share_a_reading_and_all_are_woken() {
        let questions = Questions::default();
        let count = Arc::default();
        let ask = async |tag: &str| {
            let key = key(tag);
            let work = async { Ok(reading(&count, Ok(()))) };
            let judge = judge();
            let asked = questions.ask(&judge, b"image", &key, PATIENCE, work);
            asked.await.unwrap().judgement.is_pass()
        };
        assert_eq!((ask("v1").await, ask("latest").await), (false, false));
        let woken = questions.answered().await;
        assert_eq!(woken, BTreeSet::from([key("v1"), key("latest")]));
        assert_eq!((ask("v1").await, ask("latest").await), (true, true));
        assert_eq!(count.load(Ordering::Relaxed), 1, "one reading for both");
        assert!(!ask("v1").await, "each reading is gone by once");
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_comes_after_the_job_is_told() {
        let questions = Questions::default();
        let count = Arc::default();
        let ask = async || {
            let work = async { Ok(reading(&count, Err(Fault::retryable("no answer")))) };
            let (key, judge) = (key("v1"), judge());
            questions.ask(&judge, b"image", &key, PATIENCE, work).await
        };
        assert!(!ask().await.unwrap().judgement.is_pass());
        assert_eq!(questions.answered().await, BTreeSet::from([key("v1")]));
        assert_eq!(ask().await.unwrap_err().to_string(), "no answer");
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    /// Each image was a gate of its own: a thousand were read at once, and none came to its end in
    /// time.
    #[tokio::test(start_paused = true)]
    async fn a_scanner_is_asked_about_a_few_images_at_once() {
        let questions = Questions::default();
        let running = Arc::new(AtomicUsize::new(0));
        for number in 0..20 {
            let Judge::Scan { gate, registry, .. } = judge() else {
                unreachable!("it is a scan")
            };
            let name = format!("v{number}");
            let image = Digest::sha256(name.as_bytes());
            let judge = Judge::Scan {
                gate,
                registry,
                image,
            };
            let running = running.clone();
            let reading = async move {
                running.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            };
            let work = async { Ok(reading.boxed()) };
            let (key, patience) = (key(&name), Some(Duration::ZERO));
            let asked = questions.ask(&judge, name.as_bytes(), &key, patience, work);
            assert!(!asked.await.unwrap().judgement.is_pass());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(running.load(Ordering::Relaxed), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_no_question_that_was_asked_since() {
        let questions = Questions::default();
        let count = Arc::default();
        let id = (GateKind::Scan, Digest::sha256(b"image"));
        questions
            .begin(id, &judge(), reading(&count, Ok(())))
            .unwrap();
        let before = Came {
            result: Ok(Judgement::pass(
                GateKind::Scan,
                "nothing found",
                Value::Null,
            )),
            at: Instant::now(),
        };
        questions
            .take(id, &judge(), &key("v1"), Some(before))
            .unwrap();
        assert!(lock(&questions.state).questions.contains_key(&id));
    }
}
