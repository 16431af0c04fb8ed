//! Which workers there are: how many are wanted, which of them are replaced, and when.
//!
//! Everything follows from the table of workers and the size that is wanted, looked at after every event that changes
//! either; nothing is counted beside it, so that no death and no race can leave a place empty.

use super::{Action, Phase, State, Wear, Worker, WorkerState};

/// How much work in advance the replacement of a worker that has few tasks left is started, by run times so far.
const START_TIME: std::time::Duration = std::time::Duration::from_millis(5);

impl<P: Clone> State<P> {
    /// The worker has been started.
    pub(crate) fn ready(&mut self, worker: usize) {
        // Whether it takes tasks now is for the next look at the staff to say.
        self.workers.edit(worker).state = WorkerState::Standby;
        self.restaff = true;
        self.dispatch();
    }

    /// The process has ended or could not be started, and has no tasks.
    pub(crate) fn gone(&mut self, worker: usize) {
        self.workers.edit(worker).state = WorkerState::Gone;
        self.restaff = true;
        self.dispatch();
    }

    /// The worker should be replaced: it is too old, or has grown too large.
    pub(crate) fn worn(&mut self, worker: usize) {
        self.workers.edit(worker).wear = Wear::Worn;
        self.restaff = true;
        self.dispatch();
    }

    /// The worker has had nothing to do for long. `true` when it is told to end, for fewer are needed.
    pub(crate) fn idle(&mut self, worker: usize) -> bool {
        let idle = &self.workers[worker];
        let is_spare = idle.state == WorkerState::Ready && idle.in_flight.is_empty() && !idle.recalling;
        let least = self.sizing.least.max(self.needed());
        if self.phase != Phase::Open || !is_spare || self.size <= least {
            return false;
        }
        self.size -= 1;
        self.end(worker);
        // There may be more workers again than there are, which may be room.
        self.dispatch();
        true
    }

    /// Whether a worker that is being started is still wanted.
    pub(crate) fn wants(&self, worker: usize) -> bool {
        self.workers[worker].state == WorkerState::Starting && self.wanted() > 0
    }

    /// Whether a worker runs that has tasks or takes them.
    pub(crate) fn has_live_worker(&self) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.is_up() || worker.state == WorkerState::Standby)
    }

    /// Whether a worker is on its way.
    pub(crate) fn is_starting(&self) -> bool {
        self.workers
            .iter()
            .any(|worker| worker.state == WorkerState::Starting)
    }

    /// Processes that are there, or on their way in or out.
    pub(crate) fn processes(&self) -> usize {
        self.count(|worker| worker.state != WorkerState::Gone)
    }

    /// Processes on their way out.
    pub(crate) fn ending(&self) -> usize {
        self.count(|worker| worker.state == WorkerState::Ending)
    }

    /// Workers that there should be now.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Every process that is not gone: its index, its number, how far it is and how many tasks it has.
    pub(crate) fn staffed(&self) -> impl Iterator<Item = (usize, usize, WorkerState, usize)> {
        let workers = self.workers.iter().enumerate();
        workers
            .filter(|(_, worker)| worker.state != WorkerState::Gone)
            .map(|(index, worker)| (index, worker.number, worker.state, worker.in_flight.len()))
    }

    pub(crate) fn worker_state(&self, worker: usize) -> WorkerState {
        self.workers[worker].state
    }

    /// Whether the worker has nothing to do.
    pub(crate) fn is_idle(&self, worker: usize) -> bool {
        self.workers[worker].in_flight.is_empty()
    }

    /// Workers that there should be, now that the pool may be about to end.
    fn wanted(&self) -> usize {
        match self.phase {
            Phase::Open => self.size,
            // What is at workers is done there; only what waits needs others.
            Phase::Closing if !self.queue.is_empty() => self.size.max(1),
            Phase::Closing | Phase::Closed => 0,
        }
    }

    fn count(&self, filter: impl Fn(&Worker<P>) -> bool) -> usize {
        self.workers.iter().filter(|worker| filter(worker)).count()
    }

    /// Tasks that workers may yet be started for, because none is free for them.
    pub(super) fn lanes_to_grow(&self) -> usize {
        if self.size == self.sizing.most {
            return 0;
        }
        (self.sizing.most * self.sizing.lanes).saturating_sub(self.outstanding())
    }

    /// Tasks that have been accepted and not ended.
    fn outstanding(&self) -> usize {
        self.queue.len() + self.workers.total().tasks
    }

    /// Wants as many workers as there are tasks for, within bounds.
    pub(super) fn grow(&mut self) {
        if self.size == self.sizing.most || self.phase == Phase::Closed {
            return;
        }
        let needed = self.needed();
        if needed > self.size {
            self.size = needed;
            self.restaff = true;
        }
    }

    /// Wants no more workers than there are tasks for, beside those that are always there.
    pub(super) fn fit(&mut self) {
        self.size = self.size.min(self.sizing.least.max(self.needed()));
        self.restaff = true;
    }

    /// Workers that can have a task each.
    fn needed(&self) -> usize {
        self.outstanding()
            .div_ceil(self.sizing.lanes)
            .min(self.sizing.most)
    }

    /// A task was sent that counts for so much in the worker's life.
    pub(super) fn spend(&mut self, worker: usize, weight: u32) {
        let (Some(limit), Some(budget)) = (self.sizing.tasks_per_life, self.workers[worker].budget) else {
            return;
        };
        let left = budget.saturating_sub(u64::from(weight));
        let mut spent = self.workers.edit(worker);
        spent.budget = Some(left);
        if left == 0 {
            spent.state = WorkerState::Retiring;
            self.restaff = true;
        } else if spent.wear == Wear::None {
            let run_time = self.run_time.unwrap_or_default().as_nanos().max(1);
            let ahead = u64::try_from(START_TIME.as_nanos() / run_time).unwrap_or(u64::MAX);
            if left <= ahead.clamp(1, (limit / 2).max(1)) {
                spent.wear = Wear::Fading;
                self.restaff = true;
            }
        }
    }

    /// A worker has one task less: it may have done its last.
    pub(super) fn after_task(&mut self, worker: usize) {
        if self.workers[worker].in_flight.is_empty()
            && (self.phase == Phase::Closing || self.workers[worker].state == WorkerState::Retiring)
        {
            self.restaff = true;
        }
    }

    /// Brings the staff to what it should be: those that are worn retire, those that have done their last end, those
    /// that stand by step in, and what is missing is started.
    pub(super) fn staff(&mut self) {
        if !self.restaff || self.phase == Phase::Closed {
            return;
        }
        self.restaff = false;
        self.retire();
        self.finish();
        self.step_in();
        self.dismiss();
        self.start();
    }

    /// Worn workers take no more tasks once another is up for each.
    fn retire(&mut self) {
        let standby = self.count(|worker| worker.state == WorkerState::Standby);
        let retiring = self.count(|worker| worker.state == WorkerState::Retiring);
        let mut spare = standby.saturating_sub(retiring);
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            if spare == 0 {
                break;
            }
            if worker.state == WorkerState::Ready && worker.wear == Wear::Worn {
                self.workers.edit(index).state = WorkerState::Retiring;
                spare -= 1;
                if self.workers[index].waiting(self.sizing.lanes) > 0 {
                    self.recall(index);
                }
            }
        }
    }

    /// Ends workers that have done their last task; a closing pool ends all of them as they run out of tasks.
    fn finish(&mut self) {
        let is_over = self.phase == Phase::Closing
            && self.queue.is_empty()
            // A worker that is needed for what another may still give back stays.
            && !self
                .workers
                .iter()
                .any(|worker| worker.waiting(self.sizing.lanes) > 0 || worker.recalling);
        for index in 0..self.workers.len() {
            let worker = &self.workers[index];
            let is_free = worker.in_flight.is_empty() && !worker.recalling;
            match worker.state {
                WorkerState::Retiring if is_free => self.end(index),
                WorkerState::Ready | WorkerState::Standby if is_over && is_free => self.end(index),
                _ => {}
            }
        }
    }

    fn end(&mut self, worker: usize) {
        self.workers.edit(worker).state = WorkerState::Ending;
        self.restaff = true;
        self.actions.push_back(Action::Shutdown { worker });
    }

    /// Workers that stand by take tasks as places become free: never more at a time than there should be.
    fn step_in(&mut self) {
        let mut free = self.size.saturating_sub(self.count(Worker::is_up));
        for index in 0..self.workers.len() {
            if free > 0 && self.workers[index].state == WorkerState::Standby {
                self.workers.edit(index).state = WorkerState::Ready;
                free -= 1;
            }
        }
    }

    /// Those that stand by for nobody end: fewer workers are wanted than when they were started.
    fn dismiss(&mut self) {
        let leaving = self.count(|worker| match worker.state {
            WorkerState::Ready => worker.wear > Wear::None,
            state => state == WorkerState::Retiring,
        });
        let standby = self.count(|worker| worker.state == WorkerState::Standby);
        let mut spare = standby.saturating_sub(leaving);
        for index in (0..self.workers.len()).rev() {
            if spare > 0 && self.workers[index].state == WorkerState::Standby {
                self.end(index);
                spare -= 1;
            }
        }
    }

    fn start(&mut self) {
        let wanted = self.wanted();
        if wanted == 0 {
            return;
        }
        let coming =
            self.count(|worker| matches!(worker.state, WorkerState::Starting | WorkerState::Standby));
        let ready = self.count(|worker| worker.state == WorkerState::Ready);
        // Where many are worn at once, some are replaced at a time.
        let worn = self.count(|worker| worker.state == WorkerState::Ready && worker.wear > Wear::None);
        let ahead = worn.min(wanted.div_ceil(4));
        let missing = (wanted + ahead).saturating_sub(ready + coming);
        for _ in 0..missing {
            let number = self.free_number();
            let worker = Worker::starting(number, self.sizing.lanes, self.life(number));
            let index = match self
                .workers
                .iter()
                .position(|worker| worker.state == WorkerState::Gone)
            {
                Some(index) => {
                    *self.workers.edit(index) = worker;
                    index
                }
                None => {
                    self.workers.push(worker);
                    self.workers.len() - 1
                }
            };
            self.actions.push_back(Action::Start {
                worker: index,
                number,
            });
        }
    }

    /// How many tasks a new worker may be sent. The first ones have up to a quarter less, each another number, so that
    /// they are not replaced all at once.
    fn life(&self, number: usize) -> Option<u64> {
        let limit = self.sizing.tasks_per_life?;
        let is_first = self.workers.len() < self.sizing.least;
        let spread = if is_first {
            (u128::from(limit) * number as u128 / (4 * self.sizing.least as u128)) as u64
        } else {
            0
        };
        Some(limit - spread)
    }

    /// The lowest number that no worker has which will stay.
    fn free_number(&self) -> usize {
        let is_taken = |number: usize| {
            self.workers.iter().any(|worker| {
                worker.number == number
                    && match worker.state {
                        WorkerState::Starting | WorkerState::Standby => true,
                        WorkerState::Ready => worker.wear == Wear::None,
                        WorkerState::Retiring | WorkerState::Ending | WorkerState::Gone => false,
                    }
            })
        };
        (0..).find(|&number| !is_taken(number)).unwrap_or_default()
    }
}
