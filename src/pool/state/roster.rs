//! The workers, and counts over all of them, so that a decision takes no longer where there are many.
//!
//! A worker is changed through [`Roster::edit`] alone, which counts it again.

use std::ops::{Deref, DerefMut, Index};

use super::Worker;

/// The load of a worker that may be sent nothing now.
const CLOSED: u16 = u16::MAX;

#[derive(Debug)]
pub(super) struct Roster<P> {
    workers: Vec<Worker<P>>,
    /// Tasks that each runs at a time.
    lanes: usize,
    /// Of each worker: the tasks that it has, or [`CLOSED`]. On their own, for the search of the smallest goes over all
    /// of them for each task.
    loads: Vec<u16>,
    /// Of each worker: the tasks that cannot have started and may be called back.
    waits: Vec<u16>,
    counts: Vec<Counts>,
    total: Counts,
}

/// What is counted of a worker, and of all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Tasks that were sent and not answered.
    pub(super) tasks: usize,
    /// Those among them that cannot have started.
    pub(super) waiting: usize,
    /// Bytes of these.
    pub(super) waiting_bytes: usize,
    /// Tasks that could be started at once.
    pub(super) idle_lanes: usize,
    /// Workers that have tasks, but for those that run a long one.
    pub(super) busy: usize,
}

impl<P> Roster<P> {
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            workers: Vec::new(),
            lanes,
            loads: Vec::new(),
            waits: Vec::new(),
            counts: Vec::new(),
            total: Counts::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Worker<P>> {
        self.workers.iter()
    }

    /// Counts over all workers.
    pub(super) fn total(&self) -> &Counts {
        &self.total
    }

    pub(super) fn push(&mut self, worker: Worker<P>) {
        self.workers.push(worker);
        self.loads.push(CLOSED);
        self.waits.push(0);
        self.counts.push(Counts::default());
        self.count(self.workers.len() - 1);
    }

    /// A worker to change.
    pub(super) fn edit(&mut self, index: usize) -> Edit<'_, P> {
        Edit { roster: self, index }
    }

    /// Of those that may be sent tasks and have `least` or more, the first with the fewest, and how many it has.
    pub(super) fn least_loaded(&self, least: u16) -> Option<(usize, usize)> {
        let eligible = |load: u16| if load < least { CLOSED } else { load };
        let fewest = self.loads.iter().map(|&load| eligible(load)).min()?;
        if fewest == CLOSED {
            return None;
        }
        let index = self.loads.iter().position(|&load| load == fewest)?;
        Some((index, usize::from(fewest)))
    }

    /// The last of those at which most tasks wait, and how many.
    pub(super) fn most_waiting(&self) -> Option<(usize, usize)> {
        let most = self.waits.iter().copied().max()?;
        let index = self.waits.iter().rposition(|&waits| waits == most)?;
        Some((index, usize::from(most)))
    }

    fn count(&mut self, index: usize) {
        let worker = &self.workers[index];
        let tasks = worker.in_flight.len();
        let takes = worker.takes_tasks();
        let now = Counts {
            tasks,
            waiting: worker.waiting(self.lanes),
            waiting_bytes: worker.in_flight.waiting_bytes(),
            idle_lanes: if takes {
                self.lanes.saturating_sub(tasks)
            } else {
                0
            },
            busy: usize::from(tasks > 0 && !worker.held),
        };
        let is_open = takes && !(worker.held && tasks >= self.lanes);
        let narrow = |count: usize| u16::try_from(count).map_or(CLOSED - 1, |count| count.min(CLOSED - 1));
        self.loads[index] = if is_open { narrow(tasks) } else { CLOSED };
        self.waits[index] = if worker.is_up() { narrow(now.waiting) } else { 0 };
        let before = std::mem::replace(&mut self.counts[index], now);
        let total = &mut self.total;
        total.tasks = total.tasks - before.tasks + now.tasks;
        total.waiting = total.waiting - before.waiting + now.waiting;
        total.waiting_bytes = total.waiting_bytes - before.waiting_bytes + now.waiting_bytes;
        total.idle_lanes = total.idle_lanes - before.idle_lanes + now.idle_lanes;
        total.busy = total.busy - before.busy + now.busy;
    }
}

impl<P> Index<usize> for Roster<P> {
    type Output = Worker<P>;

    fn index(&self, index: usize) -> &Worker<P> {
        &self.workers[index]
    }
}

/// A worker that is being changed: it is counted again when this is dropped.
pub(super) struct Edit<'a, P> {
    roster: &'a mut Roster<P>,
    index: usize,
}

impl<P> Deref for Edit<'_, P> {
    type Target = Worker<P>;

    fn deref(&self) -> &Worker<P> {
        &self.roster.workers[self.index]
    }
}

impl<P> DerefMut for Edit<'_, P> {
    fn deref_mut(&mut self) -> &mut Worker<P> {
        &mut self.roster.workers[self.index]
    }
}

impl<P> Drop for Edit<'_, P> {
    fn drop(&mut self) {
        self.roster.count(self.index);
    }
}
