//! `async fn` tasks, several at a time in one worker.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use futures::stream::TryStreamExt;
use procession::{Fd, Output, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use crate::fuse::within;
use crate::gate::gate;
use crate::scene::{exists, gone, pids};

async fn pool(workers: usize, tasks: usize) -> Pool {
    let builder = Pool::builder()
        .workers(workers)
        .tasks_per_worker(tasks)
        .stderr(Output::null());
    within(builder.build()).await.unwrap()
}

async fn double(x: u64) -> u64 {
    tokio::task::yield_now().await;
    2 * x
}

/// Ends when three of it run in the same process.
async fn meet(_: u32) -> bool {
    static BARRIER: OnceLock<Barrier> = OnceLock::new();
    BARRIER.get_or_init(|| Barrier::new(3)).wait().await;
    true
}

#[tokio::test]
async fn async_functions_and_closures_are_tasks() {
    for tasks in [1, 4] {
        let pool = pool(2, tasks).await;
        let calls = pool.asynchronous();
        assert_eq!(within(calls.apply(double, 4)).await.unwrap(), 8);
        assert_eq!(
            within(calls.apply(|x: u64| async move { x + 1 }, 4))
                .await
                .unwrap(),
            5
        );
        assert_eq!(
            within(calls.apply(futures::future::ready::<u8>, 4))
                .await
                .unwrap(),
            4
        );
        assert_eq!(within(calls.apply_async(double, 5)).await.unwrap(), 10);
        assert_eq!(within(calls.task(double, 6)).await.unwrap(), 12);
        assert_eq!(within(calls.try_apply(double, 7).unwrap()).await.unwrap(), 14);
        let doubled: Vec<u64> = (0..100).map(|x| 2 * x).collect();
        assert_eq!(within(calls.map(double, 0..100)).await.unwrap(), doubled);
        assert_eq!(
            within(calls.map(double, 0..100).chunk_size(7)).await.unwrap(),
            doubled
        );
        assert_eq!(within(calls.map_async(double, 0..100)).await.unwrap(), doubled);
        let streamed: Vec<u64> = within(calls.imap(double, 0..100).try_collect()).await.unwrap();
        assert_eq!(streamed, doubled);
        let mut unordered: Vec<u64> = within(calls.imap_unordered(double, 0..100).try_collect())
            .await
            .unwrap();
        unordered.sort_unstable();
        assert_eq!(unordered, doubled);
        // Blocking tasks run in the same workers.
        assert_eq!(within(pool.apply(|x: u64| x + 1, 1)).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn several_run_at_once_in_one_worker() {
    let pool = pool(1, 3).await;
    assert_eq!(
        within(pool.asynchronous().map(meet, 0..3)).await.unwrap(),
        [true; 3]
    );
    assert_eq!(
        within(pool.asynchronous().map(meet, 0..30)).await.unwrap(),
        [true; 30]
    );
}

/// Sends itself a text through a socket and waits for a timer.
async fn echo(text: String) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await?;
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).await?;
        socket.write_all(&bytes).await
    });
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(text.as_bytes()).await?;
    socket.shutdown().await?;
    let mut back = String::new();
    socket.read_to_string(&mut back).await?;
    server.await??;
    let timer = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>());
    assert!(timer.await.is_err());
    Ok(back)
}

#[tokio::test]
async fn timers_and_sockets_work_in_tasks() {
    for tasks in [1, 4] {
        let pool = pool(1, tasks).await;
        let echoed = pool.asynchronous().map(
            |text: String| async { echo(text).await.map_err(|error| error.to_string()) },
            ["a", "b", "c"].map(str::to_owned),
        );
        assert_eq!(
            within(echoed).await.unwrap(),
            ["a", "b", "c"].map(|text| Ok(text.to_owned()))
        );
    }
}

#[tokio::test]
async fn a_panic_fails_only_its_own_task() {
    let pool = pool(1, 4).await;
    let before = pids(&pool);
    let work = |n: u32| async move {
        tokio::task::yield_now().await;
        assert_ne!(n, 2, "two");
        n
    };
    let each = within(pool.asynchronous().map(work, 0..8).collect_results()).await;
    for (n, result) in (0..).zip(each) {
        match result {
            Ok(value) => assert_eq!(value, n),
            Err(error) => assert!(
                n == 2 && error.panic().is_some_and(|panic| panic.message.contains("two")),
                "{error}"
            ),
        }
    }
    assert_eq!(pids(&pool), before);
}

/// Says that it runs, and does.
async fn enter_and_stay(gate: Fd) {
    let mut gate = UnixStream::from(gate.into_inner());
    gate.write_all(&std::process::id().to_le_bytes()).unwrap();
    std::future::pending().await
}

async fn forever(_: u32) {
    std::future::pending().await
}

#[tokio::test]
async fn one_that_is_aborted_among_others_leaves_them_and_the_worker_alone() {
    let pool = pool(1, 4).await;
    let worker = pids(&pool)[0];
    let doomed = pool.asynchronous().apply_async(forever, 0);
    let first = pool.asynchronous().apply_async(meet, 0);
    assert_eq!(within(pool.asynchronous().apply(double, 1)).await.unwrap(), 2);
    doomed.abort();
    assert!(within(doomed).await.unwrap_err().is_cancelled());
    let rest = within(pool.asynchronous().map(meet, 0..2)).await;
    assert_eq!(rest.unwrap(), [true; 2]);
    assert!(within(first).await.unwrap());
    assert!(exists(worker));
    assert_eq!(pool.stats().restarts, 0);
}

#[tokio::test]
async fn lanes_of_aborted_tasks_are_free_again() {
    let pool = pool(1, 2).await;
    for _ in 0..20 {
        let doomed: Vec<_> = (0..2)
            .map(|n| pool.asynchronous().apply_async(forever, n))
            .collect();
        let behind = pool.asynchronous().apply_async(double, 3);
        for handle in &doomed {
            handle.abort();
        }
        assert_eq!(within(behind).await.unwrap(), 6);
    }
}

#[tokio::test]
async fn aborting_the_only_one_of_a_worker_works_too() {
    let pool = pool(1, 1).await;
    let worker = pids(&pool)[0];
    let (mut gate, argument) = gate();
    let doomed = pool.asynchronous().apply_async(enter_and_stay, argument);
    gate.entered();
    doomed.abort();
    assert!(within(doomed).await.unwrap_err().is_cancelled());
    assert_eq!(within(pool.asynchronous().apply(double, 1)).await.unwrap(), 2);
    gone(worker);
}

#[tokio::test]
async fn a_worker_that_is_lost_fails_all_that_it_ran_and_nothing_else() {
    let pool = pool(2, 3).await;
    let abort = |n: u32| async move {
        if n == 0 {
            std::process::abort();
        }
        n
    };
    let each = within(pool.asynchronous().map(abort, 0..30).collect_results()).await;
    assert_eq!(each.len(), 30);
    let lost = each
        .iter()
        .filter(|result| result.as_ref().is_err_and(|error| error.is_worker_lost()))
        .count();
    assert!((1..=3).contains(&lost), "{lost}");
    assert_eq!(each.iter().filter(|result| result.is_ok()).count(), 30 - lost);
}

#[tokio::test]
async fn work_spreads_over_workers_before_it_piles_up() {
    let pool = pool(2, 4).await;
    let handles: Vec<_> = (0..2)
        .map(|n| pool.asynchronous().apply_async(forever, n))
        .collect();
    let busy: HashSet<usize> = pool
        .workers()
        .iter()
        .filter(|worker| worker.status == procession::WorkerStatus::Busy)
        .map(|worker| worker.id)
        .collect();
    assert_eq!(busy.len(), 2);
    drop(handles);
}
