//! The workloads by this crate.
//!
//! They run in a spawned task of tokio's default runtime, as the handlers of a service do.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use procession::{Pool, Process};
use tokio::runtime::Runtime;

use crate::Error;
use crate::callers::{self, Tiny};
use crate::cases::Case;
use crate::figures::{Figures, check, echo_rate, median, milliseconds, rate};
use crate::memory::{self, Growth};
use crate::others::{self, Runs};
use crate::plan::CASES;
use crate::scale::{CHUNK, Scale, WORKERS};
use crate::tasks::{Gate, compute, echo, hold, process_id, successor, ten_milliseconds};

pub(crate) fn measure(workload: &'static str, scale: &'static Scale) -> Result<Figures, Error> {
    match workload {
        "W1" => return callers::sequential::<Looking>(scale),
        "W1-callers" => return callers::several::<Looking>(scale),
        "W1-runtimes" => return callers::runtimes::<Looking>(scale),
        CASES => return others::measure::<Looking>(scale),
        _ => {}
    }
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let workload = tokio::spawn(async move {
            match workload {
                "W2" => single(scale).await,
                "W3" => map(scale).await,
                "W4" => bytes(scale).await,
                "W4-sizes" => sizes(scale).await,
                "W5" => start(scale).await,
                "W6" => resident(scale).await,
                "W7" => scaling(scale).await,
                other => Err(format!("this crate does not take part in {other}").into()),
            }
        });
        workload.await?
    })
}

pub(crate) fn measure_asleep(scale: &'static Scale) -> Result<Figures, Error> {
    callers::sequential::<Asleep>(scale)
}

#[derive(Clone)]
struct Looking(Pool);

impl Tiny for Looking {
    async fn start() -> Result<Self, Error> {
        Ok(Self(pool(WORKERS).await?))
    }

    async fn tiny(&self, n: u64) -> Result<u64, Error> {
        Ok(self.0.apply(successor, n).await?)
    }
}

impl Runs for Looking {
    async fn start() -> Result<Self, Error> {
        <Self as Tiny>::start().await
    }

    fn submit<C: Case>(
        &self,
        argument: C::Argument,
    ) -> impl Future<Output = Result<C::Value, Error>> + Send + 'static {
        let call = self.0.apply_async(C::run, argument);
        async { Ok(call.await?) }
    }

    async fn call<C: Case>(&self, argument: C::Argument) -> Result<C::Value, Error> {
        Ok(self.0.apply(C::run, argument).await?)
    }
}

/// Whose callers and workers do not look again before they sleep.
struct Asleep(Pool);

impl Tiny for Asleep {
    async fn start() -> Result<Self, Error> {
        let builder = Pool::builder().workers(WORKERS).spin(Duration::ZERO);
        Ok(Self(builder.build().await?))
    }

    async fn tiny(&self, n: u64) -> Result<u64, Error> {
        Ok(self.0.apply(successor, n).await?)
    }
}

async fn pool(workers: usize) -> Result<Pool, Error> {
    Ok(Pool::builder().workers(workers).build().await?)
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
    let mut figures = Figures::default();
    for &chunk in scale.chunks {
        let began = Instant::now();
        let values = pool.map(successor, 0..n as u64).chunk_size(chunk).await?;
        figures = figures.with(format!("{CHUNK}{chunk}"), rate(n, began));
        check(values.len() == n)?;
    }
    let began = Instant::now();
    let values = pool.map(successor, 0..n as u64).await?;
    figures = figures.with("default", rate(n, began));
    check(values.into_iter().eq(1..=n as u64))?;
    Ok(figures)
}

async fn bytes(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    Ok(Figures::default()
        .with("small", echoes(&pool, scale.small).await?)
        .with("large", echoes(&pool, scale.large).await?))
}

async fn sizes(scale: &Scale) -> Result<Figures, Error> {
    let pool = pool(WORKERS).await?;
    let mut figures = Figures::default();
    for (size, count) in scale.steps() {
        figures = figures.with(size.to_string(), echoes(&pool, (size, count)).await?);
    }
    Ok(figures)
}

async fn echoes(pool: &Pool, (size, echoes): (usize, usize)) -> Result<f64, Error> {
    let sent = Bytes::from(vec![7; size]);
    for _ in 0..WORKERS {
        check(pool.apply(echo, sent.clone()).await? == sent)?;
    }
    let began = Instant::now();
    for _ in 0..echoes {
        pool.apply(echo, sent.clone()).await?;
    }
    Ok(echo_rate((size, echoes), began))
}

async fn start(scale: &Scale) -> Result<Figures, Error> {
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let began = Instant::now();
        let pool = pool(WORKERS).await?;
        all_answered(&pool).await?;
        times.push(milliseconds(began));
        pool.close();
        pool.join().await?;
    }
    let mut joins = Vec::new();
    for _ in 0..scale.starts {
        let began = Instant::now();
        Process::spawn(process_id, ()).await?.join().await?;
        joins.push(milliseconds(began));
    }
    Ok(Figures::default()
        .with("first", times.remove(0))
        .with("again", median(times))
        .with("join", median(joins)))
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
    let queued = growth.each(scale.queued)?;
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
