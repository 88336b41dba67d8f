//! Bounds of the engine. The program runs with the defaults; a simulator draws others.

use std::time::Duration;

/// Bounds of the engine that no config sets.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Rounds of a job: staging may move the tag while it is carried.
    pub rounds: u32,
    /// Children of an index that are surveyed at once.
    pub children: usize,
    /// Blobs of one image that are checked or moved at once.
    pub blobs: usize,
    /// Manifests of one level that are written at once.
    pub manifests: usize,
    /// Subjects whose referrers are listed at once, and referrers of one subject that are copied at
    /// once.
    pub referrers: usize,
    /// How often missing content that a registry reports is copied again.
    pub repairs: usize,
    /// Bytes between two checkpoints of an upload. Uploads of smaller blobs are not journalled.
    pub checkpoint: u64,
    /// Size of a blob from which a job waits until another one can offer it for a mount.
    pub worth_waiting: u64,
    /// Reads that several destinations share.
    pub shared_reads: SharedReads,
    /// Large blobs that are read over several connections.
    pub read_ahead: ReadAhead,
}

/// Bounds of large blobs that are read over several connections.
#[derive(Clone, Copy, Debug)]
pub struct ReadAhead {
    /// Connections of one blob. 1: nothing is read ahead.
    pub connections: usize,
    /// Bytes of one part.
    pub part: u64,
    /// Bytes that all blobs together may have read ahead.
    pub all: usize,
    /// A connection that brings more bytes a second is not helped by others.
    pub slow: u64,
    /// How long a number of connections is measured.
    pub measured: Duration,
}

/// Bounds of the reads that several destinations share.
#[derive(Clone, Copy, Debug)]
pub struct SharedReads {
    /// Bytes that one read keeps for slower readers.
    pub window: usize,
    /// Bytes that all reads together keep.
    pub all_windows: usize,
    /// Bytes that one read keeps for readers that may join a moment later, while at most half of
    /// all windows is in use.
    pub linger: usize,
    /// How long one read waits for slow readers, beyond a twentieth of its own time.
    pub grace: Duration,
}

const MIB: usize = 1024 * 1024;

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            rounds: 5,
            children: 8,
            blobs: 16,
            manifests: 8,
            referrers: 4,
            repairs: 2,
            checkpoint: 8 * MIB as u64,
            worth_waiting: MIB as u64,
            shared_reads: SharedReads::default(),
            read_ahead: ReadAhead::default(),
        }
    }
}

impl Default for SharedReads {
    fn default() -> SharedReads {
        SharedReads {
            window: 8 * MIB,
            all_windows: 32 * MIB,
            linger: 4 * MIB,
            grace: Duration::from_secs(1),
        }
    }
}

impl Default for ReadAhead {
    fn default() -> ReadAhead {
        ReadAhead {
            connections: 6,
            part: 4 * MIB as u64,
            all: 32 * MIB,
            slow: 64 * MIB as u64,
            measured: Duration::from_millis(300),
        }
    }
}
