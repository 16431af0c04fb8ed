//! Processes, alone or as workers: starting them, greeting them, hearing what they print, and burying them.

pub(crate) mod handle;
pub(crate) mod builder;
pub(crate) mod error;
pub(crate) mod start_method;
pub(crate) mod limits;
pub(crate) mod launch;
pub(crate) mod spawn;
pub(crate) mod cgroup;
pub(crate) mod memory;
pub(crate) mod child;
pub(crate) mod descendants;
mod marked;
mod orphans;
mod hear;
pub(crate) mod handshake;
pub(crate) mod life;
pub(crate) mod children;
pub(crate) mod sentinel;
pub(crate) mod identity;
pub(crate) mod template;
pub(crate) mod large_pages;
pub(crate) mod output;
pub(crate) mod streams;
pub(crate) mod listen;
pub(crate) mod pass;
#[cfg(feature = "tracing")]
pub(crate) mod origin;
#[cfg(feature = "tracing")]
pub(crate) mod replay;
