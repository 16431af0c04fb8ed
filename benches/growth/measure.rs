//! One measurement in a process of its own, and the figures that come out of it.

use std::fmt;
use std::future::Future;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use procession::{BuildError, Pool};

use crate::Error;
use crate::curve::{Curve, Extent};

/// The argument that makes this program measure one thing and print the figures.
pub(crate) const MEASURE: &str = "--measure";
/// A measurement that takes longer hangs.
const FUSE: Duration = Duration::from_secs(120);

/// Figures by the keys of their metrics. Printed and read as lines of a key, a tab and a number.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn with(mut self, key: impl Into<String>, figure: f64) -> Self {
        self.0.push((key.into(), figure));
        self
    }

    /// Median, 99th percentile and maximum, in microseconds.
    pub(crate) fn latencies(self, mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let quantile = |percent: usize| match samples.len() {
            0 => f64::NAN,
            n => samples[((n - 1) * percent).div_ceil(100)].as_secs_f64() * 1e6,
        };
        let (p50, p99, most) = (quantile(50), quantile(99), quantile(100));
        self.with("p50", p50).with("p99", p99).with("max", most)
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

/// Has this program measure one point of one series, in a process of its own.
pub(crate) fn run(curve: &Curve, series: &str, x: f64, extent: Extent) -> Result<Figures, Error> {
    let child = Command::new(std::env::current_exe()?)
        .args([MEASURE, curve.name, series, &x.to_string(), extent.key()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = is_done.recv_timeout(FUSE) else {
        if let Some(pid) = rustix::process::Pid::from_raw(pid.try_into()?) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        return Err(format!("it hung for {} s", FUSE.as_secs()).into());
    };
    let output = output?;
    if !output.status.success() {
        return Err(format!("it failed: {}", output.status).into());
    }
    Figures::parse(&String::from_utf8(output.stdout)?)
}

/// Runs a measurement in a spawned task of tokio's default runtime, as the handlers of a service run.
pub(crate) fn in_service<F>(measurement: F) -> Result<Figures, Error>
where
    F: Future<Output = Result<Figures, Error>> + Send + 'static,
{
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async { tokio::spawn(measurement).await? })
}

pub(crate) async fn pool(workers: usize) -> Result<Pool, BuildError> {
    Pool::builder().workers(workers).build().await
}

/// `n` in the time since `began`, by the second.
pub(crate) fn rate(n: usize, began: Instant) -> f64 {
    n as f64 / began.elapsed().as_secs_f64()
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
