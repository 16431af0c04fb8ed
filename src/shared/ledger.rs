//! What a worker has begun and finished, in memory that survives it.
//!
//! A worker that dies takes its heap with it. What must outlast it lies here instead, in a mapping that the parent
//! shares: which tasks it has started, and the bytes of replies that it has finished and not sent yet. So the parent
//! knows at any time what the one running task is, can send elsewhere what had not started, and loses no result that
//! had been reached before the end.
//!
//! ```text
//! word 0     position in the stream of the first data byte
//! word 1     position at which the whole frames end, see `delivery`
//! word 2     position at which a frame ends that is still growing, if that is behind word 1
//! word 3     how often the parent has revoked a task
//! word 4     how often the parent has asked for the tasks that have not started
//! word 5     1 when a task here has asked whether it is cancelled, 0 before
//! word 6     resident memory in bytes after the last task, where that is measured
//! word 7     bytes that were resident when the worker ended itself for its memory limit, 0 otherwise
//! word 8     tracing events that did not fit into their pipe
//! word 9     the row of the task that started last
//! word 10    up to where replies have been delivered, and whose turn it is, see `delivery`
//! word 11    how often the parent has sent something
//! word 12    the highest id among those that were revoked
//! word 13    the number of the process that was forked last, where this one forks; before that its own
//! word 16 …  four words for each lane: the id of the task that runs there (0: none), the element it is at, since
//!            when, and the id of the last that started
//! then       ids of the tasks that the parent revoked last
//! data …     frames that are about to be sent
//! ```

#![expect(
    unsafe_code,
    reason = "a shared mapping is raw memory; every access is bounded here"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

use super::delivery::Delivery;
use crate::wire::frame::HEADER;

/// Bytes of replies that a ledger holds.
pub(crate) const DATA: usize = 64 * 1024;

/// So many bytes are written one by one: to copy them in larger pieces would wait until they, which have just been
/// made one by one, are in the cache.
const FEW: usize = 16;

const BASE: usize = 0;
const END: usize = 1;
const GROWN: usize = 2;
const REVOCATIONS: usize = 3;
const RECALLS: usize = 4;
const LISTENS: usize = 5;
const RESIDENT: usize = 6;
const OVER_LIMIT: usize = 7;
#[cfg(feature = "tracing")]
const EVENTS_DROPPED: usize = 8;
const ROW: usize = 9;
const TURN: usize = 10;
const BELL: usize = 11;
const HIGHEST: usize = 12;
const FORKED: usize = 13;
const LANES: usize = 16;
/// Words of a lane: id, element, time, and the id of the last that started.
const LANE: usize = 4;
const WORD: usize = size_of::<u64>();

/// A task that a worker had started, and how far into its elements it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) id: u64,
    pub(crate) element: u64,
    /// When the task was started, or its element where those are timed: nanoseconds on [`clock`].
    pub(crate) since: u64,
}

/// Nanoseconds on the clock that all processes of a machine share.
pub(crate) fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Ids of revoked tasks that are kept, beside one for each lane: as many tasks can wait at a worker.
pub(crate) const MOST_WAITING: usize = 512;

/// One worker's ledger. The worker alone writes, but for recalls and revocations, which are the parent's.
#[derive(Debug)]
pub(crate) struct Ledger {
    map: MmapRaw,
    lanes: usize,
    /// Words in front of the data.
    words: usize,
}

impl Ledger {
    /// Memory for a worker that runs up to `lanes` tasks at a time, as the parent makes it.
    pub(crate) fn create(lanes: usize) -> io::Result<(Self, OwnedFd)> {
        let fd = memfd_create(
            "procession-ledger",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        ftruncate(&fd, Self::size(lanes) as u64)?;
        // A worker that could shrink the memory could end the parent with a SIGBUS.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(fd.as_fd(), lanes)?, fd))
    }

    /// The worker's view of the memory that it was given.
    pub(crate) fn open(fd: BorrowedFd<'_>, lanes: usize) -> io::Result<Self> {
        if fstat(fd)?.st_size as u64 != Self::size(lanes) as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the ledger has another size",
            ));
        }
        Self::map(fd, lanes)
    }

    fn map(fd: BorrowedFd<'_>, lanes: usize) -> io::Result<Self> {
        let map = MmapOptions::new()
            .len(Self::size(lanes))
            .map_raw(fd.as_raw_fd())?;
        Ok(Self {
            map,
            lanes,
            words: Self::words(lanes),
        })
    }

    /// Words in front of the data.
    fn words(lanes: usize) -> usize {
        LANES + LANE * lanes + Self::revocable(lanes)
    }

    fn revocable(lanes: usize) -> usize {
        MOST_WAITING + lanes
    }

    fn size(lanes: usize) -> usize {
        Self::words(lanes) * WORD + DATA
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "a word of the ledger's head");
        let words = self.map.as_mut_ptr().cast::<u64>();
        // SAFETY: the index is within the head, which is within the mapping.
        let word = unsafe { words.add(index) };
        // SAFETY: the mapping is page aligned and lives as long as `self`; every access to the head is atomic.
        unsafe { AtomicU64::from_ptr(word) }
    }

    fn data(&self) -> *mut u8 {
        // SAFETY: the data begins within the mapping, by the size that it was made with.
        unsafe { self.map.as_mut_ptr().add(self.words * WORD) }
    }

    /// Worker: the task `id` starts in `lane` now.
    pub(crate) fn start(&self, lane: usize, id: u64, now: u64) {
        self.word(LANES + LANE * lane + 1).store(0, Ordering::Relaxed);
        self.word(LANES + LANE * lane + 2).store(now, Ordering::Relaxed);
        self.word(LANES + LANE * lane + 3).store(id, Ordering::Relaxed);
        // Who sees the id, or the end of it, sees the others. In total order with revocations: see `Inbox::try_next`.
        self.word(LANES + LANE * lane).store(id, Ordering::SeqCst);
    }

    /// Worker: the task in `lane` begins its element `element`, `now` where elements are timed.
    pub(crate) fn element(&self, lane: usize, element: u64, now: Option<u64>) {
        if let Some(now) = now {
            self.word(LANES + LANE * lane + 2).store(now, Ordering::Relaxed);
        }
        // Who sees the element sees its time, or a later one.
        self.word(LANES + LANE * lane + 1)
            .store(element, Ordering::Release);
    }

    /// Worker: nothing runs in `lane`.
    pub(crate) fn finish(&self, lane: usize) {
        self.word(LANES + LANE * lane).store(0, Ordering::Release);
    }

    /// Worker: the task that runs in `lane`, 0 for none.
    pub(crate) fn current(&self, lane: usize) -> u64 {
        self.word(LANES + LANE * lane).load(Ordering::SeqCst)
    }

    /// Worker: the element at which the chunk is that runs in `lane`.
    pub(crate) fn element_in(&self, lane: usize) -> u64 {
        self.word(LANES + LANE * lane + 1).load(Ordering::Relaxed)
    }

    /// Worker: its tasks ask whether they are cancelled.
    pub(crate) fn listen(&self) {
        self.word(LISTENS).store(1, Ordering::Relaxed);
    }

    /// Parent: whether tasks there ask whether they are cancelled.
    pub(crate) fn listens(&self) -> bool {
        self.word(LISTENS).load(Ordering::Relaxed) != 0
    }

    /// Where the number of a process that is forked is put down, and before that its own.
    pub(crate) fn forked(&self) -> &AtomicU64 {
        self.word(FORKED)
    }

    /// Worker: its resident memory in bytes.
    pub(crate) fn set_resident(&self, bytes: u64) {
        self.word(RESIDENT).store(bytes, Ordering::Relaxed);
    }

    /// Parent: the worker's resident memory after the last task, where that is measured.
    pub(crate) fn resident(&self) -> u64 {
        self.word(RESIDENT).load(Ordering::Relaxed)
    }

    /// Worker: the task that starts next is of this row.
    pub(crate) fn set_row(&self, row: u32) {
        self.word(ROW).store(u64::from(row), Ordering::Release);
    }

    /// Parent: the one task that runs, and its row. `None` where there is none, or may be several.
    pub(crate) fn running(&self) -> Option<(Started, u32)> {
        if self.lanes != 1 {
            return None;
        }
        let started = self.started().pop()?;
        let row = self.word(ROW).load(Ordering::Acquire);
        // The row was written before the task was, so that it is the row of a later one if there is a later one.
        fence(Ordering::Acquire);
        let again = self.word(LANES).load(Ordering::Relaxed);
        (again == started.id).then(|| (started, u32::try_from(row).unwrap_or(u32::MAX)))
    }

    /// Worker: so many events more could not be sent.
    #[cfg(feature = "tracing")]
    pub(crate) fn drop_events(&self, count: u64) {
        self.word(EVENTS_DROPPED).fetch_add(count, Ordering::Relaxed);
    }

    /// Parent: events that could not be sent.
    #[cfg(feature = "tracing")]
    pub(crate) fn events_dropped(&self) -> u64 {
        self.word(EVENTS_DROPPED).load(Ordering::Relaxed)
    }

    /// Parent: what has not started is wanted back, and nothing must start before it is given.
    pub(crate) fn recall(&self) {
        self.word(RECALLS).fetch_add(1, Ordering::SeqCst);
    }

    /// Worker: how often it was asked for what has not started.
    pub(crate) fn recalls(&self) -> u64 {
        self.word(RECALLS).load(Ordering::SeqCst)
    }

    /// Parent: the task `id` must not start any more. If it has, it is asked to end.
    pub(crate) fn revoke(&self, id: u64) {
        // Once is enough, and leaves the places to others.
        let first = LANES + LANE * self.lanes;
        let mut places = first..first + Self::revocable(self.lanes);
        if places.any(|index| self.word(index).load(Ordering::Relaxed) == id) {
            return;
        }
        let count = self.word(REVOCATIONS).load(Ordering::Relaxed);
        // What is overwritten has left the worker, for it never holds as many tasks as there are places.
        let place = count as usize % Self::revocable(self.lanes);
        self.word(LANES + LANE * self.lanes + place)
            .store(id, Ordering::Relaxed);
        let highest = self.word(HIGHEST).load(Ordering::Relaxed).max(id);
        self.word(HIGHEST).store(highest, Ordering::Relaxed);
        // Pairs with the load in `is_revoked`: who sees the count sees the id and the highest. In total order, so that it is out of
        // this processor's store buffer when whoever cancels is told so.
        self.word(REVOCATIONS)
            .store(count.wrapping_add(1), Ordering::SeqCst);
    }

    /// Parent: the task `id`, which was revoked, is about to come again. It has left the worker, and the worker has
    /// heard of the revocation.
    pub(crate) fn allow(&self, id: u64) {
        if self.word(REVOCATIONS).load(Ordering::Relaxed) == 0 {
            return;
        }
        let first = LANES + LANE * self.lanes;
        for index in first..first + Self::revocable(self.lanes) {
            if self.word(index).load(Ordering::Relaxed) == id {
                // The frame that brings the task follows, and no task has this number.
                self.word(index).store(0, Ordering::SeqCst);
            }
        }
    }

    /// Worker: how often a task was revoked.
    pub(crate) fn revocations(&self) -> u64 {
        self.word(REVOCATIONS).load(Ordering::SeqCst)
    }

    /// Worker: whether the task `id` must not start, or should end.
    pub(crate) fn is_revoked(&self, id: u64) -> bool {
        let first = LANES + LANE * self.lanes;
        self.revocations() > 0
            // Tasks that have come since are higher, so that most need no search.
            && id <= self.word(HIGHEST).load(Ordering::Relaxed)
            && (first..first + Self::revocable(self.lanes))
                .any(|index| self.word(index).load(Ordering::Relaxed) == id)
    }

    /// Worker: ends now, for it has so many bytes resident, which is over its limit.
    pub(crate) fn out_of_memory(&self, resident: u64) {
        self.word(OVER_LIMIT).store(resident, Ordering::Release);
    }

    /// Parent: what was resident in a worker that ended itself for that; `None` in any other.
    pub(crate) fn resident_at_end(&self) -> Option<u64> {
        Some(self.word(OVER_LIMIT).load(Ordering::Acquire)).filter(|&resident| resident > 0)
    }

    /// Parent: the tasks that had started. Some may be finished; then their replies have come, or are in `unsent`.
    pub(crate) fn started(&self) -> Vec<Started> {
        (0..self.lanes)
            .map(|lane| {
                let id = self.current(lane);
                let element = self.word(LANES + LANE * lane + 1).load(Ordering::Acquire);
                let since = self.word(LANES + LANE * lane + 2).load(Ordering::Relaxed);
                Started { id, element, since }
            })
            .filter(|started| started.id != 0)
            .collect()
    }

    /// Parent: the last task that started in each lane, whether or not it is over. One that has been revoked may be
    /// among them though it never ran.
    pub(crate) fn last_started(&self) -> Vec<u64> {
        let last = |lane| {
            // What has started and is over by now is seen, too.
            self.current(lane);
            self.word(LANES + LANE * lane + 3).load(Ordering::Acquire)
        };
        (0..self.lanes).map(last).filter(|&id| id != 0).collect()
    }

    /// Parent: something has been sent.
    pub(crate) fn ring(&self) {
        self.word(BELL).fetch_add(1, Ordering::Release);
    }

    /// Worker: how often the parent has sent something.
    pub(crate) fn rings(&self) -> u64 {
        self.word(BELL).load(Ordering::Acquire)
    }

    /// The words that say who delivers replies.
    pub(crate) fn delivery(&self) -> Delivery<'_, AtomicU64> {
        Delivery {
            end: self.word(END),
            turn: self.word(TURN),
        }
    }

    /// Worker: the data begins at `position` of the stream from now on. Everything in front of it has been delivered.
    pub(crate) fn set_base(&self, position: u64) {
        // Who sees an end behind it sees this.
        self.word(BASE).store(position, Ordering::Release);
    }

    /// Worker: writes `bytes` at `offset` of the data. They count when the end is moved behind them.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset <= DATA && bytes.len() <= DATA - offset,
            "room in the ledger"
        );
        // SAFETY: the offset is within the data, as just checked.
        let to = unsafe { self.data().add(offset) };
        if bytes.len() <= FEW {
            for (index, &byte) in bytes.iter().enumerate() {
                // SAFETY: within the range, which is within the data.
                let to = unsafe { to.add(index) };
                // SAFETY: as below.
                unsafe { to.write_volatile(byte) };
            }
            return;
        }
        // SAFETY: the range is within the data; `bytes` is not, for nobody else has a reference into the mapping;
        // the parent reads only what is in front of the end, which is behind this range when that has been read.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Worker: the frame that still grows ends at `position`.
    pub(crate) fn grow(&self, position: u64) {
        self.word(GROWN).store(position, Ordering::Release);
    }

    /// Worker: so many bytes of data from `offset` on, to send them from where they lie.
    pub(crate) fn written(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset <= DATA && length <= DATA - offset, "a range of the ledger");
        // SAFETY: the offset is within the data, as just checked.
        let from = unsafe { self.data().add(offset) };
        // SAFETY: within the data; this process is the only writer, and writes only through `&self` methods that
        // the one owner of the reply path calls, never while it holds this slice.
        unsafe { std::slice::from_raw_parts(from, length) }
    }

    /// Parent: appends a copy of the data from `position` to `end`; `false` where those are no positions in it.
    ///
    /// Whatever the memory holds, and while the worker writes there, the result is bounded and is decoded like any
    /// bytes from the wire.
    pub(crate) fn copy(&self, position: u64, end: u64, bytes: &mut Vec<u8>) -> bool {
        let base = self.word(BASE).load(Ordering::Acquire);
        let (Some(from), Some(to)) = (position.checked_sub(base), end.checked_sub(base)) else {
            return false;
        };
        if from > to || to > DATA as u64 {
            return false;
        }
        let (from, length) = (from as usize, (to - from) as usize);
        let before = bytes.len();
        bytes.resize(before + length, 0);
        // SAFETY: within the data, as just checked.
        let data = unsafe { self.data().add(from) };
        // SAFETY: so is the range, and `bytes` has just been made long enough. No reference into the mapping is made; a
        // worker that writes there now breaks the rules, and the bytes are checked like any that it sends.
        unsafe { std::ptr::copy_nonoverlapping(data, bytes[before..].as_mut_ptr(), length) };
        true
    }

    /// Parent: what a worker that is gone had finished and not sent, given how many bytes of its stream have come.
    pub(crate) fn unsent(&self, received: u64) -> Vec<u8> {
        let end = self.word(END).load(Ordering::Acquire).max(received);
        let grown = self.word(GROWN).load(Ordering::Acquire);
        let mut bytes = Vec::new();
        if !self.copy(received, end, &mut bytes) {
            bytes.clear();
            return bytes;
        }
        let whole = bytes.len();
        if grown.checked_sub(end).is_some_and(|grown| grown >= HEADER as u64)
            && self.copy(end, grown, &mut bytes)
        {
            let length = (bytes.len() - whole - HEADER) as u32;
            bytes[whole..whole + 4].copy_from_slice(&length.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_the_same_memory() {
        let (parent, fd) = Ledger::create(2).unwrap();
        let worker = Ledger::open(fd.as_fd(), 2).unwrap();
        worker.start(1, 7, 100);
        worker.element(1, 3, None);
        let started = |element, since| Started {
            id: 7,
            element,
            since,
        };
        assert_eq!(parent.started(), [started(3, 100)]);
        worker.element(1, 4, Some(200));
        assert_eq!(parent.started(), [started(4, 200)]);
        assert_eq!((worker.current(0), worker.current(1)), (0, 7));
        worker.finish(1);
        assert_eq!(parent.started(), []);
        assert!(Ledger::open(fd.as_fd(), 1).is_err());
    }

    #[test]
    fn what_is_revoked_stays_so_until_its_place_is_needed() {
        let (parent, fd) = Ledger::create(2).unwrap();
        let worker = Ledger::open(fd.as_fd(), 2).unwrap();
        assert!(!worker.is_revoked(7));
        parent.revoke(7);
        assert!(worker.is_revoked(7) && !worker.is_revoked(8));
        (100..100 + MOST_WAITING as u64 + 1).for_each(|id| parent.revoke(id));
        assert!(worker.is_revoked(7));
        parent.revoke(8);
        assert!(worker.is_revoked(8) && !worker.is_revoked(7));
        parent.allow(8);
        assert!(worker.is_revoked(100) && !worker.is_revoked(8));
        assert_eq!((worker.started(), worker.unsent(0)), (vec![], vec![]));
    }

    #[test]
    fn what_was_not_sent_is_found() {
        let (parent, fd) = Ledger::create(1).unwrap();
        let worker = Ledger::open(fd.as_fd(), 1).unwrap();
        worker.write(0, b"abcdef");
        assert_eq!(parent.unsent(0), b"");
        worker.delivery().commit(6);
        assert_eq!(parent.unsent(0), b"abcdef");
        assert_eq!(parent.unsent(4), b"ef");
        assert_eq!(parent.unsent(9), b"");
        worker.set_base(6);
        assert_eq!(parent.unsent(6), b"");
        worker.write(0, b"gh");
        worker.delivery().commit(8);
        assert_eq!(parent.unsent(6), b"gh");
        assert_eq!(parent.unsent(5), b"");
    }

    #[test]
    fn a_growing_frame_is_given_its_length() {
        let (parent, fd) = Ledger::create(1).unwrap();
        let worker = Ledger::open(fd.as_fd(), 1).unwrap();
        worker.write(0, &[0xff; 2 + HEADER + 5]);
        worker.delivery().commit(2);
        worker.grow(2 + HEADER as u64 + 5);
        let bytes = parent.unsent(1);
        assert_eq!(bytes.len(), 1 + HEADER + 5);
        assert_eq!(bytes[1..5], 5_u32.to_le_bytes());
        // It is whole now.
        worker.delivery().commit(2 + HEADER as u64 + 5);
        assert_eq!(parent.unsent(1)[1..5], [0xff; 4]);
    }

    #[test]
    fn nonsense_in_the_memory_is_nothing_unsent() {
        let (parent, fd) = Ledger::create(1).unwrap();
        let worker = Ledger::open(fd.as_fd(), 1).unwrap();
        worker.word(END).store(u64::MAX, Ordering::Relaxed);
        assert_eq!(parent.unsent(0), b"");
        worker.word(END).store(8, Ordering::Relaxed);
        for grown in [9, 8 + DATA as u64, u64::MAX] {
            worker.word(GROWN).store(grown, Ordering::Relaxed);
            assert_eq!(parent.unsent(0).len(), 8);
        }
        worker.word(BASE).store(u64::MAX, Ordering::Relaxed);
        assert_eq!(parent.unsent(0), b"");
    }
}
