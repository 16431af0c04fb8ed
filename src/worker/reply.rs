//! The way back: replies to the parent.
//!
//! Everything small goes through the [`Ledger`], so that it outlives this process, and leaves from there: in one piece
//! with others where more tasks wait, or not at all where the parent looks into the ledger itself (see [`delivery`]).
//!
//! [`delivery`]: crate::shared::delivery

use std::hint::spin_loop;
use std::io::{self, IoSlice};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::SendFlags;
use rustix::thread::sched_yield;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::bias::{Bias, KeptOut};
use crate::shared::delivery::Delivery;
use crate::shared::ledger::{DATA, Ledger, clock};
use crate::wire::frame::{HEADER, Outgoing, header};
use crate::wire::message::kind;
use crate::wire::transport::{Outbox, is_disconnect, send};

/// Replies leave when they add up to this, whatever waits.
const BATCH: u64 = 16 * 1024;
/// A reply waits for the next only if its task was over in this time, and for no longer.
const SHORT: Duration = Duration::from_micros(50);
/// A reply that waits behind a task which takes longer than those before it leaves after this time.
const LATE: Duration = Duration::from_millis(1);

/// A parent that said that it would take replies is waited for so long, nanoseconds.
const UNTAKEN: u64 = 20_000;
/// Looks for it between two readings of the clock.
const GLANCES: u32 = 32;

/// The connection's writing side, shared by the thread that runs tasks and the watcher.
#[derive(Debug)]
pub(super) struct Replies {
    connection: OwnedFd,
    ledger: Ledger,
    state: Mutex<State>,
    /// For the thread that runs tasks, to add a record without the lock.
    bias: Bias,
    extending: Extending,
    /// Runs while replies wait for others, so that the watcher looks at them.
    late: OwnedFd,
    /// This process goes on when the parent is gone: what is sent then is lost, and nobody minds.
    outlives_parent: bool,
}

/// Positions in the stream of replies.
#[derive(Debug)]
struct State {
    /// Where the ledger's data begins.
    base: u64,
    /// Where the whole frames end.
    end: u64,
    /// The frame of a chunk's results that still grows behind them.
    growing: Option<Growing>,
    /// When the first reply was written that waits for others, on the clock of the ledger.
    waits_since: Option<u64>,
    /// The watcher looks from time to time whether it waits for too long.
    is_watched: bool,
}

/// The frame that grows, while the thread that runs tasks extends it past the lock. Who takes the lock takes it back
/// into the state.
#[derive(Debug, Default)]
struct Extending {
    /// 0: nothing is lent.
    id: AtomicU64,
    end: AtomicU64,
    base: AtomicU64,
}

impl Extending {
    fn lend(&self, growing: Growing, base: u64) {
        self.end.store(growing.end, Ordering::Relaxed);
        self.base.store(base, Ordering::Relaxed);
        self.id.store(growing.id, Ordering::Relaxed);
    }

    fn take_back(&self, state: &mut State) {
        let id = self.id.load(Ordering::Relaxed);
        if id != 0 {
            self.id.store(0, Ordering::Relaxed);
            let end = self.end.load(Ordering::Relaxed);
            state.growing = Some(Growing { id, end });
        }
    }
}

/// The state, with nobody beside who has it.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    _alone: Option<KeptOut<'a>>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

#[derive(Clone, Copy, Debug)]
struct Growing {
    id: u64,
    end: u64,
}

impl State {
    /// Where the next byte goes.
    fn write_position(&self) -> u64 {
        self.growing.map_or(self.end, |growing| growing.end)
    }

    /// Bytes of the ledger's data in front of the next.
    fn used(&self) -> usize {
        (self.write_position() - self.base) as usize
    }

    fn has_room(&self, length: usize) -> bool {
        length <= DATA - self.used()
    }
}

impl Replies {
    /// For the thread that runs tasks, which calls this. `position` is where the stream goes on.
    pub(super) fn new(
        connection: OwnedFd,
        ledger: Ledger,
        position: u64,
        outlives_parent: bool,
    ) -> io::Result<Self> {
        ledger.set_base(position);
        ledger.delivery().begin(position);
        Ok(Self {
            connection,
            ledger,
            state: Mutex::new(State {
                base: position,
                end: position,
                growing: None,
                waits_since: None,
                is_watched: false,
            }),
            bias: Bias::new(),
            extending: Extending::default(),
            late: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            outlives_parent,
        })
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Readable when it is time for [`flush_late`](Self::flush_late).
    pub(super) fn late(&self) -> &OwnedFd {
        &self.late
    }

    fn delivery(&self) -> Delivery<'_, AtomicU64> {
        self.ledger.delivery()
    }

    /// Sends a message, now. It is safe from this process's end as soon as it is whole in the ledger, which a message
    /// over the ledger's size never is.
    pub(super) fn send(&self, message: &Outgoing, id: u64) -> io::Result<()> {
        let mut state = self.lock();
        self.write(&mut state, message, id)?;
        self.deliver(&mut state)
    }

    /// Sends the reply of a task that has ended `now` and took so long, with those that come soon, if it was short.
    /// Somebody must [flush](Self::flush) before this process waits for anything.
    pub(super) fn send_soon(&self, message: &Outgoing, id: u64, now: u64, run_time: u64) -> io::Result<()> {
        let mut state = self.lock();
        if self.write(&mut state, message, id)? {
            return Ok(());
        }
        let since = *state.waits_since.get_or_insert(now);
        let longest = SHORT.as_nanos() as u64;
        let may_wait = run_time < longest
            && now.saturating_sub(since) < longest
            && state.end - self.delivery().delivered() < BATCH;
        if may_wait {
            if !std::mem::replace(&mut state.is_watched, true) {
                self.look_later()?;
            }
            return Ok(());
        }
        self.deliver(&mut state)
    }

    /// Sends what waits for other replies, and what the parent has not come for in time. `false` when `is_over` said
    /// meanwhile that there is something else to do.
    pub(super) fn flush(&self, is_over: impl Fn() -> bool) -> io::Result<bool> {
        let mut since = None;
        while self.delivery().is_behind() {
            let mut is_late = || clock().saturating_sub(*since.get_or_insert_with(clock)) > UNTAKEN;
            if !self.delivery().is_parents() || is_late() {
                self.deliver(&mut self.lock())?;
                break;
            }
            for _ in 0..GLANCES {
                if is_over() {
                    return Ok(false);
                }
                spin_loop();
            }
            // Whoever else is ready to run here goes first: it may be the parent.
            sched_yield();
        }
        Ok(true)
    }

    /// Another task starts or goes on `now`: what the parent has not taken by then may have to be sent while that runs.
    pub(super) fn leave_behind(&self, now: u64) -> io::Result<()> {
        if !self.delivery().is_behind() {
            return Ok(());
        }
        let mut state = self.lock();
        state.waits_since.get_or_insert(now);
        if !std::mem::replace(&mut state.is_watched, true) {
            self.look_later()?;
        }
        Ok(())
    }

    /// Watcher: sends what has waited for too long: the task that came behind it is a long one.
    pub(super) fn flush_late(&self) -> io::Result<()> {
        rustix::io::read(&self.late, &mut [0; 8]).ok();
        let Ok(state) = self.state.try_lock() else {
            // Somebody sends, or is about to.
            return self.look_later();
        };
        let mut state = self.alone(state);
        let Some(since) = state.waits_since.filter(|_| self.delivery().is_behind()) else {
            state.waits_since = None;
            state.is_watched = false;
            return Ok(());
        };
        if clock().saturating_sub(since) >= LATE.as_nanos() as u64 {
            self.deliver(&mut state)?;
        }
        self.look_later()
    }

    /// Has the watcher look in a while.
    fn look_later(&self) -> io::Result<()> {
        let timer = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(LATE).unwrap_or_default(),
        };
        timerfd_settime(&self.late, TimerfdTimerFlags::empty(), &timer)?;
        Ok(())
    }

    /// Writes a message behind the others; `true` when it is, or will be, delivered without being sent.
    fn write(&self, state: &mut State, message: &Outgoing, id: u64) -> io::Result<bool> {
        // While a chunk's frame grows, another message goes behind it; the frame is ended and a new one begun.
        self.end_frame(state);
        let length = HEADER + message.len();
        if length > DATA || !message.is_single() || !message.fds().is_empty() {
            self.send_apart(state, message, id)?;
            return Ok(true);
        }
        self.make_room(state, length)?;
        let head = header(message.len(), message.kind(), 0, 0, id);
        let used = state.used();
        self.ledger.write(used, &head);
        self.ledger.write(used + HEADER, message.body());
        state.end += length as u64;
        Ok(self.commit(state))
    }

    /// Adds the record of one finished element to the results of chunk `id`. They leave when the ledger is full or
    /// another message goes out, and are safe from this process's end at once.
    #[inline]
    pub(super) fn push_record(&self, id: u64, record: &[u8]) -> io::Result<()> {
        if self.extend(id, record) {
            return Ok(());
        }
        self.push_record_locked(id, record)
    }

    /// Adds a record to the frame that grows, if it is of this chunk and there is room, and nobody has the lock.
    fn extend(&self, id: u64, record: &[u8]) -> bool {
        if !self.bias.enter() {
            return false;
        }
        let Extending { id: lent, end, base } = &self.extending;
        let (from, base) = (end.load(Ordering::Relaxed), base.load(Ordering::Relaxed));
        let offset = (from - base) as usize;
        let fits = lent.load(Ordering::Relaxed) == id && record.len() <= DATA - offset;
        if fits {
            self.ledger.write(offset, record);
            let grown = from + record.len() as u64;
            self.ledger.grow(grown);
            end.store(grown, Ordering::Relaxed);
        }
        self.bias.leave();
        fits
    }

    #[cold]
    fn push_record_locked(&self, id: u64, record: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if HEADER + record.len() > DATA {
            let mut bytes = Outgoing::buffer(record.len());
            bytes.extend_from_slice(record);
            let part = Outgoing::new(kind::PART, bytes, Vec::new());
            return self.send_apart(&mut state, &part, id);
        }
        if state.growing.is_some_and(|growing| growing.id != id) {
            self.end_frame(&mut state);
        }
        if !state.has_room(record.len()) {
            self.end_frame(&mut state);
        }
        if state.growing.is_none() {
            self.make_room(&mut state, HEADER + record.len())?;
        }
        let mut growing = match state.growing {
            Some(growing) => growing,
            None => {
                self.ledger.write(state.used(), &header(0, kind::PART, 0, 0, id));
                Growing {
                    id,
                    end: state.end + HEADER as u64,
                }
            }
        };
        self.ledger.write((growing.end - state.base) as usize, record);
        growing.end += record.len() as u64;
        self.ledger.grow(growing.end);
        state.growing = Some(growing);
        self.extending.lend(growing, state.base);
        Ok(())
    }

    /// Ends the frame that grows, if there is one.
    fn end_frame(&self, state: &mut State) {
        if let Some(growing) = state.growing.take() {
            let length = (growing.end - state.end) as usize - HEADER;
            let head = header(length, kind::PART, 0, 0, growing.id);
            self.ledger.write((state.end - state.base) as usize, &head);
            state.end = growing.end;
            self.commit(state);
        }
    }

    /// Makes what is in front of the end count; `true` when the parent takes it.
    fn commit(&self, state: &mut State) -> bool {
        let is_behind = self.delivery().is_behind();
        let parent_takes = self.delivery().commit(state.end);
        // What it has not come for yet goes on waiting.
        if parent_takes && !is_behind {
            state.waits_since = None;
        }
        parent_takes
    }

    /// Sees to it that so many bytes fit into the ledger, for a new frame.
    fn make_room(&self, state: &mut State, length: usize) -> io::Result<()> {
        if self.delivery().delivered() == state.end {
            self.start_over(state);
        }
        if !state.has_room(length) {
            self.deliver(state)?;
        }
        Ok(())
    }

    /// Everything has been delivered: the data is used again from its beginning.
    fn start_over(&self, state: &mut State) {
        state.base = state.end;
        state.waits_since = None;
        self.ledger.set_base(state.base);
    }

    /// Sends what the ledger holds.
    fn deliver(&self, state: &mut State) -> io::Result<()> {
        self.end_frame(state);
        let from = self.delivery().claim();
        // What cannot be sent is not released: the parent finds it in the ledger when this process has ended for it.
        self.send_from(state, from)?;
        self.delivery().release(state.end);
        self.start_over(state);
        Ok(())
    }

    /// Sends a message that the ledger cannot hold, behind what it holds.
    fn send_apart(&self, state: &mut State, message: &Outgoing, id: u64) -> io::Result<()> {
        self.end_frame(state);
        let from = self.delivery().claim();
        self.send_from(state, from)?;
        let mut outbox = Outbox::default();
        outbox.push(message, id);
        let written = outbox.write(self.connection.as_fd(), SendFlags::empty());
        self.unless_lost(written)?;
        state.end += message.wire_length();
        // Nothing is taken from the ledger before the end is moved, and then nothing in front of it.
        self.start_over(state);
        self.delivery().commit(state.end);
        self.delivery().release(state.end);
        state.waits_since = None;
        Ok(())
    }

    /// Sends the bytes of the ledger from the position `from` on.
    fn send_from(&self, state: &State, from: u64) -> io::Result<()> {
        let offset = (from - state.base) as usize;
        let mut rest = self.ledger.written(offset, (state.end - from) as usize);
        while !rest.is_empty() {
            let sent = send(
                self.connection.as_fd(),
                &[IoSlice::new(rest)],
                &[],
                SendFlags::empty(),
            );
            match sent {
                Ok(sent) => rest = &rest[sent..],
                Err(error) => return self.unless_lost(Err(error)),
            }
        }
        Ok(())
    }

    fn unless_lost(&self, sent: io::Result<()>) -> io::Result<()> {
        sent.or_else(|error| {
            if self.outlives_parent && is_disconnect(&error) {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    pub(super) fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    fn lock(&self) -> Locked<'_> {
        self.alone(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn alone<'a>(&'a self, state: MutexGuard<'a, State>) -> Locked<'a> {
        let mut locked = Locked {
            _alone: self.bias.keep_out(),
            state,
        };
        self.extending.take_back(&mut locked);
        locked
    }
}
