//! Who may join the queue: its bounds, the line of those who wait for room, and the room that is kept for somebody.
//!
//! A part of the [`State`](super::state::State), and as pure. Who waits hands over what it wants to submit, and is let
//! in when its turn comes, whether or not anybody looks at it then: nobody overtakes, and one that is not polled holds
//! up no others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::error::QueueBound;

/// What may wait to be started: so many tasks, and so many bytes of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Capacity {
    pub(crate) tasks: Option<usize>,
    pub(crate) bytes: Option<u64>,
}

/// How full the pool is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupancy {
    /// Tasks that have not started.
    pub(crate) waiting: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Tasks that would start at once.
    pub(crate) idle: usize,
}

/// Somebody in the line.
#[derive(Debug)]
pub(crate) struct Waits<P> {
    /// What it counts for in a worker's life.
    pub(crate) weight: u32,
    /// Of its frame; `None` when it wants room to be kept for a task to come.
    pub(crate) bytes: Option<usize>,
    pub(crate) payload: P,
}

#[derive(Debug)]
pub(crate) struct Admission<P> {
    capacity: Capacity,
    /// By priority, then by id, which is the order of arrival.
    line: BTreeMap<(Reverse<i32>, u64), Waits<P>>,
    /// Tasks that have been promised room.
    kept: usize,
    /// Those among them that have waited for it in the line, and have not heard yet that it is theirs.
    offered: BTreeSet<u64>,
}

impl<P> Admission<P> {
    pub(crate) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            line: BTreeMap::new(),
            kept: 0,
            offered: BTreeSet::new(),
        }
    }

    /// The bound that is in the way of one more task of so many bytes; `None` of one whose size is not known. What can
    /// start at once does not wait, and so is in nobody's way. One that is larger than the bound waits alone.
    pub(crate) fn bound_hit(
        &self,
        bytes: Option<usize>,
        occupancy: impl FnOnce() -> Occupancy,
    ) -> Option<QueueBound> {
        if self.capacity.tasks.is_none() && self.capacity.bytes.is_none() {
            return None;
        }
        let Occupancy {
            waiting,
            bytes: held,
            idle,
        } = occupancy();
        if idle > self.kept {
            return None;
        }
        let waiting = waiting + (self.kept - idle);
        if let Some(tasks) = self.capacity.tasks
            && waiting >= tasks
        {
            return Some(QueueBound::Tasks(tasks));
        }
        match self.capacity.bytes {
            Some(most) if waiting > 0 && held.saturating_add(bytes.unwrap_or(1) as u64) > most => {
                Some(QueueBound::Bytes(most))
            }
            _ => None,
        }
    }

    /// How many stand in the line.
    pub(crate) fn len(&self) -> usize {
        self.line.len()
    }

    pub(crate) fn join(&mut self, priority: i32, id: u64, waits: Waits<P>) {
        self.line.insert((Reverse(priority), id), waits);
    }

    /// Whose turn it is, and its priority.
    pub(crate) fn first(&self) -> Option<(i32, &Waits<P>)> {
        self.line
            .first_key_value()
            .map(|(&(Reverse(priority), _), waits)| (priority, waits))
    }

    /// Takes the first out of the line, with its priority and id.
    pub(crate) fn pop(&mut self) -> Option<(i32, u64, Waits<P>)> {
        self.line
            .pop_first()
            .map(|((Reverse(priority), id), waits)| (priority, id, waits))
    }

    pub(crate) fn leave(&mut self, priority: i32, id: u64) -> Option<P> {
        self.line
            .remove(&(Reverse(priority), id))
            .map(|waits| waits.payload)
    }

    pub(crate) fn drain(&mut self) -> Vec<P> {
        std::mem::take(&mut self.line)
            .into_values()
            .map(|waits| waits.payload)
            .collect()
    }

    /// Keeps room for `id`, which does not know it yet.
    pub(crate) fn offer(&mut self, id: u64) {
        self.kept += 1;
        self.offered.insert(id);
    }
}

#[cfg(any(feature = "tower", test))]
impl<P> Admission<P> {
    /// Keeps room for a task.
    pub(crate) fn keep(&mut self) {
        self.kept += 1;
    }

    /// Gives room that was kept to whoever comes.
    pub(crate) fn release(&mut self) {
        self.kept -= 1;
    }

    /// `id` has heard of its room. `false` when it had been taken back.
    pub(crate) fn claim(&mut self, id: u64) -> bool {
        self.offered.remove(&id)
    }

    /// Takes room back that `id` was offered and has not claimed. `false` when there is none.
    pub(crate) fn take_back(&mut self, id: u64) -> bool {
        let stands = self.offered.remove(&id);
        if stands {
            self.kept -= 1;
        }
        stands
    }
}
