//! The entry of a worker, and the guards against entering it wrongly.
//!
//! A worker is this program again, started with a marker in its environment. The marker names the very socket that
//! the parent gave it as standard input, so that what a worker itself starts inherits the variable and is no worker.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, fstat};

use crate::error::BuildError;
use crate::worker;

/// The environment variable that marks a worker: the inode of its standard input, then its nesting depth.
pub(crate) const MARKER: &str = "PROCESSION_WORKER";

/// How a process ends that was started as a worker and never came to `init`.
const EXIT_NOT_INITIALIZED: i32 = 70;

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// Turns this process into a worker if a pool started it as one, and does nothing otherwise.
///
/// Make it the first line of `main`. In a worker it never returns: it runs tasks until the pool is done with it, and
/// then exits. What stands before it in `main` runs in every worker too; what stands behind it runs in the parent
/// alone. An `async fn main` under `#[tokio::main]` has started a runtime before its first line: write a plain `main`
/// that calls `init` and then builds the runtime.
///
/// With the feature `auto-init` a constructor calls this before `main`, and no line is needed. Turn the feature on
/// for test binaries, as a dev-dependency: `#[tokio::test]` functions then use pools as they are.
///
/// Workers that the constructor makes never come to what Rust sets up for `main`: there a write to a closed pipe ends
/// the task with SIGPIPE instead of an error, and a stack overflow leaves no message.
///
/// Calling it again is harmless.
///
/// # Examples
///
/// ```
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     tokio::runtime::Runtime::new()?.block_on(async {
///         let pool = procession::Pool::new().await?;
///         assert_eq!(pool.apply(|x: u64| x * 2, 21).await?, 42);
///         Ok(())
///     })
/// }
/// ```
pub fn init() {
    INITIALIZED.store(true, Ordering::Release);
    if let Some(depth) = marked() {
        worker::run(depth);
    }
}

/// The nesting depth of this process, if it was started as a worker and its standard input is still the one that it
/// was started with.
fn marked() -> Option<u32> {
    let marker = std::env::var(MARKER).ok()?;
    let (inode, depth) = marker.split_once(':')?;
    let stdin = std::io::stdin();
    let stat = fstat(stdin.as_fd()).ok()?;
    let is_ours =
        FileType::from_raw_mode(stat.st_mode) == FileType::Socket && inode.parse() == Ok(stat.st_ino);
    if is_ours { depth.parse().ok() } else { None }
}

/// The marker for a worker whose standard input is `fd`. All are of one length, so that one can take another's place.
pub(crate) fn marker(fd: impl AsFd, depth: u32) -> std::io::Result<String> {
    Ok(format!("{:020}:{depth:010}", fstat(fd)?.st_ino))
}

/// Whether a pool may be built here, as far as `init` is concerned.
///
/// A child that was started as a worker and comes here has never called `init`. It says so and exits, for building a
/// pool in its turn would have no end.
pub(crate) fn check() -> Result<(), BuildError> {
    if worker::role().is_none() && marked().is_some() {
        eprintln!(
            "procession: this process was started as a worker, but {}",
            BuildError::NotInitialized
        );
        #[expect(
            clippy::exit,
            reason = "returning would let the program run a second time in its own worker"
        )]
        std::process::exit(EXIT_NOT_INITIALIZED);
    }
    if !INITIALIZED.load(Ordering::Acquire) && worker::role().is_none() {
        return Err(BuildError::NotInitialized);
    }
    Ok(())
}

/// Runs [`init`] before `main`.
#[cfg(feature = "auto-init")]
mod auto {
    // `unsafe`, for running before `main` is a promise to touch nothing that `main` sets up: `init` reads the environment and file descriptors. In a worker it goes on to run tasks and never
    // returns, so that nothing of `main` is ever missed.
    #[ctor::ctor(unsafe)]
    fn auto_init() {
        super::init();
    }
}
