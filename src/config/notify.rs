//! `daemon.notify`: where changes of results are told.

use url::Url;

use super::keys::{keys, word_schema};
use super::registries::host_of;
use super::section::{Item, optional};
use super::service::{WrongUrl, service_url};
use super::shapes::OneOrMany;
use crate::job::gates::Token;
use crate::notify::{Event, Settings, Template};
use crate::registry::is_metadata;

/// Most receivers.
const MOST: usize = 20;

keys! {
    NotifySection, NotifyKeys {
        /// Where each change is posted: an `https://` address, or an `http://` one of this machine;
        /// `${VAR}` keeps a secret address out of the file.
        url: String = "where changes are posted",
        /// Which changes: promoted, conflict, drift, refused, held, torn, override. Default: all.
        on: Option<OneOrMany<Event>>,
        /// The body, JSON with `{field}` inside of texts. Default: all fields as JSON.
        template: Option<String>,
        /// File with the bearer token that is sent along.
        token_file: Option<String>,
    }
}

word_schema!(Event, "Event", Event::ALL.map(Event::name));

/// `None` after a complaint.
pub(super) fn read(item: &Item<'_>) -> Option<Vec<Settings>> {
    let items = item.items();
    if items.len() > MOST {
        item.wrong(format!("has more than {MOST} receivers"));
        return None;
    }
    let mut receivers: Vec<Settings> = Vec::new();
    for item in &items {
        let receiver = receiver(item)?;
        if receivers.iter().any(|other| other.key() == receiver.key()) {
            item.wrong("is there twice: the same address with the same `on`");
            return None;
        }
        receivers.push(receiver);
    }
    Some(receivers)
}

fn receiver(item: &Item<'_>) -> Option<Settings> {
    let keys: NotifyKeys<'_> = item.keys()?;
    let url = keys.url.as_ref().and_then(|item| item.parse(url));
    let on = optional(&keys.on, events);
    let template = optional(&keys.template, |item| item.parse(Template::parse));
    let token = optional(&keys.token_file, Item::secret);
    Some(Settings {
        url: url?,
        on: on?.unwrap_or_else(|| Event::ALL.to_vec()),
        template: template?,
        token: token?.map(Token::new),
    })
}

fn events(item: &Item<'_>) -> Option<Vec<Event>> {
    let words = || Event::ALL.into_iter().map(|event| (event.name(), event));
    let items = item.items();
    if items.is_empty() {
        item.wrong("is empty: name at least one event, or leave it out for all");
        return None;
    }
    let named: Vec<Event> = items
        .iter()
        .map(|item| item.one_of(words()))
        .collect::<Option<_>>()?;
    let all = Event::ALL.into_iter();
    Some(all.filter(|event| named.contains(event)).collect())
}

/// The text is not repeated in complaints: it may be a secret.
fn url(text: &str) -> Result<Url, &'static str> {
    let url = service_url(text).map_err(|wrong| match wrong {
        WrongUrl::Other => "is no https address",
        WrongUrl::User => "holds a user name or a password: use token_file",
    })?;
    let is_loopback = host_of(&url).is_some_and(|host| host.is_loopback());
    if url.scheme() == "http" && !is_loopback {
        return Err("would be told in plain text: use https");
    }
    let address = match url.host() {
        Some(url::Host::Ipv4(address)) => Some(address.into()),
        Some(url::Host::Ipv6(address)) => Some(address.into()),
        _ => None,
    };
    if address.is_some_and(is_metadata) {
        return Err("is the address of a metadata service");
    }
    Ok(url)
}
