//! [`PoolBuilder`]: what a pool can be told before it starts.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::cpus;
use super::dispatch::{End, Shared};
use super::handle::Pool;
use super::supervisor::{self, Services};
use crate::error::{BuildError, WorkerLoss};
use crate::process::output::{Output, OutputThread};
use crate::process::spawn::Program;
use crate::task::{entry, table};
use crate::wire::codec::{self, EncodeError};
use crate::{init, runtime, worker};

/// Workers that a pool may have: beyond this a machine runs out of other things.
const MOST_WORKERS: usize = 4096;
const MOST_TASKS_PER_WORKER: usize = 4096;

/// What an initializer may return: nothing, or a `Result` whose error says why the worker cannot work.
pub trait InitializerOutcome {
    #[doc(hidden)]
    fn into_outcome(self) -> Result<(), String>;
}

impl InitializerOutcome for () {
    fn into_outcome(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> InitializerOutcome for Result<(), E> {
    fn into_outcome(self) -> Result<(), String> {
        // The alternate form has the sources too, where a type has one: only text crosses.
        self.map_err(|error| format!("{error:#}"))
    }
}

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
    workers: Option<usize>,
    tasks_per_worker: usize,
    queue_capacity: Option<usize>,
    max_frame_size: u64,
    start_timeout: Duration,
    shutdown_grace: Duration,
    initializer: Option<Initializer>,
    program: Program,
    stdout: Output,
    stderr: Output,
    nested: bool,
    max_depth: u32,
    on_worker_start: Option<Hook>,
    on_worker_exit: Option<Hook>,
    own_runtime: bool,
}

/// A row and an argument, encoded when it was given.
#[derive(Clone)]
struct Initializer {
    row: u32,
    argument: Result<Vec<u8>, String>,
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
            initializer: None,
            program: Program::default(),
            stdout: Output::inherit(),
            stderr: Output::inherit(),
            nested: false,
            max_depth: 8,
            on_worker_start: None,
            on_worker_exit: None,
            own_runtime: false,
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
        self.workers = Some(workers);
        self
    }

    /// How many tasks a worker runs at a time, which makes sense for async tasks: blocking ones still run one after
    /// the other there.
    ///
    /// With more than one, a task that is cancelled while it runs does not cost the worker: an async one is dropped
    /// at its next await, and a blocking one runs to its end. A worker that dies takes all of them with it. Zero is
    /// an error, as are more than 4096. Defaults to 1.
    pub fn tasks_per_worker(mut self, tasks: usize) -> Self {
        self.tasks_per_worker = tasks;
        self
    }

    /// How many tasks may wait. With 0 a task is taken only when a worker is free. At the bound
    /// [`apply`](Pool::apply), maps and streams wait, [`try_apply`](Pool::try_apply) gives the argument back, and
    /// [`apply_async`](Pool::apply_async) gives a handle that says
    /// [`QueueFull`](crate::TaskErrorKind::QueueFull). The lanes of a worker that is being replaced are taken.
    /// Defaults to no bound.
    pub fn queue_capacity(mut self, tasks: usize) -> Self {
        self.queue_capacity = Some(tasks);
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
    /// cannot hold an [`Fd`](crate::Fd). Defaults to none.
    pub fn initializer<F, A, O>(mut self, initializer: F, argument: A) -> Self
    where
        F: Fn(A) -> O + Copy + 'static,
        A: Serialize + DeserializeOwned,
        O: InitializerOutcome,
    {
        let row = entry::blocking::<F, _, _, _>(&move |argument: A| initializer(argument).into_outcome());
        let mut bytes = Vec::new();
        let argument = match codec::encode(&argument, &mut bytes, u64::MAX) {
            Ok(()) => Ok(bytes),
            Err(EncodeError::Refused(message)) => Err(message),
            Err(EncodeError::TooLarge { limit }) => Err(format!("over {limit} bytes")),
        };
        self.initializer = Some(Initializer { row, argument });
        self
    }

    /// Sets a variable in the environment of the workers, which otherwise is the parent's.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.program.env.push((key.into(), value.into()));
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

    /// Has connections driven by the library's own runtime, whatever runtime this is built on.
    pub(crate) fn own_runtime(mut self) -> Self {
        self.own_runtime = true;
        self
    }

    /// Starts the workers and returns when all of them are ready.
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
        let io = |action| {
            move |error| BuildError::Io {
                action,
                source: Arc::new(error),
            }
        };
        let own = runtime::handle()
            .map_err(io("start the library's runtime"))?
            .clone();
        let user = if own_runtime {
            None
        } else {
            Handle::try_current().ok()
        };
        let home = match &user {
            Some(user) if user.runtime_flavor() == RuntimeFlavor::MultiThread => user.clone(),
            _ => own.clone(),
        };
        let output = OutputThread::start().map_err(io("start the output thread"))?;
        let services = Arc::new(Services::new(home, own.clone(), output));
        let workers = config.workers;
        let shared = Arc::new(Shared::new(config, user.clone()));
        if let Some(user) = user {
            supervisor::watch_runtime(&shared, &user);
        }
        let ready = (0..workers)
            .map(|worker| {
                let (ready, is_ready) = oneshot::channel();
                own.spawn(supervisor::supervise(
                    Arc::clone(&shared),
                    Arc::clone(&services),
                    worker,
                    ready,
                ));
                is_ready
            })
            .collect();
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
            initializer,
            program,
            stdout,
            stderr,
            nested,
            max_depth,
            on_worker_start,
            on_worker_exit,
            own_runtime: _,
        } = self;
        let invalid = |option, reason: &str| {
            Err(BuildError::InvalidOption {
                option,
                reason: reason.to_owned(),
            })
        };
        let depth = worker::depth();
        if depth > 0 && !nested {
            return Err(BuildError::Nested);
        }
        if depth > max_depth {
            return Err(BuildError::TooDeep {
                depth,
                limit: max_depth,
            });
        }
        let workers = match workers {
            None => cpus::available(),
            Some(0) => return invalid("workers", "a pool has at least one worker"),
            Some(workers) if workers > MOST_WORKERS => return invalid("workers", "more than 4096"),
            Some(workers) => workers,
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
        if start_timeout.is_zero() {
            return invalid("start_timeout", "no worker starts in no time");
        }
        for (option, text) in [("name", &name), ("worker_name", &worker_name)] {
            if text.contains('\0') {
                return invalid(option, "it contains a NUL byte");
            }
        }
        let initializer = match initializer {
            None => None,
            Some(Initializer { row, argument }) => {
                Some((row, argument.map_err(|message| BuildError::Encode { message })?))
            }
        };
        Ok(Config {
            name,
            worker_name,
            workers,
            tasks_per_worker,
            queue_capacity,
            max_frame_size,
            start_timeout,
            shutdown_grace,
            initializer,
            program,
            stdout,
            stderr,
            depth: depth + 1,
            on_worker_start,
            on_worker_exit,
        })
    }
}

/// A pool's options, checked.
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) worker_name: String,
    pub(crate) workers: usize,
    pub(crate) tasks_per_worker: usize,
    pub(crate) queue_capacity: Option<usize>,
    pub(crate) max_frame_size: u64,
    pub(crate) start_timeout: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) initializer: Option<(u32, Vec<u8>)>,
    pub(crate) program: Program,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// Of the workers.
    pub(crate) depth: u32,
    on_worker_start: Option<Hook>,
    on_worker_exit: Option<Hook>,
}

/// What a pool has that was never started.
impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            worker_name: String::new(),
            workers: 1,
            tasks_per_worker: 1,
            queue_capacity: None,
            max_frame_size: u64::MAX,
            start_timeout: Duration::ZERO,
            shutdown_grace: Duration::ZERO,
            initializer: None,
            program: Program::default(),
            stdout: Output::null(),
            stderr: Output::null(),
            depth: 0,
            on_worker_start: None,
            on_worker_exit: None,
        }
    }
}

impl Config {
    pub(crate) fn initializer_name(&self) -> String {
        let row = self.initializer.as_ref().and_then(|&(row, _)| table::entry(row));
        row.map(|entry| entry.name).unwrap_or_default().to_owned()
    }

    pub(crate) fn worker_started(&self, worker: usize, pid: u32) {
        call(
            self.on_worker_start.as_ref(),
            &WorkerEvent {
                worker,
                pid,
                status: None,
            },
        );
    }

    pub(crate) fn worker_exited(&self, loss: &WorkerLoss) {
        let event = WorkerEvent {
            worker: loss.worker,
            pid: loss.pid,
            status: loss.status,
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
