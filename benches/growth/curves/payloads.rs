//! Larger payloads: there, back, and both.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use memmap2::MmapMut;

use crate::Error;
use crate::curve::{Curve, Extent, Keeps, Knee, Metric, Points, every_run};
use crate::figures::{Figures, check};
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};
use crate::service::{in_service, pool, warm};
use crate::tasks::{echo, length, produce};

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// Less than a page is not handed out.
const LEAST_FRESH: f64 = 4. * KIB;

pub(crate) static CURVE: Curve = Curve {
    name: "payloads",
    about: "One `Bytes` at a time, there, back (where the worker makes it, which is in the time), and both; megabytes a \
            second count the bytes of both ways. \"Fresh memory\" is what this process takes to ask the system for as much \
            memory, to fill it and to give it back, without any pool",
    x: Axis {
        label: "bytes",
        unit: Unit::Bytes,
        logarithmic: true,
    },
    points: Points::Numbers(&[
        8.,
        64.,
        512.,
        KIB,
        2. * KIB,
        4. * KIB,
        8. * KIB,
        16. * KIB,
        32. * KIB,
        64. * KIB,
        128. * KIB,
        256. * KIB,
        512. * KIB,
        MIB,
        2. * MIB,
        4. * MIB,
        8. * MIB,
        16. * MIB,
        32. * MIB,
        64. * MIB,
        128. * MIB,
        256. * MIB,
    ]),
    series: &[
        ("echo", "there and back"),
        ("there", "there"),
        ("back", "back"),
        ("fresh", "fresh memory"),
    ],
    metrics: &[
        Metric::new("rate", "MB/s", Unit::Count)
            .drawn("Payloads: megabytes a second by size", true)
            .keeps(Keeps::Up),
        Metric::new("time", "time of a call", Unit::Microseconds)
            .drawn("Payloads: time of a call by size", true),
    ],
    measure,
    most_runs: every_run,
    says: |outcome| vec![flat(outcome), best(outcome), large(outcome)],
    knees: &[
        Knee {
            metric: "rate",
            series: &["echo", "there", "back"],
            above: 0.0,
            up_to: 32. * KIB,
            why: "From being copied along with other frames, bodies of these sizes change to being sent from where they \
                  lie and received where they belong, in system calls of their own.",
        },
        Knee {
            metric: "rate",
            series: &["echo", "there", "back"],
            above: 32. * KIB,
            up_to: 4. * MIB,
            why: "The system passes a body on in pieces of 32 KiB. A receiver that is faster than its sender, and sleeps \
                  when it has read one, is woken for the next, which on a virtual machine holds up the sender for longer \
                  than it takes to send a piece: there is a fast mode, in which both stay awake, and a slow one, which \
                  keeps itself going.",
        },
        Knee {
            metric: "rate",
            series: &["echo", "there", "back"],
            above: 4. * MIB,
            up_to: 256. * MIB,
            why: "The copies of the body no longer fit into the processor's caches together, and memory so large is given \
                  back to the system, which clears it anew each time: compare \"fresh memory\". A slow mode, in which \
                  the receiver is woken for every 32 KiB, is there as well.",
        },
        Knee {
            metric: "rate",
            series: &["fresh"],
            above: 0.0,
            up_to: 256. * MIB,
            why: "No pool is in it: memory of this size does not fit into the processor's caches.",
        },
    ],
};

fn flat(outcome: &Outcome<'_>) -> Option<String> {
    let line = outcome.line("echo", "time");
    let first = line.first()?;
    let last = line.iter().take_while(|point| point.y < 2.0 * first.y).last()?;
    Some(format!(
        "Up to {} an echo takes less than twice the {} that one of {} takes: it is the way there and back that costs, \
         not the bytes.",
        outcome.show_x(last.x),
        Unit::Microseconds.show(first.y),
        outcome.show_x(first.x),
    ))
}

fn best(outcome: &Outcome<'_>) -> Option<String> {
    let best = outcome.best("echo", "rate")?;
    Some(format!(
        "Echoes are fastest at {}, with {} MB/s; from there on memory binds, and not the pool.",
        outcome.show_x(best.x),
        Unit::Count.show(best.y)
    ))
}

fn large(outcome: &Outcome<'_>) -> Option<String> {
    let x = outcome.line("echo", "rate").last()?.x;
    Some(format!(
        "At {}: {} MB/s there and back, {} there, {} back; just to touch as much fresh memory goes at {} MB/s here.",
        outcome.show_x(x),
        outcome.show("echo", x, "rate")?,
        outcome.show("there", x, "rate")?,
        outcome.show("back", x, "rate")?,
        outcome.show("fresh", x, "rate")?,
    ))
}

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let size = x as usize;
    if series == "fresh" && x < LEAST_FRESH {
        return Ok(Figures::default());
    }
    in_service(async move {
        let pool = pool(2).await?;
        warm(&pool).await?;
        let sent = Bytes::from(vec![7; size]);
        let call = async || -> Result<(), Error> {
            match series {
                "echo" => check(pool.apply(echo, sent.clone()).await?.len() == size),
                "fresh" => {
                    let mut memory = MmapMut::map_anon(size)?;
                    memory.fill(7);
                    black_box(&memory);
                    Ok(())
                }
                "there" => check(pool.apply(length, sent.clone()).await? == size as u64),
                _ => check(pool.apply(produce, size as u64).await?.len() == size),
            }
        };
        let (warm_up, least, time) = match extent {
            Extent::Test => (0, 1, Duration::ZERO),
            _ => (if size > 1 << 24 { 2 } else { 20 }, 3, Duration::from_millis(100)),
        };
        for _ in 0..warm_up {
            call().await?;
        }
        let began = Instant::now();
        let mut calls = 0_u32;
        while calls < least || began.elapsed() < time {
            call().await?;
            calls += 1;
        }
        let seconds = began.elapsed().as_secs_f64() / f64::from(calls);
        let ways = if series == "echo" { 2.0 } else { 1.0 };
        Ok(Figures::default()
            .with("rate", ways * x / seconds / 1e6)
            .with("time", seconds * 1e6))
    })
}
