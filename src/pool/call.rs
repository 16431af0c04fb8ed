//! One task in the parent: its frame on the way out, its outcome on the way back.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::callback::{Callback, Callbacks, Job};
use super::chunks::Gather;
use super::companion::Companions;
use super::dispatch::Shared;
use super::keeper::Due;
use super::options::TaskOptions;
use super::timers::{Registered, Timers, after};
use crate::error::{Cause, TaskError, TimeLimit};
use crate::shared::ledger::clock;
use crate::task::table;
use crate::wire::body::Body;
use crate::wire::buffers;
use crate::wire::codec::{take_record, take_u32};
use crate::wire::frame::Outgoing;
use crate::wire::message::kind;

/// What a worker answered.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    bytes: Body,
    /// The result of one task, behind its run time, and no records.
    is_single: bool,
    more: Option<Box<More>>,
}

/// What short results do without.
#[derive(Debug, Default)]
struct More {
    /// What the result ends with, where that came apart from the rest.
    tail: Option<Vec<u8>>,
    fds: Vec<OwnedFd>,
    /// Who answered.
    worker: usize,
    pid: u32,
    /// How long the worker took for a chunk.
    run_time: Duration,
    /// Elements of a chunk that were lost with their worker: they have no record in `bytes`.
    lost: Vec<(u64, TaskError)>,
}

/// What a result's run time takes in front of it.
const RUN_TIME: usize = 4;

impl Reply {
    /// The result of one task, from a message. `None` where that is too short.
    pub(crate) fn single(head: Vec<u8>, body: Body, fds: Vec<OwnedFd>) -> Option<Self> {
        let (bytes, tail) = if head.is_empty() {
            (body, None)
        } else {
            (head.into(), Some(body.into_vec()))
        };
        let has_more = tail.is_some() || !fds.is_empty();
        let more = || {
            Box::new(More {
                tail,
                fds,
                ..More::default()
            })
        };
        (bytes.len() >= RUN_TIME).then(|| Self {
            bytes,
            is_single: true,
            more: has_more.then(more),
        })
    }

    /// The records of a chunk's elements, but for those that were lost.
    pub(crate) fn records(bytes: Vec<u8>, lost: Vec<(u64, TaskError)>) -> Self {
        let more = || {
            Box::new(More {
                lost,
                ..More::default()
            })
        };
        Self {
            bytes: bytes.into(),
            is_single: false,
            more: Some(more()),
        }
    }

    /// Says who answered, and how long it took.
    pub(crate) fn answered_by(mut self, worker: usize, pid: u32, run_time: Duration) -> Self {
        let more = self.more.get_or_insert_default();
        (more.worker, more.pid, more.run_time) = (worker, pid, run_time);
        self
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[if self.is_single { RUN_TIME } else { 0 }..]
    }

    /// Whether this is the result of one task, and no records.
    pub(crate) fn is_single(&self) -> bool {
        self.is_single
    }

    /// How long the worker took, as far as it said.
    pub(crate) fn run_time(&self) -> Duration {
        if self.is_single {
            let nanoseconds = take_u32(&mut &self.bytes[..]).unwrap_or(0);
            return Duration::from_nanos(u64::from(nanoseconds));
        }
        self.more.as_ref().map_or(Duration::ZERO, |more| more.run_time)
    }

    /// The number and the process of the worker that answered a chunk.
    pub(crate) fn worker(&self) -> (usize, u32) {
        self.more.as_ref().map_or((0, 0), |more| (more.worker, more.pid))
    }

    /// Elements of a chunk that were lost with their worker.
    pub(crate) fn lost(&self) -> &[(u64, TaskError)] {
        self.more.as_ref().map_or(&[], |more| &more.lost)
    }

    /// What the result ends with, where that came apart from the rest.
    pub(crate) fn tail(&self) -> Option<&[u8]> {
        self.more.as_ref()?.tail.as_deref()
    }

    pub(crate) fn take_tail(&mut self) -> Option<Vec<u8>> {
        self.more.as_mut()?.tail.take()
    }

    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.more
            .as_mut()
            .map_or_else(Vec::new, |more| std::mem::take(&mut more.fds))
    }

    /// Gives the memory back.
    pub(crate) fn give(self) {
        if let Body::Heap(bytes) = self.bytes {
            buffers::give(bytes);
        }
    }

    /// A second one like it. Descriptors that cannot be duplicated are missing, which decoding finds.
    pub(crate) fn duplicate(&self) -> Self {
        let more = |more: &More| More {
            tail: more.tail.clone(),
            fds: more.fds.iter().filter_map(|fd| fd.try_clone().ok()).collect(),
            worker: more.worker,
            pid: more.pid,
            run_time: more.run_time,
            lost: more.lost.clone(),
        };
        Self {
            bytes: self.bytes.clone(),
            is_single: self.is_single,
            more: self.more.as_deref().map(|old| Box::new(more(old))),
        }
    }
}

/// What is sent to a worker. It may have to be sent again.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    /// A task, but no chunk, of few bytes and without descriptors.
    Short(Body),
    Whole(Arc<Outgoing>),
}

impl Frame {
    fn new(outgoing: Outgoing) -> Self {
        let short = (outgoing.kind() == kind::TASK && outgoing.is_single() && outgoing.fds().is_empty())
            .then(|| Body::small(outgoing.body()))
            .flatten();
        short.map_or_else(|| Self::Whole(Arc::new(outgoing)), Self::Short)
    }

    /// The body, but for a tail that lies apart: no chunk has one.
    fn body(&self) -> &[u8] {
        match self {
            Self::Short(body) => body,
            Self::Whole(outgoing) => outgoing.body(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Short(body) => body.len(),
            Self::Whole(outgoing) => outgoing.len(),
        }
    }
}

/// Of a call that was sent to no worker.
const NOWHERE: u32 = u32::MAX;

/// A chunk's frame, and how many elements it has.
struct Elements {
    frame: Frame,
    count: u64,
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
///
/// Very many may wait, so that it is kept small: what few tasks have lies behind a box.
pub(crate) struct Call {
    row: u32,
    /// What it counts for in a worker's life: its elements.
    pub(crate) weight: u32,
    pub(crate) priority: i32,
    /// The index of the worker that it was sent to last.
    place: AtomicU32,
    id: AtomicU64,
    /// When it was made, on the ledgers' clock.
    pub(crate) submitted: u64,
    odd: Option<Box<Odd>>,
    pub(crate) companions: Companions,
    is_chunk: bool,
    /// Workers that died with this in front of them and not begun.
    losses: AtomicU8,
    slot: Mutex<Slot>,
}

/// What few calls have.
#[derive(Default)]
struct Odd {
    /// A name other than the row's.
    label: Option<String>,
    /// Its times and tries.
    limits: Option<Limits>,
    /// The call whose rest this is, after an element of its chunk was lost with a worker, and where it begins there.
    origin: Option<(Arc<Call>, u64)>,
}

/// What bounds a task in time and tries.
#[derive(Debug)]
struct Limits {
    /// What the times count from.
    since: Instant,
    timeout: Option<Duration>,
    queue_timeout: Option<Duration>,
    deadline: Option<Instant>,
    retries: u32,
    /// It has run before, and waits for another try: it has not waited too long for its start.
    begun: AtomicBool,
    /// Of earlier tries: those of the first element, where this is a chunk.
    failures: Mutex<Vec<TaskError>>,
    /// Until the task has ended.
    expiry: Mutex<Option<Registered<Due>>>,
}

#[derive(Default)]
struct Slot {
    state: SlotState,
    waker: Option<Waker>,
    extra: Option<Box<Extra>>,
}

/// What few calls have while they are open.
#[derive(Default)]
struct Extra {
    callbacks: Vec<Callback>,
    gather: Option<(Arc<Gather>, usize)>,
    /// Records of a chunk that have come.
    parts: Vec<u8>,
    lost: Vec<(u64, TaskError)>,
}

#[derive(Default)]
enum SlotState {
    Pending {
        /// Kept until the task ends, for it may have to be sent again, and no longer, for the handle may be kept.
        frame: Frame,
        /// Waits for room in the queue.
        waits: bool,
    },
    /// Callbacks run before whoever awaits the outcome goes on: those of so many jobs.
    Calling(Box<(Outcome, usize)>),
    Done(Outcome),
    #[default]
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
    pub(crate) fn new(outgoing: Outgoing, row: u32) -> Self {
        let is_chunk = kind::is_chunk(outgoing.kind());
        let weight = match outgoing.body().get(4..) {
            Some(mut rest) if is_chunk => take_u32(&mut rest).unwrap_or(1),
            _ => 1,
        };
        Self {
            row,
            weight,
            priority: 0,
            place: AtomicU32::new(NOWHERE),
            id: AtomicU64::new(0),
            submitted: clock(),
            odd: None,
            companions: Companions::default(),
            is_chunk,
            losses: AtomicU8::new(0),
            slot: Mutex::new(Slot {
                state: SlotState::Pending {
                    frame: Frame::new(outgoing),
                    waits: false,
                },
                ..Slot::default()
            }),
        }
    }

    /// Sets what can be said of a call.
    pub(crate) fn set_options(&mut self, options: &TaskOptions) {
        let TaskOptions {
            priority,
            timeout,
            queue_timeout,
            time_to_live,
            deadline,
            retries,
        } = *options;
        self.priority = priority;
        let times = [timeout, queue_timeout, time_to_live];
        if times == [None; 3] && deadline.is_none() && retries == 0 {
            return;
        }
        let end_of_life = time_to_live.map(after);
        self.odd.get_or_insert_default().limits = Some(Limits {
            since: Instant::now(),
            timeout,
            queue_timeout,
            deadline: deadline.into_iter().chain(end_of_life).min(),
            retries,
            begun: AtomicBool::new(false),
            failures: Mutex::default(),
            expiry: Mutex::default(),
        });
    }

    fn limits(&self) -> Option<&Limits> {
        self.odd.as_ref()?.limits.as_ref()
    }

    fn origin(&self) -> Option<&(Arc<Self>, u64)> {
        self.odd.as_ref()?.origin.as_ref()
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
        );
        call.odd.get_or_insert_default().label = Some(name.to_owned());
        call
    }

    /// A call that has ended.
    pub(crate) fn ended(error: TaskError) -> Self {
        let call = Self::unsubmitted(&error);
        call.lock().state = SlotState::Done(Err(error));
        call
    }

    /// What is left of the chunk `origin` from its element `from` on, which begins at `rest`. `failures` are those of
    /// its first element so far.
    fn remainder(
        &self,
        origin: Arc<Self>,
        from: u64,
        count: u32,
        rest: &[u8],
        failures: Vec<TaskError>,
    ) -> Self {
        let mut bytes = Outgoing::buffer(8 + rest.len());
        bytes.extend_from_slice(&origin.row.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(rest);
        let kind = match self.timeout() {
            Some(_) => kind::TIMED_CHUNK,
            None => kind::CHUNK,
        };
        let mut call = Self::new(Outgoing::new(kind, bytes, Vec::new()), origin.row);
        call.id = AtomicU64::new(origin.id());
        call.submitted = origin.submitted;
        call.priority = origin.priority;
        let limits = self.limits().map(|limits| Limits {
            since: limits.since,
            timeout: limits.timeout,
            queue_timeout: limits.queue_timeout,
            deadline: limits.deadline,
            retries: limits.retries,
            begun: AtomicBool::new(true),
            failures: Mutex::new(failures),
            // The origin's holds for all of it.
            expiry: Mutex::default(),
        });
        call.odd = Some(Box::new(Odd {
            label: None,
            limits,
            origin: Some((origin, from)),
        }));
        call
    }

    pub(crate) fn has_limits(&self) -> bool {
        self.limits().is_some()
    }

    /// How long the task, or each of its elements, may run.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.limits()?.timeout
    }

    /// Whether the deadline has come.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        let deadline = self.limits().and_then(|limits| limits.deadline);
        deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Which time is up of a task that has not started, or when the next will be.
    pub(crate) fn waited(&self, now: Instant) -> Result<TimeLimit, Option<Instant>> {
        let Some(limits) = self.limits() else {
            return Err(None);
        };
        if self.is_late(now) {
            return Ok(TimeLimit::Deadline);
        }
        let longest = limits
            .queue_timeout
            .filter(|_| !limits.begun.load(Ordering::Relaxed))
            .and_then(|timeout| Some((timeout, limits.since.checked_add(timeout)?)));
        match longest {
            Some((timeout, end)) if end <= now => Ok(TimeLimit::QueueTimeout(timeout)),
            _ => Err(longest
                .map(|(_, end)| end)
                .into_iter()
                .chain(limits.deadline)
                .min()),
        }
    }

    /// Notes that it has started, if only for a try that failed.
    pub(crate) fn set_begun(self: &Arc<Self>) {
        if let Some(limits) = self.target().limits() {
            limits.begun.store(true, Ordering::Relaxed);
        }
    }

    /// When the deadline comes.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.limits()?.deadline
    }

    /// Has the time that the task may wait, and its deadline, watched.
    pub(crate) fn watch(self: &Arc<Self>, timers: &Arc<Timers<Due>>, at: Instant) {
        if let Some(limits) = self.limits() {
            let registered = timers.register(at, Due::Expire(Arc::downgrade(self)));
            *limits.expiry.lock().unwrap_or_else(PoisonError::into_inner) = Some(registered);
        }
    }

    /// Whether its times are watched.
    pub(crate) fn is_watched(&self) -> bool {
        let expiry = self.limits().map(|limits| limits.expiry.lock());
        expiry.is_some_and(|expiry| expiry.unwrap_or_else(PoisonError::into_inner).is_some())
    }

    /// Notes a failure that is not the task's own. `Ok` when it may be tried again; otherwise the error, with those of
    /// all tries.
    pub(crate) fn try_again(&self, error: TaskError) -> Result<(), TaskError> {
        let Some(limits) = self.limits() else {
            return Err(error);
        };
        let mut failures = limits.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < limits.retries as usize && !self.is_late(Instant::now()) {
            failures.push(error);
            return Ok(());
        }
        Err(error.after(std::mem::take(&mut failures)))
    }

    pub(crate) fn name(&self) -> &str {
        match self.odd.as_ref().and_then(|odd| odd.label.as_ref()) {
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

    /// The index of the worker that it was sent to last.
    pub(crate) fn place(&self) -> Option<usize> {
        let place = self.place.load(Ordering::Relaxed);
        (place != NOWHERE).then_some(place as usize)
    }

    pub(crate) fn set_place(&self, worker: usize) {
        self.place
            .store(u32::try_from(worker).unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// Counts a worker that died with this in front of it and not begun.
    pub(crate) fn count_loss(&self) -> u8 {
        self.losses.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    pub(crate) fn is_chunk(&self) -> bool {
        self.is_chunk
    }

    /// What is sent to a worker; `None` once the task has ended.
    pub(crate) fn frame(&self) -> Option<Frame> {
        match &self.lock().state {
            SlotState::Pending { frame, .. } => Some(frame.clone()),
            _ => None,
        }
    }

    /// Bytes of its frame's body, while it has one.
    pub(crate) fn size(&self) -> usize {
        match &self.lock().state {
            SlotState::Pending { frame, .. } => frame.len(),
            _ => 0,
        }
    }

    /// Takes along what is to travel with the task.
    pub(crate) fn capture(&self, shared: &Shared) {
        self.companions.capture(shared);
    }

    /// The task has its number.
    #[cfg(feature = "tracing")]
    pub(crate) fn announce(&self, shared: &Shared) {
        self.companions.announce(shared, self.id());
    }

    /// What is sent to a worker in front of the task.
    pub(crate) fn context(self: &Arc<Self>) -> Option<Outgoing> {
        self.target().companions.message()
    }

    pub(crate) fn error(&self, cause: Cause) -> TaskError {
        TaskError::new(self.name(), cause)
    }

    /// The call that somebody waits for.
    fn target(self: &Arc<Self>) -> &Arc<Self> {
        self.origin().map_or(self, |(origin, _)| origin)
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds records of elements that a chunk has finished.
    pub(crate) fn push_part(self: &Arc<Self>, records: Vec<u8>) {
        let mut slot = self.target().lock();
        let parts = &mut slot.extra.get_or_insert_default().parts;
        if parts.is_empty() {
            *parts = records;
        } else {
            parts.extend_from_slice(&records);
        }
    }

    /// All elements of a chunk have been answered.
    pub(crate) fn finish_chunk(self: &Arc<Self>) -> Reply {
        let mut slot = self.target().lock();
        let extra = slot.extra.get_or_insert_default();
        Reply::records(std::mem::take(&mut extra.parts), std::mem::take(&mut extra.lost))
    }

    /// The worker was lost at `element` of this chunk. What has been finished is kept; the element is lost, if it has
    /// no further try; and what is left to do comes back as a call of its own. `Err` when nothing is.
    pub(crate) fn lose_element(self: &Arc<Self>, element: u64, error: TaskError) -> Result<Arc<Self>, Reply> {
        let Some(Elements { count, .. }) = self.elements() else {
            return Err(self.finish_chunk());
        };
        // It comes from memory that the worker could write anything into.
        let element = element.min(count.saturating_sub(1));
        let finished = self.finished().saturating_sub(self.base());
        if finished > element {
            // It ended between two elements: none is lost, and none may run twice.
            return self.rest(finished, Vec::new());
        }
        self.fail_until(element, &error);
        if element > 0 {
            // Failures so far are those of the first element; this one has none.
            let again = self.limits().is_some_and(|limits| limits.retries > 0);
            if again && !self.is_late(Instant::now()) {
                return self.rest(element, vec![error]);
            }
            self.fail_until(element + 1, &error);
            return self.rest(element + 1, Vec::new());
        }
        match self.try_again(error) {
            Ok(()) => self.rest(0, self.failures()),
            Err(error) => {
                self.fail_until(1, &error);
                self.rest(1, Vec::new())
            }
        }
    }

    /// `cause` as the end of the task, with its failures so far.
    pub(crate) fn error_after_tries(&self, cause: Cause) -> TaskError {
        let failures = if self.is_chunk {
            Vec::new()
        } else {
            self.failures()
        };
        self.error(cause).after(failures)
    }

    fn failures(&self) -> Vec<TaskError> {
        let failures = self.limits().map(|limits| limits.failures.lock());
        failures.map_or_else(Vec::new, |failures| {
            failures.unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Elements of this chunk that have not been finished fail with `error`.
    pub(crate) fn lose_rest(self: &Arc<Self>, error: &TaskError) -> Reply {
        if let Some(Elements { count, .. }) = self.elements() {
            self.fail_until(count, error);
        }
        self.finish_chunk()
    }

    /// What has not been finished of this chunk, which was told to stop. `Err` when nothing is left.
    pub(crate) fn unfinished(self: &Arc<Self>) -> Result<Arc<Self>, Reply> {
        let base = self.base();
        let finished = self.finished();
        self.rest(finished.saturating_sub(base), Vec::new())
    }

    /// Where this chunk begins in the one that somebody waits for.
    fn base(&self) -> u64 {
        self.origin().map_or(0, |&(_, from)| from)
    }

    /// How many elements of the whole chunk have an outcome.
    fn finished(self: &Arc<Self>) -> u64 {
        let slot = self.target().lock();
        let Some(extra) = &slot.extra else { return 0 };
        let mut records = &extra.parts[..];
        let mut finished = extra.lost.len() as u64;
        while take_record(&mut records).is_some() {
            finished += 1;
        }
        finished
    }

    /// Elements in front of `end` that have left no record are lost; none may run twice.
    fn fail_until(self: &Arc<Self>, end: u64, error: &TaskError) {
        let finished = self.finished();
        let mut slot = self.target().lock();
        let lost = &mut slot.extra.get_or_insert_default().lost;
        for index in finished..self.base() + end {
            lost.push((index, error.clone()));
        }
    }

    fn elements(&self) -> Option<Elements> {
        let frame = self.frame()?;
        let count = take_u32(&mut &frame.body()[4..]).map_or(0, u64::from);
        Some(Elements { frame, count })
    }

    /// The elements from `from` on as a call of its own.
    fn rest(self: &Arc<Self>, from: u64, failures: Vec<TaskError>) -> Result<Arc<Self>, Reply> {
        let Some(Elements { frame, count }) = self.elements() else {
            return Err(self.finish_chunk());
        };
        if from >= count {
            return Err(self.finish_chunk());
        }
        let mut rest = &frame.body()[8..];
        for _ in 0..from {
            if take_record(&mut rest).is_none() {
                break;
            }
        }
        let target = Arc::clone(self.target());
        let (first, left) = (self.base() + from, (count - from) as u32);
        Ok(Arc::new(self.remainder(target, first, left, rest, failures)))
    }

    /// Ends the task. The first outcome counts; a later one is discarded.
    pub(crate) fn complete(self: &Arc<Self>, outcome: Outcome, callbacks: &Callbacks) {
        let target = self.target();
        let mut slot = target.lock();
        if !matches!(slot.state, SlotState::Pending { .. }) {
            return;
        }
        // Freed without the lock, for its frame may be large.
        let before = std::mem::take(&mut slot.state);
        let waited = matches!(before, SlotState::Pending { waits: true, .. });
        let _expiry = target.limits().and_then(|limits| {
            limits
                .expiry
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        });
        #[cfg(feature = "tracing")]
        let _origin = target.companions.retire();
        let mut extra = slot.extra.take();
        if let Some((gather, index)) = extra.as_mut().and_then(|extra| extra.gather.take()) {
            let waker = slot.waker.take();
            drop(slot);
            gather.complete(index, outcome, callbacks);
            if let (true, Some(waker)) = (waited, waker) {
                waker.wake();
            }
            return;
        }
        let jobs = extra.map_or_else(Vec::new, |extra| extra.callbacks);
        if jobs.is_empty() {
            slot.state = SlotState::Done(outcome);
            let waker = slot.waker.take();
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        } else {
            let copy = duplicate(&outcome);
            slot.state = SlotState::Calling(Box::new((outcome, 1)));
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
            SlotState::Calling(mut calling) if calling.1 > 1 => {
                calling.1 -= 1;
                slot.state = SlotState::Calling(calling);
                return;
            }
            SlotState::Calling(calling) => slot.state = SlotState::Done(calling.0),
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
            SlotState::Calling(calling) => *calling,
            state => {
                slot.state = state;
                slot.extra.get_or_insert_default().callbacks.push(callback);
                return;
            }
        };
        let copy = duplicate(&outcome);
        slot.state = SlotState::Calling(Box::new((outcome, jobs + 1)));
        drop(slot);
        callbacks.run(Job {
            call: Arc::clone(self),
            outcome: copy,
            callbacks: vec![callback],
        });
    }

    pub(crate) fn set_gather(&self, gather: Arc<Gather>, index: usize) {
        self.lock().extra.get_or_insert_default().gather = Some((gather, index));
    }

    /// The queue has no room for this now.
    pub(crate) fn wait(&self) {
        // Nothing is told to one that has ended meanwhile.
        if let SlotState::Pending { waits, .. } = &mut self.lock().state {
            *waits = true;
        }
    }

    /// The queue has taken this.
    pub(crate) fn admit(&self) {
        let mut slot = self.lock();
        if let SlotState::Pending { waits, .. } = &mut slot.state
            && std::mem::take(waits)
        {
            let waker = slot.waker.take();
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Ready when this does not wait for room, or no longer. Not to be mixed with [`poll`](Self::poll) by another
    /// task: there is one waker.
    pub(crate) fn poll_admitted(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.lock();
        if let SlotState::Pending { waits: true, .. } = slot.state {
            slot.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
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
    use crate::wire::codec::push_record;

    const FUSE: Duration = Duration::from_secs(30);

    #[test]
    fn an_element_that_has_left_its_record_is_not_tried_again() {
        let record = |record: &mut Vec<u8>| {
            let pushed = push_record(record, |bytes| {
                bytes.push(7);
                Ok::<_, ()>(false)
            });
            assert_eq!(pushed, Ok(()));
        };
        for element in 0..3_u64 {
            let mut bytes = Outgoing::buffer(0);
            bytes.extend_from_slice(&0_u32.to_le_bytes());
            bytes.extend_from_slice(&4_u32.to_le_bytes());
            (0..4).for_each(|_| record(&mut bytes));
            let mut call = Call::new(Outgoing::new(kind::CHUNK, bytes, Vec::new()), 0);
            call.set_options(&TaskOptions {
                retries: 2,
                ..TaskOptions::default()
            });
            let call = Arc::new(call);
            let mut parts = Vec::new();
            (0..=element).for_each(|_| record(&mut parts));
            call.push_part(parts);
            let rest = call.lose_element(element, call.error(Cause::Cancelled)).unwrap();
            assert_eq!((rest.base(), u64::from(rest.weight)), (element + 1, 3 - element));
            assert!(rest.failures().is_empty());
        }
    }

    #[test]
    fn a_call_that_waits_is_small() {
        // With the counts of its `Arc`, its place in the queue and its handle, and what an allocator adds.
        assert!(size_of::<Call>() + 16 + 8 <= 176, "{}", size_of::<Call>());
        assert!(size_of::<crate::AsyncResult<u64>>() <= 40);
    }

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
