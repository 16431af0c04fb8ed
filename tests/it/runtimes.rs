//! Pools on every kind of runtime, across runtimes, and after them.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use futures::executor::block_on;
use futures::stream::{StreamExt, TryStreamExt};
use procession::{Pool, TaskErrorKind};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::fuse::{FUSE, receive, within};
use crate::gate::{gate, wait_at};
use crate::scene::{exists, gone, pid, pids, pool, same};

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    crate::scene::runtime()
}

/// Some of everything.
async fn exercise(pool: &Pool) {
    assert_eq!(pool.apply(same::<u32>, 1).await.unwrap(), 1);
    let handles: Vec<_> = (0..20).map(|n| pool.apply_async(same::<u32>, n)).collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(handle.await.unwrap(), n);
    }
    assert_eq!(pool.map(same::<u32>, 0..100).await.unwrap().len(), 100);
    let streamed: Vec<u32> = pool.imap(same::<u32>, 0..100).try_collect().await.unwrap();
    assert_eq!(streamed, (0..100).collect::<Vec<_>>());
    let text = "x".repeat(3 << 20);
    assert!(pool.apply(same::<String>, text.clone()).await.unwrap() == text);
    let lost = pool
        .apply(|_: ()| -> () { std::process::exit(1) }, ())
        .await
        .unwrap_err();
    assert!(lost.is_worker_lost());
    assert_eq!(pool.apply(same::<u32>, 2).await.unwrap(), 2);
}

async fn build_and_exercise() {
    let pool = pool(2).await;
    exercise(&pool).await;
    pool.close();
    pool.join().await.unwrap();
}

#[test]
fn a_multi_thread_runtime() {
    multi_thread().block_on(within(build_and_exercise()));
    multi_thread().block_on(async { within(tokio::spawn(build_and_exercise())).await.unwrap() });
    assert!(tokio::runtime::Handle::try_current().is_err());
}

#[test]
fn a_current_thread_runtime() {
    current_thread().block_on(within(build_and_exercise()));
    assert!(tokio::runtime::Handle::try_current().is_err());
}

#[test]
fn a_runtime_without_time_or_io() {
    let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(build_on_any());
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(build_on_any());
    assert!(tokio::runtime::Handle::try_current().is_err());
}

/// Without a fuse of tokio's, which needs its timers.
async fn build_on_any() {
    let pool = Pool::builder()
        .workers(2)
        .stderr(procession::Output::null())
        .build()
        .await
        .unwrap();
    exercise(&pool).await;
    pool.close();
    pool.join().await.unwrap();
}

#[test]
fn a_local_set() {
    let local = LocalSet::new();
    let done = local.run_until(async {
        within(tokio::task::spawn_local(build_and_exercise()))
            .await
            .unwrap();
        true
    });
    assert!(current_thread().block_on(done));
}

#[test]
fn no_runtime_at_all() {
    block_on(build_on_any());
    let thread = std::thread::spawn(|| block_on(build_on_any()));
    assert!(thread.join().is_ok());
}

#[test]
fn futures_of_a_pool_are_awaited_by_any_executor() {
    let runtime = multi_thread();
    let pool = runtime.block_on(pool(2));
    block_on(exercise(&pool));
    let on_thread = pool.clone();
    std::thread::spawn(move || block_on(exercise(&on_thread)))
        .join()
        .unwrap();
    let mut executor = futures::executor::LocalPool::new();
    executor.run_until(exercise(&pool));
    assert!(pool.is_open());
}

#[test]
fn a_pool_is_used_from_another_runtime_than_its_own() {
    let (first, second, third) = (multi_thread(), multi_thread(), current_thread());
    let pool = first.block_on(pool(2));
    second.block_on(within(exercise(&pool)));
    third.block_on(within(exercise(&pool)));
    drop((second, third));
    first.block_on(within(exercise(&pool)));
    assert!(pool.is_open());
}

#[test]
fn a_pool_of_a_runtime_that_nobody_polls_is_used_from_another() {
    let (idle, busy) = (current_thread(), current_thread());
    let pool = idle.block_on(pool(2));
    busy.block_on(within(exercise(&pool)));
    assert!(pool.is_open());
}

#[test]
fn a_runtime_that_is_shut_down_ends_its_pool_at_once_with_an_error_that_says_so() {
    for make in [multi_thread as fn() -> Runtime, current_thread] {
        for by_drop in [true, false] {
            let runtime = make();
            let pool = runtime.block_on(pool(2));
            let (mut gate, argument) = gate();
            let running = pool.apply_async(wait_at, argument);
            let worker = gate.entered();
            let queued: Vec<_> = (0..10).map(|_| pool.apply_async(pid, ())).collect();
            let (sender, received) = std::sync::mpsc::channel();
            let (_closed, argument) = crate::gate::gate();
            let stuck = pool
                .apply_async(wait_at, argument)
                .error_callback(move |error| sender.send(error.kind()).unwrap());
            if by_drop {
                drop(runtime);
            } else {
                runtime.shutdown_timeout(Duration::from_secs(1));
            }
            let error = block_on(running).unwrap_err();
            assert_eq!(error.kind(), TaskErrorKind::RuntimeShutdown, "{error}");
            assert!(error.is_pool_closed());
            for handle in queued {
                // It may have run on the other worker before.
                match block_on(handle) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), TaskErrorKind::RuntimeShutdown),
                }
            }
            assert_eq!(receive(&received), TaskErrorKind::RuntimeShutdown);
            drop(stuck);
            for error in [
                block_on(pool.apply(pid, ())).unwrap_err(),
                block_on(pool.apply_async(pid, ())).unwrap_err(),
                block_on(async { pool.map(pid, 0..10).await }).unwrap_err(),
                block_on(pool.imap(pid, 0..10).next()).unwrap().unwrap_err(),
            ] {
                assert_eq!(error.kind(), TaskErrorKind::RuntimeShutdown);
            }
            block_on(pool.join()).unwrap();
            assert!(!exists(worker));
        }
    }
}

#[test]
fn a_runtime_that_ends_while_a_pool_starts_there_leaves_nothing() {
    for delay in [0, 1, 5, 10] {
        let runtime = multi_thread();
        let building = runtime.spawn(Pool::builder().workers(2).build());
        std::thread::park_timeout(Duration::from_millis(delay));
        drop(runtime);
        match current_thread().block_on(within(building)) {
            Ok(Ok(pool)) => {
                let error = block_on(pool.apply(pid, ())).unwrap_err();
                assert!(error.is_pool_closed());
                block_on(pool.join()).unwrap();
            }
            Ok(Err(error)) => assert!(matches!(error, procession::BuildError::Closed), "{error:?}"),
            Err(cancelled) => assert!(cancelled.is_cancelled()),
        }
    }
}

#[test]
fn the_global_pool_serves_one_runtime_after_the_other_and_many_at_once() {
    let calls = || -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async {
            assert_eq!(Pool::global().map(same::<u32>, 0..50).await.unwrap().len(), 50);
            assert_eq!(Pool::global().apply(same::<u8>, 1).await.unwrap(), 1);
        })
    };
    current_thread().block_on(within(calls()));
    multi_thread().block_on(within(calls()));
    block_on(calls());
    let threads: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || current_thread().block_on(within(calls()))))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(Pool::global().is_open());
    assert_eq!(Pool::global().name(), "global");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_thread_that_is_busy_delays_and_loses_nothing() {
    let pool = pool(2).await;
    // Both threads of the runtime are blocked while tasks are submitted.
    let (has_begun, begun) = std::sync::mpsc::channel();
    let (releases, blockers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (release, blocked) = std::sync::mpsc::channel::<()>();
            let has_begun = has_begun.clone();
            let blocker = tokio::spawn(async move {
                has_begun.send(()).unwrap();
                blocked.recv_timeout(FUSE) == Err(RecvTimeoutError::Disconnected)
            });
            (release, blocker)
        })
        .unzip();
    receive(&begun);
    receive(&begun);
    let handles: Vec<_> = (0..1000).map(|n| pool.apply_async(same::<u32>, n)).collect();
    drop(releases);
    for blocker in blockers {
        assert!(within(blocker).await.unwrap());
    }
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
}

#[tokio::test]
async fn a_thousand_blocking_threads_of_the_user_stall_nothing() {
    let pool = pool(2).await;
    let (gates, waiting): (Vec<_>, Vec<_>) = (0..512)
        .map(|_| {
            let (release, blocked) = std::sync::mpsc::channel::<()>();
            (
                release,
                tokio::task::spawn_blocking(move || blocked.recv_timeout(FUSE).is_err()),
            )
        })
        .unzip();
    within(exercise(&pool)).await;
    drop(gates);
    for task in waiting {
        assert!(within(task).await.unwrap());
    }
}

#[tokio::test]
async fn two_pools_do_not_disturb_each_other() {
    let (one, two) = (pool(2).await, pool(2).await);
    let (mut gate, argument) = gate();
    let held = two.apply_async(wait_at, argument);
    let worker = gate.entered();
    let ended = pids(&one);
    one.terminate();
    within(one.join()).await.unwrap();
    ended.into_iter().for_each(gone);
    gate.open();
    assert_eq!(within(held).await.unwrap(), worker);
    assert_eq!(pids(&two).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_does_not_break_a_pool() {
    let pool = Pool::builder().workers(1).build().await.unwrap();
    assert_eq!(pool.apply(same::<u8>, 1).await.unwrap(), 1);
    assert_eq!(pool.map(same::<u32>, 0..100).await.unwrap().len(), 100);
}
