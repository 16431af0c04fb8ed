//! Everything that the pool decides: which task goes to which worker, when, what becomes of it, and which workers there
//! are.
//!
//! Pure and synchronous: events go in as method calls, [`Action`]s come out. It knows nothing of processes, sockets,
//! futures or time, so that its promises are tested without any:
//!
//! - every task that was accepted leaves exactly once: answered, lost, cancelled or drained;
//! - tasks start in order of priority, then of submission;
//! - no task waits at a busy worker while another worker is idle: it is recalled;
//! - those who wait for room in the queue are let in one after the other, and nobody overtakes them;
//! - a worker that is about to be stopped is sent nothing, and what it had not started goes back to the queue;
//! - as many workers are up or on their way as are wanted, whatever becomes of them (see [`staff`]).
//!
//! A worker here is one process. Its index is used again when it is gone; its *number* is what users know, and its
//! replacement has the same.

mod roster;
mod staff;

use std::collections::VecDeque;
use std::time::Duration;

use self::roster::Roster;
use super::admission::{Admission, Capacity, Occupancy, Waits};
use super::in_flight::{InFlight, Sent, Stop};
use super::queue::{Queue, Queued};
use crate::error::QueueBound;
use crate::shared::ledger::{MOST_WAITING, Started};

/// Unstarted tasks that a worker holds at most, so that the way there and back is hidden.
const DEEPEST: usize = MOST_WAITING;
/// How much work the tasks that wait at a worker should be.
const WAITING_WORK: Duration = Duration::from_micros(200);
/// Bytes that tasks at a busy worker may add up to before it is sent no more.
const WAITING_BYTES: usize = 1 << 20;

/// What it takes to wake a worker. A task that has its turn sooner waits for it at a busy one.
const WAKING: Duration = Duration::from_micros(50);
/// What it takes to have two processes take turns on a processor.
const SWITCHING: Duration = Duration::from_micros(5);
/// Bytes that tasks may add up to which wait although others are idle.
const GATHERED_BYTES: usize = 16 << 10;
/// After about so many tasks, a long one counts for less than half.
const REMEMBERED: u32 = 128;

/// How large a pool may be, and what it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizing {
    /// Workers that are always there.
    pub(crate) least: usize,
    /// Workers that there are at most.
    pub(crate) most: usize,
    /// Tasks that a worker runs at a time.
    pub(crate) lanes: usize,
    /// Tasks that the machine can compute at a time.
    pub(crate) processors: usize,
    /// What may wait.
    pub(crate) capacity: Capacity,
    /// Tasks that a worker is sent in its life.
    pub(crate) tasks_per_life: Option<u64>,
}

/// What the owner of the state must do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action<P> {
    /// Start a process and say when it is ready, or gone.
    Start { worker: usize, number: usize },
    /// Send a task.
    Send {
        worker: usize,
        id: u64,
        payload: P,
        urgent: bool,
    },
    /// Ask for every task that has not started.
    Recall { worker: usize },
    /// Tell a task that it should end.
    Abort { worker: usize, id: u64 },
    /// Stop the process, whatever it runs.
    Stop { worker: usize },
    /// Tell the worker that no more tasks come.
    Shutdown { worker: usize },
    /// Tell one that waited for room that it has it.
    Admitted { payload: P },
}

/// Why a task was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    Full(QueueBound),
}

/// Whether the pool takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// What was accepted is done, nothing more is taken.
    Closing,
    /// Nothing is done any more.
    Closed,
}

/// What became of a task that somebody cancelled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cancelled<P> {
    /// It had not been sent, and never will be.
    Queued(P),
    /// It is at a worker, which is told.
    InFlight(P),
    /// It has ended.
    Unknown,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// Being started, or waiting to be.
    Starting,
    /// Is up, and takes tasks when the one that it replaces has done its last.
    Standby,
    /// Takes tasks.
    Ready,
    /// Finishes the tasks that it has, and takes no more.
    Retiring,
    /// Was stopped or told to end.
    Ending,
    /// Has ended.
    Gone,
}

/// Whether a worker should be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wear {
    None,
    /// Soon: another is started in time.
    Fading,
    /// As soon as another is up.
    Worn,
}

#[derive(Debug)]
struct Worker<P> {
    number: usize,
    state: WorkerState,
    wear: Wear,
    in_flight: InFlight<P>,
    recalling: bool,
    /// What waited here was recalled for an idle worker: nothing is sent ahead until the running task is answered.
    held: bool,
    /// Tasks that it may still be sent.
    budget: Option<u64>,
}

impl<P> Worker<P> {
    fn starting(number: usize, lanes: usize, budget: Option<u64>) -> Self {
        Self {
            number,
            state: WorkerState::Starting,
            wear: Wear::None,
            in_flight: InFlight::new(lanes),
            recalling: false,
            held: false,
            budget,
        }
    }

    /// Sent tasks that cannot have started, for the lanes in front of them are taken.
    fn waiting(&self, lanes: usize) -> usize {
        self.in_flight.len().saturating_sub(lanes)
    }

    /// Whether it may have tasks.
    fn is_up(&self) -> bool {
        matches!(self.state, WorkerState::Ready | WorkerState::Retiring)
    }

    /// Whether it may be sent tasks now.
    fn takes_tasks(&self) -> bool {
        self.state == WorkerState::Ready && !self.recalling && !self.is_doomed()
    }

    /// Whether a task that shall be stopped stands in the way of new ones.
    fn is_doomed(&self) -> bool {
        self.in_flight.has_stopping()
    }
}

/// The priorities of the tasks so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priorities {
    None,
    Same(i32),
    Different,
}

impl Priorities {
    fn and(self, priority: i32) -> Self {
        match self {
            Self::None => Self::Same(priority),
            Self::Same(same) if same == priority => self,
            _ => Self::Different,
        }
    }
}

/// The pool's state. `P` is what a task carries.
#[derive(Debug)]
pub(crate) struct State<P> {
    phase: Phase,
    sizing: Sizing,
    /// Workers that there should be now.
    size: usize,
    next_id: u64,
    /// Whether tasks have come with different priorities, so that a later one may have to go first.
    priorities: Priorities,
    queue: Queue<P>,
    admission: Admission<P>,
    workers: Roster<P>,
    /// A worker has come, gone or worn out since the staff was looked at.
    restaff: bool,
    /// Unstarted tasks that a worker may hold now.
    depth: usize,
    /// A moving average of run times.
    run_time: Option<Duration>,
    /// The longest run time of late.
    longest: Duration,
    /// As `run_time`, but the few that are much longer than the rest count for little.
    usual: Duration,
    actions: VecDeque<Action<P>>,
    /// Tasks have been answered since actions were decided: answers come many at a time.
    has_answers: bool,
}

impl<P: Clone> State<P> {
    pub(crate) fn new(sizing: Sizing) -> Self {
        let mut state = Self {
            phase: Phase::Open,
            sizing,
            size: sizing.least,
            next_id: 1,
            priorities: Priorities::None,
            queue: Queue::default(),
            admission: Admission::new(sizing.capacity),
            workers: Roster::new(sizing.lanes),
            restaff: true,
            depth: 1,
            run_time: None,
            longest: Duration::ZERO,
            usual: Duration::ZERO,
            actions: VecDeque::new(),
            has_answers: false,
        };
        state.staff();
        state
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The next thing to do.
    pub(crate) fn next_action(&mut self) -> Option<Action<P>> {
        if std::mem::take(&mut self.has_answers) {
            self.dispatch();
        }
        self.actions.pop_front()
    }

    /// Tasks that have not started, in the queue or at a worker.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len() + self.workers.total().waiting
    }

    /// Tasks that have started, as far as can be told from here.
    pub(crate) fn running(&self) -> usize {
        let total = self.workers.total();
        total.tasks - total.waiting
    }

    /// Whether more than `most` tasks have been accepted and not answered.
    pub(crate) fn has_more_than(&self, most: usize) -> bool {
        !self.queue.is_empty() || self.workers.total().tasks > most
    }

    /// Whether `worker` was sent something that it has not answered.
    pub(crate) fn has_tasks(&self, worker: usize) -> bool {
        !self.workers[worker].in_flight.is_empty()
    }

    /// Whether looking for answers is cheaper than to be woken by them: workers leave a processor for it, or would have
    /// to wait for one anyway.
    pub(crate) fn may_look(&self) -> bool {
        let is_short = self.run_time.is_some() && 2 * self.usual <= SWITCHING;
        is_short || self.workers.total().busy < self.sizing.processors
    }

    /// Those who wait for room in the queue.
    pub(crate) fn waiting_for_room(&self) -> usize {
        self.admission.len()
    }

    fn occupancy(&self) -> Occupancy {
        let total = self.workers.total();
        let mut occupancy = Occupancy {
            waiting: self.queue.len() + total.waiting,
            bytes: self.queue.bytes() + total.waiting_bytes as u64,
            idle: 0,
        };
        if self.queue.is_empty() {
            occupancy.idle = total.idle_lanes;
        }
        // Another worker is started for what none is free for, as long as there may be more.
        occupancy.idle = occupancy.idle.max(self.lanes_to_grow());
        occupancy
    }

    /// The bound that is in the way of a newcomer, who goes behind those that wait and are not of a lower priority.
    fn bound_hit(&self, priority: i32, bytes: Option<usize>) -> Option<QueueBound> {
        let bytes = match self.admission.first() {
            Some((first, waits)) if first >= priority => waits.bytes,
            _ => bytes,
        };
        self.admission.bound_hit(bytes, || self.occupancy())
    }

    /// Whether a task could be started at once.
    pub(crate) fn has_idle_lane(&self) -> bool {
        self.workers.total().idle_lanes > 0
    }

    /// Whether a task would be accepted. `bytes` is the size of its frame, if that is known.
    pub(crate) fn admit(&self, priority: i32, bytes: Option<usize>) -> Result<(), Refusal> {
        if self.phase != Phase::Open {
            return Err(Refusal::Closed);
        }
        self.bound_hit(priority, bytes)
            .map_or(Ok(()), |bound| Err(Refusal::Full(bound)))
    }

    /// Accepts a task and gives its id. `weight` is what it counts for in a worker's life, `bytes` the size of its
    /// frame.
    pub(crate) fn submit(
        &mut self,
        priority: i32,
        weight: u32,
        bytes: usize,
        payload: P,
    ) -> Result<u64, Refusal> {
        self.admit(priority, Some(bytes))?;
        Ok(self.take_in(priority, weight, bytes, payload))
    }

    /// Accepts a task, or has it wait for its turn where there is no room, which the `true` beside its id says.
    pub(crate) fn submit_or_wait(
        &mut self,
        priority: i32,
        weight: u32,
        bytes: usize,
        payload: P,
    ) -> Result<(u64, bool), Refusal> {
        match self.admit(priority, Some(bytes)) {
            Err(Refusal::Full(_)) => {
                let id = self.new_id();
                let waits = Waits {
                    weight,
                    bytes: Some(bytes),
                    payload,
                };
                self.admission.join(priority, id, waits);
                Ok((id, true))
            }
            Err(refusal) => Err(refusal),
            Ok(()) => Ok((self.take_in(priority, weight, bytes, payload), false)),
        }
    }

    fn take_in(&mut self, priority: i32, weight: u32, bytes: usize, payload: P) -> u64 {
        let id = self.new_id();
        let task = Queued {
            id,
            weight,
            bytes,
            payload,
        };
        self.accept(priority, task);
        self.dispatch();
        id
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn accept(&mut self, priority: i32, task: Queued<P>) {
        self.queue.push(priority, task);
        self.priorities = self.priorities.and(priority);
        if self.priorities == Priorities::Different && !self.has_idle_lane() {
            self.recall_lower(priority);
        }
    }

    /// Lets in whose turn it is, if there is room; `false` when nobody came in.
    fn let_in(&mut self) -> bool {
        if self.phase != Phase::Open
            || self.admission.first().is_none()
            || self.bound_hit(i32::MIN, None).is_some()
        {
            return false;
        }
        let Some((priority, id, waits)) = self.admission.pop() else {
            return false;
        };
        let Waits {
            weight,
            bytes,
            payload,
        } = waits;
        self.actions.push_back(Action::Admitted {
            payload: payload.clone(),
        });
        match bytes {
            Some(bytes) => {
                let task = Queued {
                    id,
                    weight,
                    bytes,
                    payload,
                };
                self.accept(priority, task);
            }
            None => self.admission.offer(id),
        }
        true
    }

    /// Those who wait for room that will never be.
    pub(crate) fn refuse_waiting(&mut self) -> Vec<P> {
        self.admission.drain()
    }

    /// The worker has answered a task, which took so long. `None` when it was not waiting for that one. The payload
    /// is `None` when the task's outcome was settled before.
    pub(crate) fn answered(
        &mut self,
        worker: usize,
        id: u64,
        run_time: Option<Duration>,
    ) -> Option<Option<P>> {
        let mut answering = self.workers.edit(worker);
        let task = answering.in_flight.remove(id)?;
        answering.held = false;
        drop(answering);
        if let Some(run_time) = run_time {
            self.learn(run_time);
        }
        self.unblock(worker);
        self.after_task(worker);
        self.has_answers = true;
        Some((!task.is_settled()).then_some(task.payload))
    }

    /// A task at a worker ended before it could be sent.
    pub(crate) fn forget(&mut self, worker: usize, id: u64) {
        self.workers.edit(worker).in_flight.remove(id);
        self.unblock(worker);
        self.after_task(worker);
        self.dispatch();
    }

    /// What `worker` was sent first of all that it has not answered.
    pub(crate) fn front(&self, worker: usize) -> Option<(u64, &P)> {
        self.workers[worker]
            .in_flight
            .iter()
            .next()
            .map(|task| (task.id, &task.payload))
    }

    /// The payload of a task at a worker, to give it a part of its result.
    pub(crate) fn payload(&self, worker: usize, id: u64) -> Option<&P> {
        self.workers[worker].in_flight.get(id).map(|task| &task.payload)
    }

    /// Whether a task at `worker` may have started, given the last that did in each of its lanes.
    pub(crate) fn may_have_started(&self, worker: usize, id: u64, last: &[u64]) -> bool {
        self.workers[worker].in_flight.may_have_started(id, last)
    }

    /// Whether a task at `worker` shall be stopped.
    pub(crate) fn is_stopping(&self, worker: usize, id: u64) -> bool {
        self.workers[worker]
            .in_flight
            .get(id)
            .is_some_and(Sent::is_stopping)
    }

    /// What `worker` was sent and has not answered, but for tasks that are being stopped.
    pub(crate) fn tasks_at(&self, worker: usize) -> impl Iterator<Item = (u64, &P)> {
        let tasks = self.workers[worker].in_flight.iter();
        tasks
            .filter(|task| !task.is_stopping())
            .map(|task| (task.id, &task.payload))
    }

    /// The worker has given back tasks that had not started.
    pub(crate) fn recalled(&mut self, worker: usize, ids: &[u64]) {
        self.workers.edit(worker).recalling = false;
        for &id in ids {
            let mut giving = self.workers.edit(worker);
            if let Some(task) = giving.in_flight.remove(id) {
                if let Some(budget) = &mut giving.budget {
                    *budget += u64::from(task.weight);
                }
                drop(giving);
                self.back(task);
            }
        }
        self.unblock(worker);
        self.after_task(worker);
        self.dispatch();
    }

    /// The process is gone. `started` says which tasks it had begun: those that have not ended come back, with the
    /// element that each had reached. The rest goes back to the queue.
    pub(crate) fn lost(&mut self, worker: usize, started: &[Started]) -> Vec<(P, u64)> {
        let mut gone = self.workers.edit(worker);
        gone.recalling = false;
        gone.held = false;
        gone.state = WorkerState::Gone;
        let in_flight: Vec<Sent<P>> = gone.in_flight.drain().collect();
        drop(gone);
        self.restaff = true;
        let mut lost = Vec::new();
        for task in in_flight {
            match started.iter().find(|started| started.id == task.id) {
                _ if task.is_settled() => {}
                Some(started) => lost.push((task.payload, started.element)),
                None => self.back(task),
            }
        }
        self.dispatch();
        lost
    }

    /// Puts a task, or the rest of one that was lost half-way, back to where it was in the order.
    pub(crate) fn resubmit(&mut self, priority: i32, id: u64, weight: u32, bytes: usize, payload: P) {
        let task = Queued {
            id,
            weight,
            bytes,
            payload,
        };
        self.queue.push(priority, task);
        self.dispatch();
    }

    /// A task that was sent and not started goes back to its place in the queue, unless nobody wants it.
    fn back(&mut self, task: Sent<P>) {
        if task.is_settled() {
            return;
        }
        let Sent {
            id,
            priority,
            weight,
            bytes,
            payload,
            ..
        } = task;
        let task = Queued {
            id,
            weight,
            bytes,
            payload,
        };
        self.queue.push(priority, task);
    }

    /// Nobody wants the task any more. It has ended when this returns; what is at a worker is stopped or discarded.
    /// Where it is `polite`, it has time to end by itself.
    pub(crate) fn cancel(&mut self, priority: i32, id: u64, polite: bool) -> Cancelled<P> {
        if let Some(payload) = self.queue.remove(priority, id) {
            self.dispatch();
            return Cancelled::Queued(payload);
        }
        if let Some(payload) = self.admission.leave(priority, id) {
            self.dispatch();
            return Cancelled::Queued(payload);
        }
        let Some(worker) = self.worker_of(id) else {
            return Cancelled::Unknown;
        };
        let stop = Stop::Yes {
            settled: true,
            polite,
        };
        match self.stop(worker, id, stop) {
            Some(payload) => Cancelled::InFlight(payload),
            None => Cancelled::Unknown,
        }
    }

    /// A task at a worker shall be stopped. Gives its payload where its outcome was open.
    pub(crate) fn stop(&mut self, worker: usize, id: u64, stop: Stop) -> Option<P> {
        let mut stopping = self.workers.edit(worker);
        let task = stopping.in_flight.get(id)?;
        if task.is_settled() {
            return None;
        }
        let was_stopping = task.is_stopping();
        let payload = stopping.in_flight.stop(id, stop)?.payload.clone();
        drop(stopping);
        if !was_stopping {
            self.actions.push_back(Action::Abort { worker, id });
            // The worker knows best whether the task has started: it gives it back, or it must be stopped.
            self.recall(worker);
        }
        Some(payload)
    }

    /// The worker that a task was sent to and has not answered, if its outcome is open.
    pub(crate) fn worker_of(&self, id: u64) -> Option<usize> {
        self.workers
            .iter()
            .position(|worker| worker.in_flight.get(id).is_some_and(|task| !task.is_settled()))
    }

    /// Takes no more tasks; those that were accepted are done.
    pub(crate) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
            self.restaff = true;
        }
        self.dispatch();
    }

    /// Ends everything: what was queued, and what was at a worker.
    pub(crate) fn terminate(&mut self) -> (Vec<P>, Vec<P>) {
        self.phase = Phase::Closed;
        for action in self.actions.drain(..) {
            // Nobody has begun to start it, and nobody will.
            if let Action::Start { worker, .. } = action {
                self.workers.edit(worker).state = WorkerState::Gone;
            }
        }
        let queued = self.queue.drain();
        let mut sent = Vec::new();
        for index in 0..self.workers.len() {
            let mut worker = self.workers.edit(index);
            if worker.state != WorkerState::Gone {
                worker.state = WorkerState::Ending;
            }
            let tasks = worker.in_flight.drain().filter(|task| !task.is_settled());
            sent.extend(tasks.map(|task| task.payload));
        }
        (queued, sent)
    }

    /// Gives up what waits in the queue, and who waits for room in it, for nobody can run it.
    pub(crate) fn give_up(&mut self) -> Vec<P> {
        let mut queued = self.queue.drain();
        queued.extend(self.admission.drain());
        // Nobody is missed but those that are always there.
        self.fit();
        self.dispatch();
        queued
    }

    fn learn(&mut self, run_time: Duration) {
        let average = match self.run_time {
            None => run_time,
            Some(average) => (average * 7 + run_time) / 8,
        };
        self.run_time = Some(average);
        self.longest = run_time.max(self.longest - self.longest / REMEMBERED);
        self.usual = (self.usual * 7 + run_time.min(4 * self.usual + SWITCHING / 4)) / 8;
        let fitting = WAITING_WORK.as_nanos() / average.as_nanos().max(1);
        self.depth = usize::try_from(fitting).unwrap_or(DEEPEST).clamp(1, DEEPEST);
    }

    /// Stops a task that was not given back, and so runs, once nothing waits behind it. One that listens has its time
    /// to end by itself, until [`unresponsive`](Self::unresponsive).
    fn unblock(&mut self, worker: usize) {
        let stuck = &self.workers[worker];
        if self.sizing.lanes > 1 || !stuck.is_doomed() || !stuck.is_up() || stuck.recalling {
            return;
        }
        let Some(task) = stuck.in_flight.iter().find(|task| task.is_stopping()) else {
            return;
        };
        if stuck.in_flight.len() > 1 {
            // What was still on its way to the worker when that looked.
            self.recall(worker);
        } else if !matches!(task.stop, Stop::Yes { polite: true, .. }) {
            self.stop_worker(worker);
        }
    }

    /// The task `id`, which shall be stopped, has stood at the worker for too long: a recall is not answered, the task
    /// listens and does not end, or it blocks a worker that it shares. It is stopped the hard way.
    ///
    /// One that has not started never will, and is no reason to end another that runs in front of it. `true` then: it
    /// is to be looked at again.
    pub(crate) fn unresponsive(&mut self, worker: usize, id: u64, has_started: impl Fn(u64) -> bool) -> bool {
        let stuck = &self.workers[worker];
        if !stuck.is_up() || !stuck.in_flight.get(id).is_some_and(Sent::is_stopping) {
            return false;
        }
        let runs_another = || self.tasks_at(worker).any(|(other, _)| has_started(other));
        if !has_started(id) && runs_another() {
            return true;
        }
        self.stop_worker(worker);
        self.dispatch();
        false
    }

    fn stop_worker(&mut self, worker: usize) {
        self.workers.edit(worker).state = WorkerState::Ending;
        self.restaff = true;
        self.actions.push_back(Action::Stop { worker });
    }

    /// Takes back what waits at workers and is of a lower priority than a task that waits here.
    fn recall_lower(&mut self, priority: i32) {
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            let is_lower = worker
                .in_flight
                .iter()
                .skip(self.sizing.lanes)
                .any(|task| task.priority < priority);
            if worker.is_up() && is_lower {
                self.recall(index);
            }
        }
    }

    fn recall(&mut self, worker: usize) {
        if !self.workers[worker].recalling {
            self.workers.edit(worker).recalling = true;
            self.actions.push_back(Action::Recall { worker });
        }
    }

    /// Sends what can be sent, lets in who waits, recalls what waits in the wrong place, and brings the staff to what it
    /// should be, which each of them may change.
    fn dispatch(&mut self) {
        // What a closing pool needs changes with every task.
        self.restaff |= self.phase == Phase::Closing;
        loop {
            self.staff();
            self.send_queued();
            while self.let_in() {
                self.send_queued();
            }
            if self.queue.is_empty() {
                self.balance();
            }
            self.grow();
            if !self.restaff || self.phase == Phase::Closed {
                return;
            }
        }
    }

    fn send_queued(&mut self) {
        while !self.queue.is_empty() {
            let Some((worker, urgent)) = self.pick() else {
                break;
            };
            let Some((priority, task)) = self.queue.pop() else {
                break;
            };
            self.send(worker, priority, task, urgent);
        }
    }

    fn send(&mut self, worker: usize, priority: i32, task: Queued<P>, urgent: bool) {
        let Queued {
            id,
            weight,
            bytes,
            payload,
        } = task;
        let sent = Sent {
            id,
            priority,
            weight,
            bytes,
            payload: payload.clone(),
            stop: Stop::No,
        };
        self.workers.edit(worker).in_flight.push(sent);
        self.spend(worker, weight);
        self.actions.push_back(Action::Send {
            worker,
            id,
            payload,
            urgent,
        });
    }

    /// The worker that should get the next task: one with a free lane, else the one with the fewest tasks that has
    /// room for one more to wait. `true` when it can start at once.
    fn pick(&self) -> Option<(usize, bool)> {
        let lanes = self.sizing.lanes;
        if let Some(busy) = self.gather() {
            return Some((busy, false));
        }
        let (index, fewest) = self.workers.least_loaded(0)?;
        // Where that one is full, the others are, but for those whose tasks are smaller.
        if self.has_room(index) {
            return Some((index, fewest < lanes));
        }
        let open = (0..self.workers.len()).filter(|&index| {
            let worker = &self.workers[index];
            worker.takes_tasks() && self.has_room(index)
        });
        let index = open.min_by_key(|&index| self.workers[index].in_flight.len())?;
        Some((index, self.workers[index].in_flight.len() < lanes))
    }

    /// Whether the next task may run, or wait, at a worker that takes tasks.
    fn has_room(&self, worker: usize) -> bool {
        let lanes = self.sizing.lanes;
        let worker = &self.workers[worker];
        let len = worker.in_flight.len();
        len < lanes
            || !worker.held
                && len < lanes + self.depth
                && worker.in_flight.bytes() + self.queue.front_bytes() <= WAITING_BYTES
    }

    /// The busy worker at which the next task will have its turn before an idle one has woken up. To wake another is
    /// of no use where the processors are busy.
    fn gather(&self) -> Option<usize> {
        if !self.gathers() || self.workers.total().busy < self.sizing.processors || !self.has_idle_lane() {
            return None;
        }
        let (index, len) = self
            .workers
            .least_loaded(u16::try_from(self.sizing.lanes).ok()?)?;
        let bytes = self.workers[index].in_flight.bytes() + self.queue.front_bytes();
        let is_near = len < self.at_hand() && bytes <= GATHERED_BYTES && self.has_room(index);
        // What waits there takes room in the queue.
        let fits = || {
            let bytes = self.queue.front_bytes();
            let occupancy = || Occupancy {
                idle: 0,
                ..self.occupancy()
            };
            self.admission.bound_hit(Some(bytes), occupancy).is_none()
        };
        (is_near && fits()).then_some(index)
    }

    /// Whether short tasks may wait at busy workers while others are idle.
    fn gathers(&self) -> bool {
        self.size > self.sizing.processors
            && self.priorities != Priorities::Different
            && self.run_time.is_some()
            && self.longest <= WAKING
    }

    /// How many tasks a worker does while another wakes up.
    fn at_hand(&self) -> usize {
        let run_time = self.run_time.unwrap_or(WAKING).as_nanos().max(1);
        usize::try_from(WAKING.as_nanos() / run_time).unwrap_or(usize::MAX)
    }

    /// What `worker` runs has turned out to be long: what waits there is taken back.
    pub(crate) fn rescue(&mut self, worker: usize) {
        if self.has_waiting(worker) {
            self.workers.edit(worker).held = true;
            self.recall(worker);
            self.dispatch();
        }
    }

    /// Whether tasks wait at `worker`.
    pub(crate) fn has_waiting(&self, worker: usize) -> bool {
        let busy = &self.workers[worker];
        busy.is_up() && busy.waiting(self.sizing.lanes) > 0
    }

    /// With nothing queued and a worker idle, takes back what waits at a busy one.
    fn balance(&mut self) {
        if self.workers.len() < 2 || !self.has_idle_lane() {
            return;
        }
        let near = if self.gathers() { self.at_hand() } else { 0 };
        if let Some((fullest, waiting)) = self.workers.most_waiting()
            && waiting > near
        {
            self.workers.edit(fullest).held = true;
            self.recall(fullest);
        }
    }
}

/// Room for tasks to come.
#[cfg(any(feature = "tower", test))]
impl<P: Clone> State<P> {
    /// Keeps room for a task to come; `false` when there is none.
    pub(crate) fn keep_room(&mut self) -> Result<bool, Refusal> {
        match self.admit(0, None) {
            Err(Refusal::Full(_)) => Ok(false),
            Err(refusal) => Err(refusal),
            Ok(()) => {
                self.admission.keep();
                Ok(true)
            }
        }
    }

    /// Has `payload` wait until room is kept for a task to come. `id` is that of an earlier wait, whose place it takes,
    /// or 0.
    pub(crate) fn wait_for_room(&mut self, id: u64, payload: P) -> u64 {
        let id = if id == 0 { self.new_id() } else { id };
        let waits = Waits {
            weight: 0,
            bytes: None,
            payload,
        };
        self.admission.join(0, id, waits);
        // In its old place it may be in front of one for which there was no room.
        self.dispatch();
        id
    }

    /// Whether the room that `id` has waited for is kept for it.
    pub(crate) fn claim_room(&mut self, id: u64) -> bool {
        self.admission.claim(id)
    }

    /// Accepts a task for which room was kept.
    pub(crate) fn submit_kept(
        &mut self,
        priority: i32,
        weight: u32,
        bytes: usize,
        payload: P,
    ) -> Result<u64, Refusal> {
        self.admission.release();
        if self.phase != Phase::Open {
            return Err(Refusal::Closed);
        }
        Ok(self.take_in(priority, weight, bytes, payload))
    }

    /// Gives room that was kept to others.
    pub(crate) fn release_room(&mut self) {
        self.admission.release();
        self.dispatch();
    }

    /// Gives room that `id` was offered and has not claimed to others.
    pub(crate) fn take_room_back(&mut self, id: u64) {
        if self.admission.take_back(id) {
            self.dispatch();
        }
    }

    /// Nobody wants the room any more that `id` waits for or was offered.
    pub(crate) fn renounce_room(&mut self, id: u64) {
        if self.admission.leave(0, id).is_some() || self.admission.take_back(id) {
            self.dispatch();
        }
    }
}

#[cfg(test)]
mod tests;
