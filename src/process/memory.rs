//! The parent's side of a worker's memory limit: the cgroup it lives in, if any, and what its end was about.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

use super::cgroup::{self, Leaf, LeafKills};
use crate::memory::{MemoryLimit, MemoryMechanism, OutOfMemory};
use crate::wire::message::MemoryOrder;

/// Looks for what was killed in a cgroup to be gone, with a pause that doubles between them: a second altogether.
const REMOVALS: u32 = 10;

/// What [`memory_limit`](crate::PoolBuilder::memory_limit) and
/// [`memory_mechanism`](crate::PoolBuilder::memory_mechanism) ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryOptions {
    pub(crate) bytes: u64,
    /// `None`: the best that works.
    pub(crate) mechanism: Option<MemoryMechanism>,
}

/// One worker's memory, as the parent sees it.
#[derive(Debug)]
pub(crate) struct WorkerMemory {
    options: Option<MemoryOptions>,
    leaf: Mutex<Option<Leaf>>,
    in_force: OnceLock<MemoryLimit>,
}

impl WorkerMemory {
    /// Prepares for a worker that is about to be started. An error is for who asked for a cgroup and nothing else.
    pub(crate) fn prepare(options: Option<MemoryOptions>) -> Result<Self, String> {
        let leaf = match options {
            Some(MemoryOptions {
                bytes,
                mechanism: None | Some(MemoryMechanism::Cgroup),
            }) => cgroup::delegated()
                .ok_or_else(|| "no cgroup with a memory controller is delegated to this process".to_owned())
                .and_then(|parent| {
                    Leaf::create(&parent, bytes)
                        .map_err(|error| format!("no cgroup can be made in {}: {error}", parent.display()))
                }),
            _ => Err(String::new()),
        };
        let leaf = match (leaf, options) {
            (Ok(leaf), _) => Some(leaf),
            (Err(reason), Some(options)) if options.mechanism == Some(MemoryMechanism::Cgroup) => {
                return Err(reason);
            }
            (Err(_), _) => None,
        };
        Ok(Self {
            options,
            leaf: Mutex::new(leaf),
            in_force: OnceLock::new(),
        })
    }

    /// What the worker is told to do about it.
    pub(crate) fn order(&self) -> Option<MemoryOrder> {
        let MemoryOptions { bytes, mechanism } = self.options?;
        let leaf = self.leaf.lock().unwrap_or_else(PoisonError::into_inner);
        Some(MemoryOrder {
            bytes,
            mechanism,
            leaf: leaf
                .as_ref()
                .and_then(|leaf| leaf.directory().to_str().map(str::to_owned)),
        })
    }

    /// The worker has said how its limit is kept.
    pub(crate) fn set_in_force(&self, mechanism: Option<MemoryMechanism>) {
        if let (Some(mechanism), Some(MemoryOptions { bytes, .. })) = (mechanism, self.options) {
            // Set once, for a worker is ready once.
            self.in_force.get_or_init(|| MemoryLimit { bytes, mechanism });
        }
        if mechanism != Some(MemoryMechanism::Cgroup) {
            // Nobody lives there.
            drop(self.take_leaf());
        }
    }

    /// The limit that holds.
    pub(crate) fn limit(&self) -> Option<MemoryLimit> {
        self.in_force.get().copied()
    }

    /// The worker has ended: whether that was for want of memory. `resident` is what it had when it ended itself for
    /// that; `stderr` the last that it said.
    pub(crate) fn cause(
        &self,
        status: Option<ExitStatus>,
        resident: Option<u64>,
        stderr: &str,
    ) -> Option<OutOfMemory> {
        let limit = |mechanism| {
            self.options.map(|options| MemoryLimit {
                bytes: options.bytes,
                mechanism,
            })
        };
        if resident.is_some() {
            return Some(OutOfMemory {
                resident,
                limit: limit(MemoryMechanism::Watching),
            });
        }
        if let Some(leaf) = &*self.leaf.lock().unwrap_or_else(PoisonError::into_inner) {
            let limit = match leaf.kills() {
                LeafKills::None => return None,
                LeafKills::AtLimit => limit(MemoryMechanism::Cgroup),
                LeafKills::Elsewhere => None,
            };
            return Some(OutOfMemory {
                resident: leaf.peak(),
                limit,
            });
        }
        let signal = status?.signal()?;
        let limit = match self.limit() {
            Some(limit) => Some(limit),
            // One that was never ready has not said so.
            None => limit(MemoryMechanism::Rlimit).filter(|limit| self.asks_for(limit.mechanism)),
        };
        if signal == Signal::ABORT.as_raw()
            && limit.is_some_and(|limit| limit.mechanism == MemoryMechanism::Rlimit)
            && is_allocation_failure(stderr)
        {
            return Some(OutOfMemory {
                resident: None,
                limit,
            });
        }
        (signal == Signal::KILL.as_raw() && claim::one()).then_some(OutOfMemory {
            resident: None,
            limit: None,
        })
    }

    fn asks_for(&self, mechanism: MemoryMechanism) -> bool {
        self.options
            .is_some_and(|options| options.mechanism == Some(mechanism))
    }

    /// Kills what is left in the cgroup of a worker that has ended, and removes it.
    pub(crate) async fn bury(&self) {
        let Some(leaf) = self.take_leaf() else {
            return;
        };
        let mut pause = Duration::from_millis(1);
        for _ in 0..REMOVALS {
            if leaf.remove() {
                return;
            }
            sleep_until(Instant::now() + pause).await;
            pause *= 2;
        }
    }

    fn take_leaf(&self) -> Option<Leaf> {
        self.leaf.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether a process that aborted said that it could not allocate: Rust's own words, and those of C++.
fn is_allocation_failure(stderr: &str) -> bool {
    stderr.lines().any(|line| {
        line.contains("std::bad_alloc")
            || line
                .strip_prefix("memory allocation of ")
                .is_some_and(|rest| rest.contains(" bytes failed"))
    })
}

/// The kernel's kills for memory in this process's cgroup, each of which is the end of one process. It does not say of
/// which: a worker that was killed when there was one more than workers have been found dead of it is taken for it.
pub(crate) mod claim {
    use std::sync::{Mutex, PoisonError};

    use super::cgroup;

    /// Kills that are accounted for; `None` before the first worker.
    static CLAIMED: Mutex<Option<u64>> = Mutex::new(None);

    /// What has been killed before there were workers was none of them.
    pub(crate) fn begin() {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.is_none() {
            *claimed = cgroup::own_kills();
        }
    }

    #[cfg(test)]
    pub(crate) fn has_begun() -> bool {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes one kill that nobody has taken; `false` when there is none.
    pub(super) fn one() -> bool {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        take(&mut claimed, cgroup::own_kills())
    }

    pub(super) fn take(claimed: &mut Option<u64>, kills: Option<u64>) -> bool {
        match (&mut *claimed, kills) {
            (Some(claimed), Some(kills)) if kills > *claimed => {
                *claimed += 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABORTED: i32 = 6;
    const KILLED: i32 = 9;
    const REFUSED: &str = "thread 'main'\nmemory allocation of 1048576 bytes failed\nstack backtrace:";

    fn memory(mechanism: Option<MemoryMechanism>) -> WorkerMemory {
        WorkerMemory {
            options: Some(MemoryOptions {
                bytes: 1000,
                mechanism,
            }),
            leaf: Mutex::new(None),
            in_force: OnceLock::new(),
        }
    }

    fn cause(memory: &WorkerMemory, status: i32, stderr: &str) -> Option<String> {
        let end = memory.cause(Some(ExitStatus::from_raw(status)), None, stderr);
        end.map(|end| end.to_string())
    }

    #[test]
    fn a_worker_that_ended_itself_has_said_what_it_had() {
        let end = memory(None).cause(None, Some(1234), "").unwrap();
        assert_eq!(
            end.to_string(),
            "ran out of memory: 1234 bytes resident, limit 1000, kept by watching"
        );
    }

    #[test]
    fn a_failed_allocation_is_told_from_other_aborts() {
        let limited = memory(None);
        limited.set_in_force(Some(MemoryMechanism::Rlimit));
        let expected = Some("ran out of memory: limit 1000, kept by an rlimit".to_owned());
        assert_eq!(cause(&limited, ABORTED, REFUSED), expected);
        assert_eq!(cause(&limited, ABORTED, "what():  std::bad_alloc"), expected);
        assert_eq!(cause(&limited, ABORTED, "memory allocation of it all"), None);
        assert_eq!(cause(&limited, KILLED, REFUSED), None);
        let starting = memory(Some(MemoryMechanism::Rlimit));
        assert_eq!(cause(&starting, ABORTED, REFUSED), expected);
        let watched = memory(None);
        watched.set_in_force(Some(MemoryMechanism::Watching));
        assert_eq!(cause(&watched, ABORTED, REFUSED), None);
    }

    #[test]
    fn a_cgroup_tells_whether_its_limit_was_reached() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path();
        let limited = memory(None);
        *limited.leaf.lock().unwrap() = Some(Leaf::at(directory.to_owned()));
        assert_eq!(cause(&limited, KILLED, ""), None);
        let events = directory.join("memory.events");
        std::fs::write(&events, "oom 1\noom_kill 1\n").unwrap();
        std::fs::write(directory.join("memory.peak"), "998\n").unwrap();
        assert_eq!(
            cause(&limited, KILLED, "").unwrap(),
            "ran out of memory: 998 bytes resident, limit 1000, kept by a cgroup"
        );
        std::fs::write(&events, "oom 0\noom_kill 1\n").unwrap();
        let text = cause(&limited, KILLED, "").unwrap();
        assert!(text.contains("the system or its container had no more"), "{text}");
    }

    #[test]
    fn a_kill_is_claimed_once() {
        let mut claimed = Some(3);
        assert!(!claim::take(&mut claimed, Some(3)));
        assert!(claim::take(&mut claimed, Some(5)));
        assert!(claim::take(&mut claimed, Some(5)));
        assert!(!claim::take(&mut claimed, Some(5)));
        assert!(!claim::take(&mut claimed, None));
        assert!(!claim::take(&mut None, Some(5)), "nothing to compare with");
    }
}
