//! The functions that workers run.

use std::hint::black_box;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::Bytes;

use crate::Error;

pub(crate) fn successor(n: u64) -> u64 {
    n + 1
}

/// What a peer without a map is given.
pub(crate) fn successors(chunk: Vec<u64>) -> Vec<u64> {
    chunk.into_iter().map(successor).collect()
}

pub(crate) fn echo(bytes: Bytes) -> Bytes {
    bytes
}

pub(crate) fn length(bytes: Bytes) -> u64 {
    bytes.len() as u64
}

pub(crate) fn produce(length: u64) -> Bytes {
    Bytes::from(vec![7; length as usize])
}

pub(crate) fn process_id((): ()) -> u32 {
    std::process::id()
}

/// Holds its worker until the [`Gate`] on this port opens.
pub(crate) fn hold(port: u16) {
    // An error, that of a gate gone, ends the wait as well.
    if let Ok(mut gate) = TcpStream::connect(("127.0.0.1", port)) {
        gate.read(&mut [0]).unwrap_or_default();
    }
}

/// What workers wait at while tasks are queued behind them.
pub(crate) struct Gate {
    listener: TcpListener,
    waiting: Vec<TcpStream>,
}

impl Gate {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind("127.0.0.1:0")?,
            waiting: Vec::new(),
        })
    }

    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Returns when so many are there. They go on when the gate is dropped.
    pub(crate) fn wait_for(&mut self, workers: usize) -> io::Result<()> {
        while self.waiting.len() < workers {
            self.waiting.push(self.listener.accept()?.0);
        }
        Ok(())
    }
}

/// So many steps of computation without memory or system calls.
pub(crate) fn compute(steps: u64) -> u64 {
    let mut x = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..steps {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x)
}

/// Steps of [`compute`] in a microsecond, when nothing disturbs them.
pub(crate) fn steps_per_microsecond() -> Result<f64, Error> {
    const STEPS: u64 = 100_000;
    let once = |_| {
        let began = Instant::now();
        compute(STEPS);
        began.elapsed()
    };
    let best = (0..60).map(once).min().ok_or("no measurement")?;
    Ok(STEPS as f64 / best.as_secs_f64() / 1e6)
}

/// Steps of [`compute`] that take 10 ms.
pub(crate) fn ten_milliseconds() -> Result<u64, Error> {
    Ok((steps_per_microsecond()? * 10_000.0) as u64)
}
