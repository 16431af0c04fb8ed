//! The worker's loop: take a task, run it, answer.
//!
//! Tasks run on the main thread, with its stack. Async tasks are polled there too, while a tokio runtime beside it
//! drives their timers and sockets; no task runs inside that runtime, so that each may start one of its own.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, Write};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, Stream};
use rustix::event::Timespec;
use tokio::io::Interest;
use tokio::runtime::{Builder, Runtime};

use super::adopted;
use super::cancel;
use super::enter::{die, is_free};
use super::execute::{Limits, Prepared, Reply, chunk_reply, failure_reply, run_chunk, run_single};
use super::footprint::Footprint;
use super::inbox::{Inbox, Next};
use super::memory;
use super::panic;
use super::reply::Replies;
use super::{current, marks};
use crate::shared::ledger::clock;
use crate::shared::watched::watch;
use crate::task::entry::Run;
use crate::wire::buffers;
use crate::wire::codec::{message_bytes, take_u32};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Failure, Role, kind};

/// Async tasks that run, so that the watcher can stop them.
#[derive(Debug, Default)]
pub(super) struct Aborts {
    handles: Mutex<HashMap<u64, AbortHandle>>,
}

impl Aborts {
    pub(super) fn abort(&self, id: u64) {
        if let Some(handle) = self.lock().get(&id) {
            handle.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves tasks until the parent wants no more. Gives the reply of the last one if that is a failure, where they run
/// one at a time.
pub(super) fn serve(
    inbox: &Inbox,
    replies: &Replies,
    aborts: &Aborts,
    limits: Limits,
    lanes: usize,
    footprint: Footprint,
) -> io::Result<Option<Reply>> {
    adopted::tasks_run(false);
    if lanes == 1 {
        serve_one(inbox, replies, limits, footprint)
    } else {
        serve_many(inbox, replies, aborts, limits, lanes, footprint).map(|()| None)
    }
}

/// One task at a time.
fn serve_one(
    inbox: &Inbox,
    replies: &Replies,
    limits: Limits,
    footprint: Footprint,
) -> io::Result<Option<Reply>> {
    let waker = main_thread_waker();
    let mut context = Context::from_waker(&waker);
    // Made when the first async task comes, and then kept.
    let mut entered = None;
    let mut failed = None;
    loop {
        match inbox.try_next(replies.ledger(), 0)? {
            Next::Task(message, began, company) => {
                adopted::tasks_run(true);
                replies.leave_behind(began)?;
                let id = message.id;
                let row = take_u32(&mut message.start()).unwrap_or(u32::MAX);
                current::set_only(id, company);
                let reply = match Prepared::new(message, began) {
                    Ok(task) => {
                        if entered.is_none() && matches!(task.entry.run, Run::Async(_)) {
                            entered = Some(runtime()?.enter());
                        }
                        let mut task = pin!(run(task, limits, replies, 0));
                        loop {
                            match task.as_mut().poll(&mut context) {
                                Poll::Ready(reply) => break reply?,
                                Poll::Pending => {
                                    replies.flush(|| false)?;
                                    thread::park();
                                }
                            }
                        }
                    }
                    Err((_, reply)) => reply,
                };
                flush_output();
                marks::end_of(id, row);
                footprint.measure(replies.ledger());
                let now = clock();
                replies.send_soon(&reply, id, now, now.saturating_sub(began))?;
                replies.ledger().finish(0);
                adopted::tasks_run(false);
                failed = (reply.kind() == kind::FAILURE).then_some(reply);
                buffers::shed();
            }
            Next::Recall => give_back(inbox, replies)?,
            Next::Revoked(id) => replies.send(&failure_reply(&Failure::Cancelled), id)?,
            Next::Empty(rings) => {
                let may_sleep = replies.flush(|| replies.ledger().rings() != rings)?;
                if may_sleep && !inbox.look(replies.ledger(), rings) {
                    let most = buffers::shed().and_then(|left| Timespec::try_from(left).ok());
                    inbox.wait(most.as_ref())?;
                }
            }
            Next::Shutdown => return Ok(failed),
            // The parent has ended in the middle of what it had to say: no other task will come, and what has not come
            // whole never will.
            Next::End if is_free() => return Ok(failed),
            Next::End => die(),
        }
    }
}

/// Up to `lanes` tasks at a time.
fn serve_many(
    inbox: &Inbox,
    replies: &Replies,
    aborts: &Aborts,
    limits: Limits,
    lanes: usize,
    footprint: Footprint,
) -> io::Result<()> {
    let _entered = runtime()?.enter();
    let readable = watch(
        &Arc::new(inbox.connection().try_clone_to_owned()?),
        Interest::READABLE,
    )?;
    let waker = main_thread_waker();
    let mut context = Context::from_waker(&waker);
    let mut free: Vec<usize> = (0..lanes).rev().collect();
    let mut running = FuturesUnordered::new();
    let mut shutdown = false;
    loop {
        let mut idle = true;
        while let (false, Some(&lane)) = (shutdown, free.last()) {
            match inbox.try_next(replies.ledger(), lane)? {
                Next::Task(message, began, company) => {
                    free.pop();
                    adopted::tasks_run(true);
                    let id = message.id;
                    let task = run_lane(message, began, limits, replies, aborts, lane);
                    running.push(current::polled(id, company, task));
                }
                Next::Empty(_) => match readable.poll_read_ready(&mut context) {
                    // Cleared before the next look, so that what comes in between is not missed.
                    Poll::Ready(guard) => guard?.clear_ready(),
                    Poll::Pending => break,
                },
                Next::Recall => give_back(inbox, replies)?,
                Next::Revoked(id) => replies.send(&failure_reply(&Failure::Cancelled), id)?,
                Next::Shutdown => shutdown = true,
                Next::End => die(),
            }
        }
        while let Poll::Ready(Some((lane, id, began, reply))) = Pin::new(&mut running).poll_next(&mut context)
        {
            flush_output();
            footprint.measure(replies.ledger());
            let now = clock();
            replies.send_soon(&reply?, id, now, now.saturating_sub(began))?;
            // What is polled next may compute for long, and the parent may not come for what it was left.
            replies.leave_behind(now)?;
            replies.ledger().finish(lane);
            aborts.lock().remove(&id);
            free.push(lane);
            idle = false;
        }
        if running.is_empty() {
            adopted::tasks_run(false);
            if shutdown {
                return Ok(());
            }
        }
        if idle {
            replies.flush(|| false)?;
            thread::park();
        }
    }
}

/// One of several tasks: its lane, its id, when it began, and its reply.
async fn run_lane(
    message: Message,
    began: u64,
    limits: Limits,
    replies: &Replies,
    aborts: &Aborts,
    lane: usize,
) -> (usize, u64, u64, io::Result<Reply>) {
    let id = message.id;
    let is_chunk = kind::is_chunk(message.kind);
    let task = match Prepared::new(message, began) {
        Ok(task) => task,
        Err((_, reply)) => return (lane, id, began, Ok(reply)),
    };
    let (handle, registration) = AbortHandle::new_pair();
    aborts.lock().insert(id, handle.clone());
    // The word to stop it may have come before there was anything to stop.
    if replies.ledger().is_revoked(id) {
        handle.abort();
    }
    let task = Abortable::new(run(task, limits, replies, lane), registration);
    let reply = match cancel::in_lane(lane, task).await {
        Ok(reply) => reply,
        Err(_) if is_chunk => {
            let dropped = replies.ledger().element_in(lane);
            Ok(chunk_reply(kind::CHUNK_STOPPED, began, Some(dropped)))
        }
        Err(_) => Ok(failure_reply(&Failure::Cancelled)),
    };
    (lane, id, began, reply)
}

async fn run(task: Prepared, limits: Limits, replies: &Replies, lane: usize) -> io::Result<Reply> {
    let _running = memory::running();
    if kind::is_chunk(task.message.kind) {
        run_chunk(task, limits, replies, lane).await
    } else {
        Ok(run_single(task, limits).await)
    }
}

/// Gives the parent back what has not started, if it wants that and has not been given it.
pub(super) fn give_back(inbox: &Inbox, replies: &Replies) -> io::Result<()> {
    let Some(ids) = inbox.recall(replies.ledger())? else {
        return Ok(());
    };
    let mut bytes = Outgoing::buffer(16);
    message_bytes(&ids, &mut bytes);
    replies.send(&Outgoing::new(kind::RECALLED, bytes, Vec::new()), 0)
}

/// What a task printed must not wait for the end of a line. A process ends behind its function, and flushes then,
/// without waiting for a thread that holds the stream.
fn flush_output() {
    if !matches!(super::role(), Some(Role::Process { .. })) {
        // Where it goes is the task's business, and whether that still exists.
        io::stdout().flush().ok();
    }
}

/// The runtime that drives the timers and sockets of async tasks, and runs what they spawn.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let no_runtime = |error| io::Error::other(format!("cannot start the runtime for async tasks: {error}"));
    // Tokio panics where the system has no more threads, so it is asked for one first.
    let probe = thread::Builder::new().spawn(|| ()).map_err(no_runtime)?;
    probe.join().ok();
    let build = || Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = panic::catch(build)
        .unwrap_or_else(|panic| Err(io::Error::other(panic.message)))
        .map_err(no_runtime)?;
    Ok(RUNTIME.get_or_init(|| runtime))
}

/// A waker that unparks the thread that made it.
fn main_thread_waker() -> Waker {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    Waker::from(Arc::new(Unpark(thread::current())))
}
