//! Ctrl-Z and `fg`: workers and processes stop and go on with the program.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::process::child::signal_all;
use crate::runtime;
use crate::shared::dispositions::{Disposition, disposition, suffer};
use crate::shared::ledger::clock;

/// When this process was suspended, in nanoseconds on [`clock`]: from, to. The last has no end while it lasts.
static SUSPENSIONS: Mutex<Vec<(u64, Option<u64>)>> = Mutex::new(Vec::new());

/// From now on, Ctrl-Z stops the workers of all pools, and every [`Process`](crate::Process), with the program, and `fg`,
/// `bg` or `kill -CONT` continue them with it. It cannot be taken back; calling it again is harmless.
///
/// They are stopped with SIGSTOP, with all that they started in their process group. The
/// [timeouts](crate::Task::timeout) of tasks do not run on while they are stopped in this way; queue timeouts and
/// deadlines do, as clocks do. What workers and processes have started with this library is not stopped, unless this is
/// called there. A program that is stopped by SIGSTOP, which cannot be heard of, is stopped alone.
///
/// It handles SIGTSTP. A program that does so itself, to restore the terminal, say, calls [`suspend`] there instead.
///
/// # Errors
///
/// The library's runtime cannot be started, or the handler not be installed.
pub fn job_control() -> io::Result<()> {
    static LISTENING: Mutex<bool> = Mutex::new(false);
    let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
    // A shell without job control may have the signal ignored, and nothing would continue what it stops.
    if *listening || disposition(Signal::TSTP) == Disposition::Ignored {
        return Ok(());
    }
    let own = runtime::handle()?;
    let entered = own.enter();
    let mut stops = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
    drop(entered);
    own.spawn(async move {
        while stops.recv().await.is_some() {
            suspend();
        }
    });
    *listening = true;
    Ok(())
}

/// Stops the workers of all pools, and every [`Process`](crate::Process), and then this program, as Ctrl-Z does with
/// [`job_control`]. Returns when the program is continued, and they are.
///
/// Where nothing could continue it, in a process group that no shell looks after, the program is not stopped.
///
/// # Blocking
///
/// It blocks until the program is continued, as does every thread.
pub fn suspend() {
    static SUSPENDING: Mutex<()> = Mutex::new(());
    let _suspending = SUSPENDING.lock().unwrap_or_else(PoisonError::into_inner);
    suspensions().push((clock(), None));
    signal_all(Signal::STOP);
    suffer(Signal::TSTP);
    signal_all(Signal::CONT);
    if let Some((_, end)) = suspensions().last_mut() {
        *end = Some(clock());
    }
}

fn suspensions() -> MutexGuard<'static, Vec<(u64, Option<u64>)>> {
    SUSPENSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For how many nanoseconds between two times on [`clock`] this process has been suspended.
pub(crate) fn suspended_between(from: u64, to: u64) -> u64 {
    overlap(&suspensions(), from, to)
}

fn overlap(suspensions: &[(u64, Option<u64>)], from: u64, to: u64) -> u64 {
    let overlaps = suspensions.iter().map(|&(began, ended)| {
        let ended = ended.unwrap_or(to).min(to);
        ended.saturating_sub(began.max(from))
    });
    overlaps.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_in_between_counts() {
        let suspensions = [(10, Some(20)), (30, Some(40)), (50, None)];
        assert_eq!(overlap(&suspensions, 0, 60), 30);
        assert_eq!(overlap(&suspensions, 15, 35), 10);
        assert_eq!(overlap(&suspensions, 20, 30), 0);
        assert_eq!(overlap(&suspensions, 55, 58), 3);
        assert_eq!(overlap(&suspensions, 60, 45), 0);
    }
}
