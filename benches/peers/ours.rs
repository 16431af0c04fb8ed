//! The workloads by this crate.
//!
//! They run in a spawned task of tokio's default runtime, as the handlers of a service do.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use procession::{BuildError, Pool};

use crate::Error;
use crate::measure::{Figures, WARM_UP, echo_rate, latencies, milliseconds, rate};
use crate::memory::{self, Growth};
use crate::plan::{CHUNK, Scale, WORKERS};
use crate::tasks::{Gate, compute, echo, hold, process_id, successor, ten_milliseconds};

pub(crate) fn measure(workload: &'static str, scale: &'static Scale) -> Result<Figures, Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let workload = tokio::spawn(async move {
            match workload {
                "W1" => sequential(scale).await,
                "W2" => single(scale).await,
                "W3" => map(scale).await,
                "W4" => bytes(scale).await,
                "W5" => start().await,
                "W6" => resident(scale).await,
                _ => scaling(scale).await,
            }
        });
        workload.await?
    })
}

async fn pool(workers: usize) -> Result<Pool, BuildError> {
    Pool::builder().workers(workers).build().await
}

/// The workers' process ids, each of which has given a result then.
async fn all_answered(pool: &Pool) -> Result<Vec<u32>, Error> {
    let mut pids = BTreeSet::new();
    while pids.len() < WORKERS {
        let calls: Vec<_> = (0..WORKERS).map(|_| pool.apply_async(process_id, ())).collect();
        for call in calls {
            pids.insert(call.await?);
        }
    }
    Ok(pids.into_iter().collect())
}

async fn sequential(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    let mut samples = Vec::with_capacity(scale.calls);
    for n in 0..(WARM_UP + scale.calls) as u64 {
        let began = Instant::now();
        pool.apply(successor, n).await?;
        samples.push(began.elapsed());
    }
    Ok(latencies(samples.split_off(WARM_UP)))
}

async fn single(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    all_answered(&pool).await?;
    let began = Instant::now();
    let calls: Vec<_> = (0..scale.tasks as u64)
        .map(|n| pool.apply_async(successor, n))
        .collect();
    let mut sum = 0;
    for call in calls {
        sum += call.await?;
    }
    let rate = rate(scale.tasks, began);
    check(sum == (1..=scale.tasks as u64).sum::<u64>())?;
    Ok(Figures::default().with("rate", rate))
}

async fn map(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    all_answered(&pool).await?;
    let n = scale.items;
    let began = Instant::now();
    let values = pool.map(successor, 0..n as u64).await?;
    let mut figures = Figures::default().with("default", rate(n, began));
    check(values.into_iter().eq(1..=n as u64))?;
    for &chunk in scale.chunks {
        let began = Instant::now();
        let values = pool.map(successor, 0..n as u64).chunk_size(chunk).await?;
        figures = figures.with(format!("{CHUNK}{chunk}"), rate(n, began));
        check(values.len() == n)?;
    }
    Ok(figures)
}

async fn bytes(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    let mut figures = Figures::default();
    for (key, (size, echoes)) in [("small", scale.small), ("large", scale.large)] {
        let sent = Bytes::from(vec![7; size]);
        check(pool.apply(echo, sent.clone()).await? == sent)?;
        let began = Instant::now();
        for _ in 0..echoes {
            pool.apply(echo, sent.clone()).await?;
        }
        figures = figures.with(key, echo_rate((size, echoes), began));
    }
    Ok(figures)
}

async fn start() -> Result<Figures, Error> {
    let mut figures = Figures::default();
    for key in ["first", "again"] {
        let began = Instant::now();
        let pool = pool(WORKERS).await?;
        all_answered(&pool).await?;
        figures = figures.with(key, milliseconds(began));
        pool.close();
        pool.join().await?;
    }
    let began = Instant::now();
    let pool = pool(1).await?;
    pool.apply(process_id, ()).await?;
    pool.close();
    pool.join().await?;
    Ok(figures.with("join", milliseconds(began)))
}

async fn resident(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    let figures = memory::workers(&all_answered(&pool).await?)?;
    let mut gate = Gate::new()?;
    let port = gate.port()?;
    let held: Vec<_> = (0..WORKERS).map(|_| pool.apply_async(hold, port)).collect();
    gate.wait_for(WORKERS)?;
    let growth = Growth::begin()?;
    let calls: Vec<_> = (0..scale.queued as u64)
        .map(|n| pool.apply_async(successor, n))
        .collect();
    let queued = growth.per_100_000(scale.queued)?;
    drop(gate);
    for call in held {
        call.await?;
    }
    for call in calls {
        call.await?;
    }
    Ok(figures.with("queued", queued))
}

async fn scaling(scale: &Scale) -> Result<Figures, Error> {
    let steps = ten_milliseconds()?;
    let mut times = Vec::new();
    for workers in [1, 2] {
        let pool = pool(workers).await?;
        let began = Instant::now();
        let calls: Vec<_> = (0..scale.computations)
            .map(|_| pool.apply_async(compute, steps))
            .collect();
        for call in calls {
            call.await?;
        }
        times.push(milliseconds(began));
    }
    Ok(Figures::default().with("scaling", times[0] / (2.0 * times[1])))
}

fn check(is_right: bool) -> Result<(), Error> {
    if is_right {
        Ok(())
    } else {
        Err("a wrong result".into())
    }
}
