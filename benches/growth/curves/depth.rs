//! A deeper queue: what a task costs to submit and to take out again, and what it holds meanwhile.

use std::time::Instant;

use crate::Error;
use crate::curve::{Curve, Extent, Keeps, Knee, Metric, Points};
use crate::figures::{Figures, microseconds};
use crate::memory::Growth;
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};
use crate::service::{in_service, pool};
use crate::tasks::{Gate, hold, successor};

/// Fewer do not show in the resident memory of a process.
const WEIGHABLE: usize = 10_000;
/// What takes longer than most other curves.
const MANY: f64 = 3e6;

pub(crate) static CURVE: Curve = Curve {
    name: "depth",
    about: "Tiny tasks queued behind two held workers, then run; memory is that of queue and handles in the parent",
    x: Axis {
        label: "tasks queued",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 10., 100., 1e3, 1e4, 1e5, 1e6, 1e7]),
    series: &[("flat", "one priority"), ("mixed", "a hundred priorities")],
    metrics: &[
        Metric::new("submit", "to submit one", Unit::Microseconds)
            .drawn("Time to submit a task by depth of the queue", true)
            .keeps(Keeps::Down),
        Metric::new("drain", "to run one and take its result", Unit::Microseconds)
            .drawn("Time to run a queued task by depth of the queue", true)
            .keeps(Keeps::Down),
        Metric::new("bytes", "memory of a queued task", Unit::Bytes)
            .drawn("Memory of a queued task by depth of the queue", false)
            .keeps(Keeps::Down),
    ],
    measure,
    most_runs: |x| if x > MANY { 2 } else { usize::MAX },
    says: |outcome| vec![deep(outcome), priorities(outcome), shallow(outcome)],
    knees: &[
        Knee {
            metric: "submit",
            series: &[],
            above: 10.0,
            up_to: 1e7,
            why: "What a queued task holds no longer fits into the processor's caches, and then not into memory that \
                  the process has: each page of it is asked of the system.",
        },
        Knee {
            metric: "drain",
            series: &[],
            above: 10.0,
            up_to: 1e7,
            why: "A task that waited is no longer in the processor's caches when its turn comes, nor is its handle when \
                  it is awaited.",
        },
        Knee {
            metric: "bytes",
            series: &[],
            above: 0.0,
            up_to: 1e7,
            why: "Tables double when they are full, and are as large as what comes next; between two doublings the \
                  share of each task falls.",
        },
    ],
};

fn deep(outcome: &Outcome<'_>) -> Option<String> {
    let from = outcome
        .line("flat", "submit")
        .into_iter()
        .rfind(|point| point.x <= 1e4)?
        .x;
    let to = outcome.line("flat", "submit").last()?.x;
    let both = |metric: &str| {
        Some((
            outcome.show("flat", from, metric)?,
            outcome.show("flat", to, metric)?,
        ))
    };
    let (submit, drain) = (both("submit")?, both("drain")?);
    Some(format!(
        "From {} to {} queued tasks the time to submit one goes from {} to {}, that to run one and take its result from \
         {} to {}; at the end each holds {}. The queue has no step that takes longer the more there is in it: what \
         grows is the way to memory.",
        outcome.show_x(from),
        outcome.show_x(to),
        submit.0,
        submit.1,
        drain.0,
        drain.1,
        outcome.show("flat", to, "bytes")?,
    ))
}

fn priorities(outcome: &Outcome<'_>) -> Option<String> {
    let last = outcome.line("mixed", "submit").last()?.x;
    Some(format!(
        "A hundred priorities in no order, at {}: {} to submit and {} to run, beside {} and {} with one.",
        outcome.show_x(last),
        outcome.show("mixed", last, "submit")?,
        outcome.show("mixed", last, "drain")?,
        outcome.show("flat", last, "submit")?,
        outcome.show("flat", last, "drain")?,
    ))
}

fn shallow(outcome: &Outcome<'_>) -> Option<String> {
    let first = outcome.line("flat", "drain").first()?.x;
    Some(format!(
        "A queue of {} costs {} to run, for it is a held worker that is woken for so few.",
        outcome.show_x(first),
        outcome.show("flat", first, "drain")?
    ))
}

fn measure(series: &'static str, x: f64, _: Extent) -> Result<Figures, Error> {
    let n = x as usize;
    if series == "mixed" && n > 1_000_000 {
        // The other series shows what there is to see there.
        return Ok(Figures::default());
    }
    in_service(async move {
        let pool = pool(2).await?;
        let mut gate = Gate::new()?;
        let port = gate.port()?;
        let workers = pool.workers().len();
        let held: Vec<_> = (0..workers).map(|_| pool.apply_async(hold, port)).collect();
        gate.wait_for(workers)?;
        let growth = Growth::begin()?;
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
        let bytes = growth.each(n)?;
        let began = Instant::now();
        drop(gate);
        for call in calls {
            call.await?;
        }
        let drain = microseconds(began) / x;
        for call in held {
            call.await?;
        }
        Ok(Figures::default()
            .with("submit", submit)
            .with("drain", drain)
            .with("bytes", if n >= WEIGHABLE { bytes } else { f64::NAN }))
    })
}
