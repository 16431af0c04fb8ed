//! Ways to hang or to lose something that were found by reading, each with the scenario that showed it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use procession::{Output, Pool, TaskErrorKind};
use rustix::process::Signal;

use crate::fuse::within;
use crate::scene::{pids, pool, same, signal};

fn fail_at_zero(n: u32) -> u32 {
    assert!(n > 0, "the first");
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_started_map_that_fails_while_it_is_submitted_leaves_the_pool_well() {
    let builder = Pool::builder().workers(1).stderr(Output::null());
    let pool = within(builder.build()).await.unwrap();
    for _ in 0..5 {
        let map = pool.map(fail_at_zero, 0..5000).chunk_size(1).submit();
        assert!(within(map).await.unwrap_err().is_panic());
        assert_eq!(within(pool.apply(same::<u32>, 7)).await.unwrap(), 7);
    }
    pool.close();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn who_waits_for_room_hears_of_a_worker_that_was_replaced() {
    let builder = Pool::builder()
        .workers(1)
        .queue_capacity(0)
        .stderr(Output::null());
    let pool = within(builder.build()).await.unwrap();
    let lost = pool.apply(|()| std::process::abort(), ());
    let waits = pool.apply(same::<u32>, 1);
    let (lost, waits): (Result<(), _>, _) = within(futures::future::join(lost, waits)).await;
    assert!(lost.unwrap_err().is_worker_lost());
    assert_eq!(waits.unwrap(), 1);
}

#[tokio::test]
async fn streams_that_nobody_polls_do_not_starve_a_call() {
    let builder = Pool::builder().workers(1).queue_capacity(1);
    let pool = within(builder.build()).await.unwrap();
    let mut streams: Vec<_> = (0..4).map(|_| pool.imap(same::<u32>, 0..)).collect();
    for stream in &mut streams {
        assert_eq!(within(stream.next()).await.unwrap().unwrap(), 0);
    }
    // None of them is polled again.
    for n in 0..20 {
        assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
    }
}

#[tokio::test]
async fn join_waits_for_the_callbacks() {
    let pool = pool(2).await;
    let called = Arc::new(AtomicUsize::new(0));
    for n in 0..100 {
        let called = Arc::clone(&called);
        drop(pool.apply_async(same::<u32>, n).callback(move |_| {
            called.fetch_add(1, Ordering::Relaxed);
        }));
    }
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(called.load(Ordering::Relaxed), 100);
}

#[tokio::test]
async fn idle_workers_that_are_killed_again_and_again_do_not_fail_the_pool() {
    let pool = pool(1).await;
    for _ in 0..6 {
        let worker = pids(&pool)[0];
        signal(worker, Signal::KILL);
        crate::fuse::eventually("it is replaced", || {
            pool.workers()[0].pid.is_some_and(|pid| pid != worker)
        });
    }
    assert_eq!(within(pool.apply(same::<u32>, 3)).await.unwrap(), 3);
    assert_eq!(pool.stats().restarts, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_late_in_the_queue_time_out_and_are_never_cancelled() {
    let pool = pool(2).await;
    let (mut done, mut late) = (0, 0);
    for round in 0..40 {
        let handles: Vec<_> = (0..500)
            .map(|n| {
                let patience = std::time::Duration::from_micros(20 * ((n + round) % 50) + 1);
                pool.task(same::<u64>, n).queue_timeout(patience).submit()
            })
            .collect();
        for handle in handles {
            match within(handle).await {
                Ok(_) => done += 1,
                Err(error) => {
                    let is_late = matches!(error.kind(), TaskErrorKind::TimedOut(_));
                    assert!(is_late, "{error}");
                    late += 1;
                }
            }
        }
    }
    assert_eq!(done + late, 20_000);
}

#[tokio::test]
async fn the_greatest_limits_are_no_overflow() {
    let builder = Pool::builder()
        .workers(5)
        .max_worker_age(std::time::Duration::MAX)
        .max_tasks_per_worker(u64::MAX)
        .max_worker_memory(u64::MAX)
        .task_timeout(std::time::Duration::MAX)
        .queue_timeout(std::time::Duration::MAX)
        .task_deadline(std::time::Duration::MAX);
    let pool = within(builder.build()).await.unwrap();
    assert_eq!(within(pool.map(same::<u32>, 0..100)).await.unwrap().len(), 100);
}
