//! Platforms: operating system, architecture and variant. Image specification, `image-index.md`.

use std::fmt;
use std::str::FromStr;

/// A platform, in the form in which equal ones are written alike.
///
/// Variants that say what the architecture says anyway are left out, and other names of an
/// architecture are replaced, as containerd does it
/// (<https://github.com/containerd/platforms/blob/main/database.go>).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The platform of these words.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let variant = variant.filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            ("i386", _) => ("386", None),
            other => other,
        };
        Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
    }
}

impl FromStr for Platform {
    type Err = NotAPlatform;

    fn from_str(text: &str) -> Result<Platform, NotAPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..]
                if variant.len() <= 1 && parts.iter().all(|part| is_word(part)) =>
            {
                Ok(Platform::new(os, architecture, variant.first().copied()))
            }
            _ => Err(NotAPlatform),
        }
    }
}

fn is_word(part: &str) -> bool {
    let mut characters = part.chars();
    (1..=32).contains(&part.len())
        && characters.all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A text is no platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no platform: os/architecture or os/architecture/variant, such as linux/amd64 or linux/arm/v7"
)]
pub struct NotAPlatform;

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn equal_platforms_are_written_alike() {
        for (one, other) in [
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm64", "linux/aarch64"),
            ("linux/amd64", "linux/x86_64"),
            ("linux/amd64", "linux/amd64/v1"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/armel"),
        ] {
            assert_eq!(platform(one), platform(other), "{one} {other}");
        }
        for (one, other) in [
            ("linux/arm64", "linux/arm64/v9"),
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/amd64", "windows/amd64"),
        ] {
            assert_ne!(platform(one), platform(other), "{one} {other}");
        }
        assert_eq!(platform("linux/arm/7").to_string(), "linux/arm/v7");
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "linux/am d64",
            "linux//v8",
        ] {
            assert_eq!(text.parse::<Platform>(), Err(NotAPlatform), "{text}");
        }
    }
}
