//! Worker processes: starting them, greeting them, hearing what they print, and burying them.

pub(crate) mod spawn;
pub(crate) mod cgroup;
pub(crate) mod memory;
pub(crate) mod child;
pub(crate) mod handshake;
pub(crate) mod output;
