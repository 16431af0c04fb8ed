//! Limits that a worker sets itself, before its initializer and its first task.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use rustix::io::dup;
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::memory;
use super::reply::Replies;
use crate::memory::MemoryMechanism;
use crate::process::cgroup;
use crate::wire::message::{InitFailure, LimitOption, MemoryOrder, Ready, WorkerLimits};

/// The cgroup that this worker and what it starts are alone in.
static LEAF: OnceLock<PathBuf> = OnceLock::new();

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// How much more willingly the kernel kills a worker than its parent, of the 1000 that there are.
const RAISED: i32 = 500;
/// What must still be allocated under an rlimit for a worker to be of any use.
const ROOM: usize = 1 << 20;

/// Applies the limits. Must run on the thread that runs tasks, when those that watch have been started: they keep what
/// the kernel sets for each thread.
pub(super) fn apply(limits: &WorkerLimits, replies: &Arc<Replies>) -> Result<Ready, InitFailure> {
    let WorkerLimits {
        memory,
        cpu_seconds,
        open_files,
        file_size,
        nice,
        cpus,
        oom_score_adj,
    } = limits;
    // First, for its watcher needs a descriptor and a thread with nothing taken from it.
    let memory = memory
        .as_ref()
        .map(|order| limit_memory(order, replies))
        .transpose()?;
    set_oom_score(*oom_score_adj)?;
    if let Some(seconds) = *cpu_seconds {
        // The signal first, and the end when that did not help.
        let limit = (seconds, seconds.saturating_add(1));
        set(LimitOption::CpuTime, Resource::Cpu, limit)?;
    }
    if let Some(files) = *open_files {
        set(LimitOption::OpenFiles, Resource::Nofile, (files, files))?;
        if dup(io::stdin()).is_err() {
            return Err(refused(
                LimitOption::OpenFiles,
                format!("{files} are fewer than a worker has open itself"),
            ));
        }
    }
    if let Some(bytes) = *file_size {
        set(LimitOption::FileSize, Resource::Fsize, (bytes, bytes))?;
    }
    if let Some(nice) = *nice {
        setpriority_process(None, nice).map_err(|error| {
            let why = match error {
                Errno::ACCESS | Errno::PERM => ", for it is below what this process may give itself",
                _ => "",
            };
            refused(LimitOption::Nice, format!("{nice} cannot be set{why}: {error}"))
        })?;
    }
    if let Some(cpus) = cpus {
        set_affinity(cpus)?;
    }
    Ok(Ready { memory })
}

/// Kills this process and all that it has started, where it has a cgroup of its own.
pub(super) fn kill_leaf() {
    if let Some(leaf) = LEAF.get() {
        cgroup::kill(leaf);
    }
}

fn refused(option: LimitOption, reason: String) -> InitFailure {
    InitFailure::Limit { option, reason }
}

/// Sets the soft and the hard limit, so that a task cannot undo it.
fn set(option: LimitOption, resource: Resource, (soft, hard): (u64, u64)) -> Result<(), InitFailure> {
    let limit = Rlimit {
        current: Some(soft),
        maximum: Some(hard),
    };
    setrlimit(resource, limit).map_err(|error| {
        let most = match getrlimit(resource).maximum {
            Some(most) => format!("; the hard limit of this process is {most}"),
            None => String::new(),
        };
        refused(option, format!("{soft} cannot be set: {error}{most}"))
    })
}

fn limit_memory(order: &MemoryOrder, replies: &Arc<Replies>) -> Result<MemoryMechanism, InitFailure> {
    let MemoryOrder {
        bytes,
        mechanism,
        leaf,
    } = order;
    let allows = |other| mechanism.is_none_or(|mechanism| mechanism == other);
    let statm = memory::Statm::open();
    if let Ok(resident) = statm
        .as_ref()
        .map_err(|_| ())
        .and_then(|statm| statm.resident().ok_or(()))
        && resident >= *bytes
    {
        return Err(refused(
            LimitOption::Memory,
            format!(
                "{bytes} bytes are too few: a worker of this program has {resident} before its first task"
            ),
        ));
    }
    if let Some(leaf) = leaf
        && allows(MemoryMechanism::Cgroup)
    {
        match cgroup::enter(Path::new(leaf)) {
            Ok(()) => {
                LEAF.get_or_init(|| leaf.into());
                return Ok(MemoryMechanism::Cgroup);
            }
            Err(error) if mechanism.is_some() => {
                return Err(refused(
                    LimitOption::Mechanism,
                    format!("a worker cannot enter its cgroup {leaf}: {error}"),
                ));
            }
            Err(_) => {}
        }
    }
    if allows(MemoryMechanism::Watching) {
        let started = statm.and_then(|statm| memory::start(statm, *bytes, Arc::clone(replies)));
        match started {
            Ok(()) => return Ok(MemoryMechanism::Watching),
            Err(error) if mechanism.is_some() => {
                return Err(refused(
                    LimitOption::Mechanism,
                    format!("a worker cannot watch its memory: {error}"),
                ));
            }
            Err(_) => {}
        }
    }
    if !allows(MemoryMechanism::Rlimit) {
        return Err(refused(
            LimitOption::Mechanism,
            "a worker has no cgroup to enter".to_owned(),
        ));
    }
    set(LimitOption::Memory, Resource::Data, (*bytes, *bytes))?;
    let mut probe: Vec<u8> = Vec::new();
    if probe.try_reserve_exact(ROOM).is_err() {
        return Err(refused(
            LimitOption::Memory,
            format!("{bytes} bytes are too few: a worker of this program cannot allocate {ROOM} more"),
        ));
    }
    Ok(MemoryMechanism::Rlimit)
}

fn set_oom_score(adjustment: Option<i32>) -> Result<(), InitFailure> {
    let Some(adjustment) = adjustment else {
        // A help for the parent, which also lives without it.
        raise_oom_score().ok();
        return Ok(());
    };
    fs::write(OOM_SCORE_ADJ, adjustment.to_string()).map_err(|error| {
        refused(
            LimitOption::OomScore,
            format!("{adjustment} cannot be set: {error}"),
        )
    })
}

fn raise_oom_score() -> io::Result<()> {
    let inherited = fs::read_to_string(OOM_SCORE_ADJ)?;
    let inherited: i32 = inherited.trim().parse().map_err(io::Error::other)?;
    fs::write(OOM_SCORE_ADJ, (inherited + RAISED).min(1000).to_string())
}

fn set_affinity(cpus: &[usize]) -> Result<(), InitFailure> {
    let mut wanted = CpuSet::new();
    for &cpu in cpus {
        // What is no number of a processor was refused before the worker was started.
        if cpu < CpuSet::MAX_CPU {
            wanted.set(cpu);
        }
    }
    let set = sched_setaffinity(None, &wanted).and_then(|()| sched_getaffinity(None));
    // The kernel leaves out silently what this process may not use, as long as something is left.
    let missing: Vec<usize> = match set {
        Ok(set) => cpus.iter().copied().filter(|&cpu| !set.is_set(cpu)).collect(),
        Err(Errno::INVAL) => cpus.to_vec(),
        Err(error) => {
            return Err(refused(
                LimitOption::Affinity,
                format!("{cpus:?} cannot be set: {error}"),
            ));
        }
    };
    if missing.is_empty() {
        return Ok(());
    }
    Err(refused(
        LimitOption::Affinity,
        format!("this process may not use the processors {missing:?}"),
    ))
}
