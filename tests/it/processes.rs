//! Single processes as Python's users know them: many, nested, started from anywhere, and what a start and an end cost.

use std::cell::Cell;
use std::io::{BufRead, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use procession::{
    BuildError, Fd, Output, Process, ProcessBuilder, ProcessError, ProcessErrorKind, StartMethod,
};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::fuse::{eventually, receive, within};
use crate::gate::{gate, wait_at};
use crate::scene::{
    Scratch, alone, append, children, descriptors, exists, gone, pids, pool, runtime, same, signal, threads,
};

fn quiet() -> ProcessBuilder {
    Process::builder().stdout(Output::null()).stderr(Output::null())
}

const METHODS: [StartMethod; 2] = [StartMethod::Exec, StartMethod::ForkServer];

/// Task: never ends.
fn park(_: ()) {
    loop {
        std::thread::park();
    }
}

fn cause(error: &ProcessError) -> &BuildError {
    error.start_error().unwrap_or_else(|| panic!("{error:?}"))
}

/// Waits until a process has ended, buried or not: that is up to whoever has adopted it.
fn ended(pid: u32) {
    eventually(&format!("process {pid} has ended"), || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rfind(')').is_none_or(|end| stat[end + 2..].starts_with('Z'))
    });
}

fn names_a_process(pid: u32) -> bool {
    procession::active_children()
        .iter()
        .any(|child| child.pid() == pid)
}

#[tokio::test]
async fn before_during_and_after() {
    let current = procession::current();
    assert_eq!((current.pid, current.is_daemon), (std::process::id(), false));
    let (mut gate, argument) = gate();
    let process = within(quiet().spawn(wait_at, argument)).await.unwrap();
    let pid = process.pid();
    assert_eq!(gate.entered(), pid);
    assert_eq!(
        (process.is_alive(), process.exit_code(), names_a_process(pid)),
        (true, None, true)
    );
    gate.open();
    let mut process = process;
    within(process.wait()).await.unwrap();
    assert_eq!(
        (process.is_alive(), process.exit_code(), names_a_process(pid)),
        (false, Some(0), false)
    );
    assert!(!exists(pid));
    assert_eq!(within(process.join()).await.unwrap(), pid);
}

#[tokio::test]
async fn names_count_up_and_nest() {
    let number = |name: &str| {
        let number = name.strip_prefix("Process-").unwrap();
        number.parse::<u64>().unwrap()
    };
    let (first, second) = (
        quiet().spawn(
            |_: ()| {
                let inner = runtime().block_on(quiet().spawn(same::<u8>, 0)).unwrap();
                inner.name().to_owned()
            },
            (),
        ),
        quiet().spawn(same::<u8>, 0),
    );
    // By the order of the calls, whichever is on its way first.
    let second = within(second).await.unwrap();
    let first = within(first).await.unwrap();
    assert!(number(first.name()) < number(second.name()));
    let name = first.name().to_owned();
    assert_eq!(within(first.join()).await.unwrap(), format!("{name}:1"));
    within(second.join()).await.unwrap();
}

/// Something whose drop is seen, and that does not travel itself.
#[derive(Serialize, Deserialize)]
struct Owner {
    #[serde(skip)]
    owned: Arc<()>,
}

#[tokio::test]
async fn what_the_argument_owns_is_dropped_here_once_it_is_on_its_way() {
    let owned = Arc::new(());
    let owner = Owner {
        owned: Arc::clone(&owned),
    };
    let process = within(quiet().spawn(
        |owner: Owner| {
            drop(owner.owned);
            park(());
        },
        owner,
    ))
    .await
    .unwrap();
    assert_eq!(Arc::strong_count(&owned), 1);
    process.kill().unwrap();
    within(process.join()).await.unwrap_err();
    for method in METHODS {
        // The end of a pipe is closed here too: its other end sees the process's end.
        let (mut output, input) = std::io::pipe().unwrap();
        let process = within(quiet().start_method(method).spawn(
            |input: Fd| {
                let mut input = std::fs::File::from(input.into_inner());
                input.write_all(b"all").unwrap();
            },
            input.into(),
        ))
        .await
        .unwrap();
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        assert_eq!(said, "all");
        within(process.join()).await.unwrap();
    }
}

#[tokio::test]
async fn a_hundred_short_ones_and_a_hundred_that_are_terminated_at_once() {
    for method in METHODS {
        let builder = quiet().start_method(method);
        let starts = (0..100).map(|n: u32| builder.spawn(same::<u32>, n));
        let processes = within(futures::future::try_join_all(starts)).await.unwrap();
        for (n, mut process) in (0..).zip(processes) {
            assert!(within(process.wait()).await.unwrap().success());
            assert_eq!(within(process.join()).await.unwrap(), n);
        }
        let mut sleepers = Vec::new();
        for _ in 0..100 {
            let process = within(builder.spawn(park, ())).await.unwrap();
            // Wherever it is on its way.
            process.terminate().unwrap();
            sleepers.push(process);
        }
        for mut process in sleepers {
            assert_eq!(within(process.wait()).await.unwrap().signal(), Some(15));
            let error = within(process.join()).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.exit_code()),
                (ProcessErrorKind::Exited, Some(-15))
            );
            assert!(error.to_string().contains("SIGTERM"), "{error}");
        }
    }
}

#[tokio::test]
async fn an_initializer_runs_in_front_of_the_function() {
    thread_local!(static LOADED: Cell<u64> = const { Cell::new(0) });
    let loaded = |_: ()| LOADED.get();
    for method in METHODS {
        let builder = quiet()
            .start_method(method)
            .initializer(|n: u64| LOADED.set(n), 7);
        let process = within(builder.spawn(loaded, ())).await.unwrap();
        assert_eq!(within(process.join()).await.unwrap(), 7);
    }
    let builder = quiet().initializer(|_: ()| Err::<(), _>("no model"), ());
    let process = within(builder.spawn(loaded, ())).await.unwrap();
    let error = within(process.join()).await.unwrap_err();
    assert!(
        matches!(cause(&error), BuildError::Initializer { message, .. } if message == "no model"),
        "{error:?}"
    );
    assert_eq!(
        (error.kind(), error.exit_code()),
        (ProcessErrorKind::Start, Some(71))
    );
}

#[test]
fn it_may_be_started_from_anywhere() {
    async fn works(method: StartMethod) -> u64 {
        let process = quiet()
            .start_method(method)
            .spawn(|x: u64| x + 1, 1)
            .await
            .unwrap();
        process.join().await.unwrap()
    }
    for method in METHODS {
        // Without a runtime.
        assert_eq!(futures::executor::block_on(works(method)), 2);
        let runtime = runtime();
        let handle = runtime.handle().clone();
        let thread = std::thread::spawn(move || handle.block_on(works(method)));
        assert_eq!(thread.join().unwrap(), 2);
        let handle = runtime.handle().clone();
        let blocking = runtime.spawn_blocking(move || handle.block_on(works(method)));
        assert_eq!(runtime.block_on(blocking).unwrap(), 2);
        let local = tokio::task::LocalSet::new();
        let task = local.run_until(async move { tokio::task::spawn_local(works(method)).await.unwrap() });
        assert_eq!(runtime.block_on(task), 2);
        let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(alone.block_on(works(method)), 2);
        // Started on one runtime, which ends, and joined on another.
        let process = alone.block_on(quiet().start_method(method).spawn(|x: u64| x + 1, 1));
        drop(alone);
        assert_eq!(runtime.block_on(process.unwrap().join()).unwrap(), 2);
    }
}

#[tokio::test]
async fn a_panic_is_told_on_its_own_standard_error_too() {
    let (lines, printed) = std::sync::mpsc::channel();
    let stderr = Output::lines(move |line| drop(lines.send(line.text.clone())));
    let builder = Process::builder().stdout(Output::null()).stderr(stderr);
    let process = within(builder.spawn(|_: ()| -> () { panic!("in all its length") }, ()))
        .await
        .unwrap();
    let error = within(process.join()).await.unwrap_err();
    let panic = error.panic().unwrap();
    let place = format!("{}:{}:{}", panic.file, panic.line, panic.column);
    assert_eq!((panic.location(), panic.file.as_str()), (place.clone(), file!()));
    let mut said = String::new();
    while !(said.contains(&place) && said.contains("in all its length")) {
        said += &receive(&printed);
    }
}

#[expect(unsafe_code, reason = "the C library's own way to register a handler")]
fn at_exit(handler: extern "C" fn()) {
    unsafe extern "C" {
        safe fn atexit(handler: extern "C" fn()) -> std::ffi::c_int;
    }
    assert_eq!(atexit(handler), 0);
}

static NOTES: std::sync::OnceLock<String> = std::sync::OnceLock::new();

extern "C" fn note() {
    append((NOTES.get().unwrap().clone(), std::process::id().to_string()));
}

#[tokio::test]
async fn exit_handlers_run_at_every_end_but_a_signal() {
    let notes = Scratch::new();
    let mut expected = Vec::new();
    for (ending, code) in [(0, 0), (1, 3), (2, 101), (3, -9)] {
        let end = |(path, ending): (String, u32)| {
            NOTES.set(path).unwrap();
            at_exit(note);
            match ending {
                0 => {}
                1 => std::process::exit(3),
                2 => panic!("at last"),
                _ => signal(std::process::id(), Signal::KILL),
            }
        };
        let mut process = within(quiet().spawn(end, (notes.path(), ending))).await.unwrap();
        within(process.wait()).await.unwrap();
        assert_eq!(process.exit_code(), Some(code));
        if code >= 0 {
            expected.push(process.pid().to_string());
        }
    }
    assert_eq!(notes.lines(), expected);
    // Those of the initializer run in every copy.
    let builder = quiet().start_method(StartMethod::ForkServer).initializer(
        |path: String| {
            NOTES.set(path).unwrap();
            at_exit(note);
        },
        notes.path(),
    );
    for _ in 0..2 {
        let process = within(builder.spawn(same::<u8>, 0)).await.unwrap();
        expected.push(process.pid().to_string());
        within(process.join()).await.unwrap();
    }
    assert_eq!(notes.lines(), expected);
}

#[tokio::test]
#[expect(unsafe_code, reason = "closing a standard stream is what is looked at")]
async fn without_standard_streams_it_ends_as_ever() {
    for fds in [vec![0], vec![1], vec![2], vec![0, 1, 2]] {
        let close = |fds: Vec<i32>| {
            for fd in &fds {
                // SAFETY: nothing in the process's code keeps these three by number.
                unsafe { rustix::io::close(*fd) };
            }
            fds.len()
        };
        for builder in [quiet(), Process::builder()] {
            let mut process = within(builder.spawn(close, fds.clone())).await.unwrap();
            assert!(within(process.wait()).await.unwrap().success());
            assert_eq!(within(process.join()).await.unwrap(), fds.len());
        }
    }
}

#[tokio::test]
async fn threads_and_tasks_that_it_leaves_running_are_not_waited_for() {
    let process = within(quiet().spawn(
        |_: ()| {
            std::thread::spawn(|| park(()));
            std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
            1
        },
        (),
    ))
    .await
    .unwrap();
    assert_eq!(within(process.join()).await.unwrap(), 1);
    let process = within(quiet().spawn_async(
        |_: ()| async {
            tokio::spawn(std::future::pending::<()>());
            tokio::task::spawn_blocking(|| park(()));
            2
        },
        (),
    ))
    .await
    .unwrap();
    assert_eq!(within(process.join()).await.unwrap(), 2);
}

#[tokio::test]
async fn processes_that_it_leaves_running_go_on() {
    let (input, told) = std::io::pipe().unwrap();
    let (mut answer, output) = std::io::pipe().unwrap();
    let process = within(quiet().spawn(
        |(input, output): (Fd, Fd)| {
            let command = Command::new("sh")
                .args(["-c", "exec 3<&0; (cat <&3; echo goes on) &"])
                .stdin(input.into_inner())
                .stdout(output.into_inner())
                .status();
            assert!(command.unwrap().success());
        },
        (input.into(), output.into()),
    ))
    .await
    .unwrap();
    within(process.join()).await.unwrap();
    drop(told);
    let mut said = String::new();
    answer.read_to_string(&mut said).unwrap();
    assert_eq!(said, "goes on\n");
}

/// Task: leaves a shell behind that prints to both streams when `input` ends.
fn leave_a_shell(input: Fd) {
    let shell = Command::new("sh")
        .args([
            "-c",
            "exec 3<&0; printf first; (cat <&3; echo second; echo third >&2; echo fourth) &",
        ])
        .stdin(input.into_inner())
        .status();
    assert!(shell.unwrap().success());
}

#[tokio::test]
async fn what_it_leaves_running_has_somebody_who_hears_it() {
    for method in METHODS {
        let (sender, lines) = std::sync::mpsc::channel();
        let builder = Process::builder()
            .start_method(method)
            .stdout(Output::lines(move |line| sender.send(line.text.clone()).unwrap()))
            .stderr(Output::null());
        let (input, told) = std::io::pipe().unwrap();
        let process = within(builder.spawn(leave_a_shell, input.into())).await.unwrap();
        within(process.join()).await.unwrap();
        assert_eq!(receive(&lines), "first");
        drop(told);
        // Without a reader it would be ended by what it says third.
        assert_eq!(
            [receive(&lines), receive(&lines)],
            ["second", "fourth"],
            "{method:?}"
        );
    }
}

#[tokio::test]
async fn a_join_that_ends_too_early_can_be_repeated() {
    let (mut gate, argument) = gate();
    let mut process = within(quiet().spawn(wait_at, argument)).await.unwrap();
    let pid = gate.entered();
    for time in [0, 0, 10, 10] {
        let joined = within(process.join_timeout(Duration::from_millis(time))).await;
        assert_eq!((joined.unwrap(), process.is_alive()), (None, true));
    }
    gate.open();
    assert_eq!(within(process.join()).await.unwrap(), pid);
}

#[tokio::test]
async fn one_that_will_not_end_is_killed() {
    let (mut told, tell) = std::io::pipe().unwrap();
    let mut process = within(quiet().spawn_async(
        |tell: Fd| async {
            let terminate = tokio::signal::unix::SignalKind::terminate();
            let mut terminate = tokio::signal::unix::signal(terminate).unwrap();
            let mut tell = std::fs::File::from(tell.into_inner());
            loop {
                tell.write_all(b".").unwrap();
                terminate.recv().await;
            }
        },
        tell.into(),
    ))
    .await
    .unwrap();
    for _ in 0..3 {
        told.read_exact(&mut [0]).unwrap();
        process.terminate().unwrap();
    }
    told.read_exact(&mut [0]).unwrap();
    assert_eq!(process.join_timeout(Duration::ZERO).await.unwrap(), None::<()>);
    process.kill().unwrap();
    assert_eq!(within(process.wait()).await.unwrap().signal(), Some(9));
}

#[test]
fn a_signal_to_this_process_does_not_disturb_a_join() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let name = "processes::a_signal_to_this_process_does_not_disturb_a_join";
    alone(name, || {
        runtime().block_on(async {
            crate::signals::interrupt_calls();
            let storm = std::thread::spawn(|| {
                while !DONE.load(Ordering::Relaxed) {
                    signal(std::process::id(), Signal::USR1);
                    std::thread::yield_now();
                }
            });
            let mut processes = Vec::new();
            for n in 0..20_u32 {
                let builder = quiet().start_method(METHODS[n as usize % 2]);
                let sum = |n: u32| (0..2_000_000).fold(n, |sum, x| std::hint::black_box(sum ^ x));
                processes.push((n, within(builder.spawn(sum, n)).await.unwrap()));
            }
            for (n, mut process) in processes {
                assert!(within(process.wait()).await.unwrap().success());
                let expected = (0..2_000_000).fold(n, |sum, x| sum ^ x);
                assert_eq!(within(process.join()).await.unwrap(), expected);
            }
            DONE.store(true, Ordering::Relaxed);
            storm.join().unwrap();
        });
    });
}

#[tokio::test]
async fn garbage_on_its_connection_ends_it_and_the_error_says_why() {
    let process = within(quiet().spawn(
        |_: ()| {
            let mut stream = std::os::unix::net::UnixStream::from(crate::lost_workers::connection());
            stream.write_all(&[7; 200]).unwrap();
            park(());
        },
        (),
    ))
    .await
    .unwrap();
    let error = within(process.join()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.exit_code()),
        (ProcessErrorKind::Exited, Some(-9))
    );
    assert!(error.to_string().contains("sent"), "{error}");
}

/// What can be sent and not be read, or not be sent.
struct Fragile(bool);

impl Serialize for Fragile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            true => serializer.serialize_u8(0),
            false => Err(serde::ser::Error::custom("too fragile")),
        }
    }
}

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("broken"))
    }
}

#[tokio::test]
async fn what_cannot_be_encoded_or_decoded_is_told_with_its_side() {
    let told = |error: ProcessError| (error.kind(), error.exit_code(), error.to_string());
    let (kind, code, text) = told(
        within(quiet().spawn(|_: Fragile| (), Fragile(false)))
            .await
            .unwrap_err(),
    );
    assert_eq!((kind, code), (ProcessErrorKind::Encode, None));
    assert!(
        text.contains("the argument") && text.contains("Fragile"),
        "{text}"
    );
    let process = within(quiet().spawn(|_: Fragile| (), Fragile(true)))
        .await
        .unwrap();
    let (kind, code, text) = told(within(process.join()).await.unwrap_err());
    assert_eq!((kind, code), (ProcessErrorKind::Decode, Some(71)));
    assert!(
        text.contains("the argument") && text.contains("Fragile"),
        "{text}"
    );
    let process = within(quiet().spawn(|_: ()| Fragile(false), ())).await.unwrap();
    let (kind, code, text) = told(within(process.join()).await.map(drop).unwrap_err());
    assert_eq!((kind, code), (ProcessErrorKind::Encode, Some(71)));
    assert!(text.contains("the result") && text.contains("Fragile"), "{text}");
    let process = within(quiet().spawn(|_: ()| Fragile(true), ())).await.unwrap();
    let (kind, code, text) = told(within(process.join()).await.map(drop).unwrap_err());
    assert_eq!((kind, code), (ProcessErrorKind::Decode, Some(0)));
    assert!(text.contains("the result") && text.contains("Fragile"), "{text}");
}

#[tokio::test]
async fn one_that_is_not_this_program_is_told_as_what_it_is() {
    let process = within(quiet().program("/bin/true").spawn(|_: ()| (), ()))
        .await
        .unwrap();
    let error = within(process.join()).await.unwrap_err();
    assert_eq!(
        cause(&error).to_string(),
        "/bin/true did not become ready: it ended (exit status: 0) before the handshake"
    );
    let error = within(quiet().program("/does/not/exist").spawn(|_: ()| (), ()))
        .await
        .unwrap_err();
    assert_eq!(
        cause(&error).to_string(),
        "cannot start the program /does/not/exist"
    );
}

/// Task: starts a process where it runs, and says what became of it.
fn start_inside(nested: bool) -> Result<u64, String> {
    let start = async {
        let process = quiet().nested(nested).spawn(|x: u64| x + 1, 1).await;
        let process = process.map_err(|error| match error.start_error() {
            Some(BuildError::Nested) => format!("nested: {}", BuildError::Nested),
            _ => error.to_string(),
        })?;
        process.join().await.map_err(|error| error.to_string())
    };
    runtime().block_on(start)
}

#[tokio::test]
async fn a_process_in_a_worker_needs_leave() {
    let pool = pool(1).await;
    let error = within(pool.apply(start_inside, false))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        error.starts_with("nested: a pool or a process inside a worker") && error.contains("nested(true)"),
        "{error}"
    );
    assert_eq!(within(pool.apply(start_inside, true)).await.unwrap(), Ok(2));
    // In a process nobody has to ask.
    let process = within(quiet().spawn(start_inside, false)).await.unwrap();
    assert_eq!(within(process.join()).await.unwrap(), Ok(2));
}

/// Task: a process in a process in a process, as deep as it goes.
fn deeper(limit: u32) -> Result<u32, String> {
    runtime().block_on(async {
        match quiet().max_depth(limit).spawn(deeper, limit).await {
            Ok(process) => process.join().await.map_err(|error| error.to_string())?,
            Err(error) => match cause(&error) {
                BuildError::TooDeep { depth, limit } => {
                    let text = cause(&error).to_string();
                    assert!(text.starts_with("a pool or a process at nesting depth"), "{text}");
                    assert!(depth > limit);
                    Ok(*depth)
                }
                _ => Err(error.to_string()),
            },
        }
    })
}

#[tokio::test]
async fn nesting_has_a_limit() {
    for limit in [0, 2] {
        let process = within(quiet().max_depth(limit).spawn(deeper, limit))
            .await
            .unwrap();
        assert_eq!(within(process.join()).await.unwrap(), Ok(limit + 1));
    }
}

/// What a process says of itself.
fn say((mut output, kind): (impl Write, &str)) {
    let line = format!("{kind} {}\n", std::process::id());
    output.write_all(line.as_bytes()).unwrap();
}

/// Task: a process, with one of its own and something that leaves its group, all of which say that they are there.
#[expect(clippy::zombie_processes, reason = "it is what the library has to see to")]
fn family((output, depth): (Fd, u32)) {
    let inner = output.try_clone().unwrap();
    let started = (depth > 0).then(|| {
        runtime()
            .block_on(quiet().spawn(family, (inner, depth - 1)))
            .unwrap()
    });
    let file = std::fs::File::from(output.into_inner());
    let mut stray = Command::new("setsid");
    let script = "echo stray $$ >&0; exec sleep 1000";
    let stray = stray.args(["sh", "-c", script]).stdin(file.try_clone().unwrap());
    let _stray = stray.spawn().unwrap();
    say((file, "process"));
    park(());
    drop(started);
}

/// Task: starts a family inside a worker, and crashes when it is told to.
fn start_family((output, gate, method): (Fd, Fd, u32)) -> u32 {
    let builder = quiet().nested(true).start_method(METHODS[method as usize]);
    let process = runtime().block_on(builder.spawn(family, (output, 1))).unwrap();
    drop(process);
    wait_at(gate);
    std::process::abort()
}

#[tokio::test]
async fn what_is_started_in_a_worker_ends_with_it() {
    for method in [0, 1] {
        for ending in 0..4 {
            let pool = pool(1).await;
            let worker = pids(&pool)[0];
            let (output, input) = std::io::pipe().unwrap();
            let (mut gate, argument) = gate();
            let held = pool.apply_async(start_family, (input.into(), argument, method));
            assert_eq!(gate.entered(), worker);
            let mut lines = std::io::BufReader::new(output).lines();
            let found: Vec<u32> = (0..4)
                .map(|_| {
                    let line = lines.next().unwrap().unwrap();
                    line.split_once(' ').unwrap().1.parse().unwrap()
                })
                .collect();
            assert!(found.iter().all(|&pid| exists(pid)), "{found:?}");
            match ending {
                0 => gate.open(),
                1 => signal(worker, Signal::KILL),
                2 => held.abort(),
                _ => pool.terminate(),
            }
            assert!(within(held).await.is_err());
            gone(worker);
            found.into_iter().for_each(ended);
        }
    }
}

/// Task: starts what goes on and on from one session to the next, without a mark, for a while.
#[expect(clippy::zombie_processes, reason = "it is what the library has to see to")]
fn scatter(output: Fd) {
    let output = std::fs::File::from(output.into_inner());
    for number in 0..40 {
        // Not in step with one another.
        let next = "env -i setsid sh -c \"$0\" \"$0\" $(($1 - 1)) &";
        let told = "test $1 = 90 && echo goes on >&3; test $1 = 0 && echo survived >&3";
        let link = format!("sleep 0.0{}; {told} || {next}", 30 + number);
        let mut chain = Command::new("sh");
        chain.args(["-c", "exec 3>&0; exec sh -c \"$0\" \"$0\" 100", &link]);
        chain.stdin(output.try_clone().unwrap()).spawn().unwrap();
    }
    drop(output);
    park(());
}

#[tokio::test]
async fn a_daemon_is_killed_with_all_that_it_started_however_that_scatters() {
    let (mut output, input) = std::io::pipe().unwrap();
    let process = within(quiet().daemon(true).spawn(scatter, input.into()))
        .await
        .unwrap();
    output.read_exact(&mut [0]).unwrap();
    process.kill().unwrap();
    assert_eq!(within(process.join()).await.unwrap_err().exit_code(), Some(-9));
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(!said.contains("survived"), "{said}");
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(1).unwrap();
    parent.parse().unwrap()
}

#[tokio::test]
#[expect(clippy::zombie_processes, reason = "it is what the library has to see to")]
async fn what_one_in_a_worker_leaves_ends_with_it() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    let leave = |argument: (Fd, bool)| {
        let leave = |(output, crashes): (Fd, bool)| {
            let file = std::fs::File::from(output.into_inner());
            let script = "echo $$ >&0; exec sleep 1000";
            let mut stray = Command::new("setsid");
            let stray = stray.args(["sh", "-c", script]).stdin(file).spawn().unwrap();
            eventually("it has a session of its own", || {
                let name = std::fs::read_to_string(format!("/proc/{}/comm", stray.id()));
                name.is_ok_and(|name| name == "sleep\n")
            });
            if crashes {
                park(());
            }
        };
        runtime().block_on(async {
            let process = quiet().nested(true).spawn(leave, argument).await.unwrap();
            process.join().await.is_ok()
        })
    };
    for crashes in [false, true] {
        let (output, input) = std::io::pipe().unwrap();
        let left = pool.apply_async(leave, (input.into(), crashes));
        let mut line = String::new();
        std::io::BufReader::new(output).read_line(&mut line).unwrap();
        let stray: u32 = line.trim_end().parse().unwrap();
        if crashes {
            signal(parent_of(stray), Signal::KILL);
        }
        assert_eq!(within(left).await.unwrap(), !crashes);
        ended(stray);
    }
    // Its worker is not concerned.
    assert_eq!(pids(&pool), [worker]);
}

#[test]
fn a_process_has_only_its_own_descriptors_at_any_depth() {
    /// How many descriptors there are at each depth.
    fn count(depth: u32) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        if depth > 0 {
            let process = runtime().block_on(quiet().spawn(count, depth - 1)).unwrap();
            found = futures::executor::block_on(process.join()).unwrap();
        }
        eventually("the watcher watches the parent", || {
            descriptors().iter().any(|line| line.contains("pidfd"))
        });
        found.push(descriptors());
        found
    }
    let name = "processes::a_process_has_only_its_own_descriptors_at_any_depth";
    alone(name, || {
        // This process has descriptors that are none of theirs.
        let _file = std::fs::File::open("/dev/null").unwrap();
        let _pipe = std::io::pipe().unwrap();
        let innermost = |depth| {
            let process = runtime().block_on(quiet().spawn(count, depth)).unwrap();
            futures::executor::block_on(process.join()).unwrap().remove(0)
        };
        let (first, fifth) = (innermost(0), innermost(4));
        assert_eq!(first.len(), fifth.len(), "{first:#?} {fifth:#?}");
    });
}

/// Task: threads of the process that it runs in.
fn count_threads(_: ()) -> usize {
    threads()
}

#[tokio::test]
async fn what_goes_on_by_itself_has_the_one_thread() {
    for method in METHODS {
        let builder = Process::builder().start_method(method);
        let count = within(builder.spawn(count_threads, ())).await.unwrap();
        assert_eq!(within(count.join()).await.unwrap(), 1, "{method:?}");
        // Somebody has to see the parent's end.
        let bound = within(builder.daemon(true).spawn(count_threads, ()))
            .await
            .unwrap();
        assert_eq!(within(bound.join()).await.unwrap(), 2, "{method:?}");
    }
}

#[test]
fn what_a_process_costs_its_parent() {
    alone("processes::what_a_process_costs_its_parent", || {
        runtime().block_on(async {
            let mut kept = Vec::new();
            for method in METHODS {
                for (builder, each) in [
                    (Process::builder(), 3),
                    (quiet(), 4),
                    (
                        Process::builder()
                            .stdout(Output::lines(|_| ()))
                            .stderr(Output::lines(|_| ())),
                        5,
                    ),
                ] {
                    let builder = builder.daemon(true).start_method(method);
                    // It stays with its template, whose end would be seen in what is counted.
                    kept.push(builder.clone());
                    // With this one there is all that the library has for all, and the template.
                    let first = within(builder.spawn(park, ())).await.unwrap();
                    let before = descriptors().len();
                    let mut processes = vec![first];
                    for _ in 0..10 {
                        processes.push(within(builder.spawn(park, ())).await.unwrap());
                    }
                    let found = descriptors();
                    assert_eq!(found.len(), before + 10 * each, "{method:?} {found:#?}");
                    for process in processes {
                        process.kill().unwrap();
                        within(process.join()).await.unwrap_err();
                    }
                    eventually("all are back", || descriptors().len() <= before - each);
                }
            }
        });
    });
}

#[test]
fn a_start_takes_nothing_before_it_begins() {
    alone("processes::a_start_takes_nothing_before_it_begins", || {
        runtime().block_on(async {
            for method in METHODS {
                let builder = quiet().start_method(method);
                within(builder.warm_up()).await.unwrap();
                let process = within(builder.spawn(same::<u8>, 0)).await.unwrap();
                within(process.join()).await.unwrap();
                let before = descriptors().len();
                let starts: Vec<_> = (0..100).map(|n: u32| builder.spawn(same::<u32>, n)).collect();
                // Fewer, where something of the process that was joined was still there before.
                assert!(descriptors().len() <= before);
                drop(starts);
            }
            // Many at once get along with what they take in the end, for each waits for its turn.
            let limit = getrlimit(Resource::Nofile);
            let few = Rlimit {
                current: Some(descriptors().len() as u64 + 4 * 12 + 100 * 3),
                maximum: limit.maximum,
            };
            setrlimit(Resource::Nofile, few).unwrap();
            let builder = Process::builder()
                .daemon(true)
                .start_method(StartMethod::ForkServer);
            let starts = (0..100).map(|_: u32| builder.spawn(park, ()));
            let processes = within(futures::future::try_join_all(starts)).await.unwrap();
            for process in processes {
                process.kill().unwrap();
            }
        });
    });
}

#[test]
fn without_descriptors_a_start_is_an_error_that_says_so() {
    alone(
        "processes::without_descriptors_a_start_is_an_error_that_says_so",
        || {
            runtime().block_on(async {
                for method in METHODS {
                    let builder = quiet().start_method(method);
                    let process = within(builder.spawn(same::<u8>, 0)).await.unwrap();
                    within(process.join()).await.unwrap();
                    let limit = getrlimit(Resource::Nofile);
                    let before = children();
                    for spare in 0..8 {
                        let few = Rlimit {
                            current: Some(descriptors().len() as u64 + spare),
                            maximum: limit.maximum,
                        };
                        setrlimit(Resource::Nofile, few).unwrap();
                        let started = within(builder.spawn(park, ())).await;
                        setrlimit(Resource::Nofile, limit).unwrap();
                        match started {
                            Err(error) => {
                                let source = std::error::Error::source(cause(&error));
                                let reason = source.map(ToString::to_string).unwrap_or_default();
                                assert!(reason.contains("Too many open files"), "{error:?}");
                            }
                            Ok(process) => {
                                process.kill().unwrap();
                                within(process.join()).await.unwrap_err();
                            }
                        }
                    }
                    eventually("nothing is left", || children() == before);
                    let process = within(builder.spawn(same::<u8>, 1)).await.unwrap();
                    assert_eq!(within(process.join()).await.unwrap(), 1);
                }
            });
        },
    );
}

#[test]
fn a_descriptor_that_cannot_be_duplicated_is_named() {
    alone(
        "processes::a_descriptor_that_cannot_be_duplicated_is_named",
        || {
            runtime().block_on(async {
                let file = std::fs::File::open("/dev/null").unwrap();
                let number = file.as_raw_fd();
                let limit = getrlimit(Resource::Nofile);
                let none = Rlimit {
                    // It took the lowest that was free.
                    current: Some(number as u64 + 1),
                    maximum: limit.maximum,
                };
                setrlimit(Resource::Nofile, none).unwrap();
                let error = within(quiet().spawn(|_: Fd| (), file.into())).await.unwrap_err();
                setrlimit(Resource::Nofile, limit).unwrap();
                assert_eq!(error.kind(), ProcessErrorKind::Encode);
                let told = format!("file descriptor {number} cannot be duplicated: Too many open files");
                assert!(error.to_string().contains(&told), "{error}");
            });
        },
    );
}

#[test]
fn a_descriptor_that_there_is_no_room_for_costs_its_value_alone() {
    fn open(gate: Fd) -> Fd {
        wait_at(gate);
        std::fs::File::open("/dev/null").unwrap().into()
    }
    alone(
        "processes::a_descriptor_that_there_is_no_room_for_costs_its_value_alone",
        || {
            runtime().block_on(async {
                let (mut gate_of_process, argument) = gate();
                let process = within(quiet().spawn(open, argument)).await.unwrap();
                gate_of_process.entered();
                let pool = pool(1).await;
                let (mut gate_of_task, argument) = gate();
                let task = pool.apply_async(open, argument);
                let worker = gate_of_task.entered();
                let limit = getrlimit(Resource::Nofile);
                let none = Rlimit {
                    current: Some(3),
                    maximum: limit.maximum,
                };
                setrlimit(Resource::Nofile, none).unwrap();
                gate_of_process.open();
                let joined = within(process.join()).await;
                gate_of_task.open();
                let given = within(task).await;
                let after = within(pool.apply(crate::scene::pid, ())).await;
                setrlimit(Resource::Nofile, limit).unwrap();
                let error = joined.unwrap_err();
                assert_eq!(
                    (error.kind(), error.exit_code()),
                    (ProcessErrorKind::Decode, Some(0))
                );
                assert!(error.to_string().contains("ulimit -n"), "{error}");
                let error = given.unwrap_err();
                assert_eq!(error.kind(), procession::TaskErrorKind::Decode);
                assert!(error.to_string().contains("ulimit -n"), "{error}");
                assert_eq!(after.unwrap(), worker);
                // The other way round.
                let few = Process::builder().open_files_limit(20);
                let file = || Fd::from(std::fs::File::open("/dev/null").unwrap());
                let fds: Vec<Fd> = (0..30).map(|_| file()).collect();
                let process = within(few.spawn(|fds: Vec<Fd>| fds.len(), fds)).await.unwrap();
                let error = within(process.join()).await.unwrap_err();
                assert_eq!(
                    (error.kind(), error.exit_code()),
                    (ProcessErrorKind::Decode, Some(71))
                );
            });
        },
    );
}

#[tokio::test]
async fn its_environment_is_that_of_its_template() {
    let builder = quiet()
        .start_method(StartMethod::ForkServer)
        .current_dir("/")
        .env("PROCESSION_TEST", "template")
        .initializer(|_: ()| std::env::set_current_dir("/proc").unwrap(), ());
    let process = within(builder.spawn(
        |_: ()| {
            let directory = std::env::current_dir().unwrap();
            (directory, std::env::var("PROCESSION_TEST").unwrap())
        },
        (),
    ))
    .await
    .unwrap();
    let told = within(process.join()).await.unwrap();
    assert_eq!(told, ("/proc".into(), "template".to_owned()));
}
