//! Chunk sizes: they grow until the wait for acknowledgements is a small part of the time.

use std::time::Duration;

/// Largest part of the time that the wait for acknowledgements may take.
const WAITING: f64 = 0.02;
/// Largest growth of a size in one step.
const STEP: f64 = 4.0;

/// The size of the next chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    size: u64,
    most: u64,
}

impl Chunks {
    /// Sizes from `least` to `most`; a registry that `asked` for longer chunks gets them.
    pub(super) fn new(least: u64, most: u64, asked: Option<u64>) -> Chunks {
        let asked = asked.unwrap_or(0);
        let most = most.max(asked).max(1);
        Chunks {
            size: asked.max(least).clamp(1, most),
            most,
        }
    }

    /// Bytes of the next chunk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Records an acknowledged chunk: its duration, of which `waited` passed without a byte to
    /// send.
    pub(super) fn acknowledged(&mut self, length: u64, took: Duration, waited: Duration) {
        let part = waited.as_secs_f64() / took.as_secs_f64().max(1e-9);
        // The last chunk is short and tells nothing about a full one.
        if length == self.size && part > WAITING {
            let factor = (part / WAITING).clamp(1.25, STEP);
            self.size = ((self.size as f64 * factor) as u64).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// Sends `total` bytes over a link; returns the part of the time spent waiting over the last
    /// half, and the last size.
    fn transfer(mut chunks: Chunks, total: u64, latency: f64, rate: f64) -> (f64, u64) {
        let mut sent = 0;
        let mut spent = 0.0;
        let mut waited = 0.0;
        while sent < total {
            let length = chunks.size().min(total - sent);
            let sending = length as f64 / rate;
            if sent >= total / 2 {
                (spent, waited) = (spent + sending + latency, waited + latency);
            }
            chunks.acknowledged(
                length,
                Duration::from_secs_f64(sending + latency),
                Duration::from_secs_f64(latency),
            );
            sent += length;
        }
        (waited / spent, chunks.size())
    }

    #[test]
    fn waiting_becomes_a_small_part_of_the_time() {
        for (latency, rate) in [(0.02, 50e6), (0.1, 50e6), (0.005, 200e6), (0.2, 10e6)] {
            let (part, size) = transfer(
                Chunks::new(5 * MIB, 1024 * MIB, None),
                4096 * MIB,
                latency,
                rate,
            );
            assert!(
                part <= 0.021,
                "{part} of the time was waiting at {latency} s and {rate} B/s, with chunks of {size}"
            );
            assert!(
                size as f64 <= 50.0 * 1.5 * latency * rate + 5.0 * MIB as f64,
                "{size} is more than it takes"
            );
        }
    }

    #[test]
    fn bounds_are_kept() {
        let (_, size) = transfer(Chunks::new(5 * MIB, 16 * MIB, None), 1024 * MIB, 0.5, 100e6);
        assert_eq!(size, 16 * MIB);
        assert_eq!(
            Chunks::new(5 * MIB, 16 * MIB, Some(8 * MIB)).size(),
            8 * MIB
        );
        assert_eq!(
            Chunks::new(5 * MIB, 16 * MIB, Some(64 * MIB)).size(),
            64 * MIB
        );
        assert_eq!(Chunks::new(0, 0, None).size(), 1);
        let mut chunks = Chunks::new(5 * MIB, 16 * MIB, None);
        chunks.acknowledged(17, Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(chunks.size(), 5 * MIB, "the last chunk says nothing");
    }
}
