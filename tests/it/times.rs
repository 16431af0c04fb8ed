//! Times of tasks: what is up ends the task that it belongs to, and nothing else.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures::stream::StreamExt;
use procession::{BuildError, Fd, Output, Pool, PoolBuilder, TaskError, TaskErrorKind, TimeoutPhase, worker};
use rustix::process::Signal;

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, gone, pid, pids, pool, same, signal};

const QUEUED: TaskErrorKind = TaskErrorKind::TimedOut(TimeoutPhase::Queued);
const RUNNING: TaskErrorKind = TaskErrorKind::TimedOut(TimeoutPhase::Running);
/// Soon over, and long enough for a task that does nothing.
const SHORT: Duration = Duration::from_millis(500);
/// Over at once.
const INSTANT: Duration = Duration::from_millis(20);

fn quiet(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .stdout(Output::null())
        .stderr(Output::null())
}

/// Task: never ends, and takes all of a processor for it.
fn spin(_: u32) -> u32 {
    loop {
        std::hint::spin_loop();
    }
}

/// Task: ends, unless it is given 3.
fn all_but_three(n: u32) -> u32 {
    if n == 3 { spin(n) } else { n }
}

async fn all_but_three_async(n: u32) -> u32 {
    if n == 3 {
        futures::future::pending::<()>().await;
    }
    n
}

/// Lets so much time pass that a task's would be up: one that waits for a busy pool ends.
async fn time_passes(pool: &Pool, time: Duration) {
    let waits = pool.task(same::<u32>, 0).priority(-1).queue_timeout(time);
    assert_eq!(within(waits).await.unwrap_err().kind(), QUEUED);
}

/// Has workers learn that tasks are short, so that they are sent several ahead.
async fn warm_up(pool: &Pool) {
    let handles: Vec<_> = (0..500).map(|n| pool.apply_async(same::<u32>, n)).collect();
    for handle in handles {
        within(handle).await.unwrap();
    }
}

fn assert_only_three_is_late(results: Vec<Result<u32, TaskError>>, count: u32) {
    assert_eq!(results.len(), count as usize);
    for (n, result) in (0..count).zip(results) {
        match result {
            Ok(value) => assert_eq!((value, n != 3), (n, true)),
            Err(error) => {
                assert_eq!((error.kind(), n), (RUNNING, 3), "{error}");
                gone(error.worker_pid().unwrap());
            }
        }
    }
}

#[tokio::test]
async fn a_task_that_never_ends_is_stopped_when_its_time_is_up() {
    let pool = pool(1).await;
    let before = within(pool.apply(pid, ())).await.unwrap();
    let error = within(pool.task(spin, 0).timeout(INSTANT)).await.unwrap_err();
    assert_eq!(error.kind(), RUNNING);
    assert!(error.is_timeout());
    assert_eq!((error.worker_pid(), error.worker_id()), (Some(before), Some(0)));
    let text = error.to_string();
    assert!(text.contains("spin") && text.contains("20ms"), "{text}");
    gone(before);
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), before);
}

#[tokio::test]
async fn many_tasks_in_a_row_may_run_out_of_time() {
    let pool = pool(2).await;
    let handles: Vec<_> = (0..20)
        .map(|n| pool.task(all_but_three, 3 + n % 2).timeout(SHORT).submit())
        .collect();
    for (n, handle) in handles.into_iter().enumerate() {
        match within(handle).await {
            Ok(value) => assert_eq!((value, n % 2), (4, 1)),
            Err(error) => assert_eq!((error.kind(), n % 2), (RUNNING, 0)),
        }
    }
}

#[tokio::test]
async fn the_pools_time_holds_where_the_task_has_none_of_its_own() {
    let pool = within(quiet(2).task_timeout(INSTANT).build()).await.unwrap();
    let (mut shut, argument) = gate();
    let own = pool.task(wait_at, argument).timeout(Duration::MAX).submit();
    let at_gate = shut.entered();
    // The pool's time passes.
    let error = within(pool.apply(spin, 0)).await.unwrap_err();
    assert_eq!(error.kind(), RUNNING);
    let results = within(pool.map(all_but_three, [3]).collect_results()).await;
    assert_eq!(results[0].as_ref().unwrap_err().kind(), RUNNING);
    shut.open();
    assert_eq!(within(own).await.unwrap(), at_gate);
}

#[tokio::test]
async fn a_timeout_counts_from_the_tasks_start() {
    for is_warm in [false, true] {
        let pool = pool(1).await;
        if is_warm {
            warm_up(&pool).await;
        }
        let (mut shut, argument) = gate();
        let first = pool.apply_async(wait_at, argument);
        let own = shut.entered();
        let behind = pool.task(pid, ()).timeout(SHORT).submit();
        time_passes(&pool, SHORT + INSTANT).await;
        shut.open();
        assert_eq!(within(first).await.unwrap(), own);
        assert_eq!(within(behind).await.unwrap(), own);
    }
}

#[tokio::test]
async fn a_task_that_has_waited_too_long_never_runs() {
    for is_warm in [false, true] {
        let pool = pool(1).await;
        if is_warm {
            warm_up(&pool).await;
        }
        let file = Scratch::new();
        let (mut shut, argument) = gate();
        let first = pool.apply_async(wait_at, argument);
        let own = shut.entered();
        let line = || (file.path(), "ran".to_owned());
        let by_timeout = pool.task(append, line()).queue_timeout(INSTANT).submit();
        let by_deadline = pool
            .task(append, line())
            .deadline(Instant::now() + INSTANT)
            .submit();
        let awaited = pool.task(append, line()).queue_timeout(INSTANT);
        for error in [
            within(by_timeout).await.unwrap_err(),
            within(by_deadline).await.unwrap_err(),
            within(awaited).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), QUEUED, "{error}");
            assert_eq!((error.worker_pid(), error.worker_id()), (None, None));
        }
        let behind = pool.apply_async(pid, ());
        shut.open();
        assert_eq!(within(first).await.unwrap(), own);
        assert_eq!(within(behind).await.unwrap(), own);
        assert_eq!(file.lines(), [""; 0]);
    }
}

#[tokio::test]
async fn the_pools_times_to_wait_and_to_live_hold_as_well() {
    let waits = within(quiet(1).queue_timeout(INSTANT).build()).await.unwrap();
    let lives = within(quiet(1).task_deadline(SHORT).build()).await.unwrap();
    for pool in [waits, lives] {
        let (mut shut, argument) = gate();
        let time = Duration::from_secs(3600);
        let later = Instant::now() + time;
        let first = pool
            .task(wait_at, argument)
            .queue_timeout(time)
            .deadline(later)
            .submit();
        let own = shut.entered();
        let error = within(pool.apply(same::<u32>, 1)).await.unwrap_err();
        assert_eq!(error.kind(), QUEUED);
        shut.open();
        assert_eq!(within(first).await.unwrap(), own);
    }
}

#[tokio::test]
async fn a_deadline_stops_a_task_that_runs() {
    let pool = pool(1).await;
    let deadline = Instant::now() + SHORT;
    let error = within(pool.task(spin, 0).deadline(deadline)).await.unwrap_err();
    assert_eq!(error.kind(), RUNNING);
    gone(error.worker_pid().unwrap());
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_deadline_that_has_passed_ends_the_task_at_once() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let past = Instant::now();
    let line = || (file.path(), "ran".to_owned());
    let submitted = pool.task(append, line()).deadline(past).submit();
    assert!(submitted.is_finished());
    assert_eq!(within(submitted).await.unwrap_err().kind(), QUEUED);
    let awaited = within(pool.task(append, line()).deadline(past)).await;
    assert_eq!(awaited.unwrap_err().kind(), QUEUED);
    let mapped = within(pool.map(append, [line(), line()]).deadline(past)).await;
    assert_eq!(mapped.unwrap_err().kind(), QUEUED);
    let streamed: Vec<_> = within(pool.imap(append, [line(), line()]).deadline(past).collect()).await;
    assert_eq!(streamed.len(), 2);
    for result in streamed {
        assert_eq!(result.unwrap_err().kind(), QUEUED);
    }
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(file.lines(), [""; 0]);
}

#[tokio::test]
async fn the_deadline_of_a_map_ends_what_runs_and_what_waits() {
    let pool = pool(1).await;
    for chunk in [1, 8] {
        // There is a worker when the time begins.
        within(pool.apply(same::<u32>, 1)).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        let results = within(
            pool.map(all_but_three, 0..8)
                .chunk_size(chunk)
                .deadline(deadline)
                .collect_results(),
        );
        let kinds: Vec<_> = results
            .await
            .into_iter()
            .map(|result| result.map_err(|error| error.kind()))
            .collect();
        assert_eq!(kinds[..4], [Ok(0), Ok(1), Ok(2), Err(RUNNING)]);
        assert_eq!(kinds[4..], [Err(QUEUED); 4]);
    }
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn no_time_at_all_has_no_meaning() {
    let pool = pool(1).await;
    for task in [
        pool.task(same::<u32>, 1).timeout(Duration::ZERO),
        pool.task(same::<u32>, 1).queue_timeout(Duration::ZERO),
    ] {
        let error = within(task).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::InvalidOption);
        assert!(error.to_string().contains("timeout"), "{error}");
    }
    let submitted = pool.task(same::<u32>, 1).timeout(Duration::ZERO).submit();
    assert_eq!(
        within(submitted).await.unwrap_err().kind(),
        TaskErrorKind::InvalidOption
    );
    let mapped = within(pool.map(same::<u32>, 0..2).timeout(Duration::ZERO)).await;
    assert_eq!(mapped.unwrap_err().kind(), TaskErrorKind::InvalidOption);
    let streamed: Vec<_> = within(pool.imap(same::<u32>, 0..2).timeout(Duration::ZERO).collect()).await;
    assert_eq!(streamed.len(), 1);
    assert_eq!(
        streamed[0].as_ref().unwrap_err().kind(),
        TaskErrorKind::InvalidOption
    );
    for (builder, name) in [
        (quiet(1).task_timeout(Duration::ZERO), "task_timeout"),
        (quiet(1).queue_timeout(Duration::ZERO), "queue_timeout"),
        (quiet(1).task_deadline(Duration::ZERO), "task_deadline"),
    ] {
        let Err(BuildError::InvalidOption { option, .. }) = within(builder.build()).await else {
            panic!("{name} of zero was taken")
        };
        assert_eq!(option, name);
    }
}

#[tokio::test]
async fn the_longest_times_are_no_overflow() {
    let builder = quiet(1)
        .task_timeout(Duration::MAX)
        .queue_timeout(Duration::MAX)
        .task_deadline(Duration::MAX)
        .cancel_grace(Duration::MAX)
        .term_grace(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .max_worker_age(Duration::MAX);
    let pool = within(builder.build()).await.unwrap();
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    let task = pool.task(same::<u8>, 2).timeout(Duration::MAX);
    assert_eq!(within(task.queue_timeout(Duration::MAX)).await.unwrap(), 2);
    let mapped = pool.map(same::<u8>, 0..9).timeout(Duration::MAX);
    assert_eq!(within(mapped).await.unwrap().len(), 9);
    // A task that does not listen, in a process that would not notice: nothing of all this is waited for.
    let stopped = within(pool.task(spin, 0).timeout(INSTANT)).await.unwrap_err();
    gone(stopped.worker_pid().unwrap());
}

#[tokio::test]
async fn an_element_that_never_ends_costs_itself_alone() {
    let pool = pool(2).await;
    for chunk in [None, Some(1), Some(4), Some(12), Some(100)] {
        let mut map = pool.map(all_but_three, 0..12).timeout(SHORT);
        let mut stream = pool.imap(all_but_three, 0..12).timeout(SHORT);
        if let Some(chunk) = chunk {
            map = map.chunk_size(chunk);
            stream = stream.chunk_size(chunk);
        }
        assert_only_three_is_late(within(map.collect_results()).await, 12);
        assert_only_three_is_late(within(stream.collect()).await, 12);
        assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
    }
    let error = within(pool.map(all_but_three, 0..12).timeout(SHORT))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), RUNNING);
}

#[tokio::test]
async fn an_async_element_that_never_ends_costs_itself_alone() {
    for lanes in [1, 3] {
        let pool = within(quiet(1).tasks_per_worker(lanes).build()).await.unwrap();
        for chunk in [1, 12] {
            let map = pool.asynchronous().map(all_but_three_async, 0..12);
            let results = within(map.timeout(SHORT).chunk_size(chunk).collect_results());
            for (n, result) in (0..12).zip(results.await) {
                match result {
                    Ok(value) => assert_eq!((value, n != 3), (n, true)),
                    Err(error) => assert_eq!((error.kind(), n), (RUNNING, 3), "{error}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn an_element_that_hears_that_its_time_is_up_has_no_value() {
    /// Task: what a well-behaved one does.
    fn listens(n: u32) -> u32 {
        while n == 3 && !worker::cancelled() {
            std::thread::yield_now();
        }
        if n == 3 { 4711 } else { n }
    }
    let pool = within(quiet(1).cancel_grace(Duration::from_secs(20)).build())
        .await
        .unwrap();
    let own = within(pool.apply(pid, ())).await.unwrap();
    for chunk in [1, 3, 4, 12] {
        let map = pool.map(listens, 0..12).timeout(SHORT).chunk_size(chunk);
        let results = within(map.collect_results()).await;
        let kinds: Vec<_> = results
            .into_iter()
            .map(|result| result.map_err(|error| error.kind()))
            .collect();
        let expected: Vec<_> = (0..12)
            .map(|n| if n == 3 { Err(RUNNING) } else { Ok(n) })
            .collect();
        assert_eq!(kinds, expected, "in chunks of {chunk}");
    }
    assert_eq!(
        within(pool.apply(pid, ())).await.unwrap(),
        own,
        "it ended by itself"
    );
}

#[tokio::test]
async fn a_task_that_waits_for_room_can_run_out_of_time() {
    for capacity in [0, 1] {
        let pool = within(quiet(1).queue_capacity(capacity).build()).await.unwrap();
        let file = Scratch::new();
        let (mut shut, argument) = gate();
        let first = pool.apply_async(wait_at, argument);
        let own = shut.entered();
        let waiting: Vec<_> = (0..capacity).map(|_| pool.apply_async(pid, ())).collect();
        let line = || (file.path(), "ran".to_owned());
        let full = within(pool.apply_async(append, line())).await.unwrap_err();
        assert_eq!(full.kind(), TaskErrorKind::QueueFull);
        let waits = pool.task(append, line()).queue_timeout(INSTANT);
        assert_eq!(within(waits).await.unwrap_err().kind(), QUEUED);
        let waits = pool.task(append, line()).deadline(Instant::now() + INSTANT);
        assert_eq!(within(waits).await.unwrap_err().kind(), QUEUED);
        shut.open();
        assert_eq!(within(first).await.unwrap(), own);
        for handle in waiting {
            assert_eq!(within(handle).await.unwrap(), own);
        }
        // Nothing is left of those that gave up.
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
        assert_eq!(file.lines(), [""; 0]);
    }
}

#[tokio::test]
async fn an_async_task_out_of_time_leaves_its_neighbours_alone() {
    async fn stay((gate, _): (Fd, u32)) -> u32 {
        tokio::task::spawn_blocking(|| wait_at(gate)).await.unwrap()
    }
    let pool = within(quiet(1).tasks_per_worker(4).build()).await.unwrap();
    let calls = pool.asynchronous();
    let (mut shut, argument) = gate();
    let neighbour = calls.apply_async(stay, (argument, 0));
    let own = shut.entered();
    for _ in 0..3 {
        let late = calls.task(all_but_three_async, 3).timeout(INSTANT);
        let error = within(late).await.unwrap_err();
        assert_eq!((error.kind(), error.worker_pid()), (RUNNING, Some(own)));
    }
    assert_eq!(within(calls.apply(all_but_three_async, 1)).await.unwrap(), 1);
    shut.open();
    assert_eq!(within(neighbour).await.unwrap(), own);
    assert_eq!(pids(&pool), [own]);
}

#[tokio::test]
async fn a_blocking_task_out_of_time_is_stopped_where_several_run_too() {
    let pool = within(quiet(1).tasks_per_worker(4).build()).await.unwrap();
    let error = within(pool.task(spin, 0).timeout(INSTANT)).await.unwrap_err();
    assert_eq!(error.kind(), RUNNING);
    gone(error.worker_pid().unwrap());
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_worker_that_was_stopped_from_outside_does_not_outlive_its_tasks_time() {
    let pool = pool(1).await;
    let (mut shut, argument) = gate();
    let task = pool
        .task(wait_at, argument)
        .timeout(Duration::from_secs(1))
        .submit();
    let own = shut.entered();
    signal(own, Signal::STOP);
    let error = within(task).await.unwrap_err();
    assert_eq!((error.kind(), error.worker_pid()), (RUNNING, Some(own)));
    gone(own);
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
}

/// Runs a task of no time while nobody reads what workers say, and gives its outcome.
async fn answered_in_time(
    options: impl FnOnce(procession::Task<u32>) -> procession::Task<u32>,
) -> Result<u32, TaskError> {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut shut, argument) = gate();
    let handle = options(pool.task(
        |(gate, path): (Fd, String)| {
            let pid = wait_at(gate);
            append((path, String::new()));
            pid
        },
        (argument, file.path()),
    ))
    .submit();
    shut.entered();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = std::sync::mpsc::channel::<()>();
    // The one thread that drives the pool's connections.
    let blocker = tokio::spawn(async move {
        begun.send(()).unwrap();
        blocked.recv().unwrap_err();
    });
    crate::fuse::receive(&begins);
    shut.open();
    eventually("the task has run", || file.lines().len() == 1);
    eventually("the task has ended", || handle.is_finished());
    drop(release);
    within(blocker).await.unwrap();
    within(handle).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_was_answered_in_time_counts_though_nobody_has_read_it() {
    let time = Duration::from_secs(2);
    answered_in_time(|task| task.timeout(time)).await.unwrap();
    answered_in_time(|task| task.queue_timeout(time)).await.unwrap();
    answered_in_time(|task| task.deadline(Instant::now() + time))
        .await
        .unwrap();
}

#[tokio::test]
async fn times_that_are_not_up_change_nothing() {
    let builder = quiet(2).task_timeout(Duration::from_secs(600));
    let pool = within(builder.task_deadline(Duration::from_secs(600)).build())
        .await
        .unwrap();
    let expected: Vec<u32> = (0..5000).collect();
    assert_eq!(within(pool.map(same::<u32>, 0..5000)).await.unwrap(), expected);
    let single = pool.map(same::<u32>, 0..5000).chunk_size(1);
    assert_eq!(within(single).await.unwrap(), expected);
    assert_eq!(
        pool.workers().iter().map(|worker| worker.restarts).sum::<u64>(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_not_to_have_started_has_not() {
    static MARKS: OnceLock<File> = OnceLock::new();
    /// Initializer: where tasks leave their marks.
    fn open(path: String) -> Result<(), String> {
        let file = File::options().write(true).open(path);
        let file = file.map_err(|error| error.to_string())?;
        MARKS.set(file).map_err(|_| "opened twice".to_owned())
    }
    /// Task: leaves its mark, and is over at once.
    fn mark(number: u64) {
        MARKS.get().unwrap().write_all_at(&[1], number).unwrap();
    }
    let scratch = Scratch::new();
    let marks = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(scratch.path())
        .unwrap();
    let builder = quiet(2).initializer(open, scratch.path());
    let pool = within(builder.build()).await.unwrap();
    let (mut random, mut late) = (0x2545_f491_4f6c_dd1d_u64, 0);
    for round in 0..500 {
        let calls: Vec<_> = (round * 32..(round + 1) * 32)
            .map(|number| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                // About as long as it takes until it is its turn.
                let time = Duration::from_nanos(random % 150_000);
                let task = pool.task(mark, number);
                let task = match random >> 63 {
                    0 => task.queue_timeout(time),
                    _ => task.deadline(Instant::now() + time),
                };
                (number, task.submit())
            })
            .collect();
        for (number, call) in calls {
            match within(call).await.map_err(|error| error.kind()) {
                Err(QUEUED) => {
                    late += 1;
                    let mut mark = [0];
                    // Beyond the last mark there is nothing to read.
                    marks.read_at(&mut mark, number).unwrap();
                    assert_eq!(mark, [0], "task {number}");
                }
                Ok(()) | Err(RUNNING) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(late > 0);
}
