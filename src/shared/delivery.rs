//! Who carries a worker's replies to its parent: the worker, through the socket, or the parent, which takes them from the
//! ledger while it looks there.
//!
//! Every byte of the stream of replies has a position. Two words say all: where the whole frames end, which the worker
//! alone moves, and the *turn*: up to where they have been delivered, and whose they are from there on. A turn changes
//! hands in one step, so that no byte is delivered twice; and who gives it up looks once more behind it, so that none
//! is left behind:
//!
//! - the worker stores the new end, then reads the turn: the parent's, and it takes them; nobody's, and the worker
//!   sends them, now or with the next;
//! - the parent gives its turn up, then reads the end: if something has come in between, it takes its turn back, unless
//!   the worker is sending that very thing.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Nobody's: the worker sends what is there, or the parent begins to look.
const FREE: u64 = 0;
/// The parent looks, and takes what comes.
const PARENT: u64 = 1;
/// The worker sends.
const WORKER: u64 = 2;
const STATE: u64 = 3;
const SHIFT: u32 = 2;

/// A word that two processes share.
pub(crate) trait Word {
    fn load(&self, ordering: Ordering) -> u64;
    fn store(&self, value: u64, ordering: Ordering);
    /// Whether `current` was there, and `new` is now.
    fn exchange(&self, current: u64, new: u64) -> bool;
    /// What stands in front of it happens first, for all.
    fn fence();
}

impl Word for AtomicU64 {
    fn load(&self, ordering: Ordering) -> u64 {
        Self::load(self, ordering)
    }

    fn store(&self, value: u64, ordering: Ordering) {
        Self::store(self, value, ordering);
    }

    fn exchange(&self, current: u64, new: u64) -> bool {
        self.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// The two words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery<'a, W> {
    pub(crate) end: &'a W,
    pub(crate) turn: &'a W,
}

/// The worker's side. One thread of it at a time.
impl<W: Word> Delivery<'_, W> {
    /// The stream begins at `position`.
    pub(crate) fn begin(&self, position: u64) {
        self.end.store(position, Ordering::Relaxed);
        self.turn.store(position << SHIFT | FREE, Ordering::Release);
    }

    /// Whole frames end at `end` now. `true` when the parent looks, and takes them.
    pub(crate) fn commit(&self, end: u64) -> bool {
        // Who sees the end sees the bytes.
        self.end.store(end, Ordering::Release);
        W::fence();
        self.turn.load(Ordering::Relaxed) & STATE == PARENT
    }

    /// Up to where the bytes have been delivered: their memory can be used again.
    pub(crate) fn delivered(&self) -> u64 {
        self.turn.load(Ordering::Acquire) >> SHIFT
    }

    /// Takes the turn, and gives the position from which on there is something to send. Until it is
    /// [released](Self::release) the parent takes nothing.
    pub(crate) fn claim(&self) -> u64 {
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            if self.turn.exchange(turn, turn & !STATE | WORKER) {
                return turn >> SHIFT;
            }
        }
    }

    /// Everything in front of `end` has been sent.
    pub(crate) fn release(&self, end: u64) {
        self.turn.store(end << SHIFT | FREE, Ordering::Release);
    }
}

/// The parent's side. One thread of it at a time.
impl<W: Word> Delivery<'_, W> {
    /// Takes the turn, and gives the position up to which everything was delivered. `None` while the worker sends.
    pub(crate) fn look(&self) -> Option<u64> {
        let turn = self.turn.load(Ordering::Acquire);
        (turn & STATE == FREE && self.turn.exchange(turn, turn | PARENT)).then_some(turn >> SHIFT)
    }

    /// Where the whole frames end. `None` when the worker has taken the turn, from `position` on.
    pub(crate) fn see(&self, position: u64) -> Option<u64> {
        let end = self.end.load(Ordering::Acquire);
        (self.turn.load(Ordering::Relaxed) == position << SHIFT | PARENT).then_some(end)
    }

    /// The bytes from `position` to `end` have been copied. `false` when the worker has taken the turn meanwhile: it
    /// sends them, and the copy is to be thrown away.
    pub(crate) fn take(&self, position: u64, end: u64) -> bool {
        self.turn
            .exchange(position << SHIFT | PARENT, end << SHIFT | PARENT)
    }

    /// Gives the turn up. `false` when there is something to take, and the turn is the parent's still.
    pub(crate) fn leave(&self, position: u64) -> bool {
        let free = position << SHIFT | FREE;
        if !self.turn.exchange(position << SHIFT | PARENT, free) {
            return true;
        }
        W::fence();
        self.end.load(Ordering::Acquire) <= position || !self.turn.exchange(free, position << SHIFT | PARENT)
    }
}
