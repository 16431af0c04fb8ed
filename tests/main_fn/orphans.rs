//! A parent that dies without a word.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::fixture::{FUSE, Running, program};

crate::trials! {
    a_killed_parent_leaves_nobody_behind
}

fn a_killed_parent_leaves_nobody_behind() {
    let mut parent = Running::start(program("family"));
    // Three workers, one of them idle, one in an endless loop, one with a child and that one's child.
    let mut processes = Vec::new();
    let mut kinds = Vec::new();
    for _ in 0..6 {
        let line = parent.line();
        let (kind, pid) = line.split_once(' ').unwrap();
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        // Opened while the parent lives, so that it stands for this process and no later one.
        processes.push((line.clone(), pidfd_open(pid, PidfdFlags::empty()).unwrap()));
        kinds.push(kind.to_owned());
    }
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        ["busy", "child", "grandchild", "worker", "worker", "worker"]
    );

    parent.kill();
    let deadline = Instant::now() + FUSE;
    for (line, pidfd) in &processes {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "{line} lives on");
    }
}
