//! Health: which registries answer and accept the credentials.
//!
//! The result of every request counts, after its retries. A refusal of credentials, or a wait that
//! the registry asks for and that jobs do not sit out, stays until a look ends without another one:
//! reads may succeed where writes are refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus::{Error, GaugeVec, Opts, Registry};

use crate::fault::{Class, Fault};
use crate::job::SHORT_WAIT;

const HELP: &str =
    "Whether the registry answers and accepts us: 1, else 0; 0 also until it has first been asked.";

/// The health of all registries. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    gauge: GaugeVec,
    registries: Arc<Mutex<BTreeMap<String, Heard>>>,
}

/// The last result of a registry.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Whether it answers and accepts the credentials; unknown before the first request.
    pub up: Option<bool>,
    /// The failure, if it does not.
    pub trouble: Option<String>,
    /// How often it has refused the credentials, or asked for long.
    refusals: u64,
    /// Whether a refusal stands.
    refused: bool,
}

/// The refusals of each registry when a look began.
#[derive(Debug)]
pub struct Mark(Vec<(String, u64)>);

impl Health {
    /// Registers the gauge.
    ///
    /// # Errors
    /// When it is registered already.
    pub(super) fn new(registry: &Registry) -> Result<Health, Error> {
        let gauge = GaugeVec::new(Opts::new("blobferry_registry_up", HELP), &["registry"])?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Health {
            gauge,
            registries: Arc::default(),
        })
    }

    /// Watches a registry. Results of others are not recorded.
    pub fn prepare(&self, registry: &str) {
        self.gauge.with_label_values(&[registry]);
        self.lock().entry(registry.into()).or_default();
    }

    /// Forgets the registries that are not `known`.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| {
            let stays = known(name);
            if !stays {
                // `prepare` made it.
                let _ = self.gauge.remove_label_values(&[name.as_str()]);
            }
            stays
        });
    }

    /// The last result of a registry. `None`: it is not watched.
    pub fn of(&self, registry: &str) -> Option<Heard> {
        self.lock().get(registry).cloned()
    }

    /// Records the result of a request. A fault that tells nothing of the registry as a whole
    /// changes nothing.
    pub fn heard(&self, registry: &str, fault: Option<&Fault>) {
        self.note(registry, |heard| match fault.map(Fault::class) {
            None if heard.refused => {}
            None => (heard.up, heard.trouble) = (Some(true), None),
            Some(class @ (Class::Auth | Class::Retryable { .. })) => {
                (heard.up, heard.trouble) = (Some(false), fault.map(Fault::chain));
                heard.refused |= stands(class);
                heard.refusals += u64::from(stands(class));
            }
            Some(_) => {}
        });
    }

    /// A look at these registries begins.
    pub fn mark<'a>(&self, registries: impl Iterator<Item = &'a str>) -> Mark {
        let state = self.lock();
        Mark(
            registries
                .filter_map(|name| Some((name.into(), state.get(name)?.refusals)))
                .collect(),
        )
    }

    /// Ends a look that all registries answered: refusals from before it no longer stand, unless
    /// another one came.
    pub fn clear(&self, mark: &Mark) {
        for (registry, refusals) in &mark.0 {
            self.note(registry, |heard| {
                if heard.refused && heard.refusals == *refusals {
                    *heard = Heard {
                        up: Some(true),
                        refusals: *refusals,
                        ..Heard::default()
                    };
                }
            });
        }
    }

    fn note(&self, registry: &str, change: impl FnOnce(&mut Heard)) {
        if let Some(heard) = self.lock().get_mut(registry) {
            change(heard);
            self.gauge
                .with_label_values(&[registry])
                .set(f64::from(heard.up == Some(true)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Heard>> {
        self.registries
            .lock()
            .expect("nothing panics while it notes")
    }
}

/// Whether a failure stays although other requests succeed.
fn stands(class: Class) -> bool {
    match class {
        Class::Retryable { after } => after.is_some_and(|after| after > SHORT_WAIT),
        class => class == Class::Auth,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        let health = Health::new(&Registry::new()).unwrap();
        health.prepare("production");
        health
    }

    fn up(health: &Health) -> (Option<bool>, f64) {
        (
            health.of("production").unwrap().up,
            health.gauge.with_label_values(&["production"]).get(),
        )
    }

    #[test]
    fn a_registry_is_up_when_it_answers_and_down_when_it_does_not() {
        let health = health();
        assert_eq!(up(&health), (None, 0.0), "it has not been asked");
        health.heard("production", None);
        assert_eq!(up(&health), (Some(true), 1.0));
        health.heard("production", Some(&Fault::rejected("no such thing")));
        assert_eq!(up(&health), (Some(true), 1.0), "it answers");
        health.heard("production", Some(&Fault::retryable("no answer")));
        assert_eq!(up(&health), (Some(false), 0.0));
        assert_eq!(
            health.of("production").unwrap().trouble.as_deref(),
            Some("no answer")
        );
        health.heard("production", None);
        assert_eq!(up(&health), (Some(true), 1.0));
        assert_eq!(health.of("production").unwrap().trouble, None);
    }

    #[test]
    fn a_refusal_holds_until_a_look_ends_without_one() {
        let health = health();
        let refusal = Fault::new(Class::Auth, "pull only");
        let look = |refused: bool| {
            let mark = health.mark(["production"].into_iter());
            health.heard("production", None);
            if refused {
                health.heard("production", Some(&refusal));
            }
            health.heard("production", None);
            health.clear(&mark);
        };
        look(true);
        assert_eq!(
            up(&health),
            (Some(false), 0.0),
            "reading works, writing does not"
        );
        look(true);
        assert_eq!(up(&health), (Some(false), 0.0));
        look(false);
        assert_eq!(up(&health), (Some(true), 1.0));
    }

    #[test]
    fn a_registry_that_is_no_more_is_not_brought_back() {
        let health = health();
        health.retain(|name| name != "production");
        health.heard("production", Some(&Fault::retryable("no answer")));
        assert!(health.of("production").is_none());
        assert_eq!(
            prometheus::core::Collector::collect(&health.gauge)[0]
                .get_metric()
                .len(),
            0
        );
    }
}
