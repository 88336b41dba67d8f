//! Addresses of services that are asked or told something.

use url::Url;

/// Why a text is no address of a service.
pub(super) enum WrongUrl {
    /// It is no URL of HTTP with a host.
    Other,
    /// It holds a user name or a password.
    User,
}

/// The address of a service: `http` or `https`, without a user.
pub(super) fn service_url(text: &str) -> Result<Url, WrongUrl> {
    // A parser of URLs takes the path of `https:///path` for a host.
    let has_host = text
        .split_once("://")
        .is_some_and(|(_, rest)| !rest.starts_with(['/', '\\']));
    let url = Url::parse(text.trim()).map_err(|_| WrongUrl::Other)?;
    if !has_host || !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(WrongUrl::Other);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(WrongUrl::User);
    }
    Ok(url)
}
