//! One function in one process: its value, its end, what it is told and what it tells.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use procession::{
    BuildError, Output, Process, ProcessBuilder, ProcessError, ProcessErrorKind, Run, wait_any,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::fuse::within;
use crate::scene::{gone, same};

fn quiet() -> ProcessBuilder {
    Process::builder().stdout(Output::null()).stderr(Output::null())
}

/// Starts a function that never returns.
async fn endless() -> Process<()> {
    within(quiet().spawn(
        |_: ()| loop {
            std::thread::park()
        },
        (),
    ))
    .await
    .unwrap()
}

async fn fails<R: serde::de::DeserializeOwned + std::fmt::Debug>(process: Process<R>) -> ProcessError {
    match within(process.join()).await {
        Ok(value) => panic!("{value:?}"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn its_value_comes_back() {
    let process = within(Process::spawn(|x: u64| x * 2, 21)).await.unwrap();
    assert_eq!(within(process.join()).await.unwrap(), 42);
    // Of any size, both ways.
    let bytes = vec![7_u8; 3 << 20];
    let process = within(quiet().spawn(same::<bytes::Bytes>, bytes.clone().into()))
        .await
        .unwrap();
    assert_eq!(within(process.join()).await.unwrap(), bytes);
    let text = "grün ".repeat(1 << 20);
    let process = within(quiet().spawn(
        |(text, n): (String, usize)| (n, text.repeat(n)),
        (text.clone(), 2),
    ))
    .await
    .unwrap();
    assert_eq!(within(process.join()).await.unwrap(), (2, text.repeat(2)));
}

#[tokio::test]
async fn an_async_function_runs_beside_a_runtime() {
    let process = within(quiet().spawn_async(
        |x: u64| async move { tokio::spawn(async move { x + 1 }).await.unwrap() },
        1,
    ));
    assert_eq!(within(process.await.unwrap().join()).await.unwrap(), 2);
}

#[derive(Serialize, Deserialize)]
struct Sum {
    numbers: Vec<u64>,
}

impl Run for Sum {
    type Output = u64;

    fn run(self) -> u64 {
        self.numbers.iter().sum()
    }
}

#[tokio::test]
async fn a_struct_is_run_with_its_fields() {
    let process = within(Process::run(Sum {
        numbers: (1..=100).collect(),
    }))
    .await
    .unwrap();
    assert_eq!(within(process.join()).await.unwrap(), 5050);
}

#[tokio::test]
async fn exit_codes_are_as_in_python() {
    let mut process = within(quiet().spawn(|_: ()| (), ())).await.unwrap();
    assert!(within(process.wait()).await.unwrap().success());
    assert_eq!(process.exit_code(), Some(0));
    assert!(!process.is_alive());
    within(process.join()).await.unwrap();
    for code in [0, 1, 3, 255] {
        let process = within(quiet().spawn(|code: i32| -> () { std::process::exit(code) }, code))
            .await
            .unwrap();
        let error = fails(process).await;
        assert_eq!(
            (error.kind(), error.exit_code()),
            (ProcessErrorKind::Exited, Some(code))
        );
        assert!(error.to_string().contains("exit status"), "{error}");
    }
    let process = within(quiet().spawn(|_: ()| -> () { std::process::abort() }, ()))
        .await
        .unwrap();
    let error = fails(process).await;
    assert_eq!(
        (error.kind(), error.exit_code()),
        (ProcessErrorKind::Exited, Some(-6))
    );
    for signal in [1, 2, 3, 6, 9, 10, 13, 14, 15] {
        let process = within(quiet().spawn(raise, signal)).await.unwrap();
        let error = fails(process).await;
        assert_eq!(error.exit_code(), Some(-signal), "{error}");
        assert_eq!(
            error.exit_status().and_then(|status| status.signal()),
            Some(signal)
        );
    }
}

/// Task: ends itself by a signal.
fn raise(signal: i32) {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::from_named_raw(signal).unwrap()).unwrap();
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn a_panic_is_told_with_its_place() {
    let process = within(
        quiet()
            .name("careless")
            .spawn(|x: u64| -> u64 { panic!("no {x}") }, 5),
    )
    .await
    .unwrap();
    let error = fails(process).await;
    assert_eq!(error.kind(), ProcessErrorKind::Panicked);
    let panic = error.panic().unwrap();
    assert_eq!(panic.message, "no 5");
    assert!(panic.file.ends_with("process.rs"), "{panic:?}");
    assert_eq!(error.exit_code(), Some(101));
    assert!(
        error.to_string().contains("careless") && error.to_string().contains("no 5"),
        "{error}"
    );
}

#[tokio::test]
async fn a_value_that_cannot_travel_is_an_error() {
    let process = within(quiet().max_frame_size(1000).spawn(|n: usize| vec![1_u8; n], 2000))
        .await
        .unwrap();
    assert_eq!(fails(process).await.kind(), ProcessErrorKind::TooLarge);
    let error = within(quiet().max_frame_size(10).spawn(|_: String| (), "x".repeat(100)))
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.pid()), (ProcessErrorKind::TooLarge, None));
}

#[tokio::test]
async fn signals_end_it_and_find_nobody_afterwards() {
    let mut process = endless().await;
    assert!(process.is_alive());
    assert_eq!((process.exit_status(), process.exit_code()), (None, None));
    process.terminate().unwrap();
    within(process.wait()).await.unwrap();
    assert_eq!(process.exit_code(), Some(-15));
    process.terminate().unwrap();
    process.interrupt().unwrap();
    process.kill();
    let mut process = endless().await;
    process.interrupt().unwrap();
    assert_eq!(within(process.wait()).await.unwrap().signal(), Some(2));
    let process = endless().await;
    process.kill();
    let error = fails(process).await;
    assert_eq!(
        (error.kind(), error.exit_code()),
        (ProcessErrorKind::Exited, Some(-9))
    );
}

#[tokio::test]
async fn its_sentinel_is_readable_when_it_has_ended() {
    let process = endless().await;
    let readable = || {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    };
    assert!(!readable());
    process.kill();
    assert_eq!(within(wait_any(&[&process])).await.unwrap(), [0]);
    assert!(readable());
    // As soon as that is seen, so is how it ended.
    assert_eq!(process.exit_code(), Some(-9));
}

#[tokio::test]
async fn the_first_of_several_to_end_is_told() {
    let processes = [endless().await, endless().await, endless().await];
    processes[1].kill();
    assert_eq!(within(wait_any(&processes)).await.unwrap(), [1]);
    let (reader, writer) = std::io::pipe().unwrap();
    let file = std::fs::File::open("/proc/self/stat").unwrap();
    let fds = [processes[0].as_fd(), reader.as_fd()];
    {
        let waiting = wait_any(&fds);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(writer);
        assert_eq!(within(waiting).await.unwrap(), [1]);
    }
    assert_eq!(
        within(wait_any(&[processes[0].as_fd(), file.as_fd()]))
            .await
            .unwrap(),
        [1]
    );
    processes.iter().for_each(Process::kill);
    for mut process in processes {
        within(process.wait()).await.unwrap();
    }
}

#[tokio::test]
async fn joining_for_a_while_keeps_the_handle() {
    let mut process = within(quiet().spawn_async(
        |_: ()| async {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            terminate.recv().await;
            "told".to_owned()
        },
        (),
    ))
    .await
    .unwrap();
    assert_eq!(
        process.join_timeout(Duration::from_millis(1)).await.unwrap(),
        None
    );
    assert!(process.is_alive());
    // Its own handling runs, as soon as it has one.
    crate::fuse::eventually("it has a handler", || catches(process.pid(), 15));
    process.terminate().unwrap();
    assert_eq!(
        within(process.join_timeout(Duration::MAX)).await.unwrap(),
        Some("told".to_owned())
    );
    assert_eq!(process.exit_code(), Some(0));
    let error = within(process.join_timeout(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.kind(), ProcessErrorKind::AlreadyJoined);
    assert_eq!(fails(process).await.kind(), ProcessErrorKind::AlreadyJoined);
}

fn catches(pid: u32, signal: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (signal - 1)) != 0
}

#[tokio::test]
async fn what_it_knows_of_itself() {
    let builder = quiet().name("child").daemon(true);
    let process = within(builder.spawn(
        |_: ()| {
            let (own, parent) = (procession::current(), procession::parent().unwrap());
            let alive = (parent.is_alive(), procession::worker::is_worker());
            (own.name, own.pid, own.is_daemon, parent.name, parent.pid, alive)
        },
        (),
    ))
    .await
    .unwrap();
    let pid = process.pid();
    let expected = (
        "child".to_owned(),
        pid,
        true,
        "MainProcess".to_owned(),
        std::process::id(),
        (true, false),
    );
    assert_eq!(within(process.join()).await.unwrap(), expected);
    assert_eq!(procession::current().name, "MainProcess");
    assert_eq!(procession::parent(), None);
}

#[tokio::test]
async fn a_daemon_starts_nothing() {
    let process = within(quiet().daemon(true).spawn_async(
        |_: ()| async {
            let process = Process::spawn(|_: ()| (), ()).await.unwrap_err();
            let pool = procession::Pool::new().await.unwrap_err();
            (process.start_error().unwrap().to_string(), pool.to_string())
        },
        (),
    ))
    .await
    .unwrap();
    let expected = BuildError::Daemon.to_string();
    assert_eq!(
        within(process.join()).await.unwrap(),
        (expected.clone(), expected)
    );
}

#[tokio::test]
async fn a_process_may_start_others_and_waits_for_them() {
    let process = within(quiet().name("outer").spawn_async(
        |_: ()| async {
            let inner = quiet()
                .spawn(|x: u64| (procession::current().name, x), 7)
                .await
                .unwrap();
            let pid = inner.pid();
            let told = inner.join().await.unwrap();
            // This one is left running.
            let other = quiet()
                .spawn(|_: ()| std::thread::park_timeout(Duration::from_millis(50)), ())
                .await
                .unwrap();
            (pid, told, other.pid())
        },
        (),
    ))
    .await
    .unwrap();
    let (_, told, other) = within(process.join()).await.unwrap();
    assert_eq!(told, ("outer:1".to_owned(), 7));
    assert!(!crate::scene::exists(other));
}

#[tokio::test]
async fn options_without_a_meaning_are_refused() {
    let long = || Duration::from_secs(1);
    for (option, builder) in [
        ("name", quiet().name("a\0b")),
        ("max_frame_size", quiet().max_frame_size(0)),
        ("start_timeout", quiet().start_timeout(Duration::ZERO)),
        ("memory_limit", quiet().memory_limit(0)),
        ("cpu_time_limit", quiet().cpu_time_limit(long() - long())),
        ("nice", quiet().nice(20)),
        ("cpu_affinity", quiet().cpu_affinity([])),
    ] {
        let error = within(builder.spawn(|_: u8| (), 0)).await.unwrap_err();
        match error.start_error() {
            Some(BuildError::InvalidOption { option: named, .. }) if *named == option => {}
            _ => panic!("{option}: {error:?}"),
        }
    }
    let error = within(quiet().program("/does/not/exist").spawn(|_: ()| (), ()))
        .await
        .unwrap_err();
    assert!(
        matches!(error.start_error(), Some(BuildError::Spawn { .. })),
        "{error:?}"
    );
    let error = within(quiet().current_dir("/does/not/exist").spawn(|_: ()| (), ()))
        .await
        .unwrap_err();
    assert!(
        matches!(error.start_error(), Some(BuildError::Spawn { .. })),
        "{error:?}"
    );
    let process = within(quiet().program("/bin/true").spawn(|_: ()| (), ()))
        .await
        .unwrap();
    let error = fails(process).await;
    assert!(
        matches!(error.start_error(), Some(BuildError::Handshake { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn its_surroundings_are_as_asked() {
    let process = within(
        quiet()
            .env("PROCESSION_TEST", "here")
            .current_dir("/")
            .cpu_affinity([0])
            .open_files_limit(64)
            .spawn(
                |_: ()| {
                    let cpus = rustix::thread::sched_getaffinity(None).unwrap().count();
                    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
                    (
                        std::env::var("PROCESSION_TEST").unwrap(),
                        std::env::current_dir().unwrap(),
                        cpus,
                        files,
                    )
                },
                (),
            ),
    )
    .await
    .unwrap();
    let told = within(process.join()).await.unwrap();
    assert_eq!(told, ("here".to_owned(), "/".into(), 1, Some(64)));
}

#[tokio::test]
async fn what_it_prints_goes_where_it_should() {
    let (lines, printed) = std::sync::mpsc::channel();
    let other = lines.clone();
    let process = within(
        Process::builder()
            .stdout(Output::lines(move |line| {
                lines.send(format!("out {}", line.text)).unwrap()
            }))
            .stderr(Output::lines(move |line| {
                other.send(format!("err {}", line.text)).unwrap()
            }))
            .spawn(
                |_: ()| -> () {
                    println!("one");
                    eprintln!("two");
                    std::process::exit(1)
                },
                (),
            ),
    )
    .await
    .unwrap();
    let error = fails(process).await;
    assert_eq!(error.stderr(), Some("two\n"));
    let mut printed = [crate::fuse::receive(&printed), crate::fuse::receive(&printed)];
    printed.sort();
    assert_eq!(printed, ["err two", "out one"]);
}

#[tokio::test]
async fn too_little_memory_is_told() {
    let process = within(
        quiet()
            .memory_limit(64 << 20)
            .spawn(|n: usize| vec![1_u8; n].len(), 1 << 30),
    )
    .await
    .unwrap();
    let error = fails(process).await;
    assert!(error.out_of_memory().is_some(), "{error}");
}

#[tokio::test]
async fn a_thousand_short_ones_leave_nothing() {
    let mut pids = Vec::new();
    for _ in 0..1000 {
        pids.push(within(quiet().spawn(|_: ()| (), ())).await.unwrap().pid());
    }
    pids.into_iter().for_each(gone);
}
