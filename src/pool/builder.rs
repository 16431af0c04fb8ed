//! [`PoolBuilder`]: what a pool can be told before it starts.

use std::ffi::OsString;
use std::fmt;
use std::iter;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::cpus;
use super::dispatch::{End, Shared};
use super::handle::Pool;
use super::keeper;
use super::options::TaskOptions;
use super::supervisor::{self, Services};
use crate::error::{BuildError, Cause, WorkerLoss};
use crate::memory::OutOfMemory;
use crate::process::launch::refused;
use crate::process::limits::LimitOptions;
use crate::process::listen::Ears;
use crate::process::memory::claim;
use crate::process::output::Output;
use crate::process::spawn::Program;
use crate::process::start_method::StartMethod;
use crate::process::template::{Plan, Template};
use crate::task::encode;
use crate::task::initializer::{Initializer, InitializerOutcome};
use crate::wire::buffers;
use crate::wire::codec;
use crate::wire::context::TraceContext;
use crate::wire::mark::Token;
use crate::wire::message::{Role, Words};
use crate::{init, runtime, worker};

/// Workers that a pool may have: beyond this a machine runs out of other things.
const MOST_WORKERS: usize = 4096;
const MOST_TASKS_PER_WORKER: usize = 4096;
/// A caller that looks holds its thread for so long.
const LONGEST_SPIN: Duration = Duration::from_secs(1);

type TraceHook = Arc<dyn Fn() -> Option<TraceContext> + Send + Sync>;

type Hook = Arc<dyn Fn(&WorkerEvent) + Send + Sync>;

/// A worker that has started or ended, for [`on_worker_start`](PoolBuilder::on_worker_start) and
/// [`on_worker_exit`](PoolBuilder::on_worker_exit).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerEvent {
    /// The worker's number.
    pub worker: usize,
    /// Its process.
    pub pid: u32,
    /// How it ended, where it has and the system told.
    pub status: Option<std::process::ExitStatus>,
    /// Where it ended for want of memory.
    pub out_of_memory: Option<OutOfMemory>,
}

/// Options of a [`Pool`], made by [`Pool::builder`].
///
/// Setters never fail; [`build`](Self::build) checks everything.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use procession::Pool;
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::builder()
///     .workers(2)
///     .queue_capacity(100)
///     .env("RAYON_NUM_THREADS", "1")
///     .start_timeout(Duration::from_secs(5))
///     .build()
///     .await?;
/// assert_eq!(pool.workers().len(), 2);
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a builder does nothing itself, use .build() to build the pool"]
pub struct PoolBuilder {
    name: String,
    worker_name: String,
    workers: Option<(usize, usize)>,
    tasks_per_worker: usize,
    queue_capacity: Option<usize>,
    max_frame_size: u64,
    start_timeout: Duration,
    shutdown_grace: Duration,
    cancel_grace: Duration,
    term_grace: Duration,
    task_options: TaskOptions,
    max_tasks_per_worker: Option<u64>,
    max_worker_memory: Option<u64>,
    max_worker_age: Option<Duration>,
    idle_timeout: Duration,
    initializer: Option<Initializer>,
    program: Program,
    stdout: Output,
    stderr: Output,
    nested: bool,
    max_depth: u32,
    on_worker_start: Option<Hook>,
    on_worker_exit: Option<Hook>,
    own_runtime: bool,
    pub(super) limits: LimitOptions,
    output_buffer: usize,
    trace_context: Option<TraceHook>,
    #[cfg(feature = "tracing")]
    tracing: tracing::level_filters::LevelFilter,
    queue_capacity_bytes: Option<u64>,
    spin: Duration,
    start_method: StartMethod,
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("name", &self.name)
            .field("workers", &self.workers)
            .field("tasks_per_worker", &self.tasks_per_worker)
            .field("queue_capacity", &self.queue_capacity)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Default for PoolBuilder {
    fn default() -> Self {
        Self {
            name: "pool".to_owned(),
            worker_name: "worker".to_owned(),
            workers: None,
            tasks_per_worker: 1,
            queue_capacity: None,
            max_frame_size: 1 << 30,
            start_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(5),
            cancel_grace: Duration::from_millis(250),
            term_grace: Duration::from_millis(250),
            task_options: TaskOptions::default(),
            max_tasks_per_worker: None,
            max_worker_memory: None,
            max_worker_age: None,
            idle_timeout: Duration::from_secs(60),
            initializer: None,
            program: Program::default(),
            stdout: Output::inherit(),
            stderr: Output::inherit(),
            nested: false,
            max_depth: 8,
            on_worker_start: None,
            on_worker_exit: None,
            own_runtime: false,
            limits: LimitOptions::default(),
            output_buffer: 8 << 20,
            trace_context: None,
            #[cfg(feature = "tracing")]
            tracing: tracing::level_filters::LevelFilter::OFF,
            queue_capacity_bytes: None,
            spin: Duration::from_micros(50),
            start_method: StartMethod::Exec,
        }
    }
}

impl PoolBuilder {
    /// The pool's name, which [`worker::pool_name`](crate::worker::pool_name) gives and `ps` shows. Defaults to
    /// "pool".
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What `ps` shows in front of a worker's number. Defaults to "worker".
    pub fn worker_name(mut self, name: impl Into<String>) -> Self {
        self.worker_name = name.into();
        self
    }

    /// How many workers. Zero is an error, as are more than 4096. Defaults to the processors that this process may
    /// use: its affinity, bounded by the quota of its cgroup.
    #[doc(alias = "processes")]
    #[doc(alias = "max_workers")]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some((workers, workers));
        self
    }

    /// As many workers as there are tasks for, within bounds. `min` are started by [`build`](Self::build) and kept;
    /// more start when a task finds all of them busy, up to `max`; those that have had nothing to do for the
    /// [`idle_timeout`](Self::idle_timeout) end. With a `min` of 0, a pool without work has no processes, and `build`
    /// does not know whether a worker can start. A `max` of zero, below `min` or above 4096 is an error.
    pub fn workers_between(mut self, min: usize, max: usize) -> Self {
        self.workers = Some((min, max));
        self
    }

    /// How long a worker has nothing to do before it ends, where more are there than the least number of
    /// [`workers_between`](Self::workers_between). Zero is an error. Defaults to 60 seconds.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// How many tasks a worker runs before another takes its place, which has been started by then. An element of a
    /// map counts as a task; a chunk that is longer than what is left is still run whole. In a pool of several, the
    /// first workers run up to a quarter fewer, so that they are not replaced all at once. Zero is an error. Defaults
    /// to no limit.
    #[doc(alias = "maxtasksperchild")]
    #[doc(alias = "max_tasks_per_child")]
    pub fn max_tasks_per_worker(mut self, tasks: u64) -> Self {
        self.max_tasks_per_worker = Some(tasks);
        self
    }

    /// How much resident memory, in bytes, a worker may keep after a task. One that has more is replaced: it goes on
    /// until another is up, then finishes what it runs and ends. No task is lost for it; to bound what a task may take
    /// while it runs, see `memory_limit`. Memory that it shares with others, a copy with its
    /// [template](StartMethod::ForkServer) say, is counted. Zero is an error. Defaults to no limit.
    pub fn max_worker_memory(mut self, bytes: u64) -> Self {
        self.max_worker_memory = Some(bytes);
        self
    }

    /// How old a worker grows, from when it is ready, before another takes its place, as with
    /// [`max_worker_memory`](Self::max_worker_memory). Each is replaced up to a tenth earlier, so that they are not all
    /// at once. Zero is an error. Defaults to no limit.
    pub fn max_worker_age(mut self, age: Duration) -> Self {
        self.max_worker_age = Some(age);
        self
    }

    /// How long a task may run, where [`Task::timeout`](crate::Task::timeout) does not say otherwise; of a map, each
    /// element. Zero is an error. Defaults to no limit.
    pub fn task_timeout(mut self, timeout: Duration) -> Self {
        self.task_options.timeout = Some(timeout);
        self
    }

    /// How long a task may wait for its start, where [`Task::queue_timeout`](crate::Task::queue_timeout) does not say
    /// otherwise; of a map, each chunk. Zero is an error. Defaults to no limit.
    pub fn queue_timeout(mut self, timeout: Duration) -> Self {
        self.task_options.queue_timeout = Some(timeout);
        self
    }

    /// How long a task may take from its submission to its end, where [`Task::deadline`](crate::Task::deadline) does
    /// not say otherwise; of a map, each chunk. Zero is an error. Defaults to no limit.
    pub fn task_deadline(mut self, deadline: Duration) -> Self {
        self.task_options.time_to_live = Some(deadline);
        self
    }

    /// How often a task is tried again after its worker was lost or its timeout was up, where
    /// [`Task::retries`](crate::Task::retries) does not say otherwise. Defaults to 0.
    pub fn task_retries(mut self, retries: u32) -> Self {
        self.task_options.retries = retries;
        self
    }

    /// How long a task that asks [`worker::cancelled`](crate::worker::cancelled) has to end by itself, when it is
    /// cancelled or its time is up, before its worker is stopped. Until then its worker takes no other task. Zero
    /// stops it at once. Defaults to 250 milliseconds.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.cancel_grace = grace;
        self
    }

    /// How long a worker that is stopped has from SIGTERM to SIGKILL. Another is started in its place meanwhile.
    ///
    /// What the task started gets the SIGTERM, and the worker itself if something there handles it. Where nothing is
    /// there that could notice, SIGKILL comes at once, as it does with zero, and where many workers are stopped at
    /// once. Defaults to 250 milliseconds.
    pub fn term_grace(mut self, grace: Duration) -> Self {
        self.term_grace = grace;
        self
    }

    /// How many tasks a worker runs at a time, which makes sense for async tasks: blocking ones still run one after
    /// the other there.
    ///
    /// With more than one, an async task that is cancelled or out of time is dropped at its next await. One that has
    /// not ended within a second, blocking or never awaiting, costs the worker, as any death of the worker takes all
    /// that it runs with it. Zero is
    /// an error, as are more than 4096. Defaults to 1.
    pub fn tasks_per_worker(mut self, tasks: usize) -> Self {
        self.tasks_per_worker = tasks;
        self
    }

    /// How many tasks may wait. With 0 a task is taken only when a worker is free. At the bound
    /// [`apply`](Pool::apply), maps and streams wait, [`try_apply`](Pool::try_apply) gives the argument back, and
    /// [`apply_async`](Pool::apply_async) gives a handle that says
    /// [`QueueFull`](crate::TaskErrorKind::QueueFull). The lanes of a worker that is being replaced are taken.
    ///
    /// Who waits is let in by priority, and then in order of arrival; nobody overtakes, so that a newcomer is refused
    /// while others wait. A map and a stream wait with one frame at a time. Defaults to no bound.
    pub fn queue_capacity(mut self, tasks: usize) -> Self {
        self.queue_capacity = Some(tasks);
        self
    }

    /// How many bytes the tasks that wait may have, as they are encoded; those that run are not counted. At this bound
    /// the same happens as at [`queue_capacity`](Self::queue_capacity), which may be set too: then both hold.
    ///
    /// A task that is larger than the bound is not refused for ever: it may wait alone. The queue thus holds at most
    /// this much memory, or one task. Callers who wait for room hold their arguments besides: bound how many there are,
    /// or use [`try_apply`](Pool::try_apply). Zero is an error. Defaults to no bound.
    pub fn queue_capacity_bytes(mut self, bytes: u64) -> Self {
        self.queue_capacity_bytes = Some(bytes);
        self
    }

    /// How long a caller that awaits an answer, and a worker that has given one, look for what comes next before they
    /// sleep: a call then costs a few microseconds, where waking a processor takes some fifty. Meanwhile they use a
    /// processor, and a caller the thread that polls it.
    ///
    /// They look only while it is worth it: more rarely the more often they looked in vain, down to one of 64 times; not
    /// while others want the processor; and of callers no more at a time than half as many as there are processors,
    /// on a single one nobody. A pool without work sleeps. With a long time, news of the worker, its death say, may be
    /// heard so much later. Zero switches it off, more than a second is an error. Defaults to 50 µs.
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// How many bytes an encoded argument or result may have. A larger one is
    /// [`TooLarge`](crate::TaskErrorKind::TooLarge) where it is encoded, and nothing of it is sent. Zero is an error.
    /// Defaults to 1 GiB.
    pub fn max_frame_size(mut self, bytes: u64) -> Self {
        self.max_frame_size = bytes;
        self
    }

    /// How long a worker may take from its start until it is ready, its initializer included. Zero is an error.
    /// Defaults to 30 seconds.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How long a worker that was told to end may take for it, exit handlers included, before it is killed. Defaults
    /// to 5 seconds.
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.shutdown_grace = grace;
        self
    }

    /// Runs `initializer` with a copy of `argument` in every worker before its first task, in those that replace
    /// others too. It may return `()` or a `Result<(), E>`.
    ///
    /// A worker whose initializer fails or panics does not start: [`build`](Self::build) gives
    /// [`Initializer`](BuildError::Initializer), and later starts are tried again with growing pauses. The argument
    /// cannot hold an [`Fd`](crate::Fd), and may be longer than [`max_frame_size`](Self::max_frame_size). Defaults to none.
    pub fn initializer<F, A, O>(mut self, initializer: F, argument: A) -> Self
    where
        F: Fn(A) -> O + Copy + 'static,
        A: Serialize + DeserializeOwned,
        O: InitializerOutcome,
    {
        self.initializer = Some(Initializer::new(initializer, &argument));
        self
    }

    /// How workers come to be. With [`StartMethod::ForkServer`] the initializer runs once, in a template that lives as
    /// long as the pool, and not in each worker. Defaults to [`StartMethod::Exec`].
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = method;
        self
    }

    /// Sets a variable in the environment of the workers, which otherwise is the parent's. A name that is empty or
    /// contains `=`, and a NUL byte anywhere, are errors.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.program.env.set(key, value);
        self
    }

    /// Sets variables in the workers' environment.
    pub fn envs<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        for (key, value) in variables {
            self.program.env.set(key, value);
        }
        self
    }

    /// Removes a variable from the workers' environment.
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.program.env.remove(key);
        self
    }

    /// Begins with an empty environment, but for what the library needs. What was set before is forgotten.
    pub fn env_clear(mut self) -> Self {
        self.program.env.clear();
        self
    }

    /// The working directory of the workers. Defaults to the parent's, as it is when they start.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.program.current_dir = Some(directory.into());
        self
    }

    /// Another program as the worker. It must call [`init`](crate::init) and be of the same build, a copy of this
    /// program or a script that executes it. Defaults to the running program itself, from memory: it may be replaced
    /// or deleted meanwhile.
    #[doc(alias = "set_executable")]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program.path = Some(program.into());
        self
    }

    /// Where the standard output of the workers goes. Defaults to the parent's own.
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where the standard error of the workers goes. The last of it is kept for errors in any case. Defaults to the
    /// parent's own.
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self
    }

    /// Allows this pool to be built inside a worker of another. Defaults to `false`, for it is nearly always meant
    /// to be the parent's pool.
    pub fn nested(mut self, nested: bool) -> Self {
        self.nested = nested;
        self
    }

    /// How deep pools may nest: 1 is a pool in a worker of a pool in the main program. Defaults to 8.
    pub fn max_depth(mut self, depth: u32) -> Self {
        self.max_depth = depth;
        self
    }

    /// Calls `hook` whenever a worker has become ready. It runs on the library's own thread and must not block. A
    /// panic in it is reported and changes nothing. Defaults to none.
    pub fn on_worker_start(mut self, hook: impl Fn(&WorkerEvent) + Send + Sync + 'static) -> Self {
        self.on_worker_start = Some(Arc::new(hook));
        self
    }

    /// Calls `hook` whenever a worker that was ready has ended. It runs on the library's own thread and must not
    /// block. A panic in it is reported and changes nothing. Defaults to none.
    pub fn on_worker_exit(mut self, hook: impl Fn(&WorkerEvent) + Send + Sync + 'static) -> Self {
        self.on_worker_exit = Some(Arc::new(hook));
        self
    }

    /// How many bytes of what workers print may wait for where it goes, for standard output and standard error each,
    /// and for events. What does not fit is dropped and counted. Zero is an error. Defaults to 8 MiB.
    pub fn output_buffer(mut self, bytes: usize) -> Self {
        self.output_buffer = bytes;
        self
    }

    /// Calls `current` whenever a task is submitted, by who submits it, for the W3C trace context that travels with
    /// the task to [`worker::trace_context`](crate::worker::trace_context). A task that
    /// [has one](crate::Task::trace_context) keeps that. A panic in it is reported, and the task has none. Defaults
    /// to none.
    ///
    /// This is where OpenTelemetry plugs in: inject the current context into a
    /// [`TraceContext`](crate::TraceContext) here, and extract it in the task.
    pub fn trace_context(
        mut self,
        current: impl Fn() -> Option<TraceContext> + Send + Sync + 'static,
    ) -> Self {
        self.trace_context = Some(Arc::new(current));
        self
    }

    /// Emits `tracing` spans and events of workers, up to the verbosity `level`, again in the parent: under the span
    /// that was current where their task was submitted, and to the subscriber that was.
    ///
    /// The worker sends what the parent's subscriber would take, by its maximum level at the time when the task was
    /// submitted. It does so from a subscriber of its own, which is set as the global default behind the initializer:
    /// one that the initializer sets itself wins, and nothing is sent. Spans and events of the initializer itself are
    /// sent, to the parent's global subscriber, unless a [template](StartMethod::ForkServer) runs it. In the parent a
    /// thread of the pool's own emits them, a moment later, in the order in which the worker did; a result may be there
    /// before them. [`join`](Pool::join) waits for them. Entering and leaving spans is not told. Numbers and texts arrive
    /// as what they were, anything else as its `Debug` form; texts are cut to 16 KiB.
    ///
    /// A worker never waits for the parent to take events. Those that do not fit into a pipe, or into the
    /// [buffer](Self::output_buffer), are dropped and counted in [`Stats::events_dropped`](crate::Stats). What was
    /// emitted before a worker's end arrives, whatever that end was. Records of the crate `log` come along where the
    /// initializer installs a `LogTracer` of `tracing-log`. Defaults to `LevelFilter::OFF`.
    #[cfg(feature = "tracing")]
    pub fn tracing(mut self, level: impl Into<tracing::level_filters::LevelFilter>) -> Self {
        self.tracing = level.into();
        self
    }

    /// Has connections driven by the library's own runtime, whatever runtime this is built on.
    pub(crate) fn own_runtime(mut self) -> Self {
        self.own_runtime = true;
        self
    }

    /// Starts the workers and returns when all of them are ready.
    ///
    /// Blocks for the time of one system call that starts a process, as tokio's own processes do.
    ///
    /// The pool lives on the tokio runtime that this runs on, and is terminated when that is shut down. On a
    /// current-thread runtime, and outside of any, the library's own thread does the pool's work, so that it goes on
    /// while the runtime is not polled. On a multi-thread runtime its threads do; one whose threads all block, in
    /// `futures::executor::block_on` say, waits for ever for its own results.
    ///
    /// # Errors
    ///
    /// Every [`BuildError`]: an option that has no meaning, [`init`](crate::init) not called, or the first worker
    /// that could not start. All others have been stopped when this returns.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it is ready, the workers are killed.
    pub async fn build(self) -> Result<Pool, BuildError> {
        let (pool, ready) = self.start()?;
        let mut ready: FuturesUnordered<_> = ready.into_iter().collect();
        while let Some(ready) = ready.next().await {
            // A supervisor that ends without a word was stopped.
            if let Err(error) = ready.unwrap_or(Err(BuildError::Closed)) {
                // The first error is the cause, and others need not be waited for.
                pool.shared().end(End::Terminated);
                pool.shared().all_gone().await;
                return Err(error);
            }
        }
        Ok(pool)
    }

    /// Starts the workers, and gives for each of them what tells when it is ready.
    #[expect(clippy::type_complexity, reason = "it says what it is")]
    pub(crate) fn start(self) -> Result<(Pool, Vec<oneshot::Receiver<Result<(), BuildError>>>), BuildError> {
        let own_runtime = self.own_runtime;
        let config = self.check()?;
        let own = runtime::handle()
            .map_err(refused("start the library's runtime"))?
            .clone();
        if !worker::is_worker() {
            buffers::keep_more(runtime::watch_buffers);
        }
        let user = if own_runtime {
            None
        } else {
            Handle::try_current().ok()
        };
        let home = match &user {
            Some(user) if user.runtime_flavor() == RuntimeFlavor::MultiThread => user.clone(),
            _ => own.clone(),
        };
        let (ears, reader) = Ears::new(config.output_buffer).map_err(refused("make an event descriptor"))?;
        let template = match config.start_method {
            StartMethod::Exec => None,
            StartMethod::ForkServer => {
                let template =
                    Template::new(config.template(&ears)).map_err(refused("start the library's thread"))?;
                Some(Arc::new(template))
            }
        };
        let services = Arc::new(Services::new(
            home,
            own.clone(),
            Arc::clone(&ears),
            template.clone(),
        ));
        let first = 0..config.least_workers;
        let mut ready: Vec<_> = first.map(|worker| services.first_start(worker)).collect();
        let (mut shared, mut starts) = Shared::new(config, user.clone());
        shared.ears = Some(ears);
        shared.template = template;
        let shared = Arc::new(shared);
        if let Some(user) = user {
            supervisor::watch_runtime(&shared, &user);
        }
        shared.act(shared.lock());
        supervisor::start_first(&shared, &services, iter::from_fn(|| starts.try_recv().ok()));
        own.spawn(keeper::keep(Arc::clone(&shared), services, starts));
        // Workers are on their way by now, and have nothing to say or to allocate yet.
        claim::begin();
        if let Err(error) = reader.start() {
            let (failed, result) = oneshot::channel();
            failed.send(Err(refused("start the output thread")(error))).ok();
            ready.insert(0, result);
        }
        Ok((Pool::new_from(shared), ready))
    }

    fn check(self) -> Result<Config, BuildError> {
        init::check()?;
        let Self {
            name,
            worker_name,
            workers,
            tasks_per_worker,
            queue_capacity,
            max_frame_size,
            start_timeout,
            shutdown_grace,
            cancel_grace,
            term_grace,
            task_options,
            max_tasks_per_worker,
            max_worker_memory,
            max_worker_age,
            idle_timeout,
            initializer,
            program,
            stdout,
            stderr,
            nested,
            max_depth,
            on_worker_start,
            on_worker_exit,
            own_runtime: _,
            limits,
            output_buffer,
            trace_context,
            #[cfg(feature = "tracing")]
            tracing,
            queue_capacity_bytes,
            spin,
            start_method,
        } = self;
        let invalid = |option, reason: &str| {
            Err(BuildError::InvalidOption {
                option,
                reason: reason.to_owned(),
            })
        };
        let depth = worker::depth();
        match worker::role() {
            Some(Role::Process { is_daemon: true, .. }) => return Err(BuildError::Daemon),
            Some(Role::Template { .. }) => return Err(BuildError::Template),
            Some(Role::Worker { .. }) if !nested => return Err(BuildError::Nested),
            _ => {}
        }
        if depth > max_depth {
            return Err(BuildError::TooDeep {
                depth,
                limit: max_depth,
            });
        }
        let processors = cpus::available();
        let (least_workers, workers) = match workers {
            None => (processors, processors),
            Some((_, 0)) => return invalid("workers", "a pool has at least one worker"),
            Some((_, most)) if most > MOST_WORKERS => return invalid("workers", "more than 4096"),
            Some((least, most)) if least > most => {
                return invalid("workers_between", "the least number is above the greatest");
            }
            Some(bounds) => bounds,
        };
        if NonZeroUsize::new(tasks_per_worker).is_none() {
            return invalid("tasks_per_worker", "a worker runs at least one task");
        }
        if tasks_per_worker > MOST_TASKS_PER_WORKER {
            return invalid("tasks_per_worker", "more than 4096");
        }
        if max_frame_size == 0 {
            return invalid("max_frame_size", "nothing fits into zero bytes");
        }
        if let Err(Cause::InvalidOption { option, reason }) = task_options.check() {
            // The pool's own name for it.
            let option = if option == "timeout" {
                "task_timeout"
            } else {
                option
            };
            return invalid(option, reason);
        }
        if max_tasks_per_worker == Some(0) {
            return invalid("max_tasks_per_worker", "a worker runs at least one task");
        }
        if max_worker_memory == Some(0) {
            return invalid("max_worker_memory", "every process takes memory");
        }
        if max_worker_age.is_some_and(|age| age.is_zero()) {
            return invalid("max_worker_age", "a worker lives for a time");
        }
        if idle_timeout.is_zero() {
            return invalid("idle_timeout", "a worker would end before its first task");
        }
        if start_timeout.is_zero() {
            return invalid("start_timeout", "no worker starts in no time");
        }
        if spin > LONGEST_SPIN {
            return invalid("spin", "who looks for more than a second should sleep");
        }
        if output_buffer == 0 {
            return invalid("output_buffer", "no line fits into zero bytes");
        }
        if queue_capacity_bytes == Some(0) {
            return invalid("queue_capacity_bytes", "no task takes zero bytes");
        }
        for (option, text) in [("name", &name), ("worker_name", &worker_name)] {
            if text.contains('\0') {
                return invalid(option, "it contains a NUL byte");
            }
        }
        program.env.check()?;
        limits.check(workers)?;
        // On a single processor nothing comes while somebody looks for it.
        let (spin, lookers) = match processors {
            1 => (Duration::ZERO, 0),
            _ if spin.is_zero() => (spin, 0),
            cpus => (spin, cpus / 2),
        };
        let initializer = initializer.map(Initializer::encoded).transpose()?;
        Ok(Config {
            name,
            worker_name,
            least_workers,
            workers,
            tasks_per_worker,
            queue_capacity,
            max_frame_size,
            start_timeout,
            shutdown_grace,
            cancel_grace,
            term_grace,
            task_options,
            max_tasks_per_worker,
            max_worker_memory,
            max_worker_age,
            idle_timeout,
            initializer,
            program,
            stdout,
            stderr,
            depth: depth + 1,
            on_worker_start,
            on_worker_exit,
            limits,
            output_buffer,
            trace_context,
            #[cfg(feature = "tracing")]
            tracing,
            queue_capacity_bytes,
            spin,
            lookers,
            processors,
            start_method,
        })
    }
}

/// A pool's options, checked.
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) worker_name: String,
    /// The least number of workers.
    pub(crate) least_workers: usize,
    /// The greatest number of workers.
    pub(crate) workers: usize,
    pub(crate) tasks_per_worker: usize,
    pub(crate) queue_capacity: Option<usize>,
    pub(crate) max_frame_size: u64,
    pub(crate) start_timeout: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) cancel_grace: Duration,
    pub(crate) term_grace: Duration,
    pub(crate) task_options: TaskOptions,
    pub(crate) max_tasks_per_worker: Option<u64>,
    pub(crate) max_worker_memory: Option<u64>,
    pub(crate) max_worker_age: Option<Duration>,
    pub(crate) idle_timeout: Duration,
    pub(crate) initializer: Option<(u32, Bytes)>,
    pub(crate) program: Program,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// Of the workers.
    pub(crate) depth: u32,
    on_worker_start: Option<Hook>,
    on_worker_exit: Option<Hook>,
    pub(crate) limits: LimitOptions,
    output_buffer: usize,
    trace_context: Option<TraceHook>,
    #[cfg(feature = "tracing")]
    pub(crate) tracing: tracing::level_filters::LevelFilter,
    pub(crate) queue_capacity_bytes: Option<u64>,
    /// How long worker and caller look for what may come soon.
    pub(crate) spin: Duration,
    /// Callers that may look at a time.
    pub(crate) lookers: usize,
    /// That this process may use.
    pub(crate) processors: usize,
    pub(crate) start_method: StartMethod,
}

/// What a pool has that was never started.
impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            worker_name: String::new(),
            least_workers: 1,
            workers: 1,
            tasks_per_worker: 1,
            queue_capacity: None,
            max_frame_size: u64::MAX,
            start_timeout: Duration::ZERO,
            shutdown_grace: Duration::ZERO,
            cancel_grace: Duration::ZERO,
            term_grace: Duration::ZERO,
            task_options: TaskOptions::default(),
            max_tasks_per_worker: None,
            max_worker_memory: None,
            max_worker_age: None,
            idle_timeout: Duration::MAX,
            initializer: None,
            program: Program::default(),
            stdout: Output::null(),
            stderr: Output::null(),
            depth: 0,
            on_worker_start: None,
            on_worker_exit: None,
            limits: LimitOptions::default(),
            output_buffer: 1,
            trace_context: None,
            #[cfg(feature = "tracing")]
            tracing: tracing::level_filters::LevelFilter::OFF,
            queue_capacity_bytes: None,
            spin: Duration::ZERO,
            lookers: 0,
            processors: 1,
            start_method: StartMethod::Exec,
        }
    }
}

impl Config {
    /// Whether idle workers may end.
    pub(crate) fn can_shrink(&self) -> bool {
        self.least_workers < self.workers
    }

    /// What its workers are copied from.
    fn template(&self, ears: &Arc<Ears>) -> Plan {
        Plan {
            name: format!("{} template", self.name),
            program: self.program.clone(),
            initializer: self.initializer.clone(),
            depth: self.depth,
            max_frame_size: self.max_frame_size,
            start_timeout: self.start_timeout,
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            is_free: false,
            ears: Arc::clone(ears),
        }
    }

    /// What a worker must do for its words to be told apart.
    pub(crate) fn words(&self) -> Words {
        // Of several tasks at a time no word is any one's.
        let single = self.tasks_per_worker == 1;
        let (mark_stdout, mark_stderr) = (
            single && self.stdout.sink.is_tagged(),
            single && self.stderr.sink.is_tagged(),
        );
        Words {
            token: (mark_stdout || mark_stderr).then(Token::random),
            mark_stdout,
            mark_stderr,
            #[cfg(feature = "tracing")]
            events: crate::process::origin::verbosity(self.tracing),
            #[cfg(not(feature = "tracing"))]
            events: None,
        }
    }

    /// Whether it matters which span a task was submitted in.
    #[cfg(feature = "tracing")]
    pub(crate) fn wants_origin(&self) -> bool {
        self.tracing != tracing::level_filters::LevelFilter::OFF
            || [&self.stdout, &self.stderr]
                .iter()
                .any(|output| matches!(output.sink, crate::process::output::Sink::Tracing))
    }

    /// The trace context of who submits a task, as the pool's hook tells.
    pub(crate) fn current_trace_context(&self) -> Option<TraceContext> {
        let hook = self.trace_context.as_ref()?;
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook())) {
            Ok(context) => context,
            Err(payload) => {
                codec::drop_quietly(payload);
                None
            }
        }
    }

    pub(crate) fn initializer_name(&self) -> String {
        self.initializer
            .as_ref()
            .map(|&(row, _)| encode::name(row).to_owned())
            .unwrap_or_default()
    }

    pub(crate) fn worker_started(&self, worker: usize, pid: u32) {
        call(
            self.on_worker_start.as_ref(),
            &WorkerEvent {
                worker,
                pid,
                status: None,
                out_of_memory: None,
            },
        );
    }

    pub(crate) fn worker_exited(&self, loss: &WorkerLoss) {
        let event = WorkerEvent {
            worker: loss.worker,
            pid: loss.pid,
            status: loss.status,
            out_of_memory: loss.out_of_memory,
        };
        call(self.on_worker_exit.as_ref(), &event);
    }
}

fn call(hook: Option<&Hook>, event: &WorkerEvent) {
    if let Some(hook) = hook
        && let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook(event)))
    {
        codec::drop_quietly(payload);
    }
}
