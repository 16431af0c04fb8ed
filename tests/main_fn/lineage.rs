//! Single processes and the end of their parent: daemons end with it, whatever ends it, and the others go on.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use crate::fixture::{Running, eventually, program};

crate::trials! {
    daemons_end_with_a_parent_that_is_killed_and_others_go_on
    daemons_end_with_a_parent_that_returns_and_others_go_on
    daemons_end_with_a_parent_that_exits_and_others_go_on
    daemons_end_with_a_parent_that_aborts_and_others_go_on
    join_children_waits_for_those_that_are_no_daemons
    run_main_waits_for_those_that_are_no_daemons
    a_process_waits_for_its_own_as_main_does
    a_process_with_a_large_argument_runs_when_its_parent_has_returned
    a_process_prints_on_when_nobody_hears_it_any_more
}

/// Starts the program and gives the numbers of its processes by kind.
pub(crate) fn start(moment: &str, processes: usize) -> (Running, HashMap<String, u32>) {
    start_command(Command::new(program("lineage")).arg(moment), processes)
}

/// The same, through another program.
pub(crate) fn start_command(command: &mut Command, processes: usize) -> (Running, HashMap<String, u32>) {
    let running = Running::start_command(command);
    let said: HashMap<String, u32> = (0..processes)
        .map(|_| {
            let line = running.line();
            let (kind, pid) = line.split_once(' ').unwrap();
            (kind.to_owned(), pid.parse().unwrap())
        })
        .collect();
    assert_eq!(said.len(), processes, "{said:?}");
    (running, said)
}

/// Whether the process runs: what has ended and waits for its burial does not.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')')
        .is_some_and(|end| !stat[end + 2..].starts_with('Z'))
}

pub(crate) fn ended(pid: u32) {
    eventually("it has ended", || !runs(pid));
}

/// The parent ends by `moment`, and `end` where it does not do so itself.
fn parent_ends(moment: &str, end: impl FnOnce(&mut Running)) {
    let (mut running, processes) = start(moment, 3);
    end(&mut running);
    ended(processes["daemon"]);
    for kind in ["free", "copied"] {
        assert!(runs(processes[kind]), "{kind}");
    }
    running.say("go");
    let mut said = [running.line(), running.line()];
    said.sort();
    assert_eq!(said, ["copied goes on", "free goes on"]);
    ended(processes["free"]);
    ended(processes["copied"]);
}

fn daemons_end_with_a_parent_that_is_killed_and_others_go_on() {
    parent_ends("park", Running::kill);
}

fn daemons_end_with_a_parent_that_returns_and_others_go_on() {
    parent_ends("return", Running::end);
}

fn daemons_end_with_a_parent_that_exits_and_others_go_on() {
    parent_ends("exit", Running::end);
}

fn daemons_end_with_a_parent_that_aborts_and_others_go_on() {
    parent_ends("abort", Running::end);
}

/// The parent waits for its processes, and then ends.
fn waits(moment: &str) -> Running {
    let (mut running, processes) = start(moment, 3);
    running.say("go");
    let mut said = [running.line(), running.line()];
    said.sort();
    assert_eq!(said, ["copied goes on", "free goes on"]);
    if moment == "join" {
        assert_eq!(running.line(), "joined");
    }
    running.end();
    // Waited for and buried: not even their remains are left.
    for kind in ["free", "copied"] {
        assert!(
            !fs::exists(format!("/proc/{}", processes[kind])).unwrap(),
            "{kind}"
        );
    }
    ended(processes["daemon"]);
    running
}

fn join_children_waits_for_those_that_are_no_daemons() {
    waits("join");
}

fn run_main_waits_for_those_that_are_no_daemons() {
    waits("run-main");
}

fn a_process_waits_for_its_own_as_main_does() {
    let (mut running, _) = start("nested", 2);
    running.say("go");
    let mut said = [running.line(), running.line()];
    said.sort();
    assert_eq!(said, ["copied goes on", "free goes on"]);
    assert_eq!(running.line(), "the process has ended");
    running.end();
}

fn a_process_with_a_large_argument_runs_when_its_parent_has_returned() {
    let (mut running, processes) = start("large", 2);
    for kind in ["large", "large-copied"] {
        assert_eq!(processes[kind], 4 << 20, "{kind}");
    }
    running.end();
}

fn a_process_prints_on_when_nobody_hears_it_any_more() {
    let (mut running, processes) = start("print", 2);
    running.kill();
    running.say("go");
    let mut said = [running.line(), running.line()];
    said.sort();
    assert_eq!(
        said,
        ["printed and its child too", "printed-copied and its child too"]
    );
    processes.into_values().for_each(ended);
}
