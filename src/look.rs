//! Looking again, for a bounded while, before sleeping.
//!
//! Waking a core that sleeps costs more than a whole call into another process. Who expects something soon looks for it
//! for a while instead; and who has looked in vain looks less often, so that what comes rarely costs nothing. Where
//! others compute on the same processor, nobody looks for a while: who has used up a turn by looking waits the longer for
//! the next.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// Looks between two readings of the clock, which costs as much as some of them.
const GLANCES: u32 = 32;
/// When so much time is missing between two readings, somebody else had the processor, and needs it more.
const CROWDED: Duration = Duration::from_micros(20);
/// When so much is missing, somebody else was given a turn of the processor and used it up: there is work for it.
const TAKEN: Duration = Duration::from_micros(500);
/// After so many misses in a row, one of 64 times is used.
const RAREST: u32 = 6;
/// How long nobody looks when the processor was taken. It doubles when that happens again within so many times the rest.
const REST: Duration = Duration::from_millis(4);
const LONGEST_REST: Duration = Duration::from_millis(256);
const AGAIN: u32 = 16;

/// How long to look, and whether it has been worth it.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    bound: Duration,
    /// Looks in vain, one after the other.
    misses: u32,
    /// Times that will not be used.
    skip: u32,
    /// The processor was taken, and is not asked for again so soon.
    rests: bool,
    /// The end of the last rest, and how long it was.
    rest: Option<(Instant, Duration)>,
}

impl Looks {
    /// `bound` is the longest look; zero is none at all.
    pub(crate) fn new(bound: Duration) -> Self {
        Self {
            bound,
            misses: 0,
            skip: 0,
            rests: false,
            rest: None,
        }
    }

    /// Whether to look this time.
    pub(crate) fn begin(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.rests && self.rest.is_some_and(|(until, _)| Instant::now() < until) {
            return false;
        }
        self.rests = false;
        !self.bound.is_zero()
    }

    /// Nothing has come in time.
    fn miss(&mut self) {
        self.misses = (self.misses + 1).min(RAREST);
        self.skip = (1 << self.misses) - 1;
    }

    /// The processor was taken.
    fn rest(&mut self, now: Instant) {
        let time = match self.rest {
            Some((until, time)) if now < until + AGAIN * time => (2 * time).min(LONGEST_REST),
            _ => REST,
        };
        self.rests = true;
        self.rest = Some((now + time, time));
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
                self.skip = (1 << self.misses) - 1;
                if now - last > TAKEN {
                    self.rest(now);
                }
                break;
            }
            if now - start > self.bound {
                self.miss();
                break;
            }
            last = now;
        }
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
            .filter(|_| {
                let begins = looks.begin();
                if begins {
                    looks.miss();
                }
                begins
            })
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
    fn who_finds_the_processor_taken_again_and_again_rests_ever_longer() {
        let mut looks = Looks::new(LONG);
        let mut now = Instant::now() + LONG;
        for rest in [4, 8, 16, 32, 64, 128, 256, 256].map(Duration::from_millis) {
            looks.rest(now);
            assert!(!looks.begin());
            now += rest;
            assert_eq!(looks.rest, Some((now, rest)));
            now += 15 * rest;
        }
        now += 16 * LONGEST_REST;
        looks.rest(now);
        assert_eq!(looks.rest, Some((now + REST, REST)));
    }

    #[test]
    fn a_rest_ends() {
        let mut looks = Looks::new(LONG);
        looks.rest(Instant::now() - REST);
        assert!(looks.begin() && looks.begin());
    }

    #[test]
    fn nothing_is_looked_for_in_no_time() {
        let mut looks = Looks::new(Duration::ZERO);
        assert_eq!(used(&mut looks, 100), 0);
        assert!(Looks::new(LONG).begin());
    }
}
