//! The span that a task was submitted in, kept for what its worker emits.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tracing::Span;
use tracing::dispatcher::{self, Dispatch};
use tracing::level_filters::LevelFilter;

use super::listen::Ears;
use super::output::{Line, OutputStream};
use super::pass::Passer;
use crate::shared::ledger::Ledger;

/// Who submitted a task, as far as `tracing` is concerned.
pub(crate) struct Origin {
    pub(crate) span: Span,
    pub(crate) dispatch: Dispatch,
}

impl Origin {
    pub(crate) fn capture() -> Arc<Self> {
        Arc::new(Self {
            span: Span::current(),
            dispatch: dispatcher::get_default(Clone::clone),
        })
    }
}

/// How verbose workers may be: as the pool was told, and no more than anybody here would hear. `None` where the pool
/// wants nothing.
pub(crate) fn verbosity(wanted: LevelFilter) -> Option<u8> {
    if wanted == LevelFilter::OFF {
        return None;
    }
    let number = |filter: LevelFilter| filter.into_level().map_or(0, level_number);
    Some(number(wanted).min(number(LevelFilter::current())))
}

pub(crate) fn level_number(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    }
}

/// Emits a line that a worker printed.
pub(crate) fn line_event(origin: Option<&Origin>, line: &Line) {
    macro_rules! emit {
        ($level:ident, $parent:expr) => {
            tracing::event!(
                target: "procession::worker",
                parent: $parent,
                tracing::Level::$level,
                worker = line.worker,
                process_name = line.process_name,
                pid = line.pid,
                task = line.task,
                task_name = line.task_name,
                stream = %line.stream,
                dropped = (line.dropped > 0).then_some(line.dropped),
                "{}",
                line.text
            )
        };
    }
    let emit = |parent: Option<tracing::span::Id>| match line.stream {
        OutputStream::Stdout => emit!(INFO, parent.clone()),
        OutputStream::Stderr => emit!(WARN, parent.clone()),
    };
    match origin {
        Some(origin) => dispatcher::with_default(&origin.dispatch, || emit(origin.span.id())),
        None => emit(None),
    }
}

/// What is known of the spans and events of a pool's workers.
pub(crate) struct Events {
    passer: Passer,
    origins: Mutex<HashMap<u64, Arc<Origin>>>,
    /// Tasks that have ended. What they emitted may have to be read yet.
    retired: Mutex<Vec<u64>>,
    /// Dropped here, or in workers that are gone.
    dropped: AtomicU64,
    /// Workers that count for themselves.
    living: Mutex<HashMap<u64, Arc<Ledger>>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            passer: Passer::new(limit),
            origins: Mutex::default(),
            retired: Mutex::default(),
            dropped: AtomicU64::new(0),
            living: Mutex::default(),
        }
    }

    pub(super) fn passer(&self) -> &Passer {
        &self.passer
    }

    pub(super) fn origin(&self, task: u64) -> Option<Arc<Origin>> {
        lock(&self.origins).get(&task).cloned()
    }

    pub(super) fn take_retired(&self) -> Vec<u64> {
        mem::take(&mut *lock(&self.retired))
    }

    pub(super) fn forget(&self, tasks: &[u64]) {
        let mut origins = lock(&self.origins);
        let forgotten: Vec<_> = tasks.iter().filter_map(|task| origins.remove(task)).collect();
        drop(origins);
        // Closing a span calls the subscriber, which is the user's.
        if let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(forgotten))) {
            crate::wire::codec::drop_quietly(payload);
        }
    }

    /// A record did not fit into the buffer here.
    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn begin(&self, process: u64, ledger: &Arc<Ledger>) {
        lock(&self.living).insert(process, Arc::clone(ledger));
    }

    pub(super) fn end(&self, process: u64) {
        let mut living = lock(&self.living);
        if let Some(ledger) = living.remove(&process) {
            self.dropped.fetch_add(ledger.events_dropped(), Ordering::Relaxed);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        let living = lock(&self.living);
        let counted: u64 = living.values().map(|ledger| ledger.events_dropped()).sum();
        self.dropped.load(Ordering::Relaxed).saturating_add(counted)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task whose origin is known. Dropping it has the origin forgotten, when what the task emitted has been read.
pub(crate) struct Ticket {
    ears: Weak<Ears>,
    task: u64,
}

impl Ears {
    /// The task `task` was submitted from `origin`.
    pub(crate) fn announce(self: &Arc<Self>, task: u64, origin: &Arc<Origin>) -> Ticket {
        lock(&self.events.origins).insert(task, Arc::clone(origin));
        Ticket {
            ears: Arc::downgrade(self),
            task,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(ears) = self.ears.upgrade() {
            lock(&ears.events.retired).push(self.task);
            ears.wake();
        }
    }
}
