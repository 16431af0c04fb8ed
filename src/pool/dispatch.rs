//! The pool's shared heart: it feeds events to the [`State`] and does what the state decides.

use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_listener::Event;
use futures::future::select;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::admission::Capacity;
use super::builder::Config;
use super::call::{Call, Outcome, Reply};
use super::callback::Callbacks;
use super::caller::Callers;
use super::keeper::{Due, Start};
use super::link::{Link, Waiting};
use super::state::{Action, Cancelled, Phase, Refusal, Sizing, State, WorkerState};
use super::stats::{Latencies, WorkerStats, WorkerStatus};
use super::timers::{Timers, after};
use crate::error::{BuildError, Cause, TaskError, TimeLimit, WorkerLoss};
use crate::process::listen::Ears;
use crate::process::template::Template;
use crate::runtime;
use crate::shared::ledger::{Started, clock};
use crate::wire::codec;
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Control, Failure, kind};

/// Workers that may die one after the other with a task in front of them that they had not begun, before it is taken
/// for the cause.
const LOSSES_BEFORE_START: u8 = 5;

/// What a worker may take to give back or stop a cancelled task before it is stopped itself.
pub(crate) const RECALL_GRACE: Duration = Duration::from_secs(1);
/// What a chunk may take to its next element, where it can end, before its worker is stopped.
pub(crate) const CHUNK_GRACE: Duration = Duration::from_millis(10);
/// Workers that may die of their first task, one after the other, before the next is started after a pause. Each is paid
/// for by a task, so that these pauses stay short: they double up to the fourth.
const STORM: u32 = 20;
const LONGEST_STORM: u32 = 4;
/// Stopped workers, beside one for each place, that may take their time to end. Beyond them they are killed at once.
const MOST_LINGERING: usize = 4;

/// Everything that a pool's handles, futures and workers share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    core: Mutex<Core>,
    pub(crate) callbacks: Callbacks,
    /// Told when the pool's phase or the number of its processes changes.
    pub(crate) changed: Event,
    /// Becomes `true` when workers must not be started any more.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) timers: Arc<Timers<Due>>,
    /// Where the keeper hears of workers that are to be started.
    starts: mpsc::UnboundedSender<Start>,
    /// What hears the workers, where there are any.
    pub(crate) ears: Option<Arc<Ears>>,
    /// What workers are copied from, if they are.
    pub(crate) template: Option<Arc<Template>>,
    pub(crate) callers: Callers,
}

pub(crate) struct Core {
    pub(crate) state: State<Arc<Call>>,
    /// By a worker's index in the state.
    pub(crate) links: Vec<Option<Arc<Link>>>,
    /// By a worker's number.
    pub(crate) records: Vec<WorkerRecord>,
    pub(crate) latencies: Latencies,
    pub(crate) end: Option<End>,
    /// Tasks were ended with the pool that had been accepted.
    cut_off: bool,
    /// Why no worker starts, while none does.
    failing: Option<BuildError>,
}

/// What is remembered of the workers that had a number, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WorkerRecord {
    pub(crate) tasks_done: u64,
    /// Starts, failed ones included.
    pub(crate) starts: u64,
    /// Starts that failed, one after the other.
    pub(crate) failures: u32,
    /// Workers that died with nothing to do, one after the other.
    pub(crate) deaths: u32,
    /// Workers that died of their first task, one after the other.
    pub(crate) crashes: u32,
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
    /// `user` is the runtime that callbacks may use. What comes back tells the pool's keeper which workers to start.
    pub(crate) fn new(config: Config, user: Option<Handle>) -> (Self, mpsc::UnboundedReceiver<Start>) {
        let sizing = Sizing {
            least: config.least_workers,
            most: config.workers,
            lanes: config.tasks_per_worker,
            processors: config.processors,
            capacity: Capacity {
                tasks: config.queue_capacity,
                bytes: config.queue_capacity_bytes,
            },
            tasks_per_life: config.max_tasks_per_worker,
        };
        let core = Core {
            state: State::new(sizing),
            links: Vec::new(),
            records: Vec::new(),
            latencies: Latencies::default(),
            end: None,
            cut_off: false,
            failing: None,
        };
        let (starts, to_start) = mpsc::unbounded_channel();
        let callers = Callers::new(config.spin);
        let shared = Self {
            config,
            core: Mutex::new(core),
            callbacks: Callbacks::new(user),
            changed: Event::new(),
            stop: watch::channel(false).0,
            timers: Arc::default(),
            starts,
            ears: None,
            template: None,
            callers,
        };
        (shared, to_start)
    }

    /// A pool that could not be started.
    pub(crate) fn failed(error: BuildError) -> Self {
        let (shared, _) = Self::new(Config::default(), None);
        let mut core = shared.lock();
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
        self.watch(call)?;
        call.capture(self);
        let mut core = self.lock();
        core.check_start()?;
        in_time(call)?;
        let submitted = core
            .state
            .submit(call.priority, call.weight, call.size(), Arc::clone(call));
        let id = submitted.map_err(|refusal| core.refusal(refusal))?;
        self.submitted(core, call, id);
        Ok(())
    }

    /// Has a task's times watched, from its first attempt to get in. `Err` when one is up already.
    pub(super) fn watch(&self, call: &Arc<Call>) -> Result<(), Cause> {
        if !call.has_limits() || call.is_watched() {
            return Ok(());
        }
        if let Some(at) = in_time(call)? {
            call.watch(&self.timers, at);
        }
        Ok(())
    }

    /// Whether a task would be taken now.
    pub(crate) fn admit(&self) -> Result<(), Cause> {
        self.lock().admit(0, None)
    }

    /// Hands a task over; where the queue has no room it waits for its turn, which the `true` says. A task that is
    /// refused has ended.
    pub(crate) fn submit_or_wait(&self, call: &Arc<Call>) -> bool {
        self.try_submit_or_wait(call).unwrap_or_else(|cause| {
            self.refuse(vec![Arc::clone(call)], &cause);
            false
        })
    }

    fn try_submit_or_wait(&self, call: &Arc<Call>) -> Result<bool, Cause> {
        self.watch(call)?;
        call.capture(self);
        let mut core = self.lock();
        core.check_start()?;
        in_time(call)?;
        let submitted = core
            .state
            .submit_or_wait(call.priority, call.weight, call.size(), Arc::clone(call));
        let (id, waits) = submitted.map_err(|refusal| core.refusal(refusal))?;
        if waits {
            call.wait();
        }
        self.submitted(core, call, id);
        Ok(waits)
    }

    /// The state has taken a task, or has it wait in line.
    pub(super) fn submitted(&self, core: MutexGuard<'_, Core>, call: &Arc<Call>, id: u64) {
        // Before the frame leaves, which is when the actions are carried out.
        call.set_id(id);
        #[cfg(feature = "tracing")]
        call.announce(self);
        self.act(core);
    }

    /// Ends tasks that are not taken.
    pub(super) fn refuse(&self, calls: Vec<Arc<Call>>, cause: &Cause) {
        for call in calls {
            call.complete(Err(call.error_after_tries(cause.clone())), &self.callbacks);
        }
    }

    /// Hands a task over and ends it with an error where that is refused.
    pub(crate) fn submit_or_fail(&self, call: &Arc<Call>) {
        if let Err(cause) = self.submit(call) {
            call.complete(Err(call.error(cause)), &self.callbacks);
        }
    }

    /// Ends a task that nobody wants any more.
    pub(crate) fn cancel(&self, call: &Arc<Call>) {
        self.end_call(self.lock(), call, Cause::Cancelled);
    }

    /// Ends a task before its worker has answered: in the queue, it never runs; at a worker, it is stopped.
    pub(crate) fn end_call(&self, mut core: MutexGuard<'_, Core>, call: &Arc<Call>, cause: Cause) {
        let id = call.id();
        let Core { state, links, .. } = &mut *core;
        let link = state.worker_of(id).and_then(|worker| links[worker].clone());
        let polite = link
            .as_ref()
            .is_some_and(|link| call.is_chunk() || self.may_end(link));
        let cancelled = state.cancel(call.priority, id, polite);
        let mut cause = cause;
        if let (Cancelled::InFlight(_), Some(link)) = (&cancelled, &link) {
            self.ask_to_end(link, id, polite);
            if let Cause::TimedOut {
                limit: TimeLimit::Deadline,
                ran: ran @ None,
            } = &mut cause
                && link.ledger.started().iter().any(|started| started.id == id)
            {
                // It started just before it was told not to.
                *ran = Some((link.number, link.pid));
            }
        }
        self.act(core);
        match cancelled {
            Cancelled::Queued(call) | Cancelled::InFlight(call) => {
                let is_late = matches!(cause, Cause::TimedOut { .. });
                let error = call.error_after_tries(cause);
                let outcome = if is_late && call.is_chunk() {
                    // It may be what another worker has left of it.
                    Ok(call.lose_rest(&error))
                } else {
                    Err(error)
                };
                call.complete(outcome, &self.callbacks);
            }
            Cancelled::Unknown => {}
        }
    }

    /// Whether tasks at a worker may be expected to end by themselves when they are asked to.
    pub(crate) fn may_end(&self, link: &Link) -> bool {
        link.ledger.listens() && !self.config.cancel_grace.is_zero()
    }

    /// Tells a worker that a task should end, and sees to it that it does.
    pub(crate) fn ask_to_end(&self, link: &Link, id: u64, polite: bool) {
        // At once, so that a task which has not started never does; asking for it back takes its time.
        link.ledger.revoke(id);
        let grace = match polite {
            true if self.may_end(link) => self.config.cancel_grace,
            true if link.ledger.started().iter().any(|started| started.id == id) => CHUNK_GRACE,
            // It only has to be given back.
            true => RECALL_GRACE,
            false => RECALL_GRACE,
        };
        // Others should not pay for it with their lives too soon.
        let grace = if self.config.tasks_per_worker > 1 {
            grace.max(RECALL_GRACE)
        } else {
            grace
        };
        let due = Due::Stop {
            worker: link.place,
            process: link.process,
            id,
        };
        self.timers.insert(after(grace), due);
    }

    /// Does what the state has decided.
    pub(crate) fn act(&self, mut core: MutexGuard<'_, Core>) {
        let mut flush: Vec<Arc<Link>> = Vec::new();
        let mut later: Vec<(Arc<Link>, Action<()>)> = Vec::new();
        let mut admitted: Vec<Arc<Call>> = Vec::new();
        let mut late: Vec<(Arc<Call>, Outcome)> = Vec::new();
        while let Some(action) = core.state.next_action() {
            let (worker, action) = match action {
                Action::Start { worker, number } => {
                    core.start(worker, number, &self.starts);
                    continue;
                }
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
                    if payload.has_limits()
                        && let Ok(limit) = payload.waited(Instant::now())
                    {
                        // It is about to be told so, and must not start meanwhile, given back by another worker, say.
                        core.state.forget(worker, id);
                        late.push(too_late(payload, limit));
                        continue;
                    }
                    payload.set_place(worker);
                    if let Some(link) = &core.links[worker] {
                        if let Some(timeout) = payload.timeout() {
                            self.check_by(link, after(timeout));
                        }
                        if payload.has_limits() {
                            // An earlier try may have been stopped there.
                            link.ledger.allow(id);
                        }
                        let company = payload.context();
                        let before = company.map(|context| link.push_message(context, id));
                        // Under the lock, so that frames go out in the order of the decisions. An idle worker gets
                        // its task from whoever is here; a busy one when the batch is worth it.
                        if !urgent {
                            self.wait_at(&core, link);
                        }
                        let waiting = link.push_task(frame, id);
                        if urgent || waiting == Waiting::Much {
                            if !flush.iter().any(|other| Arc::ptr_eq(other, link)) {
                                flush.push(Arc::clone(link));
                            }
                        } else if Waiting::First == before.unwrap_or(waiting) {
                            if self.callers.has_lookout() {
                                // In case it has other things to do after all.
                                self.flush_later(&core, link);
                            } else {
                                link.wake();
                            }
                        }
                    }
                    continue;
                }
                Action::Admitted { payload } => {
                    admitted.push(payload);
                    continue;
                }
                Action::Shutdown { worker } => {
                    if let Some(link) = &core.links[worker] {
                        let message = Outgoing::new(kind::SHUTDOWN, Outgoing::buffer(0), Vec::new());
                        link.push_message(message, 0);
                        link.killer.expect_end();
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
                Action::Stop { worker } => (worker, Action::Stop { worker }),
            };
            if let Some(link) = &core.links[worker] {
                later.push((Arc::clone(link), action));
            }
        }
        // Not too many at a time take their time to end.
        let may_linger = core.state.ending() <= MOST_LINGERING + core.state.size();
        self.callers.set_may_look(core.state.may_look());
        drop(core);
        for link in flush {
            link.flush();
        }
        for call in admitted {
            call.admit();
        }
        self.complete(late);
        for (link, action) in later {
            match action {
                Action::Abort { id, .. } => link.control(Control::Abort(id)),
                Action::Stop { .. } if may_linger && !self.config.term_grace.is_zero() => {
                    if link.killer.stop() {
                        link.stopping.notify_one();
                    }
                }
                Action::Stop { .. } => link.killer.kill(),
                _ => {
                    // What still waits here could not be given back.
                    link.flush();
                    link.control(Control::Recall);
                }
            }
        }
    }

    /// Handles what a worker sent. `Err` says what is wrong with it.
    pub(crate) fn handle(&self, link: &Link, messages: Vec<Message>) -> Result<(), String> {
        if messages.is_empty() {
            return Ok(());
        }
        let now = clock();
        let mut done: Vec<(Arc<Call>, Outcome)> = Vec::new();
        let mut fault = None;
        let mut core = self.lock();
        for message in messages {
            if let Err(reason) = core.take(link, message, now, &mut done) {
                fault = Some(reason);
                break;
            }
        }
        self.look_at(&mut core, link);
        self.act(core);
        self.complete(done);
        match fault {
            None => Ok(()),
            Some(reason) => Err(format!("it {reason}")),
        }
    }

    /// Ends tasks. A waker of the user's that panics keeps the others from nothing.
    pub(super) fn complete(&self, done: Vec<(Arc<Call>, Outcome)>) {
        for (call, outcome) in done {
            let completed = catch_unwind(AssertUnwindSafe(|| call.complete(outcome, &self.callbacks)));
            if let Err(payload) = completed {
                codec::drop_quietly(payload);
            }
        }
    }

    /// The worker at `link` is gone: what it left is taken, the task that it ran has ended, the rest goes elsewhere.
    pub(crate) fn lost(&self, link: &Link, loss: &WorkerLoss) {
        link.drain(self);
        let worker = link.place;
        let mut started = link.ledger.started();
        let mut loss = loss.clone();
        if loss.fault.is_none() {
            loss.fault = link.fault();
        }
        let mut done = Vec::new();
        let mut core = self.lock();
        core.links[worker] = None;
        let was_told = core.state.worker_state(worker) == WorkerState::Ending;
        let has_worked = link.has_answered() || started.iter().any(|started| started.element > 0);
        let record = &mut core.records[link.number];
        record.crashes = if was_told || has_worked || link.is_old() {
            0
        } else {
            record.crashes + u32::from(link.had_tasks())
        };
        record.deaths = if was_told || link.had_tasks() || link.is_old() {
            0
        } else {
            record.deaths + 1
        };
        if started.is_empty()
            && let Some((id, call)) = core.state.front(worker)
            && call.count_loss() >= LOSSES_BEFORE_START
        {
            // Time and again the worker that should begin it dies: receiving it may be what kills them.
            started.push(Started {
                id,
                element: 0,
                since: 0,
            });
        }
        for (call, element) in core.state.lost(worker, &started) {
            let cause = match link.take_overdue(call.id()) {
                Some(limit) => Cause::TimedOut {
                    limit,
                    ran: Some((link.number, link.pid)),
                },
                None => Cause::WorkerLost(loss.clone()),
            };
            core.fail(link, call, element, cause, &mut done);
        }
        self.act(core);
        self.complete(done);
        self.process_gone();
    }

    /// A process could not be started, or was not wanted any more when it was its turn.
    pub(crate) fn not_started(&self, worker: usize) {
        let mut core = self.lock();
        core.state.gone(worker);
        self.act(core);
        self.process_gone();
    }

    /// One process less.
    fn process_gone(&self) {
        if self.lock().is_over() {
            self.callbacks.close();
        }
        self.changed.notify(usize::MAX);
    }

    /// No worker is there and none can be started: whoever waits is told. Later tasks are refused until one starts.
    pub(crate) fn cannot_start(&self, error: &BuildError) {
        let mut core = self.lock();
        core.failing = Some(error.clone());
        let given_up = core.state.give_up();
        self.act(core);
        self.refuse(given_up, &Cause::PoolFailed(error.clone()));
        self.changed.notify(usize::MAX);
    }

    /// Takes no more tasks; what was accepted is done.
    pub(crate) fn close(&self) {
        let mut core = self.lock();
        core.state.close();
        let waiting = core.state.refuse_waiting();
        let cause = core.refusal(Refusal::Closed);
        let is_over = core.is_over();
        self.act(core);
        if is_over {
            self.callbacks.close();
        }
        self.refuse(waiting, &cause);
        self.changed.notify(usize::MAX);
    }

    /// Ends the pool: workers are killed, and every task that has not ended does so now.
    pub(crate) fn end(&self, end: End) {
        let mut core = self.lock();
        // A pool that was closed and is done has ended well, and that is not to be taken back.
        if core.end.is_some() || core.is_over() {
            return;
        }
        core.end = Some(end.clone());
        let (queued, sent) = core.state.terminate();
        let waiting = core.state.refuse_waiting();
        core.cut_off |= !(queued.is_empty() && sent.is_empty() && waiting.is_empty());
        let links: Vec<Arc<Link>> = core.links.iter().flatten().cloned().collect();
        let is_over = core.is_over();
        drop(core);
        self.stop.send_replace(true);
        if let Some(template) = &self.template {
            template.stop();
        }
        for link in links {
            link.killer.kill();
        }
        if is_over {
            self.callbacks.close();
        }
        self.refuse(waiting, &end.cause(None));
        for (calls, began) in [(queued, false), (sent, true)] {
            for call in calls {
                let error = call.error_after_tries(end.cause(Some(began)));
                call.complete(Err(error), &self.callbacks);
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// Waits until every worker is gone, what they printed has been passed on, and callbacks have run, but for what
    /// blocks.
    pub(crate) async fn settled(&self) {
        self.all_gone().await;
        if let (Some(ears), Ok(own)) = (&self.ears, runtime::handle()) {
            let grace = self.config.shutdown_grace;
            // On the library's runtime, for the caller's may have no timers. It ends when it is dropped.
            let mut timer = JoinSet::new();
            let too_late = async {
                timer.spawn_on(async move { timeout(grace, pending::<()>()).await }, own);
                timer.join_next().await;
            };
            // What is passed on later is not lost, only late.
            select(pin!(ears.flushed()), pin!(too_late)).await;
        }
        self.callbacks.settled().await;
    }

    /// Whether every task that was accepted has been done.
    pub(crate) fn is_done(&self) -> bool {
        let core = self.lock();
        !core.cut_off && core.state.queued() + core.state.running() == 0
    }

    /// Waits until every worker is gone, and what they are copied from.
    pub(crate) async fn all_gone(&self) {
        self.workers_gone().await;
        if let Some(template) = &self.template {
            template.stop();
            template.gone().await;
        }
    }

    /// Waits until every worker is gone.
    pub(crate) async fn workers_gone(&self) {
        loop {
            let changed = self.changed.listen();
            if self.lock().is_over() {
                return;
            }
            changed.await;
        }
    }
}

impl Core {
    /// What a task that is refused is told.
    pub(super) fn refusal(&self, refusal: Refusal) -> Cause {
        match (refusal, &self.end) {
            (Refusal::Full(bound), _) => Cause::QueueFull(bound),
            (Refusal::Closed, None) => Cause::PoolClosed { began: None },
            (Refusal::Closed, Some(end)) => end.cause(None),
        }
    }

    /// Whether a task would be taken. `bytes` is its size, if that is known.
    fn admit(&self, priority: i32, bytes: Option<usize>) -> Result<(), Cause> {
        self.check_start()?;
        self.state
            .admit(priority, bytes)
            .map_err(|refusal| self.refusal(refusal))
    }

    /// Whether there are workers, or may be. A pool that takes nothing more says that itself.
    pub(super) fn check_start(&self) -> Result<(), Cause> {
        match &self.failing {
            Some(error) if self.is_open() && self.state.is_starting() => {
                Err(Cause::PoolFailed(error.clone()))
            }
            // A pool that needs no worker tries another start when a task comes, which has to wait for that.
            _ => Ok(()),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.phase() == Phase::Open
    }

    /// Whether the pool takes no tasks and has no processes any more.
    fn is_over(&self) -> bool {
        !self.is_open() && self.state.processes() == 0
    }

    /// Has a worker started.
    fn start(&mut self, worker: usize, number: usize, starts: &mpsc::UnboundedSender<Start>) {
        if self.links.len() <= worker {
            self.links.resize(worker + 1, None);
        }
        if self.records.len() <= number {
            self.records.resize(number + 1, WorkerRecord::default());
        }
        let record = &mut self.records[number];
        record.starts += 1;
        let start = Start {
            worker,
            number,
            failures: record.failures
                + record.deaths
                + record.crashes.saturating_sub(STORM).min(LONGEST_STORM),
        };
        // The keeper goes when the pool is over, and then nothing is started.
        starts.send(start).ok();
    }

    /// Whether a worker that has not been started is still wanted.
    pub(crate) fn wants(&self, worker: usize) -> bool {
        self.end.is_none() && self.state.wants(worker)
    }

    /// The worker is up: whatever kept others from starting may be over.
    pub(crate) fn started(&mut self, number: usize) {
        self.records[number].failures = 0;
        self.failing = None;
    }

    /// Starts that have failed for this number, one after the other, with this one.
    pub(crate) fn count_failure(&mut self, number: usize) -> u32 {
        self.records[number].failures += 1;
        self.records[number].failures
    }

    /// A task was lost at `element` of it: it is tried again, or it has ended.
    pub(crate) fn fail(
        &mut self,
        link: &Link,
        call: Arc<Call>,
        element: u64,
        cause: Cause,
        done: &mut Vec<(Arc<Call>, Outcome)>,
    ) {
        let error = call.error(cause);
        let again = if call.is_chunk() {
            call.lose_element(element, error)
                .map_err(|reply| Ok(reply.answered_by(link.number, link.pid, Duration::ZERO)))
        } else {
            let tried = call.try_again(error).map_err(Err);
            tried.map(|()| Arc::clone(&call))
        };
        match again {
            Ok(rest) => self.resubmit(rest, done),
            Err(outcome) => done.push((call, outcome)),
        }
    }

    /// A worker did not begin a task, for it was revoked there, and nobody has said how it ends: the time that it may
    /// wait has come to its end at this moment, or it waits for a worker again.
    fn unbegun(&mut self, call: Arc<Call>, done: &mut Vec<(Arc<Call>, Outcome)>) {
        let Ok(limit) = call.waited(Instant::now()) else {
            self.resubmit(call, done);
            return;
        };
        done.push(too_late(call, limit));
    }

    /// Puts a task that must run again, or what is left of one, into the queue, if there is time.
    fn resubmit(&mut self, call: Arc<Call>, done: &mut Vec<(Arc<Call>, Outcome)>) {
        call.set_begun();
        if call.is_chunk() && call.is_late(Instant::now()) {
            let error = call.error(Cause::TimedOut {
                limit: TimeLimit::Deadline,
                ran: None,
            });
            let reply = call.lose_rest(&error);
            done.push((call, Ok(reply)));
            return;
        }
        self.state
            .resubmit(call.priority, call.id(), call.weight, call.size(), call);
    }

    /// The workers by number, one for each.
    pub(crate) fn workers(&self) -> Vec<WorkerStats> {
        let mut by_number: BTreeMap<usize, (usize, WorkerStatus)> = BTreeMap::new();
        for (index, number, state, tasks) in self.state.staffed() {
            let status = WorkerStatus::new(state, tasks);
            let entry = by_number.entry(number).or_insert((index, status));
            // While one replaces another, the one that works.
            if status < entry.1 {
                *entry = (index, status);
            }
        }
        let worker = |number: usize, index: Option<usize>, status| {
            let link = index.and_then(|index| self.links[index].as_ref());
            WorkerStats {
                id: number,
                pid: link.map(|link| link.pid),
                status,
                tasks_done: self.records[number].tasks_done,
                restarts: self.records[number].starts.saturating_sub(1),
                resident_memory: None,
                memory_limit: link.and_then(|link| link.memory.limit()),
            }
        };
        let listed = (0..self.records.len()).filter_map(|number| match by_number.get(&number) {
            Some(&(index, status)) => Some(worker(number, Some(index), status)),
            None if self.is_open() => None,
            None => Some(worker(number, None, WorkerStatus::Gone)),
        });
        listed.collect()
    }

    fn take(
        &mut self,
        link: &Link,
        message: Message,
        now: u64,
        done: &mut Vec<(Arc<Call>, Outcome)>,
    ) -> Result<(), String> {
        let worker = link.place;
        let Message {
            kind,
            id,
            head,
            body,
            fds,
        } = message;
        if !head.is_empty() && kind != kind::VALUE {
            return Err(format!("sent a message of kind {kind} in two parts"));
        }
        match kind {
            kind::VALUE => {
                let reply = Reply::single(head, body, fds).ok_or("sent a result without a run time")?;
                if let Some(call) = self.answered(link, id, Some(reply.run_time()), now)? {
                    if call.is_chunk() {
                        return Err(misread(
                            call,
                            format!("answered chunk {id} as if it were one task"),
                            done,
                        ));
                    }
                    done.push((call, Ok(reply)));
                }
            }
            kind::FAILURE => {
                let failure: Failure = codec::decode(&body).map_err(unreadable)?;
                if let Some(call) = self.answered(link, id, None, now)? {
                    if failure == Failure::Cancelled {
                        self.unbegun(call, done);
                        return Ok(());
                    }
                    let error = failure_error(call.name(), failure, link.number, link.pid);
                    done.push((call, Err(error)));
                }
            }
            kind::PART => match self.state.payload(worker, id) {
                Some(call) if call.is_chunk() => call.push_part(body.into_vec()),
                Some(_) => return Err(format!("answered task {id} as if it were a chunk")),
                // Of a pool that was terminated: the answers have nowhere to go.
                None if self.end.is_some() => {}
                None => return Err(unknown(id)),
            },
            kind::CHUNK_END | kind::CHUNK_STOPPED => {
                let nanoseconds = body
                    .first_chunk::<8>()
                    .ok_or("sent a chunk's end without a run time")?;
                let run_time = Duration::from_nanos(u64::from_le_bytes(*nanoseconds));
                let overdue = link.take_overdue(id);
                if let Some(call) = self.answered(link, id, Some(run_time), now)? {
                    if !call.is_chunk() {
                        return Err(misread(
                            call,
                            format!("answered task {id} as if it were a chunk"),
                            done,
                        ));
                    }
                    let reply = if kind == kind::CHUNK_STOPPED {
                        let dropped = body.get(8..).and_then(<[u8]>::first_chunk);
                        if let (Some(element), Some(limit)) = (dropped, overdue) {
                            let element = u64::from_le_bytes(*element);
                            let ran = Some((link.number, link.pid));
                            self.fail(link, call, element, Cause::TimedOut { limit, ran }, done);
                            return Ok(());
                        }
                        match call.unfinished() {
                            Ok(rest) => {
                                self.resubmit(rest, done);
                                return Ok(());
                            }
                            Err(reply) => reply,
                        }
                    } else {
                        call.finish_chunk()
                    };
                    done.push((call, Ok(reply.answered_by(link.number, link.pid, run_time))));
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
        link: &Link,
        id: u64,
        run_time: Option<Duration>,
        now: u64,
    ) -> Result<Option<Arc<Call>>, String> {
        if self.end.is_some() {
            return Ok(None);
        }
        let call = self
            .state
            .answered(link.place, id, run_time)
            .ok_or_else(|| unknown(id))?;
        self.records[link.number].tasks_done += 1;
        link.set_answered();
        if let Some(call) = &call {
            self.latencies
                .record(Duration::from_nanos(now.saturating_sub(call.submitted)));
        }
        Ok(call)
    }
}

fn unreadable(error: String) -> String {
    format!("sent garbage ({error})")
}

/// When the next of a task's times is up that has not started, or `Err` when one is. Looked at where the lock is held as
/// well: by then whoever saw to it may have found nothing submitted.
pub(super) fn in_time(call: &Call) -> Result<Option<Instant>, Cause> {
    if !call.has_limits() {
        return Ok(None);
    }
    match call.waited(Instant::now()) {
        Ok(limit) => Err(Cause::TimedOut { limit, ran: None }),
        Err(next) => Ok(next),
    }
}

/// How a task ends that has waited for too long.
fn too_late(call: Arc<Call>, limit: TimeLimit) -> (Arc<Call>, Outcome) {
    let error = call.error_after_tries(Cause::TimedOut { limit, ran: None });
    let outcome = if call.is_chunk() {
        Ok(call.lose_rest(&error))
    } else {
        Err(error)
    };
    (call, outcome)
}

/// An answer that is of another kind than its task ends that task, and says what is wrong with the worker.
fn misread(call: Arc<Call>, reason: String, done: &mut Vec<(Arc<Call>, Outcome)>) -> String {
    let error = call.error(Cause::Decode(format!("the worker {reason}")));
    done.push((call, Err(error)));
    reason
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
