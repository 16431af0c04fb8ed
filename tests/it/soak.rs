//! What the soak (`cargo bench --bench chaos`) has found.

use std::time::Duration;

use procession::{TaskErrorKind, TimeoutPhase, worker};

use crate::fuse::within;
use crate::scene::pool;

fn until_cancelled((): ()) {
    while !worker::cancelled() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_task_is_tried_again_by_the_worker_that_ended_its_first_try() {
    let pool = pool(1).await;
    let task = pool.task(until_cancelled, ()).timeout(Duration::from_millis(5));
    let error = within(task.retries(3)).await.unwrap_err();
    assert_eq!(
        error.kind(),
        TaskErrorKind::TimedOut(TimeoutPhase::Running),
        "{error}"
    );
    assert_eq!(error.attempts().len(), 3);
    assert!(
        error.attempts().iter().all(|error| error.is_timeout()),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_rest_of_a_chunk_is_done_by_the_worker_that_ended_its_first_element() {
    let pool = pool(1).await;
    let element = |n: u32| {
        if n == 0 {
            until_cancelled(());
        }
        n
    };
    let map = pool.map(element, 0..10).chunk_size(10);
    let results = within(map.timeout(Duration::from_millis(5)).collect_results()).await;
    let rest: Vec<u32> = results
        .into_iter()
        .skip(1)
        .map(|result| result.unwrap())
        .collect();
    assert_eq!(rest, (1..10).collect::<Vec<_>>());
}
