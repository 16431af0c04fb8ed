//! Streams of results.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream::{FusedStream, Stream, StreamExt, TryStreamExt};
use procession::{Pool, TaskErrorKind};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, pid, pool, same};

fn unless_three(n: u32) -> u32 {
    assert_ne!(n, 3, "three");
    n
}

#[tokio::test]
async fn imap_yields_in_input_order_and_ends_for_good() {
    let pool = pool(2).await;
    for size in [None, Some(1), Some(7), Some(100)] {
        let mut stream = match size {
            None => pool.imap(same::<u32>, 0..1000),
            Some(size) => pool.imap(same::<u32>, 0..1000).chunk_size(size),
        };
        let mut values = Vec::new();
        while let Some(value) = within(stream.next()).await {
            values.push(value.unwrap());
        }
        assert_eq!(values, (0..1000).collect::<Vec<_>>());
        assert!(stream.is_terminated());
        assert!(within(stream.next()).await.is_none());
    }
}

#[tokio::test]
async fn an_empty_input_ends_at_once() {
    let pool = pool(1).await;
    assert!(within(pool.imap(same::<u32>, []).next()).await.is_none());
    assert!(
        within(pool.imap_unordered(same::<u32>, []).next())
            .await
            .is_none()
    );
    assert!(
        within(pool.imap_stream(same::<u32>, futures::stream::empty()).next())
            .await
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imap_unordered_yields_whatever_is_done() {
    let pool = pool(2).await;
    let (gate, slow) = gate();
    let mut slow = Some(slow);
    // The first element waits at the gate, the others do not.
    let input = (0..20_u32).map(|n| (n, slow.take()));
    let work = |(n, gate): (u32, Option<procession::Fd>)| {
        gate.map(wait_at);
        n
    };
    let mut stream = pool.imap_unordered(work, input);
    let mut values = Vec::new();
    for _ in 1..20 {
        values.push(within(stream.next()).await.unwrap().unwrap());
    }
    values.sort_unstable();
    assert_eq!(values, (1..20).collect::<Vec<_>>());
    gate.open();
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), 0);
    assert!(within(stream.next()).await.is_none());
}

#[tokio::test]
async fn imap_unordered_yields_every_result_once() {
    let pool = pool(3).await;
    for size in [1, 10] {
        let mut values: Vec<u32> = within(
            pool.imap_unordered(same::<u32>, 0..1000)
                .chunk_size(size)
                .try_collect(),
        )
        .await
        .unwrap();
        values.sort_unstable();
        assert_eq!(values, (0..1000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_failing_element_stands_at_its_own_place() {
    let pool = pool(2).await;
    for size in [1, 2, 4] {
        let results: Vec<_> = within(pool.imap(unless_three, 0..10).chunk_size(size).collect()).await;
        assert_eq!(results.len(), 10);
        for (n, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert_eq!(value, n),
                Err(error) => assert!(n == 3 && error.is_panic(), "{n}: {error}"),
            }
        }
    }
}

/// Counts what is read of an input without end.
fn counted() -> (Arc<AtomicUsize>, impl Iterator<Item = u32> + Unpin) {
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let input = (0..).inspect(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    (read, input)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_and_not_yielded_stays_within_the_bound() {
    let pool = pool(2).await;
    for (ahead, ordered) in [
        (None, true),
        (None, false),
        (Some(1), true),
        (Some(5), true),
        (Some(100), false),
    ] {
        let (read, input) = counted();
        let mut stream = match ordered {
            true => pool.imap(same::<u32>, input),
            false => pool.imap_unordered(same::<u32>, input),
        };
        if let Some(ahead) = ahead {
            stream = stream.look_ahead(ahead);
        }
        // Eight for each worker, as documented.
        let bound = ahead.unwrap_or(2 * 8);
        for yielded in 1..=500 {
            within(stream.next()).await.unwrap().unwrap();
            let read = read.load(Ordering::Relaxed);
            assert!(
                read <= yielded - 1 + bound,
                "{read} read for {yielded} of {ahead:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_consumer_that_stops_polling_stops_the_reading() {
    let pool = pool(2).await;
    let (read, input) = counted();
    let mut stream = pool.imap(same::<u32>, input);
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), 0);
    let before = read.load(Ordering::Relaxed);
    eventually("everything that was sent is done", || {
        pool.stats().queued + pool.stats().in_flight == 0
    });
    assert_eq!(read.load(Ordering::Relaxed), before);
    assert!(pool.stats().tasks_done <= 17);
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn results_of_a_stream_come_while_its_input_waits() {
    let pool = pool(2).await;
    for size in [None, Some(10)] {
        let (sender, input) = futures::channel::mpsc::unbounded();
        let mut stream = pool.imap_stream(same::<u32>, input);
        if let Some(size) = size {
            stream = stream.chunk_size(size);
        }
        for n in 0..5 {
            sender.unbounded_send(n).unwrap();
            assert_eq!(within(stream.next()).await.unwrap().unwrap(), n);
        }
        assert!(futures::poll!(stream.next()).is_pending());
        drop(sender);
        assert!(within(stream.next()).await.is_none());
    }
}

#[tokio::test]
async fn an_input_that_panics_leaves_the_pool_usable() {
    let pool = pool(2).await;
    for at in [0_u32, 3, 7] {
        let mapped = pool.clone();
        let result = within(tokio::spawn(async move {
            let input = (0..20_u32).inspect(|&n| assert_ne!(n, at, "the input's own"));
            mapped
                .imap(same::<u32>, input)
                .chunk_size(2)
                .collect::<Vec<_>>()
                .await
        }));
        assert!(result.await.unwrap_err().is_panic());
    }
    let values: Vec<u32> = within(pool.imap(same::<u32>, 0..3).try_collect()).await.unwrap();
    assert_eq!(values, [0, 1, 2]);
}

#[tokio::test]
async fn dropping_a_stream_cancels_what_has_not_ended() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    let mut stream = pool.imap(append, (0..100).map(|n| (file.path(), n.to_string())));
    assert!(futures::poll!(stream.next()).is_pending());
    drop(stream);
    gate.open();
    within(held).await.unwrap();
    within(pool.apply(pid, ())).await.unwrap();
    assert!(file.lines().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminating_the_pool_ends_a_stream_with_errors() {
    let pool = pool(2).await;
    let mut streams = [pool.imap(same::<u32>, 0..), pool.imap_unordered(same::<u32>, 0..)];
    for stream in &mut streams {
        for _ in 0..10 {
            within(stream.next()).await.unwrap().unwrap();
        }
    }
    pool.terminate();
    for stream in &mut streams {
        let mut failed = 0;
        while let Some(result) = within(stream.next()).await {
            if let Err(error) = result {
                assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
                failed += 1;
            }
        }
        assert!(failed > 0);
    }
}

#[tokio::test]
async fn a_closed_pool_refuses_a_stream_and_finishes_what_one_had_submitted() {
    let pool = pool(2).await;
    let mut stream = pool.imap(same::<u32>, 0..);
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), 0);
    pool.close();
    let mut values = 1;
    let mut refused = 0;
    while let Some(result) = within(stream.next()).await {
        match result {
            Ok(value) => {
                assert_eq!((value, refused), (values, 0));
                values += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    let error = within(pool.imap(same::<u32>, 0..).next())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn streams_and_maps_respect_the_bound_of_the_queue() {
    for capacity in [0, 1, 3] {
        let builder = Pool::builder().workers(2).queue_capacity(capacity);
        let pool = within(builder.build()).await.unwrap();
        for size in [1, 10] {
            let values: Vec<u32> = within(pool.imap(same::<u32>, 0..200).chunk_size(size).try_collect())
                .await
                .unwrap();
            assert_eq!(values, (0..200).collect::<Vec<_>>());
            assert_eq!(
                within(pool.map(same::<u32>, 0..200).chunk_size(size))
                    .await
                    .unwrap(),
                values
            );
        }
        // Two at a time wait for the same room.
        let other = pool.clone();
        let second = tokio::spawn(async move { other.map(same::<u32>, 0..200).chunk_size(1).await.unwrap() });
        assert_eq!(
            within(pool.map(same::<u32>, 0..200).chunk_size(1))
                .await
                .unwrap()
                .len(),
            200
        );
        assert_eq!(within(second).await.unwrap().len(), 200);
    }
}

#[tokio::test]
async fn progress_counts_what_was_yielded() {
    let pool = pool(1).await;
    let last = Arc::new(AtomicUsize::new(usize::MAX));
    let sink = Arc::clone(&last);
    let mut stream = pool.imap(same::<u32>, 0..10).progress(move |done, total| {
        assert_eq!(total, Some(10));
        sink.store(done as usize, Ordering::Relaxed);
    });
    for n in 1..=10 {
        within(stream.next()).await.unwrap().unwrap();
        assert_eq!(last.load(Ordering::Relaxed), n);
    }
}

#[tokio::test]
async fn a_stream_says_how_it_ends_when_its_worker_is_lost() {
    let pool = pool(2).await;
    let work = |n: u32| {
        if n == 5 {
            std::process::abort();
        }
        n
    };
    for size in [1, 4, 20] {
        let results: Vec<_> = within(pool.imap(work, 0..20).chunk_size(size).collect()).await;
        let lost: Vec<usize> = results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.is_err())
            .map(|(n, _)| n)
            .collect();
        assert_eq!(lost, [5]);
        assert_eq!(results.len(), 20);
        assert!(results[5].as_ref().unwrap_err().is_worker_lost());
    }
}

const _: () = {
    const fn is_stream<T: Stream + Send + Unpin>() {}
    is_stream::<procession::Imap<procession::IterSource<std::ops::Range<u32>>, u32>>();
};
