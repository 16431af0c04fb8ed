//! [`Process`]: what the user holds.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::builder::ProcessBuilder;
use super::children::ChildProcess;
use super::error::{Cause, ProcessError};
use super::launch::refused;
use super::life::{Life, Outcome, decode};
use crate::runtime;

/// One function in one process.
///
/// The process is this program, started again, as a pool's worker is. It runs the function and ends; the value comes
/// back with [`join`](Self::join). It is no worker: it runs nothing else, may start pools and processes of its own, and
/// unless it is a [daemon](ProcessBuilder::daemon), or inside a worker, it lives on when its parent ends.
/// [`what_happens_when`](crate::what_happens_when) lists what can become of it.
///
/// A handle. Dropping it detaches, unless the builder [says otherwise](ProcessBuilder::kill_on_drop): the process goes
/// on, and is reaped when it ends. [`join_children`](crate::join_children)
/// waits for those too, and [`active_children`](crate::active_children) has them all.
///
/// Standard input is empty. Standard output and standard error are those of this process, unless the
/// [builder](ProcessBuilder::stdout) says otherwise. While the process runs, this one has three descriptors for it, and
/// one more for each of the two that does not go where this one's goes, also for as long as something that it left
/// running has that; while it starts, up to eight more.
///
/// The process ends when the function has returned and the processes that it has itself started this way have ended.
/// What it has printed without the end of a line may only appear then.
/// Threads and tasks that the function leaves running are not waited for; exit handlers run.
///
/// # Cancel safety
///
/// Awaiting it is [`join`](Self::join): dropped before it is ready, the handle is dropped, and the value lost.
///
/// # Exit codes
///
/// - 0 when the function has returned, whatever its value.
/// - 101 when it, or its initializer, panicked, as that of a program whose `main` does.
/// - 71 when its argument could not be decoded or its value not be sent, and when it was never called, because the
///   initializer failed or the process could not set itself up.
/// - 70 when the program never called [`init`](crate::init()) and would have run its `main` again.
/// - What it said, when it called `exit`.
/// - The negated number of the signal that ended it.
///
/// # Examples
///
/// ```
/// use procession::Process;
///
/// fn longest(words: Vec<String>) -> Option<String> {
///     words.into_iter().max_by_key(String::len)
/// }
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let process = Process::spawn(longest, vec!["a".to_owned(), "process".to_owned()]).await?;
/// println!("{} runs as {}", process.name(), process.pid());
/// assert_eq!(process.join().await?.as_deref(), Some("process"));
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping the handle detaches the process"]
pub struct Process<R = ()> {
    child: ChildProcess,
    held: Held,
    result: PhantomData<fn() -> R>,
}

/// Somebody's hold on a process.
#[derive(Debug)]
pub(super) struct Held {
    life: Arc<Life>,
    kills_on_drop: bool,
}

impl Held {
    pub(super) fn new(life: Arc<Life>, kills_on_drop: bool) -> Self {
        Self { life, kills_on_drop }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.kills_on_drop && !self.life.is_over() {
            // Nobody is left to be told that it may not be killed.
            self.life.kill().ok();
        }
    }
}

/// A value that is run as a process: what it needs is in its fields.
///
/// # Examples
///
/// ```
/// use procession::{Process, Run};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Countdown {
///     from: u32,
/// }
///
/// impl Run for Countdown {
///     type Output = Vec<u32>;
///
///     fn run(self) -> Vec<u32> {
///         (0..self.from).rev().collect()
///     }
/// }
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let process = Process::run(Countdown { from: 3 }).await?;
/// assert_eq!(process.join().await?, [2, 1, 0]);
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub trait Run: Serialize + DeserializeOwned + 'static {
    /// What it gives.
    type Output: Serialize + DeserializeOwned + 'static;

    /// Runs in the process.
    fn run(self) -> Self::Output;
}

impl Process {
    /// Options for a new process.
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder::default()
    }
}

impl<R: Serialize + DeserializeOwned + 'static> Process<R> {
    /// Starts a process that runs `function` with `argument`, with the default options. As
    /// [`ProcessBuilder::spawn`], which lists the errors.
    pub fn spawn<F, A>(
        function: F,
        argument: A,
    ) -> impl Future<Output = Result<Self, ProcessError>> + Send + use<F, A, R>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
    {
        Process::builder().spawn(function, argument)
    }

    /// Starts a process that runs `value`, with the default options. As [`ProcessBuilder::run`].
    pub fn run<T: Run<Output = R>>(
        value: T,
    ) -> impl Future<Output = Result<Self, ProcessError>> + Send + use<T, R> {
        Process::builder().run(value)
    }
}

impl<R> Process<R> {
    pub(super) fn new(held: Held) -> Self {
        Self {
            child: ChildProcess::new(&held.life),
            held,
            result: PhantomData,
        }
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The process's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.child.name()
    }

    /// Whether it ends with its parent.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.child.is_daemon()
    }

    /// Whether the process has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.child.is_alive()
    }

    /// How the process ended. `None` while it runs, and where its status was lost: this program ignores SIGCHLD, or
    /// waits for any child itself.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.exit_status()
    }

    /// The process's exit code as Python has it: what it exited with, or the negated number of the signal that ended
    /// it, -9 for a SIGKILL. `None` as [`exit_status`](Self::exit_status).
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_code(&self) -> Option<i32> {
        self.child.exit_code()
    }

    /// Asks the process to end, by a SIGTERM: what it has installed for that runs, else it ends at once. Processes that
    /// it started are not told. That it has ended already is no error.
    ///
    /// # Errors
    ///
    /// What the system says: that this process may not, for one that has changed its user.
    pub fn terminate(&self) -> io::Result<()> {
        self.child.terminate()
    }

    /// Interrupts the process, by a SIGINT, as Ctrl-C does to a program in a terminal; otherwise as
    /// [`terminate`](Self::terminate).
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn interrupt(&self) -> io::Result<()> {
        self.child.interrupt()
    }

    /// Kills the process, by a SIGKILL, with all of its process group: what it started and that made no group of its
    /// own. A [daemon](ProcessBuilder::daemon), or one inside a worker, is killed with all that it started. That it has
    /// ended already is no error.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> io::Result<()> {
        self.child.kill()
    }

    /// Waits for the process's end, and keeps the handle, and the value in it.
    ///
    /// # Errors
    ///
    /// [`StatusLost`](crate::ProcessErrorKind::StatusLost): it has ended, and nobody knows how.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait(&mut self) -> Result<ExitStatus, ProcessError> {
        self.child.wait().await
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits for the process's end and gives what its function returned.
    ///
    /// # Errors
    ///
    /// [`Panicked`](crate::ProcessErrorKind::Panicked), [`Exited`](crate::ProcessErrorKind::Exited) and the others.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, the handle is dropped, and the value lost.
    pub async fn join(mut self) -> Result<R, ProcessError> {
        self.held.life.over().await;
        self.take()
    }

    /// Waits for the process's end, but no longer than `timeout`, and gives what its function returned. `None` when it
    /// still runs: it goes on, and may be joined again.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join), and [`AlreadyJoined`](crate::ProcessErrorKind::AlreadyJoined) where an earlier call has
    /// given the value. A failure is given to whoever asks.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn join_timeout(&mut self, timeout: Duration) -> Result<Option<R>, ProcessError> {
        let own = runtime::handle().map_err(|error| {
            let error = refused("start the library's thread")(error);
            self.held.life.error(Cause::Start(error))
        })?;
        // On the library's own runtime, for this may be awaited outside any; dropping the set ends it.
        let mut waiting = JoinSet::new();
        let life = Arc::clone(&self.held.life);
        waiting.spawn_on(
            async move { tokio::time::timeout(timeout, life.over()).await.is_ok() },
            own,
        );
        match waiting.join_next().await {
            Some(Ok(true)) => self.take().map(Some),
            _ => Ok(None),
        }
    }

    fn take(&mut self) -> Result<R, ProcessError> {
        let outcome = match self.held.life.take_outcome() {
            Some(Outcome::Value(message)) => {
                decode(message).inspect_err(|cause| self.held.life.fail(cause.clone()))
            }
            Some(Outcome::Failed(cause)) => Err(cause),
            None => Err(Cause::AlreadyJoined),
        };
        outcome.map_err(|cause| self.held.life.error(cause))
    }
}

/// As what can be done without its value, for processes of several kinds together.
impl<R> AsRef<ChildProcess> for Process<R> {
    fn as_ref(&self) -> &ChildProcess {
        &self.child
    }
}

/// Awaiting a process joins it.
impl<R: DeserializeOwned + 'static> IntoFuture for Process<R> {
    type Output = Result<R, ProcessError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.join())
    }
}

/// Its sentinel: readable when the process has ended, for [`wait_any`](crate::wait_any), or any poll.
impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("is_daemon", &self.is_daemon())
            .field("exit_status", &self.exit_status())
            .finish()
    }
}
