//! Larger pools: what it takes to start them and to have them.

use std::time::{Duration, Instant};

use crate::Error;
use crate::curve::{Curve, Drawn, Extent, Metric, Points};
use crate::measure::{Figures, microseconds, pool, rate};
use crate::observe::{self, Usage};
use crate::plot::{Axis, Unit};
use crate::tasks::{block, successor, warm};

pub(crate) static CURVE: Curve = Curve {
    name: "pools",
    about: "pools of up to five hundred workers: their start, their end, what they hold, and what they do when idle",
    x: Axis {
        label: "workers",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 2., 5., 10., 20., 50., 100., 200., 350., 500.]),
    series: &[("pool", "pool")],
    metrics: &[
        Metric {
            key: "start",
            label: "to start, for each worker",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "Time to start a pool, for each worker",
                logarithmic: false,
            }),
        },
        Metric {
            key: "end",
            label: "to end, for each worker",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "Time to end a pool, for each worker",
                logarithmic: false,
            }),
        },
        Metric {
            key: "files",
            label: "descriptors in the parent",
            unit: Unit::Count,
            plot: None,
        },
        Metric {
            key: "memory",
            label: "memory in the parent, for each worker",
            unit: Unit::Bytes,
            plot: None,
        },
        Metric {
            key: "rate",
            label: "tiny tasks/s",
            unit: Unit::Count,
            plot: Some(Drawn {
                title: "Tiny tasks a second by size of the pool",
                logarithmic: true,
            }),
        },
        Metric {
            key: "p50",
            label: "one call, p50",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "Median of one call at a time by size of the pool",
                logarithmic: true,
            }),
        },
        Metric {
            key: "wakes",
            label: "switches for one call, all processes",
            unit: Unit::Count,
            plot: None,
        },
        Metric {
            key: "idle",
            label: "switches in an idle second, all processes",
            unit: Unit::Count,
            plot: None,
        },
    ],
    measure,
};

fn measure(_: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    let files = observe::open_files()?;
    let memory = observe::resident()?;
    let (pool, figures) = runtime.block_on(async {
        let began = Instant::now();
        let pool = pool(x as usize).await?;
        let start = microseconds(began) / x;
        let figures = Figures::default()
            .with("start", start)
            .with("files", observe::open_files()? - files)
            .with("memory", (observe::resident()? - memory) / x);
        warm(&pool).await?;

        let n = extent.at_most(50_000, 100);
        let began = Instant::now();
        let calls: Vec<_> = (0..n as u64).map(|n| pool.apply_async(successor, n)).collect();
        for call in calls {
            call.await?;
        }
        let figures = figures.with("rate", rate(n, began));

        let mut pids = observe::workers(&pool);
        pids.extend(observe::own());
        let before = Usage::of(&pids)?;
        let n = extent.at_most(1000, 20);
        let mut samples = Vec::with_capacity(n);
        for n in 0..n as u64 {
            let began = Instant::now();
            pool.apply(successor, n).await?;
            samples.push(began.elapsed());
        }
        let used = Usage::of(&pids)?.since(&before);
        let figures = figures
            .latencies(samples)
            .with("wakes", used.switches as f64 / n as f64);
        Ok::<_, Error>((pool, figures))
    })?;

    let mut pids = observe::workers(&pool);
    pids.extend(observe::own());
    block(Duration::from_millis(if extent == Extent::Test {
        10
    } else {
        100
    }));
    let before = Usage::of_others(&pids)?;
    block(Duration::from_millis(if extent == Extent::Test {
        10
    } else {
        1000
    }));
    let idle = Usage::of_others(&pids)?.since(&before).switches;
    let figures = figures.with("idle", idle as f64);

    let began = Instant::now();
    runtime.block_on(async {
        pool.close();
        pool.join().await
    })?;
    Ok(figures.with("end", microseconds(began) / x))
}
