//! The end of a pool: in every order, and with nothing left.

use std::time::Duration;

use procession::{JoinError, Pool, TaskErrorKind, TryApplyError};

use crate::fuse::{eventually, within};
use crate::gate::{Gate, gate, wait_at};
use crate::scene::{
    Scratch, alone, append, children, descriptors, exists, gone, pid, pids, pool, runtime, same, threads,
};

#[tokio::test]
async fn joining_an_open_pool_is_an_error() {
    let pool = pool(1).await;
    assert_eq!(within(pool.join()).await, Err(JoinError));
    assert!(pool.is_open());
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn close_refuses_new_work_and_finishes_what_was_accepted() {
    let pool = pool(2).await;
    let file = Scratch::new();
    let handles: Vec<_> = (0..50)
        .map(|n| pool.apply_async(append, (file.path(), n.to_string())))
        .collect();
    let map = pool.map_async(append, (50..60).map(|n| (file.path(), n.to_string())));
    pool.close();
    assert!(!pool.is_open());
    for error in [
        within(pool.apply(pid, ())).await.unwrap_err(),
        within(pool.apply_async(pid, ())).await.unwrap_err(),
        within(pool.task(pid, ())).await.unwrap_err(),
        within(pool.map(pid, [1, 2])).await.unwrap_err(),
        within(pool.map_async(pid, [1, 2])).await.unwrap_err(),
        within(pool.map(pid, [1, 2]).collect_results())
            .await
            .remove(0)
            .unwrap_err(),
        within(pool.asynchronous().apply(futures::future::ready::<u8>, 1))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
        assert!(error.to_string().contains("the pool is closed"), "{error}");
        assert!(error.is_pool_closed());
    }
    assert!(matches!(
        pool.try_apply(same::<u8>, 9),
        Err(TryApplyError::PoolClosed(9))
    ));
    within(pool.join()).await.unwrap();
    for handle in handles {
        within(handle).await.unwrap();
    }
    within(map).await.unwrap();
    assert_eq!(file.lines().len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_never_ran_a_task_closes() {
    for workers in [1, 4] {
        let pool = pool(workers).await;
        let workers = pids(&pool);
        pool.close();
        within(pool.join()).await.unwrap();
        assert!(workers.into_iter().all(|worker| !exists(worker)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_that_end_a_pool_may_come_in_any_order_and_often() {
    type Step = fn(&Pool);
    let steps: [Step; 2] = [Pool::close, Pool::terminate];
    for order in 0..16_usize {
        let pool = pool(2).await;
        let workers = pids(&pool);
        let (mut gate, argument) = gate();
        let held = pool.apply_async(wait_at, argument);
        gate.entered();
        let first = steps[order & 1];
        first(&pool);
        // Somebody waits while others go on ending it.
        let joining = pool.clone();
        let joined = tokio::spawn(async move { joining.join().await });
        for bit in 1..4 {
            steps[order >> bit & 1](&pool);
        }
        if order == 0 {
            assert!(!held.is_finished());
            gate.open();
            within(held).await.unwrap();
        } else {
            assert_eq!(within(held).await.unwrap_err().kind(), TaskErrorKind::PoolClosed);
        }
        within(joined).await.unwrap().unwrap();
        within(pool.join()).await.unwrap();
        assert!(workers.into_iter().all(|worker| !exists(worker)));
        steps.iter().for_each(|step| step(&pool));
        within(pool.join()).await.unwrap();
    }
}

#[tokio::test]
async fn a_join_that_is_given_up_changes_nothing() {
    let pool = pool(1).await;
    let (gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    pool.close();
    assert!(
        tokio::time::timeout(Duration::from_millis(20), pool.join())
            .await
            .is_err()
    );
    gate.open();
    within(held).await.unwrap();
    within(pool.join()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminate_ends_ten_thousand_tasks_at_once() {
    let pool = pool(2).await;
    let (mut gates, arguments): (Vec<Gate>, Vec<_>) = (0..2).map(|_| gate()).unzip();
    let running: Vec<_> = arguments
        .into_iter()
        .map(|argument| pool.apply_async(wait_at, argument))
        .collect();
    let workers: Vec<u32> = gates.iter_mut().map(Gate::entered).collect();
    let queued: Vec<_> = (0..10_000).map(|n| pool.apply_async(same::<u32>, n)).collect();
    pool.terminate();
    assert!(running.iter().chain([]).all(procession::AsyncResult::is_finished));
    for handle in queued {
        let error = within(handle).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
        assert!(error.to_string().contains("the pool was terminated"), "{error}");
    }
    for handle in running {
        let error = within(handle).await.unwrap_err();
        assert!(error.to_string().contains("while"), "{error}");
    }
    within(pool.join()).await.unwrap();
    assert!(workers.into_iter().all(|worker| !exists(worker)));
}

#[tokio::test]
async fn dropping_the_last_handle_kills_the_workers() {
    let pool = pool(2).await;
    let workers = pids(&pool);
    let second = pool.clone();
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    drop(pool);
    assert_eq!(within(second.apply(same::<u8>, 1)).await.unwrap(), 1);
    assert!(!held.is_finished());
    drop(second);
    assert_eq!(within(held).await.unwrap_err().kind(), TaskErrorKind::PoolClosed);
    workers.into_iter().for_each(gone);
}

#[tokio::test]
async fn shutdown_lets_tasks_finish_in_time_and_says_whether_they_did() {
    let patient = pool(2).await;
    let handles: Vec<_> = (0..100).map(|n| patient.apply_async(same::<u32>, n)).collect();
    assert!(within(patient.shutdown(Duration::from_secs(25))).await);
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(within(handle).await.unwrap(), n);
    }

    let hasty = pool(1).await;
    let (mut gate, argument) = gate();
    let held = hasty.apply_async(wait_at, argument);
    let worker = gate.entered();
    let queued = hasty.apply_async(pid, ());
    assert!(!within(hasty.shutdown(Duration::from_millis(50))).await);
    assert_eq!(within(held).await.unwrap_err().kind(), TaskErrorKind::PoolClosed);
    assert_eq!(
        within(queued).await.unwrap_err().kind(),
        TaskErrorKind::PoolClosed
    );
    assert!(!exists(worker));
    assert!(
        !within(hasty.shutdown(Duration::ZERO)).await,
        "some were not done"
    );
}

#[tokio::test]
async fn a_worker_crash_during_shutdown_is_still_reported() {
    let pool = pool(1).await;
    let (gate, argument) = gate();
    let crash = |gate: procession::Fd| -> u32 {
        wait_at(gate);
        std::process::abort()
    };
    let fatal = pool.apply_async(crash, argument);
    pool.close();
    gate.open();
    within(pool.join()).await.unwrap();
    assert!(within(fatal).await.unwrap_err().is_worker_lost());
}

#[tokio::test]
async fn exit_handlers_of_a_worker_run_when_it_ends_in_peace() {
    let pool = pool(1).await;
    let file = Scratch::new();
    // The destructor of a thread-local value of the main thread runs at exit.
    struct AtExit(String);
    impl Drop for AtExit {
        fn drop(&mut self) {
            append((std::mem::take(&mut self.0), "ended".to_owned()));
        }
    }
    thread_local! {
        static AT_EXIT: std::cell::RefCell<Option<AtExit>> = const { std::cell::RefCell::new(None) };
    }
    within(pool.apply(|path: String| AT_EXIT.set(Some(AtExit(path))), file.path()))
        .await
        .unwrap();
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(file.lines(), ["ended"]);
}

#[tokio::test]
async fn a_worker_that_does_not_end_is_killed_after_its_grace() {
    let builder = Pool::builder()
        .workers(1)
        .shutdown_grace(Duration::from_millis(100));
    let pool = within(builder.build()).await.unwrap();
    struct Stubborn;
    impl Drop for Stubborn {
        fn drop(&mut self) {
            loop {
                std::thread::park();
            }
        }
    }
    thread_local! {
        static STUBBORN: std::cell::RefCell<Option<Stubborn>> = const { std::cell::RefCell::new(None) };
    }
    within(pool.apply(|_: ()| STUBBORN.set(Some(Stubborn)), ()))
        .await
        .unwrap();
    let worker = pids(&pool)[0];
    pool.close();
    within(pool.join()).await.unwrap();
    assert!(!exists(worker));
}

#[tokio::test]
async fn what_a_task_started_ends_with_its_worker() {
    for ending in [Pool::close as fn(&Pool), Pool::terminate] {
        let pool = pool(1).await;
        let start = |_: ()| {
            std::process::Command::new("sleep")
                .arg("1000")
                .spawn()
                .unwrap()
                .id()
        };
        let child = within(pool.apply(start, ())).await.unwrap();
        assert!(exists(child));
        ending(&pool);
        within(pool.join()).await.unwrap();
        gone(child);
    }
}

/// One life of a pool with some of everything, ended in one of several ways.
async fn live(ending: u32) {
    let pool = pool(3).await;
    let mut handles: Vec<_> = (0..20).map(|n| pool.apply_async(same::<u32>, n)).collect();
    within(pool.map(same::<u32>, 0..50)).await.unwrap();
    within(pool.apply(|_: ()| -> () { std::process::exit(1) }, ()))
        .await
        .unwrap_err();
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    let file = procession::Fd::from(std::fs::File::open("/dev/null").unwrap());
    within(pool.apply(same::<procession::Fd>, file)).await.unwrap();
    let (seen, was_seen) = tokio::sync::oneshot::channel();
    drop(
        pool.apply_async(same::<u32>, 1)
            .callback(move |_| seen.send(()).unwrap()),
    );
    within(was_seen).await.unwrap();
    match ending {
        0 => {
            gate.open();
            pool.close();
            within(pool.join()).await.unwrap();
            drop(held);
        }
        1 => {
            pool.terminate();
            within(pool.join()).await.unwrap();
            drop((held, gate));
        }
        2 => drop(pool),
        3 => {
            drop(handles.split_off(0));
            drop(held);
            drop(pool);
            drop(gate);
        }
        4 => {
            held.abort();
            drop(pool);
        }
        _ => {
            gate.open();
            assert!(within(pool.shutdown(Duration::from_secs(25))).await);
        }
    }
}

#[test]
fn nothing_is_left_of_a_pool_however_it_ends() {
    alone("shutdown::nothing_is_left_of_a_pool_however_it_ends", || {
        runtime().block_on(async {
            live(0).await;
            eventually("no child", || children().is_empty());
            // The library's own thread and its descriptors are kept; those of the first pool go.
            let rest = || (descriptors().len(), threads());
            let mut before = (0, 0);
            eventually("all is at rest", || {
                std::thread::park_timeout(Duration::from_millis(50));
                std::mem::replace(&mut before, rest()) == rest()
            });
            for ending in 0..6 {
                for _ in 0..3 {
                    live(ending).await;
                }
                eventually("no child", || children().is_empty());
                eventually(
                    &format!(
                        "descriptors are back at {before:?} after ending {ending}: {:?}",
                        descriptors()
                    ),
                    || descriptors().len() <= before.0,
                );
                // A blocking thread of the runtime may stay for its next task.
                eventually(
                    &format!("threads are back at {before:?} after ending {ending}"),
                    || threads() <= before.1 + 2,
                );
            }
        });
    });
}

#[test]
fn threads_do_not_grow_with_workers() {
    alone("shutdown::threads_do_not_grow_with_workers", || {
        runtime().block_on(async {
            let count = async |workers| {
                let pool = pool(workers).await;
                within(pool.map(same::<u32>, 0..100)).await.unwrap();
                eventually("starting is over", || pids(&pool).len() == workers);
                let count = threads();
                pool.close();
                within(pool.join()).await.unwrap();
                count
            };
            let few = count(2).await;
            let many = count(24).await;
            // Starting processes takes threads that end by themselves.
            assert!(many <= few + 24, "{few} with 2 workers, {many} with 24");
        });
    });
}

#[tokio::test]
async fn shutdown_says_whether_tasks_were_done_and_not_whether_workers_are_gone() {
    let terminated = pool(1).await;
    let (_gate, argument) = gate();
    let stuck = terminated.apply_async(wait_at, argument);
    terminated.terminate();
    assert!(!within(terminated.shutdown(Duration::from_secs(20))).await);
    within(stuck).await.unwrap_err();

    let idle = pool(1).await;
    within(idle.apply(same::<u32>, 1)).await.unwrap();
    assert!(within(idle.shutdown(Duration::ZERO)).await);
    assert!(within(idle.shutdown(Duration::ZERO)).await, "and it stays so");
}
