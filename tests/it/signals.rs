//! Signals without a terminal: what workers start with, storms of them, and the helper that drains. `main_fn` has the
//! terminal.

use std::ffi::c_int;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use bytes::Bytes;
use futures::FutureExt;
use procession::signals::{self, Interrupt, Interrupts};
use procession::{Pool, TaskErrorKind};
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::SignalKind;

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::host::through;
use crate::scene::{alone, children, gone, pids, pool, runtime, same, signal};

/// A line of the status of this process: a set of signals.
fn signals_of_status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

/// Task: the signals that are blocked, and those that are ignored.
fn blocked_and_ignored(_: ()) -> (u64, u64) {
    (signals_of_status("SigBlk:"), signals_of_status("SigIgn:"))
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

#[test]
fn workers_do_not_inherit_what_the_program_ignores_or_blocks() {
    let name = "signals::workers_do_not_inherit_what_the_program_ignores_or_blocks";
    let commands: [&[&str]; 3] = [
        &["env"],
        &["env", "--ignore-signal"],
        &[
            "env",
            "--ignore-signal=INT,TERM,HUP,CHLD",
            "--block-signal=TERM,CHLD,USR1",
        ],
    ];
    through(&commands, name, async || {
        let pool = pool(1).await;
        let (blocked, ignored) = within(pool.apply(blocked_and_ignored, ())).await.unwrap();
        assert_eq!(blocked, 0);
        // Rust ignores the one for itself; the others would stop a task for using the terminal.
        let terminal = bit(Signal::TTIN) | bit(Signal::TTOU);
        // Two more the C library keeps to itself.
        let kept = bit(Signal::PIPE) | 3 << 31;
        assert_eq!(ignored & !kept, terminal, "{ignored:x}");

        // A task hears how its own children end,
        let run = |_: ()| {
            let status = Command::new("sh").args(["-c", "exit 3"]).status();
            status.unwrap().code()
        };
        assert_eq!(within(pool.apply(run, ())).await.unwrap(), Some(3));
        // and its worker dies of what should end it.
        let worker = pids(&pool)[0];
        let (mut gate, argument) = gate();
        let task = pool.apply_async(wait_at, argument);
        gate.entered();
        signal(worker, Signal::TERM);
        let lost = within(task).await.unwrap_err();
        assert_eq!(lost.kind(), TaskErrorKind::WorkerLost);
        gone(worker);
    });
}

#[tokio::test]
async fn a_worker_that_dies_of_a_signal_is_lost_with_its_number_and_name() {
    let pool = pool(1).await;
    let die = |number: i32| {
        let signal = Signal::from_named_raw(number).unwrap();
        kill_process(getpid(), signal).unwrap();
        // The signal may go to another thread.
        loop {
            thread::park();
        }
    };
    for (deadly, name) in [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::KILL, "SIGKILL"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::SYS, "SIGSYS"),
    ] {
        let lost = within(pool.apply::<_, _, ()>(die, deadly.as_raw()))
            .await
            .unwrap_err();
        assert_eq!(lost.kind(), TaskErrorKind::WorkerLost);
        let status = lost.exit_status().unwrap();
        assert_eq!(status.signal(), Some(deadly.as_raw()));
        assert!(lost.to_string().contains(name), "{lost}");
    }
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_task_may_handle_signals() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    let handle = async |_: ()| {
        drop(tokio::signal::unix::signal(SignalKind::terminate()).unwrap());
        drop(tokio::signal::unix::signal(SignalKind::child()).unwrap());
        drop(tokio::signal::unix::signal(SignalKind::pipe()).unwrap());
    };
    within(pool.asynchronous().apply(handle, ())).await.unwrap();
    for round in 0..10 {
        for caught in [Signal::TERM, Signal::CHILD, Signal::PIPE] {
            signal(worker, caught);
        }
        assert_eq!(within(pool.apply(same::<u32>, round)).await.unwrap(), round);
    }
    assert_eq!(pids(&pool), [worker]);
    pool.terminate();
    within(pool.join()).await.unwrap();
    gone(worker);
}

#[expect(
    unsafe_code,
    reason = "tokio has interrupted calls resumed where that is possible"
)]
pub(crate) fn interrupt_calls() {
    unsafe extern "C" {
        safe fn siginterrupt(signal: c_int, interrupt: c_int) -> c_int;
    }
    drop(tokio::signal::unix::signal(SignalKind::user_defined1()).unwrap());
    assert_eq!(siginterrupt(Signal::USR1.as_raw(), 1), 0);
}

#[test]
fn a_storm_of_signals_harms_no_transfer() {
    static CALM: AtomicBool = AtomicBool::new(false);
    static GUSTS: AtomicU32 = AtomicU32::new(0);
    alone("signals::a_storm_of_signals_harms_no_transfer", || {
        runtime().block_on(async {
            interrupt_calls();
            let pool = pool(2).await;
            for _ in 0..pool.workers().len() {
                within(pool.asynchronous().apply(async |_: ()| interrupt_calls(), ()))
                    .await
                    .unwrap();
            }
            // Only who handles it may have it.
            let workers = pids(&pool);
            let handling = |pid: &&u32| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                let caught = status
                    .lines()
                    .find_map(|line| line.strip_prefix("SigCgt:"))
                    .unwrap();
                u64::from_str_radix(caught.trim(), 16).unwrap() & bit(Signal::USR1) != 0
            };
            let mut targets: Vec<u32> = workers.iter().filter(handling).copied().collect();
            assert!(!targets.is_empty());
            targets.push(std::process::id());
            let storm = thread::spawn(move || {
                while !CALM.load(Ordering::Relaxed) {
                    for &target in &targets {
                        signal(target, Signal::USR1);
                    }
                    GUSTS.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                }
            });
            let payload = Bytes::from(vec![7; 50 << 20]);
            while GUSTS.load(Ordering::Relaxed) < 1000 {
                let transfers = [0; 2].map(|_| pool.apply(same::<Bytes>, payload.clone()));
                let [first, second] = transfers.map(within);
                let (first, second) = tokio::join!(first, second);
                assert!(first.unwrap() == payload && second.unwrap() == payload);
                assert_eq!(within(pool.map(same::<u32>, 0..100)).await.unwrap().len(), 100);
            }
            assert_eq!(pids(&pool), workers);
            CALM.store(true, Ordering::Relaxed);
            storm.join().unwrap();
        });
    });
}

#[tokio::test]
async fn a_stopped_worker_can_be_killed() {
    let pool = pool(2).await;
    let workers = pids(&pool);
    let (mut first, argument) = gate();
    let cancelled = pool.apply_async(wait_at, argument);
    let held = first.entered();
    signal(held, Signal::STOP);
    cancelled.abort();
    gone(held);
    for &worker in workers.iter().filter(|&&worker| worker != held) {
        signal(worker, Signal::STOP);
    }
    pool.terminate();
    within(pool.join()).await.unwrap();
    for worker in workers {
        gone(worker);
    }
}

fn interrupt_self(interrupt: Interrupt) {
    let signal = Signal::from_named_raw(interrupt.number()).unwrap();
    kill_process(getpid(), signal).unwrap();
}

#[test]
fn handlers_are_installed_when_asked_for() {
    alone("signals::handlers_are_installed_when_asked_for", || {
        let caught = || signals_of_status("SigCgt:");
        runtime().block_on(async {
            let before = caught();
            let pool = pool(1).await;
            assert_eq!(caught(), before);
            let interrupts = pool.drain_on_interrupt().unwrap();
            assert_eq!(caught(), before | bit(Signal::INT) | bit(Signal::TERM));
            assert_eq!(interrupts.received(), None);
            signals::job_control().unwrap();
            let all = bit(Signal::INT) | bit(Signal::TERM) | bit(Signal::TSTP);
            assert_eq!(caught(), before | all);
        });
    });
}

#[test]
fn it_drains_whatever_runtime_there_is() {
    alone("signals::it_drains_whatever_runtime_there_is", || {
        // A runtime that blocks, and then none.
        let current = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (pool, interrupts, gate, task, worker) = current.block_on(async {
            let pool = Pool::builder().workers(1).build().await.unwrap();
            let interrupts = pool.drain_on_interrupt().unwrap();
            let (mut gate, argument) = gate();
            let task = pool.apply_async(wait_at, argument);
            let worker = gate.entered();
            interrupt_self(Interrupt::Interrupt);
            eventually("the pool is closed", || !pool.is_open());
            (pool, interrupts, gate, task, worker)
        });
        assert_eq!(
            futures::executor::block_on(interrupts.first()),
            Interrupt::Interrupt
        );
        assert_eq!(interrupts.received(), Some(Interrupt::Interrupt));
        let finished = interrupts.finished();
        assert!(interrupts.second().now_or_never().is_none());
        gate.open();
        assert_eq!(futures::executor::block_on(task).unwrap(), worker);
        let drained = futures::executor::block_on(finished);
        assert_eq!(drained.interrupt, Interrupt::Interrupt);
        assert!(drained.all_done);
        // What has been done stays done.
        drop(pool);
        assert!(futures::executor::block_on(interrupts.finished()).all_done);
        assert!(children().is_empty());
    });
}

#[test]
fn everybody_hears_the_signal() {
    alone("signals::everybody_hears_the_signal", || {
        runtime().block_on(async {
            let (ours, closed, open) = (pool(1).await, pool(1).await, pool(1).await);
            let mut own = tokio::signal::unix::signal(SignalKind::terminate()).unwrap();
            let first = ours.drain_on_interrupt().unwrap();
            let others = Interrupts::builder()
                .drain(&closed)
                .terminate(&open)
                .listen()
                .unwrap();
            drop(others.clone());
            interrupt_self(Interrupt::Terminate);
            assert_eq!(within(first.first()).await, Interrupt::Terminate);
            assert_eq!(within(others.first()).await, Interrupt::Terminate);
            within(own.recv()).await.unwrap();
            assert!(!ours.is_open() && !closed.is_open() && open.is_open());
            within(closed.join()).await.unwrap();

            // One that is dropped hears no more, and there is still the program's own.
            drop(first);
            let third = open.drain_on_interrupt().unwrap();
            interrupt_self(Interrupt::Interrupt);
            assert_eq!(within(others.second()).await, Interrupt::Interrupt);
            assert_eq!(within(third.first()).await, Interrupt::Interrupt);
            let drained = within(others.finished()).await;
            assert_eq!(drained.interrupt, Interrupt::Terminate);
            assert!(!drained.all_done);
            drop((others, third));
            interrupt_self(Interrupt::Terminate);
            within(own.recv()).await.unwrap();
        });
    });
}

#[test]
fn it_does_not_keep_a_pool_alive() {
    alone("signals::it_does_not_keep_a_pool_alive", || {
        runtime().block_on(async {
            let pool = pool(1).await;
            let worker = pids(&pool)[0];
            let interrupts = pool.drain_on_interrupt().unwrap();
            let finished = interrupts.finished();
            drop(pool);
            gone(worker);
            interrupt_self(Interrupt::Interrupt);
            assert!(!within(finished).await.all_done);
        });
    });
}
