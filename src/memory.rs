//! A limit on a worker's memory, by what it holds, and what is known when it was reached.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How [`memory_limit`](crate::PoolBuilder::memory_limit) is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MemoryMechanism {
    /// Each worker has a cgroup of its own, with the limit as its `memory.max` and no swap. The kernel counts what
    /// the worker and all processes that it starts allocate, files that they read included as far as it cannot let go
    /// of them, and kills all of them at the limit. Needs version 2 of cgroups, and a cgroup that was delegated: one
    /// whose `cgroup.subtree_control` has `memory`, either this process's own, or the one above it if it was given to
    /// this user (systemd: `Delegate=memory` with `DelegateSubgroup=`).
    Cgroup,
    /// A thread in the worker looks at its resident memory while tasks run or it grows, every 100 ms while it is far
    /// from the limit and every millisecond close to it, and kills the worker above. Memory of processes that it starts
    /// is not counted. What is allocated faster than 4 GiB a second may pass the limit for a moment. Needs `/proc`.
    Watching,
    /// Allocations that would take the worker's data (`RLIMIT_DATA`: private writable memory, used or not) over the
    /// limit fail, which aborts a Rust program. Processes that it starts have the same limit, each for itself.
    Rlimit,
}

impl fmt::Display for MemoryMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "a cgroup",
            Self::Watching => "watching",
            Self::Rlimit => "an rlimit",
        })
    }
}

/// A worker's memory limit and how it is kept, in [`WorkerStats`](crate::WorkerStats).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryLimit {
    /// The limit in bytes.
    pub bytes: u64,
    /// How it is kept.
    pub mechanism: MemoryMechanism,
}

/// That a worker was lost for want of memory, from [`TaskError::out_of_memory`](crate::TaskError::out_of_memory).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// Bytes that were resident at the end, or at most in its life where the kernel kept the limit. `None` where that
    /// is not known.
    pub resident: Option<u64>,
    /// The limit that was reached. `None` where the worker was within its own or had none, and the kernel killed it
    /// because the machine or the container was out of memory.
    pub limit: Option<MemoryLimit>,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ran out of memory: ")?;
        if let Some(resident) = self.resident {
            write!(f, "{resident} bytes resident, ")?;
        }
        match self.limit {
            Some(MemoryLimit { bytes, mechanism }) => write!(f, "limit {bytes}, kept by {mechanism}"),
            None => f.write_str("the kernel killed it, for the system or its container had no more"),
        }
    }
}
