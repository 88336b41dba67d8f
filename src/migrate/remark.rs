//! Comments on what has no counterpart.

use crate::fault::{clip, without_passwords};

/// What is a version differs from tool to tool.
pub(super) const VERSIONS: &str = "ranges: only MAJOR.MINOR.PATCH is a version here, with or without a v, and a \
     pre-release needs a range that names one; tags such as 1.27 need a rule of their own";

/// What has no counterpart, or means something else here, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// The line of the old file.
    pub line: u64,
    /// One line of text.
    pub text: String,
}

impl Remark {
    pub(super) fn new(line: u64, text: impl AsRef<str>) -> Remark {
        Remark {
            line,
            text: clip(&without_passwords(text.as_ref()), 400),
        }
    }
}

/// What the rule that keeps the highest versions does not count.
pub(super) fn of_newest(line: u64, key: &str) -> Remark {
    Remark::new(
        line,
        format!(
            "{key}: `newest` counts versions (MAJOR.MINOR.PATCH); other tags that the rules take are not counted"
        ),
    )
}

/// Adds the items that the list has not.
pub(super) fn add_missing<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}
