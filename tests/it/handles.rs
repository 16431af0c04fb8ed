//! `apply_async` and what its handle can do.

use std::time::Duration;

use futures::future::FusedFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use procession::{AsyncResult, Pool, TaskErrorKind};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, gone, pid, pool, same};

const _: () = {
    const fn is_handle<T: Send + Sync + Unpin + 'static>() {}
    const fn is_pool<T: Clone + Send + Sync + 'static>() {}
    is_handle::<AsyncResult<String>>();
    is_handle::<procession::Apply<String>>();
    is_pool::<Pool>();
};

#[tokio::test]
async fn a_handle_becomes_ready_and_gives_its_value() {
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let handle = pool.apply_async(wait_at, argument);
    let worker = gate.entered();
    assert!(!handle.is_finished());
    gate.open();
    eventually("the handle is ready", || handle.is_finished());
    assert_eq!(within(handle).await.unwrap(), worker);
}

#[tokio::test]
async fn ids_count_submissions_from_one() {
    let pool = pool(2).await;
    let handles: Vec<_> = (0..5).map(|n| pool.apply_async(same::<u32>, n)).collect();
    assert_eq!(
        handles.iter().map(AsyncResult::id).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert!(
        handles[0].task_name().contains("same"),
        "{}",
        handles[0].task_name()
    );
    for (handle, n) in handles.into_iter().zip(0..) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_combine_with_select_join_sets_and_streams() {
    let pool = pool(2).await;
    let (gate, argument) = gate();
    let slow = pool.apply_async(wait_at, argument);
    let quick = pool.apply_async(same::<u8>, 7);
    tokio::pin!(slow);
    let first = within(async {
        tokio::select! {
            _ = &mut slow => None,
            value = quick => Some(value.unwrap()),
        }
    });
    assert_eq!(first.await, Some(7));
    gate.open();
    within(slow).await.unwrap();

    let mut set = tokio::task::JoinSet::new();
    for n in 0..5_u32 {
        set.spawn(pool.apply_async(same::<u32>, n));
    }
    let mut joined: Vec<u32> = within(set.join_all())
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    joined.sort_unstable();
    assert_eq!(joined, [0, 1, 2, 3, 4]);

    let unordered: FuturesUnordered<_> = (0..5_u32).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let mut collected: Vec<u32> = within(unordered.map(Result::unwrap).collect::<Vec<_>>()).await;
    collected.sort_unstable();
    assert_eq!(collected, [0, 1, 2, 3, 4]);

    let (a, b) = within(async { tokio::join!(pool.apply(same::<u8>, 1), pool.apply(same::<u8>, 2)) }).await;
    assert_eq!((a.unwrap(), b.unwrap()), (1, 2));
}

#[tokio::test]
async fn the_first_of_several_does_not_disturb_the_others() {
    let pool = pool(2).await;
    let (gate, argument) = gate();
    let slow = pool.apply_async(wait_at, argument);
    let (first, index, rest) = within(futures::future::select_all([slow, pool.apply_async(pid, ())])).await;
    assert_eq!(index, 1);
    first.unwrap();
    gate.open();
    for handle in rest {
        within(handle).await.unwrap();
    }
}

#[tokio::test]
async fn a_timeout_of_the_caller_leaves_the_handle_usable() {
    let pool = pool(1).await;
    let (gate, argument) = gate();
    let mut handle = pool.apply_async(wait_at, argument);
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        assert!(tokio::time::timeout(timeout, &mut handle).await.is_err());
    }
    gate.open();
    within(&mut handle).await.unwrap();
    assert!(handle.is_terminated());
    assert!(handle.is_finished());
}

#[tokio::test]
async fn a_finished_handle_wins_over_a_zero_timeout() {
    let pool = pool(1).await;
    let handle = pool.apply_async(same::<u8>, 3);
    eventually("the handle is ready", || handle.is_finished());
    assert_eq!(
        tokio::time::timeout(Duration::ZERO, handle)
            .await
            .unwrap()
            .unwrap(),
        3
    );
}

#[tokio::test]
async fn dropping_a_handle_lets_the_task_go_on() {
    let pool = pool(1).await;
    let file = Scratch::new();
    drop(pool.apply_async(append, (file.path(), "one".to_owned())));
    drop(pool.map_async(
        append,
        [(file.path(), "two".to_owned()), (file.path(), "three".to_owned())],
    ));
    pool.close();
    within(pool.join()).await.unwrap();
    let mut lines = file.lines();
    lines.sort();
    assert_eq!(lines, ["one", "three", "two"]);
}

#[tokio::test]
async fn aborting_a_queued_task_keeps_it_from_running() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut gate, argument) = gate();
    let running = pool.apply_async(wait_at, argument);
    let worker = gate.entered();
    let queued: Vec<_> = (0..3)
        .map(|n| pool.apply_async(append, (file.path(), n.to_string())))
        .collect();
    queued[0].abort();
    queued[1].abort();
    queued[1].abort();
    assert!(queued[0].is_finished());
    gate.open();
    let mut results = Vec::new();
    for handle in queued {
        results.push(within(handle).await.map_err(|error| error.kind()));
    }
    assert_eq!(
        results,
        [
            Err(TaskErrorKind::Cancelled),
            Err(TaskErrorKind::Cancelled),
            Ok(())
        ]
    );
    assert_eq!(within(running).await.unwrap(), worker);
    assert_eq!(file.lines(), ["2"]);
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborting_a_running_task_replaces_its_worker() {
    let pool = pool(2).await;
    let (mut sibling_gate, argument) = gate();
    let sibling = pool.apply_async(wait_at, argument);
    let sibling_pid = sibling_gate.entered();
    let (mut aborted_gate, argument) = gate();
    let aborted = pool.apply_async(wait_at, argument);
    let aborted_pid = aborted_gate.entered();

    aborted.abort();
    let error = within(aborted).await.unwrap_err();
    assert!(error.is_cancelled());
    assert!(error.to_string().contains("was cancelled"), "{error}");
    gone(aborted_pid);
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), aborted_pid);
    sibling_gate.open();
    assert_eq!(within(sibling).await.unwrap(), sibling_pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_behind_an_aborted_one_run_elsewhere() {
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let aborted = pool.apply_async(wait_at, argument);
    let aborted_pid = gate.entered();
    let behind: Vec<_> = (0..20).map(|_| pool.apply_async(pid, ())).collect();
    aborted.abort();
    assert!(within(aborted).await.unwrap_err().is_cancelled());
    for handle in behind {
        assert_ne!(within(handle).await.unwrap(), aborted_pid);
    }
}

#[tokio::test]
async fn whoever_waits_hears_of_an_abort() {
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let handle = std::sync::Arc::new(tokio::sync::Mutex::new(pool.apply_async(wait_at, argument)));
    gate.entered();
    // The same handle, polled by one task and aborted by another in between.
    let mut awaited = handle.lock().await;
    let aborted = within(async {
        assert!(futures::poll!(&mut *awaited).is_pending());
        awaited.abort();
        (&mut *awaited).await
    });
    assert!(aborted.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn an_abort_after_the_end_changes_nothing() {
    let pool = pool(1).await;
    let handle = pool.apply_async(same::<u8>, 5);
    eventually("the handle is ready", || handle.is_finished());
    handle.abort();
    handle.abort();
    assert_eq!(within(handle).await.unwrap(), 5);
    assert_eq!(pool.stats().restarts, 0);
}

#[tokio::test]
async fn aborting_a_map_cancels_all_of_it() {
    let pool = pool(2).await;
    let file = Scratch::new();
    let (mut gates, arguments): (Vec<_>, Vec<_>) = (0..2).map(|_| gate()).unzip();
    let running = arguments
        .into_iter()
        .map(|argument| pool.apply_async(wait_at, argument))
        .collect::<Vec<_>>();
    gates.iter_mut().for_each(|gate| {
        gate.entered();
    });
    let map = pool.map_async(append, (0..50).map(|n| (file.path(), n.to_string())));
    assert!(!map.is_finished());
    map.abort();
    assert!(within(map).await.unwrap_err().is_cancelled());
    drop(gates);
    for handle in running {
        within(handle).await.unwrap();
    }
    within(pool.apply(pid, ())).await.unwrap();
    assert!(file.lines().is_empty());
}

#[tokio::test]
async fn a_handle_does_not_keep_the_pool_alive() {
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let handle = pool.apply_async(wait_at, argument);
    let worker = gate.entered();
    let queued = pool.apply_async(pid, ());
    let call = pool.apply(pid, ());
    drop(pool);
    for handle in [handle, queued] {
        assert_eq!(
            within(handle).await.unwrap_err().kind(),
            TaskErrorKind::PoolClosed
        );
    }
    assert_eq!(within(call).await.unwrap_err().kind(), TaskErrorKind::PoolClosed);
    gone(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_large_tasks_cancelled_on_their_way_block_nothing() {
    let pool = pool(2).await;
    let text = "x".repeat(20 << 20);
    let handles: Vec<_> = (0..10)
        .map(|_| pool.apply_async(|text: String| text.len(), text.clone()))
        .collect();
    let (first, _, rest) = within(futures::future::select_all(handles)).await;
    assert_eq!(first.unwrap(), 20 << 20);
    for handle in &rest {
        handle.abort();
    }
    for handle in rest {
        match within(handle).await {
            Ok(length) => assert_eq!(length, 20 << 20),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
    }
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    pool.terminate();
    within(pool.join()).await.unwrap();
}
