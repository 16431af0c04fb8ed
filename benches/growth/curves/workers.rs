//! More workers, more than there are cores too.

use std::time::{Duration, Instant};

use crate::Error;
use crate::curve::{Curve, Extent, Keeps, Knee, Metric, Points, every_run};
use crate::figures::{Figures, check, rate};
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};
use crate::service::{in_service, pool, warm};
use crate::tasks::{compute, steps_per_microsecond, successor};

pub(crate) static CURVE: Curve = Curve {
    name: "workers",
    about: "Tasks a second for pools of more workers",
    x: Axis {
        label: "workers",
        unit: Unit::Count,
        logarithmic: true,
    },
    points: Points::Numbers(&[1., 2., 3., 4., 8., 16., 32., 64.]),
    series: &[
        ("single", "tiny, singly"),
        ("map", "tiny, map"),
        ("millisecond", "of 1 ms, singly"),
        ("sequence", "tiny, one at a time"),
    ],
    metrics: &[Metric::new("rate", "tasks/s", Unit::Count)
        .drawn("Tasks a second by number of workers", true)
        .keeps(Keeps::Up)],
    measure,
    most_runs: every_run,
    says: |outcome| {
        vec![
            many(outcome, "single", "Tiny tasks submitted singly"),
            many(outcome, "map", "Tiny elements of a map"),
            long(outcome),
            one_at_a_time(outcome),
        ]
    },
    knees: &[
        Knee {
            metric: "rate",
            series: &["single", "map"],
            above: 1.0,
            up_to: 64.0,
            why: "The same tasks go to more processes than there are cores: in smaller batches, to workers that have to \
                  be woken and take turns on the cores with each other and with the parent.",
        },
        Knee {
            metric: "rate",
            series: &["millisecond"],
            above: 1.0,
            up_to: 64.0,
            why: "The cores have no more to give; processes that share a core are switched between by the system, the \
                  parent waits for its turn among them, and the last tasks of all end one by one.",
        },
        Knee {
            metric: "rate",
            series: &["sequence"],
            above: 1.0,
            up_to: 64.0,
            why: "It is one worker that answers, whatever the size of the pool: where it runs in relation to its caller, \
                  on the same core or on another, is up to the system, and makes two modes.",
        },
    ],
};

fn many(outcome: &Outcome<'_>, series: &str, what: &str) -> Option<String> {
    let best = outcome.best(series, "rate")?;
    let last = outcome.line(series, "rate").last()?.x;
    Some(format!(
        "{what}: most with {} workers, {}/s, and {:.0} % of it with {}. More workers than cores add nothing but \
         processes to be woken, and take nothing from each other but their turns: no collapse.",
        outcome.show_x(best.x),
        Unit::Count.show(best.y),
        100.0 * outcome.last_over_best(series, "rate")?,
        outcome.show_x(last),
    ))
}

fn long(outcome: &Outcome<'_>) -> Option<String> {
    let one = outcome.show("millisecond", 1.0, "rate")?;
    let two = outcome.show("millisecond", 2.0, "rate")?;
    let last = *outcome.line("millisecond", "rate").last()?;
    Some(format!(
        "Tasks of 1 ms: {one}/s with one worker, {two}/s with two, {}/s with {}: as many as there are cores for them.",
        Unit::Count.show(last.y),
        outcome.show_x(last.x)
    ))
}

fn one_at_a_time(outcome: &Outcome<'_>) -> Option<String> {
    let (least, most) = outcome.range("sequence", "rate")?;
    Some(format!(
        "One call at a time: {} to {}/s, whatever the size of the pool, for the worker that was busy last is asked \
         again.",
        Unit::Count.show(least),
        Unit::Count.show(most)
    ))
}

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
