//! What a worker has started, found in `/proc` and killed, wherever it went.
//!
//! A worker is a subreaper: whatever it started stays below it in the tree of processes, however often that forks and
//! whatever group or session it moves to. So the tree is the list. It is walked until nothing new turns up, and the
//! worker itself goes last, for with it the tree falls apart.
//!
//! Only numbers of processes are found in `/proc`, and a number may be given to another process at any time. What is
//! killed has been opened first, and was looked at after that.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, child_subreaper, getpid, kill_process,
    kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};

/// Walks after which what is in the worker's own group is killed one by one as well.
const PATIENT_ROUNDS: u32 = 3;
/// What a killed process may take to be gone before the tree is walked again.
const DEATH: Duration = Duration::from_millis(2);
/// What a killed process may take to be gone before it is left to whoever comes later.
const BURIAL: Duration = Duration::from_millis(100);
/// Killed processes that are remembered until they are buried.
const MOST_REMAINS: usize = 1024;

/// What `/proc/<pid>/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    state: u8,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// When it started, in ticks since the machine did: with the number it names a process for good.
    pub(crate) start: u64,
}

impl Stat {
    /// Whether it has ended, and waits at most for its burial.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    fn parse(text: &str) -> Option<Self> {
        // The name before it is the process's own choice, brackets and blanks included.
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        let start = fields.nth(15)?.parse().ok()?;
        Some(Self {
            state,
            parent,
            group,
            session,
            start,
        })
    }

    pub(crate) fn of(pid: Pid) -> Option<Self> {
        let text = read(&format!("/proc/{pid}/stat")).ok()?;
        Self::parse(std::str::from_utf8(&text).ok()?)
    }
}

/// Everybody below `root` who has not ended.
pub(super) fn family(root: Pid) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    let mut todo = if can_see() { vec![root] } else { Vec::new() };
    while let Some(parent) = todo.pop() {
        for pid in children(parent) {
            let is_child =
                || Stat::of(pid).is_some_and(|stat| stat.parent == parent.as_raw_pid() && !stat.has_ended());
            // Looked at again when it is open, for until then the number may have become another's.
            if is_child()
                && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
                && is_child()
            {
                found.push(pidfd);
                todo.push(pid);
            }
        }
    }
    found
}

/// Whether a process has a handler for a signal.
pub(super) fn catches(pid: Pid, signal: Signal) -> bool {
    let status = read(&format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// A file of `/proc`, which is read in one go if it is as short as most are.
pub(super) fn read(path: &str) -> io::Result<Vec<u8>> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = vec![0; 1024];
    let mut length = 0;
    loop {
        match rustix::io::read(&file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if length == bytes.len() {
            bytes.resize(length * 4, 0);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

fn numbers(text: &[u8]) -> impl Iterator<Item = Pid> {
    text.split(u8::is_ascii_whitespace)
        .filter_map(|number| parse_pid(std::str::from_utf8(number).ok()?))
}

fn parse_pid(number: &str) -> Option<Pid> {
    Pid::from_raw(number.parse().ok().filter(|&number| number > 0)?)
}

/// The children of a process, those included that have ended and were not waited for.
///
/// Each of its threads has a list of its own. Where the kernel keeps none, every process is asked for its parent.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut has_list = false;
    for thread in threads.filter_map(Result::ok) {
        let thread = thread.file_name();
        // A thread may end meanwhile; its children are then those of another.
        if let Ok(text) = read(&format!("/proc/{pid}/task/{}/children", thread.display())) {
            has_list = true;
            found.extend(numbers(&text));
        }
    }
    if has_list {
        return found;
    }
    processes()
        .filter(|&other| Stat::of(other).is_some_and(|stat| stat.parent == pid.as_raw_pid()))
        .collect()
}

/// Whether `/proc` is there and its numbers are those that this process knows. In a namespace of processes of its own
/// it may still see that of the machine, where the same numbers belong to others.
pub(crate) fn can_see() -> bool {
    static CAN_SEE: OnceLock<bool> = OnceLock::new();
    *CAN_SEE.get_or_init(|| {
        let status = read("/proc/self/status").unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let own = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        // One number for each namespace between that of the file system and that of the process.
        own.is_some_and(|own| own.split_ascii_whitespace().eq([getpid().to_string().as_str()]))
    })
}

/// All processes that can be seen.
pub(super) fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| parse_pid(entry.ok()?.file_name().to_str()?))
}

/// Whether processes whose parents end become children of this one, to be waited for here.
pub(crate) fn adopts() -> bool {
    getpid() == Pid::INIT || child_subreaper().is_ok_and(|set| set.is_some())
}

/// Waits for the end of a child, and buries it. One that is somebody else's child is left to them.
pub(super) fn bury(pidfd: &OwnedFd) {
    if ends_within(pidfd, BURIAL) {
        waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
        .ok();
    }
}

/// Buries the children of this process that are of a killed worker's `family`, or in a group or session that one of
/// those leads, but for the worker itself.
pub(super) fn bury_family(worker: Pid, family: &HashSet<Pid>) {
    let is_of_them = |stat: Stat, pid| {
        let leads = |leader| Pid::from_raw(leader).is_some_and(|leader| family.contains(&leader));
        family.contains(&pid) || leads(stat.group) || leads(stat.session)
    };
    let until = Instant::now() + BURIAL;
    loop {
        let mut found = false;
        for pid in children(getpid()).into_iter().filter(|&pid| pid != worker) {
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if Stat::of(pid).is_some_and(|stat| stat.parent == getpid().as_raw_pid() && is_of_them(stat, pid))
            {
                bury(&pidfd);
                found = true;
            }
        }
        // Whoever was buried may have had children, which are children of this process by now.
        if !found || Instant::now() >= until {
            return;
        }
    }
}

/// Whether a process has ended, buried or not.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    ends_within(pidfd, Duration::ZERO)
}

fn ends_within(pidfd: &OwnedFd, time: Duration) -> bool {
    let timeout = Timespec::try_from(time).unwrap_or_default();
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// The descendants of one process, on their way to their end.
#[derive(Debug)]
pub(crate) struct Sweep {
    root: Pid,
    root_fd: Option<Arc<OwnedFd>>,
    /// A process group that is killed as a whole afterwards, and whose members need not be killed before.
    group: Option<Pid>,
    /// Killed so far, by number and start.
    killed: HashSet<(Pid, u64)>,
    rounds: u32,
    /// Walks in a row that found nobody new.
    clean: u32,
    /// Members of the group that the last walk saw.
    spared: Vec<Arc<OwnedFd>>,
    /// Those that were seen, where they will have to be buried by this process.
    family: Option<HashSet<Pid>>,
}

impl Sweep {
    /// A sweep of what is below `root`: this process, or one that [`of_other`](Self::of_other) tells apart from those
    /// that get its number later.
    pub(crate) fn new(root: Pid, group: Option<Pid>) -> Self {
        Self {
            root,
            root_fd: None,
            group,
            killed: HashSet::new(),
            rounds: 0,
            clean: 0,
            spared: Vec::new(),
            family: None,
        }
    }

    pub(crate) fn of_other(mut self, pidfd: &Arc<OwnedFd>) -> Self {
        self.root_fd = Some(Arc::clone(pidfd));
        self
    }

    /// Remembers who will have to be buried here.
    pub(crate) fn keep_family(mut self) -> Self {
        self.family = Some(HashSet::new());
        self
    }

    /// Kills until nobody is left outside the group; `false` when the time is up before that.
    pub(crate) fn run(&mut self, time: Duration) -> bool {
        if !can_see() {
            return true;
        }
        let until = Instant::now() + time;
        loop {
            let (found, last) = self.round();
            // Nobody at all, or nobody new in two walks: between the first and the second, what a dying process
            // leaves has moved up to the root.
            if (found == 0 && !self.has_killed()) || self.clean >= 2 {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            if let Some(last) = last {
                ends_within(&last, DEATH);
            }
        }
    }

    /// Whether anybody had to be killed.
    pub(crate) fn has_killed(&self) -> bool {
        !self.killed.is_empty()
    }

    /// Kills members of the group that left it since they were seen there. For after the group's end.
    pub(crate) fn kill_spared(&mut self) {
        for pidfd in self.spared.drain(..) {
            pidfd_send_signal(&pidfd, Signal::KILL).ok();
        }
    }

    /// Who has to be buried, if that was asked for.
    pub(crate) fn take_family(&mut self) -> HashSet<Pid> {
        self.family.take().unwrap_or_default()
    }

    /// Walks the tree once. Gives how many live descendants it has, and the last of them that was killed just now.
    fn round(&mut self) -> (usize, Option<Arc<OwnedFd>>) {
        let group = self.group.filter(|_| self.rounds < PATIENT_ROUNDS);
        self.rounds += 1;
        self.clean += 1;
        self.spared.clear();
        let (mut found, mut last) = (0, None);
        let mut todo = vec![(self.root, self.root_fd.clone())];
        while let Some((parent, parent_fd)) = todo.pop() {
            let listed = children(parent);
            // The list of a process that has ended may be that of another with its number. Its own children are the
            // root's by now.
            let has_ended = parent_fd.as_deref().is_some_and(has_ended);
            // The youngest first, which may be about to make way for another.
            for pid in listed.into_iter().rev().filter(|_| !has_ended) {
                let child = || Stat::of(pid).filter(|stat| stat.parent == parent.as_raw_pid());
                let Some(stat) = child() else {
                    // Gone since it was listed, and what it started meanwhile is not in this list.
                    self.clean = 0;
                    found += 1;
                    continue;
                };
                if let Some(family) = self.family.as_mut().filter(|family| family.len() < MOST_REMAINS) {
                    family.insert(pid);
                }
                if stat.has_ended() {
                    continue;
                }
                let pidfd = pidfd_open(pid, PidfdFlags::empty());
                // Looked at once more when it is open, for its number may be another's by now.
                let Some(stat) = child().filter(|stat| !stat.has_ended()) else {
                    continue;
                };
                found += 1;
                let Ok(pidfd) = pidfd else {
                    // Out of descriptors. It has just been seen where it belongs.
                    if kill_process(pid, Signal::KILL).is_ok() && self.killed.insert((pid, stat.start)) {
                        self.clean = 0;
                    }
                    continue;
                };
                let is_spared = group.is_some_and(|group| stat.group == group.as_raw_pid());
                let is_new = !is_spared && self.killed.insert((pid, stat.start));
                if is_new && kill(pid, &pidfd, stat) {
                    self.clean = 0;
                }
                let pidfd = Arc::new(pidfd);
                if is_new {
                    last = Some(Arc::clone(&pidfd));
                }
                if is_spared {
                    self.spared.push(Arc::clone(&pidfd));
                }
                // After it was killed: now it starts nobody that is not seen.
                todo.push((pid, Some(pidfd)));
            }
        }
        (found, last)
    }
}

/// Kills a process, with its group if that is its own. `false` where it belongs to somebody else.
fn kill(pid: Pid, pidfd: &OwnedFd, stat: Stat) -> bool {
    if pidfd_send_signal(pidfd, Signal::KILL).is_err() {
        return false;
    }
    if stat.group == pid.as_raw_pid() {
        kill_process_group(pid, Signal::KILL).ok();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_from_behind_the_name() {
        let line =
            "4711 (a) R 1 (b) S 4700 4600 4500 34816 4800 4194304 1 2 3 4 5 6 7 8 20 0 1 0 123456 8 9\n";
        let stat = Stat::parse(line).unwrap();
        let expected = Stat {
            state: b'S',
            parent: 4700,
            group: 4600,
            session: 4500,
            start: 123_456,
        };
        assert_eq!(stat, expected);
        assert!(!stat.has_ended());
        let own = Stat::of(getpid()).unwrap();
        assert_eq!(
            Pid::from_raw(own.parent),
            rustix::process::getppid(),
            "of this very process"
        );
    }

    #[test]
    fn a_line_that_is_cut_short_is_none() {
        for line in [
            "",
            "1",
            "1 (",
            "1 (a)",
            "1 (a) Z",
            "1 (a) Z 1 2 3 4",
            "1 (a) Z x 2 3",
        ] {
            assert_eq!(Stat::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn lists_of_children_are_numbers_between_blanks() {
        let read = |text: &[u8]| numbers(text).map(Pid::as_raw_pid).collect::<Vec<_>>();
        assert_eq!(read(b"12 34 56 "), [12, 34, 56]);
        assert!(read(b"").is_empty());
        assert_eq!(read(b"0 -1 x 7"), [7]);
    }
}
