//! How many requests of one class may be under way: additive increase, multiplicative decrease.

use super::Concurrency;

/// The window: between one and as many requests at once as usual, and room above it for what is
/// asked for by name.
#[derive(Debug)]
pub(in crate::transfer) struct AimdWindow {
    limit: Concurrency,
    width: usize,
    out: usize,
    /// Answers that helped since the width last changed.
    helped: usize,
}

impl AimdWindow {
    pub(super) fn new(limit: Concurrency) -> AimdWindow {
        AimdWindow {
            limit,
            width: limit.usual,
            out: 0,
            helped: 0,
        }
    }

    /// How many may be under way now.
    pub(in crate::transfer) fn width(&self) -> usize {
        self.width
    }

    /// The same, with what is asked for by name.
    pub(super) fn named_width(&self) -> usize {
        self.limit.with_named(self.width)
    }

    /// Whether one more may be under way. `is_named`: it is asked for by name.
    pub(super) fn has_room(&self, is_named: bool) -> bool {
        let width = if is_named {
            self.named_width()
        } else {
            self.width
        };
        self.out < width
    }

    pub(super) fn take(&mut self) {
        self.out += 1;
    }

    pub(super) fn give_back(&mut self) {
        self.out -= 1;
    }

    /// The config allows so many from now on.
    pub(super) fn resize(&mut self, limit: Concurrency) {
        if limit != self.limit {
            *self = AimdWindow {
                out: self.out,
                ..AimdWindow::new(limit)
            };
        }
    }

    pub(super) fn halve(&mut self) {
        self.width -= self.width / 2;
        self.helped = 0;
    }

    /// One at a time from now on.
    pub(super) fn narrow(&mut self) {
        self.width = 1;
        self.helped = 0;
    }

    /// One more after as many answers as there may be requests at once: by one for each round trip.
    pub(super) fn widen(&mut self) {
        self.helped += 1;
        if self.width < self.limit.usual && self.helped >= self.width {
            self.helped = 0;
            self.width += 1;
        }
    }
}
