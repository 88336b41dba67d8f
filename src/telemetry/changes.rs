//! What is new: trouble that lasts is told when it changes, not each time it is met.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

/// Remembers the last state of things, so that trouble is told once for each change. Bounded: when
/// it is full, the thing that changed longest ago is forgotten, and would be told again.
#[derive(Debug)]
pub struct Changes {
    most: usize,
    states: Mutex<States>,
}

#[derive(Debug, Default)]
struct States {
    /// By key: when it changed, and a hash of the state.
    known: HashMap<String, (u64, u64)>,
    changes: u64,
}

impl Changes {
    /// Remembers at most `most` things, at least one.
    pub fn new(most: usize) -> Changes {
        Changes {
            most: most.max(1),
            states: Mutex::default(),
        }
    }

    /// Whether `key` is in another `state` than when last asked about. Numbers do not count: a time
    /// or a count in the words of a peer would make every meeting news. The empty state, all is
    /// well, is no news of a thing that was never in trouble.
    pub fn changed(&self, key: &str, state: &str) -> bool {
        let mut states = self.states.lock().expect("no panic while looking up");
        if state.is_empty() {
            return states.known.remove(key).is_some();
        }
        let state = hash(state);
        if states
            .known
            .get(key)
            .is_some_and(|(_, known)| *known == state)
        {
            return false;
        }
        states.changes += 1;
        let change = (states.changes, state);
        states.known.insert(key.into(), change);
        if states.known.len() > self.most {
            let oldest = states.known.values().map(|(change, _)| *change).min();
            states
                .known
                .retain(|_, (change, _)| Some(*change) != oldest);
        }
        true
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.split(|character: char| character.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_news_once_for_each_change() {
        let changes = Changes::new(2);
        let said: Vec<bool> = [
            ("a", ""),
            ("a", "down"),
            ("a", "down"),
            ("a", "slow"),
            ("a", ""),
            ("a", ""),
            ("a", "slow"),
        ]
        .map(|(key, state)| changes.changed(key, state))
        .into();
        assert_eq!(said, [false, true, false, true, true, false, true]);
        assert!(
            !changes.changed("a", "slow")
                && changes.changed("n", "until 9:58")
                && !changes.changed("n", "until 10:00")
        );
        assert!(
            changes.changed("b", "down") && changes.changed("c", "down"),
            "a is forgotten"
        );
        assert!(!changes.changed("b", "down") && changes.changed("a", "slow"));
    }
}
