//! Callbacks run in the parent, once, whatever else happens.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use procession::{Pool, TaskErrorKind};

use crate::fuse::{eventually, receive, within};
use crate::gate::{gate, wait_at};
use crate::scene::{pid, pool, same};

fn fail(_: u32) -> u32 {
    panic!("on purpose")
}

fn add(a: u32, b: u32) -> u32 {
    a + b
}

#[tokio::test]
async fn a_value_calls_the_one_and_an_error_the_other_once() {
    let pool = pool(2).await;
    let (sender, received) = channel::<String>();
    let said = |text: &str| {
        let (sender, text) = (sender.clone(), text.to_owned());
        move |outcome: String| sender.send(format!("{text} {outcome}")).unwrap()
    };
    macro_rules! call {
        ($handle:expr) => {{
            let (value, error) = (said("value"), said("error"));
            let handle = $handle
                .callback(move |found| value(format!("{found:?}")))
                .error_callback(move |found| error(format!("{:?}", found.kind())));
            within(handle).await.ok();
            // Who awaits goes on after the callbacks.
            let heard: Vec<String> = received.try_iter().collect();
            heard
        }};
    }
    assert_eq!(call!(pool.apply_async(same::<u32>, 1)), ["value 1"]);
    assert_eq!(call!(pool.apply_async(fail, 1)), ["error Panicked"]);
    assert_eq!(call!(pool.map_async(same::<u32>, 0..3)), ["value [0, 1, 2]"]);
    assert_eq!(call!(pool.map_async(fail, 0..3)), ["error Panicked"]);
    assert_eq!(call!(pool.starmap_async(add, [(1, 2), (3, 4)])), ["value [3, 7]"]);
    assert_eq!(call!(pool.map_async(same::<u32>, 0..0)), ["value []"]);
    assert_eq!(call!(pool.task(same::<u32>, 1).submit()), ["value 1"]);
    pool.close();
    assert_eq!(call!(pool.apply_async(same::<u32>, 1)), ["error PoolClosed"]);
    assert_eq!(call!(pool.map_async(same::<u32>, 0..3)), ["error PoolClosed"]);
}

#[tokio::test]
async fn options_of_a_task_take_callbacks_too() {
    let pool = pool(1).await;
    let (sender, received) = channel();
    let (values, errors) = (sender.clone(), sender);
    let task = pool
        .task(same::<u32>, 3)
        .callback(move |value| values.send(Ok(*value)).unwrap())
        .error_callback(move |error| errors.send(Err(error.kind())).unwrap());
    assert_eq!(within(task).await.unwrap(), 3);
    assert_eq!(received.try_iter().collect::<Vec<_>>(), [Ok(3)]);
}

#[tokio::test]
async fn they_run_without_anyone_awaiting() {
    let pool = pool(1).await;
    let (sender, received) = channel();
    drop(
        pool.apply_async(same::<u32>, 9)
            .callback(move |value| sender.send(*value).unwrap()),
    );
    assert_eq!(receive(&received), 9);
}

#[tokio::test]
async fn one_that_is_added_after_the_end_runs_once() {
    let pool = pool(1).await;
    for succeeds in [true, false] {
        let handle = pool.apply_async(if_even, u32::from(!succeeds));
        eventually("the handle is ready", || handle.is_finished());
        let (sender, received) = channel();
        let (values, errors) = (sender.clone(), sender);
        let handle = handle
            .callback(move |value| values.send(Ok(*value)).unwrap())
            .error_callback(move |error| errors.send(Err(error.kind())).unwrap());
        let expected = if succeeds {
            Ok(0)
        } else {
            Err(TaskErrorKind::Panicked)
        };
        assert_eq!(receive(&received), expected);
        assert_eq!(within(handle).await.map_err(|error| error.kind()), expected);
        assert_eq!(received.try_iter().count(), 0);
    }
}

fn if_even(n: u32) -> u32 {
    assert_eq!(n % 2, 0);
    n
}

#[tokio::test]
async fn cancellation_reaches_the_error_callback_as_what_it_is() {
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let (sender, received) = channel();
    let handle = pool
        .apply_async(wait_at, argument)
        .error_callback(move |error| sender.send(error.kind()).unwrap());
    gate.entered();
    handle.abort();
    assert_eq!(receive(&received), TaskErrorKind::Cancelled);
    assert!(within(handle).await.unwrap_err().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_run_in_order_of_completion() {
    let pool = pool(1).await;
    let (sender, received) = channel();
    for n in 0..200_u32 {
        let sender = sender.clone();
        drop(
            pool.apply_async(same::<u32>, n)
                .callback(move |value| sender.send(*value).unwrap()),
        );
    }
    let order: Vec<u32> = (0..200).map(|_| receive(&received)).collect();
    assert_eq!(order, (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_that_panics_hurts_nothing() {
    let pool = pool(1).await;
    let (sender, received) = channel();
    let handle = pool
        .apply_async(same::<u32>, 4)
        .callback(|_| panic!("a callback's own fault"))
        .callback(|_| std::panic::panic_any(Bomb))
        .callback(move |value| sender.send(*value).unwrap());
    assert_eq!(receive(&received), 4);
    assert_eq!(within(handle).await.unwrap(), 4);
    assert_eq!(within(pool.apply(same::<u32>, 5)).await.unwrap(), 5);
}

/// Panics once more when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("while it was dropped")
    }
}

#[tokio::test]
async fn one_that_blocks_holds_nothing_up() {
    let pool = pool(2).await;
    let (release, blocked) = channel::<()>();
    let (sender, received) = channel();
    let blocking = pool.apply_async(same::<u32>, 0).callback(move |_| {
        let _ = blocked.recv_timeout(crate::fuse::FUSE);
        sender.send("released").unwrap();
    });
    for n in 1..50 {
        let (seen, was_seen) = channel();
        let handle = pool
            .apply_async(same::<u32>, n)
            .callback(move |value| seen.send(*value).unwrap());
        assert_eq!(within(handle).await.unwrap(), n);
        assert_eq!(receive(&was_seen), n);
    }
    // Its own handle does not wait for it for ever either.
    assert_eq!(within(blocking).await.unwrap(), 0);
    assert!(received.try_recv().is_err());
    release.send(()).unwrap();
    assert_eq!(receive(&received), "released");
}

#[tokio::test]
async fn many_that_block_hold_nothing_up() {
    let pool = pool(2).await;
    let (release, blocked) = channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let handles: Vec<_> = (0..20)
        .map(|n| {
            let blocked = Arc::clone(&blocked);
            // All of them wait for the lock that one has.
            pool.apply_async(same::<u32>, n).callback(move |_| {
                let _ = blocked
                    .lock()
                    .map(|blocked| blocked.recv_timeout(crate::fuse::FUSE));
            })
        })
        .collect();
    for (n, handle) in (0..).zip(handles) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    drop(release);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_may_submit_to_the_same_pool_and_await_it() {
    let pool = pool(1).await;
    let (sender, received) = channel();
    let inner = pool.clone();
    let handle = pool.apply_async(same::<u32>, 1).callback(move |value| {
        sender
            .send(block_on(inner.apply(same::<u32>, value + 1)).unwrap())
            .unwrap();
    });
    assert_eq!(receive(&received), 2);
    assert_eq!(within(handle).await.unwrap(), 1);
}

#[tokio::test]
async fn one_may_await_a_task_that_has_callbacks_of_its_own() {
    let pool = pool(1).await;
    let (sender, received) = channel();
    let inner = pool.clone();
    drop(pool.apply_async(same::<u32>, 1).callback(move |value| {
        let seen = sender.clone();
        let handle = inner
            .apply_async(same::<u32>, value + 1)
            .callback(move |value| seen.send(*value).unwrap());
        sender.send(block_on(handle).unwrap() + 10).unwrap();
    }));
    let mut heard = [receive(&received), receive(&received)];
    heard.sort_unstable();
    assert_eq!(heard, [2, 12]);
}

/// Submits the next one from the callback of the last.
fn chain(pool: &Pool, left: u32, done: Sender<u32>) {
    let next = pool.clone();
    drop(
        pool.apply_async(same::<u32>, left)
            .callback(move |&left| match left {
                0 => done.send(0).unwrap(),
                left => chain(&next, left - 1, done),
            }),
    );
}

#[tokio::test]
async fn chains_of_tasks_submitted_by_callbacks_come_to_their_ends() {
    let pool = pool(2).await;
    let ends: Vec<Receiver<u32>> = (0..3)
        .map(|_| {
            let (done, end) = channel();
            chain(&pool, 100, done);
            end
        })
        .collect();
    for end in ends {
        assert_eq!(receive(&end), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_may_drop_the_last_handle_of_the_pool() {
    let pool = pool(1).await;
    let (gate, argument) = gate();
    let first = pool.apply_async(wait_at, argument);
    let (sender, received) = channel();
    let queued = pool.apply_async(same::<u32>, 2);
    // Moved in when the pool's own handle is gone already.
    let last = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&last);
    let first = first.callback(move |_| {
        drop(slot.lock().unwrap().take());
        sender.send(()).unwrap();
    });
    *last.lock().unwrap() = Some(pool);
    gate.open();
    receive(&received);
    within(first).await.unwrap();
    match within(queued).await {
        // It may have run before the callback did.
        Ok(value) => assert_eq!(value, 2),
        Err(error) => assert_eq!(error.kind(), TaskErrorKind::PoolClosed),
    }
}

#[tokio::test]
async fn one_may_end_the_pool_and_wait_for_that() {
    for ending in [Pool::close as fn(&Pool), Pool::terminate] {
        let pool = pool(2).await;
        let (sender, received) = channel();
        let inner = pool.clone();
        let handle = pool.apply_async(same::<u32>, 2).callback(move |_| {
            ending(&inner);
            sender.send(block_on(inner.join())).unwrap();
        });
        assert_eq!(receive(&received), Ok(()));
        assert_eq!(within(handle).await.unwrap(), 2);
        assert_eq!(
            within(pool.apply(pid, ())).await.unwrap_err().kind(),
            TaskErrorKind::PoolClosed
        );
        within(pool.join()).await.unwrap();
    }
}

#[tokio::test]
async fn all_have_run_when_a_closed_pool_has_been_joined_and_awaited() {
    let pool = pool(2).await;
    let (sender, received) = channel();
    let handles: Vec<_> = (0..100_u32)
        .map(|n| {
            let sender = sender.clone();
            pool.apply_async(same::<u32>, n)
                .callback(move |value| sender.send(*value).unwrap())
        })
        .collect();
    pool.close();
    within(pool.join()).await.unwrap();
    for handle in handles {
        within(handle).await.unwrap();
    }
    assert_eq!(received.try_iter().count(), 100);
}

#[tokio::test]
async fn one_that_runs_on_a_runtime_can_spawn_there() {
    let pool = pool(1).await;
    let (sender, received) = tokio::sync::oneshot::channel();
    drop(pool.apply_async(same::<u32>, 6).callback(move |&value| {
        tokio::spawn(async move { sender.send(value).unwrap() });
    }));
    assert_eq!(within(received).await.unwrap(), 6);
}
