//! Where the system gives less than usual: a pool works, or says clearly why not. It never panics or hangs.
//!
//! What a test needs of the system it asks for first. Where that is not permitted, it says so and is over.

use std::fs;
use std::process::Command;

use rustix::process::geteuid;

use crate::fixture::{Scratch, program, run};

crate::trials! {
    the_first_process_of_a_container_buries_whom_it_adopts
    the_first_process_of_a_container_buries_what_its_processes_leave
    a_file_system_that_cannot_be_written_to_does_no_harm
    without_proc_there_are_workers
    with_the_proc_of_another_namespace_there_are_workers
    processes_of_others_may_be_hidden
    a_group_with_few_processes_is_enough_or_an_error
    a_limit_on_processes_is_an_error_that_says_so
    a_limit_on_descriptors_is_an_error_that_says_so
}

const NOBODY: u32 = 65534;

/// Somebody who may have only so many threads and has none yet, for whom a command shall run, or `None` where it is not
/// for us to say.
fn as_somebody(threads: usize) -> Option<Command> {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can run a program as somebody who has no processes yet");
        return None;
    }
    // What others run, and what ends a little later than its parent, counts for another user.
    let user = 1_000_000 + std::process::id() * 64 % 100_000_000 + u32::try_from(threads).unwrap_or(0);
    let mut command = Command::new("prlimit");
    command.args([
        &format!("--nproc={threads}"),
        "setpriv",
        &format!("--reuid={user}"),
        &format!("--regid={user}"),
        "--clear-groups",
    ]);
    Some(command)
}

/// What the program `name` prints in namespaces of its own, behind a `script` that sets them up.
fn unshared(name: &str, namespaces: &[&str], script: &str) -> Option<String> {
    // Those who are not root are so in a namespace of users.
    let user: &[&str] = if geteuid().is_root() {
        &[]
    } else {
        &["--map-root-user"]
    };
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(user).args(namespaces);
        command
    };
    let test = run(unshare().args(["sh", "-c", &format!("{script} true")]));
    if !test.success {
        eprintln!(
            "skipped: unshare {namespaces:?} is not permitted: {}",
            test.stderr.trim()
        );
        return None;
    }
    let scratch = Scratch::new();
    let copy = scratch.copy(name);
    let script = format!("{script} exec {}", copy.display());
    Some(run(unshare().args(["sh", "-c", &script])).expect_success().stdout)
}

fn the_first_process_of_a_container_buries_whom_it_adopts() {
    let namespaces = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    if let Some(printed) = unshared("confined", &namespaces, "") {
        assert_eq!(printed, "ok, children: []\n");
    }
}

fn the_first_process_of_a_container_buries_what_its_processes_leave() {
    let namespaces = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    if let Some(printed) = unshared("adopter", &namespaces, "") {
        assert_eq!(printed, "ok, children: []\n");
    }
}

fn a_file_system_that_cannot_be_written_to_does_no_harm() {
    if let Some(printed) = unshared("confined", &["--mount"], "mount -o remount,bind,ro / &&") {
        assert_eq!(printed, "ok, children: []\n");
    }
}

fn without_proc_there_are_workers() {
    // In a namespace of processes too: without `/proc` nobody finds what the program's tasks leave behind.
    let namespaces = ["--mount", "--pid", "--fork", "--kill-child"];
    // More than one may be mounted there, one over the other.
    let script = "while umount -l /proc 2>/dev/null; do :; done; ! test -e /proc/self &&";
    if let Some(printed) = unshared("confined", &namespaces, script) {
        assert_eq!(printed, "ok, children: []\n");
    }
}

fn with_the_proc_of_another_namespace_there_are_workers() {
    if let Some(printed) = unshared("confined", &["--pid", "--fork", "--kill-child"], "") {
        assert!(printed.starts_with("ok, "), "{printed}");
    }
}

fn processes_of_others_may_be_hidden() {
    if !geteuid().is_root() {
        eprintln!("skipped: root sees all processes in its namespace");
        return;
    }
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh -c '"
    );
    let test = run(Command::new("unshare").args(["--mount", "sh", "-c", &format!("{script} true'")]));
    if !test.success {
        eprintln!("skipped: processes cannot be hidden here: {}", test.stderr.trim());
        return;
    }
    let scratch = Scratch::new();
    let script = format!("{script} exec {}'", scratch.copy("confined").display());
    let ran = run(Command::new("unshare").args(["--mount", "sh", "-c", &script])).expect_success();
    assert_eq!(ran.stdout, "ok, children: []\n");
}

/// What it says is that it works, or names what it could not do and what the system said.
fn assert_works_or_says(printed: &str, limit: usize, words: &str) {
    let says_why = printed.contains("error: ") || printed.starts_with("no runtime: ");
    let is_clear = printed.starts_with("ok, ") || (says_why && printed.contains(words));
    assert!(is_clear, "with a limit of {limit}: {printed}");
}

fn a_limit_on_processes_is_an_error_that_says_so() {
    let scratch = Scratch::new();
    let copy = scratch.copy("confined");
    for limit in (1..14).chain([20, 40]) {
        let Some(mut command) = as_somebody(limit) else {
            return;
        };
        let ran = run(command.arg(&copy));
        if ran.stderr.starts_with("setpriv: failed to execute") {
            continue;
        }
        let ran = ran.expect_success();
        // A worker looks whether there is a thread to be had for tokio, which panics otherwise; somebody may be faster,
        // and then it is an error as well.
        let mut panics = ran.stderr.lines().filter(|line| line.contains("panicked at"));
        assert!(
            panics.all(|line| line.contains("/tokio-")),
            "with a limit of {limit}: {}",
            ran.stderr
        );
        assert_works_or_says(&ran.stdout, limit, "Resource temporarily unavailable");
    }
}

fn a_limit_on_descriptors_is_an_error_that_says_so() {
    for limit in (4..48).step_by(2) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(program("confined"));
        let ran = run(&mut command);
        assert!(
            !ran.stderr.contains("panicked"),
            "with a limit of {limit}: {}",
            ran.stderr
        );
        if ran.success {
            assert_works_or_says(&ran.stdout, limit, "Too many open files");
        }
    }
}

fn a_group_with_few_processes_is_enough_or_an_error() {
    let group = format!("/sys/fs/cgroup/pids/procession-test-{}", std::process::id());
    // One that an earlier run has left is as good as none.
    fs::remove_dir(&group).ok();
    if let Err(error) = fs::create_dir(&group) {
        eprintln!("skipped: no group for processes can be made here: {error}");
        return;
    }
    for limit in [3, 5, 8, 12, 30] {
        fs::write(format!("{group}/pids.max"), limit.to_string()).unwrap();
        let mut command = Command::new("sh");
        let script = format!("echo $$ > {group}/cgroup.procs && exec \"$0\"");
        command.args(["-c", &script]).arg(program("confined"));
        let ran = run(&mut command);
        assert!(
            !ran.stderr.contains("panicked"),
            "with a limit of {limit}: {}",
            ran.stderr
        );
        assert_works_or_says(&ran.stdout, limit, "Resource temporarily unavailable");
    }
    crate::fixture::eventually("the group is empty", || fs::remove_dir(&group).is_ok());
}
