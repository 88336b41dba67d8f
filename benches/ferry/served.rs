//! What the registries in this process have in common: a thread for each connection, which reads
//! requests and writes answers one after the other.

use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use sha2::{Digest as _, Sha256};

/// The type of an image's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Bytes of a body that are read at once.
const PIECE: usize = 256 * 1024;

/// Answers requests on a port of loopback until the process ends. `answer` reads the body of each.
pub fn start(
    answer: impl Fn(Head, &mut TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let answer = answer.clone();
            // A client that goes away ends its connection.
            thread::spawn(move || serve(connection, answer).unwrap_or_default());
        }
    });
    address
}

fn serve(
    mut connection: TcpStream,
    answer: impl Fn(Head, &mut TcpStream) -> std::io::Result<()>,
) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    while let Some(head) = Head::read(&mut connection)? {
        answer(head, &mut connection)?;
    }
    Ok(())
}

/// The head of a request.
pub struct Head {
    pub method: String,
    pub path: String,
    length: usize,
    /// The first and the last byte that are asked for.
    pub range: Option<(usize, usize)>,
    /// What came of the body with it.
    rest: Vec<u8>,
}

impl Head {
    fn read(connection: &mut TcpStream) -> std::io::Result<Option<Head>> {
        let mut bytes = Vec::new();
        let mut part = [0; 16 * 1024];
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            match connection.read(&mut part)? {
                0 => return Ok(None),
                count => bytes.extend_from_slice(&part[..count]),
            }
        };
        let rest = bytes.split_off(end);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut words = text.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default().to_owned();
        let header = |wanted: &str| {
            let mut headers = text.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
            Some(value.trim())
        };
        let length = header("content-length").and_then(|length| length.parse().ok());
        let range = header("range").and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        Ok(Some(Head {
            method,
            path,
            length: length.unwrap_or(0),
            range,
            rest,
        }))
    }

    /// The body.
    pub fn body(&mut self, connection: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        let mut body = std::mem::take(&mut self.rest);
        let came = body.len();
        body.resize(self.length, 0);
        connection.read_exact(&mut body[came..])?;
        Ok(body)
    }

    /// Reads the body and forgets it.
    pub fn pass_body_over(&self, connection: &mut TcpStream) -> std::io::Result<()> {
        let mut left = self.length - self.rest.len();
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            let wanted = left.min(piece.len());
            match connection.read(&mut piece[..wanted])? {
                0 => return Err(Error::from(ErrorKind::UnexpectedEof)),
                count => left -= count,
            }
        }
        Ok(())
    }
}

/// The digest of some bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A descriptor as JSON.
pub fn descriptor(media_type: &str, digest: &str, size: usize) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

/// Writes an answer; only its head where `is_head`.
pub fn reply(
    to: &mut TcpStream,
    status: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    is_head: bool,
) -> std::io::Result<()> {
    let mut answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        answer += &format!("{name}: {value}\r\n");
    }
    let mut answer = (answer + "\r\n").into_bytes();
    if !is_head {
        answer.extend_from_slice(body);
    }
    to.write_all(&answer)
}
