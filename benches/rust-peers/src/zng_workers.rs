//! The workloads by workers of zng-task: it has no pool, so that tasks are dealt to two of its workers in turn.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;
use futures_lite::future::block_on;
use zng_task::channel::IpcBytes;
use zng_task::process::worker::{RequestArgs, RunError, Worker, run_worker as serve};

use crate::Error;
use crate::figures::{Figures, echo_rate, latencies, median, milliseconds, rate};
use crate::memory;
use crate::scale::{CHUNK, Scale, WARM_UP, WORKERS};
use crate::tasks::ten_milliseconds;
use crate::work::{Task, Value};

const PLAIN: &str = "plain";
const SHARED: &str = "shared";

/// Does not return in a worker.
pub(crate) fn run_worker() {
    zng_env::init!();
    serve(PLAIN, |arguments: RequestArgs<Task>| async move {
        arguments.request.run()
    });
    serve(SHARED, |arguments: RequestArgs<IpcBytes>| async move {
        arguments.request
    });
}

pub(crate) fn measure(workload: &str, scale: &Scale) -> Result<Figures, Error> {
    block_on(async {
        match workload {
            "W1" => sequential(scale).await,
            "W2" => single(scale).await,
            "W3" => chunks(scale).await,
            "W4" => bytes(scale).await,
            "W5" => start(scale).await,
            "W6" => resident().await,
            "W7" => scaling(scale).await,
            other => Err(format!("zng-task does not take part in {other}").into()),
        }
    })
}

type Call = Pin<Box<dyn Future<Output = Result<Value, RunError>> + Send>>;

/// Workers that take turns.
struct Workers {
    workers: Vec<Worker<Task, Value>>,
    next: usize,
}

impl Workers {
    async fn new(workers: usize) -> Result<Self, Error> {
        let mut started = Vec::new();
        for _ in 0..workers {
            started.push(Worker::start(PLAIN).await?);
        }
        Ok(Self {
            workers: started,
            next: 0,
        })
    }

    fn run(&mut self, task: Task) -> Call {
        let index = self.next % self.workers.len();
        self.next += 1;
        Box::pin(self.workers[index].run(task))
    }

    async fn all_answered(&mut self) -> Result<Vec<u32>, Error> {
        let mut pids = BTreeSet::new();
        let calls: Vec<_> = (0..self.workers.len())
            .map(|_| self.run(Task::ProcessId))
            .collect();
        for call in calls {
            pids.insert(call.await?.number()?.try_into()?);
        }
        Ok(pids.into_iter().collect())
    }

    async fn end(self) -> Result<(), Error> {
        for worker in self.workers {
            worker.shutdown().await?;
        }
        Ok(())
    }
}

async fn sequential(scale: &Scale) -> Result<Figures, Error> {
    let mut workers = Workers::new(WORKERS).await?;
    let mut samples = Vec::with_capacity(scale.slow_calls);
    for n in 0..(WARM_UP + scale.slow_calls) as u64 {
        let began = Instant::now();
        workers.run(Task::Successor(n)).await?;
        samples.push(began.elapsed());
    }
    workers.end().await?;
    Ok(latencies(samples.split_off(WARM_UP)))
}

async fn single(scale: &Scale) -> Result<Figures, Error> {
    let mut workers = Workers::new(WORKERS).await?;
    workers.all_answered().await?;
    let began = Instant::now();
    let calls: Vec<_> = (0..scale.tasks as u64)
        .map(|n| workers.run(Task::Successor(n)))
        .collect();
    for call in calls {
        call.await?;
    }
    let rate = rate(scale.tasks, began);
    workers.end().await?;
    Ok(Figures::default().with("rate", rate))
}

async fn chunks(scale: &Scale) -> Result<Figures, Error> {
    let mut workers = Workers::new(WORKERS).await?;
    workers.all_answered().await?;
    let mut figures = Figures::default();
    for &chunk in scale.chunks {
        let began = Instant::now();
        let calls: Vec<_> = (0..scale.items as u64)
            .step_by(chunk)
            .map(|start| {
                let end = (start + chunk as u64).min(scale.items as u64);
                workers.run(Task::Successors((start..end).collect()))
            })
            .collect();
        let mut values = Vec::with_capacity(scale.items);
        for call in calls {
            values.extend(call.await?.numbers()?);
        }
        figures = figures.with(format!("{CHUNK}{chunk}"), rate(values.len(), began));
    }
    workers.end().await?;
    Ok(figures)
}

async fn bytes(scale: &Scale) -> Result<Figures, Error> {
    let mut workers = Workers::new(WORKERS).await?;
    let mut figures = Figures::default();
    for (key, (size, echoes)) in [("small", scale.small), ("large", scale.large)] {
        let sent = Bytes::from(vec![7; size]);
        for _ in 0..WORKERS {
            workers.run(Task::Echo(sent.clone())).await?;
        }
        let began = Instant::now();
        for _ in 0..echoes {
            workers.run(Task::Echo(sent.clone())).await?;
        }
        figures = figures.with(key, echo_rate((size, echoes), began));
    }
    workers.end().await?;
    Ok(figures)
}

/// W4 with its own type for blobs: copied into shared memory once, which the worker sends back as it is.
pub(crate) fn shared_bytes(scale: &Scale) -> Result<Figures, Error> {
    block_on(async {
        let mut worker: Worker<IpcBytes, IpcBytes> = Worker::start(SHARED).await?;
        let mut figures = Figures::default();
        for (key, (size, echoes)) in [("small", scale.small), ("large", scale.large)] {
            let sent = vec![7; size];
            worker.run(IpcBytes::from_slice_blocking(&sent)?).await?;
            let began = Instant::now();
            for _ in 0..echoes {
                worker.run(IpcBytes::from_slice_blocking(&sent)?).await?;
            }
            figures = figures.with(key, echo_rate((size, echoes), began));
        }
        worker.shutdown().await?;
        Ok(figures)
    })
}

async fn start(scale: &Scale) -> Result<Figures, Error> {
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let began = Instant::now();
        let mut workers = Workers::new(WORKERS).await?;
        workers.all_answered().await?;
        times.push(milliseconds(began));
        workers.end().await?;
    }
    Ok(Figures::default()
        .with("first", times.remove(0))
        .with("again", median(times)))
}

async fn resident() -> Result<Figures, Error> {
    let mut workers = Workers::new(WORKERS).await?;
    let figures = memory::workers(&workers.all_answered().await?)?;
    workers.end().await?;
    Ok(figures)
}

async fn scaling(scale: &Scale) -> Result<Figures, Error> {
    let steps = ten_milliseconds()?;
    let mut times = Vec::new();
    for count in [1, 2] {
        let mut workers = Workers::new(count).await?;
        workers.all_answered().await?;
        let began = Instant::now();
        // A worker runs all that it has at once, on threads: each is given one task at a time.
        let mut running = VecDeque::new();
        for _ in 0..scale.computations {
            if running.len() == count
                && let Some(call) = running.pop_front()
            {
                call.await?;
            }
            running.push_back(workers.run(Task::Compute(steps)));
        }
        for call in running {
            call.await?;
        }
        times.push(milliseconds(began));
        workers.end().await?;
    }
    Ok(Figures::default().with("scaling", times[0] / (2.0 * times[1])))
}
