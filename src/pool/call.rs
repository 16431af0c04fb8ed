//! One task in the parent: its frame on the way out, its outcome on the way back.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::callback::{Callback, Callbacks, Job};
use super::chunks::Gather;
use crate::error::{Cause, TaskError};
use crate::task::table;
use crate::wire::codec::{take_record, take_u32};
use crate::wire::frame::Outgoing;
use crate::wire::message::kind;

/// What a worker answered.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    /// Where the result begins in `bytes`.
    pub(crate) offset: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// Who answered.
    pub(crate) worker: usize,
    pub(crate) pid: u32,
    /// How long the worker took, as far as it said.
    pub(crate) run_time: Duration,
    /// Elements of a chunk that were lost with their worker: they have no record in `bytes`.
    pub(crate) lost: Vec<(u64, TaskError)>,
}

impl Reply {
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[self.offset..]
    }

    /// Whether this is the result of one task, and no records.
    pub(crate) fn is_single(&self) -> bool {
        self.offset > 0
    }

    /// A second one like it. Descriptors that cannot be duplicated are missing, which decoding finds.
    pub(crate) fn duplicate(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            offset: self.offset,
            fds: self.fds.iter().filter_map(|fd| fd.try_clone().ok()).collect(),
            worker: self.worker,
            pid: self.pid,
            run_time: self.run_time,
            lost: self.lost.clone(),
        }
    }
}

/// How a task ended.
pub(crate) type Outcome = Result<Reply, TaskError>;

fn duplicate(outcome: &Outcome) -> Outcome {
    match outcome {
        Ok(reply) => Ok(reply.duplicate()),
        Err(error) => Err(error.clone()),
    }
}

/// A task that was submitted, or is about to be.
pub(crate) struct Call {
    row: u32,
    is_chunk: bool,
    /// Bytes of the frame's body.
    pub(crate) size: usize,
    /// A name other than the row's.
    label: Option<String>,
    pub(crate) priority: i32,
    id: AtomicU64,
    /// Workers that died with this in front of them and not begun.
    losses: AtomicU32,
    pub(crate) submitted: Instant,
    /// The call whose rest this is, after an element of its chunk was lost with a worker, and where it begins there.
    origin: Option<(Arc<Call>, u64)>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    /// Kept until the task ends, for it may have to be sent again, and no longer, for the handle may be kept.
    frame: Option<Arc<Outgoing>>,
    state: SlotState,
    waker: Option<Waker>,
    callbacks: Vec<Callback>,
    gather: Option<(Arc<Gather>, usize)>,
    /// Records of a chunk that have come.
    parts: Vec<u8>,
    lost: Vec<(u64, TaskError)>,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Pending,
    /// Callbacks run before whoever awaits the outcome goes on: those of so many jobs.
    Calling(Outcome, usize),
    Done(Outcome),
    Taken,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("id", &self.id())
            .field("task", &self.name())
            .finish_non_exhaustive()
    }
}

impl Call {
    pub(crate) fn new(outgoing: Outgoing, row: u32, priority: i32) -> Self {
        Self {
            row,
            is_chunk: outgoing.kind() == kind::CHUNK,
            size: outgoing.body().len(),
            label: None,
            priority,
            id: AtomicU64::new(0),
            losses: AtomicU32::new(0),
            submitted: Instant::now(),
            origin: None,
            slot: Mutex::new(Slot {
                frame: Some(Arc::new(outgoing)),
                ..Slot::default()
            }),
        }
    }

    /// A call that ends without being submitted, for callbacks to hear of it.
    pub(crate) fn unsubmitted(error: &TaskError) -> Self {
        Self::whole(error.task_name())
    }

    /// A call that consists of others.
    pub(crate) fn whole(name: &str) -> Self {
        let mut call = Self::new(
            Outgoing::new(kind::TASK, Outgoing::buffer(0), Vec::new()),
            u32::MAX,
            0,
        );
        call.label = Some(name.to_owned());
        call
    }

    /// A call that has ended.
    pub(crate) fn ended(error: TaskError) -> Self {
        let call = Self::unsubmitted(&error);
        call.lock().state = SlotState::Done(Err(error));
        call
    }

    /// What is left of the chunk `origin` from its element `from` on, which begins at `rest`.
    fn remainder(origin: Arc<Self>, from: u64, count: u32, rest: &[u8]) -> Self {
        let mut bytes = Outgoing::buffer(8 + rest.len());
        bytes.extend_from_slice(&origin.row.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(rest);
        let mut call = Self::new(
            Outgoing::new(kind::CHUNK, bytes, Vec::new()),
            origin.row,
            origin.priority,
        );
        call.id = AtomicU64::new(origin.id());
        call.submitted = origin.submitted;
        call.origin = Some((origin, from));
        call
    }

    pub(crate) fn name(&self) -> &str {
        match &self.label {
            Some(label) => label,
            None => table::entry(self.row).map_or("", |entry| entry.name),
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    pub(crate) fn set_id(&self, id: u64) {
        self.id.store(id, Ordering::Relaxed);
    }

    /// Counts a worker that died with this in front of it and not begun.
    pub(crate) fn count_loss(&self) -> u32 {
        self.losses.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn is_chunk(&self) -> bool {
        self.is_chunk
    }

    /// What is sent to a worker; `None` once the task has ended.
    pub(crate) fn frame(&self) -> Option<Arc<Outgoing>> {
        self.lock().frame.clone()
    }

    pub(crate) fn error(&self, cause: Cause) -> TaskError {
        TaskError::new(self.name(), cause)
    }

    /// The call that somebody waits for.
    fn target(self: &Arc<Self>) -> &Arc<Self> {
        self.origin.as_ref().map_or(self, |(origin, _)| origin)
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records of elements that a chunk has finished.
    pub(crate) fn push_part(self: &Arc<Self>, records: Vec<u8>) {
        let mut slot = self.target().lock();
        if slot.parts.is_empty() {
            slot.parts = records;
        } else {
            slot.parts.extend_from_slice(&records);
        }
    }

    /// All elements of a chunk have been answered.
    pub(crate) fn finish_chunk(self: &Arc<Self>) -> Reply {
        let mut slot = self.target().lock();
        Reply {
            bytes: std::mem::take(&mut slot.parts),
            lost: std::mem::take(&mut slot.lost),
            ..Reply::default()
        }
    }

    /// The worker was lost at `element` of this chunk. What has been finished is kept, the element is lost, and what
    /// had not started comes back as a call of its own. `Err` when nothing is left to do.
    pub(crate) fn lose_element(
        self: &Arc<Self>,
        element: u64,
        error: &TaskError,
    ) -> Result<Arc<Self>, Reply> {
        let target = self.target();
        let base = self.origin.as_ref().map_or(0, |&(_, from)| from);
        let Some(frame) = self.frame() else {
            return Err(self.finish_chunk());
        };
        let mut rest = &frame.body()[4..];
        let count = u64::from(take_u32(&mut rest).unwrap_or(0));
        // It comes from memory that the worker could write anything into.
        let element = element.min(count.saturating_sub(1));
        for _ in 0..=element {
            if take_record(&mut rest).is_none() {
                break;
            }
        }
        let mut slot = target.lock();
        let mut records = &slot.parts[..];
        let mut finished = slot.lost.len() as u64;
        while take_record(&mut records).is_some() {
            finished += 1;
        }
        // Elements up to the one that ran have either left a record or are lost; none may run twice.
        for index in finished..=base + element {
            slot.lost.push((index, error.clone()));
        }
        drop(slot);
        let left = count.saturating_sub(element + 1);
        if left == 0 {
            return Err(self.finish_chunk());
        }
        Ok(Arc::new(Self::remainder(
            Arc::clone(target),
            base + element + 1,
            left as u32,
            rest,
        )))
    }

    /// Ends the task. The first outcome counts; a later one is discarded.
    pub(crate) fn complete(self: &Arc<Self>, outcome: Outcome, callbacks: &Callbacks) {
        let target = self.target();
        let mut slot = target.lock();
        if !matches!(slot.state, SlotState::Pending) {
            return;
        }
        // Freed without the lock, for it may be large.
        let _frame = slot.frame.take();
        if let Some((gather, index)) = slot.gather.take() {
            slot.state = SlotState::Taken;
            drop(slot);
            gather.complete(index, outcome, callbacks);
            return;
        }
        if slot.callbacks.is_empty() {
            slot.state = SlotState::Done(outcome);
            let waker = slot.waker.take();
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        } else {
            let jobs = std::mem::take(&mut slot.callbacks);
            let copy = duplicate(&outcome);
            slot.state = SlotState::Calling(outcome, 1);
            drop(slot);
            callbacks.run(Job {
                call: Arc::clone(target),
                outcome: copy,
                callbacks: jobs,
            });
        }
    }

    /// The callbacks of one job have run, or take too long. After the last job whoever awaits the outcome may have it.
    pub(crate) fn release(&self) {
        let mut slot = self.lock();
        match std::mem::take(&mut slot.state) {
            SlotState::Calling(outcome, jobs) if jobs > 1 => {
                slot.state = SlotState::Calling(outcome, jobs - 1);
                return;
            }
            SlotState::Calling(outcome, _) => slot.state = SlotState::Done(outcome),
            state => {
                slot.state = state;
                return;
            }
        }
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Adds a callback; one that comes after the task's end runs now.
    pub(crate) fn add_callback(self: &Arc<Self>, callback: Callback, callbacks: &Callbacks) {
        let mut slot = self.lock();
        let (outcome, jobs) = match std::mem::take(&mut slot.state) {
            SlotState::Done(outcome) => (outcome, 0),
            SlotState::Calling(outcome, jobs) => (outcome, jobs),
            state => {
                slot.state = state;
                slot.callbacks.push(callback);
                return;
            }
        };
        let copy = duplicate(&outcome);
        slot.state = SlotState::Calling(outcome, jobs + 1);
        drop(slot);
        callbacks.run(Job {
            call: Arc::clone(self),
            outcome: copy,
            callbacks: vec![callback],
        });
    }

    pub(crate) fn set_gather(&self, gather: Arc<Gather>, index: usize) {
        self.lock().gather = Some((gather, index));
    }

    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.lock().state, SlotState::Done(_) | SlotState::Taken)
    }

    /// The outcome, once. Polled again after that it is pending for ever.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut slot = self.lock();
        match std::mem::take(&mut slot.state) {
            SlotState::Done(outcome) => {
                slot.state = SlotState::Taken;
                Poll::Ready(outcome)
            }
            state => {
                slot.state = state;
                match &mut slot.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const FUSE: Duration = Duration::from_secs(30);

    #[test]
    fn callbacks_of_two_jobs_leave_the_outcome_for_who_awaits_it() {
        let callbacks = Callbacks::new(None);
        let call = Arc::new(Call::whole("task"));
        let (began, has_begun) = channel();
        let (go, may_go) = channel::<()>();
        let (ran, has_run) = channel();
        let first = move |_: &Outcome| {
            began.send(()).unwrap();
            may_go.recv_timeout(FUSE).unwrap();
        };
        call.add_callback(Box::new(first), &callbacks);
        call.complete(Ok(Reply::default()), &callbacks);
        has_begun.recv_timeout(FUSE).unwrap();
        // The task has ended, and its first callback runs.
        call.add_callback(Box::new(move |_| ran.send(()).unwrap()), &callbacks);
        go.send(()).unwrap();
        has_run.recv_timeout(FUSE).unwrap();
        // Behind the release of the first two, for callbacks run one after the other.
        let last = Arc::new(Call::whole("last"));
        let (ended, has_ended) = channel();
        last.add_callback(Box::new(move |_| ended.send(()).unwrap()), &callbacks);
        last.complete(Ok(Reply::default()), &callbacks);
        has_ended.recv_timeout(FUSE).unwrap();

        let (outcome, has_outcome) = channel();
        std::thread::spawn(move || {
            let polled = std::future::poll_fn(|context| call.poll(context));
            outcome.send(futures::executor::block_on(polled).is_ok()).unwrap();
        });
        assert_eq!(has_outcome.recv_timeout(FUSE), Ok(true));
        callbacks.close();
    }
}
