//! `init` forgotten, too late, under odd circumstances; and what a worker is given of its parent's world.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use rustix::process::{geteuid, getpid};

use crate::fixture::{Ran, Running, Scratch, program, run};

crate::trials! {
    init_forgotten_is_an_error_that_says_what_to_add
    a_child_that_never_comes_to_init_says_so_and_starts_nobody
    init_after_printing_works
    init_inside_a_runtime_works
    a_deleted_binary_starts_workers
    a_main_of_c_is_not_ended_by_sigpipe
    a_replaced_binary_starts_workers
    a_worker_sees_the_world_of_its_parent
    a_parent_without_an_environment_has_workers
    a_parent_with_its_first_descriptors_closed_has_workers
}

/// Runs a program as somebody who can have only a few more processes, and counts how often it was started.
fn run_confined(name: &str) -> (Ran, usize) {
    const NOBODY: u32 = 65534;
    let scratch = Scratch::new();
    let started = scratch.path("started");
    let uid = if geteuid().is_root() {
        NOBODY
    } else {
        geteuid().as_raw()
    };
    let limit = threads_of(uid) + 150;
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={limit}"));
    if geteuid().is_root() {
        // The limit does not hold for root.
        command.args([
            "setpriv",
            &format!("--reuid={uid}"),
            &format!("--regid={uid}"),
            "--clear-groups",
        ]);
    }
    command
        .arg(scratch.copy(name))
        .env("STARTED", &started)
        .env("TOKIO_WORKER_THREADS", "2");
    let ran = run(&mut command);
    let started = fs::read_to_string(started).unwrap_or_default().lines().count();
    (ran, started)
}

/// Threads of a user, which is what the limit counts.
fn threads_of(uid: u32) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let own = processes.filter(|process| process.metadata().is_ok_and(|process| process.uid() == uid));
    let threads = own.filter_map(|process| fs::read_dir(process.path().join("task")).ok());
    threads.map(Iterator::count).sum()
}

fn init_forgotten_is_an_error_that_says_what_to_add() {
    let (ran, started) = run_confined("forgotten");
    let ran = ran.expect_success();
    assert!(
        ran.stdout.contains("make it the first line of main"),
        "{}",
        ran.stdout
    );
    assert_eq!(started, 1);
}

fn a_child_that_never_comes_to_init_says_so_and_starts_nobody() {
    let (ran, started) = run_confined("misled");
    let ran = ran.expect_success();
    for part in [
        "it ended (exit status: 70) before the handshake",
        r#"its first bytes were "misled 1.0, at your service\n""#,
        "procession: this process was started as a worker, but procession::init() has not run",
    ] {
        assert!(ran.stdout.contains(part), "{}{}", ran.stdout, ran.stderr);
    }
    // The program and at most its two workers.
    assert!((2..=3).contains(&started), "{started} processes");
}

fn init_after_printing_works() {
    let ran = run(&mut Command::new(program("banner"))).expect_success();
    assert_eq!(ran.stdout, "banner 1.0\nstarting ... 42\n");
}

fn init_inside_a_runtime_works() {
    let (ran, started) = run_confined("late");
    assert_eq!(ran.expect_success().stdout, "42\n42\n");
    assert_eq!(started, 3);
}

fn a_main_of_c_is_not_ended_by_sigpipe() {
    let ran = run(&mut Command::new(program("c_host"))).expect_success();
    assert_eq!(ran.stdout, "ignores SIGPIPE: false\nall sent\n");
}

fn a_deleted_binary_starts_workers() {
    let scratch = Scratch::new();
    let path = scratch.copy("replaced");
    let mut running = Running::start(&path);
    assert_eq!(running.line(), "ready");
    fs::remove_file(&path).unwrap();
    running.say("go on");
    assert_eq!(running.line(), "true true");
}

fn a_replaced_binary_starts_workers() {
    let scratch = Scratch::new();
    let path = scratch.copy("replaced");
    let mut running = Running::start(&path);
    assert_eq!(running.line(), "ready");
    fs::rename(scratch.copy("forgotten"), &path).unwrap();
    running.say("go on");
    assert_eq!(running.line(), "true true");
}

/// Runs the program that reports on its worker. `shape` gets the program and the file for the report.
fn report(scratch: &Scratch, command: &mut Command) -> Vec<String> {
    command.args(["a b", "", "ü\n", "--help"]).current_dir("/");
    run(command).expect_success();
    let report = fs::read_to_string(scratch.path("report")).unwrap();
    report.lines().map(str::to_owned).collect()
}

fn assert_usual(report: &[String]) {
    assert_eq!(
        report[..3],
        ["arguments: true", "directory: true", "variables: true"]
    );
    assert_eq!(report.last().unwrap(), "child: worker: false, answer: 42");
}

fn a_worker_sees_the_world_of_its_parent() {
    let scratch = Scratch::new();
    let mut command = Command::new(program("report"));
    command
        .arg(scratch.path("report"))
        .env("FROM", getpid().to_string());
    let report = report(&scratch, &mut command);
    assert_usual(&report);
    // The program's name and the worker's, in both columns of `ps`.
    let names = report.iter().find(|line| line.starts_with("names: ")).unwrap();
    assert!(names.starts_with("names: report/0 "), "{names}");
    assert!(names.contains("/report: pool worker 0 "), "{names}");
}

fn a_parent_without_an_environment_has_workers() {
    let scratch = Scratch::new();
    let mut command = Command::new(program("report"));
    command.arg(scratch.path("report")).env_clear();
    assert_usual(&report(&scratch, &mut command));
}

fn a_parent_with_its_first_descriptors_closed_has_workers() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let scratch = Scratch::new();
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!(r#"exec "$0" "$@" {closed}"#)])
            .arg(program("report"))
            .arg(scratch.path("report"));
        assert_usual(&report(&scratch, &mut command));
    }
}
