//! Longer tasks: where a pool does more than one thread.

use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::Error;
use crate::curve::{Curve, Drawn, Extent, Metric, Points};
use crate::measure::{Figures, in_service, pool};
use crate::plot::{Axis, Unit};
use crate::tasks::{compute, steps_per_microsecond, warm};

pub(crate) static CURVE: Curve = Curve {
    name: "lengths",
    about: "how many seconds of tasks are done in a second, by two workers and in threads; 1 is one thread that does nothing else",
    x: Axis {
        label: "length of a task",
        unit: Unit::Microseconds,
        logarithmic: true,
    },
    points: Points::Numbers(&[
        1., 2., 3., 5., 10., 20., 30., 50., 100., 200., 500., 1000., 2000., 5000., 10_000.,
    ]),
    series: &[
        ("single", "pool, singly"),
        ("map", "pool, map"),
        ("thread", "one thread"),
        ("rayon", "rayon, par_iter"),
        ("blocking", "spawn_blocking"),
    ],
    metrics: &[Metric {
        key: "work",
        label: "seconds of tasks in a second",
        unit: Unit::Count,
        plot: Some(Drawn {
            title: "Work done by length of task, two workers",
            logarithmic: false,
        }),
    }],
    measure,
};

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let steps = (steps_per_microsecond()? * x) as u64;
    // Some 0.3 s of work, and enough to share between two.
    let n = extent.at_most(((300_000.0 / x) as usize).clamp(40, 200_000), 4);
    let work = |seconds: f64| Figures::default().with("work", n as f64 * x / 1e6 / seconds);
    match series {
        "thread" => {
            let began = Instant::now();
            for _ in 0..n {
                compute(steps);
            }
            Ok(work(began.elapsed().as_secs_f64()))
        }
        "rayon" => {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
            let run = || -> Vec<u64> { (0..n).into_par_iter().map(|_| compute(steps)).collect() };
            let began = Instant::now();
            let results = threads.install(run);
            drop(results);
            Ok(work(began.elapsed().as_secs_f64()))
        }
        "blocking" => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .max_blocking_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let began = Instant::now();
                let calls: Vec<_> = (0..n)
                    .map(|_| runtime.spawn_blocking(move || compute(steps)))
                    .collect();
                for call in calls {
                    call.await?;
                }
                Ok(work(began.elapsed().as_secs_f64()))
            })
        }
        _ => in_service(async move {
            let pool = pool(2).await?;
            warm(&pool).await?;
            let began = Instant::now();
            if series == "map" {
                pool.map(compute, std::iter::repeat_n(steps, n)).await?;
            } else {
                let calls: Vec<_> = (0..n).map(|_| pool.apply_async(compute, steps)).collect();
                for call in calls {
                    call.await?;
                }
            }
            let seconds = began.elapsed().as_secs_f64();
            Ok(Figures::default().with("work", n as f64 * x / 1e6 / seconds))
        }),
    }
}
