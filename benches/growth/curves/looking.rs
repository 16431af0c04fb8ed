//! What it costs to look again for work before sleeping, and what it gains, at several rates of calls.

use std::time::{Duration, Instant};

use procession::{Pool, PoolBuilder};

use crate::Error;
use crate::curve::{Curve, Extent, Metric, Points};
use crate::measure::{Figures, in_service};
use crate::observe::{self, Usage};
use crate::pace::Pace;
use crate::plot::{Axis, Unit};
use crate::tasks::{successor, warm};

const TIME: Metric = Metric {
    key: "",
    label: "",
    unit: Unit::Microseconds,
    plot: None,
};

pub(crate) static CURVE: Curve = Curve {
    name: "looking",
    about: "one tiny call at a time to a pool of two, and the CPU time that it takes; without any call, what the timer takes",
    x: Axis {
        label: "a call every",
        unit: Unit::Microseconds,
        logarithmic: true,
    },
    points: Points::Cases(&["result (back to back)", "100 µs", "1 ms", "10 ms"]),
    series: &[("default", "default"), ("off", "off"), ("none", "no call")],
    metrics: &[
        Metric {
            key: "p50",
            label: "p50",
            ..TIME
        },
        Metric {
            key: "p99",
            label: "p99",
            ..TIME
        },
        Metric {
            key: "parent",
            label: "CPU in the parent",
            ..TIME
        },
        Metric {
            key: "workers",
            label: "CPU in workers",
            ..TIME
        },
        Metric {
            key: "switches",
            label: "switches, all processes",
            unit: Unit::Count,
            ..TIME
        },
    ],
    measure,
};

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
        _ => (Some(Duration::from_millis(10)), 60),
    };
    if series == "none" && period.is_none() {
        return Ok(Figures::default());
    }
    let calls = extent.at_most(calls, 5);
    in_service(async move {
        let pool = builder(series).build().await?;
        warm(&pool).await?;
        let mut pace = period.map(Pace::new).transpose()?;
        let workers = observe::workers(&pool);
        let mut samples = Vec::with_capacity(calls);
        let before = (Usage::of(&observe::own())?, Usage::of(&workers)?);
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
        let parent = Usage::of(&observe::own())?.since(&before.0);
        let workers = Usage::of(&workers)?.since(&before.1);
        let each = |sum: u64| sum as f64 / calls as f64;
        Ok(Figures::default()
            .latencies(samples)
            .with("parent", each(parent.nanoseconds) / 1e3)
            .with("workers", each(workers.nanoseconds) / 1e3)
            .with("switches", each(parent.switches + workers.switches)))
    })
}
