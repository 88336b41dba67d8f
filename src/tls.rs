//! TLS of the daemon's own listener: a certificate and its key, loaded again when their files
//! change.
//!
//! The pair that is in force stays until a new pair is right: files that are replaced one after the
//! other do not match for a moment.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{TlsAcceptor, rustls};

/// How often the files are looked at.
const CHECKED_EVERY: Duration = Duration::from_secs(2);
/// Bytes of a file at most.
const LONGEST: u64 = 1 << 20;

/// The files of a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with the chain to its authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// Why a pair cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate in the file.
    #[error("{} holds no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// No private key in the file.
    #[error("{} holds no private key in PEM", .0.display())]
    NoKey(PathBuf),
    /// The two do not belong together, or are of a kind that TLS does not take.
    #[error("the certificate and the key cannot be used together: {0}")]
    Pair(rustls::Error),
}

/// A certificate and its key, ready for use.
#[derive(Clone)]
pub struct Identity {
    files: TlsFiles,
    stamp: Stamp,
    config: Arc<ServerConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

/// What tells that a file is another one: device, inode, size and time of both files.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 2];

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// [`enum@Error`].
    pub fn load(files: &TlsFiles) -> Result<Identity, Error> {
        // Before the files are read: a change meanwhile is seen by the next check.
        let stamp = stamp(files);
        let chain = certificates(&files.certificate)?;
        let pem = read(&files.key)?;
        let key =
            PrivateKeyDer::from_pem_slice(&pem).map_err(|_| Error::NoKey(files.key.clone()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Pair)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(Error::Pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Identity {
            files: files.clone(),
            stamp,
            config: Arc::new(config),
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::NoCertificate(path.into()))?;
    if chain.is_empty() {
        return Err(Error::NoCertificate(path.into()));
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut content))
        .map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
    Ok(content)
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.certificate, &files.key].map(|path| {
        let data = fs::metadata(path).ok()?;
        let size = data.size();
        Some((
            data.dev(),
            data.ino(),
            size,
            data.mtime(),
            data.mtime_nsec(),
        ))
    })
}

/// The identity in force, or none: plain HTTP. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ServerTls(Arc<RwLock<Option<Identity>>>);

impl ServerTls {
    /// Starts with this one.
    pub fn new(identity: Option<Identity>) -> ServerTls {
        ServerTls(Arc::new(RwLock::new(identity)))
    }

    /// Puts another one in place: connections that are made from now on use it.
    pub fn replace(&self, identity: Option<Identity>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// What makes a connection a TLS connection. `None`: plain HTTP.
    pub fn acceptor(&self) -> Option<TlsAcceptor> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let config = current.as_ref()?.config.clone();
        Some(TlsAcceptor::from(config))
    }

    fn current(&self) -> Option<Identity> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Loads the files again whenever they change, until dropped.
    pub async fn follow_files(self) {
        let mut refused = None;
        loop {
            tokio::time::sleep(CHECKED_EVERY).await;
            let Some(current) = self.current() else {
                continue;
            };
            let now = stamp(&current.files);
            if now == current.stamp || refused == Some(now) {
                continue;
            }
            match Identity::load(&current.files) {
                Ok(identity) => {
                    self.replace(Some(identity));
                    refused = None;
                    tracing::info!("the certificate of daemon.tls was loaded again");
                }
                Err(error) => {
                    refused = Some(now);
                    tracing::warn!(%error, "the new certificate of daemon.tls cannot be used; the old one stays in force");
                }
            }
        }
    }
}
