//! Large buffers, kept for the next message.
//!
//! An allocator gives large memory back to the system as soon as it is freed, and the next message of a mebibyte then
//! pays for fresh pages what its bytes cost several times over. Each thread keeps a few buffers instead, of a bounded
//! size. The thread that runs a worker's tasks keeps larger ones while it has something to do.

use std::cell::{Cell, RefCell};

use crate::shared::pages;

/// Smaller buffers are the allocator's business.
const SMALLEST: usize = 64 * 1024;
/// Larger buffers are given back: what is kept must not be much beside what a process has anyway.
const LARGEST: usize = 4 << 20;
/// What is kept where more is kept, until nothing has been done for a while.
const LARGEST_WHILE_BUSY: usize = 33 << 20;
/// Buffers that a thread keeps.
const MOST: usize = 2;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static LONGEST: Cell<usize> = const { Cell::new(LARGEST) };
}

/// Has this thread keep larger buffers too, if it calls [`shed`] when it has had nothing to do for a while.
pub(crate) fn keep_more() {
    LONGEST.set(LARGEST_WHILE_BUSY);
}

/// Whether this thread keeps some that it should not keep for long.
pub(crate) fn has_more() -> bool {
    KEPT.with_borrow(|kept| kept.iter().any(|buffer| buffer.capacity() > LARGEST))
}

/// Gives those back to the system.
pub(crate) fn shed() {
    KEPT.with_borrow_mut(|kept| kept.retain(|buffer| buffer.capacity() <= LARGEST));
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
    if capacity >= SMALLEST
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
    let longest = LONGEST.try_with(Cell::get).unwrap_or(LARGEST);
    if !(SMALLEST..=longest).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
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
    fn more_is_kept_until_it_is_shed() {
        keep_more();
        give(Vec::with_capacity(LARGEST_WHILE_BUSY + 1));
        assert!(!has_more());
        give(Vec::with_capacity(LARGEST));
        assert!(!has_more());
        give(Vec::with_capacity(LARGEST + 1));
        assert!(has_more());
        shed();
        assert!(!has_more());
        assert_eq!(KEPT.with_borrow(Vec::len), 1);
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
        assert!(moves <= 6, "{moves}");
    }

    #[test]
    fn making_room_keeps_what_is_there() {
        let mut buffer = vec![1, 2, 3];
        reserve(&mut buffer, SMALLEST);
        assert_eq!(buffer, [1, 2, 3]);
        assert!(buffer.capacity() >= SMALLEST + 3);
    }
}
