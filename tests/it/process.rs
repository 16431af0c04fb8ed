//! One function in one process: its value, its end, what it is told and what it tells.

use std::error::Error;
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use procession::{
    BuildError, Fd, Output, Process, ProcessBuilder, ProcessError, ProcessErrorKind, Run, StartMethod,
    wait_any,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::lost_workers::{close_all, connection};
use crate::scene::{exists, gone, same};

fn quiet() -> ProcessBuilder {
    Process::builder().stdout(Output::null()).stderr(Output::null())
}

fn never_ends<T>(_: T) {
    loop {
        std::thread::park();
    }
}

/// Starts a function that never returns.
async fn endless() -> Process<()> {
    within(quiet().spawn(never_ends::<()>, ())).await.unwrap()
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
    process.kill().unwrap();
    let mut process = endless().await;
    process.interrupt().unwrap();
    assert_eq!(within(process.wait()).await.unwrap().signal(), Some(2));
    let process = endless().await;
    process.kill().unwrap();
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
    process.kill().unwrap();
    assert_eq!(within(wait_any(&[&process])).await.unwrap(), [0]);
    assert!(readable());
    // As soon as that is seen, so is how it ended.
    assert_eq!(process.exit_code(), Some(-9));
}

#[tokio::test]
async fn the_first_of_several_to_end_is_told() {
    let processes = [endless().await, endless().await, endless().await];
    processes[1].kill().unwrap();
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
    processes.iter().for_each(|process| process.kill().unwrap());
    for mut process in processes {
        within(process.wait()).await.unwrap();
    }
}

#[tokio::test]
async fn what_somebody_else_has_taken_ends_no_wait() {
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let fds = [reader.try_clone().unwrap()];
    let waiting = wait_any(&fds);
    tokio::pin!(waiting);
    for _ in 0..3 {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut context = Context::from_waker(&waker);
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        writer.write_all(b".").unwrap();
        eventually("it is told", || flag.0.load(Ordering::Acquire));
        reader.read_exact(&mut [0]).unwrap();
    }
    assert!(futures::poll!(&mut waiting).is_pending());
    writer.write_all(b".").unwrap();
    assert_eq!(within(waiting).await.unwrap(), [0]);
}

#[tokio::test]
async fn joining_for_a_while_keeps_the_handle() {
    let (mut listens, say) = std::io::pipe().unwrap();
    let mut process = within(quiet().spawn_async(
        |say: Fd| async {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            std::fs::File::from(say.into_inner()).write_all(b".").unwrap();
            terminate.recv().await;
            "told".to_owned()
        },
        say.into(),
    ))
    .await
    .unwrap();
    assert_eq!(
        process.join_timeout(Duration::from_millis(1)).await.unwrap(),
        None
    );
    assert!(process.is_alive());
    // Its own handling runs, as soon as it has one.
    listens.read_exact(&mut [0]).unwrap();
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
    assert!(!exists(other));
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
        ("env", quiet().env("", "a")),
        ("env", quiet().env("a=b", "c")),
        ("env", quiet().env("a\0", "b")),
        ("env", quiet().envs([("a", "b\0c")])),
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
    // The reason stands in the error, and what is behind that only there.
    let (told, behind) = (error.to_string(), error.source().unwrap().to_string());
    assert!(
        told.contains("cannot start the program /does/not/exist"),
        "{told}"
    );
    assert!(
        !told.contains(&behind) && behind.contains("No such file"),
        "{behind}"
    );
    for (directory, reason) in [
        ("/does/not/exist", "No such file"),
        ("/dev/null", "Not a directory"),
    ] {
        let error = within(quiet().current_dir(directory).spawn(|_: ()| (), ()))
            .await
            .unwrap_err();
        assert!(
            matches!(error.start_error(), Some(BuildError::Spawn { .. })),
            "{error:?}"
        );
        let behind = error.source().unwrap().to_string();
        let told = format!("its working directory {directory}: {reason}");
        assert!(behind.starts_with(&told), "{behind}");
    }
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
    let cpus = rustix::thread::sched_getaffinity(None).unwrap();
    let usable = (0..rustix::thread::CpuSet::MAX_CPU)
        .find(|&cpu| cpus.is_set(cpu))
        .unwrap();
    let process = within(
        quiet()
            .env("PROCESSION_TEST", "here")
            .current_dir("/")
            .cpu_affinity([usable])
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
            .name("a talker")
            .stdout(Output::lines(move |line| {
                lines
                    .send(format!("{:?} out {}", line.process_name, line.text))
                    .unwrap()
            }))
            .stderr(Output::lines(move |line| {
                other
                    .send(format!("{:?} err {}", line.process_name, line.text))
                    .unwrap()
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
    assert_eq!(
        printed,
        [r#"Some("a talker") err two"#, r#"Some("a talker") out one"#]
    );
}

/// Has a function start that is never called, and gives the error and the exit code.
async fn never_called(builder: &ProcessBuilder) -> (ProcessError, Option<i32>) {
    let mut process = within(builder.spawn(same::<u8>, 1)).await.unwrap();
    within(process.wait()).await.unwrap();
    let code = process.exit_code();
    (fails(process).await, code)
}

#[tokio::test]
async fn an_initializer_that_fails_is_an_error_of_the_start_however_it_does() {
    let fail = |message: String| -> Result<(), String> { Err(message) };
    let failed = never_called(&quiet().initializer(fail, "no luck".to_owned())).await;
    let panicked = never_called(&quiet().initializer(|_: ()| -> () { panic!("no luck") }, ())).await;
    let ended = |code: i32| -> () { std::process::exit(code) };
    let exited = never_called(&quiet().initializer(ended, 5)).await;
    let aborted = never_called(&quiet().initializer(|_: ()| -> () { std::process::abort() }, ())).await;
    let killed = never_called(&quiet().initializer(raise, 9)).await;
    let hungry = quiet()
        .memory_limit(64 << 20)
        .initializer(|n: usize| drop(std::hint::black_box(vec![1_u8; n])), 1 << 30);
    let starved = never_called(&hungry).await;
    for ((error, code), expected, reason) in [
        (failed, Some(71), "no luck"),
        (panicked, Some(101), "no luck"),
        (exited, Some(5), "exit status: 5"),
        (aborted, Some(-6), "signal: 6"),
        (killed, Some(-9), "signal: 9"),
        (starved, None, "ran out of memory"),
    ] {
        assert_eq!(error.kind(), ProcessErrorKind::Start, "{error}");
        match error.start_error() {
            Some(BuildError::Initializer { message, .. }) => assert!(message.contains(reason), "{message}"),
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains(reason), "{error}");
        // How it ends for want of memory is for the system to say.
        assert!(expected.is_none() || code == expected, "{error}: {code:?}");
    }
    // Unless somebody else ends it meanwhile.
    let park = |_: ()| -> () {
        loop {
            std::thread::park();
        }
    };
    let process = within(quiet().initializer(park, ()).spawn(same::<u8>, 1))
        .await
        .unwrap();
    process.kill().unwrap();
    let error = fails(process).await;
    assert_eq!(
        (error.kind(), error.exit_code()),
        (ProcessErrorKind::Exited, Some(-9)),
        "{error}"
    );
}

#[tokio::test]
async fn a_value_that_it_could_not_send_any_more_is_found() {
    let process = within(quiet().spawn(close_all, ())).await.unwrap();
    assert_eq!(within(process.join()).await.unwrap(), 7);
}

/// Task: says again and again what is to be said once.
fn say_goodbye(kind: u8) {
    let mut frame = [0; 16];
    frame[4] = kind;
    let mut stream = std::os::unix::net::UnixStream::from(connection());
    loop {
        stream.write_all(&frame).unwrap();
    }
}

#[tokio::test]
async fn one_that_goes_on_behind_its_last_word_is_ended() {
    const BYE: u8 = 13;
    let process = within(quiet().spawn(say_goodbye, BYE)).await.unwrap();
    let error = fails(process).await;
    assert_eq!(error.kind(), ProcessErrorKind::Exited);
    assert!(error.to_string().contains("behind its last"), "{error}");
}

/// Task: begins a message, and goes on with it by nothing at all.
fn chatter(output: Fd) {
    const VALUE: u8 = 7;
    let first = [
        8, 0, 0, 0, VALUE, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
    ];
    let more = [0, 0, 0, 0, VALUE, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(4096);
    let mut stream = std::os::unix::net::UnixStream::from(connection());
    stream.write_all(&first).unwrap();
    for turn in 0_u64.. {
        stream.write_all(&more).unwrap();
        if turn == 10 {
            std::fs::File::from(output.as_fd().try_clone_to_owned().unwrap())
                .write_all(b".")
                .unwrap();
        }
    }
}

#[tokio::test]
async fn one_that_never_stops_talking_holds_nobody_up() {
    let (mut output, input) = std::io::pipe().unwrap();
    let chatty = within(quiet().spawn(chatter, input.into())).await.unwrap();
    output.read_exact(&mut [0]).unwrap();
    for x in 0..3 {
        let process = within(quiet().spawn(same::<u32>, x)).await.unwrap();
        assert_eq!(within(process.join()).await.unwrap(), x);
    }
    assert!(chatty.is_alive());
    chatty.kill().unwrap();
    assert_eq!(fails(chatty).await.exit_code(), Some(-9));
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

/// Task: ends by itself when it is told to by a byte.
fn until_told(input: Fd) {
    std::fs::File::from(input.into_inner())
        .read_exact(&mut [0])
        .unwrap();
}

#[tokio::test]
async fn one_that_has_ended_is_buried_whether_it_is_joined_or_not() {
    // Neither joined nor dropped.
    let process = within(quiet().spawn(|_: ()| std::process::exit(7), ()))
        .await
        .unwrap();
    within(wait_any(&[&process])).await.unwrap();
    gone(process.pid());
    assert!(
        !procession::active_children()
            .iter()
            .any(|child| child.pid() == process.pid())
    );
    // Nothing is lost with it, however often it is asked.
    for _ in 0..2 {
        assert_eq!((process.exit_code(), process.is_alive()), (Some(7), false));
    }
    assert_eq!(fails::<()>(process).await.exit_code(), Some(7));
    // Joined.
    let process = within(quiet().spawn(|_: ()| (), ())).await.unwrap();
    let pid = process.pid();
    within(process).await.unwrap();
    assert!(!exists(pid));
    // Dropped while it runs.
    let (input, mut told) = std::io::pipe().unwrap();
    let process = within(quiet().name("dropped").spawn(until_told, input.into()))
        .await
        .unwrap();
    let pid = process.pid();
    drop(process);
    let child = procession::active_children()
        .into_iter()
        .find(|child| child.pid() == pid)
        .unwrap();
    assert_eq!(
        (child.name(), child.is_alive(), child.is_daemon()),
        ("dropped", true, false)
    );
    told.write_all(b".").unwrap();
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(0));
    assert!(!exists(pid));
    assert!(
        !procession::active_children()
            .iter()
            .any(|child| child.pid() == pid)
    );
}

#[tokio::test]
async fn killed_it_takes_its_group_along() {
    for daemon in [false, true] {
        let (mut output, input) = std::io::pipe().unwrap();
        let process = within(quiet().daemon(daemon).spawn(
            |output: Fd| {
                let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
                let mut output = std::fs::File::from(output.into_inner());
                output.write_all(&child.id().to_ne_bytes()).unwrap();
                child.wait().unwrap();
            },
            input.into(),
        ))
        .await
        .unwrap();
        let mut pid = [0; 4];
        output.read_exact(&mut pid).unwrap();
        process.kill().unwrap();
        assert_eq!(fails(process).await.exit_code(), Some(-9));
        let pid = u32::from_ne_bytes(pid);
        eventually("the child of the process has ended", || {
            !std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        });
    }
}

#[tokio::test]
async fn its_environment_is_changed_as_asked() {
    let names = |_: ()| {
        let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
        (
            std::env::var("A").ok(),
            names.contains(&"PATH".to_owned()),
            names.len(),
        )
    };
    let builder = quiet()
        .envs([("A", "1"), ("B", "2")])
        .env("A", "3")
        .env_remove("B")
        .env_remove("PATH");
    let (a, path, _) = within(within(builder.spawn(names, ())).await.unwrap().join())
        .await
        .unwrap();
    assert_eq!((a.as_deref(), path), (Some("3"), false));
    let builder = quiet().env("B", "2").env_clear().env("A", "4");
    let told = within(within(builder.spawn(names, ())).await.unwrap().join())
        .await
        .unwrap();
    // And the library's own.
    assert_eq!(told, (Some("4".to_owned()), false, 2));
}

#[tokio::test]
async fn processes_nest_and_are_named_after_one_another() {
    fn tree(depth: u32) -> Vec<String> {
        let runtime = crate::scene::runtime();
        let mut names = vec![procession::current().name];
        if depth > 0 {
            for _ in 0..2 {
                let process = runtime.block_on(quiet().spawn(tree, depth - 1)).unwrap();
                names.extend(runtime.block_on(process.join()).unwrap());
            }
        }
        names
    }
    let process = within(quiet().name("a").spawn(tree, 2)).await.unwrap();
    let names = within(process.join()).await.unwrap();
    assert_eq!(names, ["a", "a:1", "a:1:1", "a:1:2", "a:2", "a:2:1", "a:2:2"]);
    let error = within(
        within(quiet().max_depth(0).spawn(
            |_: ()| {
                crate::scene::runtime()
                    .block_on(quiet().max_depth(0).spawn(same::<u8>, 0))
                    .map(drop)
                    .unwrap_err()
                    .to_string()
            },
            (),
        ))
        .await
        .unwrap()
        .join(),
    )
    .await
    .unwrap();
    assert!(error.contains("could not be started"), "{error}");
}

#[tokio::test]
async fn a_failure_is_given_to_whoever_asks() {
    /// What cannot be read where it is wanted.
    #[derive(Debug, Serialize)]
    struct OneWay;
    impl<'de> Deserialize<'de> for OneWay {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("no way back"))
        }
    }
    let mut process = within(quiet().spawn(|_: ()| OneWay, ())).await.unwrap();
    for _ in 0..2 {
        let error = within(process.join_timeout(Duration::MAX)).await.unwrap_err();
        assert_eq!(error.kind(), ProcessErrorKind::Decode);
        assert!(error.to_string().ends_with("OneWay`: no way back"), "{error}");
    }
    let mut process = within(quiet().spawn(|_: ()| panic!("once"), ())).await.unwrap();
    for _ in 0..2 {
        let error = within(process.join_timeout(Duration::MAX)).await.unwrap_err();
        assert_eq!(error.kind(), ProcessErrorKind::Panicked);
    }
    assert_eq!(fails::<()>(process).await.kind(), ProcessErrorKind::Panicked);
}

#[tokio::test]
async fn a_process_is_killed_with_its_handle_where_that_is_asked_for() {
    let (mut gate, argument) = gate();
    let builder = quiet().kill_on_drop(true);
    // Its handle is dropped, or the future that waits for it: that is a time limit.
    for is_joined in [false, true] {
        let process = within(builder.spawn(never_ends::<()>, ())).await.unwrap();
        let pid = process.pid();
        if is_joined {
            let late = tokio::time::timeout(Duration::from_millis(1), process.join());
            assert!(late.await.is_err());
        } else {
            drop(process);
        }
        gone(pid);
    }
    // So is the future that starts it, with a template and without.
    for method in [StartMethod::Exec, StartMethod::ForkServer] {
        let builder = builder.clone().start_method(method);
        within(builder.warm_up()).await.unwrap();
        let builder = builder.name("a mayfly");
        let mut start = Box::pin(builder.spawn(
            never_ends::<Vec<u8>>,
            // More than fits into the connection, so that it is not sent at once.
            vec![0; 4 << 20],
        ));
        // On a busy machine it may be over already, with a handle that is dropped.
        drop(futures::poll!(&mut start));
        drop(start);
        // When this one has had its turn, that one has.
        let next = within(builder.clone().name("the next").spawn(same::<u8>, 7));
        assert_eq!(within(next.await.unwrap().join()).await.unwrap(), 7);
        eventually("it is gone", || {
            !procession::active_children()
                .iter()
                .any(|child| child.name() == "a mayfly")
        });
    }
    // One that has ended is not concerned, and without it nothing is.
    let process = within(builder.spawn(same::<u8>, 7)).await.unwrap();
    assert_eq!(within(process.join()).await.unwrap(), 7);
    let process = within(quiet().spawn(wait_at, argument)).await.unwrap();
    let pid = gate.entered();
    drop(process);
    assert!(exists(pid));
    gate.open();
    gone(pid);
}
