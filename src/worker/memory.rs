//! Watching this worker's memory: a thread that looks while tasks run and ends the worker that has too much.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::reply::Replies;

/// What a worker may be taken to allocate: the pause between two looks is what it takes to come to the limit at this
/// rate, in bytes per millisecond.
const RATE: u64 = (4 << 30) / 1000;
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Looks without a task and without growth before it sleeps until there is a task: a worker with much to do never pays
/// for waking it, and one with nothing to do for being watched.
const IDLE_LOOKS: u32 = 3;
const STACK: usize = 256 * 1024;

static WATCHED: OnceLock<Watched> = OnceLock::new();

/// Whoever runs tasks sees this.
#[derive(Debug)]
struct Watched {
    activity: Arc<Activity>,
    watcher: Thread,
}

#[derive(Debug, Default)]
struct Activity {
    /// Tasks that run, and the initializer.
    running: AtomicUsize,
    /// The watcher sleeps, and must be woken.
    asleep: AtomicBool,
}

/// Something runs here while this exists.
#[derive(Debug)]
pub(super) struct Running(&'static Activity);

/// Something begins to run; `None` where nobody watches.
pub(super) fn running() -> Option<Running> {
    let Watched { activity, watcher } = WATCHED.get()?;
    // In total order with the watcher's own store and load: it sees this, or is seen to sleep.
    activity.running.fetch_add(1, Ordering::SeqCst);
    if activity.asleep.load(Ordering::SeqCst) {
        watcher.unpark();
    }
    Some(Running(activity))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where the kernel tells this process's memory.
#[derive(Debug)]
pub(super) struct Statm(File);

impl Statm {
    pub(super) fn open() -> io::Result<Self> {
        let statm = Self(File::open("/proc/self/statm")?);
        // A file of that name which tells nothing is none.
        match statm.resident() {
            Some(_) => Ok(statm),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/self/statm does not tell",
            )),
        }
    }

    /// Bytes that are resident: the second field, in pages.
    pub(super) fn resident(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
}

/// Starts to watch that this process has at most `limit` bytes resident.
pub(super) fn start(statm: Statm, limit: u64, replies: Arc<Replies>) -> io::Result<()> {
    let activity = Arc::new(Activity::default());
    let watcher = thread::Builder::new()
        .name("procession-memory".to_owned())
        .stack_size(STACK)
        .spawn({
            let activity = Arc::clone(&activity);
            move || watch(&statm, limit, &activity, &replies)
        })?;
    let watcher = watcher.thread().clone();
    // A worker is set up once.
    WATCHED.get_or_init(|| Watched { activity, watcher });
    Ok(())
}

fn watch(statm: &Statm, limit: u64, activity: &Activity, replies: &Replies) -> ! {
    let mut rest = Rest::default();
    loop {
        // What was open is open for good; a look that fails is as good as none.
        let resident = statm.resident().unwrap_or(0);
        if resident > limit {
            end(resident, replies);
        }
        if !rest.has_come(activity.running.load(Ordering::SeqCst), resident) {
            thread::park_timeout(pause(limit - resident));
            continue;
        }
        activity.asleep.store(true, Ordering::SeqCst);
        while activity.running.load(Ordering::SeqCst) == 0 {
            thread::park();
        }
        activity.asleep.store(false, Ordering::SeqCst);
        rest = Rest::default();
    }
}

/// Whether anything goes on here that needs watching.
#[derive(Debug, Default)]
struct Rest {
    looks: u32,
    resident: u64,
}

impl Rest {
    /// Whether nothing has gone on for some looks. A thread that a task has left behind may still take memory.
    fn has_come(&mut self, running: usize, resident: u64) -> bool {
        if running > 0 || resident > self.resident {
            self.looks = 0;
        } else {
            self.looks += 1;
        }
        self.resident = resident;
        self.looks >= IDLE_LOOKS
    }
}

/// The pause before the next look with so many bytes left.
fn pause(left: u64) -> Duration {
    Duration::from_millis(left / RATE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Leaves word of why, where it outlives the process, and ends it.
fn end(resident: u64, replies: &Replies) -> ! {
    replies.ledger().out_of_memory(resident);
    loop {
        // Nothing can stop this one; what the worker has started is the parent's business, as at any other end.
        kill_process(getpid(), Signal::KILL).ok();
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_the_more_frequent_the_less_is_left() {
        assert_eq!(pause(0), SHORTEST_PAUSE);
        assert_eq!(pause(RATE * 7), Duration::from_millis(7));
        assert_eq!(pause(u64::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn watching_rests_when_nothing_runs_and_nothing_grows() {
        let mut rest = Rest::default();
        let looks = [
            (1, 5),
            (0, 5),
            (0, 5),
            (0, 6),
            (0, 4),
            (0, 4),
            (1, 4),
            (0, 4),
            (0, 4),
        ];
        for (running, resident) in looks {
            assert!(!rest.has_come(running, resident));
        }
        assert!(rest.has_come(0, 4));
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(Statm::open().unwrap().resident().unwrap() > 0);
    }
}
