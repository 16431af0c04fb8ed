//! What a process may use of the machine, as it was asked for.
//!
//! It is checked here as far as that is possible without the process, which applies it to itself. What it cannot apply
//! is an error of its start.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::CpuSet;

use super::memory::{MemoryOptions, WorkerMemory};
use crate::error::BuildError;
use crate::memory::MemoryMechanism;
use crate::wire::codec::drop_quietly;
use crate::wire::message::{LimitOption, WorkerLimits};

/// The kernel counts processor time in nanoseconds, and what does not fit there ends a process at once.
const LONGEST_CPU_TIME: u64 = u32::MAX as u64;

/// Gives the processors of a worker by its number.
pub(crate) type Affinity = Arc<dyn Fn(usize) -> Vec<usize> + Send + Sync>;

/// Numbers of processors; one more than there can be is as wrong as all that an endless iterator has.
pub(crate) fn bounded(processors: impl IntoIterator<Item = usize>) -> Vec<usize> {
    processors.into_iter().take(CpuSet::MAX_CPU + 1).collect()
}

/// What was asked for.
#[derive(Clone, Default)]
pub(crate) struct LimitOptions {
    pub(crate) memory: Option<u64>,
    pub(crate) mechanism: Option<MemoryMechanism>,
    pub(crate) cpu_time: Option<Duration>,
    pub(crate) open_files: Option<u64>,
    pub(crate) file_size: Option<u64>,
    pub(crate) nice: Option<i32>,
    pub(crate) affinity: Option<Affinity>,
    pub(crate) oom_score_adj: Option<i32>,
}

impl fmt::Debug for LimitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitOptions")
            .field("memory", &self.memory)
            .field("mechanism", &self.mechanism)
            .field("cpu_time", &self.cpu_time)
            .field("open_files", &self.open_files)
            .field("file_size", &self.file_size)
            .field("nice", &self.nice)
            .field("oom_score_adj", &self.oom_score_adj)
            .finish_non_exhaustive()
    }
}

impl LimitOptions {
    /// Refuses what has no meaning, for a pool with so many workers.
    pub(crate) fn check(&self, workers: usize) -> Result<(), BuildError> {
        use LimitOption::{CpuTime, FileSize, Mechanism, Memory, Nice, OomScore, OpenFiles};
        if self.memory == Some(0) {
            return Err(invalid(Memory, "nothing runs in zero bytes"));
        }
        if self.mechanism.is_some() && self.memory.is_none() {
            return Err(invalid(Mechanism, "there is no memory_limit to keep"));
        }
        if self.cpu_time == Some(Duration::ZERO) {
            return Err(invalid(CpuTime, "nothing runs in no time"));
        }
        if self.open_files == Some(0) {
            return Err(invalid(OpenFiles, "a worker has its connection open"));
        }
        if self.file_size == Some(0) {
            return Err(invalid(FileSize, "a file of zero bytes cannot be written"));
        }
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return Err(invalid(Nice, format!("{nice} is not within -20 and 19")));
        }
        if let Some(score) = self.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
            return Err(invalid(OomScore, format!("{score} is not within -1000 and 1000")));
        }
        (0..workers).try_for_each(|worker| self.processors(worker).map(|_| ()))
    }

    /// What a worker is told to keep to, and the parent's side of its memory limit.
    pub(crate) fn prepare(&self, worker: usize) -> Result<(WorkerLimits, WorkerMemory), BuildError> {
        let memory = self.memory.map(|bytes| MemoryOptions {
            bytes,
            mechanism: self.mechanism,
        });
        let memory =
            WorkerMemory::prepare(memory).map_err(|reason| invalid(LimitOption::Mechanism, reason))?;
        let limits = WorkerLimits {
            memory: memory.order(),
            cpu_seconds: self.cpu_time.map(|time| {
                let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
                seconds.min(LONGEST_CPU_TIME)
            }),
            open_files: self.open_files,
            file_size: self.file_size,
            nice: self.nice,
            cpus: self.processors(worker)?,
            oom_score_adj: self.oom_score_adj,
        };
        Ok((limits, memory))
    }

    /// The processors of a worker.
    fn processors(&self, worker: usize) -> Result<Option<Vec<usize>>, BuildError> {
        let Some(affinity) = &self.affinity else {
            return Ok(None);
        };
        let wrong = |reason| Err(invalid(LimitOption::Affinity, reason));
        match catch_unwind(AssertUnwindSafe(|| affinity(worker))) {
            Err(payload) => {
                drop_quietly(payload);
                wrong(format!("it panicked for worker {worker}"))
            }
            Ok(cpus) if cpus.is_empty() => wrong(format!("worker {worker} is given no processor to run on")),
            Ok(cpus) => match cpus.iter().find(|&&cpu| cpu >= CpuSet::MAX_CPU) {
                Some(cpu) => wrong(format!("worker {worker} is given processor {cpu}, which is none")),
                None => Ok(Some(cpus)),
            },
        }
    }
}

fn invalid(option: LimitOption, reason: impl Into<String>) -> BuildError {
    BuildError::InvalidOption {
        option: option.name(),
        reason: reason.into(),
    }
}
