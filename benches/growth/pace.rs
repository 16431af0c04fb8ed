//! Calls at a fixed rate, whatever the runtime's timers can tell apart.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::Error;

/// Ticks of a timer of the system, which is exact to some microseconds. Those that were missed are not left out.
pub(crate) struct Pace {
    timer: AsyncFd<OwnedFd>,
    next: Instant,
    period: Duration,
    ready: u64,
}

impl Pace {
    pub(crate) fn new(period: Duration) -> Result<Self, Error> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let period_of_timer = Timespec {
            tv_sec: period.as_secs().try_into()?,
            tv_nsec: period.subsec_nanos().into(),
        };
        let times = Itimerspec {
            it_interval: period_of_timer,
            it_value: period_of_timer,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
        #[expect(
            deprecated,
            reason = "what it holds is never exchanged; to promise so takes `unsafe`, which has its places"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self {
            timer,
            next: Instant::now() + period,
            period,
            ready: 0,
        })
    }

    /// Waits for the next tick, and says when it was due.
    pub(crate) async fn tick(&mut self) -> Result<Instant, Error> {
        while self.ready == 0 {
            let mut guard = self.timer.readable().await?;
            let mut ticks = [0; 8];
            match guard.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut ticks)?)) {
                Ok(read) => {
                    read?;
                    self.ready = u64::from_ne_bytes(ticks);
                }
                Err(_would_block) => {}
            }
        }
        self.ready -= 1;
        let due = self.next;
        self.next += self.period;
        Ok(due)
    }
}
