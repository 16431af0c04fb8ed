//! Longer tasks: where a pool does more than one thread.

use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::Error;
use crate::curve::{Curve, Extent, Keeps, Knee, Metric, Points, every_run};
use crate::figures::Figures;
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};
use crate::service::{in_service, pool, warm};
use crate::tasks::{compute, steps_per_microsecond};

pub(crate) static CURVE: Curve = Curve {
    name: "lengths",
    about: "How many seconds of tasks are done in a second, by two workers and by two threads of others; 1 is one \
            thread that does nothing else",
    x: Axis {
        label: "length of a task",
        unit: Unit::Microseconds,
        logarithmic: true,
    },
    points: Points::Numbers(&[
        1., 2., 5., 10., 20., 50., 100., 200., 500., 1000., 2000., 5000., 10_000.,
    ]),
    series: &[
        ("single", "pool, singly"),
        ("map", "pool, map"),
        ("thread", "one thread"),
        ("rayon", "rayon, par_iter"),
        ("blocking", "spawn_blocking"),
    ],
    metrics: &[Metric::new("work", "seconds of tasks in a second", Unit::Count)
        .drawn("Work done by length of task, two workers", false)
        .keeps(Keeps::Up)],
    measure,
    most_runs: every_run,
    says: |outcome| {
        vec![
            crossing(outcome, "single", "tasks submitted singly"),
            crossing(outcome, "map", "a map"),
            overhead(outcome),
        ]
    },
    knees: &[Knee {
        metric: "work",
        series: &[],
        above: 1.0,
        up_to: 10_000.0,
        why: "So few tasks of this length make up a measurement that one more on one core than on the other shows.",
    }],
};

/// Where a way of using the pool does more than others.
fn crossing(outcome: &Outcome<'_>, series: &str, what: &str) -> Option<String> {
    let longest = outcome.line(series, "work").last()?.x;
    let from = |times: f64, other: &str| match outcome.overtakes(series, times, other, "work") {
        Some(x) => format!("from {} a task on", outcome.show_x(x)),
        None => format!("at no length up to {}", outcome.show_x(longest)),
    };
    Some(format!(
        "**{what}**: more than one thread {}; at least 95 % of `spawn_blocking` {}; at least 95 % of `rayon` {}.",
        from(1.0, "thread"),
        from(0.95, "blocking"),
        from(0.95, "rayon"),
    ))
}

fn overhead(outcome: &Outcome<'_>) -> Option<String> {
    let each = |series: &str| {
        let point = *outcome.line(series, "work").first()?;
        Some(Unit::Microseconds.show(point.x / point.y))
    };
    let length = outcome.line("single", "work").first()?.x;
    Some(format!(
        "Tasks of {} take {} each when they are submitted singly, {} in a map, {} with `spawn_blocking`, {} with `rayon`: \
         what is above half their length is the way to the worker and back, most of it in the parent, which takes its \
         time on the same two cores. It is the same for a task of any length, so that it vanishes beside long ones.",
        outcome.show_x(length),
        each("single")?,
        each("map")?,
        each("blocking")?,
        each("rayon")?,
    ))
}

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let steps = (steps_per_microsecond()? * x) as u64;
    // Some 0.3 s of work, and enough to share between two.
    let n = extent.at_most(((250_000.0 / x) as usize).clamp(40, 200_000), 4);
    let warm_up = (n / 20).max(2);
    let work = |seconds: f64| Figures::default().with("work", n as f64 * x / 1e6 / seconds);
    match series {
        "thread" => {
            compute(steps);
            let began = Instant::now();
            for _ in 0..n {
                compute(steps);
            }
            Ok(work(began.elapsed().as_secs_f64()))
        }
        "rayon" => {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
            let run = |n| move || -> Vec<u64> { (0..n).into_par_iter().map(|_| compute(steps)).collect() };
            // Its threads have begun.
            drop(threads.install(run(warm_up)));
            let began = Instant::now();
            let results = threads.install(run(n));
            drop(results);
            Ok(work(began.elapsed().as_secs_f64()))
        }
        "blocking" => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .max_blocking_threads(2)
                .enable_all()
                .build()?;
            let run = async |n| -> Result<(), Error> {
                let calls: Vec<_> = (0..n)
                    .map(|_| runtime.spawn_blocking(move || compute(steps)))
                    .collect();
                for call in calls {
                    call.await?;
                }
                Ok(())
            };
            runtime.block_on(async {
                run(warm_up).await?;
                let began = Instant::now();
                run(n).await?;
                Ok(work(began.elapsed().as_secs_f64()))
            })
        }
        _ => in_service(async move {
            let pool = pool(2).await?;
            warm(&pool).await?;
            let run = async |n| -> Result<(), Error> {
                if series == "map" {
                    pool.map(compute, std::iter::repeat_n(steps, n)).await?;
                } else {
                    let calls: Vec<_> = (0..n).map(|_| pool.apply_async(compute, steps)).collect();
                    for call in calls {
                        call.await?;
                    }
                }
                Ok(())
            };
            run(warm_up).await?;
            let began = Instant::now();
            run(n).await?;
            let seconds = began.elapsed().as_secs_f64();
            Ok(Figures::default().with("work", n as f64 * x / 1e6 / seconds))
        }),
    }
}
