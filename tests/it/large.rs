//! Large values: whole in every size and shape, lost with their worker alone, and no memory kept for them.

use std::time::Duration;

use bytes::Bytes;
use procession::Pool;
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fuse::{eventually, within};
use crate::scene::{gone, pid, pids, pool, same, signal};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Bytes that tell where they belong.
fn bytes(length: usize) -> Bytes {
    (0..length)
        .map(|n| (n / 251 + n) as u8)
        .collect::<Vec<u8>>()
        .into()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Picture {
    name: String,
    size: (u32, u32),
    gamma: f64,
    pixels: Bytes,
}

async fn comes_back<T>(pool: &Pool, value: T)
where
    T: Clone + PartialEq + Serialize + DeserializeOwned + Send + 'static,
{
    assert!(within(pool.apply(same::<T>, value.clone())).await.unwrap() == value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_comes_back_in_sizes_around_every_boundary() {
    let pool = pool(1).await;
    for around in [64 * KIB, 68 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, 4 * MIB] {
        for length in [
            around - 21,
            around - 5,
            around - 1,
            around,
            around + 1,
            around + 20,
        ] {
            let bytes = bytes(length);
            let text = "\u{e4}".repeat(length / 2);
            comes_back(&pool, bytes.clone()).await;
            comes_back(&pool, text.clone()).await;
            comes_back(&pool, (7_u8, Some(bytes.clone()))).await;
            comes_back(&pool, (bytes.clone(), 7_u8)).await;
            comes_back(&pool, vec![bytes.clone(), bytes.clone()]).await;
            comes_back(&pool, ("n".repeat(4 * KIB), Ok::<_, ()>(bytes.clone()))).await;
            comes_back(
                &pool,
                Picture {
                    name: "a picture".to_owned(),
                    size: (640, 480),
                    gamma: 2.2,
                    pixels: bytes,
                },
            )
            .await;
        }
        let numbers: Vec<u16> = (0..40_000_u32)
            .map(|n| n.wrapping_mul(around as u32) as u16)
            .collect();
        comes_back(&pool, numbers).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_may_be_larger_than_arguments_and_the_reverse() {
    let pool = pool(2).await;
    for length in [100 * KIB, 3 * MIB, 33 * MIB, 70 * MIB] {
        let made = pool.apply_async(|length: usize| bytes(length), length);
        let taken = pool.apply_async(
            |bytes: Bytes| (bytes.len(), bytes[bytes.len() - 1]),
            bytes(length),
        );
        assert!(within(made).await.unwrap() == bytes(length));
        assert_eq!(within(taken).await.unwrap(), (length, bytes(length)[length - 1]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_the_other_side_reads_as_numbers_arrive() {
    /// Written in one piece, read number by number.
    #[derive(Debug)]
    struct Numbers(Vec<u8>);
    impl Serialize for Numbers {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(&self.0)
        }
    }
    impl<'de> Deserialize<'de> for Numbers {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Vec::deserialize(deserializer).map(Self)
        }
    }
    let pool = pool(1).await;
    let sent = bytes(300 * KIB);
    let numbers = Numbers(sent.to_vec());
    assert!(within(pool.apply(same::<Numbers>, numbers)).await.unwrap().0 == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_its_argument_is_on_the_way_costs_nothing() {
    let pool = pool(1).await;
    let length = |bytes: Bytes| bytes.len();
    for _ in 0..3 {
        let worker = pids(&pool)[0];
        // It takes what the socket holds and no more.
        signal(worker, Signal::STOP);
        let handle = pool.apply_async(length, bytes(40 * MIB));
        tokio::task::yield_now().await;
        signal(worker, Signal::KILL);
        assert_eq!(within(handle).await.unwrap(), 40 * MIB);
        gone(worker);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_while_its_result_is_on_the_way_costs_that_alone() {
    let pool = pool(1).await;
    // Somewhere on the way, or before it, or behind it.
    let doomed = |after: u64| {
        let bytes = bytes(20 * MIB);
        std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_micros(after));
            std::process::abort();
        });
        bytes
    };
    let sent = bytes(20 * MIB);
    for after in (0..40_000).step_by(4_000) {
        let fatal = pool.apply_async(doomed, after);
        let behind = pool.apply_async(same::<u64>, after);
        match within(fatal).await {
            Ok(whole) => assert!(whole == sent),
            Err(error) => assert!(error.is_worker_lost(), "{error}"),
        }
        // It may have come to the worker that was about to end.
        match within(behind).await {
            Ok(value) => assert_eq!(value, after),
            Err(error) => assert!(error.is_worker_lost(), "{error}"),
        }
    }
    within(async { while pool.apply(pid, ()).await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_worker_keeps_no_memory_of_large_values() {
    let pool = pool(1).await;
    let worker = within(pool.apply(pid, ())).await.unwrap();
    let resident = || {
        let pages = std::fs::read_to_string(format!("/proc/{worker}/statm")).unwrap();
        let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    };
    let before = resident();
    for length in [32 * MIB + 512 * KIB, 40 * MIB] {
        let echoed = within(pool.apply(same::<Bytes>, bytes(length))).await.unwrap();
        assert!(echoed == bytes(length));
        eventually("the worker is as small as it was", || {
            resident() < before + 8 * MIB
        });
    }
}
