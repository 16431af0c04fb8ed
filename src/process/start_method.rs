//! [`StartMethod`]: how processes come to be.

/// How a process is started, for [`PoolBuilder::start_method`](crate::PoolBuilder::start_method) and
/// [`ProcessBuilder::start_method`](crate::ProcessBuilder::start_method).
///
/// This program is never forked itself. It has threads, and a copy of it would have their locks, held for ever, and not
/// the threads: a copy that allocates, logs or reads the clock may hang. Python learned that, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program is executed anew for each process, which runs the initializer itself. About a millisecond.
    #[default]
    #[doc(alias = "spawn")]
    Exec,
    /// One process of each configuration, the template, is executed early, runs the initializer once, and is then
    /// forked for each process: a fraction of a millisecond, and what the initializer loaded is there and shared, as
    /// long as nobody writes to it. Loading 200 MiB once is faster, and takes less memory, than loading it in each.
    ///
    /// The template has a single thread when it is forked: an initializer that leaves another one running is an
    /// [`InvalidOption`](crate::BuildError::InvalidOption). Files and sockets that it opens are shared by all copies,
    /// and so is what it has drawn from a source of randomness; what it has registered with `atexit` runs at the end of
    /// each, and handlers that libraries install with `pthread_atfork` do not run. The environment and the working
    /// directory are the template's, which has those of this process as they were when it started.
    ///
    /// Copies are children of this process as all others are: exit status, signals and waiting are the same, and
    /// nothing happens to them when the template ends. When it does, by a SIGKILL say, the next start fails with
    /// [`TemplateLost`](crate::BuildError::TemplateLost), and another template is started. One that does not answer
    /// within the start timeout is killed, and the start fails with
    /// [`StartTimeout`](crate::BuildError::StartTimeout).
    ///
    /// The template's glibc is asked for large pages, in which large memory is forked in a tenth of the time, unless
    /// `GLIBC_TUNABLES` says something about them (`glibc.malloc.hugetlb`). Some versions only understand now and then:
    /// the template executes itself again for that, up to ten times, with whatever stands before [`init`](crate::init())
    /// in `main`. In a virtual machine whose host takes back free memory, large pages are slow to get, once: there a
    /// pool's template does without. Another allocator may have a setting of its own.
    ///
    /// In `ps` a copy has the template's command line, and a name of its own. Needs `/proc` and glibc, and a program
    /// that becomes the template itself: where it is started by a shell that stays, or in a namespace of process
    /// numbers, its copies would be somebody else's children. Otherwise it is an
    /// [`InvalidOption`](crate::BuildError::InvalidOption), too.
    #[doc(alias = "fork")]
    ForkServer,
}
