//! The queue: its bound, its order, and that nothing waits where it need not.

use std::collections::BTreeSet;

use futures::stream::{FuturesUnordered, StreamExt};
use procession::{AsyncResult, Pool, TaskErrorKind, TryApplyError};

use crate::fuse::{eventually, within};
use crate::gate::{Gate, gate, wait_at};
use crate::scene::{Scratch, append, children, pid, pool, same};

async fn bounded(workers: usize, capacity: usize) -> Pool {
    within(Pool::builder().workers(workers).queue_capacity(capacity).build())
        .await
        .unwrap()
}

fn hold(pool: &Pool) -> (Gate, AsyncResult<u32>) {
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    (gate, held)
}

#[tokio::test]
async fn a_full_queue_gives_the_argument_back_at_once() {
    let pool = bounded(1, 2).await;
    let (gate, held) = hold(&pool);
    let queued: Vec<_> = (0..2)
        .map(|n| pool.try_apply(same::<String>, n.to_string()).unwrap())
        .collect();
    let refused = pool
        .try_apply(same::<String>, "the third".to_owned())
        .unwrap_err();
    assert!(refused.is_queue_full());
    assert!(matches!(&refused, TryApplyError::QueueFull(text) if text == "the third"));
    assert_eq!(refused.into_inner(), "the third");
    let error = within(pool.apply_async(same::<u8>, 1)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::QueueFull);
    assert!(error.to_string().contains("the queue is full"), "{error}");
    assert_eq!(pool.stats().queued, 2);
    gate.open();
    within(held).await.unwrap();
    for (n, handle) in (0..).zip(queued) {
        assert_eq!(within(handle).await.unwrap(), n.to_string());
    }
    assert!(pool.try_apply(same::<u8>, 1).is_ok());
}

#[tokio::test]
async fn without_a_queue_a_task_is_taken_only_when_a_worker_is_free() {
    let pool = bounded(2, 0).await;
    let (first_gate, first) = hold(&pool);
    let (second_gate, second) = hold(&pool);
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
    first_gate.open();
    within(first).await.unwrap();
    let taken = pool.try_apply(pid, ()).unwrap();
    within(taken).await.unwrap();
    second_gate.open();
    within(second).await.unwrap();
    // apply waits for its turn.
    let calls: FuturesUnordered<_> = (0..50).map(|n| pool.apply(same::<u32>, n)).collect();
    let values: BTreeSet<u32> = within(calls.map(Result::unwrap).collect()).await;
    assert_eq!(values.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_waits_for_room() {
    let pool = bounded(1, 1).await;
    let (gate, held) = hold(&pool);
    let _queued = pool.try_apply(pid, ()).unwrap();
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.apply(same::<u32>, n).await })
        })
        .collect();
    let mut waits_here = Box::pin(pool.apply(same::<u32>, 99));
    assert!(futures::poll!(&mut waits_here).is_pending());
    assert_eq!(pool.stats().queued, 1);
    gate.open();
    within(held).await.unwrap();
    for (n, task) in (0..).zip(waiting) {
        assert_eq!(within(task).await.unwrap().unwrap(), n);
    }
    assert_eq!(within(waits_here).await.unwrap(), 99);
}

#[tokio::test]
async fn one_that_gives_up_waiting_for_room_does_not_take_it_from_others() {
    let pool = bounded(1, 1).await;
    for round in 0..50 {
        let (gate, held) = hold(&pool);
        let queued = pool.try_apply(pid, ()).unwrap();
        let mut waiting: Vec<_> = (0..6).map(|n| Box::pin(pool.apply(same::<u32>, n))).collect();
        for call in &mut waiting {
            assert!(futures::poll!(call).is_pending());
        }
        gate.open();
        within(held).await.unwrap();
        within(queued).await.unwrap();
        // Those that were told first are the ones that go.
        for _ in 0..round % 6 {
            drop(waiting.remove(0));
        }
        for call in waiting {
            within(call).await.unwrap();
        }
    }
}

#[tokio::test]
async fn those_that_wait_for_room_hear_of_the_pools_end() {
    for ending in [Pool::close as fn(&Pool), Pool::terminate] {
        let pool = bounded(1, 0).await;
        let (gate, held) = hold(&pool);
        let mut waiting = Box::pin(pool.apply(pid, ()));
        assert!(futures::poll!(&mut waiting).is_pending());
        ending(&pool);
        assert_eq!(
            within(waiting).await.unwrap_err().kind(),
            TaskErrorKind::PoolClosed
        );
        gate.open();
        let _ = within(held).await;
    }
}

#[tokio::test]
async fn an_abort_makes_room() {
    let pool = bounded(1, 1).await;
    let (gate, held) = hold(&pool);
    let queued = pool.try_apply(pid, ()).unwrap();
    let mut waiting = Box::pin(pool.apply(same::<u8>, 1));
    assert!(futures::poll!(&mut waiting).is_pending());
    queued.abort();
    assert!(within(queued).await.unwrap_err().is_cancelled());
    // Who waited has the room, without having been looked at.
    assert_eq!(pool.stats().queued, 1);
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
    assert!(futures::poll!(&mut waiting).is_pending());
    gate.open();
    assert_eq!(within(waiting).await.unwrap(), 1);
    within(held).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_starts_tasks_in_order_of_submission() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let handles: Vec<_> = (0..300)
        .map(|n| pool.apply_async(append, (file.path(), n.to_string())))
        .collect();
    for handle in handles {
        within(handle).await.unwrap();
    }
    assert_eq!(file.lines(), (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_higher_priority_starts_first_and_equal_ones_in_order_of_submission() {
    let pool = pool(1).await;
    let file = Scratch::new();
    // Short tasks first, so that the pool has learned to send ahead.
    within(pool.map(same::<u32>, 0..200).chunk_size(1)).await.unwrap();
    let (gate, held) = hold(&pool);
    let handles: Vec<_> = [
        (0, "c"),
        (-1, "f"),
        (5, "a"),
        (0, "d"),
        (5, "b"),
        (-1, "g"),
        (0, "e"),
    ]
    .map(|(priority, name)| {
        pool.task(append, (file.path(), name.to_owned()))
            .priority(priority)
            .submit()
    })
    .into_iter()
    .collect();
    gate.open();
    for handle in handles {
        within(handle).await.unwrap();
    }
    within(held).await.unwrap();
    assert_eq!(file.lines(), ["a", "b", "c", "d", "e", "f", "g"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_short_task_waits_behind_a_long_one() {
    let pool = pool(2).await;
    // The pool has learned that tasks are short, and sends many ahead.
    within(pool.map(same::<u32>, 0..500).chunk_size(1)).await.unwrap();
    for round in 0..20 {
        let before: Vec<_> = (0..round * 5).map(|n| pool.apply_async(same::<u32>, n)).collect();
        let (gate, argument) = gate();
        let long = pool.apply_async(wait_at, argument);
        let short: Vec<_> = (0..200).map(|n| pool.apply_async(same::<u32>, n)).collect();
        for handle in before.into_iter().chain(short) {
            within(handle).await.unwrap();
        }
        assert!(!long.is_finished());
        gate.open();
        within(long).await.unwrap();
    }
}

#[test]
fn there_are_never_more_workers_than_asked_for() {
    crate::scene::alone("limits::there_are_never_more_workers_than_asked_for", || {
        crate::scene::runtime().block_on(async {
            let pool = pool(3).await;
            let (gates, handles): (Vec<_>, Vec<_>) = (0..45)
                .map(|_| {
                    let (gate, argument) = gate();
                    (gate, pool.apply_async(wait_at, argument))
                })
                .unzip();
            eventually("all workers are busy", || pool.stats().in_flight == 3);
            assert_eq!(children().len(), 3);
            assert_eq!(pool.stats().queued, 42);
            drop(gates);
            for handle in handles {
                within(handle).await.unwrap();
            }
            assert_eq!(children().len(), 3);
        });
    });
}
