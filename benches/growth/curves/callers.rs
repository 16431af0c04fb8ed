//! More callers at once, each of whom waits for a result before it asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Error;
use crate::curve::{Curve, Drawn, Extent, Metric, Points};
use crate::measure::{Figures, in_service, pool, rate};
use crate::plot::{Axis, Unit};
use crate::tasks::{block, compute, steps_per_microsecond, successor, warm};

pub(crate) static CURVE: Curve = Curve {
    name: "callers",
    about: "tokio tasks that call a pool of two again and again, each one call at a time",
    x: Axis {
        label: "callers",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 2., 3., 4., 8., 16., 32., 64., 128., 256., 512., 1024., 4096.]),
    series: &[("tiny", "tiny"), ("ten", "of 10 µs"), ("hundred", "of 100 µs")],
    metrics: &[
        Metric {
            key: "rate",
            label: "calls/s",
            unit: Unit::Count,
            plot: Some(Drawn {
                title: "Calls a second by number of callers, two workers",
                logarithmic: true,
            }),
        },
        Metric {
            key: "p99",
            label: "p99 of a call",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "99th percentile of a call by number of callers, two workers",
                logarithmic: true,
            }),
        },
    ],
    measure,
};

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let length = match series {
        "ten" => 10.0,
        "hundred" => 100.0,
        _ => 0.0,
    };
    let steps = (steps_per_microsecond()? * length) as u64;
    let time = match extent {
        Extent::Test => Duration::from_millis(5),
        _ => Duration::from_millis(300),
    };
    in_service(async move {
        let pool = pool(2).await?;
        warm(&pool).await?;
        let is_over = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let callers: Vec<_> = (0..x as usize)
            .map(|_| {
                let (pool, is_over, done) = (pool.clone(), Arc::clone(&is_over), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut samples = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        if length == 0.0 {
                            pool.apply(successor, 1).await?;
                        } else {
                            pool.apply(compute, steps).await?;
                        }
                        samples.push(began.elapsed());
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, Error>(samples)
                })
            })
            .collect();
        // Not by a timer of the runtime, which is busy.
        tokio::task::spawn_blocking(move || block(time)).await?;
        let figures = Figures::default().with("rate", rate(done.load(Ordering::Relaxed), began));
        is_over.store(true, Ordering::Relaxed);
        let mut samples = Vec::new();
        for caller in callers {
            samples.extend(caller.await??);
        }
        Ok(figures.latencies(samples))
    })
}
