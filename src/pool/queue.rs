//! Tasks that wait to be sent, by priority, then by id, which is the order of submission.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// A task that waits.
#[derive(Debug)]
pub(crate) struct Queued<P> {
    pub(crate) id: u64,
    /// What it counts for in a worker's life: the elements of a chunk.
    pub(crate) weight: u32,
    /// Of its frame.
    pub(crate) bytes: usize,
    pub(crate) payload: P,
}

/// A level with room for more tasks gives its memory back when it is empty.
const KEPT: usize = 4096;

#[derive(Debug)]
pub(crate) struct Queue<P> {
    /// None is empty but the only one: a queue that is often empty keeps its memory.
    levels: BTreeMap<Reverse<i32>, VecDeque<Queued<P>>>,
    len: usize,
    bytes: u64,
}

impl<P> Default for Queue<P> {
    fn default() -> Self {
        Self {
            levels: BTreeMap::new(),
            len: 0,
            bytes: 0,
        }
    }
}

impl<P> Queue<P> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Of the frames of all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn push(&mut self, priority: i32, task: Queued<P>) {
        self.bytes += task.bytes as u64;
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

    pub(crate) fn pop(&mut self) -> Option<(i32, Queued<P>)> {
        let (priority, task) = loop {
            let is_only = self.levels.len() == 1;
            let mut level = self.levels.first_entry()?;
            let priority = level.key().0;
            match level.get_mut().pop_front() {
                Some(task) => {
                    if level.get().is_empty() && !is_only {
                        level.remove();
                    } else if level.get().is_empty() && level.get().capacity() > KEPT {
                        level.insert(VecDeque::new());
                    }
                    break (priority, task);
                }
                None if is_only => return None,
                None => {
                    level.remove();
                }
            }
        };
        self.len -= 1;
        self.bytes -= task.bytes as u64;
        Some((priority, task))
    }

    pub(crate) fn front_bytes(&self) -> usize {
        self.levels
            .values()
            .find_map(VecDeque::front)
            .map_or(0, |task| task.bytes)
    }

    pub(crate) fn remove(&mut self, priority: i32, id: u64) -> Option<P> {
        let level = self.levels.get_mut(&Reverse(priority))?;
        let index = level.binary_search_by_key(&id, |task| task.id).ok()?;
        let task = level.remove(index)?;
        if level.is_empty() && self.levels.len() > 1 {
            self.levels.remove(&Reverse(priority));
        }
        self.len -= 1;
        self.bytes -= task.bytes as u64;
        Some(task.payload)
    }

    pub(crate) fn drain(&mut self) -> Vec<P> {
        self.len = 0;
        self.bytes = 0;
        std::mem::take(&mut self.levels)
            .into_values()
            .flatten()
            .map(|task| task.payload)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_go_with_their_last_task() {
        let mut queue = Queue::default();
        for n in 0..100 {
            let task = |id| Queued {
                id,
                weight: 1,
                bytes: 1,
                payload: (),
            };
            queue.push(n, task(1));
            queue.push(-n, task(2));
            assert!(queue.pop().is_some() && queue.remove(-n, 2).is_some());
            assert!(queue.is_empty() && queue.levels.len() <= 2);
        }
    }
}
