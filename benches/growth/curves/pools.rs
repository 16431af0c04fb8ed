//! Larger pools: what it takes to start them and to have them.

use std::fs;
use std::time::{Duration, Instant};

use crate::Error;
use crate::curve::{Curve, Extent, Keeps, Knee, Metric, Points, every_run};
use crate::figures::{Figures, latencies, microseconds, rate};
use crate::memory::Growth;
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};
use crate::service::{block, pool, warm, workers};
use crate::tasks::successor;
use crate::usage::{self, Usage};

pub(crate) static CURVE: Curve = Curve {
    name: "pools",
    about: "Pools of up to five hundred workers: their start, their end, what they hold, what a call wakes, and what \
            they do when idle",
    x: Axis {
        label: "workers",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 2., 5., 10., 20., 50., 100., 200., 500.]),
    series: &[("pool", "pool")],
    metrics: &[
        Metric::new("start", "to start, for each worker", Unit::Microseconds)
            .drawn("Time to start a pool, for each worker", false)
            .keeps(Keeps::Down),
        Metric::new("end", "to end, for each worker", Unit::Microseconds)
            .drawn("Time to end a pool, for each worker", false)
            .keeps(Keeps::Down),
        Metric::new("files", "descriptors in the parent", Unit::Count)
            .drawn("Descriptors in the parent by size of the pool", true),
        Metric::new("memory", "memory in the parent, for each worker", Unit::Bytes)
            .drawn("Memory in the parent, for each worker", true)
            .keeps(Keeps::Down),
        Metric::new("rate", "tiny tasks/s", Unit::Count)
            .drawn("Tiny tasks a second by size of the pool", true)
            .keeps(Keeps::Up),
        Metric::new("p50", "one call, p50", Unit::Microseconds)
            .drawn("Median of one call at a time by size of the pool", true)
            .keeps(Keeps::Down),
        Metric::new("wakes", "switches for one call, all processes", Unit::Count)
            .drawn("Context switches for one call by size of the pool", false),
        Metric::new("idle", "switches in an idle second, all processes", Unit::Count)
            .drawn("Context switches in an idle second by size of the pool", false)
            .keeps(Keeps::Down),
    ],
    measure,
    most_runs: every_run,
    says: |outcome| vec![files(outcome), start(outcome), calls(outcome), idle(outcome)],
    knees: &[
        Knee {
            metric: "start",
            series: &[],
            above: 1.0,
            up_to: 500.0,
            why: "Workers start side by side as far as there are cores; more of them share the cores, and each process \
                  that there is makes the system's own tables larger for the next.",
        },
        Knee {
            metric: "end",
            series: &[],
            above: 1.0,
            up_to: 500.0,
            why: "Workers end side by side as far as there are cores; then the system takes their memory down one after \
                  the other.",
        },
        Knee {
            metric: "rate",
            series: &[],
            above: 1.0,
            up_to: 500.0,
            why: "The same tasks go to more processes than there are cores: in smaller batches, to workers that have to \
                  be woken and take turns.",
        },
        Knee {
            metric: "p50",
            series: &[],
            above: 1.0,
            up_to: 500.0,
            why: "One worker answers, whatever the size. Two modes, of which the system chooses: caller and worker on two \
                  cores find each other awake; on one they take turns, which is two switches a call.",
        },
    ],
};

fn files(outcome: &Outcome<'_>) -> Option<String> {
    let line = outcome.line("pool", "files");
    let (first, last) = (line.first()?, line.last()?);
    let each = (last.y - first.y) / (last.x - first.x);
    Some(format!(
        "Descriptors in the parent: {each:.1} for each worker, and {:.0} for the pool; {:.0} with {} workers. Memory in \
         the parent: {} for each of them.",
        first.y - each * first.x,
        last.y,
        outcome.show_x(last.x),
        outcome.show("pool", last.x, "memory")?,
    ))
}

fn start(outcome: &Outcome<'_>) -> Option<String> {
    let last = outcome.line("pool", "start").last()?.x;
    Some(format!(
        "A pool of {} takes {} to start for each worker and {} to end, one of two {} and {}: a worker is a process, \
         which the system starts in about that time.",
        outcome.show_x(last),
        outcome.show("pool", last, "start")?,
        outcome.show("pool", last, "end")?,
        outcome.show("pool", 2.0, "start")?,
        outcome.show("pool", 2.0, "end")?,
    ))
}

fn calls(outcome: &Outcome<'_>) -> Option<String> {
    let last = outcome.line("pool", "p50").last()?.x;
    Some(format!(
        "One call at a time takes {} in a pool of {} and {} in one of two: only the worker that is asked wakes.",
        outcome.show("pool", last, "p50")?,
        outcome.show_x(last),
        outcome.show("pool", 2.0, "p50")?,
    ))
}

fn idle(outcome: &Outcome<'_>) -> Option<String> {
    let (_, most) = outcome.range("pool", "idle")?;
    Some(format!(
        "Idle pools of any of these sizes made {most:.0} context switches a second at the most, all processes together."
    ))
}

/// Files that this process has open.
fn open_files() -> Result<f64, Error> {
    // One of them is what reads the list.
    Ok(fs::read_dir("/proc/self/fd")?.count() as f64 - 1.0)
}

fn measure(_: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    let files = open_files()?;
    let growth = Growth::begin()?;
    let (pool, figures) = runtime.block_on(async {
        let began = Instant::now();
        let pool = pool(x as usize).await?;
        let start = microseconds(began) / x;
        let figures = Figures::default()
            .with("start", start)
            .with("files", open_files()? - files)
            .with("memory", growth.each(x as usize)?);
        warm(&pool).await?;

        let n = extent.at_most(50_000, 100);
        let began = Instant::now();
        let calls: Vec<_> = (0..n as u64).map(|n| pool.apply_async(successor, n)).collect();
        for call in calls {
            call.await?;
        }
        let figures = figures.with("rate", rate(n, began));

        let mut pids = workers(&pool);
        pids.extend(usage::own());
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
            .with_all("", &latencies(samples))
            .with("wakes", used.switches as f64 / n as f64);
        Ok::<_, Error>((pool, figures))
    })?;

    let mut pids = workers(&pool);
    pids.extend(usage::own());
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
