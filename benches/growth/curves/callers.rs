//! More callers at once, each of whom waits for a result before it asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

use crate::Error;
use crate::curve::{Curve, Extent, Keeps, Knee, Metric, Points, every_run};
use crate::figures::{Figures, latencies, rate};
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};
use crate::service::{block, in_service, pool, warm};
use crate::tasks::{compute, steps_per_microsecond, successor};

pub(crate) static CURVE: Curve = Curve {
    name: "callers",
    about: "Tokio tasks that call a pool of two again and again, each one call at a time; beside them the same with \
            `spawn_blocking` and two threads",
    x: Axis {
        label: "callers",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 2., 3., 4., 8., 16., 32., 64., 128., 256., 1000., 4000.]),
    series: &[
        ("tiny", "tiny"),
        ("ten", "of 10 µs"),
        ("hundred", "of 100 µs"),
        ("blocking", "tiny, spawn_blocking"),
    ],
    metrics: &[
        Metric::new("rate", "calls/s", Unit::Count)
            .drawn("Calls a second by number of callers, two workers", true)
            .keeps(Keeps::Up),
        Metric::new("p99", "p99 of a call", Unit::Microseconds).drawn(
            "99th percentile of a call by number of callers, two workers",
            true,
        ),
    ],
    measure,
    most_runs: every_run,
    says: |outcome| vec![few(outcome), many(outcome), tail(outcome)],
    knees: &[
        Knee {
            metric: "rate",
            series: &["tiny", "ten"],
            above: 1.0,
            up_to: 8.0,
            why: "A single caller and its worker have a core each and never sleep. More callers and workers than cores \
                  cannot all stay awake: they look again no longer, sleep between calls, and waking costs more than the \
                  call, until there are so many callers that the answers to several come with one wake-up.",
        },
        Knee {
            metric: "rate",
            series: &["hundred"],
            above: 2.0,
            up_to: 3.0,
            why: "Between one caller for each worker and two, a task waits at one worker and is called back for the other \
                  when that is idle first: the way there and back is time in which a worker does nothing.",
        },
        Knee {
            metric: "rate",
            series: &["blocking"],
            above: 1.0,
            up_to: 4000.0,
            why: "No pool is in it: two threads of the runtime, two that block and a lock between them on two cores.",
        },
        Knee {
            metric: "rate",
            series: &["tiny", "ten", "hundred"],
            above: 3.0,
            up_to: 4000.0,
            why: "Parent and workers take turns on two cores, and how many answers come with one wake-up depends on how \
                  the system lets them; the tasks and samples of the most callers also leave the processor's caches.",
        },
    ],
};

fn few(outcome: &Outcome<'_>) -> Option<String> {
    Some(format!(
        "One caller makes {} tiny calls a second, two make {}, beside {} and {} with `spawn_blocking`.",
        outcome.show("tiny", 1.0, "rate")?,
        outcome.show("tiny", 2.0, "rate")?,
        outcome.show("blocking", 1.0, "rate")?,
        outcome.show("blocking", 2.0, "rate")?,
    ))
}

fn many(outcome: &Outcome<'_>) -> Option<String> {
    let last = outcome.line("tiny", "rate").last()?.x;
    Some(format!(
        "{} callers make {}/s, beside {} with `spawn_blocking`: the more calls are on their way, the more of them share \
         a wake-up and a system call.",
        outcome.show_x(last),
        outcome.show("tiny", last, "rate")?,
        outcome.show("blocking", last, "rate")?,
    ))
}

fn tail(outcome: &Outcome<'_>) -> Option<String> {
    let last = *outcome.line("hundred", "rate").last()?;
    let turn = Unit::Microseconds.show(last.x / last.y * 1e6);
    Some(format!(
        "Where the workers have no time left, the latency of a call is its turn: with {} callers of 100 µs each has one \
         every {turn}, and the 99th percentile is {}.",
        outcome.show_x(last.x),
        outcome.show("hundred", last.x, "p99")?,
    ))
}

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let length = match series {
        "ten" => 10.0,
        "hundred" => 100.0,
        _ => 0.0,
    };
    let steps = (steps_per_microsecond()? * length) as u64;
    let time = match extent {
        Extent::Test => Duration::from_millis(5),
        _ => Duration::from_millis(250),
    };
    let callers = x as usize;
    if series == "blocking" {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(2)
            .build()?;
        let threads = Arc::new(runtime);
        let run = Arc::clone(&threads);
        let figures = in_service(call_again_and_again(callers, time, move || {
            let call = run.spawn_blocking(|| successor(1));
            async {
                call.await?;
                Ok(())
            }
        }));
        // It must not be dropped where that would block.
        if let Some(runtime) = Arc::into_inner(threads) {
            runtime.shutdown_background();
        }
        return figures;
    }
    in_service(async move {
        let pool = pool(2).await?;
        warm(&pool).await?;
        let call = move || {
            let pool = pool.clone();
            async move {
                if length == 0.0 {
                    pool.apply(successor, 1).await?;
                } else {
                    pool.apply(compute, steps).await?;
                }
                Ok(())
            }
        };
        call_again_and_again(callers, time, call).await
    })
}

async fn call_again_and_again<C, F>(callers: usize, time: Duration, call: C) -> Result<Figures, Error>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), Error>> + Send,
{
    let is_over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (call, is_over, done) = (call.clone(), Arc::clone(&is_over), Arc::clone(&done));
            tokio::spawn(async move {
                let mut samples = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    call().await?;
                    samples.push(began.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Error>(samples)
            })
        })
        .collect();
    // Not by a timer of the runtime, which is busy. What is done until all have begun does not count.
    let rate = tokio::task::spawn_blocking(move || {
        block(time / 5);
        let (before, began) = (done.load(Ordering::Relaxed), Instant::now());
        block(time);
        let rate = rate(done.load(Ordering::Relaxed) - before, began);
        is_over.store(true, Ordering::Relaxed);
        rate
    });
    let rate = rate.await?;
    let mut samples = Vec::new();
    for caller in callers {
        samples.extend(caller.await??);
    }
    Ok(latencies(samples).with("rate", rate))
}
