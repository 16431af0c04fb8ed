//! A pool that has nothing to do: nobody wakes.

use std::time::Duration;

use crate::Error;
use crate::curve::{Curve, Extent, Metric, Points, every_run};
use crate::figures::Figures;
use crate::plot::{Axis, Unit};
use crate::service::{block, pool, warm, workers};
use crate::tasks::successor;
use crate::usage::{self, Usage};

pub(crate) static CURVE: Curve = Curve {
    name: "idle",
    about: "Switches (voluntary and not) in two seconds of an idle pool of eight, and the CPU time that it takes in them",
    x: Axis {
        label: "before",
        unit: Unit::Count,
        logarithmic: false,
    },
    points: Points::Cases(&["nothing", "100,000 calls", "callbacks", "a worker was killed"]),
    series: &[("threads", "multi_thread"), ("current", "current_thread")],
    metrics: &[
        Metric::new("parent", "switches in the parent", Unit::Count),
        Metric::new("workers", "in workers", Unit::Count),
        Metric::new("cpu", "CPU time of all", Unit::Microseconds),
    ],
    measure,
    most_runs: every_run,
    says: |outcome| {
        let series = outcome.curve.series.iter();
        let most = |metric: &str| {
            let ranges = series.clone().map(|(series, _)| outcome.range(series, metric));
            ranges.flatten().map(|(_, most)| most).reduce(f64::max)
        };
        let says = |parent: f64, workers: f64| {
            format!(
                "At the most {parent:.0} switches in the parent and {workers:.0} in workers: nothing in an idle pool \
                 has a clock, neither the parent nor a worker."
            )
        };
        vec![
            most("parent")
                .zip(most("workers"))
                .map(|(parent, workers)| says(parent, workers)),
        ]
    },
    knees: &[],
};

fn measure(series: &'static str, case: f64, extent: Extent) -> Result<Figures, Error> {
    let runtime = match series {
        "threads" => tokio::runtime::Runtime::new()?,
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
    };
    let pool = runtime.block_on(async {
        let pool = pool(8).await?;
        match case as usize {
            0 => {}
            1 => {
                let n = extent.at_most(100_000, 100) as u64;
                let calls: Vec<_> = (0..n).map(|n| pool.apply_async(successor, n)).collect();
                for call in calls {
                    call.await?;
                }
            }
            2 => {
                for n in 0..100 {
                    let blocks = |_: &u64| block(Duration::from_millis(1));
                    pool.apply_async(successor, n).callback(blocks).await?;
                }
            }
            _ => {
                let killed = pool.apply(|(): ()| std::process::abort(), ()).await;
                let killed: Result<(), _> = killed;
                drop(killed);
                warm(&pool).await?;
            }
        }
        Ok::<_, Error>(pool)
    })?;
    // What was begun comes to its end, the start of another worker too.
    block(Duration::from_millis(if extent == Extent::Test {
        1
    } else {
        300
    }));
    let pids = workers(&pool);
    let before = (Usage::of_others(&usage::own())?, Usage::of_others(&pids)?);
    block(Duration::from_millis(if extent == Extent::Test {
        10
    } else {
        2000
    }));
    let parent = Usage::of_others(&usage::own())?.since(&before.0);
    let workers = Usage::of_others(&pids)?.since(&before.1);
    Ok(Figures::default()
        .with("parent", parent.switches as f64)
        .with("workers", workers.switches as f64)
        .with("cpu", (parent.nanoseconds + workers.nanoseconds) as f64 / 1e3))
}
