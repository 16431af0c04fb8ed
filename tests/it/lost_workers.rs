//! Whatever a worker does, it costs at most the one task that it was running.

#![expect(unsafe_code, reason = "tasks do what no safe code can: crash")]

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use futures::stream::StreamExt;
use procession::{Output, Pool, TaskError, TaskErrorKind};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, getpid, pidfd_getfd, pidfd_open};

use crate::fuse::{eventually, within};
use crate::gate::{Gate, gate, wait_at};
use crate::scene::{Scratch, append, exists, gone, pid, pids, pool, same, signal};

/// Runs `task` on a pool of one worker with others behind it, and gives its error: everything else must be well.
async fn lose<F>(task: F) -> TaskError
where
    F: Fn(()) -> u32 + Copy + 'static,
{
    let pool = pool(1).await;
    let before = pids(&pool)[0];
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    let fatal = pool.apply_async(task, ());
    let behind: Vec<_> = (0..30).map(|_| pool.apply_async(pid, ())).collect();
    gate.open();
    assert_eq!(within(held).await.unwrap(), before);
    let error = within(fatal).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::WorkerLost, "{error}");
    assert!(error.is_worker_lost());
    assert_eq!((error.worker_pid(), error.worker_id()), (Some(before), Some(0)));
    let text = error.to_string();
    assert!(
        text.contains(&before.to_string()) && text.contains("was lost while running"),
        "{text}"
    );
    assert!(text.contains(error.task_name()), "{text}");
    for handle in behind {
        assert_ne!(within(handle).await.unwrap(), before);
    }
    assert!(!exists(before));
    assert_eq!(pool.stats().restarts, 1);
    pool.close();
    within(pool.join()).await.unwrap();
    error
}

fn died_of(error: &TaskError, signal: Signal) {
    assert_eq!(
        error.exit_status().and_then(|status| status.signal()),
        Some(signal.as_raw()),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&format!("signal: {}", signal.as_raw())),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_exits_is_lost_with_its_exit_code() {
    let error = lose(|()| std::process::exit(42)).await;
    assert_eq!(error.exit_status().and_then(|status| status.code()), Some(42));
    assert!(error.to_string().contains("exit status: 42"), "{error}");
    let error = lose(|()| std::process::exit(0)).await;
    assert_eq!(error.exit_status().and_then(|status| status.code()), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_aborts_is_lost_with_the_signal() {
    died_of(&lose(|()| std::process::abort()).await, Signal::ABORT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_is_killed_is_lost_with_the_signal() {
    for number in [Signal::KILL, Signal::TERM, Signal::XCPU] {
        let error = match number {
            Signal::KILL => lose(|()| strike(Signal::KILL)).await,
            Signal::TERM => lose(|()| strike(Signal::TERM)).await,
            _ => lose(|()| strike(Signal::XCPU)).await,
        };
        died_of(&error, number);
    }
}

fn strike(number: Signal) -> u32 {
    rustix::process::kill_process(getpid(), number).unwrap();
    loop {
        std::thread::park();
    }
}

#[tokio::test]
async fn a_task_with_a_bad_access_is_lost_with_the_signal() {
    let error = lose(|()| {
        // SAFETY: none; nothing is mapped there, and the process ends.
        unsafe { std::ptr::without_provenance_mut::<u8>(64).write_volatile(1) };
        0
    });
    died_of(&error.await, Signal::SEGV);
}

#[expect(unconditional_recursion, reason = "that is the point")]
fn dig(depth: u64) -> u64 {
    let block = std::hint::black_box([depth; 64]);
    dig(depth + 1) + block[1]
}

#[tokio::test]
async fn a_task_that_overflows_its_stack_is_lost() {
    let error = lose(|()| dig(0) as u32).await;
    // Rust's own message takes what `main` sets up, which this binary's workers never come to.
    died_of(&error, Signal::SEGV);
}

/// Panics while a panic unwinds.
struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        panic!("the second")
    }
}

#[tokio::test]
async fn a_panic_during_a_panic_is_a_lost_worker() {
    let error = lose(|()| {
        let _worse = Worse;
        panic!("the first")
    });
    let error = error.await;
    died_of(&error, Signal::ABORT);
    assert!(error.stderr().unwrap().contains("the first"), "{error}");
}

/// A descriptor of this process for the same open file as `number`.
fn copy_of(number: i32) -> std::io::Result<rustix::fd::OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

/// The connection to the parent: the one socket with a number from 10 on.
pub(crate) fn connection() -> rustix::fd::OwnedFd {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = std::fs::read_link(&path).ok()?;
        let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
        (number >= 10 && target.to_str()?.starts_with("socket:")).then_some(number)
    });
    let numbers: Vec<i32> = numbers.collect();
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    copy_of(numbers[0]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_shuts_its_connection_down_is_lost() {
    let error = lose(|()| {
        rustix::net::shutdown(connection(), rustix::net::Shutdown::Both).unwrap();
        loop {
            std::thread::park();
        }
    });
    error.await;
}

#[tokio::test]
async fn a_task_that_closes_every_descriptor_keeps_its_result() {
    let pool = pool(1).await;
    let close_all = |()| {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open: Vec<i32> = open
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        for number in open {
            // The directory that was read is closed by now.
            if std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok() {
                // SAFETY: none; whatever it was, this process can do no more with it.
                unsafe { rustix::io::close(number) };
            }
        }
        7
    };
    let before = pids(&pool)[0];
    // The worker cannot send it any more, but has noted it where its parent can see.
    assert_eq!(within(pool.apply(close_all, ())).await.unwrap(), 7);
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), before);
    assert_eq!(pool.stats().restarts, 1);
}

/// Writes `bytes` where frames should be.
fn disturb(bytes: &[u8]) -> u32 {
    let mut stream = std::os::unix::net::UnixStream::from(connection());
    stream.write_all(bytes).unwrap();
    loop {
        std::thread::park();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_writes_garbage_to_the_connection_is_lost_and_the_error_says_why() {
    let errors = [
        lose(|()| disturb(b"this is not a frame, and it is longer than a header, too")).await,
        lose(|()| disturb(&[0; 64])).await,
        lose(|()| disturb(&[0xff; 64])).await,
        lose(|()| disturb(&[7; 200])).await,
    ];
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("it sent") || text.contains("it answered"), "{text}");
    }
}

#[tokio::test]
async fn random_garbage_is_never_more_than_a_lost_worker() {
    let pool = pool(1).await;
    // A linear congruential generator: the same bytes in every run.
    let task = |seed: u64| {
        let mut state = seed;
        let bytes: Vec<u8> = (0..200)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let mut stream = std::os::unix::net::UnixStream::from(connection());
        stream.write_all(&bytes).unwrap();
        std::process::exit(1)
    };
    for seed in 0..30 {
        let error = within(pool.apply(task, seed)).await.map(|_: ()| ()).unwrap_err();
        assert!(error.is_worker_lost(), "{error}");
        assert_eq!(within(pool.apply(same::<u64>, seed)).await.unwrap(), seed);
    }
}

#[tokio::test]
async fn the_last_lines_of_standard_error_come_with_the_loss() {
    let error = lose(|()| {
        for n in 0..5000 {
            eprintln!("line {n} of a long story");
        }
        eprint!("the last words");
        std::process::exit(1)
    });
    let error = error.await;
    let stderr = error.stderr().unwrap();
    assert!(
        stderr.ends_with("line 4999 of a long story\nthe last words"),
        "{stderr}"
    );
    // It begins with a whole line and is bounded.
    assert!(
        stderr.starts_with("line ") && stderr.len() <= 16 << 10,
        "{}",
        stderr.len()
    );
    assert!(error.to_string().contains("the last words"));
}

#[tokio::test]
async fn output_of_an_earlier_worker_is_not_laid_to_its_successor() {
    let pool = pool(1).await;
    let talk = |_: ()| -> () {
        eprintln!("a secret");
        std::process::exit(1)
    };
    assert!(
        within(pool.apply(talk, ()))
            .await
            .unwrap_err()
            .stderr()
            .unwrap()
            .contains("a secret")
    );
    let error = within(pool.apply(|_: ()| -> () { std::process::exit(2) }, ()))
        .await
        .unwrap_err();
    assert_eq!(error.stderr(), Some(""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_lost_leaves_the_tasks_of_the_others_alone() {
    let pool = pool(3).await;
    let mut gates: Vec<Gate> = Vec::new();
    let mut handles = Vec::new();
    for _ in 0..3 {
        let (gate, argument) = gate();
        handles.push(pool.apply_async(wait_at, argument));
        gates.push(gate);
    }
    let running: Vec<u32> = gates.iter_mut().map(Gate::entered).collect();
    signal(running[1], Signal::KILL);
    let error = within(handles.remove(1)).await.unwrap_err();
    died_of(&error, Signal::KILL);
    assert_eq!(error.worker_pid(), Some(running[1]));
    drop(gates);
    assert_eq!(within(handles.remove(0)).await.unwrap(), running[0]);
    assert_eq!(within(handles.remove(0)).await.unwrap(), running[2]);
    eventually("three workers", || pids(&pool).len() == 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_workers_killed_at_once_cost_their_tasks_and_the_pool_goes_on() {
    let pool = pool(4).await;
    for _ in 0..5 {
        let (mut gates, arguments): (Vec<Gate>, Vec<_>) = (0..4).map(|_| gate()).unzip();
        let handles: Vec<_> = arguments
            .into_iter()
            .map(|argument| pool.apply_async(wait_at, argument))
            .collect();
        let queued: Vec<_> = (0..10).map(|n| pool.apply_async(same::<u32>, n)).collect();
        for worker in gates.iter_mut().map(Gate::entered).collect::<Vec<_>>() {
            signal(worker, Signal::KILL);
        }
        for handle in handles {
            died_of(&within(handle).await.unwrap_err(), Signal::KILL);
        }
        for (n, handle) in (0..).zip(queued) {
            assert_eq!(within(handle).await.unwrap(), n);
        }
        for n in 0..10 {
            assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_idle_is_replaced_and_nobody_notices() {
    let pool = pool(2).await;
    for _ in 0..5 {
        eventually("two workers", || pids(&pool).len() == 2);
        let before = pids(&pool);
        signal(before[0], Signal::KILL);
        gone(before[0]);
        let mut now = Vec::new();
        eventually("another one", || {
            now = pids(&pool);
            now.len() == 2 && now[0] != before[0]
        });
        assert_eq!(now[1], before[1]);
    }
    for n in 0..20 {
        assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_submitted_to_a_worker_that_has_just_died_runs_elsewhere() {
    let pool = pool(1).await;
    for n in 0..20 {
        eventually("a worker", || pids(&pool).len() == 1);
        signal(pids(&pool)[0], Signal::KILL);
        // It may be sent to the dead one. It cannot have started there, or it would be lost.
        match within(pool.apply(same::<u32>, n)).await {
            Ok(value) => assert_eq!(value, n),
            Err(error) => died_of(&error, Signal::KILL),
        }
    }
}

/// Adds a line, then ends its process if its number says so.
fn append_or_die((path, n): (String, u32)) -> u32 {
    append((path, n.to_string()));
    if n % 10 == 3 {
        strike(Signal::KILL);
    }
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_task_runs_twice() {
    let pool = pool(2).await;
    for size in [1, 5, 100] {
        let file = Scratch::new();
        let input = (0..100).map(|n| (file.path(), n));
        let each = within(pool.map(append_or_die, input).chunk_size(size).collect_results()).await;
        let mut ran: Vec<u32> = file.lines().iter().map(|line| line.parse().unwrap()).collect();
        ran.sort_unstable();
        assert_eq!(ran, (0..100).collect::<Vec<_>>(), "chunks of {size}");
        for (n, result) in (0..).zip(each) {
            match result {
                Ok(value) => assert_eq!(value, n),
                Err(error) => assert!(n % 10 == 3 && error.is_worker_lost(), "{n}: {error}"),
            }
        }
    }
    let file = Scratch::new();
    let handles: Vec<_> = (0..100)
        .map(|n| pool.apply_async(append_or_die, (file.path(), n)))
        .collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(within(handle).await.is_err(), n % 10 == 3, "{n}");
    }
    assert_eq!(file.lines().len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_element_of_a_hundred_that_aborts_costs_itself_alone() {
    let work = |n: u32| {
        if n == 37 {
            std::process::abort();
        }
        n
    };
    for workers in [1, 2] {
        let pool = pool(workers).await;
        for size in [None, Some(1), Some(7), Some(38), Some(100), Some(1000)] {
            let map = pool.map(work, 0..100);
            let map = match size {
                None => map,
                Some(size) => map.chunk_size(size),
            };
            let each = within(map.collect_results()).await;
            let failed: Vec<usize> = (0..each.len()).filter(|&n| each[n].is_err()).collect();
            assert_eq!((each.len(), failed), (100, vec![37]), "chunks of {size:?}");
            died_of(each[37].as_ref().unwrap_err(), Signal::ABORT);
            for (n, result) in (0..).zip(&each) {
                assert!(n == 37 || result.as_ref().is_ok_and(|&value| value == n));
            }
        }
    }
}

#[tokio::test]
async fn a_tiny_element_that_aborts_costs_none_of_the_many_in_its_chunk() {
    let pool = pool(1).await;
    let work = |n: u32| {
        if [0, 1, 70_001, 199_999].contains(&n) {
            std::process::abort();
        }
        n
    };
    for timeout in [None, Some(Duration::from_secs(30))] {
        let map = pool.map(work, 0..200_000).chunk_size(200_000);
        let map = match timeout {
            None => map,
            Some(timeout) => map.timeout(timeout),
        };
        let each = within(map.collect_results()).await;
        assert_eq!(each.len(), 200_000);
        for (n, result) in (0..).zip(&each) {
            match result {
                Ok(value) => assert_eq!(*value, n),
                Err(error) => assert!([0, 1, 70_001, 199_999].contains(&n), "{n}: {error}"),
            }
        }
        assert_eq!(each.iter().filter(|result| result.is_err()).count(), 4);
    }
}

#[tokio::test]
async fn every_second_element_may_abort() {
    let pool = pool(2).await;
    let work = |n: u32| {
        if n % 2 == 1 {
            std::process::abort();
        }
        n
    };
    let each = within(pool.map(work, 0..20).chunk_size(20).collect_results()).await;
    assert_eq!(
        each.iter().map(Result::is_err).collect::<Vec<_>>(),
        (0..20).map(|n| n % 2 == 1).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_worker_lost_behind_large_results_keeps_those() {
    let pool = pool(1).await;
    let work = |n: usize| {
        if n == 0 {
            std::process::abort();
        }
        "r".repeat(n)
    };
    for size in [10, 10_000, 500_000] {
        let each = within(
            pool.map(work, [size, size, 0, size])
                .chunk_size(4)
                .collect_results(),
        )
        .await;
        assert_eq!(
            each.iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, true, false, true],
            "{size}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_given_right_before_the_end_is_kept() {
    let pool = pool(1).await;
    // A thread ends the process when the answer has gone out, more or less.
    let work = |n: u32| {
        if n.is_multiple_of(5) {
            std::thread::spawn(|| std::process::exit(9));
        }
        n
    };
    let handles: Vec<_> = (0..100).map(|n| pool.apply_async(work, n)).collect();
    let mut lost = 0;
    for (n, handle) in (0..).zip(handles) {
        match within(handle).await {
            Ok(value) => assert_eq!(value, n),
            Err(error) => {
                assert!(error.is_worker_lost(), "{error}");
                lost += 1;
            }
        }
    }
    // Twenty workers end; each takes one task at most.
    assert!(lost <= 20, "{lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_kill_each_other_let_every_handle_end() {
    for workers in [1, 2, 5, 13] {
        let pool = pool(workers).await;
        let all = pids(&pool);
        let kill = |(pids, n): (Vec<u32>, usize)| {
            let victim = pids[n * 7 % pids.len()];
            // It may be gone already.
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(victim as i32).unwrap(),
                Signal::KILL,
            );
            n
        };
        let handles: Vec<_> = (0..60)
            .map(|n| {
                if n % 3 == 0 {
                    pool.apply_async(kill, (all.clone(), n))
                } else {
                    pool.apply_async(same::<usize>, n)
                }
            })
            .collect();
        for (n, handle) in (0..).zip(handles) {
            match within(handle).await {
                Ok(value) => assert_eq!(value, n),
                Err(error) => assert!(error.is_worker_lost(), "{error}"),
            }
        }
        assert_eq!(within(pool.map(same::<u32>, 0..50)).await.unwrap().len(), 50);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_lost_while_the_pool_closes_wedges_nothing() {
    for _ in 0..5 {
        let pool = pool(2).await;
        let (mut gate, argument) = gate();
        let held = pool.apply_async(wait_at, argument);
        let worker = gate.entered();
        let queued: Vec<_> = (0..20).map(|n| pool.apply_async(same::<u32>, n)).collect();
        pool.close();
        signal(worker, Signal::KILL);
        died_of(&within(held).await.unwrap_err(), Signal::KILL);
        for (n, handle) in (0..).zip(queued) {
            assert_eq!(within(handle).await.unwrap(), n);
        }
        within(pool.join()).await.unwrap();
    }
}

#[tokio::test]
async fn the_only_worker_lost_while_the_pool_closes_is_replaced_for_what_is_queued() {
    let pool = pool(1).await;
    let fatal = pool.apply_async(|_: ()| -> u32 { std::process::abort() }, ());
    let queued: Vec<_> = (0..20).map(|n| pool.apply_async(same::<u32>, n)).collect();
    pool.close();
    assert!(within(fatal).await.unwrap_err().is_worker_lost());
    for (n, handle) in (0..).zip(queued) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    within(pool.join()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_and_continued_goes_on() {
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    let worker = gate.entered();
    signal(worker, Signal::STOP);
    let queued = pool.apply_async(pid, ());
    gate.open();
    signal(worker, Signal::CONT);
    assert_eq!(within(held).await.unwrap(), worker);
    assert_eq!(within(queued).await.unwrap(), worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_read_holds_up_nobody_else() {
    let pool = pool(2).await;
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    let worker = gate.entered();
    signal(worker, Signal::STOP);
    for n in 0..50 {
        assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
    }
    let large = within(pool.apply(|text: String| text.len(), "x".repeat(50 << 20)));
    assert_eq!(large.await.unwrap(), 50 << 20);
    // An abort ends it all the same.
    held.abort();
    assert!(within(held).await.unwrap_err().is_cancelled());
    gone(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_handled_signals_disturbs_no_transfer() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    // SIGCONT and SIGWINCH do nothing by default, and interrupt what sleeps only where a handler is set.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let storm = std::thread::spawn(move || {
        let mut sent = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) && sent < 20_000 {
            signal(worker, Signal::STOP);
            signal(worker, Signal::CONT);
            sent += 1;
            std::thread::yield_now();
        }
        sent
    });
    let text = "x".repeat(50 << 20);
    assert!(within(pool.apply(same::<String>, text.clone())).await.unwrap() == text);
    // The storm may be over already.
    stop.send(()).ok();
    assert!(storm.join().unwrap() > 0);
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
}

#[tokio::test]
async fn hooks_hear_of_every_start_and_every_end() {
    let (started, starts) = std::sync::mpsc::channel();
    let (exited, exits) = std::sync::mpsc::channel();
    let builder = Pool::builder()
        .workers(1)
        .stderr(Output::null())
        .on_worker_start(move |event| started.send((event.worker, event.pid)).unwrap())
        .on_worker_exit(move |event| {
            exited
                .send((event.pid, event.status.and_then(|status| status.code())))
                .unwrap();
            panic!("a hook's own");
        });
    let pool = within(builder.build()).await.unwrap();
    let first = crate::fuse::receive(&starts).1;
    within(pool.apply(|_: ()| -> () { std::process::exit(5) }, ()))
        .await
        .unwrap_err();
    assert_eq!(crate::fuse::receive(&exits), (first, Some(5)));
    let (worker, second) = crate::fuse::receive(&starts);
    assert_eq!(worker, 0);
    assert_ne!(first, second);
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(crate::fuse::receive(&exits), (second, Some(0)));
}

#[tokio::test]
async fn a_stream_over_a_thousand_tasks_of_which_a_hundred_crash_ends() {
    let pool = pool(2).await;
    let work = |n: u32| match n % 20 {
        3 => std::process::exit(1),
        13 => panic!("thirteen"),
        _ => n,
    };
    let results: Vec<_> = within(pool.imap_unordered(work, 0..1000).collect()).await;
    let lost = results
        .iter()
        .filter(|result| result.as_ref().is_err_and(TaskError::is_worker_lost))
        .count();
    let panicked = results
        .iter()
        .filter(|result| result.as_ref().is_err_and(TaskError::is_panic))
        .count();
    let values: HashSet<u32> = results
        .iter()
        .filter_map(|result| result.as_ref().ok().copied())
        .collect();
    assert_eq!((lost, panicked, values.len()), (50, 50, 900));
}
