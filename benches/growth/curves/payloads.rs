//! Larger payloads: there, back, and both.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::Error;
use crate::curve::{Curve, Drawn, Extent, Metric, Points};
use crate::measure::{Figures, check, in_service, pool};
use crate::plot::{Axis, Unit};
use crate::tasks::{echo, length, produce};

pub(crate) static CURVE: Curve = Curve {
    name: "payloads",
    about: "one `Bytes` at a time, there, back, and both; megabytes a second count every copy between processes",
    x: Axis {
        label: "bytes",
        unit: Unit::Bytes,
        logarithmic: true,
    },
    points: Points::Numbers(&[
        8.,
        64.,
        512.,
        1024.,
        2048.,
        4096.,
        8192.,
        16384.,
        32768.,
        65536.,
        131_072.,
        262_144.,
        524_288.,
        1_048_576.,
        2_097_152.,
        4_194_304.,
        8_388_608.,
        16_777_216.,
        33_554_432.,
        67_108_864.,
        134_217_728.,
        268_435_456.,
    ]),
    series: &[("echo", "there and back"), ("there", "there"), ("back", "back")],
    metrics: &[
        Metric {
            key: "rate",
            label: "MB/s",
            unit: Unit::Count,
            plot: Some(Drawn {
                title: "Payloads: megabytes a second by size",
                logarithmic: true,
            }),
        },
        Metric {
            key: "time",
            label: "time of a call",
            unit: Unit::Microseconds,
            plot: Some(Drawn {
                title: "Payloads: time of a call by size",
                logarithmic: true,
            }),
        },
    ],
    measure,
};

fn measure(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let size = x as usize;
    in_service(async move {
        let pool = pool(2).await?;
        let sent = Bytes::from(vec![7; size]);
        let call = async || -> Result<(), Error> {
            match series {
                "echo" => check(pool.apply(echo, sent.clone()).await?.len() == size),
                "there" => check(pool.apply(length, sent.clone()).await? == size as u64),
                _ => check(pool.apply(produce, size as u64).await?.len() == size),
            }
        };
        let (warm_up, least, time) = match extent {
            Extent::Test => (0, 1, Duration::ZERO),
            _ => (if size > 1 << 24 { 1 } else { 10 }, 3, Duration::from_millis(150)),
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
