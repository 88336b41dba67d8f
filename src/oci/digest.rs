//! Digests: the algorithm and the hash, parsed once and compared as bytes.
//!
//! A value of [`Digest`] can always be verified: an algorithm that this build cannot compute is
//! refused while parsing, so nothing later has to ask. Grammar: OCI image specification,
//! `descriptor.md`, section "Digests".

use std::fmt;
use std::str::FromStr;

use crate::fault::shown;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256, Sha512};

/// A hash function that blobferry computes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal characters.
    Sha256,
    /// SHA-512, 128 hexadecimal characters.
    Sha512,
}

impl Algorithm {
    /// The registered name, as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// The identity of content: equal digests mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

/// Why a text is not a digest that can be verified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text does not follow `algorithm:encoded`.
    #[error(
        "\"{0}\" is not a digest (expected algorithm:encoded, such as sha256: and 64 lower-case hexadecimal characters)"
    )]
    Malformed(String),
    /// The grammar holds, but the hash function is not one of ours.
    #[error(
        "digest algorithm \"{0}\" is not supported: content under it cannot be verified (supported: sha256, sha512)"
    )]
    UnknownAlgorithm(String),
}

impl Digest {
    /// Hashes `bytes` in one go.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// SHA-256 of `bytes`: the algorithm of everything that names none.
    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, bytes)
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The encoded part: lower-case hexadecimal.
    pub fn encoded(&self) -> String {
        hex::encode(self.bytes())
    }

    /// The first twelve characters of the encoded part, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.bytes()[..6])
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha512(bytes) => bytes,
        }
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let Some((name, encoded)) = text
            .split_once(':')
            .filter(|(name, encoded)| is_algorithm(name) && is_encoded(encoded))
        else {
            return Err(ParseError::Malformed(clip(text)));
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => return Err(ParseError::UnknownAlgorithm(clip(other))),
        };
        let digest = match algorithm {
            Algorithm::Sha256 => decode(encoded).map(Digest::Sha256),
            Algorithm::Sha512 => decode(encoded).map(Digest::Sha512),
        };
        digest.ok_or_else(|| ParseError::Malformed(clip(text)))
    }
}

/// Lower-case hex of the exact length.
fn decode<const N: usize>(encoded: &str) -> Option<[u8; N]> {
    if encoded.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(encoded, &mut bytes).ok()?;
    Some(bytes)
}

fn is_algorithm(name: &str) -> bool {
    name.split(['+', '.', '_', '-']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

fn is_encoded(encoded: &str) -> bool {
    !encoded.is_empty()
        && encoded
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

/// Peers write these texts: what is shown of them is bounded.
fn clip(text: &str) -> String {
    shown(text, 160)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.encoded())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A running hash. Its state can be saved and restored by another process.
#[derive(Clone)]
pub enum Hasher {
    /// A running SHA-256.
    Sha256(Sha256),
    /// A running SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes seen.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Hasher::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }

    /// The state after the bytes seen so far: at most 240 bytes, tagged with its format.
    pub fn save(&self) -> Vec<u8> {
        let mut state = vec![STATE_FORMAT];
        match self {
            Hasher::Sha256(hasher) => state.extend_from_slice(&hasher.serialize()),
            Hasher::Sha512(hasher) => state.extend_from_slice(&hasher.serialize()),
        }
        state
    }

    /// Takes a saved state up again. `None` when it was written in another format or is damaged in
    /// a way that shows; damage that does not show ends in a digest mismatch, never in wrong
    /// content.
    pub fn restore(algorithm: Algorithm, state: &[u8]) -> Option<Hasher> {
        let (&format, state) = state.split_first()?;
        if format != STATE_FORMAT {
            return None;
        }
        match algorithm {
            Algorithm::Sha256 => Sha256::deserialize(&state.try_into().ok()?)
                .ok()
                .map(Hasher::Sha256),
            Algorithm::Sha512 => Sha512::deserialize(&state.try_into().ok()?)
                .ok()
                .map(Hasher::Sha512),
        }
    }
}

/// Raised whenever the layout of sha2's exported state changes: old states are then started over.
const STATE_FORMAT: u8 = 1;

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hasher::Sha256(_) => "Hasher(sha256)",
            Hasher::Sha512(_) => "Hasher(sha512)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_what_it_prints() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::sha256(b""));
        assert_eq!(digest.to_string(), EMPTY);
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
    }

    #[test]
    fn refuses_what_it_cannot_verify() {
        let unknown = "blake3:0000000000000000000000000000000000000000000000000000000000000000";
        assert_eq!(
            unknown.parse::<Digest>(),
            Err(ParseError::UnknownAlgorithm("blake3".into()))
        );
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:zz",
            &EMPTY.to_uppercase(),
            &EMPTY[..70],
            "sha256:../../etc",
            "+:a",
        ] {
            assert!(
                matches!(text.parse::<Digest>(), Err(ParseError::Malformed(_))),
                "{text}"
            );
        }
        assert!(matches!(
            EMPTY.replace("e3b0", "E3B0").parse::<Digest>(),
            Err(ParseError::Malformed(_))
        ));
    }

    #[test]
    fn saved_state_is_the_documented_layout() {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"abc");
        let state = hasher.save();
        assert_eq!(state.len(), 105);
        assert_eq!(
            hex::encode(&state[1..5]),
            "67e6096a",
            "first word of the initial value, little endian"
        );
        assert!(Hasher::restore(Algorithm::Sha512, &state).is_none());
        assert!(Hasher::restore(Algorithm::Sha256, &state[1..]).is_none());
        assert!(Hasher::restore(Algorithm::Sha256, &[]).is_none());
    }

    proptest! {
        #[test]
        fn a_saved_hash_goes_on_where_it_was(bytes in proptest::collection::vec(any::<u8>(), 0..4096), at in 0usize..4096) {
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let at = at.min(bytes.len());
                let mut first = Hasher::new(algorithm);
                first.update(&bytes[..at]);
                let mut second = Hasher::restore(algorithm, &first.save()).unwrap();
                second.update(&bytes[at..]);
                prop_assert_eq!(second.finish(), Digest::of(algorithm, &bytes));
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<Digest>();
        }
    }
}
