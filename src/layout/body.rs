//! A blob's bytes from a file: frames of 256 KiB, the next one read while the last one travels.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::fault::Fault;

use super::store::{Found, fault};

/// Length of all frames but the last, in bytes.
const FRAME: u64 = 256 * 1024;

/// The rest of a file. At most two frames are in memory.
pub(super) struct FileBody {
    path: Arc<Path>,
    left: u64,
    reading: Option<JoinHandle<Result<(File, Bytes), Fault>>>,
}

/// Opens a file at `offset`.
pub(super) fn open(found: &Found, offset: u64) -> Result<File, Fault> {
    let file = File::open(&found.path)
        .and_then(|mut file| file.seek(SeekFrom::Start(offset)).map(|_| file));
    file.map_err(|error| fault("open", &found.path, error))
}

impl FileBody {
    /// The next `left` bytes of `file`.
    pub fn new(file: File, path: &Path, left: u64) -> FileBody {
        let mut body = FileBody {
            path: path.into(),
            left,
            reading: None,
        };
        body.read_on(file);
        body
    }

    fn read_on(&mut self, file: File) {
        let want = self.left.min(FRAME);
        let path = self.path.clone();
        self.reading = (want > 0).then(|| spawn_blocking(move || read(file, &path, want)));
    }
}

fn read(file: File, path: &Path, want: u64) -> Result<(File, Bytes), Fault> {
    let mut bytes = Vec::with_capacity(want as usize);
    let mut part = file.take(want);
    part.read_to_end(&mut bytes)
        .map_err(|error| fault("read", path, error))?;
    if (bytes.len() as u64) < want {
        return Err(Fault::corrupt(format!(
            "{} became shorter while it was read",
            path.display()
        )));
    }
    Ok((part.into_inner(), bytes.into()))
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let (file, bytes) = match read {
            Ok(Ok(read)) => read,
            Ok(Err(fault)) => return Poll::Ready(Some(Err(fault))),
            Err(_) => return Poll::Ready(Some(Err(Fault::cancelled()))),
        };
        self.left -= bytes.len() as u64;
        self.read_on(file);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
