//! A child process: its end, that of all that it started, its burial.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, kill_process_group,
    pidfd_open, pidfd_send_signal, test_kill_process, waitid, waitpid,
};
use tokio::io::Interest;
use tokio::time::{Instant, sleep_until};

use super::descendants::{Sweep, adopts, bury_family, catches, family, has_ended};
use super::marked;
use crate::runtime;
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

/// Nothing is started here any more.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether this process is about to end, and starts nothing any more.
pub(super) fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Kills all that was started here, but for those with these numbers, and buries them, in so much time at most. For the
/// end of this process: nothing is started here from now on.
pub(super) fn end_all_but(spared: &[u32], longest: Duration) {
    ENDING.store(true, Ordering::SeqCst);
    let begun = std::time::Instant::now();
    let started: Vec<_> = {
        let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        started.iter().filter_map(Weak::upgrade).collect()
    };
    let ending = || {
        started
            .iter()
            .filter(|killer| !spared.contains(&killer.pid.as_raw_pid().cast_unsigned()))
    };
    ending().for_each(Killer::kill);
    for killer in ending() {
        let Some(pidfd) = killer.pidfd() else { continue };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        loop {
            let left = Timespec::try_from(longest.saturating_sub(begun.elapsed())).unwrap_or_default();
            if !matches!(poll(&mut fds, Some(&left)), Err(Errno::INTR)) {
                break;
            }
        }
        bury_family(killer.pid, &killer.take_family());
    }
}

/// Whether a process was started here and lives.
pub(super) fn is_started(pid: Pid) -> bool {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut started = started.iter().filter_map(Weak::upgrade);
    started.any(|killer| killer.pid == pid && !killer.has_ended())
}

/// The pause between two looks at a process that cannot be watched doubles from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// What the killer of a worker spends on its descendants before it leaves them to a thread.
const AT_ONCE: Duration = Duration::from_millis(2);
/// What a worker lives on at most while its descendants are killed.
const LONGEST_SWEEP: Duration = Duration::from_secs(1);
/// What a search for remains may hold up the end of a worker. It goes on behind that.
const SEARCH: Duration = Duration::from_millis(100);

/// A started process that has not been waited for.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    killer: Arc<Killer>,
}

/// What is waited for.
#[derive(Debug)]
enum Process {
    Executed(std::process::Child),
    /// A child of this process that something else has made for it.
    Copied(Pid),
}

impl Process {
    fn id(&self) -> u32 {
        match self {
            Self::Executed(process) => process.id(),
            Self::Copied(pid) => pid.as_raw_pid().cast_unsigned(),
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        match self {
            Self::Executed(process) => process.kill(),
            Self::Copied(pid) => Ok(kill_process(*pid, Signal::KILL)?),
        }
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Executed(process) => process.wait(),
            Self::Copied(pid) => loop {
                match waitpid(Some(*pid), WaitOptions::empty()) {
                    Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
                    Ok(None) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }
}

impl Child {
    /// `marker` is what the process has in its environment and no other.
    pub(super) fn new(process: std::process::Child, marker: String) -> io::Result<Self> {
        Self::watched(Process::Executed(process), marker)
    }

    /// A child of this process that a template has made.
    pub(super) fn copied(pid: Pid, marker: String) -> io::Result<Self> {
        Self::watched(Process::Copied(pid), marker)
    }

    fn watched(mut process: Process, marker: String) -> io::Result<Self> {
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
        let killer = Arc::new(Killer {
            pid,
            pidfd,
            marker,
            killing: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            swept: AtomicBool::new(false),
            family: Mutex::default(),
        });
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

    /// Waits for the process to end.
    ///
    /// Must run on the library's runtime.
    pub(crate) async fn ended(&self) {
        let Some(pidfd) = &self.killer.pidfd else { return };
        if let Ok(pidfd) = watch(pidfd, Interest::READABLE) {
            // An error here means that the runtime ends, and with it the process.
            pidfd.readable().await.ok();
            return;
        }
        // The system watches no more for this user: it is looked at instead.
        let mut pause = FIRST_PAUSE;
        while !has_ended(pidfd) {
            sleep_until(Instant::now() + pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Takes the status of a process that has ended, and leaves what it started alone. The status is `None` where
    /// somebody else took it: the host program ignores SIGCHLD, or waits for any child.
    pub(crate) fn bury(mut self) -> Option<ExitStatus> {
        self.process.wait().ok()
    }

    /// Waits for the process to end, kills what it left, and takes its status, as [`bury`](Self::bury) does.
    ///
    /// Must run on the library's runtime.
    pub(crate) async fn wait(mut self) -> Option<ExitStatus> {
        self.ended().await;
        let killer = Arc::clone(&self.killer);
        // Before the status is taken: until then the number of the group cannot be anybody else's.
        kill_process_group(killer.pid, Signal::KILL).ok();
        if adopts() {
            let (worker, family) = (killer.pid, killer.take_family());
            runtime::blocking(move || bury_family(worker, &family)).await;
        }
        let status = self.process.wait().ok();
        // One that ended as it was told has seen to what it started.
        if !killer.has_obeyed(status) && !killer.swept.load(Ordering::Acquire) {
            let search = marked::kill(&killer.marker);
            tokio::time::timeout(SEARCH, search).await.ok();
        }
        status
    }
}

/// Ends a process, or asks it to end.
#[derive(Debug)]
pub(crate) struct Killer {
    pid: Pid,
    /// Readable when the process has ended. `None` where the host program reaps children itself and was faster.
    pidfd: Option<Arc<OwnedFd>>,
    marker: String,
    killing: AtomicBool,
    /// It was told to end.
    ending: AtomicBool,
    /// Nothing that it started can be alive outside its group.
    swept: AtomicBool,
    /// Descendants that this process may have to bury.
    family: Mutex<HashSet<Pid>>,
}

impl Killer {
    /// Readable when the process has ended.
    pub(crate) fn pidfd(&self) -> Option<&Arc<OwnedFd>> {
        self.pidfd.as_ref()
    }

    /// Descendants that this process may have to bury, and the process itself.
    fn take_family(&self) -> HashSet<Pid> {
        let mut family = std::mem::take(&mut *self.family.lock().unwrap_or_else(PoisonError::into_inner));
        family.insert(self.pid);
        family
    }

    /// What the process has in its environment and no other.
    pub(super) fn marker(&self) -> &str {
        &self.marker
    }

    /// Whether the process has ended, buried or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_none_or(|pidfd| has_ended(pidfd))
    }

    /// The status of a process that has ended and that nobody has buried.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        let pidfd = self.pidfd.as_ref()?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), look).ok()??;
        let code = status.exit_status().map(|code| (code & 0xff) << 8);
        let signal = || {
            let core = if status.dumped() { 0x80 } else { 0 };
            status.terminating_signal().map(|signal| signal | core)
        };
        code.or_else(signal).map(ExitStatus::from_raw)
    }

    /// Sends a signal to the process alone. That it has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.pidfd.as_ref().map(|pidfd| pidfd_send_signal(pidfd, signal)) {
            None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Whether this process may send it signals. That it has ended is no error.
    pub(crate) fn may_signal(&self) -> io::Result<()> {
        match test_kill_process(self.pid) {
            Err(error) if error != Errno::SRCH && !self.has_ended() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Sends a signal to the process and its group, once. One that has ended is left alone.
    pub(crate) fn send(&self, signal: Signal) {
        // The number of the group is its own as long as the process runs.
        if self.pidfd.as_ref().is_some_and(|pidfd| !has_ended(pidfd)) {
            kill_process_group(self.pid, signal).ok();
        }
    }

    /// Asks the process and all that it started to end, with a SIGTERM. `false` where none of them would notice: then
    /// they are killed.
    ///
    /// The process itself gets it only if it has a handler: dead, it could not be asked any more for what it started.
    pub(crate) fn stop(self: &Arc<Self>) -> bool {
        let Some(pidfd) = &self.pidfd else { return false };
        let listens = catches(self.pid, Signal::TERM);
        let family = family(self.pid);
        let nobody_would_notice = !listens && family.is_empty();
        if nobody_would_notice || has_ended(pidfd) {
            self.kill();
            return false;
        }
        for member in family.iter().chain(listens.then_some(&**pidfd)) {
            pidfd_send_signal(member, Signal::TERM).ok();
        }
        true
    }

    /// Takes note that the process is told to end by itself.
    pub(crate) fn expect_end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Whether one that has ended with `status` did so because it was told to.
    pub(crate) fn has_obeyed(&self, status: Option<ExitStatus>) -> bool {
        self.ending.load(Ordering::Acquire) && status.is_some_and(|status| status.success())
    }

    /// Kills the process, its group, and all that it started, now. One that has been waited for is left alone.
    ///
    /// Where what it started multiplies, the rest happens on another thread.
    pub(crate) fn kill(self: &Arc<Self>) {
        let Some(pidfd) = &self.pidfd else { return };
        if self.killing.swap(true, Ordering::AcqRel) {
            return;
        }
        // It is not stopped meanwhile: if this process were killed now, nobody would let it go on and see to itself.
        let mut sweep = Sweep::new(self.pid, Some(self.pid)).of_other(pidfd);
        if adopts() {
            sweep = sweep.keep_family();
        }
        if sweep.run(AT_ONCE) {
            self.finish(pidfd, sweep, true);
            return;
        }
        let shared = Arc::new(Mutex::new(Some(sweep)));
        let finish = {
            let (killer, shared) = (Arc::clone(self), Arc::clone(&shared));
            move || {
                let sweep = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let (Some(pidfd), Some(mut sweep)) = (&killer.pidfd, sweep) {
                    let complete = sweep.run(LONGEST_SWEEP);
                    killer.finish(pidfd, sweep, complete);
                }
            }
        };
        let thread = thread::Builder::new()
            .name("procession-sweep".to_owned())
            .spawn(finish);
        if thread.is_err()
            && let Some(sweep) = shared.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            // Its mark will tell what it leaves.
            self.finish(pidfd, sweep, false);
        }
    }

    fn finish(&self, pidfd: &OwnedFd, mut sweep: Sweep, complete: bool) {
        // One that has ended by itself took its tree with it.
        let complete = complete && !has_ended(pidfd);
        self.family
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(sweep.take_family());
        // Where some had left the group, one more may have done so at the last moment. Said before its end is seen.
        self.swept
            .store(complete && !sweep.has_killed(), Ordering::Release);
        // By descriptor first: as long as that succeeds, the number of the group is its own. And then all of the group
        // at once: if this process ended between the worker's end and that of the rest, nobody would see to them.
        if pidfd_send_signal(pidfd, Signal::CONT).is_ok() {
            kill_process_group(self.pid, Signal::KILL).ok();
            // It may have left its group.
            pidfd_send_signal(pidfd, Signal::KILL).ok();
        }
        sweep.kill_spared();
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn the_end_of_one_that_cannot_be_watched_is_waited_for() {
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let input = process.stdin.take();
        let child = Child::new(process, "a marker".to_owned()).unwrap();
        let pidfd = child.killer().pidfd().cloned().unwrap();
        // A runtime watches a descriptor once.
        let _watched = watch(&pidfd, Interest::READABLE).unwrap();
        assert!(watch(&pidfd, Interest::READABLE).is_err());
        {
            let ended = child.ended();
            tokio::pin!(ended);
            assert!(poll!(&mut ended).is_pending());
            drop(input);
            ended.await;
        }
        assert!(child.bury().is_some_and(|status| status.success()));
    }
}
