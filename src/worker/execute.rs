//! One task, from the bytes of its argument to the bytes of its reply.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::task::Poll;

use super::panic;
use super::reply::Replies;
use crate::shared::ledger::clock;
use crate::task::entry::{AsyncTask, Entry, Run};
use crate::task::table;
use crate::wire::attachments;
use crate::wire::buffers;
use crate::wire::codec::{message_bytes, push_record, take_record, take_u32};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Failure, kind};

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
    /// Where the argument begins in the message's body, or the records of a chunk.
    arguments: usize,
    pub(super) message: Message,
    /// When it started.
    began: u64,
}

impl Prepared {
    /// Looks the task up. A row that the table does not have is the reply.
    pub(super) fn new(message: Message, began: u64) -> Result<Self, (Message, Reply)> {
        let mut rest = &message.body[..];
        let Some(row) = take_u32(&mut rest) else {
            return Err((message, failure_reply(&Failure::UnknownTask(u32::MAX))));
        };
        match table::entry(row) {
            Some(entry) if !matches!(entry.run, Run::Never) => Ok(Self {
                entry,
                arguments: message.body.len() - rest.len(),
                message,
                began,
            }),
            _ => Err((message, failure_reply(&Failure::UnknownTask(row)))),
        }
    }

    fn argument(&self) -> &[u8] {
        &self.message.body[self.arguments..]
    }
}

/// Runs a single task.
///
/// Only an async task ever waits; a blocking one is over when this future is polled for the first time.
pub(super) async fn run_single(mut task: Prepared, limits: Limits) -> Reply {
    let fds = std::mem::take(&mut task.message.fds);
    let mut bytes = result_buffer();
    let (result, fds) = match task.entry.run {
        Run::Blocking(run) => attachments::collect(|| {
            attachments::provide(fds, || {
                flatten(panic::catch(|| {
                    run(task.argument(), &mut bytes, limits.max_frame_size)
                }))
            })
        }),
        Run::Async(start) => {
            let started = attachments::provide(fds, || {
                flatten(panic::catch(|| start(task.argument(), limits.max_frame_size)))
            });
            match started {
                Ok(future) => {
                    let (result, fds) = guarded(future).await;
                    (result.map(|encoded| bytes.extend_from_slice(&encoded)), fds)
                }
                Err(failure) => (Err(failure), Vec::new()),
            }
        }
        Run::Never => (Err(Failure::UnknownTask(0)), Vec::new()),
    };
    buffers::give(task.message.body);
    match result {
        Ok(()) => value_reply(bytes, task.began, fds),
        Err(failure) => failure_reply(&failure),
    }
}

/// Runs the elements of a chunk one after the other; each has its own result.
pub(super) async fn run_chunk(
    task: Prepared,
    limits: Limits,
    replies: &Replies,
    lane: usize,
) -> std::io::Result<Reply> {
    let id = task.message.id;
    let is_timed = task.message.kind == kind::TIMED_CHUNK;
    let mut rest = task.argument();
    let count = take_u32(&mut rest).unwrap_or(0);
    let mut record = Vec::new();
    let (mut revocations, mut end) = (0, kind::CHUNK_END);
    for element in 0..u64::from(count) {
        let Some((_, argument)) = take_record(&mut rest) else {
            break;
        };
        if element > 0 {
            let ledger = replies.ledger();
            if ledger.revocations() != revocations {
                revocations = ledger.revocations();
                if ledger.is_revoked(id) {
                    end = kind::CHUNK_STOPPED;
                    break;
                }
            }
            ledger.element(lane, element, is_timed.then(clock));
        }
        record.clear();
        let result = match task.entry.run {
            Run::Blocking(run) => push_record(&mut record, |bytes| {
                flatten(panic::catch(|| run(argument, bytes, limits.max_frame_size))).map(|()| false)
            }),
            Run::Async(start) => match flatten(panic::catch(|| start(argument, limits.max_frame_size))) {
                Ok(future) => guarded(future).await.0.and_then(|encoded| {
                    push_record(&mut record, |bytes| {
                        bytes.extend_from_slice(&encoded);
                        Ok(false)
                    })
                }),
                Err(failure) => Err(failure),
            },
            Run::Never => break,
        };
        if let Err(failure) = result {
            push_failure(&mut record, &failure);
        }
        let ledger = replies.ledger();
        if ledger.revocations() != revocations {
            revocations = ledger.revocations();
            if ledger.is_revoked(id) {
                // This element was meant: what it gave when it heard of that is no value.
                return Ok(chunk_reply(kind::CHUNK_STOPPED, task.began, Some(element)));
            }
        }
        replies.push_record(id, &record)?;
    }
    Ok(chunk_reply(end, task.began, None))
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
async fn guarded(mut future: AsyncTask) -> (Result<Vec<u8>, Failure>, Vec<OwnedFd>) {
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

fn push_failure(record: &mut Vec<u8>, failure: &Failure) {
    let pushed = push_record(record, |bytes| {
        message_bytes(failure, bytes);
        Ok::<_, ()>(true)
    });
    debug_assert_eq!(pushed, Ok(()));
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

fn value_reply(mut bytes: Vec<u8>, began: u64, fds: Vec<OwnedFd>) -> Reply {
    let nanoseconds = u32::try_from(clock().saturating_sub(began)).unwrap_or(u32::MAX);
    let room = Outgoing::buffer(0).len();
    bytes[room..room + 4].copy_from_slice(&nanoseconds.to_le_bytes());
    Outgoing::new(kind::VALUE, bytes, fds)
}

/// The reply of a task that failed.
pub(super) fn failure_reply(failure: &Failure) -> Reply {
    let mut bytes = Outgoing::buffer(64);
    message_bytes(failure, &mut bytes);
    Outgoing::new(kind::FAILURE, bytes, Vec::new())
}
