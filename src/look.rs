//! Looking again, for a bounded while, before sleeping.
//!
//! Waking a core that sleeps costs more than a whole call into another process. Who expects something soon looks for it
//! for a while instead; and who has looked in vain looks less often, so that what comes rarely costs nothing.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Looks between two readings of the clock, which costs as much as some of them.
const GLANCES: u32 = 32;
/// When so much time is missing between two readings, somebody else had the processor, and needs it more.
const CROWDED: Duration = Duration::from_micros(20);
/// After so many misses in a row, one of 64 times is used.
const RAREST: u32 = 6;

/// How long to look, and whether it has been worth it.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    bound: Duration,
    /// Looks in vain, one after the other.
    misses: u32,
    /// Times that will not be used.
    skip: u32,
}

impl Looks {
    /// `bound` is the longest look; zero is none at all.
    pub(crate) fn new(bound: Duration) -> Self {
        Self {
            bound,
            misses: 0,
            skip: 0,
        }
    }

    /// Whether to look this time.
    pub(crate) fn begin(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        !self.bound.is_zero()
    }

    /// Looks until `glance` finds something, or time is up.
    pub(crate) fn look<T>(&mut self, mut glance: impl FnMut() -> Option<T>) -> Option<T> {
        let start = Instant::now();
        let mut last = start;
        loop {
            for _ in 0..GLANCES {
                if let Some(found) = glance() {
                    self.misses = 0;
                    return Some(found);
                }
                spin_loop();
            }
            // Whoever else is ready to run here goes first: it may be the one who is waited for.
            rustix::thread::sched_yield();
            let now = Instant::now();
            if now - last > CROWDED {
                // That says little of what is waited for.
                self.misses = self.misses.max(1);
                break;
            }
            if now - start > self.bound {
                self.misses = (self.misses + 1).min(RAREST);
                break;
            }
            last = now;
        }
        self.skip = (1 << self.misses) - 1;
        // It may have come while somebody else had the processor.
        glance()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn used(looks: &mut Looks, times: usize) -> usize {
        (0..times)
            .filter(|_| looks.begin() && looks.look(|| None::<()>).is_none())
            .count()
    }

    #[test]
    fn what_never_comes_is_looked_for_ever_more_rarely() {
        let mut looks = Looks::new(Duration::from_nanos(1));
        assert_eq!(used(&mut looks, 1 + 1 + 1 + 3 + 1 + 7), 3);
        assert!(used(&mut looks, 6400) <= 105);
    }

    #[test]
    fn what_comes_is_found_and_makes_up_for_what_did_not() {
        let mut looks = Looks::new(Duration::from_nanos(1));
        used(&mut looks, 1000);
        while !looks.begin() {}
        let mut glances = 0;
        let found = looks.look(|| {
            glances += 1;
            (glances > 3).then_some(glances)
        });
        assert_eq!(found, Some(4));
        assert!(looks.begin() && looks.begin());
    }

    #[test]
    fn nothing_is_looked_for_in_no_time() {
        let mut looks = Looks::new(Duration::ZERO);
        assert_eq!(used(&mut looks, 100), 0);
        assert!(Looks::new(LONG).begin());
    }
}
