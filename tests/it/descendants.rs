//! What tasks start: it ends with its worker, and until then a worker waits for whom it adopts and for nobody else.

use std::fs;
use std::process::{Child, Command};
use std::sync::Mutex;

use crate::fuse::{eventually, within};
use crate::scene::{Scratch, pids, pool};

/// Children of a process that have ended and were not waited for.
fn zombies(parent: u32) -> usize {
    let stats = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let fields: Vec<String> = stat[stat.rfind(')')? + 2..]
            .split(' ')
            .map(str::to_owned)
            .collect();
        (fields[0] == "Z" && fields[1] == parent.to_string()).then_some(())
    });
    stats.count()
}

/// Has a shell run `command` so many times.
fn repeat((command, times): (&str, u32)) {
    let script = format!("i=0; while [ $i -lt {times} ]; do {command}; i=$((i+1)); done");
    let status = Command::new("sh").args(["-c", &script]).status().unwrap();
    assert!(status.success());
}

/// A daemon that ends at once, in a session that another led who has ended before.
const DAEMON: &str = "setsid sh -c 'true &'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_that_have_ended_do_not_pile_up_in_a_worker() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    // While the task runs, too.
    let run = |_: ()| {
        repeat((DAEMON, 300));
        eventually("they are buried", || zombies(std::process::id()) < 64);
    };
    within(pool.apply(run, ())).await.unwrap();
    within(pool.apply(|_: ()| (), ())).await.unwrap();
    eventually("they stay so", || zombies(worker) <= 64);
    assert_eq!(pids(&pool), [worker]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_whose_parents_have_ended_do_not_pile_up_behind_their_task() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    // Nothing tells these from a child of the task's own.
    within(pool.apply(|_: ()| repeat(("(true &)", 300)), ()))
        .await
        .unwrap();
    eventually("they are buried", || zombies(worker) <= 64);
    assert_eq!(pids(&pool), [worker]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_of_a_task_keep_their_status_for_it() {
    let pool = pool(1).await;
    let statuses = |_: ()| {
        let start = |n: i32| {
            let script = format!("exit {n}");
            Command::new("sh").args(["-c", &script]).spawn().unwrap()
        };
        let own: Vec<Child> = (0..100).map(start).collect();
        eventually("all have ended", || zombies(std::process::id()) == 100);
        // When these are gone the worker has looked.
        repeat((DAEMON, 100));
        eventually("it has looked", || zombies(std::process::id()) < 200);
        let statuses = own
            .into_iter()
            .map(|mut child| child.wait().unwrap().code().unwrap());
        statuses.collect::<Vec<i32>>()
    };
    let statuses = within(pool.apply(statuses, ())).await.unwrap();
    assert_eq!(statuses, (0..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_is_kept_for_a_later_task() {
    static KEPT: Mutex<Option<Child>> = Mutex::new(None);
    let pool = pool(1).await;
    let start = |_: ()| {
        let child = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        *KEPT.lock().unwrap() = Some(child);
    };
    within(pool.apply(start, ())).await.unwrap();
    let worker = pids(&pool)[0];
    within(pool.apply(|_: ()| repeat((DAEMON, 100)), ()))
        .await
        .unwrap();
    eventually("the worker has looked", || zombies(worker) < 64);
    let wait = |_: ()| KEPT.lock().unwrap().take().unwrap().wait().unwrap().code();
    assert_eq!(within(pool.apply(wait, ())).await.unwrap(), Some(7));
}

/// Processes that have this in their environment.
fn marked(mark: &str) -> usize {
    let environments = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("environ")).ok());
    environments
        .filter(|environment| {
            environment
                .split(|&byte| byte == 0)
                .any(|one| one == mark.as_bytes())
        })
        .count()
}

/// Task: starts processes that leave its group, as fast as it can, but not without end.
fn storm(mark: String) {
    let (name, value) = mark.split_once('=').unwrap();
    for _ in 0..2000 {
        let child = Command::new("setsid")
            .args(["sleep", "1000"])
            .env(name, value)
            .spawn();
        drop(child.unwrap());
    }
    loop {
        std::thread::park();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_starts_processes_without_end_is_cancelled_with_all_of_them() {
    for round in 0..3 {
        let pool = pool(1).await;
        let mark = format!("STORM=procession-{}-{round}", std::process::id());
        let handle = pool.apply_async(storm, mark.clone());
        eventually("some are there", || marked(&mark) > 20);
        handle.abort();
        eventually("none is there", || marked(&mark) == 0);
        assert_eq!(within(pool.apply(|x: u8| x, 1)).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_exits_in_the_midst_of_a_task_takes_all_with_it() {
    let pool = pool(1).await;
    let mark = format!("EXIT=procession-{}", std::process::id());
    let gate = Scratch::new();
    let exit = |(mark, gate): (String, String)| -> () {
        let (name, value) = mark.split_once('=').unwrap();
        let script = "setsid sleep 1000 & setsid --fork sh -c 'sleep 1000 & sleep 1000' & sleep 1000 &";
        Command::new("sh")
            .args(["-c", script])
            .env(name, value)
            .status()
            .unwrap();
        eventually("the test has seen them", || fs::exists(&gate).unwrap());
        std::process::exit(0);
    };
    let handle = pool.apply_async(exit, (mark.clone(), gate.path()));
    eventually("they are there", || marked(&mark) >= 5);
    fs::write(gate.path(), "").unwrap();
    assert!(within(handle).await.unwrap_err().is_worker_lost());
    eventually("none is there", || marked(&mark) == 0);
}
