//! Paged lists, read to their end: every page under the registry's limits, with retries.
//!
//! A registry or a proxy may serve pages in a circle, without progress or without end. Then reading
//! fails: a list that breaks off is never taken for a whole one, nor is one with more entries than
//! are read, since an absent entry would prove nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use tokio::time::Instant;

use super::limits::{RequestClass, RequestPriority};
use super::{Engine, Stop};
use crate::endpoint::{self, Cursor, Origin, Page, Source};
use crate::fault::Fault;
use crate::job::{LONG_WAIT, Rank};
use crate::oci::{Digest, Tag};

/// Most entries of one list; a longer one counts as endless.
const MOST: usize = 200_000;
/// Most pages without a new entry, over a whole list.
const BARREN: usize = 8;
/// Most pages of one list.
const PAGES: usize = 20_000;

/// A list that is to be read.
pub struct List<'a> {
    /// A description for errors.
    pub what: String,
    /// The registry.
    pub origin: &'a Origin,
    /// The registry's name in the config.
    pub registry: &'a str,
    /// When to stop.
    pub stop: &'a Stop,
}

/// How a list is read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The limiter class of its requests.
    pub priority: RequestPriority,
    /// Most entries.
    pub most: usize,
}

impl Reading {
    /// A whole list.
    pub fn of(priority: RequestPriority) -> Reading {
        Reading {
            priority,
            most: MOST,
        }
    }

    /// A whole list, for nothing that is asked for by name.
    pub fn of_look() -> Reading {
        Reading::of(RequestClass::Listing.of_look().within(LONG_WAIT))
    }

    /// A whole list, for what is asked for by name; the caller waits.
    pub fn by_name() -> Reading {
        let priority = RequestClass::Listing.of_look();
        Reading::of(priority.ranked(Rank::Named).within(LONG_WAIT))
    }
}

/// A tag as a whole list shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListedTag {
    /// Its digest, if the list shows it, the same on every page.
    pub digest: Option<Digest>,
    /// When it was pushed, if the list shows it.
    pub pushed: Option<Timestamp>,
}

/// All tags of a repository.
pub type ListedTags = BTreeMap<Tag, ListedTag>;

/// Adds an entry. Returns whether it is new. A tag that moves during the listing may come twice;
/// then only the tag itself tells its digest.
fn note(tags: &mut ListedTags, entry: endpoint::Tag) -> bool {
    let before = tags.len();
    let endpoint::Tag {
        name,
        digest,
        pushed,
    } = entry;
    let listed = tags.entry(name).or_insert(ListedTag { digest, pushed });
    if listed.digest != digest {
        *listed = ListedTag {
            digest: None,
            pushed: listed.pushed.max(pushed),
        };
    }
    tags.len() > before
}

impl Engine {
    /// All tags of a repository. `None`: it has no list, which does not prove that it has no tags.
    ///
    /// # Errors
    /// Those of [`pages_read`](Engine::pages_read).
    pub async fn tags<S: Source>(
        &self,
        repository: &S,
        reading: Reading,
        stop: &Stop,
    ) -> Result<Option<ListedTags>, Fault> {
        let mut tags = ListedTags::new();
        let origin = repository.origin();
        let registry = repository.registry();
        let list = List {
            what: repository.address(),
            origin,
            registry,
            stop,
        };
        let exists = self
            .pages_read(
                reading,
                list,
                |cursor| async move { repository.tags(cursor.as_ref()).await },
                |tag| note(&mut tags, tag),
            )
            .await?;
        Ok(exists.then_some(tags))
    }

    /// All tags of a source. What its list shows of a tag is an answer about it: a job that is about
    /// to name the tag by an older one asks again.
    ///
    /// # Errors
    /// Those of [`pages_read`](Engine::pages_read).
    pub async fn source_tags<S: Source>(
        &self,
        source: &S,
        reading: Reading,
        stop: &Stop,
    ) -> Result<Option<ListedTags>, Fault> {
        let tags = self.tags(source, reading, stop).await?;
        if let Some(tags) = &tags {
            self.newest
                .note_listed(&source.tags_id(), tags, Instant::now());
        }
        Ok(tags)
    }

    /// All manifests of a repository with their subjects. `None`: the registry has no such list.
    ///
    /// # Errors
    /// Those of [`pages_read`](Engine::pages_read).
    pub async fn listed_manifests<S: Source>(
        &self,
        repository: &S,
        reading: Reading,
        stop: &Stop,
    ) -> Result<Option<HashMap<Digest, Option<Digest>>>, Fault> {
        let mut manifests = HashMap::new();
        let origin = repository.origin();
        let registry = repository.registry();
        let list = List {
            what: repository.address(),
            origin,
            registry,
            stop,
        };
        let exists = self
            .pages_read(
                reading,
                list,
                |cursor| async move { repository.listed_manifests(cursor.as_ref()).await },
                |listed| manifests.insert(listed.digest, listed.subject).is_none(),
            )
            .await?;
        Ok(exists.then_some(manifests))
    }

    /// Reads a list page by page, as a look does.
    ///
    /// # Errors
    /// As [`Engine::pages_read`].
    pub async fn pages<T, F>(
        &self,
        list: List<'_>,
        read: impl Fn(Option<Cursor>) -> F,
        take: impl FnMut(T) -> bool,
    ) -> Result<bool, Fault>
    where
        F: Future<Output = Result<Option<Page<T>>, Fault>>,
    {
        self.pages_read(Reading::of_look(), list, read, take).await
    }

    /// Reads a list page by page. `take` gets every entry and returns whether it is new. Returns
    /// whether the list exists.
    ///
    /// # Errors
    /// The last failure of a page; one of class `Rejected` when the list never ends or has too many
    /// entries; `NotFound` when it disappears midway.
    pub async fn pages_read<T, F>(
        &self,
        reading: Reading,
        list: List<'_>,
        read: impl Fn(Option<Cursor>) -> F,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<bool, Fault>
    where
        F: Future<Output = Result<Option<Page<T>>, Fault>>,
    {
        let List {
            what,
            origin,
            registry,
            stop,
        } = list;
        let mut cursor = None::<Cursor>;
        let mut seen = HashSet::new();
        let mut entries = 0;
        let mut barren = 0;
        loop {
            let page = self
                .ask(origin, registry, reading.priority, stop, || {
                    read(cursor.clone())
                })
                .await?;
            let Some(page) = page else {
                return if cursor.is_none() {
                    Ok(false)
                } else {
                    Err(Fault::not_found(format!("{what} is gone in mid-list")))
                };
            };
            entries += page.entries.len() + page.invalid;
            if entries > reading.most {
                let most = reading.most;
                return Err(Fault::rejected(format!(
                    "{what} at {registry} lists more than {most} entries, or never ends its list"
                )));
            }
            let new = page
                .entries
                .into_iter()
                .map(&mut take)
                .filter(|new| *new)
                .count();
            let Some(next) = page.next else {
                return Ok(true);
            };
            barren += usize::from(new == 0);
            let is_another_page = seen.insert(Digest::sha256(next.0.as_bytes()));
            if barren > BARREN || seen.len() > PAGES || !is_another_page {
                return Err(Fault::rejected(format!(
                    "{what} at {registry} never ends its list ({entries} entries so far); the registry or a proxy before it is broken"
                )));
            }
            cursor = Some(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;
    use crate::fault::Class;
    use proptest::prelude::*;

    /// One page: its entries, how many are new, and the address of the next page.
    type Shape = (usize, Option<u8>);

    async fn read(
        engine: &Engine,
        most: usize,
        page: impl Fn(usize) -> Page<u64>,
    ) -> (Result<bool, Fault>, usize, usize) {
        let asked = Cell::new(0);
        let taken = Cell::new(0);
        let origin = Origin::new("http://127.0.0.1:1");
        let list = List {
            what: "the tags".into(),
            origin: &origin,
            registry: "staging",
            stop: &Stop::default(),
        };
        let reading = Reading {
            most,
            ..Reading::of_look()
        };
        let next = |_| {
            asked.set(asked.get() + 1);
            std::future::ready(Ok(Some(page(asked.get()))))
        };
        let take = |_| {
            taken.set(taken.get() + 1);
            true
        };
        let result = engine.pages_read(reading, list, next, take).await;
        (result, asked.get(), taken.get())
    }

    fn page((entries, next): Shape) -> Page<u64> {
        let next = next.map(|next| Cursor(next.to_string()));
        Page {
            entries: (0..entries as u64).collect(),
            invalid: 0,
            next,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_list_ends_and_a_whole_one_is_read_whole(
            shapes in proptest::collection::vec((0usize..30, proptest::option::weighted(0.9, any::<u8>())), 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            // After the last shape the registry repeats it without end.
            let shape = |number: usize| shapes[(number - 1).min(shapes.len() - 1)];
            let (result, asked, taken) = runtime.block_on(read(&Engine::in_memory(), 200, |number| page(shape(number))));
            prop_assert!(asked <= 256 + 1, "{asked} pages");
            match result {
                Ok(has_list) => {
                    prop_assert!(has_list && shape(asked).1.is_none());
                    prop_assert_eq!(taken, (1..=asked).map(|number| shape(number).0).sum::<usize>());
                    prop_assert!(taken <= 200);
                }
                Err(fault) => prop_assert_eq!(fault.class(), Class::Rejected),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pages_that_never_repeat_and_never_end_are_bounded_too() {
        let fresh = |number: usize, entries: u64| Page {
            entries: (0..entries).collect(),
            invalid: 0,
            next: Some(Cursor(number.to_string())),
        };
        let (result, asked, _) = read(&Engine::in_memory(), MOST, |number| fresh(number, 0)).await;
        assert_eq!(
            (result.unwrap_err().class(), asked),
            (Class::Rejected, BARREN + 1)
        );
        let (result, asked, _) = read(&Engine::in_memory(), MOST, |number| fresh(number, 1)).await;
        assert_eq!(
            (result.unwrap_err().class(), asked),
            (Class::Rejected, PAGES + 1)
        );
        let (result, asked, taken) =
            read(&Engine::in_memory(), MOST, |number| fresh(number, 1000)).await;
        assert_eq!(
            (result.unwrap_err().class(), asked, taken),
            (Class::Rejected, MOST / 1000 + 1, MOST)
        );
    }

    #[test]
    fn a_tag_that_moved_while_it_was_listed_has_no_digest_from_the_list() {
        let entry = |name: &str, content: &str| endpoint::Tag {
            name: name.parse().unwrap(),
            digest: Some(Digest::sha256(content.as_bytes())),
            pushed: None,
        };
        let mut tags = ListedTags::new();
        let news: Vec<bool> = [
            entry("v1", "old"),
            entry("v2", "one"),
            entry("v1", "new"),
            entry("v2", "one"),
        ]
        .map(|entry| note(&mut tags, entry))
        .into();
        assert_eq!(news, [true, true, false, false]);
        let digest = |name: &str| tags[&name.parse::<Tag>().unwrap()].digest;
        assert_eq!(
            (digest("v1"), digest("v2")),
            (None, Some(Digest::sha256(b"one")))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_ends_with_the_time_that_its_registry_asks_for() {
        let engine = Engine::in_memory();
        let origin = Origin::new("http://127.0.0.1:1");
        let what = "the tags".to_owned();
        let stop = Stop::default();
        let list = List {
            what,
            origin: &origin,
            registry: "staging",
            stop: &stop,
        };
        let busy = crate::fault::Class::Retryable {
            after: Some(Duration::from_secs(700)),
        };
        let read = |_| std::future::ready(Err::<Option<Page<u64>>, _>(Fault::new(busy, "busy")));
        let began = tokio::time::Instant::now();
        let fault = engine
            .pages_read(Reading::of_look(), list, read, |_| true)
            .await
            .unwrap_err();
        assert!(matches!(
            fault.class(),
            crate::fault::Class::Retryable { after: Some(_) }
        ));
        assert!(began.elapsed() <= LONG_WAIT);
    }
}
