//! What a registry demands in its `WWW-Authenticate` lines.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use http_auth::{ChallengeParser, ChallengeRef};

/// Lines that are read, and how long one may be.
const MOST_LINES: usize = 8;
const LONGEST_LINE: usize = 8 * 1024;

/// A way to authorize that the registry offers and we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from a token server, nothing of it checked yet.
    Bearer {
        /// Where the token server is.
        realm: String,
        /// How the registry is called there.
        service: Option<String>,
        /// What the registry says that the request needs.
        scope: String,
    },
}

/// The best challenge of all the lines: the first Bearer that names a realm, else Basic. What
/// cannot be read is passed over.
pub(super) fn best(headers: &HeaderMap) -> Option<Challenge> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter().take(MOST_LINES);
    let lines = lines
        .filter_map(|line| line.to_str().ok())
        .filter(|line| line.len() <= LONGEST_LINE);
    let mut offered: Vec<Challenge> = lines.flat_map(in_line).collect();
    let first_bearer = offered
        .iter()
        .position(|challenge| *challenge != Challenge::Basic);
    (!offered.is_empty()).then(|| offered.swap_remove(first_bearer.unwrap_or(0)))
}

fn in_line(line: &str) -> impl Iterator<Item = Challenge> {
    ChallengeParser::new(line)
        .map_while(Result::ok)
        .filter_map(|challenge| known(&challenge))
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    let (_, value) = challenge
        .params
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(value.to_unescaped()).filter(|value| !value.is_empty())
}

fn known(challenge: &ChallengeRef<'_>) -> Option<Challenge> {
    if challenge.scheme.eq_ignore_ascii_case("Basic") {
        return Some(Challenge::Basic);
    }
    let bearer = challenge.scheme.eq_ignore_ascii_case("Bearer");
    let realm = parameter(challenge, "realm").filter(|_| bearer)?;
    Some(Challenge::Bearer {
        realm,
        service: parameter(challenge, "service"),
        scope: parameter(challenge, "scope").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(lines: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                WWW_AUTHENTICATE,
                HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        best(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: &str) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.to_owned(),
        })
    }

    #[test]
    fn the_best_challenge_of_all_lines_is_chosen() {
        let rows: [(&[&str], Option<Challenge>); 13] = [
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#],
                bearer("https://a/t", Some("s"), "repository:x:pull,push"),
            ),
            (
                &[r#"bEARER Realm="https://a/t" , SERVICE=s"#],
                bearer("https://a/t", Some("s"), ""),
            ),
            (
                &[r#"Basic realm="r", Bearer realm="https://a/t""#],
                bearer("https://a/t", None, ""),
            ),
            (
                &[
                    "Basic realm=\"r\"",
                    r#"Bearer realm="https://a/t",service="""#,
                ],
                bearer("https://a/t", None, ""),
            ),
            (
                &[
                    r#"Negotiate, Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#,
                ],
                Some(Challenge::Basic),
            ),
            (
                &[r#"Bearer realm="https://a/\"t",error="insufficient_scope""#],
                bearer("https://a/\"t", None, ""),
            ),
            (&["Bearer", "BASIC realm=x"], Some(Challenge::Basic)),
            (&["Bearer service=\"s\""], None),
            (&["Bearer realm=\"\""], None),
            (&["Digest realm=\"x\", nonce=\"y\""], None),
            (
                &["Basic realm=\"cut", r#"Bearer realm="https://a/t""#],
                bearer("https://a/t", None, ""),
            ),
            (&["B\u{e4}sic realm=x"], None),
            (&[], None),
        ];
        for (lines, expected) in rows {
            assert_eq!(of(lines), expected, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange_to_read(line in "[ -~]{0,200}") {
            of(&[&line, &format!("Bearer realm=\"x\", {line}")]);
        }
    }
}
