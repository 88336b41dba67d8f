//! The receivers that are in force, and how much each has taken lately.
//!
//! Clones share them: what is put in place holds from the next delivery on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::token_bucket::TokenBucket;
use crate::watch::receiver::settings::Settings;

/// Bodies of one receiver at once that are larger than those that need no permit.
const LARGE_BODIES: usize = 32;

/// The receivers.
#[derive(Clone, Debug, Default)]
pub struct Receivers(Arc<RwLock<BTreeMap<Arc<str>, Arc<Receiver>>>>);

/// A receiver with its limit.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) settings: Settings,
    bucket: Mutex<TokenBucket>,
    /// Large bodies that are read at once: strangers use up those of their receiver alone.
    pub(super) large_bodies: Semaphore,
}

impl Receivers {
    /// Starts with these.
    pub fn new(settings: Vec<Settings>) -> Receivers {
        let receivers = Receivers::default();
        receivers.replace(settings);
        receivers
    }

    /// Puts others in place.
    pub fn replace(&self, settings: Vec<Settings>) {
        let receivers = settings.into_iter().map(|settings| {
            let receiver = Receiver::new(settings);
            (receiver.settings.name.clone(), Arc::new(receiver))
        });
        let receivers = receivers.collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = receivers;
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<Receiver>> {
        let receivers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        receivers.get(name).cloned()
    }
}

impl Receiver {
    fn new(settings: Settings) -> Receiver {
        let rate = f64::from(settings.limit);
        let bucket = TokenBucket::new(rate, rate, Instant::now());
        Receiver {
            settings,
            bucket: Mutex::new(bucket),
            large_bodies: Semaphore::new(LARGE_BODIES),
        }
    }

    /// Whether one more delivery is within the limit.
    pub(super) fn admits(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.try_take(Instant::now())
    }
}
