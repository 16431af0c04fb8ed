//! A parent that ends, by force or by itself, or that ends its workers: nothing that they started lives on.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::fixture::{Running, Scratch, eventually, program};

crate::trials! {
    a_killed_parent_leaves_nobody_behind
    a_parent_killed_with_idle_workers_leaves_nobody_behind
    a_parent_killed_while_tasks_run_leaves_nobody_behind
    a_parent_killed_while_initializers_run_leaves_nobody_behind
    a_parent_killed_while_workers_start_leaves_nobody_behind
    a_parent_killed_during_a_large_transfer_leaves_nobody_behind
    a_parent_that_exits_without_dropping_its_pool_leaves_nobody_behind
    a_parent_that_leaks_its_pool_leaves_nobody_behind
    a_pool_that_is_terminated_leaves_nobody_behind
    a_pool_that_ends_in_peace_leaves_nobody_behind
    a_leaked_pool_whose_runtime_is_dropped_leaves_nobody_behind
    a_task_that_is_cancelled_leaves_nobody_behind
    a_worker_that_crashes_leaves_nobody_behind
}

/// What the program's tasks start, but for the one kind that only a spinning task does.
const KINDS: usize = 9;

/// The program, and a variable that it and all that come of it have in their environment.
pub(crate) struct Family {
    pub(crate) parent: Running,
    tag: String,
    /// Processes that have cleared theirs.
    bare: Vec<OwnedFd>,
}

impl Family {
    fn start(arguments: &[&str]) -> Self {
        Self::of("ancestor", arguments, Stdio::null())
    }

    /// A program whose errors go to `stderr`.
    pub(crate) fn of(name: &str, arguments: &[&str], stderr: impl Into<Stdio>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("FAMILY=procession-{}-{number}", std::process::id());
        let (variable, value) = tag.split_once('=').unwrap();
        let mut command = Command::new(program(name));
        command.args(arguments).env(variable, value).stderr(stderr);
        Self {
            parent: Running::start_command(&mut command),
            tag,
            bare: Vec::new(),
        }
    }

    /// Waits until so many of the processes that tasks start are in place.
    fn gathered(mut self, count: usize) -> Self {
        for _ in 0..count {
            let line = self.parent.line();
            match line.split_once(' ') {
                Some(("bare", pid)) => {
                    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
                    self.bare.push(pidfd_open(pid, PidfdFlags::empty()).unwrap());
                }
                _ => assert_eq!(line, "ready"),
            }
        }
        self
    }

    /// Those of the family that live, by number and program, the parent not among them.
    fn living(&self) -> Vec<(u32, String)> {
        let is_one = |pid: u32| {
            // That of a zombie is empty.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|&byte| byte == 0)
                .any(|variable| variable == self.tag.as_bytes())
        };
        let numbers = fs::read_dir("/proc").unwrap();
        numbers
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| pid != self.parent.pid() && is_one(pid))
            .map(|pid| {
                let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                (pid, program.to_string_lossy().into_owned())
            })
            .collect()
    }

    fn bare_are_gone(&self) -> bool {
        let now = Timespec::default();
        self.bare
            .iter()
            .all(|pidfd| poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1))
    }

    #[track_caller]
    pub(crate) fn is_gone(&self) {
        let mut left = Vec::new();
        eventually("nobody is left", || {
            left = self.living();
            left.is_empty() && self.bare_are_gone()
        });
    }

    /// Waits until the parent has no child, zombies included, but this many that live.
    #[track_caller]
    fn has_children(&self, count: usize) {
        eventually("no other children", || {
            let children: Vec<String> = fs::read_dir("/proc")
                .unwrap()
                .filter_map(|entry| {
                    let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
                    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
                    let state = fields.next()?.to_owned();
                    (fields.next()? == self.parent.pid().to_string()).then_some(state)
                })
                .collect();
            children.len() == count && !children.iter().any(|state| state == "Z")
        });
    }
}

fn killed(moment: &str, lines: &[&str], ready: usize) {
    let family = Family::start(&[moment]);
    for line in lines {
        assert_eq!(family.parent.line(), *line);
    }
    let mut family = family.gathered(ready);
    family.parent.kill();
    family.is_gone();
}

fn a_parent_killed_with_idle_workers_leaves_nobody_behind() {
    killed("idle", &[], KINDS);
}

fn a_parent_killed_while_tasks_run_leaves_nobody_behind() {
    killed("spinning", &[], KINDS);
}

fn a_parent_killed_while_initializers_run_leaves_nobody_behind() {
    killed("start", &["building"], 2 * KINDS);
}

fn a_parent_killed_while_workers_start_leaves_nobody_behind() {
    for _ in 0..10 {
        killed("early", &["building"], 0);
    }
}

fn a_parent_killed_during_a_large_transfer_leaves_nobody_behind() {
    for _ in 0..3 {
        killed("transfer", &[], KINDS);
    }
}

fn ends_by_itself(moment: &str) {
    let mut family = Family::start(&[moment]).gathered(KINDS);
    family.parent.say("go on");
    family.parent.end();
    family.is_gone();
}

fn a_parent_that_exits_without_dropping_its_pool_leaves_nobody_behind() {
    ends_by_itself("exit");
}

fn a_parent_that_leaks_its_pool_leaves_nobody_behind() {
    ends_by_itself("leak");
}

fn lives_on(moment: &str) {
    let mut family = Family::start(&[moment]).gathered(KINDS);
    family.parent.say("go on");
    assert_eq!(family.parent.line(), "ended");
    family.is_gone();
    family.has_children(0);
}

fn a_pool_that_is_terminated_leaves_nobody_behind() {
    lives_on("terminate");
}

fn a_pool_that_ends_in_peace_leaves_nobody_behind() {
    lives_on("end");
}

fn a_leaked_pool_whose_runtime_is_dropped_leaves_nobody_behind() {
    lives_on("runtime");
}

/// Only two workers are left.
#[track_caller]
fn only_workers_are_left(family: &Family) {
    eventually("only workers are left", || {
        let living = family.living();
        living.len() == 2
            && living.iter().all(|(_, program)| program.ends_with("/ancestor"))
            && family.bare_are_gone()
    });
    family.has_children(2);
}

fn a_task_that_is_cancelled_leaves_nobody_behind() {
    let mut family = Family::start(&["cancel"]).gathered(KINDS);
    family.parent.say("go on");
    assert_eq!(family.parent.line(), "cancelled");
    only_workers_are_left(&family);
}

fn a_worker_that_crashes_leaves_nobody_behind() {
    let scratch = Scratch::new();
    let gate = scratch.path("gate");
    let family = Family::start(&["crash", gate.to_str().unwrap()]).gathered(KINDS - 1);
    fs::write(gate, "").unwrap();
    only_workers_are_left(&family);
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
    for (line, pidfd) in &processes {
        eventually(&format!("{line} is gone"), || {
            let now = Timespec::default();
            poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1)
        });
    }
}
