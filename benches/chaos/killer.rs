//! Who sends signals to workers, at random moments.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use procession::Pool;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::random::Random;
use crate::staff::Staff;

const SIGNALS: [(&str, Signal); 6] = [
    ("SIGKILL", Signal::KILL),
    ("SIGSTOP", Signal::STOP),
    ("SIGCONT", Signal::CONT),
    ("SIGTERM", Signal::TERM),
    ("SIGSEGV", Signal::SEGV),
    ("SIGABRT", Signal::ABORT),
];

#[derive(Debug, Default)]
pub(crate) struct Sent([AtomicU64; SIGNALS.len()]);

impl Sent {
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub(crate) fn table(&self) -> String {
        let mut table = String::new();
        for ((name, _), count) in SIGNALS.iter().zip(&self.0) {
            table += &format!("{name} {}  ", count.load(Relaxed));
        }
        table.trim_end().to_owned()
    }

    fn send(&self, to: &OwnedFd, index: usize) -> bool {
        // One that has ended meanwhile is what a descriptor of a process is for: nobody else is hit.
        let is_sent = pidfd_send_signal(to, SIGNALS[index].1).is_ok();
        self.0[index].fetch_add(u64::from(is_sent), Relaxed);
        is_sent
    }
}

/// Sends signals until it is told to stop. Every worker that it stops goes on or dies soon, for without a time limit
/// its task would wait as long as it does.
pub(crate) fn kill(
    staff: &Staff,
    pools: &[Pool],
    sent: &Sent,
    is_over: &AtomicBool,
    seed: u64,
    pause: Duration,
) {
    let mut random = Random::new(seed);
    let mut stopped: BTreeMap<(Instant, u64), OwnedFd> = BTreeMap::new();
    let mut stops = 0;
    let pause = pause.as_micros() as u64;
    while !is_over.load(Relaxed) {
        // A moment of the load that nothing announces.
        std::thread::park_timeout(random.micros(0..2 * pause + 1));
        resume(&mut stopped, sent, &mut random, Instant::now());
        let pid = if random.one_in(8) {
            let workers = random.pick(pools).map(Pool::workers).unwrap_or_default();
            random.pick(&workers).and_then(|worker| worker.pid)
        } else {
            staff.pick(&mut random)
        };
        let Some(child) = pid.and_then(child) else {
            continue;
        };
        match random.within(0..20) {
            0..7 => _ = sent.send(&child, 0),
            7..14 => {
                if sent.send(&child, 1) {
                    stops += 1;
                    let long = if random.one_in(10) { 2000 } else { 100 };
                    stopped.insert((Instant::now() + random.millis(0..long), stops), child);
                }
            }
            14..18 => _ = sent.send(&child, 3),
            18 => _ = sent.send(&child, 4),
            _ => _ = sent.send(&child, 5),
        }
    }
    let ever = Instant::now() + Duration::from_secs(3600);
    resume(&mut stopped, sent, &mut random, ever);
}

/// Ends the stops that have lasted long enough.
fn resume(stopped: &mut BTreeMap<(Instant, u64), OwnedFd>, sent: &Sent, random: &mut Random, now: Instant) {
    while let Some(entry) = stopped.first_entry()
        && entry.key().0 <= now
    {
        let child = entry.remove();
        sent.send(&child, if random.one_in(4) { 0 } else { 2 });
    }
}

/// A process that is our child. Its number is looked at after the descriptor is open: if it has been another's by
/// then, that other's parent is seen.
fn child(pid: u32) -> Option<OwnedFd> {
    let child = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    (crate::leaks::parent_of(pid)? == std::process::id()).then_some(child)
}
