//! The worker processes there are, as the pools' hooks tell, and how many there have been.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procession::{Output, PoolBuilder};

use crate::random::Random;
use crate::starts;

/// What everything that was started here carries in its environment.
pub(crate) const MARK: &str = "CHAOS_MARK";

#[derive(Debug, Default)]
pub(crate) struct Staff {
    pids: Mutex<BTreeSet<u32>>,
    pub(crate) started: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) lines: AtomicU64,
}

impl Staff {
    fn pids(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.pids().len()
    }

    pub(crate) fn pick(&self, random: &mut Random) -> Option<u32> {
        let pids: Vec<u32> = self.pids().iter().copied().collect();
        random.pick(&pids).copied()
    }

    /// Has a pool's workers entered here, and able to count their tasks' starts.
    pub(crate) fn watch(self: &Arc<Self>, builder: PoolBuilder, starts_path: &str) -> PoolBuilder {
        let (starting, ending) = (Arc::clone(self), Arc::clone(self));
        let (out, err) = (Arc::clone(self), Arc::clone(self));
        builder
            .env(MARK, mark())
            .env(starts::VARIABLE, starts_path)
            .stdout(Output::lines(move |_| {
                out.lines.fetch_add(1, Relaxed);
            }))
            .stderr(Output::lines(move |_| {
                err.lines.fetch_add(1, Relaxed);
            }))
            .on_worker_start(move |event| {
                starting.pids().insert(event.pid);
                starting.started.fetch_add(1, Relaxed);
            })
            .on_worker_exit(move |event| {
                ending.pids().remove(&event.pid);
                ending.ended.fetch_add(1, Relaxed);
            })
    }
}

pub(crate) fn mark() -> String {
    format!("chaos-{}", std::process::id())
}
