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
//!
//! A parent that is about to look again keeps its turn. A worker that has waited for it in vain takes the turn and
//! sends.

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

    /// Whether the parent takes what there is, or said that it would.
    pub(crate) fn is_parents(&self) -> bool {
        self.turn.load(Ordering::Relaxed) & STATE == PARENT
    }

    /// Whether something has not been delivered.
    pub(crate) fn is_behind(&self) -> bool {
        self.delivered() != self.end.load(Ordering::Relaxed)
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

    /// Whether the worker sends something, or has sent something that is not among the first `received` bytes.
    pub(crate) fn is_sending(&self, received: u64) -> bool {
        let turn = self.turn.load(Ordering::Acquire);
        turn & STATE == WORKER || turn >> SHIFT > received
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

/// Both sides as `worker::reply` and `pool::link` play them, in every order that threads and memory may take.
#[cfg(test)]
mod tests {
    use std::iter::successors;

    use loom::model::Builder;
    use loom::sync::atomic::AtomicU64 as Modelled;
    use loom::sync::{Arc, Mutex};

    use super::*;

    impl Word for Modelled {
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
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }

    /// Frames that the memory holds. A frame is as long as one byte here, and says its position.
    const ROOM: u64 = 2;

    /// What both processes have.
    #[derive(Default)]
    struct Scene {
        base: Modelled,
        end: Modelled,
        turn: Modelled,
        data: [Modelled; ROOM as usize],
        socket: Mutex<Vec<u64>>,
    }

    impl Scene {
        fn delivery(&self) -> Delivery<'_, Modelled> {
            Delivery {
                end: &self.end,
                turn: &self.turn,
            }
        }

        /// As `Ledger::copy`.
        fn copy(&self, position: u64, end: u64) -> Option<Vec<u64>> {
            let base = self.base.load(Ordering::Acquire);
            let (from, to) = (position.checked_sub(base)?, end.checked_sub(base)?);
            let data = self.data.get(from as usize..to as usize)?;
            Some(data.iter().map(|byte| byte.load(Ordering::Relaxed)).collect())
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Deed {
        /// A reply that may wait for others.
        Reply,
        /// One that the memory cannot hold.
        Large,
        /// Nothing is there to be done.
        Flush,
        /// The same, and the parent does not come for what it was to take.
        Impatience,
    }

    /// The worker, until it is killed.
    struct Worker {
        scene: Arc<Scene>,
        /// Steps that it has left.
        steps: usize,
        base: u64,
        end: u64,
        waits: bool,
    }

    impl Worker {
        fn run(mut self, deeds: &[Deed]) {
            for deed in deeds {
                let alive = match deed {
                    Deed::Reply => self.reply(),
                    Deed::Large => self.large(),
                    Deed::Flush if self.waits => self.deliver(),
                    Deed::Impatience if self.scene.delivery().is_behind() => self.deliver(),
                    Deed::Flush | Deed::Impatience => Some(()),
                };
                if alive.is_none() {
                    return;
                }
            }
        }

        /// It may be killed here.
        fn step(&mut self) -> Option<()> {
            self.steps = self.steps.checked_sub(1)?;
            Some(())
        }

        fn reply(&mut self) -> Option<()> {
            if self.scene.delivery().delivered() == self.end {
                self.start_over()?;
            }
            if self.end - self.base == ROOM {
                self.deliver()?;
            }
            self.scene.data[(self.end - self.base) as usize].store(self.end, Ordering::Relaxed);
            self.step()?;
            self.end += 1;
            self.waits = !self.scene.delivery().commit(self.end);
            self.step()
        }

        fn large(&mut self) -> Option<()> {
            let from = self.scene.delivery().claim();
            self.send_from(from)?;
            self.scene.socket.lock().unwrap().push(self.end);
            self.step()?;
            self.end += 1;
            self.start_over()?;
            self.scene.delivery().commit(self.end);
            self.step()?;
            self.scene.delivery().release(self.end);
            self.waits = false;
            self.step()
        }

        fn deliver(&mut self) -> Option<()> {
            let from = self.scene.delivery().claim();
            self.send_from(from)?;
            self.scene.delivery().release(self.end);
            self.waits = false;
            self.step()?;
            self.start_over()
        }

        fn send_from(&mut self, from: u64) -> Option<()> {
            self.step()?;
            for position in from..self.end {
                let byte = self.scene.data[(position - self.base) as usize].load(Ordering::Relaxed);
                self.scene.socket.lock().unwrap().push(byte);
                self.step()?;
            }
            Some(())
        }

        fn start_over(&mut self) -> Option<()> {
            self.base = self.end;
            self.scene.base.store(self.base, Ordering::Release);
            self.step()
        }
    }

    /// The parent, and what has come to it.
    struct Parent {
        scene: Arc<Scene>,
        received: Vec<u64>,
        /// Where it has kept its turn.
        held: Option<u64>,
    }

    impl Parent {
        fn total(&self) -> u64 {
            self.received.len() as u64
        }

        fn receive(&mut self) -> bool {
            let mut socket = self.scene.socket.lock().unwrap();
            let is_more = !socket.is_empty();
            self.received.append(&mut socket);
            is_more
        }

        /// As `Reader::begin`, `look` and `end`, which takes up to so many times what it finds, and keeps its turn if it
        /// `returns`.
        fn look(&mut self, times: usize, returns: bool) {
            let scene = Arc::clone(&self.scene);
            let delivery = scene.delivery();
            let held = self
                .held
                .take()
                .filter(|&position| delivery.see(position).is_some());
            let Some(mut position) = held.or_else(|| delivery.look()) else {
                return;
            };
            while self.total() < position {
                assert!(self.receive(), "what was delivered is there");
            }
            for _ in 0..times {
                match delivery.see(position) {
                    Some(end) if end == position => break,
                    Some(end) if self.take(position, end) => position = end,
                    _ => return,
                }
            }
            if returns {
                self.held = Some(position);
                return;
            }
            while !delivery.leave(position) {
                match delivery.see(position) {
                    Some(end) if self.take(position, end) => position = end,
                    _ => return,
                }
            }
        }

        fn take(&mut self, position: u64, end: u64) -> bool {
            let Some(bytes) = self.scene.copy(position, end) else {
                assert!(self.scene.delivery().see(position).is_none(), "no nonsense");
                return false;
            };
            let is_taken = self.scene.delivery().take(position, end);
            if is_taken {
                self.received.extend(bytes);
            }
            is_taken
        }

        /// As `Reader::receive_rest` when the worker is gone.
        fn receive_rest(&mut self) {
            self.receive();
            let end = self.scene.end.load(Ordering::Acquire).max(self.total());
            self.received
                .extend(self.scene.copy(self.total(), end).unwrap_or_default());
        }
    }

    /// Plays a worker that does `deeds` and is killed after so many steps, and a parent that looks twice, if it `returns`
    /// as somebody who has kept its turn. What has been
    /// received is every position once, in order, whatever happened.
    fn play(deeds: &'static [Deed], returns: bool, steps: usize, preemptions: usize) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(move || {
            let scene = Arc::new(Scene::default());
            scene.delivery().begin(0);
            let worker = Worker {
                scene: Arc::clone(&scene),
                steps,
                base: 0,
                end: 0,
                waits: false,
            };
            let worker = loom::thread::spawn(move || worker.run(deeds));
            let mut parent = Parent {
                scene: Arc::clone(&scene),
                received: Vec::new(),
                held: None,
            };
            let parent = loom::thread::spawn(move || {
                parent.look(1, returns);
                parent.look(2, false);
                parent
            });
            let mut parent = parent.join().unwrap();
            worker.join().unwrap();
            let end = scene.end.load(Ordering::Relaxed);
            if steps == usize::MAX {
                // Nobody left anything to the other.
                parent.receive();
                assert_eq!(parent.total(), end);
                assert_eq!(scene.turn.load(Ordering::Relaxed), end << SHIFT | FREE);
            } else {
                parent.receive_rest();
                // A large message may have left before it counts.
                assert!(parent.total() == end || parent.total() == end + 1);
            }
            let positions: Vec<u64> = successors(Some(0), |position| Some(position + 1))
                .take(parent.received.len())
                .collect();
            assert_eq!(parent.received, positions);
        });
    }

    const SMALL: &[Deed] = &[Deed::Reply, Deed::Flush, Deed::Reply, Deed::Flush];
    const IMPATIENT: &[Deed] = &[Deed::Reply, Deed::Impatience, Deed::Reply, Deed::Impatience];
    const MORE_THAN_THERE_IS_ROOM_FOR: &[Deed] = &[Deed::Reply, Deed::Reply, Deed::Reply, Deed::Flush];
    const ONE_IS_LARGE: &[Deed] = &[Deed::Reply, Deed::Large, Deed::Reply, Deed::Flush];

    #[test]
    fn every_byte_is_delivered_once_and_in_order() {
        for deeds in [SMALL, MORE_THAN_THERE_IS_ROOM_FOR, ONE_IS_LARGE] {
            play(deeds, false, usize::MAX, 2);
            play(deeds, true, usize::MAX, 2);
        }
        play(IMPATIENT, false, usize::MAX, 2);
        play(IMPATIENT, true, usize::MAX, 2);
    }

    #[test]
    fn what_was_whole_when_the_worker_was_killed_is_delivered() {
        for steps in 0..16 {
            play(ONE_IS_LARGE, false, steps, 1);
            play(IMPATIENT, true, steps, 1);
        }
    }
}
