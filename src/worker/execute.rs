//! One task, from the bytes of its argument to the bytes of its reply.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::task::Poll;

use super::panic;
use super::reply::Replies;
use crate::shared::ledger::clock;
use crate::task::entry::{AsyncTask, Elements, Entry, Run};
use crate::task::table;
use crate::wire::attachments;
use crate::wire::body::Body;
use crate::wire::buffers;
use crate::wire::codec::{Encoded, message_bytes, push_record, take_record, take_u32};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Failure, kind};
use crate::wire::tail::Ending;

/// A result or a failure, ready to be sent.
pub(super) type Reply = Outgoing;

/// Limits that every task here runs under.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_frame_size: u64,
}

/// A task that has come, with its row looked up.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) entry: Entry,
    /// Where the argument begins in the message, or the records of a chunk.
    arguments: usize,
    pub(super) message: Message,
    /// When it started.
    began: u64,
}

impl Prepared {
    /// Looks the task up. A row that the table does not have is the reply.
    pub(super) fn new(message: Message, began: u64) -> Result<Self, (Message, Reply)> {
        let start = message.start();
        let mut rest = start;
        let Some(row) = take_u32(&mut rest) else {
            return Err((message, failure_reply(&Failure::UnknownTask(u32::MAX))));
        };
        match table::entry(row) {
            Some(entry) if !matches!(entry.run, Run::Never) => Ok(Self {
                entry,
                arguments: start.len() - rest.len(),
                message,
                began,
            }),
            _ => Err((message, failure_reply(&Failure::UnknownTask(row)))),
        }
    }

    fn arguments(&self) -> &[u8] {
        &self.message.body[self.arguments..]
    }

    /// The argument of a single task, its tail out of the message.
    fn argument(&mut self) -> Encoded<'_> {
        let Message { head, body, .. } = &mut self.message;
        if head.is_empty() {
            Encoded::from(&body[self.arguments..])
        } else {
            Encoded {
                bytes: &head[self.arguments..],
                tail: Some(std::mem::take(body).into_vec()),
            }
        }
    }
}

/// Runs a single task.
///
/// Only an async task ever waits; a blocking one is over when this future is polled for the first time.
pub(super) async fn run_single(mut task: Prepared, limits: Limits) -> Reply {
    let fds = std::mem::take(&mut task.message.fds);
    let mut bytes = result_buffer();
    let (result, fds) = match task.entry.run {
        Run::Blocking { one: run, .. } => attachments::collect(|| {
            attachments::provide(fds, || {
                flatten(panic::catch(|| {
                    let ending = run(task.argument(), &mut bytes, limits.max_frame_size)?;
                    Ok((bytes, ending))
                }))
            })
        }),
        Run::Async(start) => {
            let started = attachments::provide(fds, || {
                flatten(panic::catch(|| {
                    start(task.argument(), bytes, limits.max_frame_size)
                }))
            });
            match started {
                Ok(future) => guarded(future).await,
                Err(failure) => (Err(failure), Vec::new()),
            }
        }
        Run::Never => (Err(Failure::UnknownTask(0)), Vec::new()),
    };
    if let Body::Heap(bytes) = task.message.body {
        buffers::give(bytes);
    }
    match result {
        Ok((bytes, ending)) => value_reply(bytes, ending, task.began, fds),
        Err(failure) => failure_reply(&failure),
    }
}

/// Runs the elements of a chunk one after the other; each has its own result.
pub(super) async fn run_chunk(
    task: Prepared,
    limits: Limits,
    replies: &Replies,
    lane: usize,
) -> io::Result<Reply> {
    let mut chunk = Chunk::new(&task, replies, lane);
    match task.entry.run {
        Run::Blocking { elements, .. } => {
            while let Err(panic) = panic::catch(|| elements(&mut chunk, limits.max_frame_size)) {
                chunk.fail(&Failure::Panicked(panic));
            }
        }
        Run::Async(start) => {
            let mut record = Vec::new();
            let mut next = chunk.begin();
            while let Some(argument) = next {
                let encoded = match flatten(panic::catch(|| {
                    start(argument.into(), Vec::new(), limits.max_frame_size)
                })) {
                    Ok(future) => guarded(future).await.0,
                    Err(failure) => Err(failure),
                };
                record.clear();
                let pushed = encoded.and_then(|(encoded, ending)| {
                    push_record(&mut record, |bytes| {
                        bytes.extend_from_slice(&encoded);
                        if let Ending::Apart(tail) = ending {
                            bytes.extend_from_slice(&tail);
                        }
                        Ok(false)
                    })
                });
                next = match pushed {
                    Ok(()) => chunk.next(&record),
                    Err(failure) => {
                        chunk.fail(&failure);
                        chunk.begin()
                    }
                };
            }
        }
        Run::Never => {}
    }
    chunk.end()
}

/// A chunk that runs.
struct Chunk<'a> {
    id: u64,
    replies: &'a Replies,
    lane: usize,
    /// When each element begins is noted.
    is_timed: bool,
    began: u64,
    /// Records of the arguments that have not begun.
    arguments: &'a [u8],
    count: u64,
    /// The element that runs, or is next.
    element: u64,
    /// How often a task had been revoked when that was looked at last.
    revocations: u64,
    state: ChunkState,
}

enum ChunkState {
    Runs,
    /// Nobody wants the rest of it; of the element, if there is one, what it gave is dropped.
    Stopped(Option<u64>),
    /// The parent cannot be told.
    Cut(io::Error),
}

impl<'a> Chunk<'a> {
    fn new(task: &'a Prepared, replies: &'a Replies, lane: usize) -> Self {
        let mut arguments = task.arguments();
        let count = take_u32(&mut arguments).unwrap_or(0);
        Self {
            id: task.message.id,
            replies,
            lane,
            is_timed: task.message.kind == kind::TIMED_CHUNK,
            began: task.began,
            arguments,
            count: u64::from(count),
            element: 0,
            revocations: 0,
            state: ChunkState::Runs,
        }
    }

    fn is_revoked(&mut self) -> bool {
        let ledger = self.replies.ledger();
        let revocations = ledger.revocations();
        if revocations == self.revocations {
            return false;
        }
        self.revocations = revocations;
        ledger.is_revoked(self.id)
    }

    fn end(self) -> io::Result<Reply> {
        match self.state {
            ChunkState::Runs => Ok(chunk_reply(kind::CHUNK_END, self.began, None)),
            ChunkState::Stopped(dropped) => Ok(chunk_reply(kind::CHUNK_STOPPED, self.began, dropped)),
            ChunkState::Cut(error) => Err(error),
        }
    }
}

impl<'a> Chunk<'a> {
    /// The element that was begun last has ended.
    #[inline(always)]
    fn finish(&mut self, record: &[u8]) {
        if self.is_revoked() {
            // This element was meant: what it gave when it heard of that is no value.
            self.state = ChunkState::Stopped(Some(self.element));
        } else if let Err(error) = self.replies.push_record(self.id, record) {
            self.state = ChunkState::Cut(error);
        }
        self.element += 1;
    }

    #[inline(always)]
    fn start(&mut self) -> Option<&'a [u8]> {
        if self.element == self.count || !matches!(self.state, ChunkState::Runs) {
            return None;
        }
        if self.element > 0 {
            let now = self.is_timed.then(clock);
            self.replies.ledger().element(self.lane, self.element, now);
        }
        panic::forget();
        take_record(&mut self.arguments).map(|(_, argument)| argument)
    }
}

impl<'a> Elements<'a> for Chunk<'a> {
    fn begin(&mut self) -> Option<&'a [u8]> {
        self.start()
    }

    fn next(&mut self, record: &[u8]) -> Option<&'a [u8]> {
        self.finish(record);
        self.start()
    }

    #[cold]
    fn fail(&mut self, failure: &Failure) {
        let mut record = Vec::new();
        let pushed = push_record(&mut record, |bytes| {
            message_bytes(failure, bytes);
            Ok::<_, ()>(true)
        });
        debug_assert_eq!(pushed, Ok(()));
        self.finish(&record);
    }
}

/// The end of a chunk, all of whose records have been given, that began at `began`, and the element that was dropped
/// half-way.
pub(super) fn chunk_reply(end: u8, began: u64, dropped: Option<u64>) -> Reply {
    let mut bytes = Outgoing::buffer(16);
    bytes.extend_from_slice(&clock().saturating_sub(began).to_le_bytes());
    bytes.extend(dropped.map(u64::to_le_bytes).into_iter().flatten());
    Outgoing::new(end, bytes, Vec::new())
}

/// Polls an async task with its panics caught and the descriptors in its result collected.
async fn guarded(mut future: AsyncTask) -> (Result<(Vec<u8>, Ending), Failure>, Vec<OwnedFd>) {
    let mut collected = Vec::new();
    let result = poll_fn(|context| {
        let (polled, fds) = attachments::collect(|| panic::catch(|| future.as_mut().poll(context)));
        collected.extend(fds);
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(result),
            Err(panic) => Poll::Ready(Err(Failure::Panicked(panic))),
        }
    })
    .await;
    // What the future still holds is the user's, and its Drop may panic.
    match panic::catch(|| drop(future)) {
        Ok(()) => (result, collected),
        Err(panic) => (result.and(Err(Failure::Panicked(panic))), Vec::new()),
    }
}

fn flatten<T>(result: Result<Result<T, Failure>, crate::error::RemotePanic>) -> Result<T, Failure> {
    match result {
        Ok(result) => result,
        Err(panic) => Err(Failure::Panicked(panic)),
    }
}

/// A buffer for a result, with room for the header and the run time.
fn result_buffer() -> Vec<u8> {
    let mut bytes = Outgoing::buffer(64);
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn value_reply(mut bytes: Vec<u8>, ending: Ending, began: u64, fds: Vec<OwnedFd>) -> Reply {
    let nanoseconds = u32::try_from(clock().saturating_sub(began)).unwrap_or(u32::MAX);
    let room = Outgoing::buffer(0).len();
    bytes[room..room + 4].copy_from_slice(&nanoseconds.to_le_bytes());
    Outgoing::new(kind::VALUE, bytes, fds).with_ending(ending)
}

/// The reply of a task that failed.
pub(super) fn failure_reply(failure: &Failure) -> Reply {
    let mut bytes = Outgoing::buffer(64);
    message_bytes(failure, &mut bytes);
    Outgoing::new(kind::FAILURE, bytes, Vec::new())
}
