//! Pools inside workers.

use std::future::Future;

use procession::{BuildError, Output, Pool, TaskErrorKind};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{exists, gone, pid, pids, pool};

fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Task: builds a pool where it runs, with or without leave.
fn inner(nested: bool) -> Result<u32, String> {
    on_a_runtime(async {
        let pool = Pool::builder()
            .workers(1)
            .nested(nested)
            .build()
            .await
            .map_err(|error| match error {
                BuildError::Nested => format!("nested: {error}"),
                error => error.to_string(),
            })?;
        pool.apply(|n: u32| n + 1, 1)
            .await
            .map_err(|error| error.to_string())
    })
}

#[tokio::test]
async fn a_pool_in_a_worker_needs_leave() {
    let pool = pool(1).await;
    let error = within(pool.apply(inner, false)).await.unwrap().unwrap_err();
    assert!(
        error.starts_with("nested: ") && error.contains("nested(true)"),
        "{error}"
    );
    assert_eq!(within(pool.apply(inner, true)).await.unwrap(), Ok(2));
}

/// Task: a pool in a pool in a pool, as deep as it goes.
fn deeper(limit: u32) -> Result<u32, String> {
    on_a_runtime(async {
        let builder = Pool::builder()
            .workers(1)
            .nested(true)
            .max_depth(limit)
            .stderr(Output::null());
        match builder.build().await {
            Ok(pool) => pool
                .apply(deeper, limit)
                .await
                .map_err(|error| error.to_string())?,
            Err(BuildError::TooDeep { depth, limit }) => {
                assert!(depth > limit);
                Ok(depth)
            }
            Err(error) => Err(error.to_string()),
        }
    })
}

#[tokio::test]
async fn nesting_has_a_limit() {
    let pool = pool(1).await;
    for limit in [1, 3] {
        let found = within(pool.apply(deeper, limit)).await.unwrap();
        assert_eq!(found, Ok(limit + 1));
    }
}

#[tokio::test]
async fn the_global_pool_in_a_worker_is_an_error_and_not_a_flood_of_processes() {
    let pool = pool(1).await;
    let global = |_: ()| {
        let error = futures::executor::block_on(Pool::global().apply(pid, ())).unwrap_err();
        (error.kind() == TaskErrorKind::PoolFailed, error.to_string())
    };
    let (failed, text) = within(pool.apply(global, ())).await.unwrap();
    assert!(failed, "{text}");
}

/// Task: a pool with a worker that waits, whose ids it writes to the gate.
fn hold_inner(argument: procession::Fd) -> u32 {
    on_a_runtime(async {
        let pool = Pool::builder().workers(1).nested(true).build().await.unwrap();
        pool.apply(wait_at, argument).await.unwrap()
    })
}

#[tokio::test]
async fn workers_of_workers_end_with_them() {
    for ending in 0..4 {
        let pool = pool(1).await;
        let outer = pids(&pool)[0];
        let (mut gate, argument) = gate();
        let held = pool.apply_async(hold_inner, argument);
        let inner = gate.entered();
        assert!(inner != outer && exists(inner));
        match ending {
            0 => held.abort(),
            1 => pool.terminate(),
            2 => crate::scene::signal(outer, rustix::process::Signal::KILL),
            _ => drop(pool.clone()),
        }
        if ending == 3 {
            gate.open();
            assert_eq!(within(held).await.unwrap(), inner);
        } else {
            assert!(within(held).await.is_err());
            gone(outer);
        }
        eventually("the inner worker is gone", || !exists(inner));
    }
}
