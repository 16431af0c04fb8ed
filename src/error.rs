//! What can go wrong: [`BuildError`] when a pool or a process starts, [`TaskError`] when a task ends without a value.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::memory::OutOfMemory;

/// Why a pool could not be built, or a [`Process`](crate::Process) not be started.
///
/// Nothing is left running when [`build`](crate::PoolBuilder::build) or [`spawn`](crate::ProcessBuilder::spawn) returns
/// one. What is said of workers here holds for processes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// [`init`](crate::init) was not called before.
    NotInitialized,
    /// It would be started inside a worker, without [`nested`](crate::PoolBuilder::nested).
    Nested,
    /// A pool or a process would be started inside a [daemon](crate::ProcessBuilder::daemon), which may start none.
    Daemon,
    /// A pool or a process would be started by the initializer of a
    /// [template](crate::StartMethod::ForkServer), which may have one thread and no more.
    Template,
    /// The template that should have been forked had ended. Another one is started for those that follow.
    TemplateLost {
        /// How it ended, as far as that is known.
        status: Option<ExitStatus>,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// Pools and processes nest deeper than [`max_depth`](crate::PoolBuilder::max_depth).
    TooDeep {
        /// How deep this one would be: 1 inside a worker or a process that the main program has started.
        depth: u32,
        /// The limit.
        limit: u32,
    },
    /// An option that has no meaning.
    InvalidOption {
        /// The builder's method.
        option: &'static str,
        /// What is wrong with the value.
        reason: String,
    },
    /// The initializer's argument could not be encoded.
    Encode {
        /// What postcard could not do, with the type's name.
        message: String,
    },
    /// The program could not be started: missing or not executable, or the system is out of processes or file
    /// descriptors.
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// What was started is not a worker of this program, or ended before it was ready.
    Handshake {
        /// The program.
        program: PathBuf,
        /// What was wrong.
        reason: String,
        /// The first bytes that it wrote to its standard output, if any.
        first_bytes: Vec<u8>,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The worker did not become ready within [`start_timeout`](crate::PoolBuilder::start_timeout).
    StartTimeout {
        /// What it was doing.
        phase: StartPhase,
        /// How long it was given.
        timeout: Duration,
        /// The first bytes that it wrote to its standard output in place of a handshake, if any.
        first_bytes: Vec<u8>,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The initializer returned an error, panicked, or ended the worker.
    Initializer {
        /// The initializer.
        name: String,
        /// The error, the panic's message, or how the worker ended.
        message: String,
        /// The panic, if it was one.
        panic: Option<RemotePanic>,
    },
    /// The system refused something that the library itself needs.
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// It was closed or terminated while it started.
    Closed,
}

/// How far a worker had come that did not become ready in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartPhase {
    /// The process runs and has not said that it is a worker.
    Handshake,
    /// The initializer runs.
    Initializer,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInitialized => f.write_str(
                "procession::init() has not run: make it the first line of main, or turn on the feature `auto-init`",
            ),
            Self::Nested => f.write_str(
                "a pool or a process inside a worker: allow it with nested(true) of its builder if it is meant, \
                 or make sure that procession::init() runs before it is started",
            ),
            Self::Daemon => f.write_str("a daemon process may start no pools and no processes"),
            Self::Template => f.write_str(
                "the initializer of a template may start no pools and no processes: what has threads cannot be forked",
            ),
            Self::TemplateLost { status, stderr } => {
                f.write_str("the template process that should have been forked has ended")?;
                if let Some(status) = status {
                    write!(f, " ({status})")?;
                }
                write_stderr(f, stderr)
            }
            Self::TooDeep { depth, limit } => {
                write!(f, "a pool or a process at nesting depth {depth}, over max_depth, {limit}")
            }
            Self::InvalidOption { option, reason } => write!(f, "invalid {option}: {reason}"),
            Self::Encode { message } => write!(f, "the initializer's argument: {message}"),
            Self::Spawn { program, .. } => write!(f, "cannot start the program {}", program.display()),
            Self::Handshake { program, reason, first_bytes, stderr } => {
                write!(f, "{} did not become ready: {reason}", program.display())?;
                write_first_bytes(f, first_bytes)?;
                write_stderr(f, stderr)
            }
            Self::StartTimeout { phase, timeout, first_bytes, stderr } => {
                match phase {
                    StartPhase::Handshake => write!(f, "it did not answer the handshake within {timeout:?}")?,
                    StartPhase::Initializer => write!(f, "the initializer did not return within {timeout:?}")?,
                }
                write_first_bytes(f, first_bytes)?;
                write_stderr(f, stderr)
            }
            Self::Initializer { name, message, panic } => {
                write!(f, "the initializer `{name}` failed: {message}")?;
                match panic {
                    Some(panic) => write!(f, ", at {}", panic.location()),
                    None => Ok(()),
                }
            }
            Self::Io { action, .. } => write!(f, "cannot {action}"),
            Self::Closed => f.write_str("it was closed while it started"),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn { source, .. } | Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn write_first_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    if bytes.is_empty() {
        return Ok(());
    }
    write!(f, "; its first bytes were \"{}\"", bytes.escape_ascii())
}

fn write_stderr(f: &mut fmt::Formatter<'_>, stderr: &str) -> fmt::Result {
    if stderr.is_empty() {
        return Ok(());
    }
    write!(f, "; its standard error ended with:\n{}", stderr.trim_end())
}

/// What kind of failure a [`TaskError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// The task panicked; its worker lives on.
    Panicked,
    /// The worker died or was cut off while it ran the task.
    WorkerLost,
    /// The task's time was up, in this phase.
    TimedOut(TimeoutPhase),
    /// The task was cancelled.
    Cancelled,
    /// The argument or the result could not be encoded.
    Encode,
    /// The argument or the result could not be decoded.
    Decode,
    /// The argument or the result is over [`max_frame_size`](crate::PoolBuilder::max_frame_size).
    TooLarge,
    /// The queue is at one of its bounds, [`queue_capacity`](crate::PoolBuilder::queue_capacity) or
    /// [`queue_capacity_bytes`](crate::PoolBuilder::queue_capacity_bytes).
    QueueFull,
    /// The pool is closed or was terminated.
    PoolClosed,
    /// The pool has no worker and cannot start one. The source is the [`BuildError`]. It goes on trying: later tasks
    /// may be taken again.
    PoolFailed,
    /// The runtime that the pool was built on was shut down, which terminated the pool.
    RuntimeShutdown,
    /// An option of the call that has no meaning.
    InvalidOption,
}

/// Where a task was when its time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimeoutPhase {
    /// It had not started: it waited for room, in the queue, or at a worker. It never runs.
    Queued,
    /// It ran, and was stopped.
    Running,
}

/// Why a task ended without a value.
///
/// A cheap clone: what is inside is shared. The task's own `Result` is not here, it is the task's value.
///
/// # Examples
///
/// ```
/// use procession::{Pool, TaskErrorKind};
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::builder().workers(1).build().await?;
/// let error = pool.apply(|_: ()| std::process::exit(3), ()).await.map(|_: ()| ()).unwrap_err();
/// assert_eq!(error.kind(), TaskErrorKind::WorkerLost);
/// assert_eq!(error.exit_status().and_then(|status| status.code()), Some(3));
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct TaskError {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    task: String,
    cause: Cause,
    /// Of earlier tries.
    attempts: Vec<TaskError>,
}

/// What happened, with all that is known of it.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    Panicked {
        worker: usize,
        pid: u32,
        panic: RemotePanic,
    },
    WorkerLost(WorkerLoss),
    TimedOut {
        limit: TimeLimit,
        /// The worker and its process, if it ran.
        ran: Option<(usize, u32)>,
    },
    Cancelled,
    Encode(String),
    Decode(String),
    TooLarge {
        what: &'static str,
        size: Option<u64>,
        limit: u64,
    },
    QueueFull(QueueBound),
    PoolClosed {
        began: Option<bool>,
    },
    PoolFailed(BuildError),
    RuntimeShutdown,
    InvalidOption {
        option: &'static str,
        reason: &'static str,
    },
}

/// Which time of a task was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeLimit {
    Timeout(Duration),
    QueueTimeout(Duration),
    Deadline,
}

/// What a queue has reached that takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueBound {
    Tasks(usize),
    Bytes(u64),
}

impl fmt::Display for QueueBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tasks(tasks) => write!(f, "queue_capacity is {tasks} tasks"),
            Self::Bytes(bytes) => write!(f, "queue_capacity_bytes is {bytes} bytes"),
        }
    }
}

/// How a worker ended that was not told to.
#[derive(Clone, Debug)]
pub(crate) struct WorkerLoss {
    pub(crate) worker: usize,
    pub(crate) pid: u32,
    pub(crate) status: Option<ExitStatus>,
    /// What it did wrong, where it was cut off for that.
    pub(crate) fault: Option<String>,
    /// Where it ended for want of memory.
    pub(crate) out_of_memory: Option<OutOfMemory>,
    pub(crate) stderr: String,
}

impl TaskError {
    pub(crate) fn new(task: impl Into<String>, cause: Cause) -> Self {
        Self {
            inner: Arc::new(Inner {
                task: task.into(),
                cause,
                attempts: Vec::new(),
            }),
        }
    }

    /// The same error, as the last of several tries.
    pub(crate) fn after(self, attempts: Vec<Self>) -> Self {
        if attempts.is_empty() {
            return self;
        }
        Self {
            inner: Arc::new(Inner {
                task: self.inner.task.clone(),
                cause: self.inner.cause.clone(),
                attempts,
            }),
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        self.inner.cause.clone()
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> TaskErrorKind {
        match &self.inner.cause {
            Cause::Panicked { .. } => TaskErrorKind::Panicked,
            Cause::WorkerLost(_) => TaskErrorKind::WorkerLost,
            Cause::TimedOut { ran: None, .. } => TaskErrorKind::TimedOut(TimeoutPhase::Queued),
            Cause::TimedOut { ran: Some(_), .. } => TaskErrorKind::TimedOut(TimeoutPhase::Running),
            Cause::Cancelled => TaskErrorKind::Cancelled,
            Cause::Encode(_) => TaskErrorKind::Encode,
            Cause::Decode(_) => TaskErrorKind::Decode,
            Cause::TooLarge { .. } => TaskErrorKind::TooLarge,
            Cause::QueueFull(_) => TaskErrorKind::QueueFull,
            Cause::PoolClosed { .. } => TaskErrorKind::PoolClosed,
            Cause::PoolFailed(_) => TaskErrorKind::PoolFailed,
            Cause::RuntimeShutdown => TaskErrorKind::RuntimeShutdown,
            Cause::InvalidOption { .. } => TaskErrorKind::InvalidOption,
        }
    }

    /// The task's name: its function, as the compiler calls it.
    #[must_use]
    pub fn task_name(&self) -> &str {
        &self.inner.task
    }

    /// The panic, if the task panicked.
    #[must_use]
    pub fn panic(&self) -> Option<&RemotePanic> {
        match &self.inner.cause {
            Cause::Panicked { panic, .. } => Some(panic),
            _ => None,
        }
    }

    /// How the worker ended, if it was lost and the system told.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match &self.inner.cause {
            Cause::WorkerLost(loss) => loss.status,
            _ => None,
        }
    }

    /// The failures of earlier tries, oldest first, where the task had [`retries`](crate::Task::retries). This error is
    /// that of the last try.
    #[must_use]
    pub fn attempts(&self) -> &[Self] {
        &self.inner.attempts
    }

    /// The process id of the worker, if the task panicked, the worker was lost, or the time was up while it ran.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        match &self.inner.cause {
            Cause::WorkerLost(loss) => Some(loss.pid),
            Cause::TimedOut { ran, .. } => ran.map(|(_, pid)| pid),
            Cause::Panicked { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// The number of the worker, if the task panicked, the worker was lost, or the time was up while it ran.
    #[must_use]
    pub fn worker_id(&self) -> Option<usize> {
        match &self.inner.cause {
            Cause::WorkerLost(loss) => Some(loss.worker),
            Cause::TimedOut { ran, .. } => ran.map(|(worker, _)| worker),
            Cause::Panicked { worker, .. } => Some(*worker),
            _ => None,
        }
    }

    /// Whether the worker was lost because it was over its [`memory_limit`](crate::PoolBuilder::memory_limit), or
    /// because the kernel killed it for want of memory, as far as that can be told from other ends.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory().is_some()
    }

    /// What is known of a worker that was lost for want of memory.
    ///
    /// The kernel counts whom it killed for want of memory by cgroup, not by process. Where a worker without a
    /// cgroup of its own got a SIGKILL, and the kernel has killed one process more in this cgroup than workers were
    /// found dead of it, the worker is taken for that one. On a kernel or in a container that does not show its count,
    /// such an end is not recognised.
    #[must_use]
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        match &self.inner.cause {
            Cause::WorkerLost(loss) => loss.out_of_memory,
            _ => None,
        }
    }

    /// The last lines that a lost worker wrote to its standard error, while it ran the task. Some of a task that ended
    /// just before may be among them, unless standard error goes where it is told apart
    /// ([`Output::lines`](crate::Output::lines), say).
    #[must_use]
    pub fn stderr(&self) -> Option<&str> {
        match &self.inner.cause {
            Cause::WorkerLost(loss) => Some(&loss.stderr),
            _ => None,
        }
    }

    /// Whether the task panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.kind() == TaskErrorKind::Panicked
    }

    /// Whether the worker was lost.
    #[must_use]
    pub fn is_worker_lost(&self) -> bool {
        self.kind() == TaskErrorKind::WorkerLost
    }

    /// Whether the task's time was up, before or after it started.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind(), TaskErrorKind::TimedOut(_))
    }

    /// Whether the task was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind() == TaskErrorKind::Cancelled
    }

    /// Whether the pool did not take or run the task: closed, terminated, its runtime gone, or failed, which may pass
    /// ([`Pool::is_open`](crate::Pool::is_open) tells).
    #[must_use]
    pub fn is_pool_closed(&self) -> bool {
        matches!(
            self.kind(),
            TaskErrorKind::PoolClosed | TaskErrorKind::PoolFailed | TaskErrorKind::RuntimeShutdown
        )
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            task,
            cause,
            attempts,
        } = &*self.inner;
        if !attempts.is_empty() {
            write!(f, "after {} tries: ", attempts.len() + 1)?;
        }
        match cause {
            Cause::Panicked { worker, pid, panic } => {
                write!(
                    f,
                    "`{task}` panicked at {} in worker {worker} (pid {pid}): {}",
                    panic.location(),
                    panic.message
                )?;
                match &panic.backtrace {
                    Some(backtrace) => write!(f, "\n{}", backtrace.trim_end()),
                    None => Ok(()),
                }
            }
            Cause::WorkerLost(loss) => {
                let WorkerLoss {
                    worker,
                    pid,
                    status,
                    fault,
                    out_of_memory,
                    stderr,
                } = loss;
                write!(f, "worker {worker} (pid {pid}) was lost while running `{task}`: ")?;
                match (out_of_memory, fault, status) {
                    (Some(out_of_memory), ..) => write!(f, "it {out_of_memory}")?,
                    (None, Some(fault), _) => f.write_str(fault)?,
                    (None, None, Some(status)) => write!(f, "{status}")?,
                    (None, None, None) => f.write_str("the system did not tell how it ended")?,
                }
                write_stderr(f, stderr)
            }
            Cause::TimedOut { limit, ran } => {
                write!(f, "`{task}` was stopped: ")?;
                match (limit, ran) {
                    (TimeLimit::Timeout(limit), _) => write!(f, "it ran for its timeout, {limit:?}")?,
                    (TimeLimit::QueueTimeout(limit), _) => {
                        write!(
                            f,
                            "it waited for its queue timeout, {limit:?}, and had not started"
                        )?;
                    }
                    (TimeLimit::Deadline, Some(_)) => f.write_str("its deadline came while it ran")?,
                    (TimeLimit::Deadline, None) => f.write_str("its deadline came before it started")?,
                }
                match ran {
                    Some((worker, pid)) => write!(f, ", in worker {worker} (pid {pid})"),
                    None => Ok(()),
                }
            }
            Cause::Cancelled => write!(f, "`{task}` was cancelled"),
            Cause::Encode(message) | Cause::Decode(message) => write!(f, "`{task}`: {message}"),
            Cause::TooLarge {
                what,
                size: Some(size),
                limit,
            } => {
                write!(
                    f,
                    "`{task}`: {what} of {size} bytes is over max_frame_size, {limit} bytes"
                )
            }
            Cause::TooLarge {
                what,
                size: None,
                limit,
            } => {
                write!(f, "`{task}`: {what} is over max_frame_size, {limit} bytes")
            }
            Cause::QueueFull(bound) => write!(f, "`{task}` was refused: the queue is full: {bound}"),
            Cause::PoolClosed { began: None } => write!(f, "`{task}` was refused: the pool is closed"),
            Cause::PoolClosed { began: Some(false) } => {
                write!(f, "the pool was terminated before `{task}` began")
            }
            Cause::PoolClosed { began: Some(true) } => {
                write!(f, "the pool was terminated while `{task}` was at a worker")
            }
            Cause::PoolFailed(_) => write!(f, "`{task}` cannot run: the pool's workers do not start"),
            Cause::RuntimeShutdown => {
                write!(
                    f,
                    "`{task}` cannot run: the runtime that the pool was built on was shut down"
                )
            }
            Cause::InvalidOption { option, reason } => write!(f, "`{task}`: invalid {option}: {reason}"),
        }
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskError")
            .field("kind", &self.kind())
            .field("task", &self.inner.task)
            .field("cause", &self.inner.cause)
            .field("attempts", &self.inner.attempts)
            .finish()
    }
}

impl std::error::Error for TaskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.cause {
            Cause::PoolFailed(error) => Some(error),
            _ => None,
        }
    }
}

/// A panic in a worker, as it can be told in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RemotePanic {
    /// The panic's message, or a placeholder where its payload is not text.
    pub message: String,
    /// The source file, empty where it is not known.
    pub file: String,
    /// The line, from 1; 0 where it is not known.
    pub line: u32,
    /// The column, from 1; 0 where it is not known.
    pub column: u32,
    /// The backtrace, where `RUST_BACKTRACE` asks for one.
    pub backtrace: Option<String>,
}

impl RemotePanic {
    pub(crate) fn new(
        message: String,
        location: Option<&std::panic::Location<'_>>,
        backtrace: Option<String>,
    ) -> Self {
        Self {
            message,
            file: location
                .map(|location| location.file().to_owned())
                .unwrap_or_default(),
            line: location.map_or(0, std::panic::Location::line),
            column: location.map_or(0, std::panic::Location::column),
            backtrace,
        }
    }

    /// `file:line:column`.
    #[must_use]
    pub fn location(&self) -> String {
        if self.file.is_empty() {
            return "an unknown place".to_owned();
        }
        format!("{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Display for RemotePanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked at {}: {}", self.location(), self.message)
    }
}

/// [`try_apply`](crate::Pool::try_apply) could not submit: the argument comes back.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryApplyError<A> {
    /// The queue is at its [bound](crate::PoolBuilder::queue_capacity).
    QueueFull(A),
    /// The pool is closed, terminated or failed.
    PoolClosed(A),
    /// The argument cannot be encoded.
    Encode(A, String),
    /// The argument is over [`max_frame_size`](crate::PoolBuilder::max_frame_size).
    TooLarge(A),
}

impl<A> TryApplyError<A> {
    /// The argument that was not submitted.
    #[must_use]
    pub fn into_inner(self) -> A {
        match self {
            Self::QueueFull(argument)
            | Self::PoolClosed(argument)
            | Self::Encode(argument, _)
            | Self::TooLarge(argument) => argument,
        }
    }

    /// Whether the queue was full.
    #[must_use]
    pub fn is_queue_full(&self) -> bool {
        matches!(self, Self::QueueFull(_))
    }
}

impl<A> fmt::Debug for TryApplyError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueueFull(_) => "QueueFull(..)",
            Self::PoolClosed(_) => "PoolClosed(..)",
            Self::Encode(..) => "Encode(..)",
            Self::TooLarge(_) => "TooLarge(..)",
        })
    }
}

impl<A> fmt::Display for TryApplyError<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull(_) => f.write_str("the queue is full"),
            Self::PoolClosed(_) => f.write_str("the pool is closed"),
            Self::Encode(_, message) => f.write_str(message),
            Self::TooLarge(_) => f.write_str("the argument is over max_frame_size"),
        }
    }
}

impl<A> std::error::Error for TryApplyError<A> {}

/// [`join`](crate::Pool::join) on a pool that nobody has closed: it would wait for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinError;

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("join on a pool that is open: call close() or terminate() first")
    }
}

impl std::error::Error for JoinError {}

const _: () = {
    const fn assert<T: Send + Sync + Clone + 'static>() {}
    assert::<TaskError>();
    assert::<BuildError>();
};
