//! What the URL of a queue says: name, account, region, and how it is reached.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;
use url::Url;

static REGION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[a-z]{2,4}(-[a-z]+)+-[0-9]+$").expect("the pattern is constant")
});
static NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[A-Za-z0-9_-]{1,80}(\.fifo)?$").expect("the pattern is constant")
});

/// The URL of a queue. <https://docs.aws.amazon.com/general/latest/gr/sqs-service.html>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    url: Url,
    name: String,
    account: Option<String>,
    region: Option<String>,
    host: HostKind,
}

/// How the host of the URL is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostKind {
    /// A regional endpoint, which the SDK knows by itself.
    Regional { fips: bool, dual_stack: bool },
    /// `queue.amazonaws.com`: the regional endpoint is asked instead.
    Legacy,
    /// A VPC endpoint or an emulator: this host is asked.
    Own,
}

/// The text is not the URL of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoQueue {
    /// Not a URL with a host.
    #[error("is not the URL of a queue (https://sqs.REGION.amazonaws.com/ACCOUNT/NAME)")]
    Shape,
    /// Credentials, a query or a fragment.
    #[error("holds more than scheme, host, port and path: no user, query or fragment belongs here")]
    TooMuch,
    /// The last part of the path is no name of a queue.
    #[error(
        "does not end in the name of a queue (1 to 80 letters, digits, - and _; .fifo may follow)"
    )]
    Name,
}

impl Address {
    /// The name of the queue.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The account that owns the queue.
    pub fn account(&self) -> Option<&str> {
        self.account.as_deref()
    }

    /// The region in the host's name.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// The endpoint to ask, where it is none that the SDK knows.
    pub(super) fn endpoint(&self) -> Option<String> {
        (self.host == HostKind::Own).then(|| self.url.origin().ascii_serialization())
    }

    /// Whether the host is a FIPS endpoint.
    pub(super) fn is_fips(&self) -> bool {
        matches!(self.host, HostKind::Regional { fips: true, .. })
    }

    /// Whether the host is reachable over IPv6, too.
    pub(super) fn is_dual_stack(&self) -> bool {
        let dual = HostKind::Regional {
            fips: self.is_fips(),
            dual_stack: true,
        };
        self.host == dual
    }
}

impl FromStr for Address {
    type Err = NoQueue;

    fn from_str(text: &str) -> Result<Address, NoQueue> {
        let url = Url::parse(text).map_err(|_| NoQueue::Shape)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(NoQueue::Shape);
        }
        let host = url.host_str().ok_or(NoQueue::Shape)?;
        let has_user = !url.username().is_empty() || url.password().is_some();
        if has_user || url.query().is_some() || url.fragment().is_some() {
            return Err(NoQueue::TooMuch);
        }
        let (kind, region) = recognise(host);
        let parts: Vec<&str> = url
            .path()
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let name = parts.last().filter(|name| NAME.is_match(name));
        let name = (*name.ok_or(NoQueue::Name)?).to_owned();
        let account = parts.len().checked_sub(2).map(|before| parts[before]);
        let account = account.filter(|text| is_account(text)).map(str::to_owned);
        Ok(Address {
            name,
            account,
            region,
            host: kind,
            url,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str())
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn recognise(host: &str) -> (HostKind, Option<String>) {
    let labels: Vec<&str> = host.split('.').collect();
    match labels[..] {
        ["queue", "amazonaws", "com"] => return (HostKind::Legacy, Some("us-east-1".to_owned())),
        [region, "queue", "amazonaws", "com", ..] if REGION.is_match(region) => {
            return (HostKind::Legacy, Some(region.to_owned()));
        }
        _ => {}
    }
    let service = labels
        .iter()
        .position(|label| matches!(*label, "sqs" | "sqs-fips"));
    let region = service.and_then(|at| labels.get(at + 1).filter(|label| REGION.is_match(label)));
    let kind = match (service, region) {
        (Some(0), Some(_)) if is_public_domain(&labels[2..]) => HostKind::Regional {
            fips: labels[0] == "sqs-fips",
            dual_stack: labels[2] == "api",
        },
        _ => HostKind::Own,
    };
    (kind, region.map(|region| (*region).to_owned()))
}

/// The domains of AWS's own endpoints.
fn is_public_domain(labels: &[&str]) -> bool {
    let domain = labels.join(".");
    matches!(
        &*domain,
        "amazonaws.com"
            | "amazonaws.com.cn"
            | "amazonaws.eu"
            | "api.aws"
            | "api.amazonwebservices.com.cn"
            | "api.amazonwebservices.eu"
            | "c2s.ic.gov"
            | "sc2s.sgov.gov"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The columns: region, endpoint, FIPS, dual stack.
    #[test]
    fn the_url_tells_the_region_and_the_endpoint() {
        let table = [
            (
                "https://sqs.eu-west-1.amazonaws.com/123456789012/q",
                Some("eu-west-1"),
                None,
                false,
                false,
            ),
            (
                "https://sqs-fips.us-gov-west-1.amazonaws.com/123456789012/q",
                Some("us-gov-west-1"),
                None,
                true,
                false,
            ),
            (
                "https://sqs.eu-west-1.api.aws/123456789012/q",
                Some("eu-west-1"),
                None,
                false,
                true,
            ),
            (
                "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q",
                Some("cn-north-1"),
                None,
                false,
                false,
            ),
            (
                "https://sqs.eusc-de-east-1.amazonaws.eu/123456789012/q",
                Some("eusc-de-east-1"),
                None,
                false,
                false,
            ),
            (
                "https://queue.amazonaws.com/123456789012/q",
                Some("us-east-1"),
                None,
                false,
                false,
            ),
            (
                "https://ap-south-1.queue.amazonaws.com/123456789012/q",
                Some("ap-south-1"),
                None,
                false,
                false,
            ),
            (
                "https://vpce-0a-1b.sqs.eu-west-1.vpce.amazonaws.com/123456789012/q",
                Some("eu-west-1"),
                Some("https://vpce-0a-1b.sqs.eu-west-1.vpce.amazonaws.com"),
                false,
                false,
            ),
            (
                "http://127.0.0.1:5000/123456789012/q",
                None,
                Some("http://127.0.0.1:5000"),
                false,
                false,
            ),
            (
                "http://sqs.eu-west-1.localhost.example:4566/123456789012/q",
                Some("eu-west-1"),
                Some("http://sqs.eu-west-1.localhost.example:4566"),
                false,
                false,
            ),
        ];
        for (text, region, endpoint, fips, dual_stack) in table {
            let queue = address(text);
            assert_eq!(queue.region(), region, "{text}");
            assert_eq!(queue.endpoint().as_deref(), endpoint, "{text}");
            assert_eq!(queue.is_fips(), fips, "{text}");
            assert_eq!(queue.is_dual_stack(), dual_stack, "{text}");
            assert_eq!(queue.account(), Some("123456789012"), "{text}");
            assert_eq!(queue.name(), "q", "{text}");
        }
        assert_eq!(
            address("https://sqs.eu-west-1.amazonaws.com/1/q.fifo").account(),
            None
        );
    }

    #[test]
    fn what_is_no_queue_is_refused() {
        let table = [
            ("ecr-pushes", NoQueue::Shape),
            ("arn:aws:sqs:eu-west-1:123456789012:q", NoQueue::Shape),
            (
                "ftp://sqs.eu-west-1.amazonaws.com/123456789012/q",
                NoQueue::Shape,
            ),
            (
                "https://me:word@sqs.eu-west-1.amazonaws.com/123456789012/q",
                NoQueue::TooMuch,
            ),
            (
                "https://sqs.eu-west-1.amazonaws.com/123456789012/q?x=y",
                NoQueue::TooMuch,
            ),
            ("https://sqs.eu-west-1.amazonaws.com/", NoQueue::Name),
            (
                "https://sqs.eu-west-1.amazonaws.com/123456789012/a.b",
                NoQueue::Name,
            ),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Address>(), Err(expected), "{text}");
        }
    }
}
