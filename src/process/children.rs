//! The processes that this one has started and that are not over: for those who want to see them all, and for its end.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use super::child::end_all_but;
use super::error::{Cause, ProcessError, exit_code};
use super::life::Life;
use crate::init::init;
use crate::runtime;

static CHILDREN: Mutex<Vec<Arc<Life>>> = Mutex::new(Vec::new());

fn children() -> MutexGuard<'static, Vec<Arc<Life>>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn add(life: &Arc<Life>) {
    children().push(Arc::clone(life));
}

pub(super) fn forget(life: &Arc<Life>) {
    children().retain(|other| !Arc::ptr_eq(life, other));
}

/// A process that this one has started, without its value: what [`active_children`] gives.
///
/// A handle: clones stand for the same process. Dropping it means nothing.
#[derive(Clone, Debug)]
pub struct ChildProcess {
    life: Arc<Life>,
}

impl ChildProcess {
    pub(super) fn new(life: &Arc<Life>) -> Self {
        Self {
            life: Arc::clone(life),
        }
    }

    /// The process's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.life.pid
    }

    /// The process's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.life.name
    }

    /// Whether it ends with its parent.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.life.is_daemon
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.life.killer.has_ended()
    }

    /// How it ended. `None` while it runs, and where its status was lost.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.life.status()
    }

    /// Its exit code as Python has it: what it exited with, or the negated number of the signal that ended it. `None`
    /// while it runs, and where its status was lost.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_status().map(exit_code)
    }

    /// Sends it a SIGTERM, as [`Process::terminate`](crate::Process::terminate).
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn terminate(&self) -> io::Result<()> {
        self.life.signal(Signal::TERM)
    }

    /// Sends it a SIGINT, as [`Process::interrupt`](crate::Process::interrupt).
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn interrupt(&self) -> io::Result<()> {
        self.life.signal(Signal::INT)
    }

    /// Kills it with its process group, as [`Process::kill`](crate::Process::kill).
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn kill(&self) -> io::Result<()> {
        self.life.kill()
    }

    /// Waits for its end, as [`Process::wait`](crate::Process::wait).
    ///
    /// # Errors
    ///
    /// [`StatusLost`](crate::ProcessErrorKind::StatusLost): it has ended, and nobody knows how.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus, ProcessError> {
        self.life.over().await;
        self.life
            .status()
            .ok_or_else(|| self.life.error(Cause::StatusLost))
    }
}

/// Readable when the process has ended.
impl AsFd for ChildProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.life.sentinel.as_fd()
    }
}

/// The processes that this one has started with [`Process`](crate::Process) and that have not ended, in the order of
/// their start. Workers of pools are not among them.
#[must_use]
pub fn active_children() -> Vec<ChildProcess> {
    let children = children();
    let alive = children.iter().filter(|life| !life.killer.has_ended());
    alive.map(ChildProcess::new).collect()
}

/// Waits for all processes that this one has started with [`Process`](crate::Process) and that are no daemons, also
/// those whose handle was dropped. Python does that when a program ends. A Rust program ends when `main` returns, and
/// leaves them to the system: call this last, or let [`run_main`] do it.
///
/// Daemons are not waited for. They end with this process.
///
/// # Cancel safety
///
/// Cancel safe.
pub async fn join_children() {
    loop {
        let life = children().iter().find(|life| !life.is_daemon).cloned();
        match life {
            Some(life) => life.over().await,
            None => return,
        }
    }
}

/// The same, at the end of a process.
pub(crate) fn join_all() {
    if children().is_empty() {
        return;
    }
    let (done, is_done) = channel::<()>();
    if let Ok(own) = runtime::handle() {
        own.spawn(async move {
            join_children().await;
            drop(done);
        });
        // The end of the channel is the sign.
        is_done.recv().ok();
    }
}

/// The end of this process, whose own parent would adopt what it leaves: what would end behind it ends in front of it.
pub(crate) fn end_bound(longest: Duration) {
    let free: Vec<u32> = {
        let children = children();
        let free = children.iter().filter(|life| !life.is_daemon);
        free.map(|life| life.pid).collect()
    };
    end_all_but(&free, longest);
}

/// Runs a program's `main`: [`init`](crate::init()), then `main` on a multi-thread tokio runtime, then
/// [`join_children`]. A `main` that panics or calls `exit` ends the program at once, and leaves processes that are no
/// daemons to the system.
///
/// # Panics
///
/// When `main` does, or when the system cannot give a runtime what it needs, as `#[tokio::main]` does.
///
/// # Examples
///
/// ```
/// use procession::{Process, ProcessError};
///
/// fn main() -> Result<(), ProcessError> {
///     procession::run_main(async {
///         let process = Process::spawn(|x: u64| x * 2, 21).await?;
///         assert_eq!(process.join().await?, 42);
///         Ok(())
///     })
/// }
/// ```
pub fn run_main<F: Future>(main: F) -> F::Output {
    init();
    #[expect(
        clippy::expect_used,
        reason = "a main has nobody to tell, and the attribute does the same"
    )]
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime");
    runtime.block_on(async {
        let output = main.await;
        join_children().await;
        output
    })
}
