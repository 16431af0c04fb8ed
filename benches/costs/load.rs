//! What is measured: tasks by the thousand, in a process of its own.

use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use procession::{AsyncResult, Pool};
use tokio::runtime::Builder;

use crate::Error;
use crate::tasks::{echo, successor};

/// A number of tasks, one way or another.
pub(crate) struct Load {
    pub(crate) key: &'static str,
    pub(crate) about: &'static str,
}

pub(crate) const CALL: Load = Load {
    key: "call",
    about: "a tiny call, one at a time",
};
pub(crate) const SINGLE: Load = Load {
    key: "single",
    about: "a tiny task of 10,000, submitted singly and collected",
};
pub(crate) const MAP: Load = Load {
    key: "map",
    about: "an element of a map",
};
pub(crate) const QUEUED: Load = Load {
    key: "queued",
    about: "a tiny task that is submitted and waits",
};
pub(crate) const SMALL: Load = Load {
    key: "1 MiB",
    about: "an echo of 1 MiB",
};
pub(crate) const LARGE: Load = Load {
    key: "64 MiB",
    about: "an echo of 64 MiB",
};
pub(crate) const LOADS: [&Load; 6] = [&CALL, &SINGLE, &MAP, &QUEUED, &SMALL, &LARGE];

pub(crate) fn find(key: &str) -> Result<&'static Load, Error> {
    let load = LOADS.into_iter().find(|load| load.key == key);
    load.ok_or_else(|| format!("there is no load {key}").into())
}

/// Keeps its worker from running anything else.
fn hold((): ()) {
    loop {
        std::thread::park();
    }
}

/// Runs `n` tasks, and waits before and after for a line on standard input, for whoever looks on from outside: it is
/// told the processes first, and the nanoseconds that the tasks took afterwards.
///
/// Where steps are counted, there is one worker and one thread of the runtime, and nothing that depends on time.
pub(crate) fn watched(load: &Load, n: usize, is_stepped: bool) -> Result<(), Error> {
    let key = load.key;
    let threads = if is_stepped { 1 } else { 2 };
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    // In a spawned task, as the handlers of a service run.
    let measurement = async move {
        let mut pool = Pool::builder().workers(threads);
        if is_stepped {
            // Looking again takes as many steps as there is time for.
            pool = pool.spin(Duration::ZERO);
        }
        let pool = pool.build().await?;
        if key != QUEUED.key {
            run(&pool, key, n.min(100)).await?;
        }
        let pids: Vec<String> = (pool.workers().iter())
            .filter_map(|worker| Some(worker.pid?.to_string()))
            .collect();
        let held: Vec<_> = if key == QUEUED.key {
            (0..threads).map(|_| pool.apply_async(hold, ())).collect()
        } else {
            Vec::new()
        };
        turn(&pids.join(" "))?;
        let began = Instant::now();
        let queued = run(&pool, key, n).await?;
        turn(&began.elapsed().as_nanos().to_string())?;
        pool.terminate();
        drop((held, queued));
        Ok(())
    };
    runtime.block_on(async { tokio::spawn(measurement).await? })
}

/// Says a line, and waits for one.
fn turn(line: &str) -> Result<(), Error> {
    let mut out = io::stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// What it returns are tasks that wait still.
async fn run(pool: &Pool, key: &str, n: usize) -> Result<Vec<AsyncResult<u64>>, Error> {
    match key {
        "call" => {
            for n in 0..n as u64 {
                pool.apply(successor, n).await?;
            }
        }
        "single" => {
            // In portions, so that it is not the depth of the queue that is measured.
            for portion in (0..n as u64).step_by(10_000) {
                let calls: Vec<_> = (portion..(n as u64).min(portion + 10_000))
                    .map(|n| pool.apply_async(successor, n))
                    .collect();
                for call in calls {
                    call.await?;
                }
            }
        }
        "map" => {
            pool.map(successor, 0..n as u64).chunk_size(250).await?;
        }
        "queued" => {
            return Ok((0..n as u64).map(|n| pool.apply_async(successor, n)).collect());
        }
        _ => {
            let size = if key == SMALL.key { 1 << 20 } else { 64 << 20 };
            let sent = Bytes::from(vec![7; size]);
            for _ in 0..n {
                pool.apply(echo, sent.clone()).await?;
            }
        }
    }
    Ok(Vec::new())
}
