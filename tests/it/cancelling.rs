//! What is cancelled never runs, or is stopped: politely where it listens, the hard way where it does not.

use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::poll;
use futures::stream::StreamExt;
use procession::{Fd, Output, Pool, PoolBuilder, worker};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, gone, pid, pids, pool, same};

/// A grace that nothing here uses up.
const LONG: Duration = Duration::from_secs(25);
const INSTANT: Duration = Duration::from_millis(20);

fn quiet(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .stdout(Output::null())
        .stderr(Output::null())
}

/// Has workers learn that tasks are short, so that they are sent several ahead.
async fn warm_up(pool: &Pool) {
    let handles: Vec<_> = (0..500).map(|n| pool.apply_async(same::<u32>, n)).collect();
    for handle in handles {
        within(handle).await.unwrap();
    }
}

/// Tells the gate's owner where this is.
fn enter(gate: Fd) -> UnixStream {
    let mut gate = UnixStream::from(gate.into_inner());
    gate.write_all(&std::process::id().to_le_bytes()).ok();
    gate
}

/// Task: ends when it is told to, and leaves a line.
fn listens((gate, path): (Fd, String)) {
    let asked = worker::cancelled();
    let _gate = enter(gate);
    while !worker::cancelled() {
        std::thread::yield_now();
    }
    append((path, format!("{asked} {}", worker::cancelled())));
}

async fn listens_async((gate, path): (Fd, String)) {
    let cancellation = worker::cancellation();
    let _gate = enter(gate);
    tokio::select! {
        () = cancellation => append((path, format!("false {}", worker::cancelled()))),
        () = futures::future::pending() => {}
    }
}

/// Task: asks, and does not care.
fn asks_and_goes_on(gate: Fd) {
    let _ = worker::cancelled();
    let _gate = enter(gate);
    loop {
        std::thread::park();
    }
}

/// Task: leaves a line and never ends.
fn stays((path, line): (String, String)) {
    append((path, line));
    loop {
        std::thread::park();
    }
}

/// Task: leaves a line and never ends, if that is its number.
fn all_but((path, number, last): (String, u32, u32)) -> u32 {
    append((path, number.to_string()));
    if number == last {
        loop {
            std::thread::park();
        }
    }
    number
}

#[test]
fn nothing_is_cancelled_outside_of_tasks() {
    assert!(!worker::cancelled());
}

#[tokio::test]
async fn a_task_that_listens_ends_by_itself_and_its_worker_lives_on() {
    let pool = within(quiet(1).cancel_grace(LONG).term_grace(LONG).build())
        .await
        .unwrap();
    for round in 0..6 {
        let file = Scratch::new();
        let (mut shut, argument) = gate();
        let argument = (argument, file.path());
        let is_timed = round >= 4;
        let task = match round % 2 {
            0 => pool.task(listens, argument),
            _ => pool.asynchronous().task(listens_async, argument),
        };
        let task = if is_timed { task.timeout(INSTANT) } else { task };
        let handle = task.submit();
        let own = shut.entered();
        let behind = pool.apply_async(pid, ());
        if is_timed {
            assert!(within(handle).await.unwrap_err().is_timeout());
        } else {
            handle.abort();
            assert!(within(handle).await.unwrap_err().is_cancelled());
        }
        assert_eq!(within(behind).await.unwrap(), own);
        assert_eq!(file.lines(), ["false true"]);
        assert!(!within(pool.apply(|_: ()| worker::cancelled(), ())).await.unwrap());
    }
    assert_eq!(pool.workers()[0].restarts, 0);
}

#[tokio::test]
async fn a_task_that_listens_and_is_out_of_time_is_tried_again_at_the_same_worker() {
    /// Task: ends when its time is up, and at once when that has happened twice.
    fn third_time(path: String) -> u32 {
        let tries = std::fs::read_to_string(&path).unwrap_or_default().lines().count();
        append((path, String::new()));
        while tries < 2 && !worker::cancelled() {
            std::thread::yield_now();
        }
        std::process::id()
    }
    let pool = within(quiet(1).cancel_grace(LONG).build()).await.unwrap();
    // It listens from then on, however late it comes to the task.
    within(pool.apply(|_: ()| worker::cancelled(), ())).await.unwrap();
    let own = within(pool.apply(pid, ())).await.unwrap();
    let file = Scratch::new();
    let task = pool.task(third_time, file.path());
    let task = task.timeout(Duration::from_millis(300)).retries(2);
    assert_eq!(within(task).await.unwrap(), own);
    assert_eq!(file.lines().len(), 3);
}

#[tokio::test]
async fn a_task_that_asks_and_does_not_end_is_stopped_with_its_worker() {
    let pool = within(quiet(1).cancel_grace(INSTANT).build()).await.unwrap();
    let (mut shut, argument) = gate();
    let handle = pool.apply_async(asks_and_goes_on, argument);
    let own = shut.entered();
    let behind = pool.apply_async(pid, ());
    handle.abort();
    assert!(within(handle).await.unwrap_err().is_cancelled());
    shut.abandoned();
    gone(own);
    assert_ne!(within(behind).await.unwrap(), own);
}

#[tokio::test]
async fn without_a_grace_nobody_is_asked() {
    let pool = within(quiet(1).cancel_grace(Duration::ZERO).build())
        .await
        .unwrap();
    let file = Scratch::new();
    let (mut shut, argument) = gate();
    let handle = pool.apply_async(asks_and_goes_on, argument);
    let own = shut.entered();
    handle.abort();
    gone(own);
    assert_eq!(file.lines(), [""; 0]);
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_task_with_a_handler_for_sigterm_has_time_for_it() {
    async fn handles_the_signal((gate, path): (Fd, String)) {
        let kind = tokio::signal::unix::SignalKind::terminate();
        let mut signals = tokio::signal::unix::signal(kind).unwrap();
        let _gate = enter(gate);
        signals.recv().await;
        append((path, "cleared up".to_owned()));
        std::process::exit(7);
    }
    let statuses = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&statuses);
    let builder = quiet(1)
        .term_grace(LONG)
        .on_worker_exit(move |event| seen.lock().unwrap().push(event.status.unwrap().code()));
    let pool = within(builder.build()).await.unwrap();
    let file = Scratch::new();
    let (mut shut, argument) = gate();
    let handle = pool
        .asynchronous()
        .apply_async(handles_the_signal, (argument, file.path()));
    let own = shut.entered();
    handle.abort();
    // Another is there while the first has its time.
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), own);
    gone(own);
    assert_eq!(file.lines(), ["cleared up"]);
    eventually("the end is told", || *statuses.lock().unwrap() == [Some(7)]);
}

#[tokio::test]
async fn a_task_that_ignores_sigterm_is_killed() {
    async fn ignores_the_signal(gate: Fd) {
        let kind = tokio::signal::unix::SignalKind::terminate();
        let mut signals = tokio::signal::unix::signal(kind).unwrap();
        let mut gate = enter(gate);
        loop {
            signals.recv().await;
            gate.write_all(&[0; 4]).ok();
        }
    }
    let statuses = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&statuses);
    let builder = quiet(1)
        // So long that it hears the signal in time on a machine that is busy.
        .term_grace(Duration::from_secs(1))
        .on_worker_exit(move |event| seen.lock().unwrap().push(event.status.unwrap().signal()));
    let pool = within(builder.build()).await.unwrap();
    let (mut shut, argument) = gate();
    let handle = pool.asynchronous().apply_async(ignores_the_signal, argument);
    let own = shut.entered();
    handle.abort();
    assert!(within(handle).await.unwrap_err().is_cancelled());
    gone(own);
    eventually("the end is told", || *statuses.lock().unwrap() == [Some(9)]);
    // It had been asked.
    assert_eq!(shut.entered(), 0);
}

#[tokio::test]
async fn what_a_task_has_started_gets_a_sigterm_before_it_is_killed() {
    const SCRIPT: &str = "trap 'echo bye >> \"$1\"; exit' TERM; echo ready >> \"$1\"; sleep 1000 & wait";
    let pool = within(quiet(1).term_grace(Duration::from_secs(2)).build())
        .await
        .unwrap();
    let file = Scratch::new();
    let script = |path: String| {
        let status = Command::new("sh").args(["-c", SCRIPT, "sh"]).arg(path).status();
        status.is_ok()
    };
    let own = within(pool.apply(pid, ())).await.unwrap();
    let handle = pool.apply_async(script, file.path());
    eventually("the script runs", || file.lines() == ["ready"]);
    handle.abort();
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), own);
    gone(own);
    assert_eq!(file.lines(), ["ready", "bye"]);
}

#[tokio::test]
async fn what_is_cancelled_before_its_start_never_runs() {
    for is_warm in [false, true] {
        let pool = pool(1).await;
        if is_warm {
            warm_up(&pool).await;
        }
        let file = Scratch::new();
        let line = || (file.path(), "ran".to_owned());
        let (mut shut, argument) = gate();
        let first = pool.apply_async(wait_at, argument);
        let own = shut.entered();

        let unharmed: Vec<_> = (0..10).map(|n| pool.apply_async(same::<u32>, n)).collect();
        let aborted: Vec<_> = (0..10).map(|_| pool.apply_async(append, line())).collect();
        let also_unharmed: Vec<_> = (10..20).map(|n| pool.apply_async(same::<u32>, n)).collect();
        for _ in 0..3 {
            let mut dropped = Box::pin(pool.apply(append, line()));
            assert!(poll!(&mut dropped).is_pending());
            let mut dropped = Box::pin(pool.task(append, line()).into_future());
            assert!(poll!(&mut dropped).is_pending());
        }
        let mut stream = pool.imap(append, (0..100).map(|_| line()));
        assert!(poll!(stream.next()).is_pending());
        drop(stream);
        let mut stream = pool
            .imap_unordered(append, (0..100).map(|_| line()))
            .chunk_size(7);
        assert!(poll!(stream.next()).is_pending());
        drop(stream);
        let mut map = Box::pin(pool.map(append, (0..100).map(|_| line())).into_future());
        assert!(poll!(&mut map).is_pending());
        drop(map);
        let map = pool.map_async(append, (0..100).map(|_| line()));
        map.abort();
        for handle in &aborted {
            handle.abort();
            // A second time changes nothing.
            handle.abort();
        }

        shut.open();
        assert_eq!(within(first).await.unwrap(), own);
        for (n, handle) in (0..20).zip(unharmed.into_iter().chain(also_unharmed)) {
            assert_eq!(within(handle).await.unwrap(), n);
        }
        assert!(within(map).await.unwrap_err().is_cancelled());
        for handle in aborted {
            assert!(within(handle).await.unwrap_err().is_cancelled());
        }
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
        assert_eq!(file.lines(), [""; 0]);
    }
}

#[tokio::test]
async fn tasks_behind_one_that_is_cancelled_are_unharmed() {
    for is_warm in [false, true] {
        let pool = pool(1).await;
        if is_warm {
            warm_up(&pool).await;
        }
        let file = Scratch::new();
        let (mut shut, argument) = gate();
        let running = pool.apply_async(wait_at, argument);
        let own = shut.entered();
        let behind: Vec<_> = (0..50)
            .map(|n| pool.apply_async(append, (file.path(), n.to_string())))
            .collect();
        running.abort();
        assert!(within(running).await.unwrap_err().is_cancelled());
        for handle in behind {
            within(handle).await.unwrap();
        }
        let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        assert_eq!(file.lines(), expected, "each once and in order");
        gone(own);
    }
}

#[tokio::test]
async fn what_runs_for_nobody_is_stopped() {
    let pool = pool(2).await;
    let file = Scratch::new();
    let argument = || (file.path(), "running".to_owned());
    let stopped = |before: Vec<u32>| before.into_iter().for_each(gone);

    let before = pids(&pool);
    let mut stream = pool.imap(stays, (0..10).map(|_| argument()));
    assert!(poll!(stream.next()).is_pending());
    eventually("both run", || file.lines().len() == 2);
    drop(stream);
    stopped(before);

    eventually("two workers", || pids(&pool).len() == 2);
    let before = pids(&pool);
    let mut map = Box::pin(pool.map(stays, (0..10).map(|_| argument())).into_future());
    assert!(poll!(&mut map).is_pending());
    eventually("both run", || file.lines().len() == 4);
    drop(map);
    stopped(before);

    eventually("two workers", || pids(&pool).len() == 2);
    let before = pids(&pool);
    let mut calls: Vec<_> = (0..2).map(|_| Box::pin(pool.apply(stays, argument()))).collect();
    for call in &mut calls {
        assert!(poll!(call).is_pending());
    }
    eventually("both run", || file.lines().len() == 6);
    drop(calls);
    stopped(before);
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    assert_eq!(file.lines().len(), 6);
}

#[tokio::test]
async fn a_map_that_has_failed_stops_what_is_left_of_it() {
    /// Task: 0 fails when 1 runs, which never ends.
    fn fails((path, number): (String, u32)) {
        match number {
            0 => {
                eventually("1 runs", || std::fs::exists(&path).unwrap());
                panic!("no more");
            }
            1 => stays((path, std::process::id().to_string())),
            _ => append((path, "ran".to_owned())),
        }
    }
    let pool = pool(2).await;
    let file = Scratch::new();
    let input = (0..10_000).map(|n| (file.path(), n));
    let error = within(pool.map(fails, input).chunk_size(1)).await.unwrap_err();
    assert!(error.is_panic(), "{error}");
    gone(file.lines()[0].parse().unwrap());
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    pool.close();
    within(pool.join()).await.unwrap();
    // What was at the worker already, at most.
    assert!(file.lines().len() < 1000, "{}", file.lines().len());
}

#[tokio::test]
async fn a_cancelled_chunk_of_short_elements_does_not_cost_its_worker() {
    fn short((path, number): (String, u32)) {
        // Asked, so that a busy machine has time enough to get to the next element.
        let _ = worker::cancelled();
        if number < 2 {
            append((path, number.to_string()));
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(100) {
            std::hint::spin_loop();
        }
    }
    let pool = within(quiet(1).cancel_grace(LONG).build()).await.unwrap();
    let own = within(pool.apply(pid, ())).await.unwrap();
    let file = Scratch::new();
    for round in 1..=3 {
        let input: Vec<_> = (0..300_000).map(|n| (file.path(), n)).collect();
        let mut map = Box::pin(pool.map(short, input).chunk_size(300_000).into_future());
        assert!(poll!(&mut map).is_pending());
        eventually("the chunk runs", || file.lines().len() == 2 * round);
        drop(map);
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
    }
}

#[tokio::test]
async fn an_element_of_a_cancelled_chunk_that_never_ends_is_stopped() {
    let pool = pool(1).await;
    let own = within(pool.apply(pid, ())).await.unwrap();
    let file = Scratch::new();
    let input: Vec<_> = (0..20).map(|n| (file.path(), n, 5)).collect();
    let mut map = Box::pin(pool.map(all_but, input).chunk_size(20).into_future());
    assert!(poll!(&mut map).is_pending());
    eventually("the fifth runs", || file.lines().len() == 6);
    drop(map);
    gone(own);
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), own);
    assert_eq!(file.lines().len(), 6);
}

#[tokio::test]
async fn what_was_answered_is_not_taken_back() {
    let pool = pool(1).await;
    let handle = pool.apply_async(same::<u32>, 1);
    eventually("it has ended", || handle.is_finished());
    handle.abort();
    assert_eq!(within(handle).await.unwrap(), 1);
}

/// A sequence of numbers that looks random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Task: leaves its number, takes up to 2 ms, and gives its number.
fn take_time((path, number, micros, is_polite): (String, u32, u64, bool)) -> u32 {
    append((path, number.to_string()));
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(micros) {
        if is_polite && worker::cancelled() {
            break;
        }
    }
    number
}

/// Cancels tasks at any time: each must end once, and those that were cancelled before they could start never run.
async fn cancel_at_random(pool: Pool, count: u32, is_polite: bool, seed: u64) {
    let file = Scratch::new();
    let mut numbers = Numbers(seed);
    let ends = Arc::new(AtomicUsize::new(0));
    let task = |number: u32, micros: u64| {
        let (on_value, on_error) = (Arc::clone(&ends), Arc::clone(&ends));
        pool.task(take_time, (file.path(), number, micros, is_polite))
            .callback(move |_| {
                on_value.fetch_add(1, Ordering::Relaxed);
            })
            .error_callback(move |_| {
                on_error.fetch_add(1, Ordering::Relaxed);
            })
            .submit()
    };

    // No worker is free, and none becomes so before they are cancelled.
    let mut gates = Vec::new();
    for _ in 0..2 {
        let (mut shut, argument) = gate();
        let handle = pool.apply_async(wait_at, argument);
        shut.entered();
        gates.push((shut, handle));
    }
    let mut handles: Vec<_> = (0..count / 4).map(|n| task(n, numbers.next() % 2000)).collect();
    let mut never = HashSet::new();
    for (number, handle) in (0..).zip(&handles) {
        if !numbers.next().is_multiple_of(4) {
            handle.abort();
            never.insert(number);
        }
    }
    for (shut, handle) in gates {
        shut.open();
        within(handle).await.unwrap();
    }

    let mut aborted = never.clone();
    for number in count / 4..count {
        handles.push(task(number, numbers.next() % 2000));
        if numbers.next().is_multiple_of(2) {
            // One of the last, which runs, waits at a worker, in the queue, or has ended.
            let back = numbers.next() as usize % 40;
            if let Some(chosen) = handles.len().checked_sub(1 + back) {
                handles[chosen].abort();
                aborted.insert(chosen as u32);
            }
        }
        if number % 16 == 0 {
            within(pool.task(same::<u32>, number).priority(-1)).await.unwrap();
        }
    }
    let mut values = HashSet::new();
    for (number, handle) in (0..).zip(handles) {
        match within(handle).await {
            Ok(value) => {
                assert_eq!(value, number);
                values.insert(number);
            }
            Err(error) => {
                assert!(error.is_cancelled(), "{error}");
                assert!(aborted.contains(&number), "nobody cancelled {number}");
            }
        }
    }
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(ends.load(Ordering::Relaxed), count as usize, "each ends once");
    let ran: Vec<u32> = file.lines().iter().map(|line| line.parse().unwrap()).collect();
    let each: HashSet<u32> = ran.iter().copied().collect();
    assert_eq!(each.len(), ran.len(), "none runs twice");
    assert!(values.is_subset(&each), "what has a value has run");
    assert!(never.is_disjoint(&each), "what was cancelled in time has not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tasks_cancelled_at_random_end_once_each() {
    let pool = within(quiet(2).cancel_grace(LONG).build()).await.unwrap();
    cancel_at_random(pool, 10_000, true, 0x9e37_79b9_7f4a_7c15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_cancelled_at_random_that_cost_their_workers_end_once_each() {
    cancel_at_random(pool(2).await, 1000, false, 0x2545_f491_4f6c_dd1d).await;
}
