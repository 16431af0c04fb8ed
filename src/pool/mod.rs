//! The pool, in the order of a task's life: what the user holds (`handle`, `builder`), what decides (`state`,
//! `admission`, `queue`, `in_flight`), what acts on it (`dispatch`, `link`, `keeper`, `timers`, `supervisor`), and what
//! comes back (`call`, `result`, `callback`, `map`, `imap`). `service` is all of it for tower.

pub(crate) mod handle;
pub(crate) mod asynchronous;
pub(crate) mod builder;
pub(crate) mod limits;
pub(crate) mod cpus;
pub(crate) mod state;
pub(crate) mod admission;
pub(crate) mod queue;
pub(crate) mod in_flight;
pub(crate) mod dispatch;
pub(crate) mod link;
pub(crate) mod keeper;
pub(crate) mod timers;
pub(crate) mod supervisor;
pub(crate) mod options;
pub(crate) mod call;
mod caller;
pub(crate) mod companion;
pub(crate) mod result;
pub(crate) mod callback;
pub(crate) mod chunks;
pub(crate) mod map;
pub(crate) mod imap;
pub(crate) mod progress;
pub(crate) mod stats;
#[cfg(feature = "tower")]
pub(crate) mod service;
