//! Large buffers, kept for the next message.
//!
//! An allocator gives large memory back to the system as soon as it is freed, and the next message of a mebibyte then
//! pays for fresh pages what its bytes cost several times over. Each thread keeps a few buffers instead, of a bounded
//! size. Still larger ones the process keeps, for a short while, and only if somebody lets go of them in time.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::codec::drop_quietly;
use crate::shared::pages;

/// Smaller buffers are the allocator's business, which shrinks a heap for less than a few of these.
const SMALLEST: usize = 16 * 1024;
/// What a thread keeps must not be much beside what a process has anyway.
const LARGEST: usize = 4 << 20;
/// Buffers that a thread keeps.
const MOST: usize = 2;
/// What the process keeps of larger buffers, all together.
const MOST_LARGE: usize = 256 << 20;
/// How long it keeps one that nobody takes.
const KEEPS: Duration = Duration::from_millis(100);
/// From here on bytes that a user is given come back. Below, the allocator mostly keeps them warm itself.
const LENT: usize = 16 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

static LARGE: Mutex<Large> = Mutex::new(Large {
    begin: None,
    is_watched: false,
    was_used: false,
    buffers: Vec::new(),
});
/// Whether somebody should call [`shed`].
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

/// The process's buffers.
struct Large {
    /// Called when there is something to let go of in time. Without it nothing is kept.
    begin: Option<fn()>,
    is_watched: bool,
    /// Since somebody looked last.
    was_used: bool,
    /// With the time at which each was given, in that order.
    buffers: Vec<(Vec<u8>, Instant)>,
}

impl Large {
    fn lock() -> MutexGuard<'static, Self> {
        LARGE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> usize {
        self.buffers.iter().map(|(buffer, _)| buffer.capacity()).sum()
    }
}

/// Has this process keep larger buffers too. `begin` is called when it begins to: from then on somebody must call [`shed`]
/// when that asks for it.
pub(crate) fn keep_more(begin: fn()) {
    Large::lock().begin = Some(begin);
}

/// Gives the process's buffers that were not used for a while back to the system. `Some` says when to call it again.
#[inline]
pub(crate) fn shed() -> Option<Duration> {
    // Who has given one sees it at once, and whoever else watches was told.
    if IS_WATCHED.load(Ordering::Relaxed) {
        shed_large()
    } else {
        None
    }
}

#[cold]
fn shed_large() -> Option<Duration> {
    let now = Instant::now();
    let mut large = Large::lock();
    let is_old = |since: &Instant| now.saturating_duration_since(*since) >= KEEPS;
    let old = large
        .buffers
        .iter()
        .take_while(|(_, since)| is_old(since))
        .count();
    let old: Vec<_> = large.buffers.drain(..old).collect();
    let was_used = std::mem::take(&mut large.was_used);
    let next = match large.buffers.first() {
        Some((_, since)) => Some(KEEPS.saturating_sub(now.saturating_duration_since(*since))),
        // They may come back any time.
        None if was_used => Some(KEEPS),
        None => None,
    };
    large.is_watched = next.is_some();
    IS_WATCHED.store(large.is_watched, Ordering::Relaxed);
    // Giving it back takes its time.
    drop(large);
    drop(old);
    next
}

/// A buffer with room for `capacity` bytes, if the process has kept one that is not much larger.
pub(crate) fn take_large(capacity: usize) -> Option<Vec<u8>> {
    if capacity <= LARGEST {
        return None;
    }
    let mut large = Large::lock();
    // Who takes it may keep it.
    let fits = capacity..=capacity.saturating_add(capacity / 4);
    let index = large
        .buffers
        .iter()
        .rposition(|(buffer, _)| fits.contains(&buffer.capacity()))?;
    Some(large.buffers.remove(index).0)
}

fn give_large(buffer: Vec<u8>) {
    let mut large = Large::lock();
    let Some(begin) = large.begin.filter(|_| buffer.capacity() <= MOST_LARGE) else {
        return;
    };
    let mut dropped = Vec::new();
    while large.bytes() + buffer.capacity() > MOST_LARGE {
        dropped.push(large.buffers.remove(0));
    }
    large.buffers.push((buffer, Instant::now()));
    large.was_used = true;
    let begins = !std::mem::replace(&mut large.is_watched, true);
    IS_WATCHED.store(true, Ordering::Relaxed);
    drop(large);
    drop(dropped);
    if begins {
        begin();
    }
}

/// A user's bytes, whose memory comes back when the last who has them drops them.
struct Lent(Vec<u8>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}

/// Bytes for a user.
pub(crate) fn lend(buffer: Vec<u8>) -> Bytes {
    if buffer.capacity() < LENT || Large::lock().begin.is_none() {
        return buffer.into();
    }
    Bytes::from_owner(Lent(buffer))
}

/// Makes room for `more` bytes behind what `buffer` holds.
#[inline]
pub(crate) fn reserve(buffer: &mut Vec<u8>, more: usize) {
    let needed = buffer.len() + more;
    if needed > buffer.capacity() && needed >= SMALLEST {
        grow(buffer, needed);
    }
}

#[cold]
fn grow(buffer: &mut Vec<u8>, needed: usize) {
    // At least twice as large, for many small pieces may follow each other.
    let mut larger = take(needed.max(2 * buffer.capacity()));
    larger.extend_from_slice(buffer);
    give(std::mem::replace(buffer, larger));
}

/// An empty buffer with room for `capacity` bytes, or for as many as one that was kept has, if that is enough to begin
/// with.
pub(crate) fn take(capacity: usize) -> Vec<u8> {
    if capacity > LARGEST {
        if let Some(buffer) = take_large(capacity) {
            return buffer;
        }
    } else if capacity >= SMALLEST
        && let Ok(Some(buffer)) = KEPT.try_with(|kept| {
            let mut kept = kept.try_borrow_mut().ok()?;
            // Not a much larger one: who takes it may keep it.
            let fits = capacity..=capacity.saturating_mul(2);
            let index = kept.iter().position(|buffer| fits.contains(&buffer.capacity()))?;
            Some(kept.swap_remove(index))
        })
    {
        return buffer;
    }
    let mut buffer = Vec::with_capacity(capacity);
    pages::prefer_huge(&mut buffer);
    buffer
}

/// Keeps a buffer that is not needed any more, if it is worth it.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() < SMALLEST {
        return;
    }
    buffer.clear();
    if buffer.capacity() > LARGEST {
        return give_large(buffer);
    }
    // A thread that ends keeps nothing.
    let given = KEPT.try_with(|kept| {
        let Ok(mut kept) = kept.try_borrow_mut() else {
            return;
        };
        if kept.len() < MOST {
            kept.push(buffer);
        } else if let Some(smallest) = kept.iter_mut().min_by_key(|kept| kept.capacity())
            && smallest.capacity() < buffer.capacity()
        {
            *smallest = buffer;
        }
    });
    given.ok();
}

/// Keeps the memory of bytes that nobody else has, if it is worth it.
pub(crate) fn give_bytes(mut bytes: Bytes) {
    if bytes.len() >= SMALLEST && bytes.is_unique() {
        // What is left is moved to the front.
        bytes.truncate(1);
        give(bytes.into());
    } else if !bytes.is_empty() {
        // Their owner may be the user's, and its Drop may panic.
        drop_quietly(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_and_others_do_not() {
        give(Vec::with_capacity(SMALLEST - 1));
        give(Vec::with_capacity(LARGEST + 1));
        assert_eq!(KEPT.with_borrow(Vec::len), 0);
        for capacity in [SMALLEST, 2 * SMALLEST, 3 * SMALLEST] {
            give(vec![1; capacity]);
        }
        let taken = take(3 * SMALLEST);
        assert!(taken.is_empty() && taken.capacity() == 3 * SMALLEST);
        assert_eq!(take(10).capacity(), 10);
        assert_eq!(take(SMALLEST).capacity(), 2 * SMALLEST);
        assert_eq!(KEPT.with_borrow(Vec::len), 0);
    }

    #[test]
    fn larger_ones_come_back_until_they_are_shed() {
        static BEGUN: AtomicBool = AtomicBool::new(false);
        give(Vec::with_capacity(LENT));
        assert!(take_large(LENT).is_none() && shed().is_none());
        keep_more(|| BEGUN.store(true, Ordering::Relaxed));
        give(Vec::with_capacity(MOST_LARGE + 1));
        assert!(!BEGUN.load(Ordering::Relaxed));

        let bytes = lend(vec![1; LENT]);
        let place = bytes.as_ptr();
        drop(bytes.clone());
        assert!(take_large(LENT).is_none());
        drop(bytes);
        assert!(BEGUN.load(Ordering::Relaxed));
        assert!(take_large(LENT / 2).is_none() && take_large(LENT + 1).is_none());
        let again = take(LENT);
        assert!(again.is_empty() && again.as_ptr() == place);

        for capacity in [MOST_LARGE / 2, MOST_LARGE / 2 - 1, MOST_LARGE / 2 + 1] {
            give(Vec::with_capacity(capacity));
        }
        assert!(take_large(MOST_LARGE / 2 - 1).is_some_and(|buffer| buffer.capacity() == MOST_LARGE / 2 + 1));
        // The oldest was too much.
        assert!(take_large(MOST_LARGE / 2 - 1).is_some_and(|buffer| buffer.capacity() == MOST_LARGE / 2 - 1));
        assert!(take_large(MOST_LARGE / 2 - 1).is_none());

        give(again);
        while let Some(left) = shed() {
            assert!(left <= KEEPS);
            std::thread::yield_now();
        }
        assert!(take_large(LENT).is_none() && shed().is_none());
    }

    #[test]
    fn many_small_pieces_make_room_a_few_times() {
        let (mut buffer, mut moves) = (Vec::new(), 0);
        for _ in 0..400_000 {
            let before = buffer.capacity();
            reserve(&mut buffer, 3);
            moves += usize::from(buffer.capacity() > before && before >= SMALLEST);
            buffer.extend_from_slice(&[1; 3]);
        }
        assert!(moves <= 8, "{moves}");
    }

    #[test]
    fn making_room_keeps_what_is_there() {
        let mut buffer = vec![1, 2, 3];
        reserve(&mut buffer, SMALLEST);
        assert_eq!(buffer, [1, 2, 3]);
        assert!(buffer.capacity() >= SMALLEST + 3);
    }
}
