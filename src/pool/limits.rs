//! The builder's options that bound what a worker may use of the machine.

use std::sync::Arc;
use std::time::Duration;

use super::builder::PoolBuilder;
use crate::memory::MemoryMechanism;
use crate::process::limits::bounded;

/// # Limits on a worker
///
/// A worker applies these to itself before its initializer and its first task. Processes that it starts inherit them
/// where the kernel does that, each with an account of its own. A worker that cannot apply one does not start: `build`
/// gives [`InvalidOption`](crate::BuildError::InvalidOption) with the option and the reason.
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
        let affinity = move |worker| bounded(processors(worker));
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
