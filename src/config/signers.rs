//! The signers that gates trust.

use super::keys::{keys, word_schema};
use super::section::{Item, optional};
use crate::gate::sigstore;
use crate::glob::{Glob, TooLong};
use crate::job::gates::{Identity, Key, Root, Signer, Subject, Trusted};

keys! {
    SignerSection, SignerKeys {
        /// File with the public key, PEM.
        key_file: Option<String>,
        /// The issuer of the identity, exactly.
        issuer: Option<String>,
        /// The identity in the certificate. `*` stands for a part of a path, `**` for several.
        identity: Option<String>,
        /// What certificates are verified by: `sigstore`, `github`, or a trusted-root file. Default:
        /// sigstore.
        root: Option<String>,
        /// What must be signed, or what the statement must be about. Default: image.
        on: Option<Subject>,
    }
}

/// What must be signed, as it is written.
const SUBJECTS: [(&str, Subject); 2] =
    [("image", Subject::Image), ("platforms", Subject::Platforms)];

word_schema!(Subject, "Subject", SUBJECTS.map(|(word, _)| word));

/// A signer: `key_file`, or `issuer` with `identity` and `root`.
pub(super) fn trusted(item: &Item<'_>, keys: &SignerKeys<'_>) -> Option<Trusted> {
    let on = optional(&keys.on, |item| item.one_of(SUBJECTS));
    let signer = match (&keys.key_file, &keys.issuer, &keys.identity) {
        (Some(key), None, None) if keys.root.is_none() => public_key(key).map(Signer::Key),
        (None, Some(issuer), Some(identity)) => {
            let issuer = issuer.word();
            let pattern = identity.parse(identity_glob);
            let root = optional(&keys.root, root);
            issuer
                .zip(pattern)
                .zip(root)
                .map(|((issuer, pattern), root)| {
                    Signer::Identity(Identity {
                        issuer,
                        pattern,
                        root: root.unwrap_or(Root::Sigstore),
                    })
                })
        }
        _ => {
            item.wrong(
                "needs either `key_file`, or `issuer` and `identity` (with an optional `root`)",
            );
            None
        }
    };
    Some(Trusted {
        signer: signer?,
        on: on?.unwrap_or_default(),
    })
}

fn public_key(item: &Item<'_>) -> Option<Key> {
    let name = item.path()?.file_name()?.to_string_lossy().into_owned();
    let pem = file_text(item)?;
    match sigstore::check_key(&pem) {
        Ok(()) => Some(Key { name, pem }),
        Err(reason) => {
            item.wrong(format!(
                "the file holds no public key that can verify: {reason}"
            ));
            None
        }
    }
}

fn root(item: &Item<'_>) -> Option<Root> {
    let built_in = [("sigstore", Root::Sigstore), ("github", Root::Github)];
    if let Some((_, root)) = built_in.into_iter().find(|(word, _)| item.is_word(word)) {
        return Some(root);
    }
    let root = Root::File(file_text(item)?.into());
    match sigstore::check_root(&root) {
        Ok(()) => Some(root),
        Err(reason) => {
            item.wrong(format!(
                "the file holds no trusted root (`sigstore` and `github` are built in): {reason}"
            ));
            None
        }
    }
}

fn file_text(item: &Item<'_>) -> Option<String> {
    let text = String::from_utf8(item.file()?).ok();
    if text.is_none() {
        item.wrong("the file holds no text");
    }
    text
}

/// The glob of a signer's identity.
fn identity_glob(text: &str) -> Result<Glob, String> {
    let text = text.trim();
    if text.chars().all(|character| character == '*') {
        return Err("names no identity: every user of the issuer could sign".into());
    }
    text.parse().map_err(|error: TooLong| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asterisks_alone_name_no_identity() {
        for bad in ["", "*", " ** ", "***"] {
            assert!(identity_glob(bad).is_err(), "{bad}");
        }
        assert!(
            identity_glob(" ci@acme.example ").is_ok_and(|glob| glob.matches("ci@acme.example"))
        );
    }
}
