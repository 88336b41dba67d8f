//! How many requests of one class may be under way: additive increase, multiplicative decrease.

/// The window: between one and `most` requests at once.
#[derive(Debug)]
pub(in crate::transfer) struct AimdWindow {
    most: usize,
    width: usize,
    out: usize,
    /// Answers that helped since the width last changed.
    helped: usize,
}

impl AimdWindow {
    pub(super) fn new(most: usize) -> AimdWindow {
        AimdWindow {
            most,
            width: most,
            out: 0,
            helped: 0,
        }
    }

    /// How many may be under way now.
    pub(in crate::transfer) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn has_room(&self) -> bool {
        self.out < self.width
    }

    pub(super) fn take(&mut self) {
        self.out += 1;
    }

    pub(super) fn give_back(&mut self) {
        self.out -= 1;
    }

    /// The config allows so many from now on.
    pub(super) fn resize(&mut self, most: usize) {
        if most != self.most {
            (self.most, self.width, self.helped) = (most, most, 0);
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
        if self.width < self.most && self.helped >= self.width {
            self.helped = 0;
            self.width += 1;
        }
    }
}
