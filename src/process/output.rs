//! What workers print: read by one thread per pool, passed on in whole lines, the last of it kept for error reports.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::wire::codec::drop_quietly;

/// What is kept of the end of a worker's standard error.
const TAIL: usize = 16 * 1024;
/// A line that is longer is passed on in pieces.
const LONGEST_LINE: usize = 64 * 1024;
/// Reads that empty a pipe of the usual size, several times over.
const PIPE_READS: usize = 64;
const STACK: usize = 256 * 1024;

/// Where a worker's standard output or standard error goes.
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
///     .stdout(Output::lines(move |worker, line| {
///         let _ = lines.send(format!("{worker}: {line}"));
///     }))
///     .build()
///     .await?;
/// pool.apply(|name: String| println!("hello {name}"), "world".to_owned()).await?;
/// assert_eq!(received.recv()?, "0: hello world");
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Output {
    pub(crate) sink: Sink,
}

/// Gets worker numbers and lines.
type LineSink = Arc<dyn Fn(usize, &str) + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Sink {
    Inherit,
    Null,
    Lines(LineSink),
}

impl Output {
    /// To where the parent's own goes.
    #[must_use]
    pub fn inherit() -> Self {
        Self { sink: Sink::Inherit }
    }

    /// To nowhere.
    #[must_use]
    pub fn null() -> Self {
        Self { sink: Sink::Null }
    }

    /// Line by line, without the line ends, to a function in the parent that also gets the worker's number.
    ///
    /// It runs on a thread of the pool's own, never on the path of results. While it blocks, workers that print a
    /// lot come to wait for it. A panic in it is reported and the line is lost.
    #[must_use]
    pub fn lines(sink: impl Fn(usize, &str) + Send + Sync + 'static) -> Self {
        Self {
            sink: Sink::Lines(Arc::new(sink)),
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.sink {
            Sink::Inherit => "Output::inherit()",
            Sink::Null => "Output::null()",
            Sink::Lines(_) => "Output::lines(..)",
        })
    }
}

/// Which of the parent's own streams an inherited one goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A pool's output thread. It ends when this is dropped and the last of its pipes is closed.
#[derive(Debug)]
pub(crate) struct OutputThread {
    commands: Mutex<Sender<Command>>,
    wake: Arc<OwnedFd>,
}

enum Command {
    Add(Source),
    /// Read what is there from a worker that has ended, then answer with the last of it.
    Settle(u64, tokio::sync::oneshot::Sender<String>),
}

/// A pipe from a worker.
struct Source {
    /// Which process it comes from: stdout and stderr of one have the same.
    process: u64,
    worker: usize,
    stream: Stream,
    sink: Sink,
    pipe: OwnedFd,
    line: Vec<u8>,
    tail: Vec<u8>,
}

impl OutputThread {
    pub(crate) fn start() -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, received) = channel();
        let thread = Reader {
            wake: Arc::clone(&wake),
            commands: received,
            sources: Vec::new(),
            tails: HashMap::new(),
        };
        thread::Builder::new()
            .name("procession-output".to_owned())
            .stack_size(STACK)
            .spawn(move || thread.run())?;
        Ok(Self {
            commands: Mutex::new(commands),
            wake,
        })
    }

    /// A pipe whose other end is read here until it is closed.
    pub(crate) fn pipe(
        &self,
        process: u64,
        worker: usize,
        stream: Stream,
        sink: Sink,
    ) -> io::Result<OwnedFd> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        self.command(Command::Add(Source {
            process,
            worker,
            stream,
            sink,
            pipe: ours,
            line: Vec::new(),
            tail: Vec::new(),
        }));
        Ok(theirs)
    }

    /// The last that a process wrote to its standard error, once it has ended.
    pub(crate) async fn settle(&self, process: u64) -> String {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.command(Command::Settle(process, answer));
        answered.await.unwrap_or_default()
    }

    fn command(&self, command: Command) {
        // The thread outlives every sender.
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(command)
            .ok();
        wake(&self.wake);
    }
}

impl Drop for OutputThread {
    fn drop(&mut self) {
        // The sender must be gone before the thread looks.
        drop(std::mem::replace(
            &mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner),
            channel().0,
        ));
        wake(&self.wake);
    }
}

fn wake(fd: &OwnedFd) {
    // The counter can only be full, and then the thread is awake.
    rustix::io::write(fd, &1_u64.to_ne_bytes()).ok();
}

struct Reader {
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    sources: Vec<Source>,
    /// The last of standard error of processes whose pipe is closed and whose end has not been reported.
    tails: HashMap<u64, Vec<u8>>,
}

impl Reader {
    fn run(mut self) {
        loop {
            let mut open = true;
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Add(source)) => self.sources.push(source),
                    Ok(Command::Settle(process, answer)) => {
                        let tail = self.settle(process);
                        // Who asked may have stopped waiting.
                        answer.send(tail).ok();
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        open = false;
                        break;
                    }
                }
            }
            if !open && self.sources.is_empty() {
                return;
            }
            let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(&*self.wake, PollFlags::IN)];
            fds.extend(
                self.sources
                    .iter()
                    .map(|source| PollFd::new(&source.pipe, PollFlags::IN)),
            );
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                // Nothing can be heard any more; workers that print much will wait, results are not concerned.
                Err(_) => return,
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[0] {
                rustix::io::read(&*self.wake, &mut [0; 8]).ok();
            }
            // From the end, for closing one moves the last into its place.
            for index in (0..self.sources.len()).rev() {
                if ready[index + 1] && !self.sources[index].read() {
                    self.close(index);
                }
            }
        }
    }

    fn settle(&mut self, process: u64) -> String {
        let mut index = 0;
        let mut tail = self.tails.remove(&process).unwrap_or_default();
        while index < self.sources.len() {
            let source = &mut self.sources[index];
            if source.process != process {
                index += 1;
                continue;
            }
            // Bounded: what the process left behind may print for ever.
            for _ in 0..PIPE_READS {
                if !source.has_more() || !source.read() {
                    break;
                }
            }
            if source.stream == Stream::Stderr {
                tail = std::mem::take(&mut source.tail);
            }
            // What the process started may still hold the pipe; it belongs to nobody now.
            self.sources.swap_remove(index).end();
        }
        let start = if tail.len() < TAIL {
            0
        } else {
            tail.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1)
        };
        String::from_utf8_lossy(&tail[start..]).into_owned()
    }

    fn close(&mut self, index: usize) {
        let mut source = self.sources.swap_remove(index);
        if source.stream == Stream::Stderr {
            self.tails
                .insert(source.process, std::mem::take(&mut source.tail));
        }
        source.end();
    }
}

impl Source {
    /// Reads once; `false` when the other end is closed.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match rustix::io::read(&self.pipe, &mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.take(&buffer[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn has_more(&self) -> bool {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::IN)
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.stream == Stream::Stderr {
            self.tail.extend_from_slice(bytes);
            let excess = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..excess);
        }
        self.line.extend_from_slice(bytes);
        let whole = self
            .line
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let whole = if self.line.len() - whole > LONGEST_LINE {
            self.line.len()
        } else {
            whole
        };
        if whole > 0 {
            let rest = self.line.split_off(whole);
            let lines = std::mem::replace(&mut self.line, rest);
            self.pass_on(&lines);
        }
    }

    fn end(mut self) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.pass_on(&line);
        }
    }

    fn pass_on(&self, bytes: &[u8]) {
        match &self.sink {
            Sink::Null => {}
            // Where the parent's own output is broken, nothing is left to say it to.
            Sink::Inherit => {
                let written = match self.stream {
                    Stream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
                    Stream::Stderr => io::stderr().write_all(bytes),
                };
                written.ok();
            }
            Sink::Lines(sink) => {
                for line in bytes.split_inclusive(|&byte| byte == b'\n') {
                    let line = line.strip_suffix(b"\n").unwrap_or(line);
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    let line = String::from_utf8_lossy(line);
                    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| sink(self.worker, &line))) {
                        drop_quietly(payload);
                    }
                }
            }
        }
    }
}

/// A copy of the parent's own standard output, for workers to write to.
pub(crate) fn own_stdout() -> Option<OwnedFd> {
    let stdout = io::stdout();
    let fd: BorrowedFd<'_> = stdout.as_fd();
    rustix::io::fcntl_dupfd_cloexec(fd, 3).ok()
}
