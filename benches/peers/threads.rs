//! The floors: the same workloads in threads of one process, where nothing is encoded and nobody is isolated.

use std::future::Future;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::Error;
use crate::callers::{self, Tiny};
use crate::cases::Case;
use crate::figures::{Figures, median, milliseconds, rate};
use crate::memory::Growth;
use crate::others::{self, Runs};
use crate::plan::CASES;
use crate::scale::{CHUNK, Scale, WORKERS};
use crate::tasks::{Gate, compute, hold, successor, successors, ten_milliseconds};

/// Runs a function on one of its threads.
trait Threads: Clone + Send + Sync + 'static {
    fn new(threads: usize) -> Result<Self, Error>
    where
        Self: Sized;

    fn run<R: Send + 'static>(
        &self,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = Result<R, Error>> + Send + 'static;
}

/// A runtime beside the one that the workload runs on, for the number of its blocking threads.
#[derive(Clone)]
struct Blocking(Arc<Option<Runtime>>);

impl Threads for Blocking {
    fn new(threads: usize) -> Result<Self, Error> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(threads)
            .enable_all()
            .build()?;
        Ok(Self(Arc::new(Some(runtime))))
    }

    fn run<R: Send + 'static>(
        &self,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = Result<R, Error>> + Send + 'static {
        let running = self
            .0
            .as_ref()
            .as_ref()
            .map(|runtime| runtime.spawn_blocking(function));
        async move { Ok(running.ok_or("the runtime is gone")?.await?) }
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // A runtime must not be dropped in a task, where that would block.
        if let Some(runtime) = Arc::get_mut(&mut self.0).and_then(Option::take) {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Rayon(Arc<ThreadPool>);

impl Threads for Rayon {
    fn new(threads: usize) -> Result<Self, Error> {
        Ok(Self(Arc::new(
            ThreadPoolBuilder::new().num_threads(threads).build()?,
        )))
    }

    fn run<R: Send + 'static>(
        &self,
        function: impl FnOnce() -> R + Send + 'static,
    ) -> impl Future<Output = Result<R, Error>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        // Nobody may wait any more.
        self.0.spawn(move || drop(answer.send(function())));
        async move { Ok(answered.await?) }
    }
}

pub(crate) fn measure_tokio(workload: &'static str, scale: &'static Scale) -> Result<Figures, Error> {
    measure::<Blocking>(workload, scale)
}

pub(crate) fn measure_rayon(workload: &'static str, scale: &'static Scale) -> Result<Figures, Error> {
    if workload == "W3" {
        let threads = Rayon::new(WORKERS)?;
        let began = Instant::now();
        let items = 0..scale.items as u64;
        let values: Vec<u64> = threads
            .0
            .install(|| items.into_par_iter().map(successor).collect());
        return Ok(Figures::default().with("default", rate(values.len(), began)));
    }
    measure::<Rayon>(workload, scale)
}

impl<T: Threads> Tiny for T {
    async fn start() -> Result<Self, Error> {
        T::new(WORKERS)
    }

    async fn tiny(&self, n: u64) -> Result<u64, Error> {
        self.run(move || successor(n)).await
    }
}

impl<T: Threads> Runs for T {
    async fn start() -> Result<Self, Error> {
        T::new(WORKERS)
    }

    fn submit<C: Case>(
        &self,
        argument: C::Argument,
    ) -> impl Future<Output = Result<C::Value, Error>> + Send + 'static {
        self.run(move || C::run(argument))
    }
}

fn measure<T: Threads>(workload: &'static str, scale: &'static Scale) -> Result<Figures, Error> {
    match workload {
        "W1" => return callers::sequential::<T>(scale),
        "W1-callers" => return callers::several::<T>(scale),
        "W1-runtimes" => return callers::runtimes::<T>(scale),
        CASES => return others::measure::<T>(scale),
        _ => {}
    }
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let workload = tokio::spawn(async move {
            match workload {
                "W2" => single(&T::new(WORKERS)?, scale).await,
                "W3" => chunks(&T::new(WORKERS)?, scale).await,
                "W5" => start::<T>(scale).await,
                "W6" => queued(&T::new(WORKERS)?, scale).await,
                "W7" => scaling::<T>(scale).await,
                other => Err(format!("threads do not take part in {other}").into()),
            }
        });
        workload.await?
    })
}

async fn single<T: Threads>(threads: &T, scale: &Scale) -> Result<Figures, Error> {
    all_answered(threads).await?;
    let began = Instant::now();
    let calls: Vec<_> = (0..scale.tasks as u64)
        .map(|n| threads.run(move || successor(n)))
        .collect();
    for call in calls {
        call.await?;
    }
    Ok(Figures::default().with("rate", rate(scale.tasks, began)))
}

async fn chunks<T: Threads>(threads: &T, scale: &Scale) -> Result<Figures, Error> {
    all_answered(threads).await?;
    let mut figures = Figures::default();
    for &chunk in scale.chunks {
        let began = Instant::now();
        let calls: Vec<_> = (0..scale.items as u64)
            .step_by(chunk)
            .map(|start| threads.run(move || successors((start..start + chunk as u64).collect())))
            .collect();
        let mut values = Vec::with_capacity(scale.items);
        for call in calls {
            values.extend(call.await?);
        }
        figures = figures.with(format!("{CHUNK}{chunk}"), rate(values.len(), began));
    }
    Ok(figures)
}

/// Has every thread give a result.
async fn all_answered<T: Threads>(threads: &T) -> Result<(), Error> {
    let barrier = Arc::new(Barrier::new(WORKERS));
    let meet = |_| {
        let barrier = Arc::clone(&barrier);
        threads.run(move || barrier.wait().is_leader())
    };
    let calls: Vec<_> = (0..WORKERS).map(meet).collect();
    for call in calls {
        call.await?;
    }
    Ok(())
}

async fn start<T: Threads>(scale: &Scale) -> Result<Figures, Error> {
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let began = Instant::now();
        let threads = T::new(WORKERS)?;
        all_answered(&threads).await?;
        times.push(milliseconds(began));
    }
    let mut joins = Vec::new();
    for _ in 0..scale.starts {
        let began = Instant::now();
        std::thread::spawn(|| successor(0))
            .join()
            .map_err(|_| "a thread panicked")?;
        joins.push(milliseconds(began));
    }
    Ok(Figures::default()
        .with("first", times.remove(0))
        .with("again", median(times))
        .with("join", median(joins)))
}

async fn queued<T: Threads>(threads: &T, scale: &Scale) -> Result<Figures, Error> {
    let mut gate = Gate::new()?;
    let port = gate.port()?;
    let held: Vec<_> = (0..WORKERS).map(|_| threads.run(move || hold(port))).collect();
    gate.wait_for(WORKERS)?;
    let growth = Growth::begin()?;
    let calls: Vec<_> = (0..scale.queued as u64)
        .map(|n| threads.run(move || successor(n)))
        .collect();
    let queued = growth.each(scale.queued)?;
    drop(gate);
    for call in held {
        call.await?;
    }
    for call in calls {
        call.await?;
    }
    Ok(Figures::default().with("queued", queued))
}

async fn scaling<T: Threads>(scale: &Scale) -> Result<Figures, Error> {
    let steps = ten_milliseconds()?;
    let mut times = Vec::new();
    for threads in [1, 2] {
        let threads = T::new(threads)?;
        let began = Instant::now();
        let calls: Vec<_> = (0..scale.computations)
            .map(|_| threads.run(move || compute(steps)))
            .collect();
        for call in calls {
            call.await?;
        }
        times.push(milliseconds(began));
    }
    Ok(Figures::default().with("scaling", times[0] / (2.0 * times[1])))
}
