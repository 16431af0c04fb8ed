//! The figures of one measurement, and how they are made of samples.

use std::fmt;
use std::time::{Duration, Instant};

use crate::Error;

/// Figures by the keys of their metrics. Printed and read as lines of a key, a tab and a number.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn with(mut self, key: impl Into<String>, figure: f64) -> Self {
        self.0.push((key.into(), figure));
        self
    }

    /// With those of another measurement, whose keys get a prefix.
    pub(crate) fn with_all(mut self, prefix: &str, others: &Self) -> Self {
        for (key, figure) in others.iter() {
            self.0.push((format!("{prefix}{key}"), figure));
        }
        self
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(key, figure)| (key.as_str(), *figure))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut figures = Self::default();
        for line in text.lines() {
            let (key, figure) = line
                .split_once('\t')
                .ok_or_else(|| format!("this is no figure: {line}"))?;
            figures = figures.with(key, figure.parse()?);
        }
        Ok(figures)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter()
            .try_for_each(|(key, figure)| writeln!(f, "{key}\t{figure}"))
    }
}

/// Median, 99th percentile and maximum of latencies, in microseconds.
pub(crate) fn latencies(mut samples: Vec<Duration>) -> Figures {
    samples.sort_unstable();
    let quantile = |percent: usize| match samples.len() {
        0 => f64::NAN,
        n => samples[((n - 1) * percent).div_ceil(100)].as_secs_f64() * 1e6,
    };
    Figures::default()
        .with("p50", quantile(50))
        .with("p99", quantile(99))
        .with("max", quantile(100))
}

pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        n => f64::midpoint(figures[(n - 1) / 2], figures[n / 2]),
    }
}

/// `n` in the time since `began`, by the second.
pub(crate) fn rate(n: usize, began: Instant) -> f64 {
    n as f64 / began.elapsed().as_secs_f64()
}

/// Megabytes a second of echoes, counted both ways.
pub(crate) fn echo_rate((bytes, echoes): (usize, usize), began: Instant) -> f64 {
    rate(2 * bytes * echoes, began) / 1e6
}

pub(crate) fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

pub(crate) fn microseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e6
}

pub(crate) fn check(is_right: bool) -> Result<(), Error> {
    if is_right {
        Ok(())
    } else {
        Err("a wrong result".into())
    }
}
