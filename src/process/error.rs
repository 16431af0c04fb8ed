//! [`ProcessError`]: why a process was not started, or ended without a value.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use crate::error::{BuildError, RemotePanic};
use crate::memory::OutOfMemory;
use crate::wire::codec::EncodeError;
use crate::wire::message::Failure;

/// What kind of failure a [`ProcessError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessErrorKind {
    /// It was not started, or could not set itself up. [`start_error`](ProcessError::start_error) says why.
    Start,
    /// Its function panicked. [`panic`](ProcessError::panic) is the panic.
    Panicked,
    /// It ended before its function had returned: by `exit`, by a signal, because it was killed.
    /// [`exit_status`](ProcessError::exit_status) says how.
    Exited,
    /// The argument or the result could not be encoded.
    Encode,
    /// The argument or the result could not be decoded.
    Decode,
    /// The argument or the result is over [`max_frame_size`](crate::ProcessBuilder::max_frame_size).
    TooLarge,
    /// Its value has been taken by an earlier [`join_timeout`](crate::Process::join_timeout).
    AlreadyJoined,
    /// It has ended, and somebody else in this program took its exit status, or had the kernel drop it by ignoring
    /// SIGCHLD.
    StatusLost,
}

/// Why a process was not started, or ended without a value.
///
/// A cheap clone: what is inside is shared. The function's own `Result` is not here, it is the function's value.
///
/// # Examples
///
/// ```
/// use procession::{Process, ProcessErrorKind};
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let process = Process::spawn(|code: i32| std::process::exit(code), 3).await?;
/// let error = process.join().await.map(|_: ()| ()).unwrap_err();
/// assert_eq!(error.kind(), ProcessErrorKind::Exited);
/// assert_eq!(error.exit_code(), Some(3));
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ProcessError {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    pid: Option<u32>,
    status: Option<ExitStatus>,
    cause: Cause,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    Start(BuildError),
    Panicked(RemotePanic),
    Exited(Exit),
    Encode(String),
    Decode(String),
    TooLarge {
        what: &'static str,
        size: Option<u64>,
        limit: u64,
    },
    AlreadyJoined,
    StatusLost,
}

/// How a process ended whose function did not return.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exit {
    /// What it did wrong, where it was cut off for that.
    pub(crate) fault: Option<String>,
    /// Where it ended for want of memory.
    pub(crate) out_of_memory: Option<OutOfMemory>,
    pub(crate) stderr: String,
}

impl From<BuildError> for Cause {
    fn from(error: BuildError) -> Self {
        Self::Start(error)
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Panicked(panic) => Self::Panicked(panic),
            Failure::DecodeArgument(message) => Self::Decode(format!("the argument: {message}")),
            Failure::EncodeResult(message) => Self::Encode(format!("the result: {message}")),
            Failure::TooLarge { size, limit } => Self::TooLarge {
                what: "the result",
                size,
                limit,
            },
            Failure::UnknownTask(row) => Self::Decode(format!("it has no task number {row}")),
            // Nobody cancels a process.
            Failure::Cancelled => Self::Exited(Exit::default()),
        }
    }
}

impl From<EncodeError> for Cause {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLarge { limit } => Self::TooLarge {
                what: "the argument",
                size: None,
                limit,
            },
            EncodeError::Refused(message) => Self::Encode(format!("the argument: {message}")),
        }
    }
}

impl ProcessError {
    /// Of the process `name`, which was started if it has a `pid`.
    pub(crate) fn new(name: &str, pid: Option<u32>, status: Option<ExitStatus>, cause: Cause) -> Self {
        Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                pid,
                status,
                cause,
            }),
        }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ProcessErrorKind {
        match self.inner.cause {
            Cause::Start(_) => ProcessErrorKind::Start,
            Cause::Panicked(_) => ProcessErrorKind::Panicked,
            Cause::Exited(_) => ProcessErrorKind::Exited,
            Cause::Encode(_) => ProcessErrorKind::Encode,
            Cause::Decode(_) => ProcessErrorKind::Decode,
            Cause::TooLarge { .. } => ProcessErrorKind::TooLarge,
            Cause::AlreadyJoined => ProcessErrorKind::AlreadyJoined,
            Cause::StatusLost => ProcessErrorKind::StatusLost,
        }
    }

    /// The process's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The process's number. `None` where none was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.inner.pid
    }

    /// Why it was not started or could not set itself up, for [`Start`](ProcessErrorKind::Start).
    #[must_use]
    pub fn start_error(&self) -> Option<&BuildError> {
        match &self.inner.cause {
            Cause::Start(error) => Some(error),
            _ => None,
        }
    }

    /// The function's panic.
    #[must_use]
    pub fn panic(&self) -> Option<&RemotePanic> {
        match &self.inner.cause {
            Cause::Panicked(panic) => Some(panic),
            _ => None,
        }
    }

    /// How the process ended. `None` where it was not started or its status was lost.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.inner.status
    }

    /// The exit code, as [`Process::exit_code`](crate::Process::exit_code) has it: negative for a signal.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.inner.status.map(exit_code)
    }

    /// Where it ended for want of memory: what is known of that.
    #[must_use]
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        match &self.inner.cause {
            Cause::Exited(exit) => exit.out_of_memory,
            _ => None,
        }
    }

    /// The last lines that the process wrote to its standard error before it ended without a value, at most 16 KiB.
    /// `None` where it wrote none, or wrote them to the parent's own standard error.
    #[must_use]
    pub fn stderr(&self) -> Option<&str> {
        match &self.inner.cause {
            Cause::Exited(exit) if !exit.stderr.is_empty() => Some(&exit.stderr),
            _ => None,
        }
    }

    /// Whether the function panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.kind() == ProcessErrorKind::Panicked
    }
}

/// Python's convention: the exit code, or the negated number of the signal.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

impl fmt::Display for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process `{}`", self.inner.name)?;
        if let Some(pid) = self.inner.pid {
            write!(f, " (pid {pid})")?;
        }
        match &self.inner.cause {
            Cause::Start(error) => write!(f, " could not be started: {error}"),
            Cause::Panicked(panic) => write!(f, " {panic}"),
            Cause::Exited(exit) => {
                if let Some(fault) = &exit.fault {
                    write!(f, " {fault}, and")?;
                }
                match (exit.out_of_memory, self.inner.status) {
                    (Some(end), _) => write!(f, " {end}")?,
                    (None, Some(status)) => write!(f, " ended without a value ({status})")?,
                    (None, None) => f.write_str(" ended without a value")?,
                }
                match exit.stderr.trim_end() {
                    "" => Ok(()),
                    stderr => write!(f, "; its standard error ended with:\n{stderr}"),
                }
            }
            Cause::Encode(message) | Cause::Decode(message) => write!(f, ": {message}"),
            Cause::TooLarge { what, size, limit } => match size {
                Some(size) => write!(f, ": {what} has {size} bytes, over max_frame_size, {limit}"),
                None => write!(f, ": {what} is over max_frame_size, {limit} bytes"),
            },
            Cause::AlreadyJoined => f.write_str(" has been joined, and its value taken"),
            Cause::StatusLost => f.write_str(" has ended, and its exit status was taken by somebody else"),
        }
    }
}

impl fmt::Debug for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessError")
            .field("name", &self.inner.name)
            .field("pid", &self.inner.pid)
            .field("status", &self.inner.status)
            .field("cause", &self.inner.cause)
            .finish()
    }
}

impl std::error::Error for ProcessError {
    /// What is behind the reason, which is told with the error itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.cause {
            Cause::Start(error) => error.source(),
            _ => None,
        }
    }
}
