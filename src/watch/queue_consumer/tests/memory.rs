//! A queue in memory, with visibility and a redrive policy as SQS has them.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::fault::Fault;
use crate::sqs::{Depth, Message, Receipt};
use crate::watch::queue_consumer::MessageQueue;

#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    next: u64,
    stored: Vec<Stored>,
    dead: Vec<String>,
    /// A message that was received so often goes to the dead-letter queue.
    max_receives: u32,
    failing: Option<&'static str>,
    receives: usize,
    deletions: usize,
    visibilities: Vec<Duration>,
}

struct Stored {
    body: String,
    receives: u32,
    receipt: Option<Receipt>,
    visible_at: Instant,
}

impl Memory {
    pub fn new(max_receives: u32) -> Memory {
        let state = State {
            max_receives,
            ..State::default()
        };
        Memory {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::default(),
        }
    }

    pub fn send(&self, body: &str) {
        self.lock().stored.push(Stored {
            body: body.into(),
            receives: 0,
            receipt: None,
            visible_at: Instant::now(),
        });
        self.changed.notify_waiters();
    }

    /// Every call fails from now on.
    pub fn fail(&self, text: Option<&'static str>) {
        self.lock().failing = text;
    }

    pub fn len(&self) -> usize {
        self.lock().stored.len()
    }

    /// Calls that ask for messages.
    pub fn receives(&self) -> usize {
        self.lock().receives
    }

    pub fn deletions(&self) -> usize {
        self.lock().deletions
    }

    /// What was set, in order.
    pub fn visibilities(&self) -> Vec<Duration> {
        self.lock().visibilities.clone()
    }

    pub async fn wait_until_empty(&self) {
        self.wait_for(|state| state.stored.is_empty().then_some(()))
            .await;
    }

    pub async fn wait_for_dead_letter(&self) -> String {
        self.wait_for(|state| state.dead.first().cloned()).await
    }

    async fn wait_for<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = found(&self.lock()) {
                return found;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn works(&self) -> Result<(), Fault> {
        self.lock()
            .failing
            .map_or(Ok(()), |text| Err(Fault::retryable(text)))
    }

    /// The messages that are visible now, and when the next one will be.
    fn take(&self, most: usize, visibility: Duration) -> (Vec<Message>, Option<Instant>) {
        let state = &mut *self.lock();
        let now = Instant::now();
        let most_receives = state.max_receives;
        let is_dead =
            |stored: &mut Stored| stored.visible_at <= now && stored.receives >= most_receives;
        let dead: Vec<Stored> = state.stored.extract_if(.., is_dead).collect();
        if !dead.is_empty() {
            self.changed.notify_waiters();
        }
        state
            .dead
            .extend(dead.into_iter().map(|stored| stored.body));
        let mut taken = Vec::new();
        for stored in state
            .stored
            .iter_mut()
            .filter(|stored| stored.visible_at <= now)
            .take(most)
        {
            state.next += 1;
            let receipt = Receipt(state.next.to_string());
            stored.receives += 1;
            stored.visible_at = now + visibility;
            stored.receipt = Some(receipt.clone());
            taken.push(Message {
                id: receipt.0.clone(),
                receipt,
                body: stored.body.clone(),
                receives: stored.receives,
                sent: Some(clock::now()),
            });
        }
        let next = state.stored.iter().map(|stored| stored.visible_at).min();
        (taken, next.filter(|next| *next > now))
    }

    fn each<T>(
        &self,
        entries: &[T],
        change: impl Fn(&mut State, &T) -> bool,
    ) -> Result<Vec<Result<(), Fault>>, Fault> {
        self.works()?;
        let state = &mut *self.lock();
        let results = entries.iter().map(|entry| match change(state, entry) {
            true => Ok(()),
            false => Err(Fault::rejected("the receipt is not valid")),
        });
        let results = results.collect();
        self.changed.notify_waiters();
        Ok(results)
    }
}

impl MessageQueue for Memory {
    async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, Fault> {
        self.lock().receives += 1;
        // Other consumers get their turn, as on a network.
        tokio::task::yield_now().await;
        let deadline = Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            self.works()?;
            let (taken, next) = self.take(most, visibility);
            if !taken.is_empty() || Instant::now() >= deadline {
                return Ok(taken);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(next.unwrap_or(deadline).min(deadline)) => {}
            }
        }
    }

    async fn delete(&self, receipts: &[Receipt]) -> Result<Vec<Result<(), Fault>>, Fault> {
        self.each(receipts, |state, receipt| {
            let before = state.stored.len();
            state
                .stored
                .retain(|stored| stored.receipt.as_ref() != Some(receipt));
            state.deletions += before - state.stored.len();
            state.stored.len() < before
        })
    }

    async fn set_visibility(
        &self,
        changes: &[(Receipt, Duration)],
    ) -> Result<Vec<Result<(), Fault>>, Fault> {
        self.each(changes, |state, (receipt, time)| {
            let mut stored = state.stored.iter_mut();
            let named = stored.find(|stored| stored.receipt.as_ref() == Some(receipt));
            let Some(stored) = named.filter(|stored| stored.visible_at > Instant::now()) else {
                return false;
            };
            stored.visible_at = Instant::now() + *time;
            state.visibilities.push(*time);
            true
        })
    }

    async fn depth(&self) -> Result<Depth, Fault> {
        self.works()?;
        let state = self.lock();
        let now = Instant::now();
        let visible = state
            .stored
            .iter()
            .filter(|stored| stored.visible_at <= now)
            .count();
        Ok(Depth {
            visible: visible as u64,
            in_flight: (state.stored.len() - visible) as u64,
            max_receives: Some(state.max_receives),
        })
    }
}
