//! What it costs to look again for work before sleeping, and what it gains, at several rates of calls.

use std::time::{Duration, Instant};

use procession::{Pool, PoolBuilder};

use crate::Error;
use crate::curve::{Curve, Extent, Metric, Points, every_run};
use crate::figures::{Figures, latencies};
use crate::outcome::Outcome;
use crate::pace::Pace;
use crate::plot::{Axis, Unit};
use crate::service::{in_service, warm, workers};
use crate::tasks::{compute, successor};
use crate::usage::{self, Usage};

pub(crate) static CURVE: Curve = Curve {
    name: "looking",
    about: "What it costs to look again before sleeping, which `PoolBuilder::spin` bounds: one tiny call at a time to a \
            pool of two, its latency, and the CPU time for each call; \"no call\" is what the timer takes that says when. \
            Where cores are busy, as many other processes compute all the time as there are cores",
    x: Axis {
        label: "a call every",
        unit: Unit::Microseconds,
        logarithmic: true,
    },
    points: Points::Cases(&[
        "result (back to back)",
        "100 µs",
        "1 ms",
        "10 ms",
        "result, all cores busy",
        "1 ms, all cores busy",
    ]),
    series: &[("default", "default"), ("off", "off"), ("none", "no call")],
    metrics: &[
        Metric::new("p50", "p50", Unit::Microseconds).drawn(
            "One call at a time, looking again and not: latency and CPU time",
            true,
        ),
        Metric::new("p99", "p99", Unit::Microseconds),
        Metric::new("parent", "CPU in the parent", Unit::Microseconds).drawn("", true),
        Metric::new("workers", "CPU in workers", Unit::Microseconds).drawn("", true),
        Metric::new("switches", "switches, all processes", Unit::Count),
    ],
    measure,
    most_runs: every_run,
    says: |outcome| {
        vec![
            cost(outcome, 0.0, "Back to back"),
            cost(outcome, 1.0, "With a call every 100 µs"),
            cost(outcome, 2.0, "With a call every 1 ms"),
            cost(outcome, 3.0, "With a call every 10 ms"),
            cost(outcome, 4.0, "Back to back while others want all cores"),
            cost(outcome, 5.0, "With a call every 1 ms while others want all cores"),
        ]
    },
    knees: &[],
};

fn cost(outcome: &Outcome<'_>, case: f64, when: &str) -> Option<String> {
    let cpu = |series: &str| {
        let parent = outcome.point(series, case, "parent")?.y;
        Some(parent + outcome.point(series, case, "workers")?.y)
    };
    let (looking, off) = (cpu("default")?, cpu("off")?);
    Some(format!(
        "{when}: a call takes {} at the median and {} of CPU time in all processes; {} and {} with looking switched off \
         (× {:.2} the CPU time).",
        outcome.show("default", case, "p50")?,
        Unit::Microseconds.show(looking),
        outcome.show("off", case, "p50")?,
        Unit::Microseconds.show(off),
        looking / off,
    ))
}

/// The first of the cases where cores are busy.
const BUSY: f64 = 4.0;

/// Takes all the time that it gets.
fn burn((): ()) {
    loop {
        compute(1_000_000);
    }
}

/// A pool of others, that computes on all cores.
async fn keep_busy() -> Result<Pool, Error> {
    let pool = Pool::builder().spin(Duration::ZERO).build().await?;
    for _ in pool.workers() {
        drop(pool.apply_async(burn, ()));
    }
    Ok(pool)
}

fn builder(series: &str) -> PoolBuilder {
    let builder = Pool::builder().workers(2);
    match series {
        "off" => builder.spin(Duration::ZERO),
        _ => builder,
    }
}

fn measure(series: &'static str, case: f64, extent: Extent) -> Result<Figures, Error> {
    let (period, calls) = match case as usize {
        0 => (None, 20_000),
        1 => (Some(Duration::from_micros(100)), 5000),
        2 => (Some(Duration::from_millis(1)), 500),
        3 => (Some(Duration::from_millis(10)), 60),
        4 => (None, 300),
        _ => (Some(Duration::from_millis(1)), 300),
    };
    if series == "none" && period.is_none() {
        return Ok(Figures::default());
    }
    let calls = extent.at_most(calls, 5);
    in_service(async move {
        let pool = builder(series).build().await?;
        warm(&pool).await?;
        let busy = if case >= BUSY {
            Some(keep_busy().await?)
        } else {
            None
        };
        let mut pace = period.map(Pace::new).transpose()?;
        let pids = workers(&pool);
        let mut samples = Vec::with_capacity(calls);
        let before = (Usage::of(&usage::own())?, Usage::of(&pids)?);
        for n in 0..calls as u64 {
            if let Some(pace) = &mut pace {
                pace.tick().await?;
            }
            if series != "none" {
                let began = Instant::now();
                pool.apply(successor, n).await?;
                samples.push(began.elapsed());
            }
        }
        let parent = Usage::of(&usage::own())?.since(&before.0);
        let used = Usage::of(&pids)?.since(&before.1);
        let each = |sum: u64| sum as f64 / calls as f64;
        if let Some(busy) = busy {
            busy.terminate();
        }
        Ok(latencies(samples)
            .with("parent", each(parent.nanoseconds) / 1e3)
            .with("workers", each(used.nanoseconds) / 1e3)
            .with("switches", each(parent.switches + used.switches)))
    })
}
