//! Passing on what workers print: a bounded buffer and a thread for each stream, so that nobody waits for a sink.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::output::{Line, OutputStream, Sink};
use crate::task::table;
use crate::wire::codec::drop_quietly;
use crate::wire::mark::Tag;

/// Where a batch of lines comes from.
pub(crate) struct Voice {
    pub(crate) worker: usize,
    /// What it is called, if it is no worker.
    pub(crate) name: Option<String>,
    pub(crate) pid: u32,
    pub(crate) stream: OutputStream,
    pub(crate) sink: Sink,
}

/// Lines that came together. Every one but the last ends as it did.
pub(crate) struct Batch {
    pub(crate) speaker: Arc<Voice>,
    pub(crate) task: Option<Tag>,
    pub(crate) text: Vec<u8>,
    /// Lines of the speaker that were dropped in front of these.
    pub(crate) dropped: u64,
    #[cfg(feature = "tracing")]
    pub(crate) origin: Option<Arc<super::origin::Origin>>,
}

enum Item {
    Lines(Batch),
    #[cfg(feature = "tracing")]
    Record(super::replay::Heard),
    /// Dropped when all in front of it has been passed on.
    Flush(tokio::sync::oneshot::Sender<()>),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Lines(batch) => batch.text.len(),
            #[cfg(feature = "tracing")]
            Self::Record(heard) => heard.bytes(),
            Self::Flush(_) => 0,
        }
    }
}

/// The buffer of one stream. Its thread starts with the first item and ends when this is closed and empty.
#[derive(Clone)]
pub(crate) struct Passer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Told when there is something to do.
    filled: Condvar,
    /// Told when there is nothing.
    emptied: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    bytes: usize,
    started: bool,
    busy: bool,
    closed: bool,
}

impl fmt::Debug for Passer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passer").finish_non_exhaustive()
    }
}

/// Of all pools, for the end of the program: a thread may still pass on what a pool has left that is gone.
fn living() -> MutexGuard<'static, Vec<Weak<Shared>>> {
    static LIVING: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until everything has been passed on.
pub(crate) fn wait_for_all(until: Instant) {
    let living: Vec<_> = living().iter().filter_map(Weak::upgrade).collect();
    for shared in living {
        Passer { shared }.wait(until);
    }
}

impl Passer {
    /// A buffer of `limit` bytes, and one batch more.
    pub(crate) fn new(limit: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            limit,
        });
        let mut living = living();
        living.retain(|shared| shared.strong_count() > 0);
        living.push(Arc::downgrade(&shared));
        Self { shared }
    }

    /// `false` when the buffer is full, and the batch is dropped.
    pub(crate) fn lines(&self, batch: Batch) -> bool {
        self.push(Item::Lines(batch))
    }

    /// `false` when the buffer is full, and the record is dropped.
    #[cfg(feature = "tracing")]
    pub(crate) fn record(&self, heard: super::replay::Heard) -> bool {
        self.push(Item::Record(heard))
    }

    /// Told when everything up to now has been passed on.
    pub(crate) fn flushed(&self) -> tokio::sync::oneshot::Receiver<()> {
        let (done, is_done) = tokio::sync::oneshot::channel();
        if !self.is_empty(&self.lock()) {
            self.push(Item::Flush(done));
        }
        is_done
    }

    /// Waits until everything has been passed on, or for so long.
    pub(crate) fn wait(&self, until: Instant) {
        let mut state = self.lock();
        while !self.is_empty(&state) {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            (state, _) = self
                .shared
                .emptied
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.filled.notify_one();
    }

    fn push(&self, item: Item) -> bool {
        let mut state = self.lock();
        let bytes = item.bytes();
        // One that may have no room for anything else still takes what is of no size.
        if state.bytes >= self.shared.limit && bytes > 0 {
            return false;
        }
        if !state.started {
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new()
                .name("procession-lines".to_owned())
                .spawn(move || shared.run());
            if started.is_err() {
                return false;
            }
            state.started = true;
        }
        state.bytes += bytes;
        state.queue.push_back(item);
        let waits = !state.busy;
        drop(state);
        if waits {
            self.shared.filled.notify_one();
        }
        true
    }

    #[expect(
        clippy::unused_self,
        reason = "a question to the passer, asked with its lock held"
    )]
    fn is_empty(&self, state: &State) -> bool {
        state.queue.is_empty() && !state.busy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        #[cfg(feature = "tracing")]
        let mut replay = super::replay::Replay::default();
        let mut state = self.lock();
        loop {
            let Some(item) = state.queue.pop_front() else {
                state.busy = false;
                self.emptied.notify_all();
                if state.closed {
                    return;
                }
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy = true;
            drop(state);
            let bytes = item.bytes();
            // The sink is the user's.
            let passed = catch_unwind(AssertUnwindSafe(|| match item {
                Item::Lines(batch) => batch.pass_on(),
                #[cfg(feature = "tracing")]
                Item::Record(heard) => replay.play(heard),
                Item::Flush(done) => drop(done),
            }));
            if let Err(payload) = passed {
                drop_quietly(payload);
            }
            state = self.lock();
            // Only now is there room again: what a sink holds is in memory too.
            state.bytes -= bytes;
        }
    }
}

impl Batch {
    /// How many lines these are.
    pub(crate) fn count(text: &[u8]) -> u64 {
        split(text).count() as u64
    }

    fn pass_on(self) {
        match &self.speaker.sink {
            Sink::Null => {}
            Sink::Inherit => {
                let mut text = Vec::new();
                if self.dropped > 0 {
                    text = format!("[{}{}]\n", self.who(), self.loss()).into_bytes();
                    text.extend_from_slice(&self.text);
                }
                write_inherited(
                    self.speaker.stream,
                    if text.is_empty() { &self.text } else { &text },
                );
            }
            Sink::Tagged => {
                let mut text = Vec::with_capacity(self.text.len() + 64);
                let who = self.who();
                if self.dropped > 0 {
                    text.extend_from_slice(format!("[{who}] {}\n", self.loss()).as_bytes());
                }
                for line in split(&self.text) {
                    text.extend_from_slice(format!("[{who}] ").as_bytes());
                    text.extend_from_slice(line);
                    text.push(b'\n');
                }
                write_inherited(self.speaker.stream, &text);
            }
            Sink::Lines(sink) => self.each(|line| sink(line)),
            #[cfg(feature = "tracing")]
            Sink::Tracing => {
                let origin = self.origin.clone();
                self.each(|line| super::origin::line_event(origin.as_deref(), line));
            }
        }
    }

    /// Calls `sink` for each line. A panic in it costs that line.
    fn each(&self, sink: impl Fn(&Line)) {
        let mut line = Line {
            worker: self.speaker.worker,
            process_name: self.speaker.name.clone(),
            pid: self.speaker.pid,
            task: self.task.map(|task| task.id),
            task_name: self.task_name(),
            stream: self.speaker.stream,
            text: String::new(),
            dropped: self.dropped,
        };
        for text in split(&self.text) {
            line.text = match String::from_utf8_lossy(text) {
                Cow::Borrowed(text) => {
                    // The buffer of the line before serves again.
                    line.text.clear();
                    line.text.push_str(text);
                    line.text
                }
                Cow::Owned(text) => text,
            };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| sink(&line))) {
                drop_quietly(payload);
            }
            line.dropped = 0;
        }
    }

    fn task_name(&self) -> Option<&'static str> {
        Some(table::entry(self.task?.row)?.name)
    }

    fn who(&self) -> String {
        if let Some(name) = &self.speaker.name {
            return name.clone();
        }
        let worker = self.speaker.worker;
        match (&self.speaker.sink, self.task) {
            (Sink::Tagged, Some(task)) => match self.task_name() {
                Some(name) => format!("worker {worker}, task {} {name}", task.id),
                None => format!("worker {worker}, task {}", task.id),
            },
            _ => format!("worker {worker}"),
        }
    }

    fn loss(&self) -> String {
        let separator = if matches!(self.speaker.sink, Sink::Inherit) {
            ": "
        } else {
            ""
        };
        format!("{separator}{} lines dropped", self.dropped)
    }
}

/// The lines of a text, without their ends.
fn split(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').map(|line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    })
}

/// Writes to one of this process's own streams. Where that is broken, nothing is left to say it to.
fn write_inherited(stream: OutputStream, text: &[u8]) {
    /// One text at a time, whatever pool it comes from.
    static WRITING: Mutex<()> = Mutex::new(());
    match stream {
        // Past the lock of `io::stdout()`, which a program may keep for as long as it runs.
        OutputStream::Stdout => {
            let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
            write_all(&io::stdout(), text);
        }
        // With the lock, for the program's own lines are written in pieces under it.
        OutputStream::Stderr => {
            let mut stderr = io::stderr().lock();
            stderr.flush().ok();
            write_all(&stderr, text);
        }
    }
}

fn write_all(to: &impl AsFd, mut text: &[u8]) {
    while !text.is_empty() {
        match rustix::io::write(to, text) {
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // Somebody made it non-blocking; this thread may wait.
                if poll(&mut [PollFd::new(to, PollFlags::OUT)], None).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
