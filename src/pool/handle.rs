//! [`Pool`]: what the user holds.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::asynchronous::Asynchronous;
use super::builder::{Config, PoolBuilder};
use super::call::Call;
use super::chunks::{decode_single, single, single_kept};
use super::dispatch::{End, Shared};
use super::imap::Imap;
use super::map::{IterSource, Map, StreamSource};
use super::options::TaskOptions;
use super::result::{Apply, AsyncResult, Task};
use super::stats::{Stats, WorkerStats, resident_memory};
use crate::error::{BuildError, Cause, JoinError, TaskError, TryApplyError};
use crate::process::listen::Ears;
use crate::runtime;
use crate::task::arguments::StarFn;
use crate::task::entry;

/// A pool of worker processes.
///
/// A handle: clones share the pool. Dropping the last clone terminates the pool without blocking: its workers are
/// killed, with all that they started, and tasks that have not ended do so with
/// [`PoolClosed`](crate::TaskErrorKind::PoolClosed). Futures, streams and [`AsyncResult`]s do not keep it alive. To let
/// work finish, [`close`](Self::close) and [`join`](Self::join).
///
/// Functions that tasks run must be plain functions or closures that capture nothing; arguments and results must be
/// serde types that postcard can carry (`Json` takes the others). Bytes go in one
/// piece as `Vec<u8>` or `String`, or as `Bytes` of the crate bytes with its feature `serde`, whose memory large ones
/// keep on both sides. As a part of another type a `Vec<u8>` goes byte by byte; `Bytes` and `serde_bytes` do not.
///
/// # Examples
///
/// ```
/// use procession::Pool;
///
/// fn word_count(text: String) -> usize {
///     text.split_whitespace().count()
/// }
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::new().await?;
/// assert_eq!(pool.apply(word_count, "one two three".to_owned()).await?, 3);
/// assert_eq!(pool.map(|x: u64| x * x, 1..=4).await?, [1, 4, 9, 16]);
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

/// Shared by the clones of a handle; its drop is the last one's.
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.end(End::Terminated);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared();
        let (workers, phase) = {
            let core = shared.lock();
            (core.state.size(), core.state.phase())
        };
        f.debug_struct("Pool")
            .field("name", &shared.config.name)
            .field("workers", &workers)
            .field("phase", &phase)
            .finish()
    }
}

impl Pool {
    pub(crate) fn new_from(shared: Arc<Shared>) -> Self {
        Self {
            owner: Arc::new(Owner { shared }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// Starts a pool with one worker for each processor that this process may use.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it is ready, the workers are killed.
    pub async fn new() -> Result<Self, BuildError> {
        Self::builder().build().await
    }

    /// Options for a new pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// The pool of the whole program, with the default options, started when it is first asked for. It lives on the
    /// library's own thread, so that it serves every runtime, one after the other or at once, as in a test suite
    /// where each `#[tokio::test]` has a runtime of its own.
    ///
    /// It is never dropped; its workers end with the process. Where it cannot be started, its tasks end with
    /// [`PoolFailed`](crate::TaskErrorKind::PoolFailed), whose source says why.
    ///
    /// # Examples
    ///
    /// ```
    /// procession::init();
    /// let doubled = procession::Pool::global().apply(|x: u64| 2 * x, 21);
    /// assert_eq!(futures::executor::block_on(doubled)?, 42);
    /// # Ok::<_, procession::TaskError>(())
    /// ```
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<Pool> = OnceLock::new();
        GLOBAL.get_or_init(|| match Self::builder().name("global").own_runtime().start() {
            Ok((pool, ready)) => {
                if let Ok(own) = runtime::handle() {
                    let shared = Arc::clone(pool.shared());
                    own.spawn(async move {
                        for ready in ready {
                            if let Ok(Err(error)) = ready.await {
                                shared.end(End::Failed(error));
                            }
                        }
                    });
                }
                pool
            }
            Err(error) => Self::new_from(Arc::new(Shared::failed(error))),
        })
    }

    /// Runs `function` with `argument` in a worker and gives its value.
    ///
    /// The argument is encoded now, the task submitted when the future is first polled. While the queue is at its
    /// [bound](PoolBuilder::queue_capacity) it waits for room, behind those that came before it.
    ///
    /// Dropping the future cancels the task: queued, it never runs; running, it is
    /// [stopped](crate::what_happens_when): one that asks [`cancelled`](crate::worker::cancelled) may end by itself, any
    /// other costs its worker, which is replaced.
    ///
    /// # Errors
    ///
    /// [`Panicked`](crate::TaskErrorKind::Panicked), [`WorkerLost`](crate::TaskErrorKind::WorkerLost),
    /// [`Encode`](crate::TaskErrorKind::Encode), [`Decode`](crate::TaskErrorKind::Decode), [`TooLarge`](crate::TaskErrorKind::TooLarge),
    /// or what says that the pool has ended. A `Result` that the function returns is its value.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, the task is cancelled and its value lost.
    pub fn apply<F, A, R>(&self, function: F, argument: A) -> Apply<R>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.apply_row(entry::blocking::<F, F, A, R>(&function), argument)
    }

    /// Starts `function` with `argument` in a worker now, and gives a handle. Dropping the handle lets the task go
    /// on.
    ///
    /// What is wrong (an argument that cannot be encoded, a queue at its bound, a pool that has ended) the handle
    /// says.
    pub fn apply_async<F, A, R>(&self, function: F, argument: A) -> AsyncResult<R>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.apply_async_row(entry::blocking::<F, F, A, R>(&function), argument)
    }

    /// Starts `function` with `argument` if the queue has room and nobody waits for that, and gives the argument back
    /// otherwise.
    ///
    /// # Errors
    ///
    /// [`QueueFull`](TryApplyError::QueueFull) and the other variants, each with the argument. Nothing has been
    /// submitted then.
    pub fn try_apply<F, A, R>(&self, function: F, argument: A) -> Result<AsyncResult<R>, TryApplyError<A>>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.try_apply_row(entry::blocking::<F, F, A, R>(&function), argument)
    }

    /// A call with options: times, tries, priority and callbacks.
    ///
    /// # Examples
    ///
    /// ```
    /// # use procession::Pool;
    /// # procession::init();
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// let pool = Pool::builder().workers(1).build().await?;
    /// let (seen, was_seen) = std::sync::mpsc::channel();
    /// let handle = pool
    ///     .task(|name: String| format!("hello {name}"), "world".to_owned())
    ///     .priority(10)
    ///     .callback(move |greeting: &String| seen.send(greeting.len()).unwrap())
    ///     .submit();
    /// assert_eq!(handle.await?, "hello world");
    /// assert_eq!(was_seen.recv()?, 11);
    /// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn task<F, A, R>(&self, function: F, argument: A) -> Task<R>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.task_row(entry::blocking::<F, F, A, R>(&function), argument)
    }

    /// Runs `function` for every element of `input`; awaited, it gives all values in input order.
    ///
    /// It stops at the first failure and cancels the rest; [`collect_results`](Map::collect_results) gives every
    /// element its own result instead. The input is read as workers take it.
    pub fn map<F, I, R>(&self, function: F, input: I) -> Map<I::IntoIter, R>
    where
        F: Fn(I::Item) -> R + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.map_row(entry::blocking::<F, F, I::Item, R>(&function), input.into_iter())
    }

    /// [`map`](Self::map) for a function of several arguments: each element is a tuple of them.
    pub fn starmap<F, I, R>(&self, function: F, input: I) -> Map<I::IntoIter, R>
    where
        F: StarFn<I::Item, R>,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.map_row(function.row().0, input.into_iter())
    }

    /// Starts a [`map`](Self::map) now and gives a handle. The input is read to its end before this returns. As
    /// [`Map::submit`], what a bounded queue has no room for is kept and submitted as it gets some.
    pub fn map_async<F, I, R>(&self, function: F, input: I) -> AsyncResult<Vec<R>>
    where
        F: Fn(I::Item) -> R + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.map(function, input).submit()
    }

    /// Starts a [`starmap`](Self::starmap) now and gives a handle. The input is read to its end before this returns.
    /// As [`Map::submit`], what a bounded queue has no room for is kept and submitted as it gets some.
    pub fn starmap_async<F, I, R>(&self, function: F, input: I) -> AsyncResult<Vec<R>>
    where
        F: StarFn<I::Item, R>,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.starmap(function, input).submit()
    }

    /// Runs `function` for every element of `input`, which may have no end, and gives the results as a stream in
    /// input order. See [`Imap`] for how far it reads ahead.
    pub fn imap<F, I, R>(&self, function: F, input: I) -> Imap<IterSource<I::IntoIter>, R>
    where
        F: Fn(I::Item) -> R + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.imap_row(
            entry::blocking::<F, F, I::Item, R>(&function),
            IterSource(input.into_iter()),
        )
    }

    /// [`imap`](Self::imap) with the results in order of completion.
    pub fn imap_unordered<F, I, R>(&self, function: F, input: I) -> Imap<IterSource<I::IntoIter>, R>
    where
        F: Fn(I::Item) -> R + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.imap(function, input).unordered()
    }

    /// [`imap`](Self::imap) over a stream.
    pub fn imap_stream<F, S, R>(&self, function: F, input: S) -> Imap<StreamSource<S>, R>
    where
        F: Fn(S::Item) -> R + Copy + 'static,
        S: Stream,
        S::Item: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.imap_row(
            entry::blocking::<F, F, S::Item, R>(&function),
            StreamSource(Box::pin(input)),
        )
    }

    /// The same calls for `async fn` tasks.
    ///
    /// # Examples
    ///
    /// ```
    /// # use procession::Pool;
    /// async fn shout(text: String) -> String {
    ///     tokio::task::yield_now().await;
    ///     text.to_uppercase()
    /// }
    ///
    /// # procession::init();
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// let pool = Pool::builder().workers(1).tasks_per_worker(10).build().await?;
    /// assert_eq!(pool.asynchronous().apply(shout, "hello".to_owned()).await?, "HELLO");
    /// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn asynchronous(&self) -> Asynchronous<'_> {
        Asynchronous::new(self)
    }

    /// Takes no more tasks. Those that were accepted are done; then the workers end. Returns at once; see
    /// [`join`](Self::join).
    pub fn close(&self) {
        self.shared().close();
    }

    /// Ends the pool now: workers are killed, with all that they started, and every task that has not ended does so
    /// with [`PoolClosed`](crate::TaskErrorKind::PoolClosed). Returns at once; see [`join`](Self::join).
    pub fn terminate(&self) {
        self.shared().end(End::Terminated);
    }

    /// Waits until every worker of a pool that was closed or terminated has ended and been reaped, and callbacks have
    /// run, but for those that block.
    ///
    /// Dropping the future changes nothing. It may be called again, and by several at once.
    ///
    /// # Errors
    ///
    /// [`JoinError`] at once where the pool is open, for it would wait for ever.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn join(&self) -> Result<(), JoinError> {
        if self.shared().lock().is_open() {
            return Err(JoinError);
        }
        self.shared().settled().await;
        Ok(())
    }

    /// Closes the pool, gives its tasks so long to finish, terminates what is left, and waits for the workers' end.
    /// `true` when every task had been done by then, whatever its outcome; `false` too where somebody else terminated
    /// the pool before that.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, the pool is closed and not terminated.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.close();
        if let Ok(own) = runtime::handle() {
            let shared = Arc::clone(self.shared());
            // On the library's runtime, for the caller's may have no timers, or be none.
            let waiting =
                own.spawn(async move { tokio::time::timeout(grace, shared.all_gone()).await.is_ok() });
            waiting.await.ok();
        }
        let done = self.shared().is_done();
        self.terminate();
        self.shared().settled().await;
        done
    }

    /// A snapshot of the pool: what waits, what runs, how long tasks took, and its [`workers`](Self::workers).
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (queued, waiting_for_room, in_flight, latency) = {
            let core = self.shared().lock();
            (
                core.state.queued(),
                core.state.waiting_for_room(),
                core.state.running(),
                core.latencies.summary(),
            )
        };
        let workers = self.workers();
        let ears = self.shared().ears.as_deref();
        Stats {
            queued,
            waiting_for_room,
            in_flight,
            tasks_done: workers.iter().map(|worker| worker.tasks_done).sum(),
            restarts: workers.iter().map(|worker| worker.restarts).sum(),
            latency,
            lines_dropped: ears.map_or(0, Ears::lines_dropped),
            events_dropped: ears.map_or(0, Ears::events_dropped),
            workers,
        }
    }

    /// A snapshot of the workers, by number.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerStats> {
        let mut workers: Vec<WorkerStats> = self.shared().lock().workers();
        // Read without the lock, for these are system calls.
        for worker in &mut workers {
            worker.resident_memory = worker.pid.and_then(resident_memory);
        }
        workers
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared().config.name
    }

    /// Whether the pool takes tasks.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared().lock().is_open()
    }

    /// A call with the pool's own options.
    fn call<A: Serialize>(&self, row: u32, argument: A) -> Result<Arc<Call>, TaskError> {
        let config = &self.shared().config;
        single(row, argument, config.max_frame_size, &config.task_options).map(Arc::new)
    }

    pub(super) fn apply_row<A, R>(&self, row: u32, argument: A) -> Apply<R>
    where
        A: Serialize,
        R: DeserializeOwned + 'static,
    {
        let call = self.call(row, argument);
        Apply::new(Arc::clone(self.shared()), call, decode_single::<R>)
    }

    pub(super) fn apply_async_row<A, R>(&self, row: u32, argument: A) -> AsyncResult<R>
    where
        A: Serialize,
        R: DeserializeOwned + 'static,
    {
        let shared = Arc::clone(self.shared());
        match self.call(row, argument) {
            Ok(call) => {
                shared.submit_or_fail(&call);
                AsyncResult::new(shared, call, decode_single::<R>)
            }
            Err(error) => AsyncResult::failed(shared, error, decode_single::<R>),
        }
    }

    pub(super) fn task_row<A, R>(&self, row: u32, argument: A) -> Task<R>
    where
        A: Serialize,
        R: DeserializeOwned + 'static,
    {
        let shared = Arc::clone(self.shared());
        let call = single(
            row,
            argument,
            shared.config.max_frame_size,
            &TaskOptions::default(),
        );
        Task::new(shared, call)
    }

    pub(super) fn try_apply_row<A, R>(
        &self,
        row: u32,
        argument: A,
    ) -> Result<AsyncResult<R>, TryApplyError<A>>
    where
        A: Serialize,
        R: DeserializeOwned + 'static,
    {
        let shared = Arc::clone(self.shared());
        // Looked at before the work of encoding, and again by the submission itself.
        let result = shared.admit().and_then(|()| {
            let Config {
                max_frame_size,
                task_options,
                ..
            } = &shared.config;
            let call = single_kept(row, &argument, *max_frame_size, task_options);
            let call = call.map(Arc::new).map_err(|error| error.cause())?;
            shared.submit(&call)?;
            Ok(call)
        });
        match result {
            Ok(call) => Ok(AsyncResult::new(shared, call, decode_single::<R>)),
            Err(Cause::QueueFull(_)) => Err(TryApplyError::QueueFull(argument)),
            Err(Cause::TooLarge { .. }) => Err(TryApplyError::TooLarge(argument)),
            Err(Cause::Encode(message)) => Err(TryApplyError::Encode(argument, message)),
            Err(_) => Err(TryApplyError::PoolClosed(argument)),
        }
    }

    pub(super) fn imap_row<S, R>(&self, row: u32, source: S) -> Imap<S, R> {
        Imap::new(Arc::clone(self.shared()), row, source, true)
    }

    pub(super) fn map_row<I, R>(&self, row: u32, input: I) -> Map<I, R>
    where
        I: Iterator,
        I::Item: Serialize,
        R: DeserializeOwned,
    {
        Map::new(Arc::clone(self.shared()), row, input)
    }
}
