//! What a task can know of its cancellation.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use super::reply::Replies;

static LISTENER: OnceLock<Listener> = OnceLock::new();

thread_local! {
    /// The lane whose task this thread polls, where a worker has several.
    static LANE: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Listener {
    replies: Arc<Replies>,
    lanes: usize,
    /// Who waits for the end of which task.
    wakers: Mutex<Vec<(u64, Waker)>>,
}

impl Listener {
    fn wakers(&self) -> MutexGuard<'_, Vec<(u64, Waker)>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task that the calling code belongs to.
    fn current(&self) -> Option<u64> {
        let lane = if self.lanes == 1 { 0 } else { LANE.get()? };
        let id = self.replies.ledger().current(lane);
        (id != 0).then_some(id)
    }
}

/// Whether the task that calls this should end: it was cancelled, or its time is up.
///
/// A task that asks, even once, is given [`cancel_grace`](crate::PoolBuilder::cancel_grace) to end by itself; what it
/// returns is discarded, and its worker lives on. One that never asks, or does not end in time, is stopped with its
/// worker. `false` outside of workers and of tasks; where a worker runs
/// [several tasks](crate::PoolBuilder::tasks_per_worker), also on threads other than the one that runs the task.
///
/// It costs some nanoseconds: an inner loop may ask in every round.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use procession::{Pool, worker};
///
/// fn search(from: u64) -> Option<u64> {
///     (from..).find(|n| worker::cancelled() || n % 1_000_000_007 == 5)
/// }
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::builder().workers(1).build().await?;
/// let found = pool.task(search, 6).timeout(Duration::from_millis(10)).await;
/// assert!(found.is_err_and(|error| error.is_timeout()));
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn cancelled() -> bool {
    let Some(listener) = LISTENER.get() else {
        return false;
    };
    let ledger = listener.replies.ledger();
    ledger.listen();
    listener.current().is_some_and(|id| ledger.is_revoked(id))
}

/// [`cancelled`] as a future, which is ready when the task that made it should end. For async tasks of workers that run
/// one at a time: where a worker runs [several](crate::PoolBuilder::tasks_per_worker), an async task is dropped at its
/// next await instead, so that a guard's `Drop` is what can clear up there.
///
/// # Cancel safety
///
/// Cancel safe.
pub fn cancellation() -> Cancellation {
    let listener = LISTENER.get();
    if let Some(listener) = listener {
        listener.replies.ledger().listen();
    }
    Cancellation {
        id: listener.and_then(Listener::current),
    }
}

/// The future of [`cancellation`]. Made outside of a task, it is never ready.
///
/// # Cancel safety
///
/// Cancel safe.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Cancellation {
    id: Option<u64>,
}

impl Future for Cancellation {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let (Some(listener), Some(id)) = (LISTENER.get(), self.id) else {
            return Poll::Pending;
        };
        let mut wakers = listener.wakers();
        // Looked at under the lock, which the watcher takes after the word has come.
        if listener.replies.ledger().is_revoked(id) {
            return Poll::Ready(());
        }
        // Those of tasks that have ended are of no more use.
        wakers.retain(|(other, waker)| {
            let is_same = *other == id && waker.will_wake(context.waker());
            !is_same && (0..listener.lanes).any(|lane| listener.replies.ledger().current(lane) == *other)
        });
        wakers.push((id, context.waker().clone()));
        Poll::Pending
    }
}

/// Lets tasks of this worker hear of their cancellation.
pub(super) fn set_up(replies: Arc<Replies>, lanes: usize) {
    let listener = Listener {
        replies,
        lanes,
        wakers: Mutex::default(),
    };
    let is_first = LISTENER.set(listener).is_ok();
    debug_assert!(is_first, "a worker is set up once");
}

/// Some task should end: whoever waits for that looks again.
pub(super) fn wake() {
    if let Some(listener) = LISTENER.get() {
        let wakers = std::mem::take(&mut *listener.wakers());
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Polls a task of a worker that has several, so that it knows which one it is.
pub(super) async fn in_lane<F: Future>(lane: usize, task: F) -> F::Output {
    let mut task = pin!(task);
    poll_fn(|context| {
        LANE.set(Some(lane));
        let polled = task.as_mut().poll(context);
        LANE.set(None);
        polled
    })
    .await
}
