//! What a process can ask about itself and about the one that started it.

use rustix::process::getppid;

use crate::wire::message::{Parent, Role};
use crate::worker;

/// The name of a process that the library did not start.
const MAIN: &str = "MainProcess";

/// What a process is to the library: what [`current`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CurrentProcess {
    /// Its name: that of the [`Process`](crate::Process), or `MainProcess` in one that the library did not start. A
    /// pool's worker has the pool's and its own number: `pool-worker-0`.
    pub name: String,
    /// Its number.
    pub pid: u32,
    /// Whether it is a [daemon](crate::ProcessBuilder::daemon): it ends with its parent, and may start no processes.
    pub is_daemon: bool,
}

/// The process that started this one: what [`parent`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParentProcess {
    /// Its name.
    pub name: String,
    /// Its number.
    pub pid: u32,
}

impl ParentProcess {
    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // One that ends leaves its children to another.
        getppid().is_some_and(|parent| parent.as_raw_pid().cast_unsigned() == self.pid)
    }
}

/// This process.
#[must_use]
#[doc(alias = "current_process")]
pub fn current() -> CurrentProcess {
    let (name, is_daemon) = match worker::role() {
        None => (MAIN.to_owned(), false),
        Some(Role::Process { name, is_daemon, .. }) => (name.clone(), *is_daemon),
        Some(Role::Template { name, .. }) => (name.clone(), false),
        Some(Role::Worker { pool, worker }) => (format!("{pool}-worker-{worker}"), false),
    };
    CurrentProcess {
        name,
        pid: std::process::id(),
        is_daemon,
    }
}

/// The process that started this one as a [`Process`](crate::Process). `None` in any other.
#[must_use]
#[doc(alias = "parent_process")]
pub fn parent() -> Option<ParentProcess> {
    match worker::role()? {
        Role::Process {
            parent: Parent { pid, name },
            ..
        } => Some(ParentProcess {
            name: name.clone(),
            pid: *pid,
        }),
        Role::Worker { .. } | Role::Template { .. } => None,
    }
}
