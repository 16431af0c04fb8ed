//! The pool's shared heart: it feeds events to the [`State`] and does what the state decides.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::{Event, EventListener};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::builder::Config;
use super::call::{Call, Outcome, Reply};
use super::callback::Callbacks;
use super::link::{Link, Parcel};
use super::state::{Action, Cancelled, Phase, Refusal, State};
use super::stats::Latencies;
use crate::error::{BuildError, Cause, TaskError, WorkerLoss};
use crate::shared::ledger::Started;
use crate::wire::codec;
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Control, Failure, kind};

/// Workers that may die one after the other with a task in front of them that they had not begun, before it is taken
/// for the cause.
const LOSSES_BEFORE_START: u32 = 5;

/// Everything that a pool's handles, futures and workers share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    core: Mutex<Core>,
    pub(crate) callbacks: Callbacks,
    /// Told when the queue may have room.
    pub(crate) room: Event,
    /// Told when the pool's phase or the number of its processes changes.
    pub(crate) changed: Event,
    /// Becomes `true` when workers must not be started any more.
    pub(crate) stop: watch::Sender<bool>,
}

pub(crate) struct Core {
    pub(crate) state: State<Arc<Call>>,
    pub(crate) links: Vec<Option<Arc<Link>>>,
    pub(crate) records: Vec<WorkerRecord>,
    pub(crate) latencies: Latencies,
    pub(crate) end: Option<End>,
    /// Supervisors that have not finished.
    pub(crate) supervisors: usize,
}

/// What is remembered of a worker for [`stats`](crate::Pool::stats).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerRecord {
    pub(crate) tasks_done: u64,
    pub(crate) restarts: u64,
}

/// Why a task was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The queue is full; this tells when to try again.
    Full(EventListener),
    /// For good.
    Ended(TaskError),
}

/// Why a pool takes no tasks, other than by being closed.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Terminated,
    Failed(BuildError),
    RuntimeShutdown,
}

impl End {
    /// What a task that had been accepted is told; `began` says whether it was at a worker.
    fn cause(&self, began: Option<bool>) -> Cause {
        match self {
            Self::Terminated => Cause::PoolClosed { began },
            Self::Failed(error) => Cause::PoolFailed(error.clone()),
            Self::RuntimeShutdown => Cause::RuntimeShutdown,
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("pool", &self.config.name)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// `user` is the runtime that callbacks may use.
    pub(crate) fn new(config: Config, user: Option<Handle>) -> Self {
        let workers = config.workers;
        let core = Core {
            state: State::new(workers, config.tasks_per_worker, config.queue_capacity),
            links: vec![None; workers],
            records: vec![WorkerRecord::default(); workers],
            latencies: Latencies::default(),
            end: None,
            supervisors: workers,
        };
        Self {
            config,
            core: Mutex::new(core),
            callbacks: Callbacks::new(user),
            room: Event::new(),
            changed: Event::new(),
            stop: watch::channel(false).0,
        }
    }

    /// A pool that could not be started.
    pub(crate) fn failed(error: BuildError) -> Self {
        let shared = Self::new(Config::default(), None);
        let mut core = shared.lock();
        core.supervisors = 0;
        core.end = Some(End::Failed(error));
        drop(core.state.terminate());
        drop(core);
        shared
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a task over. `Err` says why not; the task has not ended then.
    pub(crate) fn submit(&self, call: &Arc<Call>) -> Result<(), Cause> {
        let mut core = self.lock();
        match core.state.submit(call.priority, call.size, Arc::clone(call)) {
            Ok(id) => {
                // Before the frame leaves, which is when the actions are carried out.
                call.set_id(id);
                self.act(core);
                Ok(())
            }
            Err(refusal) => Err(core.refusal(refusal)),
        }
    }

    /// Whether a task would be taken now.
    pub(crate) fn admit(&self) -> Result<(), Cause> {
        let core = self.lock();
        core.state.admit().map_err(|refusal| core.refusal(refusal))
    }

    /// Hands a task over, or says how to wait for room. A task that is refused for good has ended.
    pub(crate) fn submit_or_listen(&self, call: &Arc<Call>) -> Result<(), Refused> {
        let cause = match self.submit(call) {
            Err(Cause::QueueFull { .. }) => {
                let listener = self.room.listen();
                // Room that came before the listener was there has been told to nobody.
                match self.submit(call) {
                    Err(Cause::QueueFull { .. }) => return Err(Refused::Full(listener)),
                    result => result,
                }
            }
            result => result,
        };
        cause.map_err(|cause| {
            let error = call.error(cause);
            call.complete(Err(error.clone()), &self.callbacks);
            Refused::Ended(error)
        })
    }

    /// Hands a task over and ends it with an error where that is refused.
    pub(crate) fn submit_or_fail(&self, call: &Arc<Call>) {
        if let Err(cause) = self.submit(call) {
            call.complete(Err(call.error(cause)), &self.callbacks);
        }
    }

    /// Ends a task that nobody wants any more.
    pub(crate) fn cancel(&self, call: &Arc<Call>) {
        let mut core = self.lock();
        let cancelled = core.state.cancel(call.priority, call.id());
        if let Cancelled::InFlight(_) = cancelled
            && let Some(worker) = core.state.worker_of(call.id())
            && let Some(link) = &core.links[worker]
        {
            // At once, so that a task which has not started never does; asking for it back takes its time.
            link.ledger.revoke(call.id());
        }
        self.act(core);
        match cancelled {
            Cancelled::Queued(call) | Cancelled::InFlight(call) => {
                call.complete(Err(call.error(Cause::Cancelled)), &self.callbacks);
            }
            Cancelled::Unknown => {}
        }
        self.tell_room(1);
    }

    /// Tells as many who wait for room as tasks have ended. Some of them may not listen, a stream that nobody polls,
    /// say; when the pool has nothing to do, all are told, so that nobody waits for those.
    fn tell_room(&self, ended: usize) {
        if self.config.queue_capacity.is_none() {
            return;
        }
        let core = self.lock();
        let (has_room, is_idle) = (
            core.state.has_room(),
            core.state.queued() + core.state.running() == 0,
        );
        drop(core);
        if is_idle {
            self.room.notify_additional(usize::MAX);
        } else if has_room {
            self.room.notify_additional(ended);
        }
    }

    /// Does what the state has decided.
    pub(crate) fn act(&self, mut core: MutexGuard<'_, Core>) {
        let mut flush: Vec<Arc<Link>> = Vec::new();
        let mut later: Vec<(Arc<Link>, Action<()>)> = Vec::new();
        while let Some(action) = core.state.next_action() {
            let (worker, action) = match action {
                Action::Send {
                    worker,
                    id,
                    payload,
                    urgent,
                } => {
                    let Some(frame) = payload.frame() else {
                        // It was ended by somebody else than the state, which must not wait for an answer.
                        core.state.forget(worker, id);
                        continue;
                    };
                    if let Some(link) = &core.links[worker] {
                        // Under the lock, so that frames go out in the order of the decisions. An idle worker gets
                        // its task from whoever is here; a busy one when the batch is worth it.
                        if link.push(Parcel::Task(frame), id) || urgent {
                            if !flush.iter().any(|other| Arc::ptr_eq(other, link)) {
                                flush.push(Arc::clone(link));
                            }
                        } else {
                            link.wake();
                        }
                    }
                    continue;
                }
                Action::Shutdown { worker } => {
                    if let Some(link) = &core.links[worker] {
                        let message = Outgoing::new(kind::SHUTDOWN, Outgoing::buffer(0), Vec::new());
                        link.push(Parcel::Message(message), 0);
                        link.ending.notify_one();
                        flush.push(Arc::clone(link));
                    }
                    continue;
                }
                Action::Recall { worker } => {
                    if let Some(link) = &core.links[worker] {
                        // At once, so that nothing more starts there; a busy worker hears of it by the message.
                        link.ledger.recall();
                    }
                    (worker, Action::Recall { worker })
                }
                Action::Abort { worker, id } => (worker, Action::Abort { worker, id }),
                Action::Kill { worker } => (worker, Action::Kill { worker }),
            };
            if let Some(link) = &core.links[worker] {
                later.push((Arc::clone(link), action));
            }
        }
        drop(core);
        for link in flush {
            link.flush();
        }
        for (link, action) in later {
            match action {
                Action::Abort { id, .. } => link.control(Control::Abort(id)),
                Action::Kill { .. } => link.killer.kill(),
                _ => {
                    // What still waits here could not be given back.
                    link.flush();
                    link.control(Control::Recall);
                    link.recalled.notify_one();
                }
            }
        }
    }

    /// Handles what a worker sent. `Err` says what is wrong with it.
    pub(crate) fn handle(&self, link: &Link, messages: Vec<Message>) -> Result<(), String> {
        if messages.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let mut done: Vec<(Arc<Call>, Outcome)> = Vec::new();
        let mut fault = None;
        let mut core = self.lock();
        for message in messages {
            if let Err(reason) = core.take(link, message, now, &mut done) {
                fault = Some(reason);
                break;
            }
        }
        let ended = done.len().max(1);
        self.act(core);
        self.tell_room(ended);
        for (call, outcome) in done {
            call.complete(outcome, &self.callbacks);
        }
        match fault {
            None => Ok(()),
            Some(reason) => Err(format!("it {reason}")),
        }
    }

    /// The worker at `link` is gone: what it left is taken, the task that it ran has ended, the rest goes elsewhere.
    pub(crate) fn lost(&self, link: &Link, loss: &WorkerLoss) {
        link.drain(self);
        let worker = link.worker;
        let mut started = link.ledger.started();
        let mut loss = loss.clone();
        if loss.fault.is_none() {
            loss.fault = link.fault();
        }
        let mut done = Vec::new();
        let mut core = self.lock();
        core.links[worker] = None;
        let replaced = core.end.is_none();
        if started.is_empty()
            && let Some((id, call)) = core.state.front(worker)
            && call.count_loss() >= LOSSES_BEFORE_START
        {
            // Time and again the worker that should begin it dies: receiving it may be what kills them.
            started.push(Started { id, element: 0 });
        }
        for (call, element) in core.state.lost(worker, Some(&started), replaced).lost {
            let error = call.error(Cause::WorkerLost(loss.clone()));
            if !call.is_chunk() {
                done.push((call, Err(error)));
                continue;
            }
            match call.lose_element(element, &error) {
                Ok(rest) => core
                    .state
                    .resubmit(rest.priority, rest.id(), rest.size, Arc::clone(&rest)),
                Err(reply) => done.push((
                    call,
                    Ok(Reply {
                        worker,
                        pid: link.pid,
                        ..reply
                    }),
                )),
            }
        }
        self.act(core);
        for (call, outcome) in done {
            call.complete(outcome, &self.callbacks);
        }
        self.room.notify_additional(usize::MAX);
        self.changed.notify(usize::MAX);
    }

    /// Takes no more tasks; what was accepted is done.
    pub(crate) fn close(&self) {
        let mut core = self.lock();
        core.state.close();
        self.act(core);
        self.after_end();
    }

    /// Ends the pool: workers are killed, and every task that has not ended does so now.
    pub(crate) fn end(&self, end: End) {
        let mut core = self.lock();
        if core.end.is_some() {
            return;
        }
        core.end = Some(end.clone());
        let (queued, sent) = core.state.terminate();
        let links: Vec<Arc<Link>> = core.links.iter().flatten().cloned().collect();
        drop(core);
        self.stop.send_replace(true);
        for link in links {
            link.killer.kill();
        }
        for (calls, began) in [(queued, false), (sent, true)] {
            for call in calls {
                call.complete(Err(call.error(end.cause(Some(began)))), &self.callbacks);
            }
        }
        self.after_end();
    }

    fn after_end(&self) {
        self.room.notify_additional(usize::MAX);
        self.changed.notify(usize::MAX);
    }

    /// A supervisor has finished: its worker is gone for good.
    pub(crate) fn supervisor_finished(&self, worker: usize) {
        let mut core = self.lock();
        core.state.gone(worker);
        core.supervisors -= 1;
        let last = core.supervisors == 0;
        drop(core);
        if last {
            self.callbacks.close();
        }
        self.changed.notify(usize::MAX);
    }

    /// Waits until every worker is gone.
    pub(crate) async fn all_gone(&self) {
        loop {
            let changed = self.changed.listen();
            if self.lock().supervisors == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Core {
    /// What a task that is refused is told.
    fn refusal(&self, refusal: Refusal) -> Cause {
        match (refusal, &self.end) {
            (Refusal::Full { capacity }, _) => Cause::QueueFull { capacity },
            (Refusal::Closed, None) => Cause::PoolClosed { began: None },
            (Refusal::Closed, Some(end)) => end.cause(None),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.phase() == Phase::Open
    }

    fn take(
        &mut self,
        link: &Link,
        message: Message,
        now: Instant,
        done: &mut Vec<(Arc<Call>, Outcome)>,
    ) -> Result<(), String> {
        let worker = link.worker;
        let Message { kind, id, body, fds } = message;
        match kind {
            kind::VALUE => {
                let nanoseconds =
                    codec::take_u32(&mut &body[..]).ok_or("sent a result without a run time")?;
                let run_time = Duration::from_nanos(u64::from(nanoseconds));
                if let Some(call) = self.answered(worker, id, Some(run_time), now)? {
                    let pid = link.pid;
                    let reply = Reply {
                        bytes: body,
                        offset: 4,
                        fds,
                        worker,
                        pid,
                        run_time,
                        lost: Vec::new(),
                    };
                    done.push((call, Ok(reply)));
                }
            }
            kind::FAILURE => {
                let failure: Failure = codec::decode(&body).map_err(unreadable)?;
                if let Some(call) = self.answered(worker, id, None, now)? {
                    let error = failure_error(call.name(), failure, worker, link.pid);
                    done.push((call, Err(error)));
                }
            }
            kind::PART => match self.state.payload(worker, id) {
                Some(call) if call.is_chunk() => call.push_part(body),
                Some(_) => return Err(format!("answered task {id} as if it were a chunk")),
                // Of a pool that was terminated: the answers have nowhere to go.
                None if self.end.is_some() => {}
                None => return Err(unknown(id)),
            },
            kind::CHUNK_END => {
                let nanoseconds = body
                    .first_chunk::<8>()
                    .ok_or("sent a chunk's end without a run time")?;
                let run_time = Duration::from_nanos(u64::from_le_bytes(*nanoseconds));
                if let Some(call) = self.answered(worker, id, Some(run_time), now)? {
                    if !call.is_chunk() {
                        return Err(format!("answered task {id} as if it were a chunk"));
                    }
                    let reply = Reply {
                        worker,
                        pid: link.pid,
                        run_time,
                        ..call.finish_chunk()
                    };
                    done.push((call, Ok(reply)));
                }
            }
            kind::RECALLED => {
                let ids: Vec<u64> = codec::decode(&body).map_err(unreadable)?;
                if self.end.is_none() {
                    self.state.recalled(worker, &ids);
                }
            }
            kind::BYE => {}
            other => return Err(format!("sent a message of kind {other}, which means nothing now")),
        }
        Ok(())
    }

    /// The call that an answer is for; `None` when nobody wants it any more.
    fn answered(
        &mut self,
        worker: usize,
        id: u64,
        run_time: Option<Duration>,
        now: Instant,
    ) -> Result<Option<Arc<Call>>, String> {
        if self.end.is_some() {
            return Ok(None);
        }
        let call = self
            .state
            .answered(worker, id, run_time)
            .ok_or_else(|| unknown(id))?;
        self.records[worker].tasks_done += 1;
        if let Some(call) = &call {
            self.latencies
                .record(now.saturating_duration_since(call.submitted));
        }
        Ok(call)
    }
}

fn unreadable(error: String) -> String {
    format!("sent garbage ({error})")
}

fn unknown(id: u64) -> String {
    format!("answered task {id}, which it was not given")
}

/// A failure in a worker as the caller sees it.
pub(crate) fn failure_error(task: &str, failure: Failure, worker: usize, pid: u32) -> TaskError {
    let cause = match failure {
        Failure::Panicked(panic) => Cause::Panicked { worker, pid, panic },
        Failure::DecodeArgument(message) => Cause::Decode(format!("the argument: {message}")),
        Failure::EncodeResult(message) => Cause::Encode(format!("the result: {message}")),
        Failure::TooLarge { size, limit } => Cause::TooLarge {
            what: "the result",
            size,
            limit,
        },
        Failure::UnknownTask(row) => Cause::Decode(format!("the worker has no task number {row}")),
        Failure::Cancelled => Cause::Cancelled,
    };
    TaskError::new(task, cause)
}
