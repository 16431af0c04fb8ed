//! More workers, more than there are cores too.

use std::time::{Duration, Instant};

use crate::Error;
use crate::curve::{Curve, Drawn, Extent, Metric, Points};
use crate::measure::{Figures, check, in_service, pool, rate};
use crate::plot::{Axis, Unit};
use crate::tasks::{compute, steps_per_microsecond, successor, warm};

pub(crate) static CURVE: Curve = Curve {
    name: "workers",
    about: "tasks a second for pools of more workers",
    x: Axis {
        label: "workers",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 2., 3., 4., 6., 8., 12., 16., 24., 32., 48., 64.]),
    series: &[
        ("single", "tiny, singly"),
        ("map", "tiny, map"),
        ("millisecond", "of 1 ms, singly"),
        ("sequence", "tiny, one at a time"),
    ],
    metrics: &[Metric {
        key: "rate",
        label: "tasks/s",
        unit: Unit::Count,
        plot: Some(Drawn {
            title: "Tasks a second by number of workers",
            logarithmic: true,
        }),
    }],
    measure,
};

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let steps = if series == "millisecond" {
        (steps_per_microsecond()? * 1000.0) as u64
    } else {
        0
    };
    in_service(async move {
        let pool = pool(x as usize).await?;
        warm(&pool).await?;
        let began = Instant::now();
        let done = match series {
            "single" => {
                let n = extent.at_most(100_000, 100);
                let calls: Vec<_> = (0..n as u64).map(|n| pool.apply_async(successor, n)).collect();
                for call in calls {
                    call.await?;
                }
                n
            }
            "map" => {
                let n = extent.at_most(2_000_000, 1000);
                check(pool.map(successor, 0..n as u64).await?.len() == n)?;
                n
            }
            "millisecond" => {
                let n = extent.at_most(400, 4);
                let calls: Vec<_> = (0..n).map(|_| pool.apply_async(compute, steps)).collect();
                for call in calls {
                    call.await?;
                }
                n
            }
            _ => {
                let mut n = 0;
                while n < 20 || extent != Extent::Test && began.elapsed() < Duration::from_millis(200) {
                    pool.apply(successor, n as u64).await?;
                    n += 1;
                }
                n
            }
        };
        Ok(Figures::default().with("rate", rate(done, began)))
    })
}
