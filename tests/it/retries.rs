//! Tries: a task that lost its worker, or its time, runs again where its caller allows it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::stream::StreamExt;
use procession::{Fd, Output, Pool, TaskErrorKind, TimeoutPhase};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, pid, pool, same};

const SHORT: Duration = Duration::from_millis(300);

/// Notes a try, and gives how many there were before.
fn tries(path: &str, name: &str) -> usize {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    append((path.to_owned(), name.to_owned()));
    text.lines().filter(|&line| line == name).count()
}

/// Task: crashes so many times, and then gives its number.
fn crashes((path, number, times): (String, u32, usize)) -> u32 {
    if tries(&path, &number.to_string()) < times {
        std::process::abort();
    }
    number
}

/// Task: never ends so many times, and then gives its number.
fn hangs((path, number, times): (String, u32, usize)) -> u32 {
    while tries(&path, &number.to_string()) < times {
        std::thread::park();
    }
    number
}

async fn hangs_async((path, number, times): (String, u32, usize)) -> u32 {
    if tries(&path, &number.to_string()) < times {
        futures::future::pending::<()>().await;
    }
    number
}

const ALWAYS: usize = usize::MAX;

#[tokio::test]
async fn a_task_that_crashes_is_tried_again() {
    let pool = pool(2).await;
    for times in [0, 1, 3] {
        let file = Scratch::new();
        let task = pool.task(crashes, (file.path(), 7, times)).retries(3);
        assert_eq!(within(task).await.unwrap(), 7);
        assert_eq!(file.lines().len(), times + 1);
    }
}

#[tokio::test]
async fn a_task_that_runs_out_of_time_is_tried_again() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let task = pool.task(hangs, (file.path(), 7, 2)).retries(2);
    assert_eq!(within(task.timeout(SHORT)).await.unwrap(), 7);
    assert_eq!(file.lines().len(), 3);

    let file = Scratch::new();
    let task = pool.task(hangs, (file.path(), 7, 3)).retries(2);
    let error = within(task.timeout(SHORT)).await.unwrap_err();
    let running = TaskErrorKind::TimedOut(TimeoutPhase::Running);
    assert_eq!((error.kind(), error.attempts().len()), (running, 2));
    let tries = error.attempts().iter().chain([&error]);
    let pids: HashSet<u32> = tries
        .map(|error| {
            assert_eq!(error.kind(), running);
            error.worker_pid().unwrap()
        })
        .collect();
    assert_eq!((pids.len(), file.lines().len()), (3, 3));
}

#[tokio::test]
async fn an_async_task_out_of_time_is_tried_again_at_a_worker_that_lives_on() {
    for lanes in [1, 4] {
        let builder = Pool::builder().workers(1).tasks_per_worker(lanes);
        let pool = within(builder.stderr(Output::null()).build()).await.unwrap();
        let file = Scratch::new();
        let calls = pool.asynchronous();
        let task = calls.task(hangs_async, (file.path(), 7, 2)).retries(2);
        assert_eq!(within(task.timeout(SHORT)).await.unwrap(), 7);
        let input = (10..20).map(|n| (file.path(), n, usize::from(n == 13)));
        let map = calls
            .map(hangs_async, input)
            .chunk_size(10)
            .retries(1)
            .timeout(SHORT);
        assert_eq!(within(map).await.unwrap(), (10..20).collect::<Vec<_>>());
        assert_eq!(file.lines().len(), 3 + 11);
    }
}

#[tokio::test]
async fn what_the_task_itself_does_is_not_tried_again() {
    fn panics(path: String) {
        append((path, "panic".to_owned()));
        panic!("of its own");
    }
    fn fails(path: String) -> Result<(), String> {
        append((path, "error".to_owned()));
        Err("of its own".to_owned())
    }
    let pool = pool(1).await;
    let file = Scratch::new();
    let error = within(pool.task(panics, file.path()).retries(5))
        .await
        .unwrap_err();
    assert!(error.is_panic() && error.attempts().is_empty());
    let value = within(pool.task(fails, file.path()).retries(5)).await.unwrap();
    assert_eq!(value.unwrap_err(), "of its own");
    assert_eq!(file.lines(), ["panic", "error"]);
}

#[tokio::test]
async fn without_retries_there_is_one_try() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let error = within(pool.apply(crashes, (file.path(), 1, ALWAYS)))
        .await
        .unwrap_err();
    assert!(error.is_worker_lost() && error.attempts().is_empty());
    let task = pool.task(crashes, (file.path(), 2, ALWAYS)).retries(0);
    assert!(within(task).await.unwrap_err().is_worker_lost());
    assert_eq!(file.lines(), ["1", "2"]);
}

#[tokio::test]
async fn the_pools_retries_hold_where_the_task_has_none_of_its_own() {
    let builder = Pool::builder().workers(1).task_retries(1);
    let pool = within(builder.stderr(Output::null()).build()).await.unwrap();
    let file = Scratch::new();
    assert_eq!(within(pool.apply(crashes, (file.path(), 1, 1))).await.unwrap(), 1);
    let input = (2..9).map(|n| (file.path(), n, 1));
    assert_eq!(within(pool.map(crashes, input)).await.unwrap().len(), 7);
    let task = pool.task(crashes, (file.path(), 10, 1)).retries(0);
    assert!(within(task).await.unwrap_err().is_worker_lost());
}

#[tokio::test]
async fn a_task_that_kills_every_worker_ends_after_its_tries_with_all_their_causes() {
    let pool = pool(2).await;
    let file = Scratch::new();
    let poison = pool.task(crashes, (file.path(), 666, ALWAYS)).retries(3).submit();
    let others = within(pool.map(same::<u32>, 0..500).chunk_size(1).retries(5))
        .await
        .unwrap();
    assert_eq!(others, (0..500).collect::<Vec<_>>());
    let error = within(poison).await.unwrap_err();
    assert_eq!(error.attempts().len(), 3);
    let mut pids = HashSet::new();
    for error in error.attempts().iter().chain([&error]) {
        assert!(error.is_worker_lost() && error.exit_status().is_some(), "{error}");
        pids.insert(error.worker_pid().unwrap());
    }
    assert_eq!((pids.len(), file.lines().len()), (4, 4));
    assert!(error.to_string().starts_with("after 4 tries"), "{error}");
    assert_eq!(within(pool.map(same::<u32>, 0..500)).await.unwrap(), others);
}

#[tokio::test]
async fn of_a_chunk_the_element_alone_is_tried_again() {
    for (culprit, chunk) in [(0, 12), (5, 12), (11, 12), (5, 4)] {
        let pool = pool(1).await;
        let file = Scratch::new();
        let input = || {
            let file = &file;
            (0..12).map(move |n| (file.path(), n, if n == culprit { 2 } else { 0 }))
        };
        let map = pool.map(crashes, input()).chunk_size(chunk).retries(2);
        assert_eq!(within(map).await.unwrap(), (0..12).collect::<Vec<_>>());
        for n in 0..12 {
            let times = file.lines().iter().filter(|&line| *line == n.to_string()).count();
            assert_eq!(times, if n == culprit { 3 } else { 1 }, "{n}");
        }
    }
}

#[tokio::test]
async fn an_element_that_kills_every_worker_ends_after_its_tries_and_the_others_have_values() {
    let pool = pool(2).await;
    let file = Scratch::new();
    let input = (0..12).map(|n| (file.path(), n, if n % 5 == 2 { ALWAYS } else { 0 }));
    let stream = pool.imap(crashes, input).chunk_size(12).retries(2);
    let results: Vec<_> = within(stream.collect()).await;
    assert_eq!(results.len(), 12);
    for (n, result) in (0..12).zip(results) {
        match result {
            Ok(value) => assert_eq!((value, n % 5 == 2), (n, false)),
            Err(error) => {
                assert_eq!((n % 5, error.attempts().len()), (2, 2), "{error}");
                let tries = error.attempts().iter().chain([&error]);
                let pids: HashSet<u32> = tries.map(|error| error.worker_pid().unwrap()).collect();
                assert_eq!(pids.len(), 3);
            }
        }
    }
    assert_eq!(file.lines().len(), 10 + 2 * 3);
}

#[tokio::test]
async fn a_pool_that_is_closed_takes_no_task_whatever_its_tries() {
    let pool = pool(1).await;
    pool.close();
    let error = within(pool.task(same::<u32>, 1).retries(3)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
    assert!(error.attempts().is_empty());
    within(pool.join()).await.unwrap();
    let error = within(pool.task(same::<u32>, 1).retries(3)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
}

#[tokio::test]
async fn what_was_accepted_before_the_close_has_all_its_tries() {
    let pool = pool(2).await;
    let file = Scratch::new();
    let handles: Vec<_> = (0..4)
        .map(|n| pool.task(crashes, (file.path(), n, 2)).retries(2).submit())
        .collect();
    pool.close();
    for (n, handle) in (0..4).zip(handles) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    within(pool.join()).await.unwrap();
    assert_eq!(file.lines().len(), 12);
}

#[tokio::test]
async fn a_task_that_is_tried_again_keeps_its_id_and_its_place() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut shut, argument) = gate();
    let first = pool.apply_async(wait_at, argument);
    shut.entered();
    let handles: Vec<_> = (0..4)
        .map(|n| {
            let times = usize::from(n == 1) * 2;
            pool.task(crashes, (file.path(), n, times)).retries(2).submit()
        })
        .collect();
    let ids: Vec<u64> = handles.iter().map(procession::AsyncResult::id).collect();
    shut.open();
    within(first).await.unwrap();
    eventually("they have ended", || {
        handles.iter().all(procession::AsyncResult::is_finished)
    });
    let after: Vec<u64> = handles.iter().map(procession::AsyncResult::id).collect();
    assert_eq!(ids, after);
    assert_eq!(file.lines(), ["0", "1", "1", "1", "2", "3"]);
}

#[tokio::test]
async fn an_abort_ends_the_tries() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let task = pool.task(crashes, (file.path(), 1, ALWAYS)).retries(u32::MAX);
    let handle = task.submit();
    eventually("some tries", || file.lines().len() > 3);
    handle.abort();
    assert!(within(handle).await.unwrap_err().is_cancelled());
    let own = within(pool.apply(pid, ())).await.unwrap();
    let count = file.lines().len();
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(file.lines().len(), count);
}

#[tokio::test]
async fn an_end_of_the_pool_ends_the_tries() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let task = pool.task(crashes, (file.path(), 1, ALWAYS)).retries(u32::MAX);
    let handle = task.submit();
    eventually("some tries", || file.lines().len() > 1);
    pool.terminate();
    assert_eq!(
        within(handle).await.unwrap_err().kind(),
        TaskErrorKind::PoolClosed
    );
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_the_tries_and_has_their_causes() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let task = pool.task(crashes, (file.path(), 1, ALWAYS)).retries(u32::MAX);
    let error = within(task.deadline(Instant::now() + Duration::from_secs(3)))
        .await
        .unwrap_err();
    assert!(error.is_timeout() || error.is_worker_lost(), "{error}");
    let tries = file.lines().len();
    // The last try ended with the error itself, or another waited when the time was up.
    assert!(
        error.attempts().len() + 2 > tries && !error.attempts().is_empty(),
        "{error}"
    );
    assert!(error.attempts().iter().all(procession::TaskError::is_worker_lost));
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
}

/// Task: says where it is, waits, and crashes the first time.
fn crashes_at_first((gate, path): (Fd, String)) -> u32 {
    let pid = wait_at(gate);
    if tries(&path, "try") == 0 {
        std::process::abort();
    }
    pid
}

#[tokio::test]
async fn a_task_that_has_begun_has_not_waited_too_long_for_its_start() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut shut, argument) = gate();
    let time = Duration::from_secs(2);
    let task = pool.task(crashes_at_first, (argument, file.path()));
    let handle = task.queue_timeout(time).retries(1).submit();
    shut.entered();
    let (mut second, argument) = gate();
    let between = pool.task(wait_at, argument).priority(1).submit();
    let waits = pool.task(same::<u32>, 1).queue_timeout(time).submit();
    shut.open();
    // The first has crashed, and waits for its next try behind the second.
    second.entered();
    assert!(within(waits).await.unwrap_err().is_timeout());
    assert!(!handle.is_finished());
    second.open();
    within(between).await.unwrap();
    within(handle).await.unwrap();
    assert_eq!(file.lines().len(), 2);
}

#[tokio::test]
async fn a_deadline_while_the_rest_of_a_chunk_waits_leaves_what_is_finished() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (sender, receiver) = std::os::unix::net::UnixListener::bind(file.path())
        .map(|listener| (file.path(), listener))
        .unwrap();
    /// Task: 2 connects, waits for the end of the connection, and crashes.
    fn connects((path, number): (String, u32)) -> u32 {
        if number == 2 {
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            std::io::Read::read(&mut stream, &mut [0]).unwrap();
            std::process::abort();
        }
        number
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    let input: Vec<_> = (0..6).map(|n| (sender.clone(), n)).collect();
    let map = pool
        .map(connects, input)
        .chunk_size(6)
        .deadline(deadline)
        .collect_results();
    let results = tokio::spawn(map.into_future());
    let accepted = tokio::task::spawn_blocking(move || receiver.accept().unwrap().0);
    let connection = within(accepted).await.unwrap();
    let (mut shut, argument) = gate();
    let between = pool.task(wait_at, argument).priority(1).submit();
    drop(connection);
    shut.entered();
    let results = within(results).await.unwrap();
    assert_eq!(results[..2].iter().flatten().count(), 2, "{results:?}");
    assert!(results[2].as_ref().unwrap_err().is_worker_lost());
    for late in &results[3..] {
        assert_eq!(
            late.as_ref().unwrap_err().kind(),
            TaskErrorKind::TimedOut(TimeoutPhase::Queued)
        );
    }
    shut.open();
    within(between).await.unwrap();
}
