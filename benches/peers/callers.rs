//! Tiny calls, one after the other, by one caller or several at once.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::Error;
use crate::figures::{Figures, latencies};
use crate::plan::{CALLERS, RUNTIMES};
use crate::scale::{Scale, WARM_UP};

/// A pool of the kind that is compared: one tiny call to it.
pub(crate) trait Tiny: Send + Sync + Sized + 'static {
    fn start() -> impl Future<Output = Result<Self, Error>> + Send;

    fn tiny(&self, n: u64) -> impl Future<Output = Result<u64, Error>> + Send;
}

/// So many calls, and as many before them as do not count.
pub(crate) async fn one_by_one(pool: &impl Tiny, calls: usize) -> Result<Vec<Duration>, Error> {
    let mut samples = Vec::with_capacity(WARM_UP + calls);
    for n in 0..(WARM_UP + calls) as u64 {
        let began = Instant::now();
        pool.tiny(n).await?;
        samples.push(began.elapsed());
    }
    Ok(samples.split_off(WARM_UP))
}

/// In a spawned task, as the handlers of a service await theirs.
pub(crate) fn sequential<P: Tiny>(scale: &'static Scale) -> Result<Figures, Error> {
    let samples = Runtime::new()?.block_on(spawned::<P>(scale.calls))?;
    Ok(latencies(samples))
}

async fn spawned<P: Tiny>(calls: usize) -> Result<Vec<Duration>, Error> {
    tokio::spawn(async move { one_by_one(&P::start().await?, calls).await }).await?
}

pub(crate) fn several<P: Tiny>(scale: &'static Scale) -> Result<Figures, Error> {
    Runtime::new()?.block_on(async {
        let pool = Arc::new(P::start().await?);
        let mut figures = Figures::default();
        for callers in CALLERS {
            let calls = (scale.calls / callers).max(1);
            let began = Instant::now();
            let tasks: Vec<_> = (0..callers)
                .map(|_| {
                    let pool = Arc::clone(&pool);
                    tokio::spawn(async move { one_by_one(&*pool, calls).await })
                })
                .collect();
            let mut samples = Vec::with_capacity(scale.calls);
            for task in tasks {
                samples.extend(task.await??);
            }
            let all = callers * (calls + WARM_UP);
            figures = figures
                .with(
                    format!("{callers} rate"),
                    all as f64 / began.elapsed().as_secs_f64(),
                )
                .with_all(&format!("{callers} "), &latencies(samples));
        }
        Ok(figures)
    })
}

pub(crate) fn runtimes<P: Tiny>(scale: &'static Scale) -> Result<Figures, Error> {
    let mut figures = Figures::default();
    for name in RUNTIMES {
        let mut builder = if name.starts_with("current_thread") {
            Builder::new_current_thread()
        } else {
            Builder::new_multi_thread()
        };
        let runtime = builder.enable_all().build()?;
        let samples = if name.ends_with("spawned") {
            runtime.block_on(spawned::<P>(scale.calls))
        } else {
            runtime.block_on(async { one_by_one(&P::start().await?, scale.calls).await })
        }?;
        figures = figures.with_all(&format!("{name} "), &latencies(samples));
    }
    Ok(figures)
}
