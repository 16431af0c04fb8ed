//! The tasks that one worker has been sent and has not answered.

use std::collections::VecDeque;

/// A task at a worker.
#[derive(Debug)]
pub(crate) struct Sent<P> {
    pub(crate) id: u64,
    pub(crate) priority: i32,
    pub(crate) weight: u32,
    pub(crate) bytes: usize,
    pub(crate) payload: P,
    pub(crate) stop: Stop,
}

/// Whether a task at a worker shall be stopped, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    Yes {
        /// Its outcome is settled: whatever comes of it is discarded. Otherwise it ends as its worker says, or with
        /// its worker.
        settled: bool,
        /// It may end by itself for so long as whoever asked is ready to wait, for it listens.
        polite: bool,
    },
}

impl<P> Sent<P> {
    /// Whether it stands in the way of what comes behind it.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop != Stop::No
    }

    /// Whether its outcome is settled already.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.stop, Stop::Yes { settled: true, .. })
    }
}

/// One worker's tasks, in the order in which they were sent, which is the order in which it starts them.
#[derive(Debug)]
pub(crate) struct InFlight<P> {
    sent: VecDeque<Sent<P>>,
    bytes: usize,
    /// So many of them run, the first.
    lanes: usize,
    /// Bytes of those behind.
    waiting_bytes: usize,
    /// So many shall be stopped.
    stopping: usize,
}

impl<P> InFlight<P> {
    pub(crate) fn new(lanes: usize) -> Self {
        Self {
            sent: VecDeque::new(),
            bytes: 0,
            lanes,
            waiting_bytes: 0,
            stopping: 0,
        }
    }

    /// Whether one of them shall be stopped.
    pub(crate) fn has_stopping(&self) -> bool {
        self.stopping > 0
    }

    /// Says how the task `id` shall be stopped, and gives it.
    pub(crate) fn stop(&mut self, id: u64, stop: Stop) -> Option<&Sent<P>> {
        let index = self.position(id)?;
        let task = &mut self.sent[index];
        self.stopping -= usize::from(task.is_stopping());
        task.stop = stop;
        self.stopping += usize::from(task.is_stopping());
        Some(task)
    }

    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Bytes of the tasks' frames.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the frames of those that cannot have started, for the lanes in front of them are taken.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(crate) fn push(&mut self, task: Sent<P>) {
        self.bytes += task.bytes;
        if self.sent.len() >= self.lanes {
            self.waiting_bytes += task.bytes;
        }
        self.sent.push_back(task);
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Sent<P>> {
        self.position(id).map(|index| &self.sent[index])
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Sent<P>> {
        let index = self.position(id)?;
        let task = self.sent.remove(index)?;
        self.bytes -= task.bytes;
        self.stopping -= usize::from(task.is_stopping());
        // Its lane goes to the first of those behind.
        let starts = (index < self.lanes).then(|| self.sent.get(self.lanes - 1));
        self.waiting_bytes -= match starts {
            Some(next) => next.map_or(0, |next| next.bytes),
            None => task.bytes,
        };
        Some(task)
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Sent<P>> + '_ {
        self.bytes = 0;
        self.waiting_bytes = 0;
        self.stopping = 0;
        self.sent.drain(..)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sent<P>> {
        self.sent.iter()
    }

    /// Whether the task `id` may have started, given the last that did in each lane. One that has not stands behind
    /// all of them, or they have been answered.
    pub(crate) fn may_have_started(&self, id: u64, last: &[u64]) -> bool {
        self.position(id).is_some_and(|own| {
            last.iter()
                .any(|&last| self.position(last).is_some_and(|at| at >= own))
        })
    }

    /// Answers come in order, so that the search nearly always ends at the first.
    fn position(&self, id: u64) -> Option<usize> {
        self.sent.iter().position(|task| task.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_the_last_that_started_has_not() {
        let mut tasks = InFlight::new(2);
        for id in [5, 3, 9, 4] {
            tasks.push(Sent {
                id,
                priority: 0,
                weight: 1,
                bytes: 0,
                payload: (),
                stop: Stop::No,
            });
        }
        let started =
            |tasks: &InFlight<()>, last: &[u64]| [5, 3, 9, 4].map(|id| tasks.may_have_started(id, last));
        assert_eq!(started(&tasks, &[]), [false; 4]);
        assert_eq!(started(&tasks, &[3]), [true, true, false, false]);
        assert_eq!(started(&tasks, &[5, 9]), [true, true, true, false]);
        // One that has been answered tells nothing: its lane has not started another.
        assert_eq!(started(&tasks, &[7]), [false; 4]);
        tasks.remove(3);
        assert_eq!(started(&tasks, &[3, 5]), [true, false, false, false]);
    }
}
