//! What can be seen of a pool from outside.

use std::time::Duration;

use super::state::WorkerState;
use crate::memory::MemoryLimit;

/// A snapshot of a pool, from [`Pool::stats`](crate::Pool::stats).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks that wait, in the queue or at a worker that runs another one.
    pub queued: usize,
    /// Tasks that wait for room in a queue that is at one of its [bounds](crate::PoolBuilder::queue_capacity), and
    /// services that do.
    pub waiting_for_room: usize,
    /// Tasks that workers run.
    pub in_flight: usize,
    /// Tasks that workers have answered, with a value or a failure. A chunk of a map is one task.
    pub tasks_done: u64,
    /// Starts of workers in place of others, those that failed included.
    pub restarts: u64,
    /// How long answered tasks took from the encoding of their argument to their answer; `None` before the first.
    pub latency: Option<Latency>,
    /// Lines that workers printed and [where they go](crate::Output) did not take in time.
    pub lines_dropped: u64,
    /// Spans, events and later values of spans that workers emitted and that were not emitted again here, for want of
    /// room. 0 without the feature `tracing`.
    pub events_dropped: u64,
    /// The workers, by number.
    pub workers: Vec<WorkerStats>,
}

/// A worker in a [`Stats`] or from [`Pool::workers`](crate::Pool::workers).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its number, which its replacements keep.
    pub id: usize,
    /// The process, if one runs.
    pub pid: Option<u32>,
    /// What it is about.
    pub status: WorkerStatus,
    /// Tasks that this worker and its predecessors have answered.
    pub tasks_done: u64,
    /// How often another was started in its place, failed starts included.
    pub restarts: u64,
    /// Resident memory of the process in bytes, where the system tells.
    pub resident_memory: Option<u64>,
    /// The [`memory_limit`](crate::PoolBuilder::memory_limit) of the process and how it is kept, if one runs and has
    /// one.
    pub memory_limit: Option<MemoryLimit>,
}

/// What a worker is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WorkerStatus {
    /// Runs one or more tasks.
    Busy,
    /// Waits for a task.
    Idle,
    /// Runs its last tasks; another takes its place.
    Retiring,
    /// Being started, or waiting for the end of the one that it replaces.
    Starting,
    /// Is about to end.
    Ending,
    /// Has ended for good.
    Gone,
}

impl WorkerStatus {
    pub(crate) fn new(state: WorkerState, in_flight: usize) -> Self {
        match state {
            WorkerState::Starting | WorkerState::Standby => Self::Starting,
            WorkerState::Retiring => Self::Retiring,
            WorkerState::Ready if in_flight == 0 => Self::Idle,
            WorkerState::Ready => Self::Busy,
            WorkerState::Ending => Self::Ending,
            WorkerState::Gone => Self::Gone,
        }
    }
}

/// How long tasks took, exact to an eighth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// Half of the tasks took at most this long.
    pub p50: Duration,
    /// Nine of ten tasks took at most this long.
    pub p90: Duration,
    /// 99 of 100 tasks took at most this long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Eight buckets for every power of two of nanoseconds.
const STEPS: usize = 8;

/// A histogram of latencies.
#[derive(Debug)]
pub(crate) struct Latencies {
    buckets: [u64; STEPS * 64],
    count: u64,
    max: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: [0; STEPS * 64],
            count: 0,
            max: Duration::ZERO,
        }
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos())
            .unwrap_or(u64::MAX)
            .max(STEPS as u64);
        let power = nanoseconds.ilog2() as usize;
        let step = (nanoseconds >> (power - 3)) as usize - STEPS;
        self.buckets[power * STEPS + step] += 1;
        self.count += 1;
        self.max = self.max.max(latency);
    }

    pub(crate) fn summary(&self) -> Option<Latency> {
        if self.count == 0 {
            return None;
        }
        let percentile = |percent: u64| {
            let mut left = (self.count * percent).div_ceil(100);
            for (index, &bucket) in self.buckets.iter().enumerate() {
                if left <= bucket {
                    let (power, step) = (index / STEPS, index % STEPS);
                    let end = (STEPS + step + 1) as u128 * (1_u128 << power) / STEPS as u128;
                    return Duration::from_nanos(u64::try_from(end).unwrap_or(u64::MAX)).min(self.max);
                }
                left -= bucket;
            }
            self.max
        };
        Some(Latency {
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: self.max,
        })
    }
}

/// Resident memory of a process in bytes: the second field of `/proc/PID/statm`, in pages.
pub(crate) fn resident_memory(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_an_eighth() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), None);
        for microseconds in 1..=1000 {
            latencies.record(Duration::from_micros(microseconds));
        }
        let Latency { p50, p90, p99, max } = latencies.summary().unwrap();
        for (found, exact) in [(p50, 500), (p90, 900), (p99, 990)] {
            let exact = Duration::from_micros(exact);
            assert!(
                found >= exact && found <= exact + exact / 7,
                "{found:?} for {exact:?}"
            );
        }
        assert_eq!(max, Duration::from_millis(1));
    }

    #[test]
    fn extremes_have_a_bucket() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::MAX);
        assert_eq!(latencies.summary().unwrap().max, Duration::MAX);
    }
}
