//! Listening to workers: one thread per pool reads what they print, makes lines of it, finds out whose they are, and
//! keeps the last of it for error reports. It waits for nobody.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::output::{OutputStream, Sink};
use super::pass::{self, Batch, Passer, Voice};
use crate::shared::ledger::{Ledger, Started};
use crate::wire::mark::{Found, Tag, Token};

/// What is kept of the end of a worker's standard error.
const TAIL: usize = 16 * 1024;
/// A line that is longer is passed on in pieces.
const LONGEST_LINE: usize = 64 * 1024;
/// Reads that empty a pipe of the usual size, several times over.
const PIPE_READS: usize = 64;
#[cfg(feature = "tracing")]
const EVENTS_PIPE: usize = 1 << 20;
/// What is read at once, at least: the usual size of a pipe.
const READ: usize = 64 * 1024;
const STACK: usize = 256 * 1024;
/// The pause between two looks at pipes that cannot be waited for.
const PAUSE: Duration = Duration::from_millis(50);
/// What the end of the program may wait for the last lines to be passed on.
const AT_EXIT: Duration = Duration::from_millis(500);

/// A pool's ears: its thread, and what is counted and kept of what it hears.
///
/// The thread ends when [`Ears::close`] has been called and the last pipe is closed.
pub(crate) struct Ears {
    commands: Mutex<Sender<Command>>,
    wake: OwnedFd,
    stdout: Passer,
    stderr: Passer,
    /// The next number for a process.
    speakers: AtomicU64,
    /// Lines that no sink took in time.
    lines_dropped: AtomicU64,
    #[cfg(feature = "tracing")]
    pub(crate) events: super::origin::Events,
}

impl fmt::Debug for Ears {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ears").finish_non_exhaustive()
    }
}

enum Command {
    Add(Box<Source>),
    /// Read what is there from a process that has ended, then answer with the last of it.
    Settle {
        process: u64,
        /// What it started may go on.
        is_free: bool,
        answer: tokio::sync::oneshot::Sender<String>,
    },
    /// Read what is there from all.
    Sweep(Box<dyn FnOnce() + Send>),
    Close,
}

/// The parent's end of a pipe that a worker writes to.
#[derive(Debug)]
pub(crate) struct Pipe(OwnedFd);

impl Pipe {
    /// Another descriptor of the same end, for one who keeps the pipe from being without a reader.
    pub(crate) fn copy(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

/// A pipe: the parent's end, and the worker's.
pub(crate) fn pipe() -> io::Result<(Pipe, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Pipe(ours), theirs))
}

/// A pipe for events.
#[cfg(feature = "tracing")]
pub(crate) fn events_pipe() -> io::Result<(Pipe, OwnedFd)> {
    let (ours, theirs) = pipe()?;
    // As much as anybody may have; the usual is less than a burst.
    rustix::pipe::fcntl_setpipe_size(&ours.0, EVENTS_PIPE).ok();
    Ok((ours, theirs))
}

/// Which process a pipe belongs to.
#[derive(Debug)]
pub(crate) struct Speaker {
    /// Its [number](Ears::number): all its pipes have the same.
    pub(crate) number: u64,
    pub(crate) worker: usize,
    /// What it is called, if it is no worker.
    pub(crate) name: Option<String>,
    pub(crate) pid: u32,
    /// What it has begun.
    pub(crate) ledger: Arc<Ledger>,
    /// What its marks begin with, where it writes any.
    pub(crate) token: Option<Token>,
}

impl Ears {
    /// `limit` is how many bytes of each stream may wait for their sink. Nothing is heard before [`Reader::start`].
    pub(crate) fn new(limit: usize) -> io::Result<(Arc<Self>, Reader)> {
        let (commands, received) = channel();
        let ears = Arc::new(Self {
            commands: Mutex::new(commands),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stdout: Passer::new(limit),
            stderr: Passer::new(limit),
            speakers: AtomicU64::new(0),
            lines_dropped: AtomicU64::new(0),
            #[cfg(feature = "tracing")]
            events: super::origin::Events::new(limit),
        });
        let reader = Reader {
            ears: Arc::clone(&ears),
            commands: received,
            sources: Vec::new(),
            tails: HashMap::new(),
            buffer: Vec::new(),
        };
        Ok((ears, reader))
    }

    /// A number for a process, which tells it from its predecessors.
    pub(crate) fn number(&self) -> u64 {
        self.speakers.fetch_add(1, Ordering::Relaxed)
    }

    /// Listens to what a process prints until it is settled or its pipe is closed.
    pub(crate) fn listen(&self, process: &Speaker, stream: OutputStream, sink: Sink, pipe: Pipe) {
        let token = process.token.filter(|_| sink.is_tagged());
        let speaker = Voice {
            worker: process.worker,
            name: process.name.clone(),
            pid: process.pid,
            stream,
            sink,
        };
        self.command(Command::Add(Box::new(Source {
            process: process.number,
            ledger: Arc::clone(&process.ledger),
            pipe: pipe.0,
            ear: Ear::Lines(Lines {
                speaker: Arc::new(speaker),
                token,
                held: Vec::new(),
                line: Vec::new(),
                task: None,
                tail: Vec::new(),
                tail_of: None,
                dropped: 0,
            }),
            is_settled: false,
        })));
    }

    /// Listens to the events that a process emits.
    #[cfg(feature = "tracing")]
    pub(crate) fn listen_events(&self, process: &Speaker, pipe: Pipe) {
        self.events.begin(process.number, &process.ledger);
        self.command(Command::Add(Box::new(Source {
            process: process.number,
            ledger: Arc::clone(&process.ledger),
            pipe: pipe.0,
            ear: Ear::Events(super::replay::Stream::new(
                process.number,
                process.worker,
                process.pid,
                &process.ledger,
            )),
            is_settled: false,
        })));
    }

    /// The last that a process wrote to its standard error, once it has ended. Nothing is heard of it after this,
    /// whether or not anybody waits for the answer, but what others print that it started, where they are free to go on.
    pub(crate) fn settle(&self, process: u64, is_free: bool) -> impl Future<Output = String> + use<> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.command(Command::Settle {
            process,
            is_free,
            answer,
        });
        answered.map(Result::unwrap_or_default)
    }

    /// Waits until what workers have written so far has been passed on.
    pub(crate) async fn flushed(&self) {
        let (swept, is_swept) = tokio::sync::oneshot::channel::<()>();
        self.command(Command::Sweep(Box::new(move || drop(swept))));
        // The end of a channel is the sign.
        is_swept.await.ok();
        let flushed: Vec<_> = self.passers().map(Passer::flushed).collect();
        for flushed in flushed {
            flushed.await.ok();
        }
    }

    /// Lines that no sink took in time.
    pub(crate) fn lines_dropped(&self) -> u64 {
        self.lines_dropped.load(Ordering::Relaxed)
    }

    /// Events that did not fit somewhere on their way.
    #[cfg_attr(
        not(feature = "tracing"),
        expect(clippy::unused_self, reason = "there are none")
    )]
    pub(crate) fn events_dropped(&self) -> u64 {
        #[cfg(feature = "tracing")]
        return self.events.dropped();
        #[cfg(not(feature = "tracing"))]
        0
    }

    /// No more pipes will come.
    pub(crate) fn close(&self) {
        self.command(Command::Close);
    }

    /// Has the thread look at what it should forget.
    #[cfg(feature = "tracing")]
    pub(crate) fn wake(&self) {
        wake(&self.wake);
    }

    fn passers(&self) -> impl Iterator<Item = &Passer> {
        let passers = [&self.stdout, &self.stderr].into_iter();
        #[cfg(feature = "tracing")]
        let passers = passers.chain([self.events.passer()]);
        passers
    }

    fn command(&self, command: Command) {
        // Where the thread has ended there is nothing to hear.
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(command)
            .ok();
        wake(&self.wake);
    }
}

fn wake(fd: &OwnedFd) {
    // The counter can only be full, and then the thread is awake.
    rustix::io::write(fd, &1_u64.to_ne_bytes()).ok();
}

/// The ears of all pools, for the end of the program.
fn living() -> std::sync::MutexGuard<'static, Vec<Weak<Ears>>> {
    static LIVING: Mutex<Vec<Weak<Ears>>> = Mutex::new(Vec::new());
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program ends: what workers have printed is passed on first, if that is soon done.
pub(crate) fn at_exit() {
    let until = Instant::now() + AT_EXIT;
    let ears: Vec<_> = living().iter().filter_map(Weak::upgrade).collect();
    for ears in ears {
        let (swept, is_swept) = channel::<()>();
        ears.command(Command::Sweep(Box::new(move || drop(swept))));
        // The end of the channel is the sign.
        is_swept
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .ok();
    }
    pass::wait_for_all(until);
}

/// The thread's own: the pipes, and what it reads from them.
pub(crate) struct Reader {
    ears: Arc<Ears>,
    commands: Receiver<Command>,
    sources: Vec<Source>,
    /// The last of standard error of processes whose pipe is closed and whose end has not been reported.
    tails: HashMap<u64, (Tail, Arc<Ledger>)>,
    /// As large as the largest pipe, so that one read takes all that is there: a mark stands behind what it is for.
    buffer: Vec<u8>,
}

/// What tells words of one task, or element of it, from those of another.
fn place(started: Started) -> (u64, u64) {
    (started.id, started.element)
}

/// The end of a standard error, and the task that it belongs to.
type Tail = (Vec<u8>, Option<Started>);

struct Source {
    process: u64,
    ledger: Arc<Ledger>,
    pipe: OwnedFd,
    ear: Ear,
    /// The process has ended, and whoever asked has been told of it.
    is_settled: bool,
}

enum Ear {
    Lines(Lines),
    #[cfg(feature = "tracing")]
    Events(super::replay::Stream),
}

/// What one stream of a worker has come to.
struct Lines {
    speaker: Arc<Voice>,
    token: Option<Token>,
    /// The beginning of what may become a mark.
    held: Vec<u8>,
    /// The beginning of a line, and whose it is.
    line: Vec<u8>,
    task: Option<Tag>,
    tail: Vec<u8>,
    /// What ran when the tail was read.
    tail_of: Option<Started>,
    /// Lines that were dropped since the last that was passed on.
    dropped: u64,
}

impl Reader {
    /// Starts the thread.
    pub(crate) fn start(mut self) -> io::Result<()> {
        let mut living = living();
        living.retain(|ears| ears.strong_count() > 0);
        living.push(Arc::downgrade(&self.ears));
        drop(living);
        thread::Builder::new()
            .name("procession-output".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                self.buffer = vec![0; READ];
                self.run();
            })?;
        Ok(())
    }

    fn run(mut self) {
        let mut open = true;
        loop {
            // Asked for now, done when everything that has come until now has been read, from sources that are new
            // too.
            #[cfg(feature = "tracing")]
            let retired = self.ears.events.take_retired();
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Add(source)) => self.add(*source),
                    Ok(Command::Settle {
                        process,
                        is_free,
                        answer,
                    }) => {
                        let tail = self.settle(process, is_free);
                        // Who asked may have stopped waiting.
                        answer.send(tail).ok();
                    }
                    Ok(Command::Sweep(done)) => {
                        self.sweep();
                        done();
                    }
                    Ok(Command::Close) => open = false,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            #[cfg(feature = "tracing")]
            if !retired.is_empty() {
                self.sweep();
                self.ears.events.forget(&retired);
            }
            if !open && self.sources.is_empty() {
                break;
            }
            let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(&self.ears.wake, PollFlags::IN)];
            fds.extend(
                self.sources
                    .iter()
                    .map(|source| PollFd::new(&source.pipe, PollFlags::IN)),
            );
            let ready: Vec<bool> = match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
                // There is no memory, or there are more than this program may have open by now. Nobody must wait, or be
                // ended, for want of a reader.
                Err(_) => {
                    thread::park_timeout(PAUSE);
                    vec![true; fds.len()]
                }
            };
            drop(fds);
            if ready[0] {
                rustix::io::read(&self.ears.wake, &mut [0; 8]).ok();
            }
            // From the end, for closing one moves the last into its place.
            for index in (0..self.sources.len()).rev() {
                if ready[index + 1] && !self.sources[index].read(&mut self.buffer, &self.ears) {
                    self.close(index);
                }
            }
        }
        self.ears.passers().for_each(Passer::close);
    }

    fn add(&mut self, source: Source) {
        if let Ear::Lines(_) = source.ear
            && let Ok(size) = rustix::pipe::fcntl_getpipe_size(&source.pipe)
            && size > self.buffer.len()
        {
            self.buffer.resize(size, 0);
        }
        self.sources.push(source);
    }

    fn settle(&mut self, process: u64, is_free: bool) -> String {
        let mut index = 0;
        let (mut tail, mut tail_of) = Tail::default();
        let mut running = None;
        if let Some((found, ledger)) = self.tails.remove(&process) {
            (tail, tail_of) = found;
            running = ledger.running().map(|(started, _)| started);
        }
        while index < self.sources.len() {
            let source = &mut self.sources[index];
            if source.process != process {
                index += 1;
                continue;
            }
            source.drain(&mut self.buffer, &self.ears);
            running = source.ledger.running().map(|(started, _)| started);
            if is_free && !source.has_hung_up() {
                // What the process started holds the pipe, and would be ended for want of a reader.
                if let Some(found) = source.settle(&self.ears) {
                    (tail, tail_of) = found;
                }
                index += 1;
                continue;
            }
            // What the process started may still hold the pipe; it belongs to nobody now.
            let source = self.sources.swap_remove(index);
            if let Some(found) = source.end(&self.ears) {
                (tail, tail_of) = found;
            }
        }
        // An earlier task's last words explain nothing.
        if running.is_some() && tail_of.map(place) != running.map(place) {
            tail.clear();
        }
        let start = if tail.len() < TAIL {
            0
        } else {
            tail.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1)
        };
        String::from_utf8_lossy(&tail[start..]).into_owned()
    }

    fn sweep(&mut self) {
        for source in &mut self.sources {
            source.drain(&mut self.buffer, &self.ears);
        }
    }

    fn close(&mut self, index: usize) {
        let source = self.sources.swap_remove(index);
        let (process, ledger) = (source.process, Arc::clone(&source.ledger));
        let is_settled = source.is_settled;
        if let Some(tail) = source.end(&self.ears)
            && !is_settled
        {
            self.tails.insert(process, (tail, ledger));
        }
    }
}

impl Source {
    /// Reads once; `false` when the other end is closed.
    fn read(&mut self, buffer: &mut [u8], ears: &Ears) -> bool {
        let before = self.ledger.running();
        match rustix::io::read(&self.pipe, &mut *buffer) {
            Ok(0) => false,
            Ok(length) => {
                let bytes = &buffer[..length];
                match &mut self.ear {
                    Ear::Lines(lines) => {
                        let after = self.ledger.running();
                        // Late by a hair, the words are rather those of a task that has just ended than of one that
                        // has just begun.
                        let task = before.or(after).map(|(started, row)| Tag { id: started.id, row });
                        lines.take(bytes, task, after.map(|(started, _)| started), ears);
                    }
                    #[cfg(feature = "tracing")]
                    Ear::Events(stream) => stream.take(bytes, &ears.events),
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// Reads what is there. Bounded: what the process left behind may print for ever.
    fn drain(&mut self, buffer: &mut [u8], ears: &Ears) {
        for _ in 0..PIPE_READS {
            if !self.has_more() || !self.read(buffer, ears) {
                break;
            }
        }
    }

    fn has_more(&self) -> bool {
        self.events().contains(PollFlags::IN)
    }

    /// Whether all has been read and nobody is left to write more.
    fn has_hung_up(&self) -> bool {
        self.events() == PollFlags::HUP
    }

    fn events(&self) -> PollFlags {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }

    /// The process has ended and others go on: what it has left unfinished is passed on. Gives the last of a standard
    /// error.
    fn settle(&mut self, ears: &Ears) -> Option<Tail> {
        self.is_settled = true;
        match &mut self.ear {
            Ear::Lines(lines) => {
                lines.end_line(ears);
                (lines.speaker.stream == OutputStream::Stderr)
                    .then(|| (mem::take(&mut lines.tail), lines.tail_of))
            }
            #[cfg(feature = "tracing")]
            Ear::Events(_) => None,
        }
    }

    /// What is left unfinished is passed on. Gives the last of a standard error.
    fn end(self, ears: &Ears) -> Option<Tail> {
        match self.ear {
            Ear::Lines(mut lines) => {
                lines.end(ears);
                (lines.speaker.stream == OutputStream::Stderr).then_some((lines.tail, lines.tail_of))
            }
            #[cfg(feature = "tracing")]
            Ear::Events(stream) => {
                stream.end(&ears.events);
                None
            }
        }
    }
}

impl Lines {
    /// Takes bytes that were read while `task` ran; when they had been read, `running` did.
    fn take(&mut self, bytes: &[u8], task: Option<Tag>, running: Option<Started>, ears: &Ears) {
        let Some(token) = self.token else {
            // Without marks, words of an earlier task may count as those of the one that runs now, never the other
            // way round.
            self.keep(bytes, running);
            self.text(bytes, None, ears);
            return;
        };
        // Of the elements of a task, the last counts.
        let started = |tag: Tag| match running {
            Some(running) if running.id == tag.id => running,
            _ => Started {
                id: tag.id,
                element: 0,
                since: 0,
            },
        };
        let mut held = mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let mut rest = &held[..];
        loop {
            match token.find(rest) {
                Found::Mark(at, tag) => {
                    self.keep(&rest[..at], Some(started(tag)));
                    self.text(&rest[..at], Some(tag), ears);
                    self.end_line(ears);
                    rest = &rest[at + crate::wire::mark::MARK..];
                }
                Found::Beginning(at) => {
                    self.keep(&rest[..at], task.map(started));
                    self.text(&rest[..at], task, ears);
                    self.held = rest[at..].to_vec();
                    return;
                }
                Found::Nothing => {
                    self.keep(rest, task.map(started));
                    self.text(rest, task, ears);
                    return;
                }
            }
        }
    }

    /// Keeps the last of a standard error, which is of what `started`.
    fn keep(&mut self, bytes: &[u8], started: Option<Started>) {
        if self.speaker.stream != OutputStream::Stderr || bytes.is_empty() {
            return;
        }
        if started.is_some() && self.tail_of.map(place) != started.map(place) {
            self.tail.clear();
            self.tail_of = started;
        }
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }

    fn text(&mut self, bytes: &[u8], task: Option<Tag>, ears: &Ears) {
        if bytes.is_empty() || matches!(self.speaker.sink, Sink::Null) {
            return;
        }
        if self.task != task {
            // A task's line ends with it.
            self.end_line(ears);
            self.task = task;
        }
        self.line.extend_from_slice(bytes);
        let whole = self
            .line
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        if whole > 0 {
            let rest = self.line.split_off(whole);
            let lines = mem::replace(&mut self.line, rest);
            self.pass_on(lines, ears);
        }
        while self.line.len() > LONGEST_LINE {
            let rest = self.line.split_off(LONGEST_LINE);
            let piece = mem::replace(&mut self.line, rest);
            self.pass_on(piece, ears);
        }
    }

    fn end_line(&mut self, ears: &Ears) {
        if !self.line.is_empty() {
            let line = mem::take(&mut self.line);
            self.pass_on(line, ears);
        }
    }

    fn end(&mut self, ears: &Ears) {
        let held = mem::take(&mut self.held);
        self.keep(&held, None);
        self.text(&held, self.task, ears);
        self.end_line(ears);
        if self.dropped > 0 && matches!(self.speaker.sink, Sink::Inherit | Sink::Tagged) {
            // Nothing comes behind that could say it.
            self.send(Vec::new(), ears);
        }
    }

    fn pass_on(&mut self, text: Vec<u8>, ears: &Ears) {
        let count = Batch::count(&text);
        if !self.send(text, ears) {
            self.dropped += count;
            ears.lines_dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn send(&mut self, text: Vec<u8>, ears: &Ears) -> bool {
        let passer = match self.speaker.stream {
            OutputStream::Stdout => &ears.stdout,
            OutputStream::Stderr => &ears.stderr,
        };
        let sent = passer.lines(Batch {
            speaker: Arc::clone(&self.speaker),
            task: self.task,
            text,
            dropped: self.dropped,
            #[cfg(feature = "tracing")]
            origin: self.task.and_then(|task| ears.events.origin(task.id)),
        });
        if sent {
            self.dropped = 0;
        }
        sent
    }
}
