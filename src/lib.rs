//! An async process pool: functions run in worker processes, results come back as futures.
//!
//! ```
//! use procession::Pool;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     procession::init(); // in a worker, this line never returns
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let pool = Pool::new().await?;
//!         assert_eq!(pool.apply(|x: u64| x * 2, 21).await?, 42);
//!         Ok(())
//!     })
//! }
//! ```
//!
//! [`init`] is the first line of `main`; [`Pool`] has the calls, [`PoolBuilder`] its options, [`TaskError`] says what
//! went wrong, and [`worker`] is what a task can ask about where it runs. [`Process`] is one function in one process.
//! The README compares with threads and with Python's pools, and translates from Python; `examples/quickstart.rs` is
//! where to begin to read.
//!
//! # The life of a task
//!
//! 1. A call such as [`Pool::apply`] names a function by its type. The compiler emits a row for it into a section of
//!    the program, the task table, which is the same in the parent and in every worker, for they are the same program.
//!    The argument is encoded, once, with postcard.
//! 2. The task is submitted: for [`Pool::apply`] when its future is first polled, for [`Pool::apply_async`] at once.
//!    It is *queued*, by priority and then by order of submission.
//! 3. It is sent to a worker, as a frame that carries the row's number and the argument, and is *in flight* from then
//!    on. An idle worker gets it directly from whoever submitted it. A busy one is sent some tasks ahead when tasks
//!    are short; they are called back when another worker becomes idle, or when what runs there turns out to be long.
//! 4. The worker looks the row up, decodes the argument, runs the function on its main thread, and encodes the result.
//! 5. The parent finds the task by its number. Callbacks run; then whoever awaits the task decodes the result, on
//!    their own thread.
//!
//! Every task that was submitted ends once, with a value or with an error; [`what_happens_when`] lists which. If its
//! worker dies, it ends with
//! [`WorkerLost`](TaskErrorKind::WorkerLost) if it had been started, and is sent to another worker if not: what has
//! been started lies in memory that outlives the worker, beside the results that it had not sent yet. Of several
//! elements that were packed into one frame, that is true of each.
//!
//! # Implementation
//!
//! **Processes.** A worker is the running program, started again through `/proc/self/exe` with the same arguments and
//! environment, and one more variable, `PROCESSION_WORKER`, by which [`init`] knows it. It leads a process group of
//! its own, which is killed as a whole when the worker ends, whatever the cause, with all that the tasks started and
//! that left the group. It has a program name and a number in `ps`. A worker whose parent has died sees the end of
//! its connection, while it runs a task too, and ends with what it started.
//!
//! With [`StartMethod::ForkServer`] it is instead a copy of a process that was started so, has run the initializer,
//! and has a single thread; this program itself is never forked.
//!
//! A [`Process`] is started and greeted in the same way, is sent one task, and is told that no other will come.
//! Unless it is a daemon, or inside a worker, it goes on when its parent has ended, and what it started is left
//! alone.
//!
//! **Threads.** The parent has one thread, `procession`, for all its pools, which starts, watches and reaps workers,
//! with helpers of the same name while workers are started; for each pool one thread that hears what its workers
//! print, and from the first line on one for each stream that passes it on; and two that run callbacks, from the
//! first callback on, or more while callbacks block. Frames are sent and read on the runtime that the pool was built
//! on, if that is a multi-thread one, and on the thread `procession` otherwise. All processes together have that
//! thread, and as a pool one that hears what they print, if any prints through this program. A worker, or a process,
//! has its main thread, which runs tasks, and one that watches the parent; a process that goes on without its parent
//! and prints where that does has the main thread alone, unless the parent is PID 1 or a subreaper. One more watches
//! memory where [`memory_limit`](PoolBuilder::memory_limit) takes that, and the first async task adds a tokio runtime
//! with one thread.
//!
//! **File descriptors.** For each worker the parent holds the connection (a Unix stream socket), a second socket for
//! what must be heard while a task runs, the read ends of its standard error and, unless that goes nowhere, its
//! standard output, and a pidfd; and the read end of a pipe for `tracing` events, where those are wanted. A
//! [`Process`] or a template takes three, and a read end for each of the two streams that it does not inherit, but
//! for a standard output that goes nowhere. While it starts there are up to eight more. All are closed on exec. In the
//! worker the connection arrives as standard input and output and moves to a number above 9 before anything else
//! happens; standard input is then `/dev/null`, and standard output a pipe, or `/dev/null` for [`Output::null`].
//! Nothing has a name in a file system.
//!
//! **Signals.** No handler is installed in the parent, unless [`signals`] is asked for one. Workers are ended by a
//! message, by SIGTERM where a task must be stopped, and by SIGKILL where that does not help or must not wait. What a
//! terminal sends, Ctrl-C, Ctrl-Z, or the hang-up when its window closes, reaches the parent alone. Workers and
//! processes start with no signal blocked and none ignored that the parent ignores, but for SIGPIPE, and for SIGTTIN
//! and SIGTTOU, so that no task is stopped for using the terminal. They handle SIGHUP, which does what it always
//! does, unless the kernel sends it because their parent's end has orphaned their group. Only the library's own
//! children are waited for, and in a program that is PID 1, or a subreaper, those that have been left to it by
//! somebody else; where the host program ignores SIGCHLD or reaps children itself, exit statuses are missing from
//! errors.
//!
//! # Limits
//!
//! - Tasks are plain functions and closures that capture nothing; others do not compile.
//! - Postcard is not self-describing. Types that need that travel in `Json`. What cannot be encoded or decoded fails
//!   its own call, with the type's name.
//! - An argument or a result has at most [`max_frame_size`](PoolBuilder::max_frame_size) bytes, 512 levels
//!   of nesting, and 253 file descriptors ([`Fd`]).
//! - A worker takes up to six descriptors of the parent's, a [`Process`] up to five.
//! - Queues have no bound unless [`queue_capacity`](PoolBuilder::queue_capacity) or
//!   [`queue_capacity_bytes`](PoolBuilder::queue_capacity_bytes) sets one.
//! - A worker shares no memory with the parent: what `main` sets up behind [`init`] does not exist there. Use
//!   [`initializer`](PoolBuilder::initializer).
//! - A worker adopts what is orphaned below it, so that it can be found and ended: a task that waits for *any* child may
//!   meet some that it did not start.
//! - Linux 5.3 or later; x86-64 and AArch64. Without `/proc`, what a task started and left its worker's process group is
//!   not found.
//!
//! # Features
//!
//! - `json` (default): `Json`, for types that postcard cannot carry.
//! - `auto-init`: [`init`] runs in a constructor before `main`. For test binaries, as a dev-dependency feature.
//! - `progress`: [`Progress`] for `indicatif::ProgressBar`.
//! - `tower`: `TaskService`, a `tower::Service` over a pool.
//! - `tracing`: `PoolBuilder::tracing` has spans and events of tasks emitted again in the parent, and `Output::tracing`
//!   makes events of what workers print.

#[cfg(not(target_os = "linux"))]
compile_error!("procession runs on Linux only, so far");

mod error;
mod memory;
mod init;
mod runtime;
mod look;
mod pool;
mod process;
mod task;
mod wire;
mod shared;
pub mod worker;
#[doc = include_str!("what_happens_when.md")]
pub mod what_happens_when {}
pub mod signals;

/// The snippets of the README, so that they are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use crate::error::{
    BuildError, JoinError, RemotePanic, StartPhase, TaskError, TaskErrorKind, TimeoutPhase, TryApplyError,
};
pub use crate::init::init;
pub use crate::memory::{MemoryLimit, MemoryMechanism, OutOfMemory};
pub use crate::pool::asynchronous::Asynchronous;
pub use crate::pool::builder::{PoolBuilder, WorkerEvent};
pub use crate::pool::handle::Pool;
pub use crate::pool::imap::Imap;
pub use crate::pool::map::{CollectResults, IterSource, Map, MapFuture, Source, StreamSource};
pub use crate::pool::progress::Progress;
pub use crate::pool::result::{Apply, AsyncResult, Task};
#[cfg(feature = "tower")]
pub use crate::pool::service::TaskService;
pub use crate::pool::stats::{Latency, Stats, WorkerStats, WorkerStatus};
pub use crate::process::builder::ProcessBuilder;
pub use crate::process::children::{ChildProcess, active_children, join_children, run_main};
pub use crate::process::error::{ProcessError, ProcessErrorKind};
pub use crate::process::handle::{Process, Run};
pub use crate::process::identity::{CurrentProcess, ParentProcess, current, parent};
pub use crate::process::output::{Line, Output, OutputStream};
pub use crate::process::sentinel::wait_any;
pub use crate::process::start_method::StartMethod;
pub use crate::task::arguments::{Row, StarFn};
pub use crate::task::initializer::InitializerOutcome;
pub use crate::wire::attachments::Fd;
pub use crate::wire::context::{InvalidTraceContext, TraceContext};
#[cfg(feature = "json")]
pub use crate::wire::json::Json;
