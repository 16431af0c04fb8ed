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
mod template;
mod adopted;
mod watch;
mod marks;
mod current;
#[cfg(feature = "tracing")]
mod forward;

use std::sync::{PoisonError, RwLock};

use crate::wire::message::Role;

pub use cancel::{Cancellation, cancellation, cancelled};
pub(crate) use enter::run;

pub use current::trace_context;

/// What the parent told this process about itself. A copy of a template is told anew.
static IDENTITY: RwLock<Option<&'static Identity>> = RwLock::new(None);

#[derive(Debug)]
struct Identity {
    role: Role,
    depth: u32,
}

/// Whether this process is a pool's worker.
#[must_use]
pub fn is_worker() -> bool {
    matches!(role(), Some(Role::Worker { .. }))
}

/// This worker's number, from 0 to the pool's size less one. The worker that replaces it has the same. `None` in a
/// process that is no worker.
#[must_use]
#[doc(alias = "worker_index")]
pub fn id() -> Option<usize> {
    match role()? {
        Role::Worker { worker, .. } => Some(*worker),
        Role::Process { .. } | Role::Template { .. } => None,
    }
}

/// The name of the pool that this worker belongs to. `None` in a process that is no worker.
#[must_use]
pub fn pool_name() -> Option<&'static str> {
    match role()? {
        Role::Worker { pool, .. } => Some(pool),
        Role::Process { .. } | Role::Template { .. } => None,
    }
}

/// What this process was started for; `None` in one that the library did not start.
pub(crate) fn role() -> Option<&'static Role> {
    identity().map(|identity| &identity.role)
}

/// Whether this process ends when its parent does. What it starts must then end with it.
pub(crate) fn is_bound() -> bool {
    match role() {
        None => false,
        Some(Role::Process { is_bound, .. }) => *is_bound,
        Some(Role::Worker { .. } | Role::Template { .. }) => true,
    }
}

fn identity() -> Option<&'static Identity> {
    *IDENTITY.read().unwrap_or_else(PoisonError::into_inner)
}

fn set_identity(identity: Identity) {
    let identity: &'static Identity = Box::leak(Box::new(identity));
    *IDENTITY.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
}

/// How deep pools and processes are nested here: 0 in a process that the library did not start, 1 in one that was
/// started there.
pub(crate) fn depth() -> u32 {
    identity().map_or(0, |identity| identity.depth)
}
