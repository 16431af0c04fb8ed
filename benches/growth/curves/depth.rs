//! A deeper queue: what a task costs to submit and to take out again, and what it holds meanwhile.

use std::time::Instant;

use crate::Error;
use crate::curve::{Curve, Drawn, Extent, Metric, Points};
use crate::measure::{Figures, in_service, microseconds, pool};
use crate::observe;
use crate::plot::{Axis, Unit};
use crate::tasks::{Gate, successor};

/// Fewer do not show in the resident memory of a process.
const WEIGHABLE: usize = 10_000;

pub(crate) static CURVE: Curve = Curve {
    name: "depth",
    about: "tiny tasks queued behind two held workers, then run; memory is that of queue and handles in the parent",
    x: Axis {
        label: "tasks queued",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 10., 100., 1e3, 1e4, 1e5, 3e5, 1e6, 3e6, 1e7]),
    series: &[("flat", "one priority"), ("mixed", "a hundred priorities")],
    metrics: &[
        Metric {
            key: "submit",
            label: "to submit one",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "Time to submit a task by depth of the queue",
                logarithmic: true,
            }),
        },
        Metric {
            key: "drain",
            label: "to run one and take its result",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "Time to run a queued task by depth of the queue",
                logarithmic: true,
            }),
        },
        Metric {
            key: "bytes",
            label: "memory of a queued task",
            unit: Unit::Bytes,
            plot: Some(Drawn {
                title: "Memory of a queued task by depth of the queue",
                logarithmic: false,
            }),
        },
    ],
    measure,
};

fn measure(series: &'static str, x: f64, _: Extent) -> Result<Figures, Error> {
    let n = x as usize;
    if series == "mixed" && n > 1_000_000 {
        // The first series takes half a minute there, and shows what there is to see.
        return Ok(Figures::default());
    }
    in_service(async move {
        let pool = pool(2).await?;
        let gate = Gate::close(&pool)?;
        let before = observe::resident()?;
        let began = Instant::now();
        let mut calls = Vec::with_capacity(n);
        for n in 0..n as u64 {
            calls.push(match series {
                "flat" => pool.apply_async(successor, n),
                // In no order.
                _ => pool.task(successor, n).priority((n * 37 % 100) as i32).submit(),
            });
        }
        let submit = microseconds(began) / x;
        let bytes = (observe::resident()? - before) / x;
        let began = Instant::now();
        drop(gate);
        for call in calls {
            call.await?;
        }
        let drain = microseconds(began) / x;
        Ok(Figures::default()
            .with("submit", submit)
            .with("drain", drain)
            .with("bytes", if n >= WEIGHABLE { bytes } else { f64::NAN }))
    })
}
