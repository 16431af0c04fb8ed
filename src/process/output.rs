//! Where what workers print goes: [`Output`] says, and a [`Line`] is what comes.

use std::fmt;
use std::sync::Arc;

/// Where a worker's standard output or standard error goes.
///
/// All that a worker's process and its children write there counts, whatever language wrote it. It is read by a thread
/// of the pool's own and passed on, in whole lines, by another one, so that neither a worker nor a result ever waits
/// for where it goes. What is not taken in time waits in a buffer of
/// [`output_buffer`](crate::PoolBuilder::output_buffer) bytes. Lines beyond that are dropped and counted: in
/// [`Stats::lines_dropped`](crate::Stats::lines_dropped), in [`Line::dropped`] of the next line that is passed on, and
/// in a line of its own where the output is inherited. A line over 64 KiB is passed on in pieces.
///
/// A line may arrive a moment after the result of its task. [`join`](crate::Pool::join) waits for what workers have
/// printed to be passed on, for [`shutdown_grace`](crate::PoolBuilder::shutdown_grace) at most, and so does the end of
/// the program, for half a second at most.
///
/// # Examples
///
/// ```
/// use procession::{Output, Pool};
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let (lines, received) = std::sync::mpsc::channel();
/// let pool = Pool::builder()
///     .workers(1)
///     .stdout(Output::lines(move |line| {
///         let _ = lines.send(format!("{} {:?}: {}", line.worker, line.task, line.text));
///     }))
///     .build()
///     .await?;
/// pool.apply(|name: String| println!("hello {name}"), "world".to_owned()).await?;
/// assert_eq!(received.recv()?, "0 Some(1): hello world");
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Output {
    pub(crate) sink: Sink,
}

/// A line that a worker printed, for [`Output::lines`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// The worker's number. 0 where it is a [`Process`](crate::Process) or a
    /// [template](crate::StartMethod::ForkServer).
    pub worker: usize,
    /// What it is called, where it is a [`Process`](crate::Process) or a template: `None` for a worker.
    pub process_name: Option<String>,
    /// Its process, also where a child of it printed the line.
    pub pid: u32,
    /// The task that the worker ran: its [id](crate::AsyncResult::id). `None` between tasks, and where the worker runs
    /// [several at a time](crate::PoolBuilder::tasks_per_worker).
    ///
    /// What a process that outlives its task prints later counts as the words of the task that runs then. What the task
    /// itself had in a buffer, after a `print!` without the end of a line, say, is lost where it dies.
    pub task: Option<u64>,
    /// The task's name: its function, as the compiler calls it.
    pub task_name: Option<&'static str>,
    /// Where it was written to.
    pub stream: OutputStream,
    /// The line, without its end. Bytes that are no UTF-8 are replaced.
    pub text: String,
    /// Lines of this worker and stream that were dropped between the line before and this one.
    pub dropped: u64,
}

/// One of the two streams that a process prints to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

type LineSink = Arc<dyn Fn(&Line) + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Sink {
    Inherit,
    Tagged,
    Null,
    Lines(LineSink),
    #[cfg(feature = "tracing")]
    Tracing,
}

impl Output {
    /// To where the parent's own goes, in whole lines, and otherwise as it is. For a worker it is a pipe, whatever it
    /// is for the parent.
    #[must_use]
    pub fn inherit() -> Self {
        Self { sink: Sink::Inherit }
    }

    /// To where the parent's own goes, each line with the worker and the task in front of it:
    /// `[worker 0, task 12 my_crate::resize] …`.
    #[must_use]
    pub fn tagged() -> Self {
        Self { sink: Sink::Tagged }
    }

    /// To nowhere.
    #[must_use]
    pub fn null() -> Self {
        Self { sink: Sink::Null }
    }

    /// Line by line to a function in the parent.
    ///
    /// It runs on a thread that the pool has for this stream alone, never on the path of results. While it blocks,
    /// lines wait in the buffer. A panic in it is reported and the line is lost.
    ///
    /// That it can say whose a line is costs each task a system call for each stream, as it does for
    /// [`tagged`](Self::tagged).
    #[must_use]
    pub fn lines(sink: impl Fn(&Line) + Send + Sync + 'static) -> Self {
        Self {
            sink: Sink::Lines(Arc::new(sink)),
        }
    }

    /// Line by line as `tracing` events, with the target `procession::worker` and the fields `worker`, `process_name`,
    /// `pid`, `task`, `task_name` and `stream`: standard output at the level `INFO`, standard error at `WARN`.
    ///
    /// Their parent is the span that was current where the task was submitted.
    #[cfg(feature = "tracing")]
    #[must_use]
    pub fn tracing() -> Self {
        Self { sink: Sink::Tracing }
    }
}

impl Sink {
    /// Whether it wants to know whose a line is.
    pub(crate) fn is_tagged(&self) -> bool {
        !matches!(self, Self::Inherit | Self::Null)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output::{:?}", self.sink)
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inherit => "inherit()",
            Self::Tagged => "tagged()",
            Self::Null => "null()",
            Self::Lines(_) => "lines(..)",
            #[cfg(feature = "tracing")]
            Self::Tracing => "tracing()",
        })
    }
}

impl fmt::Display for OutputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}
