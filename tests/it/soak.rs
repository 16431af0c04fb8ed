//! What the soak (`cargo bench --bench chaos`) has found.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use procession::{Pool, TaskError, TaskErrorKind, TimeoutPhase, worker};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fuse::{FUSE, eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, pool};

/// Long enough for an element that does nothing.
const ENOUGH: Duration = Duration::from_millis(500);

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
    let results = within(map.timeout(ENOUGH).collect_results()).await;
    let rest: Vec<u32> = results
        .into_iter()
        .skip(1)
        .map(|result| result.unwrap())
        .collect();
    assert_eq!(rest, (1..10).collect::<Vec<_>>());
}

async fn the_first_never_ends(n: u32) -> u32 {
    if n == 0 {
        std::future::pending::<()>().await;
    }
    n
}

#[tokio::test]
async fn an_async_element_that_runs_out_of_time_costs_itself_alone() {
    let builder = Pool::builder().workers(1).tasks_per_worker(2);
    let pool = within(builder.build()).await.unwrap();
    for retries in [0, 2] {
        let map = pool
            .asynchronous()
            .map(the_first_never_ends, 0..10)
            .chunk_size(10)
            .retries(retries);
        let mut results = within(map.timeout(ENOUGH).collect_results()).await;
        let error = results.remove(0).unwrap_err();
        assert_eq!(
            error.kind(),
            TaskErrorKind::TimedOut(TimeoutPhase::Running),
            "{error}"
        );
        assert_eq!(error.attempts().len(), retries as usize);
        let rest: Vec<u32> = results.into_iter().map(|result| result.unwrap()).collect();
        assert_eq!(rest, (1..10).collect::<Vec<_>>());
    }
    // It did not cost the worker.
    assert_eq!(pool.stats().restarts, 0);
}

/// The second element waits until a file is there, and ends its worker.
fn the_second_exits((n, began, go): (u32, PathBuf, PathBuf)) -> u32 {
    if n == 1 {
        std::fs::write(began, "").unwrap();
        while !go.exists() {
            std::thread::yield_now();
        }
        std::process::exit(3);
    }
    n
}

#[tokio::test]
async fn a_deadline_between_two_tries_of_a_chunk_leaves_it_the_values_that_it_has() {
    let files = [Scratch::new(), Scratch::new()];
    let [began, go] = files.each_ref().map(|file| PathBuf::from(file.path()));
    let pool = pool(1).await;
    let elements: Vec<_> = (0..3).map(|n| (n, began.clone(), go.clone())).collect();
    // So long that the second element is reached in time on a machine that is busy.
    let map = pool
        .map(the_second_exits, elements)
        .chunk_size(3)
        .deadline(Instant::now() + Duration::from_secs(3));
    let results = tokio::spawn(map.collect_results().into_future());
    within(tokio::task::spawn_blocking(move || {
        eventually("the second element", || began.exists())
    }))
    .await
    .unwrap();
    // The next worker is kept from what is left.
    let (gate, argument) = gate();
    let held = pool.task(wait_at, argument).priority(1).submit();
    std::fs::write(&go, "").unwrap();
    let results = within(results).await.unwrap();
    let kinds: Vec<_> = results
        .iter()
        .map(|result| result.as_ref().map_err(TaskError::kind))
        .collect();
    let late = TaskErrorKind::TimedOut(TimeoutPhase::Queued);
    assert_eq!(kinds, [Ok(&0), Err(TaskErrorKind::WorkerLost), Err(late)]);
    gate.open();
    within(held).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_takes_descriptors_from_itself_still_hears_its_parent() {
    let pool = within(Pool::builder().workers(1).cancel_grace(FUSE).build())
        .await
        .unwrap();
    let few = |(): ()| {
        let limit = Rlimit {
            current: Some(3),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
    };
    within(pool.apply(few, ())).await.unwrap();
    // The first wakes whoever hears that, the others find him awake.
    for _ in 0..3 {
        let task = pool.task(until_cancelled, ()).timeout(ENOUGH);
        assert!(within(task).await.unwrap_err().is_timeout());
    }
    within(pool.apply(|(): ()| (), ())).await.unwrap();
    assert_eq!(pool.stats().restarts, 0);
}
