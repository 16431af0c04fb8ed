//! A way past a lock for the one thread that would take it for every element of a chunk.
//!
//! Tiny tasks end faster than a lock is taken and given back. The thread that runs them goes past it instead: it says
//! that it is inside, looks whether anybody else wants in, and stays if not. Who does want in says so first and then
//! waits until the other is out. Between the two steps of either side stands a barrier, which the rare side pays for
//! both: the kernel puts one into every thread of the process that runs at that moment.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence, fence};
use std::thread;

use rustix::thread::{MembarrierCommand, membarrier};

thread_local! {
    static IS_FAVOURED: Cell<bool> = const { Cell::new(false) };
}

#[derive(Debug)]
pub(super) struct Bias {
    /// The favoured thread is inside.
    is_inside: AtomicBool,
    /// Other threads that want in, or are.
    others: AtomicUsize,
    /// The kernel has barriers for all threads at once.
    has_barriers: bool,
}

impl Bias {
    /// Favours the thread that calls this.
    pub(super) fn new() -> Self {
        IS_FAVOURED.set(true);
        Self {
            is_inside: AtomicBool::new(false),
            others: AtomicUsize::new(0),
            has_barriers: membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok(),
        }
    }

    /// The favoured thread: goes in, and must [`leave`](Self::leave) soon; `false` when it has to take the lock.
    #[inline]
    pub(super) fn enter(&self) -> bool {
        self.is_inside.store(true, Ordering::Relaxed);
        if self.has_barriers {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
        let is_alone = self.others.load(Ordering::Acquire) == 0;
        if !is_alone {
            self.leave();
        }
        is_alone
    }

    #[inline]
    pub(super) fn leave(&self) {
        self.is_inside.store(false, Ordering::Release);
    }

    /// Who has the lock: keeps the favoured thread out, unless this is that thread.
    pub(super) fn keep_out(&self) -> Option<KeptOut<'_>> {
        if IS_FAVOURED.get() {
            return None;
        }
        self.others.fetch_add(1, Ordering::SeqCst);
        let kept_out = KeptOut(self);
        fence(Ordering::SeqCst);
        // Registered, it does not fail.
        if self.has_barriers {
            membarrier(MembarrierCommand::PrivateExpedited).ok();
        }
        // It is inside for as long as a few bytes take to be copied.
        while self.is_inside.load(Ordering::Acquire) {
            thread::yield_now();
        }
        Some(kept_out)
    }
}

/// While this is there the favoured thread is out.
#[derive(Debug)]
pub(super) struct KeptOut<'a>(&'a Bias);

impl Drop for KeptOut<'_> {
    fn drop(&mut self) {
        self.0.others.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn nobody_is_inside_beside_another() {
        for has_barriers in [true, false] {
            let mut bias = Bias::new();
            bias.has_barriers &= has_barriers;
            let (bias, lock) = (&bias, &Mutex::new(()));
            // What is inside: two numbers that are the same whenever somebody looks, and are not changed in one step.
            let numbers = &[AtomicU64::new(0), AtomicU64::new(0)];
            let change = || {
                let seen = numbers.each_ref().map(|number| number.load(Ordering::Relaxed));
                assert_eq!(seen[0], seen[1]);
                numbers[0].store(seen[0] + 1, Ordering::Relaxed);
                numbers[1].store(seen[1] + 1, Ordering::Relaxed);
            };
            let done = &AtomicBool::new(false);
            let rare = thread::scope(|scope| {
                let rare = scope.spawn(move || {
                    let mut times = 0;
                    while !done.load(Ordering::Relaxed) {
                        let _locked = lock.lock().unwrap();
                        let kept_out = bias.keep_out();
                        assert!(kept_out.is_some());
                        change();
                        times += 1;
                    }
                    times
                });
                for _ in 0..300_000 {
                    if bias.enter() {
                        change();
                        bias.leave();
                    } else {
                        let _locked = lock.lock().unwrap();
                        assert!(bias.keep_out().is_none());
                        change();
                    }
                }
                done.store(true, Ordering::Relaxed);
                rare.join().unwrap()
            });
            assert_eq!(numbers[0].load(Ordering::Relaxed), 300_000 + rare);
        }
    }
}
