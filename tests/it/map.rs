//! Many calls whose results are wanted all together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::stream::TryStreamExt;
use procession::{Fd, Pool, TaskErrorKind};

use crate::fuse::within;
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, pid, pool, same};

fn square(x: u64) -> u64 {
    x * x
}

fn unless_seven(x: u64) -> u64 {
    assert_ne!(x, 7, "seven");
    x
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_in_input_order_whatever_the_chunk_size() {
    let pool = pool(2).await;
    let expected: Vec<u64> = (0..100).map(square).collect();
    for size in [1, 3, 6, 100, 110] {
        assert_eq!(
            within(pool.map(square, 0..100).chunk_size(size)).await.unwrap(),
            expected
        );
        assert_eq!(
            within(pool.map(square, 0..100).chunk_size(size).submit())
                .await
                .unwrap(),
            expected
        );
        let each = within(pool.map(square, 0..100).chunk_size(size).collect_results()).await;
        assert_eq!(each.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
    }
    assert_eq!(within(pool.map(square, 0..100)).await.unwrap(), expected);
    assert_eq!(within(pool.map_async(square, 0..100)).await.unwrap(), expected);
    // An input that does not know its length.
    let odd = (0..100_u64).filter(|x| x % 2 == 1);
    assert_eq!(within(pool.map(square, odd)).await.unwrap().len(), 50);
}

#[tokio::test]
async fn an_empty_input_gives_an_empty_result() {
    let pool = pool(2).await;
    assert!(within(pool.map(square, [])).await.unwrap().is_empty());
    assert!(
        within(pool.map(square, []).chunk_size(1))
            .await
            .unwrap()
            .is_empty()
    );
    assert!(within(pool.map_async(square, [])).await.unwrap().is_empty());
    assert!(within(pool.map(square, []).collect_results()).await.is_empty());
    assert!(
        within(pool.starmap(|a: u64, b: u64| a + b, []))
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        within(pool.starmap_async(|a: u64, b: u64| a + b, []))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn one_element_works_with_every_chunk_size() {
    let pool = pool(2).await;
    for size in [1, 2, 1000] {
        assert_eq!(
            within(pool.map(square, [9]).chunk_size(size)).await.unwrap(),
            [81]
        );
    }
}

#[tokio::test]
async fn starmap_unpacks_tuples() {
    let pool = pool(2).await;
    let input: Vec<(u8, String)> = (0..10).map(|n| (n, n.to_string())).collect();
    let expected: Vec<String> = input
        .iter()
        .map(|(n, text)| text.repeat(usize::from(*n)))
        .collect();
    let repeat = |n: u8, text: String| text.repeat(usize::from(n));
    assert_eq!(
        within(pool.starmap(repeat, input.clone())).await.unwrap(),
        expected
    );
    assert_eq!(
        within(pool.starmap(repeat, input.clone()).chunk_size(3))
            .await
            .unwrap(),
        expected
    );
    assert_eq!(within(pool.starmap_async(repeat, input)).await.unwrap(), expected);
    assert_eq!(
        within(pool.starmap(i32::pow, [(2, 3), (3, 2)])).await.unwrap(),
        [8, 9]
    );
    assert_eq!(within(pool.starmap(square, [(4,)])).await.unwrap(), [16]);
    let eight = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| [a, b, c, d, e, f, g, h];
    assert_eq!(
        within(pool.starmap(eight, [(1, 2, 3, 4, 5, 6, 7, 8)]))
            .await
            .unwrap(),
        [[1, 2, 3, 4, 5, 6, 7, 8]]
    );
}

#[tokio::test]
async fn a_chunk_size_of_zero_is_an_error() {
    let pool = pool(1).await;
    let kind = TaskErrorKind::InvalidOption;
    assert_eq!(
        within(pool.map(square, 0..3).chunk_size(0))
            .await
            .unwrap_err()
            .kind(),
        kind
    );
    let error = within(pool.map(square, 0..3).chunk_size(0).submit())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), kind);
    assert!(error.to_string().contains("chunk_size"), "{error}");
    let each = within(pool.map(square, 0..3).chunk_size(0).collect_results()).await;
    assert!(
        each.iter()
            .all(|result| result.as_ref().is_err_and(|error| error.kind() == kind))
    );
    assert!(!each.is_empty());
    let streamed: Result<Vec<u64>, _> = within(pool.imap(square, 0..3).chunk_size(0).try_collect()).await;
    assert_eq!(streamed.unwrap_err().kind(), kind);
    assert_eq!(pool.stats().tasks_done, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_failure_ends_a_map_and_cancels_the_rest() {
    let pool = pool(2).await;
    let (gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    let file = Scratch::new();
    // The failing element comes first; of the rest only what had been sent by then can run.
    let work = |(path, n): (String, u32)| {
        assert_ne!(n, 0, "the first");
        append((path, n.to_string()));
    };
    let failed = within(pool.map(work, (0..1000).map(|n| (file.path(), n))).chunk_size(1)).await;
    let error = failed.unwrap_err();
    assert!(error.is_panic());
    assert!(error.panic().unwrap().message.contains("the first"));
    gate.open();
    within(held).await.unwrap();
    within(pool.apply(pid, ())).await.unwrap();
    assert!(file.lines().len() < 900, "{} ran", file.lines().len());
}

#[tokio::test]
async fn a_failure_ends_a_map_over_an_input_without_end() {
    let pool = pool(2).await;
    let error = within(pool.map(unless_seven, 0..)).await.unwrap_err();
    assert!(error.is_panic());
}

#[tokio::test]
async fn collect_results_gives_every_element_its_own() {
    let pool = pool(2).await;
    for size in [1, 4, 20] {
        let each = within(pool.map(unless_seven, 0..20).chunk_size(size).collect_results()).await;
        assert_eq!(each.len(), 20);
        for (n, result) in (0..).zip(each) {
            match result {
                Ok(value) => assert_eq!(value, n),
                Err(error) => assert!(n == 7 && error.is_panic(), "{n}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_failing_element_fails_a_submitted_map() {
    let pool = pool(2).await;
    for size in [1, 4, 20] {
        let error = within(pool.map(unless_seven, 0..20).chunk_size(size).submit())
            .await
            .unwrap_err();
        assert_eq!(error.panic().map(|panic| panic.line > 0), Some(true));
    }
}

#[tokio::test]
async fn an_input_that_panics_is_the_callers_own_panic() {
    let pool = pool(2).await;
    for at in [0, 3] {
        for _ in 0..2 {
            let mapped = pool.clone();
            let input = (0..10_u64).inspect(move |&n| assert!(n != at, "the input's own"));
            let result = within(tokio::spawn(async move { mapped.map(square, input).await })).await;
            assert!(result.unwrap_err().is_panic());
            let submitted = pool.clone();
            let input = (0..10_u64).inspect(move |&n| assert!(n != at, "the input's own"));
            let result = within(tokio::spawn(
                async move { submitted.map_async(square, input).await },
            ))
            .await;
            assert!(result.unwrap_err().is_panic());
        }
    }
    assert_eq!(within(pool.map(square, 0..3)).await.unwrap(), [0, 1, 4]);
}

#[tokio::test]
async fn dropping_a_map_cancels_it() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    let mut map = Box::pin(IntoFuture::into_future(
        pool.map(append, (0..100).map(|n| (file.path(), n.to_string()))),
    ));
    assert!(futures::poll!(&mut map).is_pending());
    drop(map);
    gate.open();
    within(held).await.unwrap();
    within(pool.apply(pid, ())).await.unwrap();
    assert!(file.lines().is_empty());
}

#[tokio::test]
async fn progress_grows_to_the_number_of_elements() {
    let pool = pool(2).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let progress = move |done, total| sink.lock().unwrap().push((done, total));
    within(pool.map(square, 0..100).chunk_size(7).progress(progress))
        .await
        .unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.first(), Some(&(0, Some(100))));
    assert_eq!(seen.last(), Some(&(100, Some(100))));
    assert!(seen.is_sorted());
}

#[tokio::test]
async fn ten_thousand_tasks_at_once_finish() {
    let pool = pool(2).await;
    let handles: Vec<_> = (0..10_000_u64).map(|n| pool.apply_async(square, n)).collect();
    let mut sum = 0;
    for handle in handles {
        sum += within(handle).await.unwrap();
    }
    assert_eq!(sum, (0..10_000).map(square).sum::<u64>());
    assert_eq!(
        within(pool.map(square, 0..10_000).chunk_size(1))
            .await
            .unwrap()
            .len(),
        10_000
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_a_pool() {
    let pool = pool(3).await;
    let callers: Vec<_> = (0..10_u64)
        .map(|caller| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mapped = pool.map(square, caller..caller + 50).await.unwrap();
                assert_eq!(mapped, (caller..caller + 50).map(square).collect::<Vec<_>>());
                let streamed: Vec<u64> = pool
                    .imap(square, caller..caller + 50)
                    .try_collect()
                    .await
                    .unwrap();
                assert_eq!(streamed, mapped);
                let handles: Vec<_> = (0..20).map(|n| pool.apply_async(square, n)).collect();
                for (n, handle) in (0..).zip(handles) {
                    if n % 2 == 0 {
                        handle.abort();
                    }
                    match handle.await {
                        Ok(value) => assert_eq!(value, square(n)),
                        Err(error) => assert!(n % 2 == 0 && error.is_cancelled(), "{error}"),
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        within(caller).await.unwrap();
    }
}

#[tokio::test]
async fn consecutive_maps_use_the_same_workers() {
    let pool = pool(2).await;
    let before = crate::scene::pids(&pool);
    for _ in 0..3 {
        let pids = within(pool.map(pid, 0..100_u32)).await.unwrap();
        assert!(pids.iter().all(|pid| before.contains(pid)));
    }
    assert_eq!(pool.stats().restarts, 0);
}

#[tokio::test]
async fn large_elements_and_large_results_pass_in_chunks() {
    let pool = pool(2).await;
    let texts: Vec<String> = (0..12_u8)
        .map(|n| char::from(b'a' + n).to_string().repeat(3 << 20))
        .collect();
    let lengths = within(pool.map(|text: String| text.len(), texts.clone()).chunk_size(4))
        .await
        .unwrap();
    assert_eq!(lengths, [3 << 20; 12]);
    let back = within(pool.map(same::<String>, texts.clone()).chunk_size(4))
        .await
        .unwrap();
    assert!(back == texts);
}

#[tokio::test]
async fn a_chunk_over_the_frame_limit_is_split_and_not_refused() {
    let builder = Pool::builder().workers(2).max_frame_size(4096);
    let pool = within(builder.build()).await.unwrap();
    let texts: Vec<String> = (0..100).map(|n| format!("{n:03}").repeat(300)).collect();
    assert!(
        within(pool.map(same::<String>, texts.clone()).chunk_size(100))
            .await
            .unwrap()
            == texts
    );
    assert!(
        within(pool.map(same::<String>, texts.clone()).chunk_size(100).submit())
            .await
            .unwrap()
            == texts
    );
    // Results that are each within the limit, and together are not.
    let grown = within(pool.map(|n: usize| "x".repeat(n), [4000; 100]).chunk_size(100))
        .await
        .unwrap();
    assert_eq!(grown.len(), 100);
    // One element over the limit fails alone.
    let each = within(
        pool.map(|text: String| text.len(), [1, 5000, 2].map(|n| "y".repeat(n)))
            .chunk_size(3)
            .collect_results(),
    )
    .await;
    let kinds: Vec<_> = each
        .into_iter()
        .map(|result| result.map_err(|error| error.kind()))
        .collect();
    assert_eq!(kinds, [Ok(1), Err(TaskErrorKind::TooLarge), Ok(2)]);
    let each = within(
        pool.map(|n: usize| "z".repeat(n), [1, 5000, 2])
            .chunk_size(3)
            .collect_results(),
    )
    .await;
    let kinds: Vec<_> = each
        .into_iter()
        .map(|result| result.map(|text| text.len()).map_err(|error| error.kind()))
        .collect();
    assert_eq!(kinds, [Ok(1), Err(TaskErrorKind::TooLarge), Ok(2)]);
}

#[tokio::test]
async fn elements_may_carry_descriptors() {
    let pool = pool(2).await;
    for size in [1, 3] {
        let files = (0..7).map(|_| Fd::from(std::fs::File::open("/proc/self/comm").unwrap()));
        let read = |file: Fd| {
            use std::io::Read;
            let mut text = String::new();
            std::fs::File::from(file.into_inner())
                .read_to_string(&mut text)
                .map(|length| length > 0)
                .map_err(|error| error.to_string())
        };
        let found = within(pool.map(read, files).chunk_size(size)).await.unwrap();
        assert_eq!(found, vec![Ok(true); 7]);
    }
}

#[tokio::test]
async fn a_map_reads_its_input_only_as_far_as_workers_take_it() {
    static READ: AtomicU64 = AtomicU64::new(0);
    let pool = pool(1).await;
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    let input = (0..10_000_u64).inspect(|_| {
        READ.fetch_add(1, Ordering::Relaxed);
    });
    let mut map = Box::pin(IntoFuture::into_future(pool.map(square, input).chunk_size(1)));
    assert!(futures::poll!(&mut map).is_pending());
    assert!(READ.load(Ordering::Relaxed) < 100, "{READ:?}");
    gate.open();
    within(held).await.unwrap();
    assert_eq!(within(map).await.unwrap().len(), 10_000);
}
