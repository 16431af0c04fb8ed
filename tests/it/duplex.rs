//! Both directions of a connection move at once.

use crate::fuse::within;
use crate::scene::{pool, same};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_of_a_gibibyte_each_way_at_once_does_not_deadlock() {
    let pool = pool(1).await;
    let size = 256 << 20;
    // The worker sends the first result while the second argument is on its way to it.
    let there = pool.apply_async(|size: usize| "y".repeat(size), size);
    let back = pool.apply_async(|text: String| (text.len(), text), "x".repeat(size));
    let sent = within(there).await.unwrap();
    assert_eq!((sent.len(), sent.as_bytes()[size - 1]), (size, b'y'));
    let (length, text) = within(back).await.unwrap();
    assert_eq!(
        (length, text.len(), text.as_bytes()[size - 1]),
        (size, size, b'x')
    );
}

#[tokio::test]
async fn hundreds_of_medium_values_cross_each_other() {
    let pool = pool(1).await;
    let text = "x".repeat(400_000);
    let handles: Vec<_> = (0..200)
        .map(|_| pool.apply_async(same::<String>, text.clone()))
        .collect();
    for handle in handles {
        assert!(within(handle).await.unwrap() == text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_around_every_boundary_arrive_whole() {
    let pool = pool(2).await;
    let mut sizes = Vec::new();
    for power in 0..=21 {
        sizes.extend([-21_i64, -9, -2, -1, 0, 1, 2].map(|off| ((1_i64 << power) + off).max(0)));
    }
    let texts: Vec<String> = sizes
        .iter()
        .map(|&size| "s".repeat(usize::try_from(size).unwrap()))
        .collect();
    let back = within(pool.map(same::<String>, texts.clone()).chunk_size(1))
        .await
        .unwrap();
    assert!(back == texts);
    let back = within(pool.map(same::<String>, texts.clone()).chunk_size(10))
        .await
        .unwrap();
    assert!(back == texts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_task_passes_while_another_worker_takes_a_large_one() {
    let pool = pool(2).await;
    let large: Vec<_> = (0..2)
        .map(|_| pool.apply_async(same::<String>, "x".repeat(64 << 20)))
        .collect();
    let small: Vec<_> = (0..100).map(|n| pool.apply_async(same::<u32>, n)).collect();
    for (n, handle) in (0..).zip(small) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    for handle in large {
        assert_eq!(within(handle).await.unwrap().len(), 64 << 20);
    }
}
