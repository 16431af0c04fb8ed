//! Whoever waits for an answer looks for it himself, where that is quicker than to be woken.
//!
//! Only while few wait: otherwise the processors have better things to do, and answers come in batches.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Context;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::call::Call;
use super::dispatch::Shared;

/// Callers that exist, whether or not they have submitted their task yet.
#[derive(Debug, Default)]
pub(crate) struct Callers(AtomicUsize);

/// How far a caller is with looking for its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Attention {
    #[default]
    Fresh,
    /// Others had their turn on this thread.
    Waited,
    /// It has looked, and waits to be woken from now on.
    Tired,
}

impl Attention {
    /// Looks for the answer of a call that is pending, once. `true` when it has come.
    pub(crate) fn look(&mut self, shared: &Shared, call: &Arc<Call>, context: &mut Context<'_>) -> bool {
        let most = shared.config.lookers;
        if *self == Self::Tired || shared.callers.0.load(Ordering::Relaxed) > most {
            return false;
        }
        if *self == Self::Fresh && others_wait_for_this_thread() {
            *self = Self::Waited;
            context.waker().wake_by_ref();
            return false;
        }
        // What never waits would leave other futures of its task, and other tasks of its thread, no turn.
        if pin!(tokio::task::coop::consume_budget())
            .poll(context)
            .is_pending()
        {
            return false;
        }
        *self = Self::Tired;
        let link = {
            let core = shared.lock();
            if core.state.has_more_than(most) {
                return false;
            }
            call.place().and_then(|place| core.links.get(place)?.clone())
        };
        link.is_some_and(|link| {
            link.look(shared, || call.is_finished());
            call.is_finished()
        })
    }
}

/// Whether other tasks may be ready that run on no thread but this one: a task is polled here, not the runtime's root,
/// and another poll costs next to nothing.
fn others_wait_for_this_thread() -> bool {
    tokio::task::try_id().is_some()
        && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// One that waits for one answer; counted for as long as it exists.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) shared: Arc<Shared>,
    pub(crate) attention: Attention,
}

impl Caller {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.callers.0.fetch_add(1, Ordering::Relaxed);
        Self {
            shared,
            attention: Attention::default(),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.shared.callers.0.fetch_sub(1, Ordering::Relaxed);
    }
}
