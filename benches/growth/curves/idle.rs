//! A pool that has nothing to do: nobody wakes.

use std::time::Duration;

use crate::Error;
use crate::curve::{Curve, Extent, Metric, Points};
use crate::measure::{Figures, pool};
use crate::observe::{self, Usage};
use crate::plot::{Axis, Unit};
use crate::tasks::{block, successor, warm};

const COUNT: Metric = Metric {
    key: "",
    label: "",
    unit: Unit::Count,
    plot: None,
};

pub(crate) static CURVE: Curve = Curve {
    name: "idle",
    about: "switches (voluntary and not) in three seconds of an idle pool of eight",
    x: Axis {
        label: "before",
        unit: Unit::Count,
        logarithmic: false,
    },
    points: Points::Cases(&["nothing", "100,000 calls", "callbacks", "a worker was killed"]),
    series: &[("threads", "multi_thread"), ("current", "current_thread")],
    metrics: &[
        Metric {
            key: "parent",
            label: "switches in the parent",
            ..COUNT
        },
        Metric {
            key: "workers",
            label: "in workers",
            ..COUNT
        },
        Metric {
            key: "cpu",
            label: "CPU time of all",
            unit: Unit::Microseconds,
            ..COUNT
        },
    ],
    measure,
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
        500
    }));
    let workers = observe::workers(&pool);
    let before = (Usage::of_others(&observe::own())?, Usage::of_others(&workers)?);
    block(Duration::from_millis(if extent == Extent::Test {
        10
    } else {
        3000
    }));
    let parent = Usage::of_others(&observe::own())?.since(&before.0);
    let workers = Usage::of_others(&workers)?.since(&before.1);
    Ok(Figures::default()
        .with("parent", parent.switches as f64)
        .with("workers", workers.switches as f64)
        .with("cpu", (parent.nanoseconds + workers.nanoseconds) as f64 / 1e3))
}
