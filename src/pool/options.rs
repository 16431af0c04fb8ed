//! What can be said of a single call: its priority, its times, its tries.

use std::time::{Duration, Instant};

use crate::error::Cause;

/// Options of one call, or of every element of one over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskOptions {
    pub(crate) priority: i32,
    /// From its start on a worker.
    pub(crate) timeout: Option<Duration>,
    /// From its submission to its start.
    pub(crate) queue_timeout: Option<Duration>,
    /// From its submission to its end.
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
    /// Further tries after a worker was lost or the time was up.
    pub(crate) retries: u32,
}

impl TaskOptions {
    /// Whether the times have a meaning.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        let times = [
            ("timeout", self.timeout),
            ("queue_timeout", self.queue_timeout),
            ("task_deadline", self.time_to_live),
        ];
        for (option, time) in times {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(Cause::InvalidOption {
                    option,
                    reason: "nothing is done in no time",
                });
            }
        }
        Ok(())
    }
}
