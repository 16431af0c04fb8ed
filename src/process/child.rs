//! A child process: its end, its group, its burial.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;

use crate::shared::watched::watch;

/// Every process that was started here and may live.
static STARTED: Mutex<Vec<Weak<Killer>>> = Mutex::new(Vec::new());

/// Sends a signal to all processes that were started here, and to their groups.
pub(crate) fn signal_all(signal: Signal) {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    for killer in started.iter().filter_map(Weak::upgrade) {
        killer.send(signal);
    }
}

/// A started process that has not been waited for.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    killer: Arc<Killer>,
}

impl Child {
    pub(super) fn new(mut process: std::process::Child) -> io::Result<Self> {
        let pid = i32::try_from(process.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a process id that is none"))?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(Arc::new(pidfd)),
            Err(Errno::SRCH) => None,
            Err(error) => {
                // It must not run on unwatched. Its end is sure to come, for nothing can stop a SIGKILL.
                process.kill()?;
                process.wait()?;
                return Err(error.into());
            }
        };
        let killer = Arc::new(Killer { pid, pidfd });
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        started.retain(|killer| killer.strong_count() > 0);
        started.push(Arc::downgrade(&killer));
        drop(started);
        Ok(Self { process, killer })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the process can be killed by from elsewhere.
    pub(crate) fn killer(&self) -> Arc<Killer> {
        Arc::clone(&self.killer)
    }

    /// Waits for the process to end, kills what is left of its group, and takes its status. The status is `None`
    /// where somebody else took it: the host program ignores SIGCHLD, or waits for any child.
    ///
    /// Must run on the library's runtime.
    pub(crate) async fn wait(mut self) -> Option<ExitStatus> {
        if let Some(pidfd) = &self.killer.pidfd
            && let Ok(pidfd) = watch(pidfd, Interest::READABLE)
        {
            // An error here means that the runtime ends, and with it the process.
            pidfd.readable().await.ok();
        }
        // Before the status is taken: until then the number of the group cannot be anybody else's.
        kill_process_group(self.killer.pid, Signal::KILL).ok();
        self.process.wait().ok()
    }
}

/// Ends a process, or asks it to end.
#[derive(Debug)]
pub(crate) struct Killer {
    pid: Pid,
    /// Readable when the process has ended. `None` where the host program reaps children itself and was faster.
    pidfd: Option<Arc<OwnedFd>>,
}

impl Killer {
    /// Sends the process and its group a SIGTERM, once.
    pub(crate) fn terminate(&self) {
        // The number of the group is its own as long as the process runs.
        if self.pidfd.as_ref().is_some_and(|pidfd| !has_ended(pidfd)) {
            kill_process_group(self.pid, Signal::TERM).ok();
        }
    }

    /// Kills the process and its group, now. One that has been waited for is left alone.
    pub(crate) fn kill(&self) {
        self.send(Signal::KILL);
    }

    /// Sends a signal to the process and its group. One that has been waited for is left alone.
    fn send(&self, signal: Signal) {
        // By descriptor first: as long as that succeeds, the number of the group is its own.
        if let Some(pidfd) = &self.pidfd
            && pidfd_send_signal(pidfd, signal).is_ok()
        {
            kill_process_group(self.pid, signal).ok();
        }
    }
}

/// Whether a process has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
