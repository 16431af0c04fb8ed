//! Inside a worker: what a task can ask about where it runs.
//!
//! # Examples
//!
//! ```
//! use procession::{Pool, worker};
//!
//! procession::init();
//! assert!(!worker::is_worker());
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let pool = Pool::builder().workers(1).build().await?;
//! assert!(pool.apply(|_: ()| worker::is_worker(), ()).await?);
//! assert_eq!(pool.apply(|_: ()| worker::id(), ()).await?, Some(0));
//! # Ok::<_, Box<dyn std::error::Error>>(()) })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod enter;
mod stdio;
mod inbox;
mod bias;
mod reply;
mod panic;
mod limits;
mod footprint;
mod memory;
mod execute;
mod cancel;
mod serve;
mod adopted;
mod watch;
mod marks;
mod current;
#[cfg(feature = "tracing")]
mod forward;

use std::sync::OnceLock;

pub use cancel::{Cancellation, cancellation, cancelled};
pub(crate) use enter::run;

pub use current::trace_context;

/// What the parent told this worker about itself.
static IDENTITY: OnceLock<Identity> = OnceLock::new();

#[derive(Debug)]
struct Identity {
    pool: String,
    worker: usize,
    depth: u32,
}

/// Whether this process is a worker.
#[must_use]
pub fn is_worker() -> bool {
    IDENTITY.get().is_some()
}

/// This worker's number, from 0 to the pool's size less one. The worker that replaces it has the same. `None` in a
/// process that is no worker.
#[must_use]
#[doc(alias = "worker_index")]
pub fn id() -> Option<usize> {
    IDENTITY.get().map(|identity| identity.worker)
}

/// The name of the pool that this worker belongs to. `None` in a process that is no worker.
#[must_use]
pub fn pool_name() -> Option<&'static str> {
    IDENTITY.get().map(|identity| identity.pool.as_str())
}

/// How deep pools are nested here: 0 in a process that is no worker, 1 in the worker of a pool built there.
pub(crate) fn depth() -> u32 {
    IDENTITY.get().map_or(0, |identity| identity.depth)
}
