//! Children that this worker did not start: their parents have ended, and it is the one who waits for them.
//!
//! Nothing tells them from the children of a task, which the task's own code may wait for and must find. One sign is
//! sure: nobody starts a process in a session other than his own, and a process changes it only by leading a new one. A
//! child in a third session, as daemons are, was started by somebody else. Of the rest that has ended, a few are left for
//! whoever may want their status, and no more than a few, once the task is over that they may belong to.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::process::descendants::{Stat, can_see, children};

/// Ended children of unknown descent that are kept behind the end of their task.
const KEPT: usize = 64;
/// Between two looks when there was nothing to be seen.
const SELDOM: Duration = Duration::from_secs(5);
/// Between two looks when there was something.
const OFTEN: Duration = Duration::from_secs(1);

/// Odd while tasks may run, the initializer among them, and even between them.
static PHASE: AtomicU64 = AtomicU64::new(0);

/// No look is due before this worker has a task.
static RESTS: AtomicBool = AtomicBool::new(true);
/// What says when a look is due. Whoever sets it wakes nobody.
static TIMER: OnceLock<OwnedFd> = OnceLock::new();

/// Takes note of whether tasks run here from now on.
pub(super) fn tasks_run(run: bool) {
    // The main thread alone changes it.
    let phase = PHASE.load(Ordering::Relaxed);
    if (phase % 2 == 1) == run {
        return;
    }
    // In total order with what the undertaker does before it rests: it sees this, or is seen to rest.
    PHASE.store(phase + 1, Ordering::SeqCst);
    if run
        && RESTS.load(Ordering::SeqCst)
        && RESTS.swap(false, Ordering::SeqCst)
        && let Some(timer) = TIMER.get()
    {
        set(timer, SELDOM);
    }
}

/// Has the timer go off once, in a while.
fn set(timer: &OwnedFd, pause: Duration) {
    let setting = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(pause).unwrap_or_default(),
    };
    // Neither the descriptor nor the time can be wrong.
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting).ok();
}

/// Buries children that have ended and that no task waits for.
#[derive(Debug, Default)]
pub(super) struct Undertaker {
    /// Ended children of unknown descent, by number and start, and when they were first seen.
    kept: HashMap<(Pid, u64), u64>,
    /// At the last look that found no child.
    phase: u64,
}

impl Undertaker {
    /// A descriptor that is readable when it is time to [look](Self::look).
    pub(super) fn timer() -> io::Result<BorrowedFd<'static>> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        Ok(TIMER.get_or_init(|| timer).as_fd())
    }

    /// It is time: looks, and sets the timer for the next time, if there is one before the next task.
    pub(super) fn wake(&mut self) {
        let Some(timer) = TIMER.get() else { return };
        // How often it has gone off does not matter.
        rustix::io::read(timer, &mut [0; 8]).ok();
        if let Some(pause) = self.look() {
            set(timer, pause);
        }
    }

    /// Looks once, and says when to look again: `None` where nothing can come before the next task.
    fn look(&mut self) -> Option<Duration> {
        let any = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if !can_see() {
            return Self::rest();
        }
        match waitid(WaitId::All, any) {
            Ok(Some(_)) => {}
            Err(Errno::CHILD) => {
                self.kept.clear();
                let now = PHASE.load(Ordering::Relaxed);
                let is_quiet = std::mem::replace(&mut self.phase, now) == now;
                // Not between tasks that come one after the other: each would have to wake it.
                return if is_quiet { Self::rest() } else { Some(SELDOM) };
            }
            _ => {
                self.kept.clear();
                return Some(SELDOM);
            }
        }
        let now = PHASE.load(Ordering::Relaxed);
        // Not `getsid`, which rustix takes to be a number: 0 is a session that was opened outside a container.
        let own_session = Stat::of(getpid()).map(|own| own.session);
        let mut ended = Vec::new();
        for pid in children(getpid()) {
            let Some(stat) = Stat::of(pid).filter(Stat::has_ended) else {
                continue;
            };
            let is_adopted =
                stat.session != pid.as_raw_pid() && own_session.is_some_and(|own| own != stat.session);
            if is_adopted {
                bury(pid, stat);
            } else {
                let since = self.kept.get(&(pid, stat.start)).copied().unwrap_or(now);
                ended.push((pid, stat, since));
            }
        }
        ended.sort_by_key(|&(_, stat, since)| (since, stat.start));
        let spare = ended.len().saturating_sub(KEPT);
        let is_over = |&(position, &(.., since)): &(usize, &(Pid, Stat, u64))| {
            position < spare && (since < now || since % 2 == 0)
        };
        let over = ended.iter().enumerate().take_while(is_over).count();
        for (pid, stat, _) in ended.drain(..over) {
            bury(pid, stat);
        }
        let before = std::mem::take(&mut self.kept);
        self.kept = ended
            .into_iter()
            .map(|(pid, stat, since)| ((pid, stat.start), since))
            .collect();
        if over == 0 && before == self.kept && now.is_multiple_of(2) {
            // Nothing has changed since the last look, and without a task nothing will that matters.
            return Self::rest();
        }
        Some(OFTEN)
    }

    /// Nobody has to be buried before there is a task again: an idle worker is not woken for it.
    fn rest() -> Option<Duration> {
        RESTS.store(true, Ordering::SeqCst);
        let runs = PHASE.load(Ordering::SeqCst) % 2 == 1;
        // A task may have come meanwhile, whose start has not seen the rest.
        (runs && RESTS.swap(false, Ordering::SeqCst)).then_some(SELDOM)
    }
}

/// Waits for a child that has ended, if it is still the one that was seen.
fn bury(pid: Pid, seen: Stat) {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if Stat::of(pid) == Some(seen) {
        waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
        .ok();
    }
}
