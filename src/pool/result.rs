//! What a submitted task gives: a future that cancels when it is dropped ([`Apply`]), or a handle that does not
//! ([`AsyncResult`]).

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::FusedFuture;
use serde::de::DeserializeOwned;

use super::call::{Call, Outcome, Reply};
use super::caller::{Attention, Caller};
use super::chunks::{Gather, decode_single};
use super::dispatch::Shared;
use super::options::TaskOptions;
use crate::error::{Cause, TaskError};
use crate::wire::context::TraceContext;

/// Turns a reply's bytes into the value.
pub(crate) type Decode<R> = fn(&Call, Reply) -> Result<R, TaskError>;

/// A task that was started with [`apply_async`](crate::Pool::apply_async): a future of its value.
///
/// Dropping it detaches: the task goes on, and its callbacks run. [`abort`](Self::abort) cancels it.
///
/// The handle does not keep the pool alive: when the last [`Pool`](crate::Pool) is dropped, the task ends with
/// [`PoolClosed`](crate::TaskErrorKind::PoolClosed).
///
/// # Cancel safety
///
/// Cancel safe: a handle that is polled by reference (`tokio::time::timeout(d, &mut handle)`) and not ready is polled
/// again later, and nothing is lost. The task itself goes on in the meantime.
///
/// # Panics
///
/// Never. Awaited a second time, after it gave its value, it waits for ever; [`FusedFuture`] tells.
#[must_use = "dropping the handle detaches the task; await it, or say `drop`"]
pub struct AsyncResult<R> {
    shared: Arc<Shared>,
    call: Arc<Call>,
    gather: Option<Arc<Gather>>,
    decode: Decode<R>,
    attention: Attention,
    taken: bool,
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult")
            .field("id", &self.id())
            .field("task", &self.call.name())
            .field("is_finished", &self.is_finished())
            .finish()
    }
}

impl<R: 'static> AsyncResult<R> {
    pub(crate) fn new(shared: Arc<Shared>, call: Arc<Call>, decode: Decode<R>) -> Self {
        Self {
            shared,
            call,
            gather: None,
            decode,
            attention: Attention::default(),
            taken: false,
        }
    }

    pub(crate) fn gathered(
        shared: Arc<Shared>,
        call: Arc<Call>,
        gather: Arc<Gather>,
        decode: Decode<R>,
    ) -> Self {
        Self {
            shared,
            call,
            gather: Some(gather),
            decode,
            attention: Attention::default(),
            taken: false,
        }
    }

    /// A handle that has ended already.
    pub(crate) fn failed(shared: Arc<Shared>, error: TaskError, decode: Decode<R>) -> Self {
        let call = Arc::new(Call::ended(error));
        Self {
            shared,
            call,
            gather: None,
            decode,
            attention: Attention::default(),
            taken: false,
        }
    }

    /// Calls `callback` with the value when the task has succeeded.
    ///
    /// It runs once, in the parent, on a thread of the pool's own, in order of completion, whether or not the
    /// handle is awaited or still exists. Awaiting the handle gives the value after it has run. A callback that
    /// blocks holds this up for some 50 ms at most: after that the handle is ready, and the callbacks of other tasks
    /// go on beside it. A panic in it is reported on standard error and changes nothing. It may submit tasks, await
    /// them (with `futures::executor::block_on`, say), and end the pool.
    ///
    /// Added to a task that has ended, it runs at once; to a handle that has given its value, never.
    pub fn callback(self, callback: impl FnOnce(&R) + Send + 'static) -> Self {
        self.call.add_callback(
            on_value(Arc::downgrade(&self.call), self.decode, callback),
            &self.shared.callbacks,
        );
        self
    }

    /// Calls `callback` with the error when the task has failed or was cancelled. It runs like
    /// [`callback`](Self::callback).
    pub fn error_callback(self, callback: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.call.add_callback(
            on_error(Arc::downgrade(&self.call), self.decode, callback),
            &self.shared.callbacks,
        );
        self
    }
}

impl<R> AsyncResult<R> {
    /// Cancels the task: queued, it never runs; running, it is [stopped](crate::what_happens_when): one that asks
    /// [`cancelled`](crate::worker::cancelled) may end by itself, any other costs its worker. The handle then gives
    /// [`Cancelled`](crate::TaskErrorKind::Cancelled). A task that has ended keeps its outcome.
    #[doc(alias = "cancel")]
    pub fn abort(&self) {
        match &self.gather {
            None => self.shared.cancel(&self.call),
            Some(gather) => {
                self.call
                    .complete(Err(self.call.error(Cause::Cancelled)), &self.shared.callbacks);
                gather.cancel();
            }
        }
    }

    /// Whether the outcome is there, so that awaiting the handle returns at once.
    #[must_use]
    #[doc(alias = "ready")]
    pub fn is_finished(&self) -> bool {
        self.call.is_finished()
    }

    /// The task's number in its pool, counted from 1 in order of submission; 0 for one that was refused, or that
    /// consists of many.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.call.id()
    }

    /// The task's name: its function, as the compiler calls it.
    #[must_use]
    pub fn task_name(&self) -> &str {
        self.call.name()
    }
}

impl<R> Future for AsyncResult<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut polled = this.call.poll(context);
        if polled.is_pending() && this.attention.look(&this.shared, &this.call, context) {
            polled = this.call.poll(context);
        }
        let outcome = std::task::ready!(polled);
        self.taken = true;
        Poll::Ready(outcome.and_then(|reply| (self.decode)(&self.call, reply)))
    }
}

impl<R> FusedFuture for AsyncResult<R> {
    fn is_terminated(&self) -> bool {
        self.taken
    }
}

// Callbacks are kept in the call, and so refer to it weakly.
fn on_value<R: 'static>(
    call: std::sync::Weak<Call>,
    decode: Decode<R>,
    callback: impl FnOnce(&R) + Send + 'static,
) -> Box<dyn FnOnce(&Outcome) + Send> {
    Box::new(move |outcome| {
        if let (Ok(reply), Some(call)) = (outcome, call.upgrade())
            && let Ok(value) = decode(&call, reply.duplicate())
        {
            callback(&value);
        }
    })
}

fn on_error<R: 'static>(
    call: std::sync::Weak<Call>,
    decode: Decode<R>,
    callback: impl FnOnce(&TaskError) + Send + 'static,
) -> Box<dyn FnOnce(&Outcome) + Send> {
    Box::new(move |outcome| match (outcome, call.upgrade()) {
        (Err(error), _) => callback(error),
        // A result that does not decode is a failure too, and only known here.
        (Ok(reply), Some(call)) => {
            if let Err(error) = decode(&call, reply.duplicate()) {
                callback(&error);
            }
        }
        (Ok(_), None) => {}
    })
}

/// One call: the future that [`apply`](crate::Pool::apply) gives.
///
/// The task is submitted when the future is first polled. With a bounded queue that is full it waits in line for room,
/// and is let in when its turn comes, polled or not.
///
/// Dropping it cancels the task: queued, it never runs; running, its worker is killed and replaced, unless that runs
/// [several tasks](crate::PoolBuilder::tasks_per_worker): then an async one is dropped at its next await.
///
/// # Cancel safety
///
/// Not cancel safe: dropped before it is ready, the task is cancelled and its value lost. Use
/// [`apply_async`](crate::Pool::apply_async) for a task that outlives its caller.
#[must_use = "futures do nothing unless polled"]
pub struct Apply<R> {
    caller: Caller,
    state: ApplyState,
    decode: Decode<R>,
}

enum ApplyState {
    /// Not polled.
    Unsubmitted(Arc<Call>),
    /// Submitted, or waiting for room.
    Submitted(Arc<Call>),
    Failed(TaskError),
    Done,
}

impl<R> fmt::Debug for Apply<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            ApplyState::Unsubmitted(_) => "Apply(unsubmitted)",
            ApplyState::Submitted(_) => "Apply(submitted)",
            ApplyState::Failed(_) => "Apply(failed)",
            ApplyState::Done => "Apply(done)",
        })
    }
}

impl<R> Apply<R> {
    pub(crate) fn new(shared: Arc<Shared>, call: Result<Arc<Call>, TaskError>, decode: Decode<R>) -> Self {
        let state = match call {
            Ok(call) => ApplyState::Unsubmitted(call),
            Err(error) => ApplyState::Failed(error),
        };
        Self {
            caller: Caller::new(shared),
            state,
            decode,
        }
    }
}

impl<R> Future for Apply<R> {
    type Output = Result<R, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                ApplyState::Unsubmitted(call) => {
                    let call = Arc::clone(call);
                    this.caller.prepare();
                    this.caller.shared.submit_or_wait(&call);
                    this.state = ApplyState::Submitted(call);
                }
                ApplyState::Submitted(call) => {
                    let mut polled = call.poll(context);
                    if polled.is_pending() && this.caller.look(call, context) {
                        polled = call.poll(context);
                    }
                    let outcome = std::task::ready!(polled);
                    this.caller.resign();
                    let result = outcome.and_then(|reply| (this.decode)(call, reply));
                    this.state = ApplyState::Done;
                    return Poll::Ready(result);
                }
                ApplyState::Failed(error) => {
                    let error = error.clone();
                    this.state = ApplyState::Done;
                    return Poll::Ready(Err(error));
                }
                ApplyState::Done => return Poll::Pending,
            }
        }
    }
}

impl<R> FusedFuture for Apply<R> {
    fn is_terminated(&self) -> bool {
        matches!(self.state, ApplyState::Done)
    }
}

impl<R> Drop for Apply<R> {
    fn drop(&mut self) {
        if let ApplyState::Submitted(call) = &self.state {
            self.caller.shared.cancel(call);
        }
    }
}

/// One call with options, made by [`Pool::task`](crate::Pool::task): [`submit`](Self::submit) it for a handle, or
/// await it like [`apply`](crate::Pool::apply).
///
/// Dropping it does nothing: the task has not been submitted.
///
/// # Cancel safety
///
/// Its future is [`Apply`], which is not cancel safe. Its callbacks run if it was submitted, which is when the future
/// is first polled, or if its argument cannot be encoded.
#[must_use = "a task does nothing until it is submitted or awaited"]
pub struct Task<R> {
    shared: Arc<Shared>,
    call: Result<Call, TaskError>,
    options: TaskOptions,
    callbacks: Vec<Attach<R>>,
    error_callbacks: Vec<AttachError>,
    result: PhantomData<fn() -> R>,
}

type Attach<R> = Box<dyn FnOnce(&R) + Send>;
type AttachError = Box<dyn FnOnce(&TaskError) + Send>;

impl<R> fmt::Debug for Task<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}

impl<R: DeserializeOwned + 'static> Task<R> {
    pub(crate) fn new(shared: Arc<Shared>, call: Result<Call, TaskError>) -> Self {
        Self {
            options: shared.config.task_options,
            shared,
            call,
            callbacks: Vec::new(),
            error_callbacks: Vec::new(),
            result: PhantomData,
        }
    }

    /// Tasks of a higher priority start before those of a lower one that wait. Defaults to 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// How long the task may run, from its start on a worker. One that takes longer is stopped, as a
    /// [cancelled](AsyncResult::abort) one is, and ends with
    /// [`TimedOut(Running)`](crate::TaskErrorKind::TimedOut). Zero is
    /// [`InvalidOption`](crate::TaskErrorKind::InvalidOption). Defaults to
    /// [`task_timeout`](crate::PoolBuilder::task_timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// How long the task may wait from its submission to its start, for room in a bounded queue too. One that has not
    /// started by then never does, and ends with [`TimedOut(Queued)`](crate::TaskErrorKind::TimedOut). Zero is
    /// [`InvalidOption`](crate::TaskErrorKind::InvalidOption). Defaults to
    /// [`queue_timeout`](crate::PoolBuilder::queue_timeout).
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.options.queue_timeout = Some(timeout);
        self
    }

    /// When the task must have ended, whatever its tries. One that runs then is stopped, one that has not started never
    /// does; it ends with [`TimedOut`](crate::TaskErrorKind::TimedOut). One that has passed is that at once. Defaults
    /// to [`task_deadline`](crate::PoolBuilder::task_deadline) from now.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.options.deadline = Some(deadline);
        self.options.time_to_live = None;
        self
    }

    /// How often the task is tried again after its worker was lost or its [`timeout`](Self::timeout) was up. A failure
    /// that the task itself has, a panic, an error that it returns, is never tried again. The error of the last try
    /// has [those of all](TaskError::attempts). Tries follow each other at once, but for the
    /// short pauses between workers that die of their first task time and again. Only for tasks that may run
    /// more than once. Defaults to
    /// [`task_retries`](crate::PoolBuilder::task_retries).
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Sends a W3C trace context along, which [`worker::trace_context`](crate::worker::trace_context) finds in the
    /// task, wherever and however often that is tried. Defaults to what
    /// [`PoolBuilder::trace_context`](crate::PoolBuilder::trace_context) says.
    pub fn trace_context(mut self, context: TraceContext) -> Self {
        if let Ok(call) = &mut self.call {
            call.companions.set_trace(context);
        }
        self
    }

    /// Calls `callback` with the value, as [`AsyncResult::callback`] does.
    pub fn callback(mut self, callback: impl FnOnce(&R) + Send + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Calls `callback` with the error, as [`AsyncResult::error_callback`] does.
    pub fn error_callback(mut self, callback: impl FnOnce(&TaskError) + Send + 'static) -> Self {
        self.error_callbacks.push(Box::new(callback));
        self
    }

    /// Submits the task. Where the queue is full or the pool closed, the handle says so.
    pub fn submit(self) -> AsyncResult<R> {
        let (shared, call) = self.prepare();
        match call {
            Ok(call) => {
                shared.submit_or_fail(&call);
                AsyncResult::new(shared, call, decode_single::<R>)
            }
            Err(error) => AsyncResult::failed(shared, error, decode_single::<R>),
        }
    }

    /// Submits the task into the room that `keeper` keeps for it.
    #[cfg(feature = "tower")]
    pub(crate) fn submit_kept(self, keeper: &Shared) -> Apply<R> {
        let (shared, call) = self.prepare();
        match call {
            Ok(call) if std::ptr::eq(&*shared, keeper) => {
                shared.submit_kept(&call);
                Apply {
                    caller: Caller::new(shared),
                    state: ApplyState::Submitted(call),
                    decode: decode_single::<R>,
                }
            }
            call => {
                keeper.release_room();
                Apply::new(shared, call, decode_single::<R>)
            }
        }
    }

    fn prepare(self) -> (Arc<Shared>, Result<Arc<Call>, TaskError>) {
        let Self {
            shared,
            call,
            options,
            callbacks,
            error_callbacks,
            ..
        } = self;
        let call = call.and_then(|mut call| match options.check() {
            Ok(()) => {
                call.set_options(&options);
                Ok(call)
            }
            Err(cause) => Err(call.error(cause)),
        });
        // An argument that cannot be encoded ends the task like any other failure: callbacks hear of it.
        let (call, failed) = match call {
            Ok(call) => (Arc::new(call), None),
            Err(error) => (Arc::new(Call::unsubmitted(&error)), Some(error)),
        };
        for callback in callbacks {
            call.add_callback(
                on_value(Arc::downgrade(&call), decode_single::<R>, callback),
                &shared.callbacks,
            );
        }
        for callback in error_callbacks {
            call.add_callback(
                on_error(Arc::downgrade(&call), decode_single::<R>, callback),
                &shared.callbacks,
            );
        }
        match failed {
            None => (shared, Ok(call)),
            Some(error) => {
                call.complete(Err(error.clone()), &shared.callbacks);
                (shared, Err(error))
            }
        }
    }
}

impl<R: DeserializeOwned + 'static> IntoFuture for Task<R> {
    type Output = Result<R, TaskError>;
    type IntoFuture = Apply<R>;

    fn into_future(self) -> Apply<R> {
        let (shared, call) = self.prepare();
        Apply::new(shared, call, decode_single::<R>)
    }
}
