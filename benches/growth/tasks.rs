//! The functions that workers run, and what holds them.

use std::hint::black_box;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use procession::Pool;

use crate::Error;

pub(crate) fn successor(n: u64) -> u64 {
    n + 1
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

/// Has every worker give a result, and the pool's paths be warm.
pub(crate) async fn warm(pool: &Pool) -> Result<(), Error> {
    let workers = pool.workers().len();
    let calls: Vec<_> = (0..20 * workers as u64)
        .map(|n| pool.apply_async(successor, n))
        .collect();
    for call in calls {
        call.await?;
    }
    Ok(())
}

/// Holds its worker until the [`Gate`] on this port opens.
pub(crate) fn hold(port: u16) {
    // An error, that of a gate gone, ends the wait as well.
    if let Ok(mut gate) = TcpStream::connect(("127.0.0.1", port)) {
        gate.read(&mut [0]).unwrap_or_default();
    }
}

/// What workers wait at while tasks are queued behind them. They go on when it is dropped.
pub(crate) struct Gate {
    _waiting: Vec<TcpStream>,
}

impl Gate {
    /// Returns when all workers of the pool wait.
    pub(crate) fn close(pool: &Pool) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        for _ in pool.workers() {
            drop(pool.apply_async(hold, port));
        }
        let waiting: io::Result<_> = (pool.workers().iter())
            .map(|_| Ok(listener.accept()?.0))
            .collect();
        Ok(Self { _waiting: waiting? })
    }
}

/// Blocks the thread, as callbacks must not, and as they do.
#[expect(clippy::disallowed_methods, reason = "it is the blocking that is measured")]
pub(crate) fn block(time: Duration) {
    std::thread::sleep(time);
}
