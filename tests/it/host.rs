//! The program that has the pool: what it was started with, what a pool changes in it, and its end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use procession::{Output, Pool, Process, ProcessErrorKind, StartMethod, TaskErrorKind};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, getpgid};
use serde::de::Deserializer;
use serde::ser::{SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

use crate::fuse::{eventually, within};
use crate::lost_workers::close;
use crate::scene::{
    Scratch, alone, alone_to_the_end, append, children, descriptors, exists, gone, is_inherited, pid, pids,
    pool, runtime, same, signal,
};

/// Runs `body` in this test, `name`, started once more through each of some other commands.
pub(crate) fn through(commands: &[&[&str]], name: &str, body: impl AsyncFnOnce()) {
    const DONE: &str = "PROCESSION_TEST_DONE";
    if let Ok(path) = std::env::var(DONE) {
        runtime().block_on(body());
        append((path, "done".to_owned()));
        return;
    }
    for command in commands {
        let file = Scratch::new();
        let output = Command::new(command[0])
            .args(&command[1..])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(DONE, file.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{command:?}: {}\n{stderr}",
            output.status
        );
        assert_eq!(file.lines(), ["done"], "{command:?}");
    }
}

async fn works() {
    let pool = pool(2).await;
    let handles: Vec<_> = (0..20).map(|n| pool.apply_async(same::<u32>, n)).collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    let lost = within(pool.apply(|_: ()| -> () { std::process::exit(3) }, ()))
        .await
        .unwrap_err();
    assert_eq!(lost.kind(), TaskErrorKind::WorkerLost);
    assert_eq!(within(pool.map(same::<u32>, 0..50)).await.unwrap().len(), 50);
    pool.close();
    within(pool.join()).await.unwrap();
    eventually("no child", || children().is_empty());
}

#[test]
fn it_may_be_started_without_its_standard_streams() {
    let name = "host::it_may_be_started_without_its_standard_streams";
    let close = |streams| ["sh", "-c", streams];
    let commands = [
        close("exec \"$0\" \"$@\" <&-"),
        close("exec \"$0\" \"$@\" >&-"),
        close("exec \"$0\" \"$@\" 2>&-"),
        close("exec \"$0\" \"$@\" <&- >&- 2>&-"),
    ];
    through(&commands.each_ref().map(<[_; 3]>::as_slice), name, async || {
        works().await;
        // Output that is inherited has nowhere to go, and says so to nobody.
        let pool = within(Pool::builder().workers(1).build()).await.unwrap();
        let print = |_: ()| {
            writeln!(std::io::stdout(), "unheard").ok();
            writeln!(std::io::stderr(), "unheard").ok();
        };
        within(pool.apply(print, ())).await.unwrap();
        assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    });
}

#[test]
fn it_may_ignore_the_end_of_its_children() {
    let name = "host::it_may_ignore_the_end_of_its_children";
    through(&[&["env", "--ignore-signal=CHLD"]], name, async || {
        works().await;
        let pool = pool(1).await;
        let lost = within(pool.apply(|_: ()| -> () { std::process::exit(3) }, ()))
            .await
            .unwrap_err();
        // The system keeps no status then.
        assert_eq!(lost.exit_status(), None);
        assert!(lost.to_string().contains("did not tell how it ended"), "{lost}");
    });
}

#[test]
fn it_may_ignore_the_end_of_single_processes() {
    let name = "host::it_may_ignore_the_end_of_single_processes";
    through(&[&["env", "--ignore-signal=CHLD"]], name, async || {
        for method in [StartMethod::Exec, StartMethod::ForkServer] {
            let builder = Process::builder().start_method(method).stderr(Output::null());
            let process = within(builder.spawn(|x: u64| x + 1, 1)).await.unwrap();
            assert_eq!(within(process.join()).await.unwrap(), 2);
            let mut process = within(builder.spawn(|_: ()| -> () { std::process::exit(3) }, ()))
                .await
                .unwrap();
            // The system keeps no status then.
            let error = within(process.wait()).await.unwrap_err();
            assert_eq!(error.kind(), ProcessErrorKind::StatusLost);
            assert!(!process.is_alive());
            let error = within(process.join()).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.exit_status()),
                (ProcessErrorKind::Exited, None)
            );
            // Nor does anybody know whether it was ready, but who ended it.
            let process = within(builder.spawn(|_: ()| std::thread::park(), ()))
                .await
                .unwrap();
            process.kill().unwrap();
            let error = within(process.join()).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.exit_status()),
                (ProcessErrorKind::Exited, None)
            );
        }
    });
}

#[test]
fn it_may_wait_for_any_child() {
    alone("host::it_may_wait_for_any_child", || {
        std::thread::spawn(|| {
            loop {
                // Where there is no child to wait for, one may come.
                if rustix::process::wait(WaitOptions::empty()).is_err() {
                    std::thread::park_timeout(Duration::from_micros(100));
                }
            }
        });
        for _ in 0..5 {
            runtime().block_on(works());
        }
    });
}

#[test]
fn it_may_close_its_standard_streams() {
    let name = "host::it_may_close_its_standard_streams";
    // The harness has nowhere to print what comes of it either.
    alone_to_the_end(name, || {
        let outputs = |_: ()| {
            writeln!(std::io::stdout(), "unheard").unwrap();
            writeln!(std::io::stderr(), "unheard").unwrap();
            [1, 2].map(|number| fs::read_link(format!("/proc/self/fd/{number}")).unwrap())
        };
        runtime().block_on(async {
            (0..3).for_each(close);
            for method in [StartMethod::Exec, StartMethod::ForkServer] {
                let builder = Process::builder().start_method(method);
                // What this process opens takes the numbers of what it closed, and must not be taken for that.
                for _ in 0..3 {
                    let process = within(builder.spawn(outputs, ())).await.unwrap();
                    assert_eq!(
                        within(process.join()).await.unwrap(),
                        ["/dev/null"; 2].map(PathBuf::from)
                    );
                }
            }
            works().await;
        });
    });
}

#[test]
fn a_worker_whose_parent_ends_first_says_nothing() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let inode = rustix::fs::fstat(&theirs).unwrap().st_ino;
    let worker = Command::new(std::env::current_exe().unwrap())
        .env("PROCESSION_WORKER", format!("{inode:020}:{:010}", 1))
        .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What it says is there, and is never read.
    let mut fds = [PollFd::new(&ours, PollFlags::IN)];
    poll(&mut fds, None).unwrap();
    drop(ours);
    let ended = worker.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert!(ended.status.code().is_some(), "{}", ended.status);
}

/// The signals that this process ignores and catches.
fn signals() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let lines = status
        .lines()
        .filter(|line| line.starts_with("SigIgn:") || line.starts_with("SigCgt:"));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_pool_leaves_its_signals_alone() {
    alone("host::a_pool_leaves_its_signals_alone", || {
        let before = signals();
        assert_eq!(before.len(), 2);
        runtime().block_on(works());
        assert_eq!(signals(), before);
    });
}

#[tokio::test]
async fn workers_are_in_groups_of_their_own() {
    let pool = pool(2).await;
    let group = |pid: u32| getpgid(Pid::from_raw(i32::try_from(pid).unwrap())).unwrap();
    let own = group(std::process::id());
    for worker in pids(&pool) {
        assert_ne!(group(worker), own);
        assert_eq!(group(worker).as_raw_pid().unsigned_abs(), worker);
    }
}

#[test]
fn its_death_ends_its_workers_and_what_they_started() {
    // Started by itself, it is the program that is to be killed.
    if let Ok(busy) = std::env::var("PROCESSION_TEST_BUSY") {
        runtime().block_on(say_who_runs(busy == "spin"));
        return;
    }
    for busy in ["wait", "spin"] {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "host::its_death_ends_its_workers_and_what_they_started",
                "--nocapture",
            ])
            .env("PROCESSION_TEST_BUSY", busy)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pids = Vec::new();
        for line in BufReader::new(host.stdout.take().unwrap()).lines() {
            if let Some(pid) = line.unwrap().strip_prefix("runs: ") {
                pids.push(pid.parse().unwrap());
            }
            if pids.len() == 3 {
                break;
            }
        }
        assert_eq!(pids.len(), 3);
        assert!(pids.iter().all(|&pid| exists(pid)));
        signal(host.id(), Signal::KILL);
        host.wait().unwrap();
        pids.into_iter().for_each(gone);
    }
}

/// Task: starts a process, gives its id, and never ends.
fn start_and_stay((file, spin): (String, bool)) {
    let child = Command::new("sleep").arg("1000").spawn().unwrap().id();
    append((file.clone(), child.to_string()));
    append((file, std::process::id().to_string()));
    loop {
        if spin {
            std::hint::spin_loop();
        } else {
            std::thread::park();
        }
    }
}

/// What the program does that is killed.
#[expect(clippy::print_stdout, reason = "the test that kills it listens there")]
async fn say_who_runs(spin: bool) {
    let pool = pool(2).await;
    let file = Scratch::new();
    let handle = pool.apply_async(start_and_stay, (file.path(), spin));
    eventually("the task runs", || file.lines().len() == 2);
    let idle = pids(&pool).into_iter().map(|pid| pid.to_string());
    let mut all: Vec<String> = file.lines().into_iter().chain(idle).collect();
    all.sort();
    all.dedup();
    // The harness may have begun a line.
    println!();
    for pid in all {
        println!("runs: {pid}");
    }
    assert!(tokio::time::timeout(crate::fuse::FUSE, handle).await.is_err());
}

#[test]
fn hundreds_of_lost_workers_leave_nothing_in_it() {
    alone("host::hundreds_of_lost_workers_leave_nothing_in_it", || {
        runtime().block_on(async {
            let pool = pool(2).await;
            let work = |n: u32| {
                if n % 4 == 1 {
                    std::process::abort();
                }
                n
            };
            let round = async || {
                let each = within(pool.map(work, 0..200).chunk_size(10).collect_results()).await;
                assert_eq!(each.iter().filter(|result| result.is_err()).count(), 50);
                eventually("two workers", || pids(&pool).len() == 2 && children().len() == 2);
            };
            round().await;
            let before = descriptors().len();
            for _ in 0..3 {
                round().await;
            }
            eventually("descriptors are back", || descriptors().len() <= before);
            assert_eq!(pool.stats().restarts, 200);
        });
    });
}

#[test]
fn a_worker_has_only_its_own_descriptors() {
    alone("host::a_worker_has_only_its_own_descriptors", || {
        runtime().block_on(async {
            // This process has both pools' connections open when the last worker starts.
            let (first, second) = (pool(3).await, pool(3).await);
            let _file = fs::File::open("/dev/null").unwrap();
            let open = |_: ()| {
                let has_parent = || descriptors().iter().any(|line| line.contains("pidfd"));
                eventually("the watcher watches the parent", has_parent);
                let lines = descriptors().into_iter();
                lines.filter(|line| !is_inherited(line)).collect::<Vec<_>>()
            };
            for pool in [first, second] {
                let found = within(pool.apply(open, ())).await.unwrap();
                // Three standard streams, the connection twice, the control socket, what tells of the parent's end, what
                // wakes the thread that looks after children, and what tells it of replies that wait.
                assert_eq!(found.len(), 9, "{found:#?}");
            }
        });
    });
}

/// Few bytes that are many levels: `Some` in `Some`, and `None` at the end.
struct Deep;

impl Serialize for Deep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const LEVELS: usize = 200_000;
        let mut bytes = serializer.serialize_tuple(LEVELS + 1)?;
        for level in 0..=LEVELS {
            bytes.serialize_element(&u8::from(level < LEVELS))?;
        }
        bytes.end()
    }
}

#[derive(Deserialize)]
struct Level(#[expect(dead_code, reason = "it is only ever decoded")] Option<Box<Level>>);

impl<'de> Deserialize<'de> for Deep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Level::deserialize(deserializer).map(|_| Self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_depth_of_a_value_overflows_its_stack() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    let there = within(pool.apply(pid::<Deep>, Deep)).await.unwrap_err();
    assert_eq!(there.kind(), TaskErrorKind::Decode, "{there}");
    let back = within(pool.apply(|_: ()| Deep, ()))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(back.kind(), TaskErrorKind::Decode, "{back}");
    let each = within(pool.map(|_: u8| Deep, [0; 3]).chunk_size(3).collect_results()).await;
    assert!(each.iter().all(Result::is_err));
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
}
