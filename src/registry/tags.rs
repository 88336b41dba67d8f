//! Listings: tags, repositories, and the pages both come in (end-8 and `_catalog`).
//!
//! The next page is where `Link` says, to the letter; its absence is the only end. A link to
//! another host or another list is refused, and so is one to the page just read and one that cannot
//! be read. How many pages are read is bounded by the caller. Entries are bounded while they are
//! decoded: what a page has beyond the bound is skipped, never held, and the page is refused.
//!
//! An answer with status 200 is a list only if it says so: an error document, `{}` or the list of
//! another repository is a failure, never an empty list. Some registries leave out `name`, and some
//! leave out `tags` where there are none; a kind with lists that prove absence does neither.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use bytes::Bytes;
use http::{Method, header};
use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use url::Url;

use super::auth::Scopes;
use super::error::{ErrorContext, looks_like_html};
use super::metrics::Operation;
use super::redirect::HostKind;
use super::transport::{Answer, Call};
use super::{Registry, Repository};
use crate::endpoint::{Cursor, Page, Tag};
use crate::fault::{Fault, clip};
use crate::oci::{self, RepositoryName};

/// Most pages that a caller should read of one listing: a million entries of a registry that sends
/// a thousand each.
pub const MAX_PAGES: usize = 1000;
/// Largest page, in bytes. Registries without pages send everything at once.
const MAX_PAGE: usize = 8 * 1024 * 1024;
/// Entries asked for at a time; distribution 3 refuses more.
const PAGE_LENGTH: &str = "1000";
/// Most names that are taken from one page: registries without pages send a whole list at once.
const MOST_NAMES: usize = 200_000;

#[derive(serde::Deserialize)]
struct TagList {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, deserialize_with = "listed")]
    tags: Listed<Name<oci::Tag>, MOST_NAMES>,
}

impl TagList {
    /// The names, if this is the list of `repository`. `is_proof`: that a tag is not listed shows
    /// that it is absent, so the list must name itself to the letter.
    fn of(
        self,
        repository: &RepositoryName,
        is_proof: bool,
        about: &ErrorContext,
    ) -> Result<Vec<Name<oci::Tag>>, Fault> {
        let named = self.name.as_deref();
        if let Some(other) = named.filter(|name| !is_named(repository, name, is_proof)) {
            let other = clip(other, 100);
            return Err(about.rejected(format!("the answer lists the tags of \"{other}\"")));
        }
        let is_list = match is_proof {
            true => named.is_some() && self.tags.is_some(),
            false => named.is_some() || self.tags.is_some(),
        };
        if !is_list {
            return Err(about.rejected("the answer is not a list of the repository's tags"));
        }
        Bounded::within(self.tags.flatten(), "tags", about)
    }
}

/// Whether a list's `name` is that of the repository. Registries behind a path of their own know it
/// by a longer or a shorter name.
fn is_named(repository: &RepositoryName, name: &str, is_proof: bool) -> bool {
    let repository = repository.as_str();
    repository == name || !is_proof && ends_alike(repository, name)
}

/// Whether one path is the other one's end.
fn ends_alike(one: &str, other: &str) -> bool {
    is_end_of(one, other) || is_end_of(other, one)
}

fn is_end_of(end: &str, path: &str) -> bool {
    let start = path.strip_suffix(end);
    start.is_some_and(|start| start.is_empty() || start.ends_with('/'))
}

#[derive(serde::Deserialize)]
struct Catalog {
    #[serde(default, deserialize_with = "listed")]
    repositories: Listed<Name<RepositoryName>, MOST_NAMES>,
}

/// A key of a page. `None`: the page lacks it. `Some(None)`: it is null, an empty list.
pub(super) type Listed<T, const MOST: usize> = Option<Option<Bounded<T, MOST>>>;

/// Reads a key that is there, maybe as null.
pub(super) fn listed<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Listed<T, MOST>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A list of at most so many entries; what comes after them is skipped while it is read.
pub(super) struct Bounded<T, const MOST: usize> {
    entries: Vec<T>,
    beyond: bool,
}

impl<T, const MOST: usize> Bounded<T, MOST> {
    /// The entries of a page that is expected to have no more of them.
    pub(super) fn within(
        list: Option<Self>,
        what: &str,
        about: &ErrorContext,
    ) -> Result<Vec<T>, Fault> {
        match list {
            None => Ok(Vec::new()),
            Some(list) if list.beyond => {
                Err(about.rejected(format!("a page lists more than {MOST} {what}")))
            }
            Some(list) => Ok(list.entries),
        }
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Entries<T, MOST> {
            type Value = Bounded<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Bounded<T, MOST>, A::Error> {
                let mut entries = Vec::new();
                while entries.len() < MOST {
                    match list.next_element()? {
                        Some(entry) => entries.push(entry),
                        None => {
                            return Ok(Bounded {
                                entries,
                                beyond: false,
                            });
                        }
                    }
                }
                let mut beyond = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    beyond = true;
                }
                Ok(Bounded { entries, beyond })
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

/// A name, if the text is one. Read without a copy of the text.
struct Name<N>(Option<N>);

impl<'de, N: FromStr> Deserialize<'de> for Name<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<N>(PhantomData<N>);

        impl<N: FromStr> Visitor<'_> for Text<N> {
            type Value = Name<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name<N>, E> {
                Ok(Name(text.parse().ok()))
            }
        }

        deserializer.deserialize_str(Text(PhantomData))
    }
}

impl Repository {
    /// One page of the tags.
    pub(super) async fn tag_page(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<Tag>>, Fault> {
        let about = self.about("list the tags", "");
        let first = self
            .transport()
            .url(&format!("/v2/{}/tags/list", self.name));
        let url = page_url(&self.registry, first, cursor, &about)?;
        let call = Call::new(Operation::TagList, Method::GET, url, &self.pull, &about)
            .counted(self.tally.as_deref());
        let Some((bytes, next)) = page(&self.registry, &call, &about).await? else {
            return Ok(None);
        };
        let list: TagList = parse(&bytes, &about)?;
        let is_proof = self.registry.profile().abilities.current_lists;
        let names = list.of(&self.name, is_proof, &about)?;
        Ok(Some(read_entries(names, next, |name| Tag {
            name,
            digest: None,
            pushed: None,
        })))
    }
}

impl Registry {
    /// One page of the repositories (`_catalog`). `None`: this registry lists none (404).
    ///
    /// # Errors
    /// As any request; many hosted registries refuse this one.
    pub async fn repositories(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<RepositoryName>>, Fault> {
        self.catalog_page(cursor)
            .await
            .map_err(|fault| self.transport().scrubbed(fault))
    }

    async fn catalog_page(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Page<RepositoryName>>, Fault> {
        let about = self.about("list the repositories");
        let url = page_url(self, self.transport().url("/v2/_catalog"), cursor, &about)?;
        let scopes = Scopes::catalog();
        let call = Call::new(Operation::Catalog, Method::GET, url, &scopes, &about);
        let Some((bytes, next)) = page(self, &call, &about).await? else {
            return Ok(None);
        };
        let catalog: Catalog = parse(&bytes, &about)?;
        let Some(repositories) = catalog.repositories else {
            return Err(about.rejected("the answer is not a list of repositories"));
        };
        let names = Bounded::within(repositories, "repositories", &about)?;
        Ok(Some(read_entries(names, next, |name| name)))
    }
}

/// Names in, entries out; what is no name is counted.
fn read_entries<N, T>(
    names: Vec<Name<N>>,
    next: Option<Cursor>,
    entry: impl Fn(N) -> T,
) -> Page<T> {
    let total = names.len();
    let entries: Vec<T> = names
        .into_iter()
        .filter_map(|Name(name)| name)
        .map(entry)
        .collect();
    Page {
        invalid: total - entries.len(),
        entries,
        next,
    }
}

/// The address of a page: the first one asks for a length, the others are where a link led.
pub(super) fn page_url(
    registry: &Registry,
    mut first: Url,
    cursor: Option<&Cursor>,
    about: &ErrorContext,
) -> Result<Url, Fault> {
    let Some(Cursor(text)) = cursor else {
        first.query_pairs_mut().append_pair("n", PAGE_LENGTH);
        return Ok(first);
    };
    let url = Url::parse(text).map_err(|_| about.rejected("the next page has no address"))?;
    at_home(registry, url, about)
}

/// Sends the request for a page. `None`: 404. Otherwise its bytes and where the next one is.
async fn page(
    registry: &Registry,
    call: &Call<'_>,
    about: &ErrorContext,
) -> Result<Option<(Bytes, Option<Cursor>)>, Fault> {
    let answer = registry.transport().call(call).await?;
    match answer.status.as_u16() {
        200..=299 => {
            is_of_a_list(&answer, about)?;
            read_page(registry, call.url(), answer, about)
                .await
                .map(Some)
        }
        404 => Ok(None),
        _ => Err(registry.transport().refusal(answer).await.fault(about)),
    }
}

/// Refuses a page for people. Otherwise the type says little: ECR has sent lists as plain text.
fn is_of_a_list(answer: &Answer, about: &ErrorContext) -> Result<(), Fault> {
    let served = answer.header(header::CONTENT_TYPE).unwrap_or_default();
    let served = served.to_ascii_lowercase();
    if !served.contains("html") && !served.contains("xml") {
        return Ok(());
    }
    let served = clip(&served, 60);
    Err(about.rejected(format!(
        "an answer of the type {served} came instead of JSON; check the registry's `url`"
    )))
}

/// The bytes of a page that was asked for at `asked`, and where the next one is.
pub(super) async fn read_page(
    registry: &Registry,
    asked: &Url,
    answer: Answer,
    about: &ErrorContext,
) -> Result<(Bytes, Option<Cursor>), Fault> {
    let next = next_page(registry, asked, &answer, about)?;
    let bytes = registry.transport().bytes(answer, MAX_PAGE, about).await?;
    Ok((bytes, next.map(|url| Cursor(url.into()))))
}

fn next_page(
    registry: &Registry,
    asked: &Url,
    answer: &Answer,
    about: &ErrorContext,
) -> Result<Option<Url>, Fault> {
    let mut next = None;
    for value in answer.headers.get_all(header::LINK) {
        let link = value.to_str().map_err(|_| Unreadable).and_then(next_link);
        let link = link.map_err(|Unreadable| about.rejected("its Link header cannot be read"))?;
        next = next.or(link);
    }
    let Some(link) = next else {
        return Ok(None);
    };
    let url = answer
        .url
        .join(link)
        .map_err(|_| about.rejected("the link to the next page is no address"))?;
    if url == *asked || url == answer.url {
        return Err(about.rejected("the page names itself as the next one"));
    }
    let is_proof = registry.profile().abilities.current_lists;
    let mut pages = [asked, &answer.url].into_iter();
    if !pages.any(|page| is_of_same_list(page, &url, is_proof)) {
        return Err(about.rejected("the next page is that of another list"));
    }
    at_home(registry, url, about).map(Some)
}

/// Whether two pages are of one list, by their paths. Registries behind a path of their own may show
/// a longer or a shorter one.
fn is_of_same_list(one: &Url, other: &Url, is_proof: bool) -> bool {
    let one = list_path(one);
    let other = list_path(other);
    one == other || !is_proof && ends_alike(&one, &other)
}

fn list_path(url: &Url) -> String {
    let path = url.path().replace("%3A", ":").replace("%3a", ":");
    path.rsplit_once("/v2/")
        .map_or(path.clone(), |(_, list)| list.to_owned())
}

fn at_home(registry: &Registry, url: Url, about: &ErrorContext) -> Result<Url, Fault> {
    match registry.transport().guard.judge_stored(&url) {
        Ok(HostKind::Own) => Ok(url),
        Ok(HostKind::Foreign) => Err(about.rejected("the next page lies on another host")),
        Err(refused) => Err(about.rejected(refused.to_string())),
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    about: &ErrorContext,
) -> Result<T, Fault> {
    if looks_like_html(bytes) {
        return Err(about.rejected("an HTML page came instead of JSON; check the registry's `url`"));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        about
            .rejected("the answer is not the JSON of a listing")
            .because(error)
    })
}

/// A `Link` that may name a next page, in a form that is not understood.
#[derive(Debug, PartialEq)]
struct Unreadable;

/// The target of the link with the relation `next` (RFC 8288), if the header has one.
fn next_link(header: &str) -> Result<Option<&str>, Unreadable> {
    let mut rest = header.trim();
    while let Some(start) = rest.strip_prefix('<') {
        let (target, parameters) = start.split_once('>').ok_or(Unreadable)?;
        let (parameters, following) = until_comma(parameters);
        if is_next(relations(parameters).ok_or(Unreadable)?) {
            return Ok(Some(target.trim()));
        }
        rest = following.trim_start_matches([',', ' ', '\t']);
    }
    match rest.to_ascii_lowercase().contains("next") {
        true => Err(Unreadable),
        false => Ok(None),
    }
}

/// Splits at the first comma outside quotes: a new link starts there.
fn until_comma(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let end = text.find(|character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    });
    end.map_or((text, ""), |end| text.split_at(end))
}

/// The relations of a link. `None`: it has none.
fn relations(parameters: &str) -> Option<&str> {
    let mut named = parameters
        .split(';')
        .filter_map(|parameter| parameter.split_once('='));
    named
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("rel"))
        .map(|(_, value)| value.trim().trim_matches(['"', '\'']))
}

fn is_next(relations: &str) -> bool {
    let mut relations = relations.split_ascii_whitespace();
    relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn links_are_read_as_they_come() {
        let table = [
            (
                r#"</v2/app/tags/list?last=b&n=2>; rel="next""#,
                Some("/v2/app/tags/list?last=b&n=2"),
            ),
            (
                "<https://host.example/x?a=1,2>;rel=next",
                Some("https://host.example/x?a=1,2"),
            ),
            (
                r#"</a>; rel="prev", </b>; title="x, <y>"; REL="last Next""#,
                Some("/b"),
            ),
            ("</b>; rel='next'", Some("/b")),
            (r#"</a>; rel="prev""#, None),
            (r#"</a>; rel="nextish""#, None),
            ("something else", None),
            ("", None),
        ];
        for (header, expected) in table {
            assert_eq!(next_link(header), Ok(expected), "{header}");
        }
        for unreadable in [
            r#"/a; rel="next""#,
            "</a",
            "</a>",
            r#"</a>; title="next""#,
            r#"</a>; rel="prev", /b; rel="next""#,
        ] {
            assert_eq!(next_link(unreadable), Err(Unreadable), "{unreadable}");
        }
    }

    #[test]
    fn a_next_page_belongs_to_the_same_list() {
        let page = |path: &str| Url::parse(&format!("https://host.example{path}")).unwrap();
        let asked = page("/v2/p/app/tags/list?n=1000");
        let table = [
            ("/v2/p/app/tags/list?last=b", true, true),
            ("/v2/app/tags/list?last=b", true, false),
            ("/api/docker/local/v2/p/app/tags/list?last=b", true, true),
            ("/v2/local/p/app/tags/list?last=b", true, false),
            ("/v2/zz/tags/list?last=b", false, false),
            ("/v2/pp/app/tags/list?last=b", false, false),
            ("/v2/_catalog?last=b", false, false),
        ];
        for (next, loose, strict) in table {
            let same = [false, true].map(|is_proof| is_of_same_list(&asked, &page(next), is_proof));
            assert_eq!(same, [loose, strict], "{next}");
        }
        let referrers = page("/v2/app/referrers/sha256:00");
        assert!(is_of_same_list(
            &referrers,
            &page("/v2/app/referrers/sha256%3A00?page=2"),
            true
        ));
    }

    #[test]
    fn odd_lists_are_lists() {
        let about = ErrorContext::new(
            "list the tags",
            &"staging".into(),
            "host.example/app".into(),
        );
        let repository: RepositoryName = "p/app".parse().unwrap();
        let read_as = |text: &str, is_proof: bool| {
            let list: TagList = parse(text.as_bytes(), &about)?;
            let names = list.of(&repository, is_proof, &about)?;
            Ok::<Page<oci::Tag>, Fault>(read_entries(names, None, |name| name))
        };
        let read = |text: &str| read_as(text, false);
        for empty in [
            r#"{"name":"p/app","tags":null}"#,
            r#"{"name":"p/app","tags":[]}"#,
        ] {
            assert_eq!(read(empty).unwrap().entries.len(), 0, "{empty}");
            assert_eq!(read_as(empty, true).unwrap().entries.len(), 0, "{empty}");
        }
        for incomplete in [
            r#"{"name":"p/app"}"#,
            r#"{"name":"app","tags":null}"#,
            r#"{"tags":null}"#,
            r#"{"tags":[]}"#,
        ] {
            assert_eq!(read(incomplete).unwrap().entries.len(), 0, "{incomplete}");
            assert!(read_as(incomplete, true).is_err(), "{incomplete}");
        }
        assert!(
            read("<html>")
                .unwrap_err()
                .to_string()
                .contains("HTML page")
        );
        for wrong in [
            r#"{"tags":7}"#,
            r#"{"tags":[7]}"#,
            r#"{"tags":["a"],"tags":["b"]}"#,
            r#"{}"#,
            r#"{"errors":[{"code":"DENIED"}]}"#,
            r#"{"name":"other","tags":["a"]}"#,
            r#"{"name":"pp","tags":["a"]}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let page = read(r#"{"tags":["v1","not a tag","v\u0032"]}"#).unwrap();
        assert_eq!((page.entries.len(), page.invalid), (2, 1));
    }

    #[test]
    fn entries_beyond_the_bound_are_refused_by_name() {
        let about = ErrorContext::new(
            "list the tags",
            &"staging".into(),
            "host.example/app".into(),
        );
        let read = |text: &str| {
            let list: Bounded<Name<oci::Tag>, 3> = parse(text.as_bytes(), &about)?;
            Bounded::within(Some(list), "tags", &about).map(|names| names.len())
        };
        assert_eq!(read(r#"["a","b","c"]"#).unwrap(), 3);
        let refused = read(r#"["a","b","c",{"what":["comes"]},"after"]"#).unwrap_err();
        assert_eq!(refused.class(), crate::fault::Class::Rejected);
        assert!(
            refused
                .to_string()
                .contains("staging (host.example/app): a page lists more than 3 tags"),
            "{refused}"
        );
    }

    proptest! {
        #[test]
        fn links_come_back(path in "/[a-z0-9/?=&%._-]{0,40}", title in "[a-z, ;<>]{0,10}") {
            let header = format!(r#"</first>; rel="prev"; title="{title}", <{path}>; rel="next""#);
            prop_assert_eq!(next_link(&header), Ok(Some(path.as_str())));
        }

        #[test]
        fn lists_of_any_shape_are_bounded(text in r#"[\[\]{}",:a-z0-9 ]{0,60}"#, count in 0usize..8) {
            let _ = serde_json::from_str::<Bounded<Name<oci::Tag>, 4>>(&text);
            let names = serde_json::to_string(&vec!["v1"; count]).unwrap();
            let list: Bounded<Name<oci::Tag>, 4> = serde_json::from_str(&names).unwrap();
            prop_assert_eq!((list.entries.len(), list.beyond), (count.min(4), count > 4));
        }

        #[test]
        fn reading_links_never_panics(header in "\\PC{0,80}") {
            let _ = next_link(&header);
        }
    }
}
