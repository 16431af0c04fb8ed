//! The workloads by tarnish: its pool runs one task at a time, and hangs at messages of more than a kibibyte. It has no
//! queue and its workers tell nobody their process ids but by a task.

use std::num::NonZeroUsize;
use std::time::Instant;

use tarnish::ProcessPool;

use crate::Error;
use crate::figures::{Figures, latencies, median, milliseconds, rate};
use crate::memory;
use crate::scale::{CHUNK, Scale, WARM_UP, WORKERS};
use crate::tasks::ten_milliseconds;
use crate::work::{Task, Worker};

type Pool = ProcessPool<Worker>;

/// Items of a chunk: three bytes each, within the kibibyte.
const CHUNKS: [usize; 2] = [100, 300];

pub(crate) fn measure(workload: &str, scale: &Scale) -> Result<Figures, Error> {
    match workload {
        "W1" => sequential(scale),
        "W2" => single(scale),
        "W3" => chunks(scale),
        "W5" => start(scale),
        "W6" => resident(),
        "W7" => scaling(scale),
        other => Err(format!("tarnish does not take part in {other}").into()),
    }
}

fn pool(workers: usize) -> Result<Pool, Error> {
    Ok(Pool::new(NonZeroUsize::new(workers).ok_or("no workers")?)?)
}

/// The workers take turns.
fn all_answered(pool: &mut Pool) -> Result<Vec<u32>, Error> {
    let answer = |_| Ok(pool.call(Task::ProcessId)?.number()?.try_into()?);
    (0..WORKERS).map(answer).collect()
}

fn sequential(scale: &Scale) -> Result<Figures, Error> {
    let mut pool = pool(WORKERS)?;
    let mut samples = Vec::with_capacity(scale.slow_calls);
    for n in 0..(WARM_UP + scale.slow_calls) as u64 {
        let began = Instant::now();
        pool.call(Task::Successor(n))?;
        samples.push(began.elapsed());
    }
    Ok(latencies(samples.split_off(WARM_UP)))
}

fn single(scale: &Scale) -> Result<Figures, Error> {
    let mut pool = pool(WORKERS)?;
    all_answered(&mut pool)?;
    let began = Instant::now();
    for n in 0..scale.slow_tasks as u64 {
        pool.call(Task::Successor(n))?;
    }
    Ok(Figures::default().with("rate", rate(scale.slow_tasks, began)))
}

fn chunks(scale: &Scale) -> Result<Figures, Error> {
    let mut pool = pool(WORKERS)?;
    all_answered(&mut pool)?;
    let mut figures = Figures::default();
    for chunk in CHUNKS {
        let began = Instant::now();
        let mut values = Vec::with_capacity(scale.slow_items);
        for start in (0..scale.slow_items as u64).step_by(chunk) {
            let end = (start + chunk as u64).min(scale.slow_items as u64);
            values.extend(pool.call(Task::Successors((start..end).collect()))?.numbers()?);
        }
        figures = figures.with(format!("{CHUNK}{chunk}"), rate(values.len(), began));
    }
    Ok(figures)
}

fn start(scale: &Scale) -> Result<Figures, Error> {
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let began = Instant::now();
        let mut pool = pool(WORKERS)?;
        all_answered(&mut pool)?;
        times.push(milliseconds(began));
        drop(pool);
    }
    Ok(Figures::default()
        .with("first", times.remove(0))
        .with("again", median(times)))
}

fn resident() -> Result<Figures, Error> {
    let mut pool = pool(WORKERS)?;
    memory::workers(&all_answered(&mut pool)?)
}

fn scaling(scale: &Scale) -> Result<Figures, Error> {
    let steps = ten_milliseconds()?;
    let mut times = Vec::new();
    for workers in [1, 2] {
        let mut pool = pool(workers)?;
        let began = Instant::now();
        for _ in 0..scale.computations {
            pool.call(Task::Compute(steps))?;
        }
        times.push(milliseconds(began));
    }
    Ok(Figures::default().with("scaling", times[0] / (2.0 * times[1])))
}
