//! No task waits behind one that runs for long while another worker could have it.

use std::collections::HashSet;

use futures::stream::{FuturesUnordered, StreamExt};

use crate::fuse::within;
use crate::gate::{gate, wait_at};
use crate::scene::{pid, pool, same};

#[tokio::test]
async fn short_tasks_go_past_a_long_one() {
    let pool = pool(2).await;
    // Workers learn that tasks are short, so that they are sent many ahead.
    within(pool.map(same::<u32>, 0..2000).chunk_size(1))
        .await
        .unwrap();
    let before: Vec<_> = (0..500).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let (mut shut, argument) = gate();
    let long = pool.apply_async(wait_at, argument);
    let behind: Vec<_> = (0..1000).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let own = shut.entered();
    for (n, handle) in (0..500).zip(before).chain((0..1000).zip(behind)) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    let single = within(pool.map(same::<u32>, 0..1000).chunk_size(1))
        .await
        .unwrap();
    assert_eq!(single, (0..1000).collect::<Vec<_>>());
    assert_eq!(within(pool.map(same::<u32>, 0..1000)).await.unwrap(), single);
    for chunk in [1, 10] {
        let streamed: Vec<_> = within(pool.imap(same::<u32>, 0..1000).chunk_size(chunk).collect()).await;
        assert!(streamed.iter().all(Result::is_ok) && streamed.len() == 1000);
    }
    let streamed: Vec<_> = within(pool.imap_unordered(pid, 0..1000).collect()).await;
    let others: HashSet<u32> = streamed.into_iter().map(Result::unwrap).collect();
    assert!(!others.contains(&own) && others.len() == 1);
    assert!(!long.is_finished());
    shut.open();
    assert_eq!(within(long).await.unwrap(), own);
}

#[tokio::test]
async fn short_tasks_of_any_priority_go_past_a_long_one() {
    for long_priority in [-1, 0, 1] {
        let pool = pool(2).await;
        within(pool.map(same::<u32>, 0..2000).chunk_size(1))
            .await
            .unwrap();
        let (mut shut, argument) = gate();
        let long = pool.task(wait_at, argument).priority(long_priority).submit();
        let short: Vec<_> = (0..1000)
            .map(|n| pool.task(same::<i32>, n).priority(n % 3 - 1).submit())
            .collect();
        shut.entered();
        for (n, handle) in (0..1000).zip(short) {
            assert_eq!(within(handle).await.unwrap(), n);
        }
        assert!(!long.is_finished());
        shut.open();
        within(long).await.unwrap();
    }
}

#[tokio::test]
async fn one_of_a_higher_priority_goes_past_what_was_sent() {
    let pool = pool(1).await;
    within(pool.map(same::<u32>, 0..2000).chunk_size(1))
        .await
        .unwrap();
    let (mut shut, argument) = gate();
    let long = pool.apply_async(wait_at, argument);
    shut.entered();
    let (order, ended) = std::sync::mpsc::channel();
    let tell = |n: i32| {
        let order = order.clone();
        move |_: &i32| order.send(n).unwrap()
    };
    let low: Vec<_> = (0..20)
        .map(|n| pool.task(same::<i32>, n).callback(tell(n)).submit())
        .collect();
    let high = pool.task(same::<i32>, 99).priority(1).callback(tell(99)).submit();
    shut.open();
    within(long).await.unwrap();
    within(high).await.unwrap();
    for handle in low {
        within(handle).await.unwrap();
    }
    let order: Vec<i32> = ended.try_iter().collect();
    assert_eq!(order, [99].into_iter().chain(0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn several_long_ones_leave_the_last_worker_to_the_others() {
    let pool = pool(4).await;
    within(pool.map(same::<u32>, 0..2000).chunk_size(1))
        .await
        .unwrap();
    let mut gates = Vec::new();
    for _ in 0..3 {
        let (shut, argument) = gate();
        gates.push((shut, pool.apply_async(wait_at, argument)));
        let short: Vec<_> = (0..200).map(|n| pool.apply_async(same::<u32>, n)).collect();
        for handle in short {
            within(handle).await.unwrap();
        }
    }
    let mut held = HashSet::new();
    for (shut, _) in &mut gates {
        held.insert(shut.entered());
    }
    assert_eq!(held.len(), 3);
    for (shut, handle) in gates {
        shut.open();
        within(handle).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_behind_a_long_one_do_not_wait_for_the_queue_to_be_empty() {
    let pool = pool(2).await;
    // Short ones first, so that workers are sent many ahead.
    within(pool.map(same::<u32>, 0..3000).chunk_size(1))
        .await
        .unwrap();
    let (mut gate, argument) = gate();
    let before: Vec<_> = (0..300).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let long = pool.apply_async(wait_at, argument);
    let behind: Vec<_> = (0..200).map(|n| pool.apply_async(same::<u32>, n)).collect();
    // The queue is never empty from here on.
    let mut flow: FuturesUnordered<_> = (0..5000).map(|n| pool.apply_async(same::<u32>, n)).collect();
    gate.entered();
    let mut fed = 0;
    while !behind.iter().all(procession::AsyncResult::is_finished) {
        assert!(fed < 100_000, "they wait while {fed} later ones were done");
        within(flow.next()).await.unwrap().unwrap();
        flow.push(pool.apply_async(same::<u32>, fed));
        fed += 1;
    }
    drop((flow, before));
    gate.open();
    within(long).await.unwrap();
}

fn last(n: u64) -> u64 {
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_millis(1) {
        std::hint::spin_loop();
    }
    n
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_were_taken_for_short_do_not_wait_for_one_that_is_long() {
    let pool = pool(2).await;
    // The past was short, the present is not.
    for n in 0..300 {
        within(pool.apply(same::<u64>, n)).await.unwrap();
    }
    let (mut gate, argument) = gate();
    let long = pool.apply_async(wait_at, argument);
    let ahead: Vec<_> = (0..100).map(|n| pool.apply_async(last, n)).collect();
    let mut flow: FuturesUnordered<_> = (0..500).map(|n| pool.apply_async(last, n)).collect();
    gate.entered();
    let mut fed = 0;
    while !ahead.iter().all(procession::AsyncResult::is_finished) {
        assert!(fed < 10_000, "they wait while {fed} later ones were done");
        within(flow.next()).await.unwrap().unwrap();
        flow.push(pool.apply_async(last, fed));
        fed += 1;
    }
    drop(flow);
    gate.open();
    within(long).await.unwrap();
}
