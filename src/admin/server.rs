//! The two listeners: bound before anything is spawned, a bounded number of connections each, every
//! connection under deadlines, all of them ended when the server stops.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixSocket, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;
use super::arriving_body::ArrivingBody;
use super::connections::{ActiveRequest, ConnectionLimits, ConnectionSlot, Connections};
use super::routes::Guard;
use super::write_timeout::WriteTimeout;
use super::{Deadlines, Peer, Services, Settings, router};
use crate::state::FolderCheck;
use crate::tls::ServerTls;
use crate::user;

/// Connections over TCP.
const TCP: ConnectionLimits = ConnectionLimits {
    total: 512,
    reserved_for_probes: 16,
    per_client: 384,
    idle_per_client: 256,
};
/// Connections over the control socket, which only this user and root can open.
const SOCKET: ConnectionLimits = ConnectionLimits {
    total: 64,
    reserved_for_probes: 0,
    per_client: 64,
    idle_per_client: 64,
};
/// Headers of a request at most.
const MOST_HEADERS: usize = 64;
/// Bytes of a request's head at most.
const MOST_HEAD: usize = 32 << 10;
/// Pause after the kernel refuses to hand out a connection, most likely for want of file
/// descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How often an idle control socket looks whether its file is still there.
const SOCKET_CHECK: Duration = Duration::from_secs(2);

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TCP address cannot be had.
    #[error("cannot listen on {address} (set another `daemon.listen`, or `off`)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Another daemon answers at the control socket.
    #[error("another daemon is running with this state: it answers at {} (stop it, or set another `daemon.state`)", path.display())]
    Alive {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies where the control socket goes.
    #[error("{} is not a socket; move it away", path.display())]
    NotASocket {
        /// Its path.
        path: PathBuf,
    },
    /// The control socket cannot be made.
    #[error("cannot make the control socket {} (set another `daemon.state` where its path is too long or the disk takes no sockets)", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The secret has no characters.
    #[error(
        "a bearer token is empty; put a long random word into daemon.secret_file and into each file of daemon.tokens"
    )]
    EmptySecret,
}

/// Sockets that are bound and wait to be served.
#[derive(Debug)]
pub struct Bound {
    tcp: Option<(TcpListener, SocketAddr)>,
    socket: Option<ControlSocket>,
    settings: Settings,
}

/// Binds what the settings name. The control socket gets mode 0600 before any client can connect;
/// the file of a dead daemon is replaced.
///
/// # Errors
/// [`Error`], and then nothing stays bound.
pub async fn bind(settings: &Settings) -> Result<Bound, Error> {
    if settings.tokens.has_empty() {
        return Err(Error::EmptySecret);
    }
    let tcp = match settings.listen {
        Some(address) => Some(
            bind_tcp(address)
                .await
                .map_err(|source| Error::Listen { address, source })?,
        ),
        None => None,
    };
    let socket = match &settings.socket {
        Some(path) => Some(bind_socket(path, settings.folder.clone()).await?),
        None => None,
    };
    Ok(Bound {
        tcp,
        socket,
        settings: settings.clone(),
    })
}

impl Bound {
    /// The TCP address, with its real port.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `stop`, then lets open requests end within [`Deadlines::stop`] and removes the
    /// control socket.
    pub async fn serve(self, services: Services, stop: CancellationToken) {
        let router = router(services, &self.settings);
        let deadlines = self.settings.deadlines;
        let tcp = async {
            if let Some((listener, _)) = self.tcp {
                let tls = self.settings.tls.clone();
                accept(listener, router.clone(), TCP, deadlines, tls, &stop).await;
            }
        };
        let socket = async {
            if let Some(socket) = self.socket {
                let plain = ServerTls::default();
                accept(socket, router.clone(), SOCKET, deadlines, plain, &stop).await;
            }
        };
        tokio::join!(tcp, socket);
    }
}

/// Removes the control socket's file, if it is still this one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            path: path.into(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

async fn bind_tcp(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn bind_socket(path: &Path, folder: Option<FolderCheck>) -> Result<ControlSocket, Error> {
    clear(path).await?;
    let (listener, file) = listen_at(path).map_err(|source| Error::Socket {
        path: path.into(),
        source,
    })?;
    Ok(ControlSocket {
        path: path.into(),
        folder,
        listener: Mutex::new(Arc::new(listener)),
        file: Mutex::new(file),
    })
}

fn listen_at(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile::new(path)?;
    // No client can connect before `listen`, so the socket never has another mode.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok((socket.listen(SOCKET.total as u32)?, file))
}

/// The control socket. While no connection comes in, its file is looked for every few seconds: one
/// that was deleted is made again, since without it the daemon cannot be asked anything.
#[derive(Debug)]
struct ControlSocket {
    path: PathBuf,
    folder: Option<FolderCheck>,
    listener: Mutex<Arc<UnixListener>>,
    file: Mutex<SocketFile>,
}

impl ControlSocket {
    fn has_its_folder(&self) -> bool {
        let folder = self.folder.as_ref();
        folder.is_none_or(|folder| folder.check().is_ok())
    }

    /// Binds again if the file is gone. A file of another process is left alone.
    fn restore(&self) {
        let is_gone = fs::symlink_metadata(&self.path)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if !is_gone || !self.has_its_folder() {
            return;
        }
        match listen_at(&self.path) {
            Ok((listener, file)) => {
                *self.listener.lock().expect("no panic while replacing") = Arc::new(listener);
                *self.file.lock().expect("no panic while replacing") = file;
                tracing::warn!(path = %self.path.display(), "the control socket was deleted; it is there again");
            }
            Err(error) => {
                tracing::debug!(
                    %error,
                    path = %self.path.display(),
                    "the control socket cannot be made again"
                )
            }
        }
    }
}

impl Listener for ControlSocket {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(Self::Stream, Peer)> {
        loop {
            let listener = self
                .listener
                .lock()
                .expect("no panic while replacing")
                .clone();
            match timeout(SOCKET_CHECK, listener.accept()).await {
                Ok(accepted) => {
                    let (stream, _) = accepted?;
                    let credentials = stream.peer_cred()?;
                    let peer = Peer::Socket {
                        uid: credentials.uid(),
                        login_uid: credentials.pid().and_then(user::login_uid),
                    };
                    return Ok((stream, peer));
                }
                Err(_) => self.restore(),
            }
        }
    }
}

/// Removes the socket of a dead daemon.
async fn clear(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Socket {
        path: path.into(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        // A full backlog is a daemon, too.
        Ok(_) => Err(Error::Alive { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::Alive { path: path.into() })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, peer) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Peer::Tcp(peer)))
    }
}

async fn accept<L: Listener>(
    listener: L,
    router: Router,
    limits: ConnectionLimits,
    deadlines: Deadlines,
    tls: ServerTls,
    stop: &CancellationToken,
) {
    let connections = Connections::new(limits);
    let mut open = JoinSet::new();
    while let Some(accepted) = stop
        .run_until_cancelled(next(&listener, &connections))
        .await
    {
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                let Some(slot) = connections.admit(peer.client_key()) else {
                    continue;
                };
                let router = router.clone();
                let stop = stop.clone();
                match tls.acceptor() {
                    Some(acceptor) => {
                        let secured = secure(acceptor, stream, deadlines.header, peer, slot);
                        open.spawn(async move {
                            if let Some((stream, slot)) = secured.await {
                                serve(stream, peer, slot, router, deadlines, stop).await;
                            }
                        });
                    }
                    None => {
                        open.spawn(serve(stream, peer, slot, router, deadlines, stop));
                    }
                }
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::debug!(%error, "no connection to be had");
                stop.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// The TLS handshake. It takes no longer than a request's head may, and ends when the slot goes to
/// another connection.
async fn secure<S>(
    acceptor: TlsAcceptor,
    stream: S,
    deadline: Duration,
    peer: Peer,
    slot: ConnectionSlot,
) -> Option<(TlsStream<S>, ConnectionSlot)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = timeout(deadline, acceptor.accept(stream));
    match slot.closed.run_until_cancelled(handshake).await? {
        Ok(Ok(stream)) => Some((stream, slot)),
        Ok(Err(error)) => {
            tracing::debug!(?peer, %error, "the TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// The next connection, once a slot can be had for it.
async fn next<L: Listener>(
    listener: &L,
    connections: &Connections,
) -> io::Result<(L::Stream, Peer)> {
    connections.wait_for_capacity().await;
    listener.next().await
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | InvalidInput | NotConnected
    )
}

/// A request lasts until its answer has been taken.
fn lasting(body: Body, busy: ActiveRequest) -> Body {
    Body::new(body.map_frame(move |frame| {
        let _lasts = &busy;
        frame
    }))
}

fn too_busy() -> Response {
    let text = "too many requests are being answered; ask again in a moment";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", text).into_response()
}

async fn serve<S>(
    stream: S,
    peer: Peer,
    slot: ConnectionSlot,
    router: Router,
    deadlines: Deadlines,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = TowerToHyperService::new(router);
    let closed = slot.closed.clone();
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let is_probe = Guard::of(request.method(), request.uri().path()) == Guard::Open;
        let answer = slot.start_request(is_probe).map(|busy| {
            let request = request.map(|body| ArrivingBody::new(body, busy.arrival()));
            (busy, app.call(request))
        });
        async move {
            let Some((busy, answer)) = answer else {
                return Ok(too_busy());
            };
            answer
                .await
                .map(|response| response.map(|body| lasting(body, busy)))
        }
    });
    let io = TokioIo::new(WriteTimeout::new(stream, deadlines.write));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(deadlines.header)
            .max_headers(MOST_HEADERS)
            .max_buf_size(MOST_HEAD)
            .serve_connection(io, service)
    );
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(deadlines.stop, connection).await.unwrap_or(Ok(()))
        }
        // Another connection has its slot.
        () = closed.cancelled() => return,
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(?peer, %error, "connection ended badly");
    }
}
