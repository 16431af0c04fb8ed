//! What is to be done at a certain time: one queue for each pool, which its keeper waits for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Entries by time. `T` says what is due.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    entries: Mutex<Entries<T>>,
    /// Told when something is due earlier than anything before.
    earlier: Notify,
}

#[derive(Debug)]
struct Entries<T> {
    by_time: BTreeMap<Key, T>,
    next: u64,
}

/// When an entry is due, and a number that tells it from others of the same time.
type Key = (Instant, u64);

impl<T> Default for Timers<T> {
    fn default() -> Self {
        let entries = Entries {
            by_time: BTreeMap::new(),
            next: 0,
        };
        Self {
            entries: Mutex::new(entries),
            earlier: Notify::new(),
        }
    }
}

impl<T> Timers<T> {
    /// Adds an entry that stays until it is due.
    pub(crate) fn insert(&self, at: Instant, due: T) {
        self.add(at, due);
    }

    /// Adds an entry that is gone when the result is dropped.
    pub(crate) fn register(self: &Arc<Self>, at: Instant, due: T) -> Registered<T> {
        let key = self.add(at, due);
        Registered {
            timers: Arc::downgrade(self),
            key,
        }
    }

    fn add(&self, at: Instant, due: T) -> Key {
        let mut entries = self.lock();
        let key = (at, entries.next);
        entries.next += 1;
        let is_earliest = entries
            .by_time
            .first_key_value()
            .is_none_or(|(first, _)| key < *first);
        entries.by_time.insert(key, due);
        drop(entries);
        if is_earliest {
            self.earlier.notify_one();
        }
        key
    }

    /// What is due by `now`, and otherwise when the next entry will be.
    pub(crate) fn pop(&self, now: Instant) -> Result<T, Option<Instant>> {
        let mut entries = self.lock();
        match entries.by_time.first_entry() {
            Some(entry) if entry.key().0 <= now => Ok(entry.remove()),
            Some(entry) => Err(Some(entry.key().0)),
            None => Err(None),
        }
    }

    /// Waits until something may be due. Must run on a runtime with timers.
    pub(crate) async fn wait(&self) {
        let earlier = self.earlier.notified();
        match self.pop_time() {
            Some(at) => {
                tokio::select! {
                    () = earlier => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                }
            }
            None => earlier.await,
        }
    }

    fn pop_time(&self) -> Option<Instant> {
        self.lock().by_time.first_key_value().map(|(key, _)| key.0)
    }

    fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry that goes with this.
pub(crate) struct Registered<T> {
    timers: Weak<Timers<T>>,
    key: Key,
}

impl<T> fmt::Debug for Registered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("key", &self.key).finish()
    }
}

impl<T> Drop for Registered<T> {
    fn drop(&mut self) {
        if let Some(timers) = self.timers.upgrade() {
            let entry = timers.lock().by_time.remove(&self.key);
            // Without the lock, for what is dropped here may hold other entries.
            drop(entry);
        }
    }
}

/// `duration` from now; one that is too long for the clock is as good as a century.
pub(crate) fn after(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration)
        .unwrap_or(now + Duration::from_secs(100 * 365 * 24 * 3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_of_time_and_then_of_insertion() {
        let timers = Arc::new(Timers::default());
        let now = Instant::now();
        let second = Duration::from_secs(1);
        timers.insert(now + 2 * second, 'd');
        timers.insert(now, 'a');
        timers.insert(now, 'b');
        let dropped = timers.register(now + second, 'x');
        let kept = timers.register(now + second, 'c');
        drop(dropped);
        assert_eq!(timers.pop(now), Ok('a'));
        assert_eq!(timers.pop(now), Ok('b'));
        assert_eq!(timers.pop(now), Err(Some(now + second)));
        assert_eq!(timers.pop(now + 2 * second), Ok('c'));
        assert_eq!(timers.pop(now + 2 * second), Ok('d'));
        assert_eq!(timers.pop(now + 2 * second), Err(None));
        drop(kept);
    }

    #[test]
    fn a_time_beyond_the_clock_is_far_away() {
        assert!(after(Duration::MAX) > Instant::now() + Duration::from_secs(1 << 30));
    }
}
