//! Callers that look for their answer, and those that do not, are given the same.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use futures::executor::block_on;
use futures::future::join_all;
use procession::{Fd, Output, Pool, PoolBuilder, TaskErrorKind};
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};

use crate::fuse::{FUSE, within};
use crate::gate::{gate, wait_at};
use crate::scene::{alone, gone, pids, runtime, same, signal};

/// Never, as long as by default, and for longer than anything here takes.
const SPINS: [Option<Duration>; 3] = [Some(Duration::ZERO), None, Some(Duration::from_secs(1))];

fn builder(spin: Option<Duration>) -> PoolBuilder {
    let builder = Pool::builder()
        .workers(1)
        .stdout(Output::null())
        .stderr(Output::null());
    match spin {
        Some(time) => builder.spin(time),
        None => builder,
    }
}

/// A pool of one worker that has been called, so that the next caller looks.
async fn called(builder: PoolBuilder) -> Pool {
    let pool = within(builder.build()).await.unwrap();
    assert_eq!(within(pool.apply(square, 5)).await.unwrap(), 25);
    pool
}

fn square(n: u64) -> u64 {
    n * n
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Calls one after the other.
async fn call(pool: Pool, first: u64, times: u64) {
    for n in first..first + times {
        assert_eq!(pool.apply(square, n).await.unwrap(), n * n);
    }
}

#[test]
fn one_caller_or_many_on_any_runtime() {
    for spin in SPINS {
        for make in [current_thread as fn() -> Runtime, runtime] {
            for workers in [1, 2] {
                make().block_on(within(async {
                    let pool = builder(spin).workers(workers).build().await.unwrap();
                    call(pool.clone(), 0, 200).await;
                    for callers in [1, 2, 8, 100] {
                        let calls = (0..callers).map(|n| tokio::spawn(call(pool.clone(), n * 1000, 20)));
                        for done in join_all(calls).await {
                            done.unwrap();
                        }
                        // In one future, too.
                        join_all((0..callers).map(|n| call(pool.clone(), n, 5))).await;
                    }
                    assert_eq!(pool.stats().restarts, 0);
                }));
            }
        }
    }
}

/// Task: waits at the gate, then does it.
fn end_by((deed, gate): (String, Fd)) -> u32 {
    let pid = wait_at(gate);
    match deed.as_str() {
        "panic" => panic!("on purpose"),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        _ => pid,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_ends_badly_while_its_caller_looks() {
    for spin in SPINS {
        for deed in ["panic", "abort", "exit", "kill", "stop and kill", "stop"] {
            let pool = called(builder(spin)).await;
            let (mut gate, argument) = gate();
            let calls = pool.clone();
            let caller = tokio::spawn(async move { calls.apply(end_by, (deed.to_owned(), argument)).await });
            let worker = gate.entered();
            if deed.starts_with("stop") {
                signal(worker, Signal::STOP);
            }
            if deed.ends_with("kill") {
                signal(worker, Signal::KILL);
            }
            gate.open();
            if deed == "stop" {
                signal(worker, Signal::CONT);
            }
            let result = within(caller).await.unwrap();
            match deed {
                "stop" => assert_eq!(result.unwrap(), worker),
                "panic" => assert_eq!(result.unwrap_err().kind(), TaskErrorKind::Panicked),
                _ => assert_eq!(result.unwrap_err().kind(), TaskErrorKind::WorkerLost),
            }
            assert_eq!(within(pool.apply(square, 3)).await.unwrap(), 9);
            assert_eq!(
                pids(&pool) == [worker],
                ["stop", "panic"].contains(&deed),
                "{deed}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_ends_right_behind_its_answer() {
    for spin in SPINS {
        let pool = called(builder(spin)).await;
        for n in 0..50 {
            // Its end comes before, while or after the answer is taken.
            let end_soon = |n: u64| {
                std::thread::spawn(move || {
                    for _ in 0..n * 2000 {
                        std::hint::spin_loop();
                    }
                    std::process::abort();
                });
                n * n
            };
            match within(pool.apply(end_soon, n)).await {
                Ok(value) => assert_eq!(value, n * n),
                Err(error) => assert_eq!(error.kind(), TaskErrorKind::WorkerLost, "{error}"),
            }
            // The end may find this one.
            match within(pool.task(square, n).retries(1)).await {
                Ok(value) => assert_eq!(value, n * n),
                Err(error) => assert_eq!(error.kind(), TaskErrorKind::WorkerLost, "{error}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_while_its_caller_looks() {
    for spin in SPINS {
        let pool = called(builder(spin)).await;
        let short = Duration::from_millis(20);
        let (_shut, argument) = gate();
        let error = within(pool.task(wait_at, argument).timeout(short))
            .await
            .unwrap_err();
        assert!(matches!(error.kind(), TaskErrorKind::TimedOut(_)), "{error}");
        gone(error.worker_pid().unwrap());

        // By dropping it: something else comes first, or the task ends that awaits it.
        assert_eq!(within(pool.apply(square, 3)).await.unwrap(), 9);
        let (mut shut, argument) = gate();
        let (sender, enough) = tokio::sync::oneshot::channel::<()>();
        let call = pool.apply(wait_at, argument);
        let caller = tokio::spawn(async move {
            tokio::select! {
                result = call => Some(result),
                _ = enough => None,
            }
        });
        let worker = shut.entered();
        sender.send(()).unwrap();
        assert!(within(caller).await.unwrap().is_none());
        gone(worker);

        assert_eq!(within(pool.apply(square, 3)).await.unwrap(), 9);
        let (mut shut, argument) = gate();
        let calls = pool.clone();
        let caller = tokio::spawn(async move { calls.apply(wait_at, argument).await });
        let worker = shut.entered();
        caller.abort();
        assert!(within(caller).await.unwrap_err().is_cancelled());
        gone(worker);
        assert_eq!(within(pool.apply(square, 4)).await.unwrap(), 16);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_of_every_size() {
    for spin in SPINS {
        for lanes in [1, 4] {
            let pool = called(builder(spin).tasks_per_worker(lanes)).await;
            let longer = |length: usize| (vec![length as u8; length], length);
            let ledger = 64 * 1024;
            let sizes = [
                1,
                20_000,
                ledger - 100,
                3,
                ledger,
                1,
                300_000,
                30_000,
                40_000,
                ledger - 30,
                5,
            ];
            let check = async |length: usize| {
                let (bytes, same) = within(pool.apply(longer, length)).await.unwrap();
                assert!(same == length && bytes == vec![length as u8; length], "{length}");
            };
            for length in sizes {
                check(length).await;
            }
            // Side by side: large ones leave while small ones wait for them to be taken.
            for _ in 0..5 {
                join_all(sizes.map(check)).await;
            }
            assert_eq!(pool.stats().restarts, 0);
        }
    }
}

/// Task: one end of a pair of sockets, and at the other a text.
fn written(text: String) -> (Fd, String) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(text.as_bytes()).unwrap();
    (Fd::from(ours), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_with_descriptors() {
    for spin in SPINS {
        let pool = called(builder(spin)).await;
        for n in 0..50 {
            let (fd, text) = within(pool.apply(written, format!("text {n}"))).await.unwrap();
            let mut read = String::new();
            UnixStream::from(fd.into_inner())
                .read_to_string(&mut read)
                .unwrap();
            assert_eq!((read, text), (format!("text {n}"), format!("text {n}")));
            assert_eq!(within(pool.apply(square, n)).await.unwrap(), n * n);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_beside_single_calls() {
    for spin in SPINS {
        for workers in [1, 2] {
            let pool = called(builder(spin).workers(workers)).await;
            for chunk in [1, 7, 1000] {
                let map = tokio::spawn(pool.map(square, 0..3000).chunk_size(chunk).into_future());
                within(call(pool.clone(), 0, 100)).await;
                let values = within(map).await.unwrap().unwrap();
                assert!(values.into_iter().eq((0..3000).map(|n| n * n)));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_ends_while_a_caller_looks() {
    for spin in SPINS {
        for deed in ["terminate", "shut down", "shut down at once", "drop"] {
            let pool = called(builder(spin)).await;
            let (mut gate, argument) = gate();
            let handle = pool.apply_async(wait_at, argument);
            let caller = tokio::spawn(handle);
            let worker = gate.entered();
            match deed {
                "terminate" => pool.terminate(),
                "shut down" => {
                    gate.open();
                    assert!(within(pool.shutdown(FUSE)).await);
                    assert_eq!(within(caller).await.unwrap().unwrap(), worker);
                    gone(worker);
                    continue;
                }
                "shut down at once" => assert!(!within(pool.shutdown(Duration::ZERO)).await),
                _ => drop(pool),
            }
            let error = within(caller).await.unwrap().unwrap_err();
            assert!(error.is_pool_closed(), "{deed}: {error}");
            gone(worker);
        }
    }
}

#[test]
fn a_runtime_that_ends_while_a_caller_looks() {
    for spin in SPINS {
        let first = runtime();
        let pool = first.block_on(called(builder(spin)));
        let (mut shut, argument) = gate();
        let handle = pool.apply_async(wait_at, argument);
        let caller = std::thread::spawn(move || block_on(handle));
        let worker = shut.entered();
        drop(first);
        let error = caller.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::RuntimeShutdown, "{error}");
        gone(worker);

        // The caller's, which is not the pool's.
        let (first, second) = (runtime(), runtime());
        let pool = first.block_on(called(builder(spin)));
        let (mut shut, argument) = gate();
        let calls = pool.clone();
        second.spawn(async move { calls.apply(wait_at, argument).await });
        let worker = shut.entered();
        drop(second);
        gone(worker);
        assert_eq!(first.block_on(within(pool.apply(square, 3))).unwrap(), 9);
    }
}

async fn wait_at_asynchronously(gate: Fd) -> u32 {
    wait_at(gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_task_is_answered_while_a_long_one_runs_behind_it() {
    for spin in SPINS {
        for lanes in [1, 4] {
            let pool = called(builder(spin).tasks_per_worker(lanes)).await;
            let calls = pool.asynchronous();
            // So that several are sent ahead.
            let warm: Vec<_> = (0..300).map(|n| pool.apply_async(square, n)).collect();
            for (n, handle) in (0..).zip(warm) {
                assert_eq!(within(handle).await.unwrap(), n * n);
            }
            for _ in 0..10 {
                let held = || {
                    let (gate, argument) = gate();
                    (gate, pool.apply_async(wait_at, argument))
                };
                macro_rules! behind {
                    ($short:expr, $long:expr) => {{
                        // Both are there when the worker goes on.
                        let (before, holding) = held();
                        let short = $short;
                        let (shut, argument) = gate();
                        let long = $long(argument);
                        before.open();
                        within(holding).await.unwrap();
                        // What is behind waits for it.
                        let value = within(short).await.unwrap();
                        shut.open();
                        within(long).await.unwrap();
                        value
                    }};
                }
                let wait = |argument| pool.apply_async(wait_at, argument);
                let wait_asynchronously = |argument| calls.apply_async(wait_at_asynchronously, argument);
                let wait_in_a_chunk = |argument| pool.map_async(wait_at, [argument]);
                assert_eq!(behind!(pool.apply_async(square, 7), wait), 49);
                assert_eq!(behind!(pool.apply_async(square, 7), wait_asynchronously), 49);
                assert_eq!(behind!(pool.apply_async(square, 7), wait_in_a_chunk), 49);
                let ready = futures::future::ready::<u64>;
                assert_eq!(behind!(calls.apply_async(ready, 7), wait), 7);
                assert_eq!(behind!(calls.apply_async(ready, 7), wait_asynchronously), 7);
                assert_eq!(behind!(pool.map_async(square, 0..3), wait), [0, 1, 4]);
                assert_eq!(behind!(pool.map_async(square, 0..3), wait_in_a_chunk), [0, 1, 4]);
                assert_eq!(behind!(calls.map_async(ready, 0..3), wait), [0, 1, 2]);
            }
        }
    }
}

#[test]
fn a_parent_that_is_stopped_while_it_looks_goes_on() {
    alone("looking::a_parent_that_is_stopped_while_it_looks_goes_on", || {
        for spin in SPINS {
            runtime().block_on(async {
                let pool = called(builder(spin)).await;
                for _ in 0..5 {
                    // The parent is stopped and continued by somebody else, while its worker answers.
                    let mut other = Command::new("sh")
                        .args([
                            "-c",
                            "for n in 1 2 3 4 5; do kill -STOP $PPID; kill -CONT $PPID; done",
                        ])
                        .spawn()
                        .unwrap();
                    let mut n = 0;
                    while other.try_wait().unwrap().is_none() {
                        n += 1;
                        assert_eq!(within(pool.apply(square, n)).await.unwrap(), n * n);
                    }
                }
                assert_eq!(pool.stats().restarts, 0);
            });
        }
    });
}

#[tokio::test]
async fn who_looks_without_end_is_refused() {
    let error = within(Pool::builder().spin(Duration::MAX).build())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("spin"), "{error}");
    within(Pool::builder().workers(1).spin(Duration::from_secs(1)).build())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_arrives_while_another_task_of_its_worker_blocks() {
    let builder = Pool::builder().workers(1).tasks_per_worker(8);
    let pool = within(builder.stdout(Output::null()).stderr(Output::null()).build())
        .await
        .unwrap();
    for _ in 0..30 {
        // Of many callers one looks for the answers of all, and leaves when it has its own.
        let callers = (0..6).map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    assert_eq!(pool.apply(same::<u32>, n).await.unwrap(), n);
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            within(caller).await.unwrap();
        }
        let short: Vec<_> = (0..5).map(|n| pool.apply_async(same::<u32>, n)).collect();
        let (mut gate, argument) = gate();
        let long = pool.apply_async(wait_at, argument);
        gate.entered();
        for (n, short) in (0..).zip(short) {
            assert_eq!(within(short).await.unwrap(), n);
        }
        gate.open();
        within(long).await.unwrap();
    }
}
