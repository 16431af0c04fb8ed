//! A gate inside a task: the test sees the task arrive and says when it may go on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use procession::Fd;

use crate::fuse::FUSE;

/// The test's side. Dropping it opens the gate.
#[derive(Debug)]
pub(crate) struct Gate(UnixStream);

/// A gate, and the argument for the task that shall wait at it.
pub(crate) fn gate() -> (Gate, Fd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(FUSE)).unwrap();
    (Gate(ours), Fd::from(theirs))
}

impl Gate {
    /// Waits until a task is at the gate, and gives its process.
    pub(crate) fn entered(&mut self) -> u32 {
        let mut pid = [0; 4];
        self.0.read_exact(&mut pid).expect("a task at the gate");
        u32::from_le_bytes(pid)
    }

    /// Lets the task go on.
    pub(crate) fn open(self) {
        drop(self);
    }

    /// Waits until every process that had the gate is gone. The handles of tasks must be dropped before.
    pub(crate) fn abandoned(mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("the task's end");
    }
}

/// Task: says where it runs, waits, and gives its process id.
pub(crate) fn wait_at(gate: Fd) -> u32 {
    let mut gate = UnixStream::from(gate.into_inner());
    let pid = std::process::id();
    // Nobody may be there to hear it.
    gate.write_all(&pid.to_le_bytes()).ok();
    // Nothing is ever written: the end of the stream is the sign, or its reset where the test never looked.
    assert!(!matches!(gate.read(&mut [0]), Ok(1)));
    pid
}
