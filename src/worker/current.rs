//! The task that runs here, for what it can be asked.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::context::{Context, TraceContext};

/// A task that came with company.
#[derive(Debug)]
pub(super) struct Current {
    #[cfg_attr(
        not(feature = "tracing"),
        expect(dead_code, reason = "events are sent with it")
    )]
    pub(super) id: u64,
    context: Context,
}

thread_local! {
    /// Of several tasks at a time: the one that is being polled on this thread.
    static POLLED: RefCell<Option<Arc<Current>>> = const { RefCell::new(None) };
}

/// The one task at a time, for all threads.
static ONLY: Mutex<Option<Arc<Current>>> = Mutex::new(None);
/// Whether there may be one.
static HAS_ONLY: AtomicBool = AtomicBool::new(false);

/// The trace context that came with the task that runs here. `None` where it has none, and in a process that is no
/// worker.
///
/// In a worker that runs one task at a time, it is known on every thread. Where a worker runs
/// [several](crate::PoolBuilder::tasks_per_worker), it is known on the thread that polls the task, and not in what
/// the task spawns.
#[must_use]
pub fn trace_context() -> Option<TraceContext> {
    get().and_then(|current| current.context.trace.clone())
}

/// The task that this thread works for.
pub(super) fn get() -> Option<Arc<Current>> {
    // A thread whose locals are torn down polls nothing.
    let polled = POLLED.try_with(|polled| polled.borrow().clone()).ok().flatten();
    if polled.is_some() || !HAS_ONLY.load(Ordering::Acquire) {
        return polled;
    }
    ONLY.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The one task at a time that starts now has the number `id`.
pub(super) fn set_only(id: u64, context: Option<Context>) {
    if context.is_none() && !HAS_ONLY.load(Ordering::Relaxed) {
        return;
    }
    #[cfg(feature = "tracing")]
    listen(context.as_ref());
    let current = context.map(|context| Arc::new(Current { id, context }));
    let is_some = current.is_some();
    let before = std::mem::replace(&mut *ONLY.lock().unwrap_or_else(PoisonError::into_inner), current);
    HAS_ONLY.store(is_some, Ordering::Release);
    drop(before);
}

/// Polls one of several tasks, known to those who ask for it meanwhile.
pub(super) async fn polled<F: Future>(id: u64, context: Option<Context>, future: F) -> F::Output {
    let Some(context) = context else {
        return future.await;
    };
    #[cfg(feature = "tracing")]
    listen(Some(&context));
    let current = Arc::new(Current { id, context });
    let mut future = pin!(future);
    poll_fn(|context| {
        let before = POLLED.replace(Some(Arc::clone(&current)));
        let polled = future.as_mut().poll(context);
        POLLED.set(before);
        polled
    })
    .await
}

/// The parent wants to hear as much of a task as came with it.
#[cfg(feature = "tracing")]
fn listen(context: Option<&Context>) {
    if let Some(verbosity) = context.and_then(|context| context.verbosity) {
        super::forward::set_verbosity(verbosity);
    }
}
