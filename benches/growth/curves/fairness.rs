//! Small tasks beside what is large, many, or in the way.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use procession::Pool;
use tokio::task::JoinHandle;

use crate::Error;
use crate::curve::{Curve, Extent, Metric, Points, every_run};
use crate::figures::{Figures, latencies};
use crate::outcome::Outcome;
use crate::pace::Pace;
use crate::plot::{Axis, Unit};
use crate::service::{block, warm};
use crate::tasks::{compute, echo, steps_per_microsecond, successor};

pub(crate) static CURVE: Curve = Curve {
    name: "fairness",
    about: "Latency of tiny calls to a pool of two, one due every 2 ms, from when it was due; beside what else goes on. \
            A call does not wait for the one before it",
    x: Axis {
        label: "beside",
        unit: Unit::Count,
        logarithmic: false,
    },
    points: Points::Cases(CASES),
    series: &[("threads", "multi_thread"), ("current", "current_thread")],
    metrics: &[
        Metric::new("p50", "p50", Unit::Microseconds).drawn("Latency of tiny calls beside other work", true),
        Metric::new("p99", "p99", Unit::Microseconds).drawn("", true),
        Metric::new("max", "max", Unit::Microseconds).drawn("", true),
        Metric::new("call", "max of the call alone", Unit::Microseconds),
        Metric::new("late", "latest tick", Unit::Microseconds),
        Metric::new("calls", "calls", Unit::Count),
    ],
    measure,
    most_runs: every_run,
    says: |outcome| {
        vec![
            beside_nothing(outcome),
            beside_payloads(outcome),
            beside_queue(outcome),
            beside_callbacks(outcome),
            one_thread(outcome),
        ]
    },
    knees: &[],
};

/// p50, p99 and maximum, in words.
fn shown(outcome: &Outcome<'_>, case: f64) -> Option<String> {
    Some(format!(
        "{}, {} and {}",
        outcome.show("threads", case, "p50")?,
        outcome.show("threads", case, "p99")?,
        outcome.show("threads", case, "max")?,
    ))
}

fn beside_nothing(outcome: &Outcome<'_>) -> Option<String> {
    Some(format!(
        "An idle pool answers with p50, p99 and maximum of {}, on tokio's default runtime: at such a rate a core sleeps \
         between two calls, and is woken for each.",
        shown(outcome, 0.0)?
    ))
}

fn beside_payloads(outcome: &Outcome<'_>) -> Option<String> {
    let late = |case: f64| outcome.show("threads", case, "late");
    Some(format!(
        "Beside 1 GiB that goes there and back by 64 MiB it is {}, beside 1 GiB in one piece {}. A small call goes to a \
         worker that has no large one; what makes it late is the caller's side: whoever encodes, sends or decodes a large \
         payload keeps a thread of the runtime meanwhile, and tokio may have no other that watches timers and sockets. \
         The timer that says when a call is due was answered up to {} late beside the former and {} beside the latter.",
        shown(outcome, 1.0)?,
        shown(outcome, 2.0)?,
        late(1.0)?,
        late(2.0)?,
    ))
}

fn beside_queue(outcome: &Outcome<'_>) -> Option<String> {
    Some(format!(
        "Beside 10⁶ tiny tasks of lower priority it is {}; with the same priority, where a call has its turn behind \
         those that wait by then, {}. Beside 10⁵ tasks of 20 ms of lower priority, {}: a task that runs is not interrupted.",
        shown(outcome, 4.0)?,
        shown(outcome, 5.0)?,
        shown(outcome, 7.0)?,
    ))
}

fn beside_callbacks(outcome: &Outcome<'_>) -> Option<String> {
    let last = outcome.line("threads", "p50").last()?.x;
    Some(format!(
        "Beside callbacks that block for 10 ms each it is {}: they have threads of their own.",
        shown(outcome, last)?
    ))
}

/// The case of a payload of 1 GiB.
const ONE_PIECE: usize = 2;

const CASES: &[&str] = &[
    "nothing",
    "1 GiB there and back, by 64 MiB",
    "1 GiB there and back in one piece",
    "two callers, 64 MiB each",
    "10⁶ tiny tasks, lower priority",
    "10⁶ tiny tasks, same priority",
    "10⁶ tasks of 100 µs, lower priority",
    "10⁵ tasks of 20 ms, lower priority",
    "a map of 3 × 10⁷, lower priority",
    "callbacks that block 10 ms",
];

fn one_thread(outcome: &Outcome<'_>) -> Option<String> {
    let late = |case: f64| outcome.show("current", case, "late");
    Some(format!(
        "On a current_thread runtime whoever calls shares the only thread with all else: while a caller encodes or decodes \
         a payload of 1 GiB, no tick of the timer was answered for up to {}, while one gives out and collects a map of \
         3 × 10⁷, for up to {}. That is the caller's own work, which no pool can take from it; a multi_thread runtime has \
         another thread for the others.",
        late(2.0)?,
        late(8.0)?,
    ))
}

/// What goes on beside the calls; it ends by itself, or is let go after a while.
type Beside = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

fn measure(series: &'static str, case: f64, extent: Extent) -> Result<Figures, Error> {
    let steps = steps_per_microsecond()?;
    let both = async move {
        // With room for a payload of 1 GiB and its header.
        let pool = Pool::builder().workers(2).max_frame_size(2 << 30).build().await?;
        warm(&pool).await?;
        let beside = beside(&pool, case as usize, steps, extent);
        // As long as the largest payload takes, or long enough to count.
        let longest = Duration::from_millis(match (extent, case as usize) {
            (Extent::Test, _) => 20,
            (_, ONE_PIECE) => 3000,
            _ => 1500,
        });
        let figures = call(&pool, beside, longest).await;
        pool.terminate();
        figures
    };
    match series {
        "threads" => crate::service::in_service(both),
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            // In a spawned task, as it is in the other.
            runtime.block_on(async { tokio::spawn(both).await? })
        }
    }
}

fn beside(pool: &Pool, case: usize, steps: f64, extent: Extent) -> Option<Beside> {
    let pool = pool.clone();
    let echoes = async |pool: Pool, size: usize, total: usize| -> Result<(), Error> {
        let sent = Bytes::from(vec![7; size]);
        for _ in 0..total / size {
            pool.apply(echo, sent.clone()).await?;
        }
        Ok(())
    };
    let million = extent.at_most(1_000_000, 1000) as u64;
    let gigabyte = extent.at_most(1 << 30, 1 << 26);
    let queued = move |pool: Pool, steps: f64, n: u64, priority: i32| async move {
        let mut calls = Vec::with_capacity(n as usize);
        for n in 0..n {
            calls.push(pool.task(compute, steps as u64).priority(priority).submit());
            // Whoever submits so many lets others run in between.
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for call in calls {
            call.await?;
        }
        Ok(())
    };
    Some(match case {
        0 => return None,
        1 => Box::pin(async move { echoes(pool, 64 << 20, gigabyte).await }),
        ONE_PIECE => Box::pin(async move { echoes(pool, gigabyte, gigabyte).await }),
        3 => Box::pin(async move {
            let one = tokio::spawn(echoes(pool.clone(), 64 << 20, gigabyte / 2));
            let other = tokio::spawn(echoes(pool, 64 << 20, gigabyte / 2));
            one.await??;
            other.await?
        }),
        4 => Box::pin(queued(pool, 0.0, million, -1)),
        5 => Box::pin(queued(pool, 0.0, million, 0)),
        6 => Box::pin(queued(pool, 100.0 * steps, million, -1)),
        7 => Box::pin(queued(pool, 20_000.0 * steps, million / 10, -1)),
        8 => Box::pin(async move {
            pool.map(successor, 0..30 * million).priority(-1).await?;
            Ok(())
        }),
        _ => Box::pin(async move {
            loop {
                let blocks = |_: &u64| block(Duration::from_millis(10));
                let call = |n| pool.apply_async(successor, n).callback(blocks);
                let calls: Vec<_> = (0..100).map(call).collect();
                for call in calls {
                    call.await?;
                }
            }
        }),
    })
}

/// Calls until what goes on beside has ended, or for so long at most. A call does not wait for the one before it, or one
/// that takes long would hide that others take long as well.
async fn call(pool: &Pool, beside: Option<Beside>, longest: Duration) -> Result<Figures, Error> {
    let mut pace = Pace::new(Duration::from_millis(2))?;
    let beside: Option<JoinHandle<_>> = beside.map(tokio::spawn);
    let began = Instant::now();
    let mut calls = Vec::new();
    while began.elapsed() < longest && beside.as_ref().is_none_or(|beside| !beside.is_finished()) {
        let due = pace.tick().await?;
        let late = due.elapsed();
        let pool = pool.clone();
        calls.push(tokio::spawn(async move {
            let began = Instant::now();
            pool.apply(successor, 1).await?;
            let ended = Instant::now();
            Ok::<_, Error>((late, ended - began, ended - due))
        }));
    }
    let mut from_due = Vec::with_capacity(calls.len());
    let mut of_call = Vec::with_capacity(calls.len());
    let mut latest = Duration::ZERO;
    for call in calls {
        let (late, alone, whole) = call.await??;
        latest = latest.max(late);
        of_call.push(alone);
        from_due.push(whole);
    }
    if let Some(beside) = beside {
        if beside.is_finished() {
            beside.await??;
        } else {
            beside.abort();
        }
    }
    let calls = from_due.len() as f64;
    of_call.sort_unstable();
    let longest_call = of_call.last().copied().unwrap_or_default();
    Ok(latencies(from_due)
        .with("call", longest_call.as_secs_f64() * 1e6)
        .with("late", latest.as_secs_f64() * 1e6)
        .with("calls", calls))
}
