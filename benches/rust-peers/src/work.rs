//! What workers do whose pools take one type of task.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::tasks::{compute, echo, hold, process_id, successor, successors};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    Successor(u64),
    Successors(Vec<u64>),
    Echo(Bytes),
    ProcessId,
    Hold(u16),
    Compute(u64),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Bytes(Bytes),
}

impl Task {
    pub(crate) fn run(self) -> Value {
        match self {
            Self::Successor(n) => Value::Number(successor(n)),
            Self::Successors(chunk) => Value::Numbers(successors(chunk)),
            Self::Echo(bytes) => Value::Bytes(echo(bytes)),
            Self::ProcessId => Value::Number(process_id(()).into()),
            Self::Hold(port) => {
                hold(port);
                Value::Number(0)
            }
            Self::Compute(steps) => Value::Number(compute(steps)),
        }
    }
}

impl Value {
    pub(crate) fn number(self) -> Result<u64, Error> {
        match self {
            Self::Number(number) => Ok(number),
            other => Err(format!("{other:?} is no number").into()),
        }
    }

    pub(crate) fn numbers(self) -> Result<Vec<u64>, Error> {
        match self {
            Self::Numbers(numbers) => Ok(numbers),
            other => Err(format!("{other:?} are no numbers").into()),
        }
    }
}

/// The worker of tarnish.
#[derive(Default)]
pub(crate) struct Worker;

impl tarnish::Task for Worker {
    type Input = Task;
    type Output = Value;
    type Error = String;

    fn run(&mut self, task: Task) -> Result<Value, String> {
        Ok(task.run())
    }
}
