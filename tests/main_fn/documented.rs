//! Pools of this very binary.

use std::future::Future;

use procession::{Pool, TaskErrorKind, worker};

use crate::fixture::FUSE;

crate::trials! {
    a_main_that_calls_init_has_pools
    init_again_is_harmless
    many_pools_live_side_by_side
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(FUSE, test).await.unwrap() });
}

fn a_main_that_calls_init_has_pools() {
    block_on(async {
        assert!(!worker::is_worker());
        let pool = Pool::builder().workers(2).build().await.unwrap();
        assert_eq!(pool.apply(|x: u64| x * 2, 21).await.unwrap(), 42);
        assert_eq!(pool.map(|x: u64| x * x, 0..5).await.unwrap(), [0, 1, 4, 9, 16]);
        assert!(pool.apply(|_: ()| worker::is_worker(), ()).await.unwrap());
        let own = std::process::id();
        assert!(
            pool.apply(|parent: u32| std::process::id() != parent, own)
                .await
                .unwrap()
        );
        let error = pool
            .apply(|_: ()| -> () { std::process::abort() }, ())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::WorkerLost);
        assert_eq!(pool.apply(|x: u64| x + 1, 41).await.unwrap(), 42);
    });
}

fn init_again_is_harmless() {
    procession::init();
    block_on(async {
        let pool = Pool::builder().workers(1).build().await.unwrap();
        let again = pool.apply(
            |x: u64| {
                procession::init();
                x
            },
            42,
        );
        assert_eq!(again.await.unwrap(), 42);
    });
}

fn many_pools_live_side_by_side() {
    block_on(async {
        let mut pools = Vec::new();
        for number in 0..4 {
            pools.push(
                Pool::builder()
                    .name(format!("pool {number}"))
                    .workers(1)
                    .build()
                    .await
                    .unwrap(),
            );
        }
        for (number, pool) in pools.iter().enumerate() {
            let name = pool
                .apply(|_: ()| worker::pool_name().map(str::to_owned), ())
                .await
                .unwrap();
            assert_eq!(name, Some(format!("pool {number}")));
        }
    });
}
