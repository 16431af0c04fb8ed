//! The workloads by procspawn, which blocks: no future is involved.
//!
//! Bytes go as `Bytes`, in one piece. Its tasks are joined in the order in which they were submitted, for joined in
//! another they hang.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use procspawn::{Pool, SpawnError};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Error;
use crate::cases::{self, Calls, Case};
use crate::figures::{Figures, echo_rate, latencies, median, milliseconds, rate};
use crate::memory::{self, Growth};
use crate::scale::{CHUNK, Scale, WARM_UP, WORKERS};
use crate::tasks::{Gate, compute, echo, hold, process_id, successor, successors, ten_milliseconds};

/// File descriptors that a task takes from its submission on, with some to spare.
const FDS_PER_TASK: usize = 4;
/// Tasks at once in W2: more were not faster.
const AT_ONCE: usize = 1_000;

pub(crate) fn measure(workload: &str, scale: &Scale) -> Result<Figures, Error> {
    raise_fd_limit()?;
    match workload {
        "W1" => sequential(scale),
        "W2" => single(scale),
        "W3" => chunks(scale),
        "W4" => bytes(scale),
        "W5" => start(scale),
        "W6" => resident(scale),
        "W7" => scaling(scale),
        "others" => cases::measure(&Others(pool(WORKERS)?), scale),
        other => Err(format!("procspawn does not take part in {other}").into()),
    }
}

fn pool(workers: usize) -> Result<Pool, SpawnError> {
    Pool::builder(workers).disable_stdin().build()
}

fn raise_fd_limit() -> Result<(), Error> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Tasks that may be submitted and not joined.
fn most_at_once() -> usize {
    let fds = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(fds).unwrap_or(usize::MAX).saturating_sub(100) / FDS_PER_TASK
}

fn all_answered(pool: &Pool) -> Result<Vec<u32>, Error> {
    let mut pids = BTreeSet::new();
    while pids.len() < WORKERS {
        let calls: Vec<_> = (0..WORKERS).map(|_| pool.spawn((), process_id)).collect();
        for call in calls {
            pids.insert(call.join()?);
        }
    }
    Ok(pids.into_iter().collect())
}

fn sequential(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS)?;
    let mut samples = Vec::with_capacity(scale.slow_calls);
    for n in 0..(WARM_UP + scale.slow_calls) as u64 {
        let began = Instant::now();
        pool.spawn(n, successor).join()?;
        samples.push(began.elapsed());
    }
    Ok(latencies(samples.split_off(WARM_UP)))
}

fn single(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS)?;
    all_answered(&pool)?;
    let began = Instant::now();
    let mut calls = VecDeque::new();
    for n in 0..scale.slow_tasks as u64 {
        if calls.len() == AT_ONCE.min(most_at_once())
            && let Some(call) = calls.pop_front()
        {
            procspawn::JoinHandle::join(call)?;
        }
        calls.push_back(pool.spawn(n, successor));
    }
    for call in calls {
        call.join()?;
    }
    Ok(Figures::default().with("rate", rate(scale.slow_tasks, began)))
}

fn chunks(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS)?;
    all_answered(&pool)?;
    let mut figures = Figures::default();
    for &chunk in scale.chunks {
        let began = Instant::now();
        let mut values = Vec::with_capacity(scale.items);
        let mut calls = VecDeque::new();
        for start in (0..scale.items as u64).step_by(chunk) {
            // A third large argument in front of a join hangs.
            if calls.len() == WORKERS
                && let Some(call) = calls.pop_front()
            {
                values.extend(procspawn::JoinHandle::join(call)?);
            }
            let end = (start + chunk as u64).min(scale.items as u64);
            calls.push_back(pool.spawn((start..end).collect::<Vec<u64>>(), successors));
        }
        for call in calls {
            values.extend(call.join()?);
        }
        figures = figures.with(format!("{CHUNK}{chunk}"), rate(values.len(), began));
    }
    Ok(figures)
}

fn bytes(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS)?;
    let mut figures = Figures::default();
    for (key, (size, echoes)) in [("small", scale.small), ("large", scale.large)] {
        let sent = Bytes::from(vec![7; size]);
        // The pages of both workers are touched once before it counts.
        for _ in 0..WORKERS {
            pool.spawn(sent.clone(), echo).join()?;
        }
        let began = Instant::now();
        for _ in 0..echoes {
            pool.spawn(sent.clone(), echo).join()?;
        }
        figures = figures.with(key, echo_rate((size, echoes), began));
    }
    Ok(figures)
}

struct Others(Pool);

impl Calls for Others {
    fn all<C: Case>(&self, arguments: Vec<C::Argument>) -> Result<Vec<C::Value>, Error> {
        // A third large argument in front of a join hangs.
        let most = if C::IS_LARGE {
            WORKERS
        } else {
            AT_ONCE.min(most_at_once())
        };
        let mut values = Vec::with_capacity(arguments.len());
        let mut calls = VecDeque::new();
        for argument in arguments {
            if calls.len() == most
                && let Some(call) = calls.pop_front()
            {
                values.push(procspawn::JoinHandle::join(call)?);
            }
            calls.push_back(self.0.spawn(argument, C::run));
        }
        for call in calls {
            values.push(call.join()?);
        }
        Ok(values)
    }

    fn in_turn<C: Case>(&self, callers: Vec<Vec<C::Argument>>) -> Result<(), Error> {
        std::thread::scope(|scope| {
            let callers = callers.into_iter().map(|arguments| {
                scope.spawn(|| {
                    for argument in arguments {
                        self.0.spawn(argument, C::run).join()?;
                    }
                    Ok::<_, SpawnError>(())
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.join().map_err(|_| "a caller panicked")??;
            }
            Ok(())
        })
    }
}

fn start(scale: &Scale) -> Result<Figures, Error> {
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let began = Instant::now();
        let pool = pool(WORKERS)?;
        all_answered(&pool)?;
        times.push(milliseconds(began));
        pool.shutdown();
    }
    let mut joins = Vec::new();
    for _ in 0..scale.starts {
        let began = Instant::now();
        procspawn::spawn((), process_id).join()?;
        joins.push(milliseconds(began));
    }
    Ok(Figures::default()
        .with("first", times.remove(0))
        .with("again", median(times))
        .with("join", median(joins)))
}

fn resident(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS)?;
    let figures = memory::workers(&all_answered(&pool)?)?;
    let mut gate = Gate::new()?;
    let port = gate.port()?;
    let held: Vec<_> = (0..WORKERS).map(|_| pool.spawn(port, hold)).collect();
    gate.wait_for(WORKERS)?;
    let tasks = scale.queued.min(most_at_once());
    let growth = Growth::begin()?;
    let calls: Vec<_> = (0..tasks as u64).map(|n| pool.spawn(n, successor)).collect();
    let queued = growth.each(tasks)?;
    drop(gate);
    for call in held {
        call.join()?;
    }
    for call in calls {
        call.join()?;
    }
    Ok(figures.with("queued", queued))
}

fn scaling(scale: &Scale) -> Result<Figures, Error> {
    let steps = ten_milliseconds()?;
    let mut times = Vec::new();
    for workers in [1, 2] {
        let pool = pool(workers)?;
        let began = Instant::now();
        let calls: Vec<_> = (0..scale.computations)
            .map(|_| pool.spawn(steps, compute))
            .collect();
        for call in calls {
            call.join()?;
        }
        times.push(milliseconds(began));
    }
    Ok(Figures::default().with("scaling", times[0] / (2.0 * times[1])))
}
