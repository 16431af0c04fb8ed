//! Who may join the queue: bounds by number and by bytes, the line of those who wait, and that a flood costs no memory.

use std::cell::Cell;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::StreamExt;
use procession::{
    Apply, AsyncResult, BuildError, Output, Pool, PoolBuilder, TaskErrorKind, TimeoutPhase, TryApplyError,
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::fuse::{FUSE, eventually, within};
use crate::gate::{Gate, gate, wait_at};
use crate::scene::{Scratch, append, pid, pids, same, signal};

/// A quiet pool of one worker.
async fn one_worker(options: impl FnOnce(PoolBuilder) -> PoolBuilder) -> Pool {
    let builder = Pool::builder().workers(1).stderr(Output::null());
    within(options(builder).build()).await.unwrap()
}

/// Keeps a worker busy.
fn hold(pool: &Pool) -> (Gate, AsyncResult<u32>) {
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    (gate, held)
}

/// Task: how much it was given.
fn length(bytes: Bytes) -> usize {
    bytes.len()
}

fn zeros(length: usize) -> Bytes {
    Bytes::from(vec![0; length])
}

/// Polls calls for the first time, so that they are submitted or wait.
fn begin<R>(calls: &mut [Apply<R>]) {
    for call in calls {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(futures::FutureExt::poll_unpin(call, &mut context).is_pending());
    }
}

/// The resident memory of this process.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes.unwrap().parse::<u64>().unwrap() * 1024
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_bound_of_zero_bytes_is_an_error() {
    let error = within(Pool::builder().queue_capacity_bytes(0).build())
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            BuildError::InvalidOption {
                option: "queue_capacity_bytes",
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_queue_that_is_full_of_bytes_takes_no_more() {
    let pool = one_worker(|builder| builder.queue_capacity_bytes(MIB as u64)).await;
    let (gate, held) = hold(&pool);
    // What runs does not count.
    let first = pool.try_apply(length, zeros(500 * KIB)).unwrap();
    let second = pool.try_apply(length, zeros(500 * KIB)).unwrap();
    let refused = pool.try_apply(length, zeros(100 * KIB)).unwrap_err();
    assert!(matches!(&refused, TryApplyError::QueueFull(bytes) if bytes.len() == 100 * KIB));
    let error = within(pool.apply_async(length, zeros(100 * KIB)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::QueueFull);
    assert!(
        error
            .to_string()
            .ends_with("the queue is full: queue_capacity_bytes is 1048576 bytes"),
        "{error}"
    );
    // There is room for little.
    let little = pool.try_apply(same::<u32>, 7).unwrap();
    gate.open();
    within(held).await.unwrap();
    assert_eq!(within(first).await.unwrap(), 500 * KIB);
    assert_eq!(within(second).await.unwrap(), 500 * KIB);
    assert_eq!(within(little).await.unwrap(), 7);
    within(pool.try_apply(length, zeros(MIB)).unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_error_names_the_bound_that_was_hit() {
    let both = |builder: PoolBuilder| builder.queue_capacity(1).queue_capacity_bytes(1000);
    let pool = one_worker(both).await;
    let (gate, held) = hold(&pool);
    let queued = pool.try_apply(same::<u32>, 1).unwrap();
    let error = within(pool.apply_async(length, zeros(2000))).await.unwrap_err();
    assert!(
        error.to_string().ends_with("queue_capacity is 1 tasks"),
        "{error}"
    );
    gate.open();
    within(held).await.unwrap();
    within(queued).await.unwrap();
}

#[tokio::test]
async fn a_task_larger_than_the_bound_waits_alone() {
    let pool = one_worker(|builder| builder.queue_capacity_bytes(1000)).await;
    // Nothing runs: it starts at once.
    assert_eq!(within(pool.apply(length, zeros(MIB))).await.unwrap(), MIB);

    let (gate, held) = hold(&pool);
    let little = pool.try_apply(same::<u32>, 1).unwrap();
    assert!(pool.try_apply(length, zeros(MIB)).unwrap_err().is_queue_full());
    // It waits for its turn, and none overtakes it meanwhile, however small.
    let mut huge = [pool.apply(length, zeros(MIB))];
    begin(&mut huge);
    assert_eq!(pool.stats().queued, 1);
    assert!(pool.try_apply(same::<u32>, 1).unwrap_err().is_queue_full());
    little.abort();
    assert_eq!(pool.stats().queued, 1);
    assert!(pool.try_apply(same::<u32>, 1).unwrap_err().is_queue_full());
    gate.open();
    within(held).await.unwrap();
    let [huge] = huge;
    assert_eq!(within(huge).await.unwrap(), MIB);
}

#[tokio::test]
async fn with_no_queue_a_task_of_any_size_runs_when_a_worker_is_free() {
    let none = |builder: PoolBuilder| builder.queue_capacity(0).queue_capacity_bytes(1);
    let pool = one_worker(none).await;
    let (gate, held) = hold(&pool);
    assert!(pool.try_apply(length, zeros(10)).unwrap_err().is_queue_full());
    let mut waiting: Vec<_> = (0..10).map(|n| pool.apply(length, zeros(n * 100))).collect();
    begin(&mut waiting);
    assert_eq!(pool.stats().queued, 0);
    gate.open();
    within(held).await.unwrap();
    for (n, call) in waiting.into_iter().enumerate() {
        assert_eq!(within(call).await.unwrap(), n * 100);
    }
}

#[tokio::test]
async fn those_who_wait_for_room_come_in_in_order_of_arrival() {
    let pool = one_worker(|builder| builder.queue_capacity(2)).await;
    let file = Scratch::new();
    let (gate, held) = hold(&pool);
    let mut calls: Vec<_> = (0..50)
        .map(|n| pool.apply(append, (file.path(), n.to_string())))
        .collect();
    begin(&mut calls);
    assert_eq!(pool.stats().queued, 2);
    gate.open();
    within(held).await.unwrap();
    // Awaited from the last to the first: nobody has to be looked at to come in.
    for call in calls.into_iter().rev() {
        within(call).await.unwrap();
    }
    assert_eq!(file.lines(), (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_waits_with_a_higher_priority_comes_in_first() {
    let pool = one_worker(|builder| builder.queue_capacity(1)).await;
    let file = Scratch::new();
    let (gate, held) = hold(&pool);
    let queued = pool.try_apply(pid, ()).unwrap();
    let order = [(0, "c"), (5, "a"), (-1, "e"), (0, "d"), (5, "b")];
    let mut calls: Vec<Apply<()>> = order
        .map(|(priority, name)| {
            pool.task(append, (file.path(), name.to_owned()))
                .priority(priority)
        })
        .map(IntoFuture::into_future)
        .into();
    begin(&mut calls);
    gate.open();
    within(held).await.unwrap();
    within(queued).await.unwrap();
    for result in within(join_all(calls)).await {
        result.unwrap();
    }
    assert_eq!(file.lines(), ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn a_newcomer_takes_no_room_from_those_who_wait() {
    let pool = one_worker(|builder| builder.queue_capacity(1)).await;
    let (gate, held) = hold(&pool);
    let queued = pool.try_apply(pid, ()).unwrap();
    let mut waiting = vec![pool.apply(same::<u32>, 1), pool.apply(same::<u32>, 2)];
    begin(&mut waiting);
    queued.abort();
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
    // The first of them is in the queue now, and leaves it for the second.
    drop(waiting.remove(0));
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
    drop(waiting.remove(0));
    // The worker gives back what it had been sent in its own time.
    let mut newcomer = None;
    eventually("there is room for a newcomer", || {
        newcomer = pool.try_apply(pid, ()).ok();
        newcomer.is_some()
    });
    gate.open();
    within(held).await.unwrap();
    within(newcomer.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_flood_of_many_callers_each_makes_progress() {
    let pool = one_worker(|builder| builder.queue_capacity(4)).await;
    let ended = Arc::new(AtomicBool::new(false));
    // Callers that never rest, so that there are always newcomers.
    let greedy: Vec<_> = (0..80_u32)
        .map(|caller| {
            let (pool, ended) = (pool.clone(), Arc::clone(&ended));
            tokio::spawn(async move {
                let mut calls = 0;
                while calls == 0 || !ended.load(Ordering::Relaxed) {
                    assert_eq!(pool.apply(same::<u32>, caller).await.unwrap(), caller);
                    calls += 1;
                }
            })
        })
        .collect();
    let modest = (0..20_u32).map(|caller| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for n in 0..20 {
                assert_eq!(pool.apply(same::<u32>, caller * n).await.unwrap(), caller * n);
            }
        })
    });
    for caller in within(join_all(modest)).await {
        caller.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    for caller in within(join_all(greedy)).await {
        caller.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_a_map_and_callers_share_a_bounded_queue() {
    for bytes in [1, 10_000] {
        let bounds = |builder: PoolBuilder| builder.queue_capacity(2).queue_capacity_bytes(bytes);
        let pool = one_worker(bounds).await;
        // Without end: the callers come in beside it.
        let mut stream = pool.imap(same::<u32>, 0..);
        let map = pool.map_async(same::<u32>, 0..500);
        let caller = {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    assert_eq!(pool.apply(same::<u32>, n).await.unwrap(), n);
                }
            })
        };
        let mut expected = 0;
        while !caller.is_finished() || !map.is_finished() || expected < 200 {
            assert_eq!(within(stream.next()).await.unwrap().unwrap(), expected);
            expected += 1;
        }
        within(caller).await.unwrap();
        assert_eq!(within(map).await.unwrap(), (0..500).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_map_started_at_a_full_queue_does_not_keep_others_out() {
    let pool = one_worker(|builder| builder.queue_capacity(1)).await;
    let file = Scratch::new();
    let (gate, held) = hold(&pool);
    let elements = (0..50).map(|n| (file.path(), n.to_string()));
    let map = pool.map(append, elements).chunk_size(1).submit();
    let mut call = [pool.apply(append, (file.path(), "call".to_owned()))];
    begin(&mut call);
    gate.open();
    within(held).await.unwrap();
    within(map).await.unwrap();
    let [call] = call;
    within(call).await.unwrap();
    let place = file.lines().iter().position(|line| line == "call");
    assert_eq!(place, Some(2), "one in the queue and one in the line were first");
}

#[tokio::test]
async fn chunks_larger_than_the_bound_pass() {
    let bounds = |builder: PoolBuilder| builder.queue_capacity_bytes(MIB as u64);
    let pool = one_worker(bounds).await;
    // Frames of 4 MiB, several of them.
    let elements = || (0..100).map(|_| zeros(128 * KIB));
    let expected = vec![128 * KIB; 100];
    assert_eq!(
        within(pool.map(length, elements()).chunk_size(50)).await.unwrap(),
        expected
    );
    let submitted = pool.map(length, elements()).chunk_size(50).submit();
    assert_eq!(within(submitted).await.unwrap(), expected);
    let stream = pool.imap(length, elements()).chunk_size(50).map(Result::unwrap);
    assert_eq!(within(stream.collect::<Vec<_>>()).await, expected);
    // Elements that are larger than the bound themselves.
    let large = within(pool.map(length, (0..5).map(|_| zeros(3 * MIB)))).await;
    assert_eq!(large.unwrap(), [3 * MIB; 5]);
}

thread_local! {
    /// How many of [`Counted`] were dropped by this test.
    static DROPPED: Cell<usize> = const { Cell::new(0) };
}

/// Not to be copied, so that what comes back is what was given.
#[derive(Debug, Serialize, Deserialize)]
struct Counted(Box<u32>);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPPED.set(DROPPED.get() + 1);
    }
}

fn unwrapped(counted: Counted) -> u32 {
    *counted.0
}

#[tokio::test]
async fn what_was_refused_is_the_very_argument() {
    let pool = one_worker(|builder| builder.queue_capacity(0)).await;
    let (gate, held) = hold(&pool);
    let argument = Counted(Box::new(42));
    let address: *const u32 = &raw const *argument.0;
    let argument = pool.try_apply(unwrapped, argument).unwrap_err().into_inner();
    assert_eq!(&raw const *argument.0, address);
    assert_eq!(DROPPED.get(), 0);
    gate.open();
    within(held).await.unwrap();
    let taken = pool.try_apply(unwrapped, argument).unwrap();
    assert_eq!(DROPPED.get(), 1);
    assert_eq!(within(taken).await.unwrap(), 42);
    pool.close();
    let refused = pool.try_apply(unwrapped, Counted(Box::new(43))).unwrap_err();
    assert!(matches!(&refused, TryApplyError::PoolClosed(_)));
    assert_eq!(DROPPED.get(), 1);
    assert_eq!(*refused.into_inner().0, 43);
    assert_eq!(DROPPED.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_who_wait_hear_of_the_pools_end() {
    for ending in [Pool::close as fn(&Pool), Pool::terminate] {
        let pool = one_worker(|builder| builder.queue_capacity(1)).await;
        let (gate, held) = hold(&pool);
        let queued = pool.try_apply(same::<u32>, 1).unwrap();
        let mut calls: Vec<_> = (0..100).map(|n| pool.apply(same::<u32>, n)).collect();
        begin(&mut calls);
        let calls: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
        let mut stream = pool.imap(same::<u32>, 0..);
        assert!(futures::poll!(stream.next()).is_pending());
        let map = pool.map_async(same::<u32>, 0..100);
        ending(&pool);
        for call in calls {
            let error = within(call).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
            assert!(
                error.to_string().ends_with("was refused: the pool is closed"),
                "{error}"
            );
        }
        let ended: Vec<_> = within(stream.collect()).await;
        assert!(
            ended
                .iter()
                .all(|result| result.as_ref().is_err_and(|error| error.is_pool_closed()))
        );
        assert!(within(map).await.unwrap_err().is_pool_closed());
        gate.open();
        // What had been accepted is done, unless it was terminated.
        assert_eq!(within(held).await.is_ok(), within(queued).await.is_ok());
        within(pool.join()).await.unwrap();
    }
}

#[tokio::test]
async fn the_time_that_a_task_may_wait_is_up_in_the_line_too() {
    let pool = one_worker(|builder| builder.queue_capacity(0)).await;
    let (gate, held) = hold(&pool);
    let now = Instant::now();
    let late = [
        pool.task(pid, ()).queue_timeout(Duration::from_secs(1)),
        pool.task(pid, ()).deadline(now + Duration::from_secs(1)),
    ];
    let mut late = late.map(IntoFuture::into_future);
    begin(&mut late);
    let mut behind = [pool.apply(same::<u32>, 1)];
    begin(&mut behind);
    assert_eq!(pool.stats().waiting_for_room, 3);
    for call in late {
        let error = within(call).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::TimedOut(TimeoutPhase::Queued));
    }
    // They have left the line, and the other is still in it.
    assert_eq!(pool.stats().waiting_for_room, 1);
    gate.open();
    within(held).await.unwrap();
    let [behind] = behind;
    assert_eq!(within(behind).await.unwrap(), 1);
}

#[tokio::test]
async fn elements_that_wait_for_room_have_the_pools_time() {
    let times = |builder: PoolBuilder| builder.queue_capacity(0).queue_timeout(Duration::from_millis(20));
    let pool = one_worker(times).await;
    let (mut gate, argument) = gate();
    let held = pool.task(wait_at, argument).queue_timeout(FUSE).submit();
    gate.entered();
    let mut stream = pool.imap(same::<u32>, 0..3).chunk_size(1);
    for _ in 0..3 {
        let error = within(stream.next()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::TimedOut(TimeoutPhase::Queued));
    }
    let map = pool.map(same::<u32>, 0..3).chunk_size(1).submit();
    assert!(within(map).await.unwrap_err().is_timeout());
    assert_eq!(pool.stats().waiting_for_room, 0);
    gate.open();
    within(held).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_may_grow_has_room_for_what_more_workers_can_run() {
    let builder = Pool::builder().workers_between(0, 2).queue_capacity(0);
    let pool = within(builder.stderr(Output::null()).build()).await.unwrap();
    let (first, held) = hold(&pool);
    let (second, also_held) = hold(&pool);
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
    let mut waiting: Vec<_> = (0..10).map(|n| pool.apply(same::<u32>, n)).collect();
    begin(&mut waiting);
    assert_eq!((pool.stats().queued, pool.stats().waiting_for_room), (0, 10));
    first.open();
    within(held).await.unwrap();
    for (n, call) in (0..).zip(waiting) {
        assert_eq!(within(call).await.unwrap(), n);
    }
    second.open();
    within(also_held).await.unwrap();
}

#[tokio::test]
async fn those_who_wait_for_room_are_told_that_no_worker_starts() {
    let file = Scratch::new();
    let initialize = |path: String| match fs::exists(&path) {
        Ok(false) => {
            append((path, "first".to_owned()));
            Ok(())
        }
        _ => Err("only once".to_owned()),
    };
    let pool = one_worker(|builder| builder.queue_capacity(0).initializer(initialize, file.path())).await;
    let (_gate, held) = hold(&pool);
    let mut waiting: Vec<_> = (0..10).map(|n| pool.apply(same::<u32>, n)).collect();
    begin(&mut waiting);
    let mut stream = pool.imap(same::<u32>, 0..1);
    assert!(futures::poll!(stream.next()).is_pending());
    signal(pids(&pool)[0], Signal::KILL);
    assert!(within(held).await.unwrap_err().is_worker_lost());
    for call in waiting {
        let error = within(call).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}");
    }
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}");
    assert_eq!(pool.stats().waiting_for_room, 0);
}

#[tokio::test]
async fn calls_that_give_up_waiting_free_nothing_twice() {
    let pool = one_worker(|builder| builder.queue_capacity(1)).await;
    for round in 0..50 {
        let (gate, held) = hold(&pool);
        let queued = pool.try_apply(pid, ()).unwrap();
        let mut calls: Vec<_> = (0..10).map(|n| pool.apply(same::<u32>, n)).collect();
        begin(&mut calls);
        for place in 0..round % 10 {
            drop(calls.remove((place * 7 + round) % calls.len()));
        }
        // They held no room, and so gave none.
        assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
        assert_eq!(pool.stats().queued, 1);
        gate.open();
        within(held).await.unwrap();
        within(queued).await.unwrap();
        for result in within(join_all(calls)).await {
            result.unwrap();
        }
        assert_eq!(pool.stats().queued, 0);
    }
    let (_gate, _held) = hold(&pool);
    let _queued = pool.try_apply(pid, ()).unwrap();
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());
}

#[tokio::test]
async fn who_waits_comes_in_when_a_worker_dies_and_is_replaced() {
    let pool = one_worker(|builder| builder.queue_capacity(1)).await;
    for _ in 0..5 {
        let (gate, held) = hold(&pool);
        let worker = pids(&pool)[0];
        let mut calls: Vec<_> = (0..10).map(|n| pool.apply(same::<u32>, n)).collect();
        begin(&mut calls);
        signal(worker, Signal::KILL);
        assert!(within(held).await.unwrap_err().is_worker_lost());
        for (n, call) in (0..).zip(calls) {
            assert_eq!(within(call).await.unwrap(), n);
        }
        drop(gate);
    }
}

#[test]
fn memory_stays_flat_under_a_flood() {
    crate::scene::alone("admission::memory_stays_flat_under_a_flood", || {
        crate::scene::runtime().block_on(async {
            let size = 256 * KIB;
            let by_number = one_worker(|builder| builder.queue_capacity(16)).await;
            let bytes = (16 * size) as u64;
            let by_bytes = one_worker(|builder| builder.queue_capacity_bytes(bytes)).await;
            for pool in [by_number, by_bytes] {
                // What a full queue takes, and what else was never used before.
                flood(&pool, size, 20).await;
                let before = resident();
                flood(&pool, size, 2000).await;
                let grown = resident().saturating_sub(before);
                // The allocator keeps some of what it had; 125 times the capacity went through each way.
                assert!(grown < 4 * bytes, "{grown} bytes more");
                pool.close();
                within(pool.join()).await.unwrap();
            }
        });
    });
}

/// Submits so many tasks of so many bytes as fast as it goes, while nothing is done: most are refused. Then again
/// while something is done, and by callers who wait.
async fn flood(pool: &Pool, size: usize, tasks: usize) {
    let (gate, held) = hold(pool);
    let taken: Vec<_> = (0..tasks)
        .filter_map(|_| pool.try_apply(length, zeros(size)).ok())
        .collect();
    assert!((15..=16).contains(&taken.len()), "{} were taken", taken.len());
    gate.open();
    within(held).await.unwrap();
    for handle in taken {
        assert_eq!(within(handle).await.unwrap(), size);
    }
    let calls = futures::stream::iter(0..tasks).map(|_| pool.apply(length, zeros(size)));
    let mut calls = std::pin::pin!(calls.buffer_unordered(20));
    while let Some(result) = within(calls.next()).await {
        assert_eq!(result.unwrap(), size);
    }
    eventually("nothing waits", || pool.stats().queued == 0);
    let mut stream = pool.imap(length, (0..tasks).map(|_| zeros(size)));
    while let Some(result) = within(stream.next()).await {
        assert_eq!(result.unwrap(), size);
    }
}
