//! How much the engine does at once, and in what pieces. The defaults are what the program runs with; a simulator draws others.

use std::time::Duration;

/// Bounds of the engine that no config sets.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How often a tag is surveyed anew because staging moved it while it was carried.
    pub rounds: u32,
    /// Children of an index that are surveyed at once.
    pub children: usize,
    /// Blobs of one image that are asked for or moved at once.
    pub blobs: usize,
    /// Manifests of one level that are written at once.
    pub manifests: usize,
    /// Subjects whose referrers are looked for at once, and referrers of one subject that are brought at once.
    pub referrers: usize,
    /// How often content that the registry misses all of a sudden is brought again.
    pub repairs: usize,
    /// Bytes between two checkpoints of an upload. Uploads of smaller blobs are not journalled.
    pub checkpoint: u64,
    /// Bytes of a blob for which it pays to wait until another job can give it away by a mount.
    pub worth_waiting: u64,
    /// Reads that several destinations share.
    pub shared_reads: SharedReads,
}

/// Bounds of the reads that several destinations share.
#[derive(Clone, Copy, Debug)]
pub struct SharedReads {
    /// Bytes that one read keeps for slower readers.
    pub window: usize,
    /// Bytes that all reads together keep.
    pub all_windows: usize,
    /// Bytes that one read keeps for readers that may come a moment later, as long as no more than half of all windows is
    /// kept.
    pub linger: usize,
    /// How long one read waits for slower readers, beyond a twentieth of its time.
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
