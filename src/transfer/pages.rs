//! Lists that come in pages, read to their end: every page under the registry's limits and with patience.
//!
//! A registry, or a proxy before it, may go round in a circle, stand still or never stop. Then reading ends with an error,
//! and a list that breaks off in the middle is never taken for a whole one.

use std::collections::HashSet;

use super::limits::Traffic;
use super::{Engine, Stop};
use crate::endpoint::{Cursor, Origin, Page};
use crate::fault::Fault;

/// Most entries of one list: more is a registry that never ends it.
const MOST: usize = 200_000;
/// Pages that may bring nothing new, over a whole list.
const BARREN: usize = 8;

/// A list that is to be read.
pub struct List<'a> {
    /// What it is the list of, for errors.
    pub what: String,
    /// Who gives it.
    pub origin: &'a Origin,
    /// The registry's name in the config.
    pub registry: &'a str,
    /// When to stop.
    pub stop: &'a Stop,
}

impl Engine {
    /// Reads a list page by page. `take` is given every entry and says whether it is a new one. Returns whether there is such
    /// a list at all.
    ///
    /// # Errors
    /// The last failure of a page; one of class `Rejected` when the list never ends; `NotFound` when it is gone in mid-way.
    pub async fn pages<T, F>(
        &self,
        list: List<'_>,
        read: impl Fn(Option<Cursor>) -> F,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<bool, Fault>
    where
        F: Future<Output = Result<Option<Page<T>>, Fault>>,
    {
        let List { what, origin, registry, stop } = list;
        let (mut cursor, mut seen) = (None::<Cursor>, HashSet::new());
        let (mut entries, mut barren) = (0, 0);
        loop {
            let page = self.ask(origin, registry, Traffic::Listing.of_look(), stop, || read(cursor.clone())).await?;
            let Some(page) = page else {
                return if cursor.is_none() { Ok(false) } else { Err(Fault::not_found(format!("{what} is gone in mid-list"))) };
            };
            let new = page.entries.into_iter().map(&mut take).filter(|new| *new).count();
            let Some(next) = page.next else { return Ok(true) };
            entries += new + page.invalid;
            barren += usize::from(new == 0);
            if entries > MOST || barren > BARREN || !seen.insert(next.0.clone()) {
                return Err(Fault::rejected(format!(
                    "{what} at {registry} never ends its list ({entries} entries so far); the registry or a proxy before it is broken"
                )));
            }
            cursor = Some(next);
        }
    }
}
