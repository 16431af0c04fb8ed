//! What a worker has left behind that died before anybody could walk the tree below it: found by the worker's mark.
//!
//! Every worker has a variable in its environment that no other has, and what it starts inherits that. A process that
//! cleared its environment and left its group cannot be told from anybody else's once its worker has crashed.
//!
//! A copy of a template has the template's mark until it has given itself its own. It is nobody's remains.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::child::is_started;
use super::descendants::{Stat, adopts, bury, can_see, processes};
use crate::{init, runtime};

/// What looking for one worker's remains may take, however fast they multiply.
const LONGEST: Duration = Duration::from_secs(1);

/// Marks that nobody looks for yet. One search serves all that wait when it begins.
#[derive(Debug)]
struct Waiting {
    marks: Vec<(String, oneshot::Sender<()>)>,
    searching: bool,
}

static WAITING: Mutex<Waiting> = Mutex::new(Waiting {
    marks: Vec::new(),
    searching: false,
});

/// What is in the environment of a process with `marker`, and in that of whoever it starts.
pub(super) fn mark(marker: &str) -> String {
    format!("{}={marker}", init::MARKER)
}

/// Kills every process that has `marker`, the value of the variable, in its environment.
pub(super) async fn kill(marker: &str) {
    if !can_see() {
        return;
    }
    let (done, is_done) = oneshot::channel();
    let mark = mark(marker);
    let is_first = {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.marks.push((mark, done));
        !std::mem::replace(&mut waiting.searching, true)
    };
    if is_first {
        runtime::blocking(search).await;
    } else {
        is_done.await.ok();
    }
}

/// Serves whoever waits, until nobody does.
fn search() {
    loop {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = std::mem::take(&mut waiting.marks);
        waiting.searching = !marks.is_empty();
        drop(waiting);
        if marks.is_empty() {
            return;
        }
        let (marks, done): (Vec<String>, Vec<_>) = marks.into_iter().unzip();
        kill_all(&marks);
        for done in done {
            // Whoever waited may be gone.
            done.send(()).ok();
        }
    }
}

/// Looks until nobody new is found: what was killed may have started another just before.
fn kill_all(marks: &[String]) {
    let until = Instant::now() + LONGEST;
    let mut killed = HashSet::new();
    let mut buried: Vec<OwnedFd> = Vec::new();
    loop {
        let before = killed.len();
        for pid in processes().filter(|&pid| pid != getpid()) {
            if !is_marked(pid, marks) {
                continue;
            }
            // Looked at once more when it is open, for its number may be another's by now.
            let (Ok(pidfd), Some(stat)) = (pidfd_open(pid, PidfdFlags::empty()), Stat::of(pid)) else {
                continue;
            };
            if is_marked(pid, marks)
                && !is_started(pid)
                && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
                && killed.insert((pid, stat.start))
                && adopts()
            {
                buried.push(pidfd);
            }
        }
        if killed.len() == before || Instant::now() >= until {
            break;
        }
    }
    for pidfd in &buried {
        bury(pidfd);
    }
}

/// Whether a process has one of `marks` in its environment. One that has ended has none.
pub(super) fn is_marked(pid: Pid, marks: &[String]) -> bool {
    // Those of other users cannot be read, nor killed.
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let mut variables = environment.split(|&byte| byte == 0);
    variables.any(|variable| {
        variable.starts_with(init::MARKER.as_bytes()) && marks.iter().any(|mark| mark.as_bytes() == variable)
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::super::child;
    use super::*;

    #[tokio::test]
    async fn what_was_started_here_is_nobodys_remains() {
        let marker = "that of a template";
        let start = || -> Child {
            let mut command = Command::new("cat");
            command.env(init::MARKER, marker).stdin(Stdio::piped());
            command.spawn().unwrap()
        };
        let (mut copy, mut stray) = (start(), start());
        let input = copy.stdin.take();
        let copy = child::Child::new(copy, "its own".to_owned()).unwrap();
        kill(marker).await;
        assert!(!stray.wait().unwrap().success());
        assert!(!copy.killer().has_ended());
        drop(input);
        copy.ended().await;
        assert!(copy.bury().is_some_and(|status| status.success()));
    }
}
