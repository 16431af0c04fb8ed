//! [`TaskService`]: a pool's function as a `tower::Service`.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_service::Service;

use super::asynchronous::Asynchronous;
use super::call::Call;
use super::dispatch::{Shared, in_time};
use super::handle::Pool;
use super::result::{Apply, Task};
use super::state::Refusal;
use crate::error::{Cause, TaskError};
use crate::runtime;
use crate::task::{entry, table};

/// How long a service that waited for room may take to hear that it has some.
const PATIENCE: Duration = Duration::from_millis(100);

/// A function in a pool as a `tower::Service`, made by [`Pool::service`]: a request is its argument, a response its
/// value. With the feature `tower`.
///
/// `poll_ready` is ready when the queue has room, which is then kept for the `call` that follows: that neither waits
/// for room nor fails for want of it. With no [bound](crate::PoolBuilder::queue_capacity) there is always room. While
/// there is none, the service waits in line with all others that do. So `load_shed` sheds exactly what the queue has
/// no room for. The size of a request is not known before it comes: one may go over
/// [`queue_capacity_bytes`](crate::PoolBuilder::queue_capacity_bytes) for each service that was ready in time.
///
/// Room that is kept is lost to others: call a service that is ready, or drop it. One that waited, and within 100 ms
/// of its turn is not polled, loses that room and keeps its place in the line; `load_shed`, which asks once, does so.
///
/// A clone has no room that the original has. Like a clone of the pool, a service keeps it open. Dropping it gives
/// room that is kept for it to others.
///
/// `call` submits the task at once. Called without having been ready, it waits for room in its future. The future is
/// that of [`Pool::apply`]: dropped, it cancels the task.
///
/// # Errors
///
/// `poll_ready` fails when the pool has ended, with [`PoolClosed`](crate::TaskErrorKind::PoolClosed) or what says why.
/// Its responses fail as [`Pool::apply`]; so while no worker starts, which may pass, the service is ready, and it is the
/// response that fails with [`PoolFailed`](crate::TaskErrorKind::PoolFailed).
///
/// # Cancel safety
///
/// As [`Apply`]: not cancel safe. Nothing is lost with a `poll_ready` that is given up.
///
/// # Examples
///
/// ```
/// use procession::Pool;
/// use tower::{Service, ServiceBuilder, ServiceExt};
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::builder().workers(1).queue_capacity(10).build().await?;
/// let mut shout = ServiceBuilder::new()
///     .load_shed()
///     .concurrency_limit(8)
///     .service(pool.service(|text: String| text.to_uppercase()));
/// assert_eq!(shout.ready().await?.call("hello".to_owned()).await?, "HELLO");
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub struct TaskService<A, R> {
    pool: Pool,
    row: u32,
    options: Option<Options<R>>,
    room: Room,
    types: PhantomData<fn(A) -> R>,
}

type Options<R> = Arc<dyn Fn(Task<R>) -> Task<R> + Send + Sync>;

/// Where a service stands.
enum Room {
    None,
    /// In the line, or offered what it has not taken yet. The call is its place there, and nothing else.
    Waits(Arc<Call>, Arc<Bell>),
    Kept,
}

/// Rings when a service that waited has room.
struct Bell {
    shared: Weak<Shared>,
    id: u64,
    service: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.service.wake();
        // Whoever asked may have gone elsewhere and kept the service: others must not wait for that.
        if let Ok(own) = runtime::handle() {
            own.spawn(async move {
                tokio::time::timeout(PATIENCE, std::future::pending::<()>())
                    .await
                    .ok();
                if let Some(shared) = self.shared.upgrade() {
                    // Unless it is in the line again.
                    let mut core = shared.lock();
                    core.state.take_room_back(self.id);
                    shared.act(core);
                }
            });
        }
    }
}

impl Pool {
    /// `function` in this pool as a `tower::Service`. With the feature `tower`.
    pub fn service<F, A, R>(&self, function: F) -> TaskService<A, R>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        TaskService::new(self.clone(), entry::blocking::<F, F, A, R>(&function))
    }
}

impl Asynchronous<'_> {
    /// As [`Pool::service`].
    pub fn service<F, A, T, R>(&self, function: F) -> TaskService<A, R>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        TaskService::new(self.pool().clone(), entry::asynchronous::<F, A, T, R>(&function))
    }
}

impl<A, R> TaskService<A, R> {
    fn new(pool: Pool, row: u32) -> Self {
        Self {
            pool,
            row,
            options: None,
            room: Room::None,
            types: PhantomData,
        }
    }

    /// Gives options to the task of every request, those of [`Task`]. Said again, both hold, in this order. Defaults
    /// to none.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # use procession::{Pool, TaskService};
    /// # fn urgent(pool: &Pool) -> TaskService<u64, u64> {
    /// pool.service(|x: u64| x * 2)
    ///     .map_task(|task| task.priority(10).timeout(Duration::from_secs(1)).retries(2))
    /// # }
    /// ```
    #[must_use = "the service with the options is what is returned"]
    pub fn map_task(mut self, options: impl Fn(Task<R>) -> Task<R> + Send + Sync + 'static) -> Self
    where
        R: 'static,
    {
        self.options = Some(match self.options.take() {
            None => Arc::new(options),
            Some(earlier) => Arc::new(move |task| options(earlier(task))),
        });
        self
    }

    fn error(&self, cause: Cause) -> TaskError {
        TaskError::new(table::entry(self.row).map_or("", |entry| entry.name), cause)
    }
}

impl<A, R> Service<A> for TaskService<A, R>
where
    A: Serialize,
    R: DeserializeOwned + 'static,
{
    type Response = R;
    type Error = TaskError;
    type Future = Apply<R>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TaskError>> {
        let polled = ready!(self.room.poll(self.pool.shared(), context));
        Poll::Ready(polled.map_err(|cause| self.error(cause)))
    }

    fn call(&mut self, argument: A) -> Apply<R> {
        let mut task = self.pool.task_row(self.row, argument);
        if let Some(options) = &self.options {
            task = options(task);
        }
        if let Room::Kept = self.room {
            self.room = Room::None;
            task.submit_kept(self.pool.shared())
        } else {
            task.into_future()
        }
    }
}

impl Room {
    fn poll(&mut self, shared: &Arc<Shared>, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        let mut place = 0;
        if let Self::Waits(call, bell) = self {
            bell.service.register(context.waker());
            let waker = Waker::from(Arc::clone(bell));
            ready!(call.poll_admitted(&mut Context::from_waker(&waker)));
            place = bell.id;
        }
        let core = shared.lock();
        if !core.is_open() {
            let cause = core.refusal(Refusal::Closed);
            drop(core);
            *self = Self::None;
            return Poll::Ready(Err(cause));
        }
        let is_failing = core.check_start().is_err();
        drop(core);
        if let Self::Kept = self {
            return Poll::Ready(Ok(()));
        }
        if is_failing {
            // That may pass, and so is nothing to fail with here. The call is told.
            self.leave(shared);
            return Poll::Ready(Ok(()));
        }
        match shared.keep_room(place) {
            Ok(None) => {
                *self = Self::Kept;
                Poll::Ready(Ok(()))
            }
            Ok(Some(call)) => {
                let bell = Arc::new(Bell {
                    shared: Arc::downgrade(shared),
                    id: call.id(),
                    service: AtomicWaker::new(),
                });
                *self = Self::Waits(call, bell);
                // It may have come in at once, for nobody is told before it has asked.
                self.poll(shared, context)
            }
            Err(cause) => {
                *self = Self::None;
                Poll::Ready(Err(cause))
            }
        }
    }

    fn leave(&mut self, shared: &Shared) {
        match std::mem::replace(self, Self::None) {
            Self::None => {}
            Self::Waits(_, bell) => shared.renounce_room(bell.id),
            Self::Kept => shared.release_room(),
        }
    }
}

impl Shared {
    /// Keeps room for a task, that which `place` was offered among others; where there is none, what comes back waits
    /// for some.
    fn keep_room(&self, place: u64) -> Result<Option<Arc<Call>>, Cause> {
        let mut core = self.lock();
        if core.state.claim_room(place) {
            return Ok(None);
        }
        match core.state.keep_room() {
            Ok(true) => Ok(None),
            Ok(false) => {
                let call = Arc::new(Call::whole(""));
                // Before it is told that it has room.
                call.wait();
                call.set_id(core.state.wait_for_room(place, Arc::clone(&call)));
                self.act(core);
                Ok(Some(call))
            }
            Err(refusal) => Err(core.refusal(refusal)),
        }
    }

    /// Hands a task over for which room was kept. One that is refused has ended.
    pub(super) fn submit_kept(&self, call: &Arc<Call>) {
        if let Err(cause) = self.watch(call) {
            self.release_room();
            self.refuse(vec![Arc::clone(call)], &cause);
            return;
        }
        call.capture(self);
        let mut core = self.lock();
        let submitted = match core.check_start().and_then(|()| in_time(call)) {
            Ok(_) => core
                .state
                .submit_kept(call.priority, call.weight, call.size(), Arc::clone(call))
                .map_err(|refusal| core.refusal(refusal)),
            Err(cause) => {
                core.state.release_room();
                Err(cause)
            }
        };
        match submitted {
            Ok(id) => self.submitted(core, call, id),
            Err(cause) => {
                self.act(core);
                self.refuse(vec![Arc::clone(call)], &cause);
            }
        }
    }

    /// Gives room that was kept to others.
    pub(super) fn release_room(&self) {
        let mut core = self.lock();
        core.state.release_room();
        self.act(core);
    }

    fn renounce_room(&self, id: u64) {
        let mut core = self.lock();
        core.state.renounce_room(id);
        self.act(core);
    }
}

impl<A, R> Clone for TaskService<A, R> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            row: self.row,
            options: self.options.clone(),
            room: Room::None,
            types: PhantomData,
        }
    }
}

impl<A, R> Drop for TaskService<A, R> {
    fn drop(&mut self) {
        self.room.leave(self.pool.shared());
    }
}

impl<A, R> fmt::Debug for TaskService<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskService")
            .field("pool", &self.pool)
            .field("task", &table::entry(self.row).map_or("", |entry| entry.name))
            .field("is_ready", &matches!(self.room, Room::Kept))
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn assert<T: Send + Sync + Unpin + Clone + 'static>() {}
    assert::<TaskService<u8, u8>>();
};
