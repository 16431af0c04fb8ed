//! One measurement in a process of its own, and the figures that come out of it.

use std::fmt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::timeout;

use crate::Error;
use crate::plan::{Peer, Scale, Workload};

/// The argument that makes this program measure one thing and print the figures.
pub(crate) const MEASURE: &str = "--measure";
/// A measurement that takes longer hangs.
const FUSE: Duration = Duration::from_secs(180);
/// Calls that do not count, before those that do.
pub(crate) const WARM_UP: usize = 100;

/// Figures by the keys of their metrics. Printed and read as lines of a key, a tab and a number.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn with(mut self, key: impl Into<String>, figure: f64) -> Self {
        self.0.push((key.into(), figure));
        self
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(key, figure)| (key.as_str(), *figure))
    }

    fn parse(text: &str) -> Result<Self, Error> {
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

/// This program, to measure one thing.
pub(crate) fn command(peer: &Peer, workload: &Workload, scale: &Scale) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([MEASURE, peer.key, workload.key, scale.key]);
    Ok(command)
}

/// Runs a measurement. What it says on standard error goes there.
pub(crate) async fn run(mut command: Command) -> Result<Figures, Error> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = timeout(FUSE, child.wait_with_output())
        .await
        .map_err(|_| format!("it hung for {} s", FUSE.as_secs()))??;
    if !output.status.success() {
        return Err(format!("it failed: {}", output.status).into());
    }
    Figures::parse(&String::from_utf8(output.stdout)?)
}

/// The median and the 99th percentile of latencies.
pub(crate) fn latencies(mut samples: Vec<Duration>) -> Figures {
    samples.sort_unstable();
    let quantile = |percent: usize| match samples.len() {
        0 => f64::NAN,
        n => samples[((n - 1) * percent).div_ceil(100)].as_secs_f64() * 1e6,
    };
    Figures::default()
        .with("p50", quantile(50))
        .with("p99", quantile(99))
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
