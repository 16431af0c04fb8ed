//! Everything that the pool decides: which task goes to which worker, when, and what becomes of it.
//!
//! Pure and synchronous: events go in as method calls, [`Action`]s come out. It knows nothing of processes, sockets,
//! futures or time, so that its promises are tested without any:
//!
//! - every task that was accepted leaves exactly once: answered, lost, cancelled or drained;
//! - tasks start in order of priority, then of submission;
//! - no task waits at a busy worker while another worker is idle: it is recalled;
//! - a worker that is about to be killed is sent nothing, and what it had not started goes back to the queue.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::in_flight::{InFlight, Sent};
use crate::shared::ledger::{MOST_WAITING, Started};

/// Unstarted tasks that a worker holds at most, so that the way there and back is hidden.
const DEEPEST: usize = MOST_WAITING;
/// How much work the tasks that wait at a worker should be.
const WAITING_WORK: Duration = Duration::from_micros(200);
/// Bytes that tasks at a busy worker may add up to before it is sent no more.
const WAITING_BYTES: usize = 1 << 20;

/// What the owner of the state must do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action<P> {
    /// Send a task.
    Send {
        worker: usize,
        id: u64,
        payload: P,
        urgent: bool,
    },
    /// Ask for every task that has not started.
    Recall { worker: usize },
    /// Stop an async task that shares its worker with others.
    Abort { worker: usize, id: u64 },
    /// Kill the worker: the one task that it runs is cancelled, and it holds no other.
    Kill { worker: usize },
    /// Tell the worker that no more tasks come.
    Shutdown { worker: usize },
}

/// Why a task was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    Full { capacity: usize },
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

/// What was at a worker that is gone.
#[derive(Debug)]
pub(crate) struct Loss<P> {
    /// Tasks that had started, with the element that each had reached.
    pub(crate) lost: Vec<(P, u64)>,
}

/// A worker as the pool sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// Being started, or waiting to be.
    Starting,
    /// Takes tasks.
    Ready,
    /// Will end, and takes no more tasks.
    Ending,
    /// Has ended and is not replaced.
    Gone,
}

#[derive(Debug)]
struct Worker<P> {
    state: WorkerState,
    in_flight: InFlight<P>,
    recalling: bool,
    /// What waited here was recalled for an idle worker: nothing is sent ahead until the running task is answered.
    held: bool,
}

impl<P> Worker<P> {
    /// Sent tasks that cannot have started, for the lanes in front of them are taken.
    fn waiting(&self, lanes: usize) -> usize {
        self.in_flight.len().saturating_sub(lanes)
    }

    /// Whether it may be sent tasks now.
    fn takes_tasks(&self) -> bool {
        self.state == WorkerState::Ready && !self.recalling && !self.is_doomed()
    }

    /// Whether a task that is cancelled stands in the way of new ones.
    fn is_doomed(&self) -> bool {
        self.in_flight.iter().any(|task| task.cancelled)
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

#[derive(Debug)]
struct Queued<P> {
    id: u64,
    bytes: usize,
    payload: P,
}

/// Tasks that wait, by priority, then by id, which is the order of submission.
#[derive(Debug)]
struct Queue<P> {
    levels: BTreeMap<Reverse<i32>, VecDeque<Queued<P>>>,
    len: usize,
}

impl<P> Queue<P> {
    fn push(&mut self, priority: i32, task: Queued<P>) {
        let level = self.levels.entry(Reverse(priority)).or_default();
        // A task that comes back goes to its old place.
        if level.back().is_none_or(|last| last.id < task.id) {
            level.push_back(task);
        } else {
            let index = level.partition_point(|other| other.id < task.id);
            level.insert(index, task);
        }
        self.len += 1;
    }

    fn pop(&mut self) -> Option<(i32, Queued<P>)> {
        let mut level = self.levels.first_entry()?;
        let priority = level.key().0;
        let task = level.get_mut().pop_front();
        if level.get().is_empty() {
            level.remove();
        }
        self.len -= 1;
        task.map(|task| (priority, task))
    }

    fn front_bytes(&self) -> usize {
        self.levels
            .first_key_value()
            .and_then(|(_, level)| level.front())
            .map_or(0, |task| task.bytes)
    }

    fn remove(&mut self, priority: i32, id: u64) -> Option<P> {
        let level = self.levels.get_mut(&Reverse(priority))?;
        let index = level.binary_search_by_key(&id, |task| task.id).ok()?;
        let task = level.remove(index)?;
        if level.is_empty() {
            self.levels.remove(&Reverse(priority));
        }
        self.len -= 1;
        Some(task.payload)
    }

    fn drain(&mut self) -> Vec<P> {
        self.len = 0;
        std::mem::take(&mut self.levels)
            .into_values()
            .flatten()
            .map(|task| task.payload)
            .collect()
    }
}

/// The pool's state. `P` is what a task carries.
#[derive(Debug)]
pub(crate) struct State<P> {
    phase: Phase,
    next_id: u64,
    /// Whether tasks have come with different priorities, so that a later one may have to go first.
    priorities: Priorities,
    queue: Queue<P>,
    workers: Vec<Worker<P>>,
    lanes: usize,
    capacity: Option<usize>,
    /// Unstarted tasks that a worker may hold now.
    depth: usize,
    /// A moving average of run times.
    run_time: Option<Duration>,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone> State<P> {
    /// `lanes` is how many tasks a worker runs at a time; `capacity` how many may wait.
    pub(crate) fn new(workers: usize, lanes: usize, capacity: Option<usize>) -> Self {
        let worker = || Worker {
            state: WorkerState::Starting,
            in_flight: InFlight::default(),
            recalling: false,
            held: false,
        };
        Self {
            phase: Phase::Open,
            next_id: 1,
            priorities: Priorities::None,
            queue: Queue {
                levels: BTreeMap::new(),
                len: 0,
            },
            workers: (0..workers).map(|_| worker()).collect(),
            lanes,
            capacity,
            depth: 1,
            run_time: None,
            actions: VecDeque::new(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// The next thing to do.
    pub(crate) fn next_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// Tasks that have not started, in the queue or at a worker.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len
            + self
                .workers
                .iter()
                .map(|worker| worker.waiting(self.lanes))
                .sum::<usize>()
    }

    /// Tasks that have started, as far as can be told from here.
    pub(crate) fn running(&self) -> usize {
        self.workers
            .iter()
            .map(|worker| worker.in_flight.len().min(self.lanes))
            .sum()
    }

    /// Tasks that have been sent to `worker` and not answered.
    pub(crate) fn in_flight(&self, worker: usize) -> usize {
        self.workers[worker].in_flight.len()
    }

    pub(crate) fn worker_state(&self, worker: usize) -> WorkerState {
        self.workers[worker].state
    }

    pub(crate) fn has_room(&self) -> bool {
        match self.capacity {
            // A task that can start at once does not wait.
            Some(capacity) => self.queued() < capacity || (self.queue.len == 0 && self.has_idle_lane()),
            None => true,
        }
    }

    fn has_idle_lane(&self) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.takes_tasks() && worker.in_flight.len() < self.lanes)
    }

    /// Whether a task would be accepted.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        if self.phase != Phase::Open {
            return Err(Refusal::Closed);
        }
        match self.capacity {
            Some(capacity) if !self.has_room() => Err(Refusal::Full { capacity }),
            _ => Ok(()),
        }
    }

    /// Accepts a task and gives its id. `bytes` is the size of its frame.
    pub(crate) fn submit(&mut self, priority: i32, bytes: usize, payload: P) -> Result<u64, Refusal> {
        self.admit()?;
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push(priority, Queued { id, bytes, payload });
        self.priorities = self.priorities.and(priority);
        if self.priorities == Priorities::Different && !self.has_idle_lane() {
            self.recall_lower(priority);
        }
        self.dispatch();
        Ok(id)
    }

    /// The worker is ready for tasks.
    pub(crate) fn ready(&mut self, worker: usize) {
        self.workers[worker].state = WorkerState::Ready;
        self.dispatch();
    }

    /// The worker has answered a task, which took so long. `None` when it was not waiting for that one. The payload
    /// is `None` when the task was cancelled, for then it has ended already.
    pub(crate) fn answered(
        &mut self,
        worker: usize,
        id: u64,
        run_time: Option<Duration>,
    ) -> Option<Option<P>> {
        let task = self.workers[worker].in_flight.remove(id)?;
        self.workers[worker].held = false;
        if let Some(run_time) = run_time {
            self.learn(run_time);
        }
        self.unblock(worker);
        self.dispatch();
        Some((!task.cancelled).then_some(task.payload))
    }

    /// A task at a worker ended before it could be sent.
    pub(crate) fn forget(&mut self, worker: usize, id: u64) {
        self.workers[worker].in_flight.remove(id);
        self.unblock(worker);
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

    /// The worker has given back tasks that had not started.
    pub(crate) fn recalled(&mut self, worker: usize, ids: &[u64]) {
        self.workers[worker].recalling = false;
        for &id in ids {
            if let Some(task) = self.workers[worker].in_flight.remove(id)
                && !task.cancelled
            {
                self.queue.push(
                    task.priority,
                    Queued {
                        id,
                        bytes: task.bytes,
                        payload: task.payload,
                    },
                );
            }
        }
        self.unblock(worker);
        self.dispatch();
    }

    /// The worker is gone. `started` says which tasks it had begun; where that is unknown, those are taken that may
    /// have been. The rest goes back to the queue. `replaced` says whether another worker will take its place.
    pub(crate) fn lost(&mut self, worker: usize, started: Option<&[Started]>, replaced: bool) -> Loss<P> {
        let lanes = self.lanes;
        let gone = &mut self.workers[worker];
        gone.recalling = false;
        gone.held = false;
        gone.state = if replaced {
            WorkerState::Starting
        } else {
            WorkerState::Gone
        };
        let mut loss = Loss { lost: Vec::new() };
        let mut back = Vec::new();
        for (position, task) in gone.in_flight.drain().enumerate() {
            let element = match started {
                Some(started) => started
                    .iter()
                    .find(|started| started.id == task.id)
                    .map(|started| started.element),
                None => (position < lanes).then_some(0),
            };
            match element {
                _ if task.cancelled => {}
                Some(element) => loss.lost.push((task.payload, element)),
                None => back.push(task),
            }
        }
        for task in back {
            self.queue.push(
                task.priority,
                Queued {
                    id: task.id,
                    bytes: task.bytes,
                    payload: task.payload,
                },
            );
        }
        self.dispatch();
        loss
    }

    /// Puts the rest of a task that was lost half-way back to where it was in the order.
    pub(crate) fn resubmit(&mut self, priority: i32, id: u64, bytes: usize, payload: P) {
        self.queue.push(priority, Queued { id, bytes, payload });
        self.dispatch();
    }

    /// Nobody wants the task any more. It has ended when this returns; what is at a worker is stopped or discarded.
    pub(crate) fn cancel(&mut self, priority: i32, id: u64) -> Cancelled<P> {
        if let Some(payload) = self.queue.remove(priority, id) {
            self.dispatch();
            return Cancelled::Queued(payload);
        }
        for worker in 0..self.workers.len() {
            let Some(task) = self.workers[worker].in_flight.get_mut(id) else {
                continue;
            };
            if std::mem::replace(&mut task.cancelled, true) {
                return Cancelled::Unknown;
            }
            let payload = task.payload.clone();
            if self.lanes > 1 {
                self.actions.push_back(Action::Abort { worker, id });
            }
            // The worker knows best whether the task has started: it gives it back, or it must be stopped.
            self.recall(worker);
            return Cancelled::InFlight(payload);
        }
        Cancelled::Unknown
    }

    /// The worker that a task was sent to and has not answered.
    pub(crate) fn worker_of(&self, id: u64) -> Option<usize> {
        self.workers
            .iter()
            .position(|worker| worker.in_flight.get(id).is_some())
    }

    /// Takes no more tasks; those that were accepted are done.
    pub(crate) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
        }
        self.dispatch();
    }

    /// Ends everything: what was queued, and what was at a worker.
    pub(crate) fn terminate(&mut self) -> (Vec<P>, Vec<P>) {
        self.phase = Phase::Closed;
        let queued = self.queue.drain();
        let mut sent = Vec::new();
        for worker in &mut self.workers {
            if worker.state != WorkerState::Gone {
                worker.state = WorkerState::Ending;
            }
            sent.extend(
                worker
                    .in_flight
                    .drain()
                    .filter(|task| !task.cancelled)
                    .map(|task| task.payload),
            );
        }
        self.actions.clear();
        (queued, sent)
    }

    /// Whether a worker that is gone must be replaced.
    pub(crate) fn wants_workers(&self) -> bool {
        match self.phase {
            Phase::Open => true,
            Phase::Closing => self.queue.len > 0,
            Phase::Closed => false,
        }
    }

    /// Whether a worker runs or will run.
    pub(crate) fn has_live_worker(&self) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.state == WorkerState::Ready)
    }

    /// The worker ends and is not replaced.
    pub(crate) fn gone(&mut self, worker: usize) {
        self.workers[worker].state = WorkerState::Gone;
    }

    fn learn(&mut self, run_time: Duration) {
        let average = match self.run_time {
            None => run_time,
            Some(average) => (average * 7 + run_time) / 8,
        };
        self.run_time = Some(average);
        let fitting = WAITING_WORK.as_nanos() / average.as_nanos().max(1);
        self.depth = usize::try_from(fitting).unwrap_or(DEEPEST).clamp(1, DEEPEST);
    }

    /// Stops a cancelled task that was not given back, and so runs, once nothing waits behind it.
    fn unblock(&mut self, worker: usize) {
        let stuck = &mut self.workers[worker];
        if self.lanes > 1 || stuck.state != WorkerState::Ready || stuck.recalling || !stuck.is_doomed() {
            return;
        }
        if stuck.in_flight.len() > 1 {
            // What was still on its way to the worker when that looked.
            self.recall(worker);
        } else {
            stuck.state = WorkerState::Ending;
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// A cancelled task at `worker` that has not been given back, stopped or answered.
    pub(crate) fn doomed(&self, worker: usize) -> Option<u64> {
        self.workers[worker]
            .in_flight
            .iter()
            .find(|task| task.cancelled)
            .map(|task| task.id)
    }

    /// The cancelled task `id` has stood at the worker for too long: a recall is not answered, or the task blocks a
    /// worker that it shares. It is stopped the hard way.
    pub(crate) fn unresponsive(&mut self, worker: usize, id: u64) {
        let stuck = &mut self.workers[worker];
        let stands = stuck.in_flight.get(id).is_some_and(|task| task.cancelled);
        if stands && stuck.state == WorkerState::Ready {
            stuck.state = WorkerState::Ending;
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// Takes back what waits at workers and is of a lower priority than a task that waits here.
    fn recall_lower(&mut self, priority: i32) {
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            let is_lower = worker
                .in_flight
                .iter()
                .skip(self.lanes)
                .any(|task| task.priority < priority);
            if worker.state == WorkerState::Ready && is_lower {
                self.recall(index);
            }
        }
    }

    fn recall(&mut self, worker: usize) {
        if !self.workers[worker].recalling {
            self.workers[worker].recalling = true;
            self.actions.push_back(Action::Recall { worker });
        }
    }

    /// Sends what can be sent, recalls what waits in the wrong place, and ends what is done.
    fn dispatch(&mut self) {
        while self.queue.len > 0 {
            let Some((worker, urgent)) = self.pick() else {
                break;
            };
            let Some((priority, Queued { id, bytes, payload })) = self.queue.pop() else {
                break;
            };
            let sent = Sent {
                id,
                priority,
                bytes,
                payload: payload.clone(),
                cancelled: false,
            };
            self.workers[worker].in_flight.push(sent);
            self.actions.push_back(Action::Send {
                worker,
                id,
                payload,
                urgent,
            });
        }
        if self.queue.len == 0 {
            self.balance();
        }
        self.finish();
    }

    /// The worker that should get the next task: one with a free lane, else the one with the fewest tasks that has
    /// room for one more to wait. `true` when it can start at once.
    fn pick(&self) -> Option<(usize, bool)> {
        let mut best: Option<(usize, usize)> = None;
        for (index, worker) in self.workers.iter().enumerate() {
            if !worker.takes_tasks() {
                continue;
            }
            let len = worker.in_flight.len();
            if len == 0 {
                return Some((index, true));
            }
            let is_full = len >= self.lanes
                && (worker.held
                    || len >= self.lanes + self.depth
                    || worker.in_flight.bytes() + self.queue.front_bytes() > WAITING_BYTES);
            if !is_full && best.is_none_or(|(_, fewest)| len < fewest) {
                best = Some((index, len));
            }
        }
        best.map(|(index, len)| (index, len < self.lanes))
    }

    /// With nothing queued and a worker idle, takes back what waits at a busy one.
    fn balance(&mut self) {
        if self.workers.len() < 2 || !self.has_idle_lane() {
            return;
        }
        let fullest = (0..self.workers.len())
            .filter(|&index| self.workers[index].state == WorkerState::Ready)
            .max_by_key(|&index| self.workers[index].waiting(self.lanes));
        if let Some(fullest) = fullest
            && self.workers[fullest].waiting(self.lanes) > 0
        {
            self.workers[fullest].held = true;
            self.recall(fullest);
        }
    }

    /// A closing pool ends its workers as they run out of tasks.
    fn finish(&mut self) {
        if self.phase != Phase::Closing || self.queue.len > 0 {
            return;
        }
        // A worker that is needed for what another may still give back stays.
        if self
            .workers
            .iter()
            .any(|worker| worker.waiting(self.lanes) > 0 || worker.recalling)
        {
            return;
        }
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            if worker.state == WorkerState::Ready && worker.in_flight.is_empty() {
                worker.state = WorkerState::Ending;
                self.actions.push_back(Action::Shutdown { worker: index });
            }
        }
    }
}

#[cfg(test)]
mod tests;
