//! The builder's options that bound what a worker may use of the machine.
//!
//! They are checked here as far as that is possible without a worker. Each worker applies them to itself, and what it
//! cannot apply is the error of [`build`](PoolBuilder::build).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::CpuSet;

use super::builder::PoolBuilder;
use crate::error::BuildError;
use crate::memory::MemoryMechanism;
use crate::process::memory::{MemoryOptions, WorkerMemory};
use crate::wire::codec::drop_quietly;
use crate::wire::message::{LimitOption, WorkerLimits};

/// The kernel counts processor time in nanoseconds, and what does not fit there ends a process at once.
const LONGEST_CPU_TIME: u64 = u32::MAX as u64;

/// Gives the processors of a worker by its number.
type Affinity = Arc<dyn Fn(usize) -> Vec<usize> + Send + Sync>;

/// What was asked for.
#[derive(Clone, Default)]
pub(crate) struct LimitOptions {
    memory: Option<u64>,
    mechanism: Option<MemoryMechanism>,
    cpu_time: Option<Duration>,
    open_files: Option<u64>,
    file_size: Option<u64>,
    nice: Option<i32>,
    affinity: Option<Affinity>,
    oom_score_adj: Option<i32>,
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

/// # Limits on a worker
///
/// A worker applies these to itself before its initializer and its first task. Processes that it starts inherit them
/// where the kernel does that, each with an account of its own. A worker that cannot apply one does not start: `build`
/// gives [`InvalidOption`](BuildError::InvalidOption) with the option and the reason.
impl PoolBuilder {
    /// How much memory a worker may have, in bytes. One that has more is killed, which costs the task that it ran:
    /// that ends with [`WorkerLost`](crate::TaskErrorKind::WorkerLost), for which
    /// [`is_out_of_memory`](crate::TaskError::is_out_of_memory) is true. Other workers and the parent go on, and the
    /// worker is replaced.
    ///
    /// What counts, and who enforces it, depends on the mechanism: a cgroup of its own for each worker where one was
    /// delegated to this process, else watching its resident memory, else an rlimit. See [`MemoryMechanism`] for
    /// each, [`memory_mechanism`](Self::memory_mechanism) to ask for one, and
    /// [`WorkerStats::memory_limit`](crate::WorkerStats::memory_limit) for the one in force.
    ///
    /// Zero is an error, as is less than a worker has resident before its first task, a few MiB for a small program.
    /// Defaults to no limit.
    #[doc(alias = "RLIMIT_AS")]
    #[doc(alias = "RLIMIT_DATA")]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.limits.memory = Some(bytes);
        self
    }

    /// How [`memory_limit`](Self::memory_limit) is kept, without which this is an error. A worker that cannot keep it
    /// that way does not start. Defaults to the first that works of a cgroup, watching, and an rlimit.
    pub fn memory_mechanism(mut self, mechanism: MemoryMechanism) -> Self {
        self.limits.mechanism = Some(mechanism);
        self
    }

    /// How much processor time a worker may use, by `RLIMIT_CPU`: in whole seconds, rounded up, of all its threads,
    /// from its start on, over all its tasks. At the limit it gets a SIGXCPU, which ends it unless the task handles
    /// that, and a SIGKILL one second of processor time later. The task that it ran is
    /// [`WorkerLost`](crate::TaskErrorKind::WorkerLost), with the signal in
    /// [`exit_status`](crate::TaskError::exit_status).
    ///
    /// This bounds runaway computation, not a task's duration: it goes by the time that was computed, not by the
    /// clock. Choose it well above what a worker uses in its life, for the task that reaches it need not be the one
    /// that used it up. Zero is an error. Defaults to no limit but the parent's own.
    #[doc(alias = "RLIMIT_CPU")]
    pub fn cpu_time_limit(mut self, time: Duration) -> Self {
        self.limits.cpu_time = Some(time);
        self
    }

    /// How many file descriptors a worker may have, by `RLIMIT_NOFILE`, as the hard and the soft limit: the highest
    /// number of one is below it. At the limit what opens another gets `EMFILE`, "too many open files"; the worker
    /// itself goes on, for its own are open, and results that hold no [`Fd`](crate::Fd) are not affected. One that
    /// does needs a descriptor for the way, without which it is an [`Encode`](crate::TaskErrorKind::Encode) error; and
    /// a worker that has no room for an `Fd` in an argument ends.
    ///
    /// A worker has a handful itself, and fewer are an error; its first async task takes some more. Raising it above
    /// the parent's hard limit takes a privilege. Defaults to the parent's limits.
    #[doc(alias = "RLIMIT_NOFILE")]
    pub fn open_files_limit(mut self, files: u64) -> Self {
        self.limits.open_files = Some(files);
        self
    }

    /// How large a file a worker may make, in bytes, by `RLIMIT_FSIZE`. Writing beyond that gives it a SIGXFSZ, which
    /// ends it unless the task handles or ignores that: then the write fails with `EFBIG`. The task that it ran is
    /// [`WorkerLost`](crate::TaskErrorKind::WorkerLost), with the signal in
    /// [`exit_status`](crate::TaskError::exit_status).
    ///
    /// Memory that has a descriptor (`memfd_create`) is a file too; pipes and sockets are not. What a worker prints
    /// counts where standard output is [inherited](crate::Output::inherit) and goes to a file, whoever has filled it.
    /// Zero is an error. Defaults to no limit but the parent's own.
    #[doc(alias = "RLIMIT_FSIZE")]
    pub fn file_size_limit(mut self, bytes: u64) -> Self {
        self.limits.file_size = Some(bytes);
        self
    }

    /// The nice value of a worker, from -20, which gets most of the processors, to 19. It is absolute, not added to
    /// the parent's. Below the parent's own it takes a privilege. The thread that watches the parent keeps the
    /// parent's, so that it is heard whatever the tasks do. Other values are an error. Defaults to the parent's.
    #[doc(alias = "priority")]
    pub fn nice(mut self, nice: i32) -> Self {
        self.limits.nice = Some(nice);
        self
    }

    /// The processors that a worker may run on, by its number, which a replacement keeps: a range, an array or
    /// anything else that gives their numbers, as `/proc/cpuinfo` has them.
    ///
    /// A function, for it works whatever the number of workers is: `|worker| [worker % 8]` pins each to a processor,
    /// `|worker| worker * 4..worker * 4 + 4` gives each four. It is called in the parent, once for each worker when
    /// the pool is built and whenever one is started, and must not block; if it panics, the worker does not start. No
    /// processor at all is an error, as is one that the system does not let this process use. The threads that watch
    /// the parent and the memory stay where they were. Defaults to where the parent may run.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let processors = std::thread::available_parallelism()?.get();
    /// let pool = procession::Pool::builder()
    ///     .workers(processors)
    ///     .cpu_affinity(move |worker| [worker % processors])
    ///     .build()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias = "pinning")]
    pub fn cpu_affinity<F, C>(mut self, processors: F) -> Self
    where
        F: Fn(usize) -> C + Send + Sync + 'static,
        C: IntoIterator<Item = usize>,
    {
        // One more than there can be is as wrong as all that an endless iterator has.
        let affinity = move |worker| processors(worker).into_iter().take(CpuSet::MAX_CPU + 1).collect();
        self.limits.affinity = Some(Arc::new(affinity));
        self
    }

    /// How willingly the kernel kills a worker when the machine or the container is out of memory, from -1000, never,
    /// to 1000, first of all. It is absolute; below the parent's own it takes a privilege. Other values are an error.
    ///
    /// Defaults to 500 more than the parent's, at most 1000, so that a worker goes before the service; where the
    /// system does not allow that, nothing is changed.
    pub fn oom_score_adj(mut self, adjustment: i32) -> Self {
        self.limits.oom_score_adj = Some(adjustment);
        self
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
