//! Processes whose parent has ended, or ends while it starts them.

use std::fs;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Running, Scratch, eventually, program};
use crate::lineage::{ended, runs, start, start_command};
use crate::orphans::Family;

crate::trials! {
    one_is_ended_by_a_hang_up_as_anybody_is
    one_goes_on_when_the_system_hangs_up_on_its_group
    one_that_was_stopped_stays_so
    a_parent_killed_while_it_starts_processes_leaves_nobody_behind_and_says_nothing
}

const KINDS: [&str; 2] = ["free", "copied"];

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// The letter for what a process does.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].chars().next()
}

fn stop(pid: u32) {
    send(pid, Signal::STOP);
    eventually("it is stopped", || state(pid) == Some('T'));
}

/// They are told to go on, and do.
fn go_on(running: &mut Running) {
    running.say("go");
    let mut said = [running.line(), running.line()];
    said.sort();
    assert_eq!(said, ["copied goes on", "free goes on"]);
}

fn one_is_ended_by_a_hang_up_as_anybody_is() {
    let (mut running, processes) = start("park", 3);
    running.kill();
    ended(processes["daemon"]);
    for kind in KINDS {
        assert!(runs(processes[kind]), "{kind}");
        send(processes[kind], Signal::HUP);
        ended(processes[kind]);
    }
}

fn one_goes_on_when_the_system_hangs_up_on_its_group() {
    let (mut running, processes) = start("park", 3);
    let orphans = KINDS.map(|kind| processes[kind]);
    orphans.into_iter().for_each(stop);
    running.kill();
    ended(processes["daemon"]);
    // Where whoever adopts them is in their session, the system does nothing.
    orphans.into_iter().for_each(|pid| send(pid, Signal::CONT));
    go_on(&mut running);
}

fn one_that_was_stopped_stays_so() {
    let mut command = Command::new(program("adoptive"));
    let (mut running, processes) = start_command(command.arg(program("lineage")).arg("park"), 4);
    let orphans = KINDS.map(|kind| processes[kind]);
    orphans.into_iter().for_each(stop);
    send(processes["parent"], Signal::KILL);
    assert_eq!(running.line(), "the parent has ended");
    ended(processes["daemon"]);
    for pid in orphans {
        assert_eq!(state(pid), Some('T'));
        send(pid, Signal::CONT);
    }
    go_on(&mut running);
    running.end();
}

fn a_parent_killed_while_it_starts_processes_leaves_nobody_behind_and_says_nothing() {
    let scratch = Scratch::new();
    for round in 0..12_usize {
        let errors = scratch.path("errors");
        let mut family = Family::of("starter", &[], fs::File::create(&errors).unwrap());
        for _ in 0..round * 7 % 13 {
            assert_eq!(family.parent.line(), "started");
        }
        // Not always right behind a start.
        for turn in 0..round * 50_000 {
            std::hint::black_box(turn);
        }
        family.parent.kill();
        family.is_gone();
        assert_eq!(fs::read_to_string(errors).unwrap(), "");
    }
}
