//! What the system counts of the threads of processes: switches and CPU time.

use std::collections::HashMap;
use std::fs;

use crate::Error;

/// What the threads of a process, or of several, have used so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    threads: HashMap<(u32, u32), Thread>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Thread {
    /// Both when it waited and when another took its place.
    switches: u64,
    nanoseconds: u64,
}

/// What was used between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) switches: u64,
    pub(crate) nanoseconds: u64,
}

impl Usage {
    pub(crate) fn of(pids: &[u32]) -> Result<Self, Error> {
        Self::without(pids, 0)
    }

    /// Of these processes, but for the thread that asks.
    pub(crate) fn of_others(pids: &[u32]) -> Result<Self, Error> {
        Self::without(pids, rustix::thread::gettid().as_raw_pid().try_into()?)
    }

    fn without(pids: &[u32], asking: u32) -> Result<Self, Error> {
        let mut threads = HashMap::new();
        for &pid in pids {
            for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                let name = entry?.file_name();
                let thread: u32 = name.to_string_lossy().parse()?;
                // One that has just ended has no files any more.
                if thread != asking
                    && let Ok(usage) = Thread::read(pid, thread)
                {
                    threads.insert((pid, thread), usage);
                }
            }
        }
        Ok(Self { threads })
    }

    /// What has been used since `before`. A thread that ended meanwhile is not in it.
    pub(crate) fn since(&self, before: &Self) -> Used {
        let mut used = Used::default();
        for (key, thread) in &self.threads {
            let earlier = before.threads.get(key).copied().unwrap_or_default();
            used.switches += thread.switches - earlier.switches;
            used.nanoseconds += thread.nanoseconds - earlier.nanoseconds;
        }
        used
    }
}

impl Thread {
    fn read(pid: u32, thread: u32) -> Result<Self, Error> {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"))?;
        let schedule = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"))?;
        let nanoseconds = schedule.split(' ').next().ok_or("an empty schedstat")?;
        Ok(Self {
            switches: field(&status, "voluntary_ctxt_switches:")?
                + field(&status, "nonvoluntary_ctxt_switches:")?,
            nanoseconds: nanoseconds.parse()?,
        })
    }
}

fn field(text: &str, name: &str) -> Result<u64, Error> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or_else(|| format!("there is no {name}"))?.parse()?)
}

pub(crate) fn own() -> [u32; 1] {
    [std::process::id()]
}
