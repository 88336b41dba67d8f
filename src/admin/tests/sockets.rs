//! The listeners, their deadlines and the client, through real sockets.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::status::board::Status;

struct Running {
    address: SocketAddr,
    socket: PathBuf,
    services: Services,
    stop: CancellationToken,
    served: JoinHandle<()>,
    _guard: DropGuard,
    _folder: tempfile::TempDir,
}

async fn running(deadlines: Deadlines) -> (Running, mpsc::Receiver<Event>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let settings = Settings {
        receivers: Receivers::default(),
        tls: Default::default(),
        listen,
        socket: Some(socket.clone()),
        folder: None,
        deadlines,
        tokens: Tokens::default(),
    };
    let (services, events) = services();
    let bound = bind(&settings).await.unwrap();
    let address = bound.address().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(bound.serve(services.clone(), stop.clone()));
    let running = Running {
        address,
        socket,
        services,
        served,
        _guard: stop.clone().drop_guard(),
        stop,
        _folder: folder,
    };
    (running, events)
}

async fn exchange(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn quick() -> Deadlines {
    let quick = Duration::from_millis(100);
    Deadlines {
        header: quick,
        body: quick,
        write: quick,
        stop: quick * 5,
    }
}

#[tokio::test]
async fn a_client_that_sends_no_head_is_cut_off_and_blocks_nobody() {
    let (running, _events) = running(quick()).await;
    let mut silent = Vec::new();
    for at in 0..160 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        if at % 2 == 0 {
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nhost: lo")
                .await
                .unwrap();
        }
        silent.push(stream);
    }
    assert!(
        exchange(running.address, HEALTH)
            .await
            .starts_with("HTTP/1.1 200"),
        "more silent clients than connections"
    );
    for mut stream in silent {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    idle.write_all(HEALTH.replace("close", "keep-alive").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "an idle connection ends after its answer"
    );
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let (running, _events) = running(quick()).await;
    let head = "POST /v1/sync HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{\"wait\"";
    let answer = exchange(running.address, head).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("\"timeout\""),
        "{answer}"
    );
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let (running, _events) = running(Deadlines::default()).await;
    let many: String = (0..100).map(|at| format!("x-{at}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(200 << 10));
    for headers in [many, long] {
        let text = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        // The answer may come before everything is sent.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(
            String::from_utf8_lossy(&answer),
            "HTTP/1.1 431",
            "{} headers",
            headers.lines().count()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_given_up() {
    let (near, mut far) = tokio::io::duplex(1024);
    let mut stream = write_timeout::WriteTimeout::new(near, Duration::from_secs(10));
    let writing = tokio::spawn(async move { stream.write_all(&[0; 4096]).await });
    far.read_exact(&mut [0; 1024]).await.unwrap();
    assert_eq!(
        writing.await.unwrap().unwrap_err().kind(),
        std::io::ErrorKind::TimedOut
    );
}

#[tokio::test]
async fn the_control_socket_is_its_owners_and_names_the_user() {
    let (running, events) = running(Deadlines::default()).await;
    let mode = std::fs::metadata(&running.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let watcher = watcher(events, 1, found());
    let body = Some(json!({"wait": true}));
    let (status, report) = client::request(&running.socket, Method::POST, "/v1/sync", body, None)
        .await
        .unwrap();
    assert_eq!((status.as_u16(), &report["exit_code"]), (200, &json!(0)));
    let (status, board) = client::request(&running.socket, Method::GET, "/v1/status", None, None)
        .await
        .unwrap();
    assert_eq!(status, 200);
    serde_json::from_value::<Status>(board).unwrap();
    running.stop.cancel();
    running.served.await.unwrap();
    assert!(!running.socket.exists(), "removed at the end");
    drop(running.services);
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    let login_uid = crate::user::login_uid(std::process::id().cast_signed());
    let principal = crate::user::principal(uid, login_uid);
    assert_eq!(watcher.await.unwrap(), [(Cause::Cli, principal)]);
}

async fn bind_at(socket: &Path) -> Result<Bound, Error> {
    bind(&Settings {
        socket: Some(socket.into()),
        ..Settings::default()
    })
    .await
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "the file outlives its listener");
    let first = bind_at(&socket).await.unwrap();
    assert!(matches!(bind_at(&socket).await, Err(Error::Alive { .. })));
    assert!(socket.exists(), "a live socket is left alone");
    drop(first);
    assert!(!socket.exists());
    std::fs::write(&socket, "precious").unwrap();
    assert!(matches!(
        bind_at(&socket).await,
        Err(Error::NotASocket { .. })
    ));
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
    let far = folder.path().join("x".repeat(120));
    assert!(matches!(bind_at(&far).await, Err(Error::Socket { .. })));
}

#[tokio::test]
async fn what_cannot_be_bound_is_an_error_before_anything_runs() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = Some(taken.local_addr().unwrap());
    assert!(matches!(
        bind(&Settings {
            listen,
            ..Settings::default()
        })
        .await,
        Err(Error::Listen { .. })
    ));
    assert!(matches!(
        bind(&secret(" \n")).await,
        Err(Error::EmptySecret)
    ));
}

#[tokio::test]
async fn stopping_lets_open_requests_end_within_a_bound() {
    let (running, mut events) = running(quick()).await;
    let ask = |socket: PathBuf| {
        let body = Some(json!({"wait": true}));
        tokio::spawn(
            async move { client::request(&socket, Method::POST, "/v1/sync", body, None).await },
        )
    };
    let first = ask(running.socket.clone());
    let second = ask(running.socket.clone());
    let held = [events.recv().await.unwrap(), events.recv().await.unwrap()];
    running.stop.cancel();
    let [one, other] = held;
    drop(one);
    running.served.await.unwrap();
    assert!(
        TcpStream::connect(running.address).await.is_err(),
        "nobody listens any more"
    );
    let ends = [first.await.unwrap(), second.await.unwrap()];
    assert_eq!(
        ends.iter()
            .filter(|end| matches!(end, Ok((StatusCode::SERVICE_UNAVAILABLE, _))))
            .count(),
        1,
        "{ends:?}"
    );
    assert_eq!(
        ends.iter()
            .filter(|end| matches!(end, Err(client::Error::Broken { .. })))
            .count(),
        1,
        "{ends:?}"
    );
    drop(other);
}

#[tokio::test]
async fn the_client_tells_the_troubles_apart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let ask = |deadline| client::request(&socket, Method::GET, "/v1/status", None, deadline);
    assert!(matches!(
        ask(None).await,
        Err(client::Error::NotRunning { .. })
    ));
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    assert!(
        matches!(
            ask(Some(Duration::from_millis(20))).await,
            Err(client::Error::Broken { .. })
        ),
        "silent"
    );
    let serving = tokio::spawn(async move {
        for answer in [
            "",
            "junk\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n<p>",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    // The silent one's connection still waits in the backlog.
    let mut broken = 0;
    while broken < 3 {
        let error = ask(None).await.unwrap_err();
        assert!(matches!(error, client::Error::Broken { .. }), "{error}");
        broken += 1;
    }
    serving.await.unwrap();
    assert!(
        matches!(ask(None).await, Err(client::Error::NotRunning { .. })),
        "the file of a dead daemon"
    );
}
