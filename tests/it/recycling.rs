//! Workers that are replaced on purpose, and pools that grow and shrink.

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use procession::{BuildError, Output, Pool, PoolBuilder, TaskErrorKind};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, children, exists, gone, pid, pids, same};

const SHORT: Duration = Duration::from_millis(100);

fn quiet(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .stdout(Output::null())
        .stderr(Output::null())
}

fn between(least: usize, most: usize) -> PoolBuilder {
    quiet(1).workers_between(least, most).idle_timeout(SHORT)
}

/// Task: says when it begins and when it ends.
fn begin_and_end(path: String) -> u32 {
    append((path.clone(), "+".to_owned()));
    std::thread::yield_now();
    append((path, "-".to_owned()));
    std::process::id()
}

/// How many ran at a time at most, by what they said.
fn most_at_a_time(file: &Scratch) -> usize {
    let (mut running, mut most) = (0, 0);
    for line in file.lines() {
        match line.as_str() {
            "+" => running += 1,
            _ => running -= 1,
        }
        most = most.max(running);
    }
    assert_eq!(running, 0);
    most
}

/// Initializer: fails from the start `from` on, for as long as there is no file beside that of the starts.
fn fails_from((path, from): (String, usize)) -> Result<(), String> {
    let starts = std::fs::read_to_string(&path).unwrap_or_default().lines().count();
    append((path.clone(), "start".to_owned()));
    if starts >= from && !std::fs::exists(format!("{path}.allowed")).unwrap() {
        return Err("not now".to_owned());
    }
    Ok(())
}

/// Lets starts succeed again, until it is dropped.
struct Allowed(String);

impl Allowed {
    fn new(file: &Scratch) -> Self {
        let path = format!("{}.allowed", file.path());
        std::fs::write(&path, "").unwrap();
        Self(path)
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[tokio::test]
async fn a_worker_runs_as_many_tasks_as_it_may() {
    for limit in 1..=4 {
        let pool = within(quiet(1).max_tasks_per_worker(limit as u64).build())
            .await
            .unwrap();
        // One after the other, all at once, and as a map.
        let mut pids = Vec::new();
        for _ in 0..2 * limit {
            pids.push(within(pool.apply(pid, ())).await.unwrap());
        }
        let handles: Vec<_> = (0..3 * limit).map(|_| pool.apply_async(pid, ())).collect();
        for handle in handles {
            pids.push(within(handle).await.unwrap());
        }
        pids.extend(
            within(pool.map(pid, 0..3 * limit as u32).chunk_size(1))
                .await
                .unwrap(),
        );
        let lives: Vec<&[u32]> = pids.chunks(limit).collect();
        let each: HashSet<u32> = lives.iter().map(|life| life[0]).collect();
        assert_eq!(each.len(), 8);
        for life in lives {
            assert!(life.iter().all(|pid| *pid == life[0]), "{limit}: {pids:?}");
        }
    }
}

#[tokio::test]
async fn a_failed_task_counts_and_a_cancelled_one_that_never_ran_does_not() {
    let pool = within(quiet(1).max_tasks_per_worker(3).build()).await.unwrap();
    let first = within(pool.apply(pid, ())).await.unwrap();
    assert!(
        within(pool.apply(|_: ()| -> () { panic!("counts") }, ()))
            .await
            .is_err()
    );
    let (mut shut, argument) = gate();
    let third = pool.apply_async(wait_at, argument);
    assert_eq!(shut.entered(), first);
    let cancelled = pool.apply_async(pid, ());
    cancelled.abort();
    shut.open();
    assert_eq!(within(third).await.unwrap(), first);
    let next: HashSet<u32> = within(pool.map(pid, 0..3).chunk_size(1))
        .await
        .unwrap()
        .into_iter()
        .collect();
    assert!(next.len() == 1 && !next.contains(&first));
}

#[tokio::test]
async fn a_chunk_is_run_whole_and_counts_as_its_elements() {
    let pool = within(quiet(1).max_tasks_per_worker(5).build()).await.unwrap();
    let pids = within(pool.map(pid, 0..32).chunk_size(8)).await.unwrap();
    let chunks: Vec<&[u32]> = pids.chunks(8).collect();
    let each: HashSet<u32> = chunks.iter().map(|chunk| chunk[0]).collect();
    assert_eq!(each.len(), 4, "{pids:?}");
    for chunk in chunks {
        assert!(chunk.iter().all(|pid| *pid == chunk[0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pool_that_replaces_its_workers_stalls_or_leaves_one() {
    let mut step = 0;
    for workers in 1..=4 {
        for limit in [1, 2, 5] {
            for tasks in [0, 1, 6, 20] {
                step += 1;
                let pool = within(quiet(workers).max_tasks_per_worker(limit).build())
                    .await
                    .unwrap();
                let before = pids(&pool);
                let handles: Vec<_> = (0..tasks).map(|n| pool.apply_async(same::<u32>, n)).collect();
                let context = format!("{workers} workers, {limit} tasks each, {tasks} tasks, step {step}");
                let mut done = 0;
                match step % 4 {
                    0 => pool.close(),
                    1 => pool.terminate(),
                    2 => {
                        // In the middle of it.
                        if let Some(handle) = handles.get(handles.len() / 2) {
                            eventually(&context, || handle.is_finished());
                        }
                        pool.terminate();
                    }
                    _ => {}
                }
                for (n, handle) in (0..).zip(handles) {
                    match within(handle).await {
                        Ok(value) => {
                            assert_eq!(value, n);
                            done += 1;
                        }
                        Err(error) => assert_eq!(error.kind(), TaskErrorKind::PoolClosed, "{context}"),
                    }
                }
                if step % 4 == 0 || step % 4 == 3 {
                    assert_eq!(done, tasks, "{context}");
                }
                if step % 4 == 3 {
                    drop(pool);
                } else {
                    within(pool.join()).await.unwrap();
                }
                before.into_iter().for_each(gone);
            }
        }
    }
}

#[tokio::test]
async fn the_replacement_is_up_before_the_old_worker_goes() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let (starts, exits) = (Arc::clone(&events), Arc::clone(&events));
    let builder = quiet(1)
        .max_tasks_per_worker(3)
        .on_worker_start(move |event| starts.lock().unwrap().push((true, event.pid, event.worker)))
        .on_worker_exit(move |event| exits.lock().unwrap().push((false, event.pid, event.worker)));
    let pool = within(builder.build()).await.unwrap();
    let own = within(pool.apply(pid, ())).await.unwrap();
    within(pool.apply(pid, ())).await.unwrap();
    let (mut shut, argument) = gate();
    let last = pool.apply_async(wait_at, argument);
    assert_eq!(shut.entered(), own);
    eventually("another has started", || events.lock().unwrap().len() == 2);
    let next = events.lock().unwrap()[1].1;
    assert!(exists(own) && exists(next));
    assert_eq!(pids(&pool), [own], "the one that works");
    shut.open();
    assert_eq!(within(last).await.unwrap(), own);
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), next);
    gone(own);
    eventually("its end is told", || events.lock().unwrap().len() >= 3);
    let events = events.lock().unwrap().clone();
    assert_eq!(events[..3], [(true, own, 0), (true, next, 0), (false, own, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_do_more_tasks_run_than_there_are_workers() {
    for (workers, limit) in [(1, 1), (1, 2), (2, 3), (3, 2)] {
        let file = Scratch::new();
        let pool = within(quiet(workers).max_tasks_per_worker(limit).build())
            .await
            .unwrap();
        let handles: Vec<_> = (0..30)
            .map(|_| pool.apply_async(begin_and_end, file.path()))
            .collect();
        let mut pids = HashSet::new();
        for handle in handles {
            pids.insert(within(handle).await.unwrap());
        }
        assert!(most_at_a_time(&file) <= workers);
        assert!(
            pids.len() as u64 >= 30 / limit,
            "{} for a limit of {limit}",
            pids.len()
        );
    }
}

#[tokio::test]
async fn a_worker_that_keeps_too_much_memory_is_replaced() {
    fn leak(mebibytes: usize) -> u32 {
        let bytes = vec![1_u8; mebibytes << 20];
        black_box(Box::leak(bytes.into_boxed_slice()));
        std::process::id()
    }
    let pool = within(quiet(1).max_worker_memory(300 << 20).build())
        .await
        .unwrap();
    let own = within(pool.apply(pid, ())).await.unwrap();
    for n in 0..100 {
        assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
    }
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
    // What is given back in time does not count.
    let take = |mebibytes: usize| black_box(vec![1_u8; mebibytes << 20]).len();
    within(pool.apply(take, 400)).await.unwrap();
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
    let mut seen = vec![own];
    for _ in 0..40 {
        let pid = within(pool.apply(leak, 60)).await.unwrap();
        if !seen.contains(&pid) {
            seen.push(pid);
        }
        if seen.len() == 3 {
            break;
        }
    }
    assert_eq!(seen.len(), 3, "it is replaced each time");
    gone(own);
}

#[tokio::test]
async fn a_worker_that_is_old_is_replaced_busy_or_not() {
    let pool = within(quiet(2).max_worker_age(SHORT).build()).await.unwrap();
    let before = pids(&pool);
    before.into_iter().for_each(gone);
    let mut seen = HashSet::new();
    within(async {
        while seen.len() < 6 {
            seen.insert(within(pool.apply(pid, ())).await.unwrap());
        }
    })
    .await;
    // One that runs a task ends it first.
    let (mut shut, argument) = gate();
    let long = pool.apply_async(wait_at, argument);
    let own = shut.entered();
    let other = within(pool.apply(pid, ())).await.unwrap();
    gone(other);
    shut.open();
    assert_eq!(within(long).await.unwrap(), own);
    gone(own);
}

#[tokio::test]
async fn a_pool_grows_with_its_tasks_and_shrinks_without() {
    let pool = within(between(1, 3).build()).await.unwrap();
    let first = pids(&pool);
    assert_eq!(first.len(), 1);
    for _ in 0..2 {
        let mut gates: Vec<_> = (0..3)
            .map(|_| {
                let (shut, argument) = gate();
                (shut, pool.apply_async(wait_at, argument))
            })
            .collect();
        let at_gates: HashSet<u32> = gates.iter_mut().map(|(shut, _)| shut.entered()).collect();
        assert_eq!(at_gates.len(), 3);
        let (mut fourth, argument) = gate();
        let waits = pool.apply_async(wait_at, argument);
        assert_eq!(pids(&pool).len(), 3);
        let mut done = HashSet::new();
        for (shut, handle) in gates {
            shut.open();
            done.insert(within(handle).await.unwrap());
        }
        assert_eq!(done, at_gates);
        assert!(at_gates.contains(&fourth.entered()), "there are three at most");
        fourth.open();
        within(waits).await.unwrap();
        eventually("one is left", || pids(&pool).len() == 1);
        eventually("the others are gone", || {
            at_gates.iter().filter(|&&pid| exists(pid)).count() <= 1
        });
        assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
    }
    pool.close();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_pool_without_work_may_have_no_workers() {
    let pool = within(between(0, 2).build()).await.unwrap();
    assert_eq!(pids(&pool), [0; 0]);
    for _ in 0..3 {
        let own = within(pool.apply(pid, ())).await.unwrap();
        assert_eq!(within(pool.map(same::<u32>, 0..100)).await.unwrap().len(), 100);
        gone(own);
        eventually("none is left", || pids(&pool).is_empty());
    }
    // One that is lost with its task is not missed.
    let lost = within(pool.apply(|_: ()| -> () { std::process::abort() }, ())).await;
    assert!(lost.unwrap_err().is_worker_lost());
    eventually("none is left", || pids(&pool).is_empty());
    pool.close();
    within(pool.join()).await.unwrap();
    // Closed with work that nobody is there for.
    let pool = within(between(0, 2).build()).await.unwrap();
    let handles: Vec<_> = (0..10).map(|n| pool.apply_async(same::<u32>, n)).collect();
    pool.close();
    for (n, handle) in (0..10).zip(handles) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_grows_takes_tasks_where_none_may_wait() {
    let pool = within(between(0, 2).queue_capacity(0).build()).await.unwrap();
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
    let (mut first, argument) = gate();
    let one = pool.apply_async(wait_at, argument);
    let (mut second, argument) = gate();
    let two = pool.apply_async(wait_at, argument);
    assert_ne!(first.entered(), second.entered());
    let full = within(pool.apply_async(same::<u32>, 1)).await.unwrap_err();
    assert_eq!(full.kind(), TaskErrorKind::QueueFull);
    first.open();
    second.open();
    within(one).await.unwrap();
    within(two).await.unwrap();
}

#[tokio::test]
async fn options_without_a_meaning_are_refused_by_name() {
    for (builder, name) in [
        (quiet(1).max_tasks_per_worker(0), "max_tasks_per_worker"),
        (quiet(1).max_worker_memory(0), "max_worker_memory"),
        (quiet(1).max_worker_age(Duration::ZERO), "max_worker_age"),
        (quiet(1).idle_timeout(Duration::ZERO), "idle_timeout"),
        (quiet(1).workers_between(3, 2), "workers_between"),
        (quiet(1).workers_between(0, 0), "workers"),
        (quiet(1).workers_between(1, 5000), "workers"),
    ] {
        match within(builder.build()).await {
            Err(BuildError::InvalidOption { option, .. }) => assert_eq!(option, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_initializer_runs_in_every_replacement() {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let initialize = |path: String| {
        STARTS.fetch_add(1, Ordering::Relaxed);
        append((path, std::process::id().to_string()));
    };
    let file = Scratch::new();
    let builder = quiet(1)
        .max_tasks_per_worker(1)
        .initializer(initialize, file.path());
    let pool = within(builder.build()).await.unwrap();
    for _ in 0..5 {
        let (pid, starts) =
            within(pool.apply(|_: ()| (std::process::id(), STARTS.load(Ordering::Relaxed)), ()))
                .await
                .unwrap();
        assert_eq!(starts, 1);
        assert_eq!(
            file.lines()
                .iter()
                .filter(|&line| *line == pid.to_string())
                .count(),
            1
        );
    }
}

#[tokio::test]
async fn a_pool_without_workers_refuses_tasks_until_one_starts() {
    let file = Scratch::new();
    // Every task takes a worker, and there are two.
    let builder = quiet(1)
        .max_tasks_per_worker(1)
        .initializer(fails_from, (file.path(), 2));
    let pool = within(builder.build()).await.unwrap();
    for n in 0..2 {
        assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
    }
    for _ in 0..3 {
        let error = within(pool.apply(same::<u32>, 1)).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}");
    }
    assert!(pool.is_open());
    let allowed = Allowed::new(&file);
    within(async {
        loop {
            match pool.apply(same::<u32>, 1).await {
                Ok(value) => break assert_eq!(value, 1),
                Err(error) => assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let each: HashSet<u32> = within(pool.map(pid, 0..5).chunk_size(1))
        .await
        .unwrap()
        .into_iter()
        .collect();
    assert_eq!(each.len(), 5);
    // And a second time.
    drop(allowed);
    within(async { while pool.apply(same::<u32>, 1).await.is_ok() {} }).await;
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(
        within(pool.apply(same::<u32>, 1)).await.unwrap_err().kind(),
        TaskErrorKind::PoolClosed
    );
}

#[tokio::test]
async fn a_pool_of_no_workers_that_cannot_start_any_says_so_and_recovers() {
    let file = Scratch::new();
    let pool = within(between(0, 2).initializer(fails_from, (file.path(), 0)).build())
        .await
        .unwrap();
    let handles: Vec<_> = (0..5).map(|n| pool.apply_async(same::<u32>, n)).collect();
    for handle in handles {
        assert_eq!(
            within(handle).await.unwrap_err().kind(),
            TaskErrorKind::PoolFailed
        );
    }
    let _allowed = Allowed::new(&file);
    within(async {
        while let Err(error) = pool.apply(same::<u32>, 1).await {
            assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}");
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(within(pool.map(same::<u32>, 0..100)).await.unwrap().len(), 100);
}

#[tokio::test]
async fn a_worker_goes_on_while_its_replacement_cannot_start() {
    let file = Scratch::new();
    // It is too large from its first task on.
    let builder = quiet(1)
        .max_worker_memory(1)
        .initializer(fails_from, (file.path(), 1));
    let pool = within(builder.build()).await.unwrap();
    let own = within(pool.apply(pid, ())).await.unwrap();
    eventually("some starts fail", || file.lines().len() > 6);
    for _ in 0..50 {
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
    }
    let _allowed = Allowed::new(&file);
    gone(own);
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), own);
}

#[tokio::test]
async fn a_worker_goes_on_while_another_cannot_start() {
    let file = Scratch::new();
    let pool = within(quiet(2).initializer(fails_from, (file.path(), 2)).build())
        .await
        .unwrap();
    within(pool.apply(|_: ()| -> () { std::process::abort() }, ()))
        .await
        .unwrap_err();
    eventually("some starts fail", || file.lines().len() > 8);
    let each: HashSet<u32> = within(pool.map(pid, 0..50)).await.unwrap().into_iter().collect();
    assert_eq!(each.len(), 1);
    let _allowed = Allowed::new(&file);
    eventually("two workers", || pids(&pool).len() == 2);
    let (mut first, argument) = gate();
    let one = pool.apply_async(wait_at, argument);
    let (mut second, argument) = gate();
    let two = pool.apply_async(wait_at, argument);
    assert_ne!(first.entered(), second.entered());
    first.open();
    second.open();
    within(one).await.unwrap();
    within(two).await.unwrap();
}

#[tokio::test]
async fn recycling_with_limits_of_every_kind_loses_nothing() {
    let builder = between(1, 4)
        .max_tasks_per_worker(7)
        .max_worker_age(SHORT)
        .max_worker_memory(1);
    let pool = within(builder.build()).await.unwrap();
    for _ in 0..5 {
        let values = within(pool.map(same::<u32>, 0..60).chunk_size(1)).await.unwrap();
        assert_eq!(values, (0..60).collect::<Vec<_>>());
    }
    let before = pids(&pool);
    pool.close();
    within(pool.join()).await.unwrap();
    assert!(before.iter().all(|pid| !children().contains(pid)));
}
