//! What the machine gives: each workload with nothing but the system calls that it needs.
//!
//! The other process is this program, started with [`CHILD`]; one end of a socketpair is its standard input.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{pread, pwrite};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Error;
use crate::figures::{Figures, echo_rate, latencies, median, milliseconds, rate};
use crate::scale::{Scale, WARM_UP, WORKERS};
use crate::tasks::{compute, ten_milliseconds};

/// The argument that makes this program the other process.
pub(crate) const CHILD: &str = "--limit-child";
/// Bytes of a tiny call.
const TINY: usize = 20;

pub(crate) fn measure(workload: &'static str, scale: &'static Scale) -> Result<Figures, Error> {
    match workload {
        "W1" => ping_pong(scale),
        "W3" => encoding(scale),
        "W4" => {
            let mut memory = Memory::new()?;
            Ok(Figures::default()
                .with("small", memory.echoes(scale.small)?)
                .with("large", memory.echoes(scale.large)?))
        }
        "W4-sizes" => {
            let mut memory = Memory::new()?;
            let mut figures = Figures::default();
            for (size, echoes) in scale.steps() {
                figures = figures.with(size.to_string(), memory.echoes((size, echoes))?);
            }
            Ok(figures)
        }
        "W5" => spawns(scale),
        "W7" => scaling(scale),
        other => Err(format!("nothing is known of a limit for {other}").into()),
    }
}

/// The other process.
pub(crate) fn child(kind: &str) -> Result<(), Error> {
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    match kind {
        "byte" => socket.write_all(&[1])?,
        "echo" => {
            let mut message = [0; TINY];
            while socket.read_exact(&mut message).is_ok() {
                socket.write_all(&message)?;
            }
        }
        "memory" => {
            let memory = std::io::stdout().as_fd().try_clone_to_owned()?;
            let mut bytes = Vec::new();
            let mut size = [0; 8];
            while socket.read_exact(&mut size).is_ok() {
                bytes.resize(u64::from_le_bytes(size).try_into()?, 0);
                read_all(&memory, &mut bytes)?;
                write_all(&memory, &bytes)?;
                socket.write_all(&[1])?;
            }
        }
        "compute" => {
            let mut order = [0; 16];
            while socket.read_exact(&mut order).is_ok() {
                let order = u128::from_le_bytes(order);
                for _ in 0..order >> 64 {
                    black_box(compute(u64::try_from(order & u128::from(u64::MAX))?));
                }
                socket.write_all(&[1])?;
            }
        }
        other => return Err(format!("no child is called {other}").into()),
    }
    Ok(())
}

/// The other process and the socket to it.
struct Other {
    child: Child,
    socket: UnixStream,
}

impl Other {
    fn start(kind: &str, stdout: Stdio) -> Result<Self, Error> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .args([CHILD, kind])
            .stdin(OwnedFd::from(theirs))
            .stdout(stdout)
            .spawn()?;
        Ok(Self { child, socket })
    }

    fn answered(&mut self) -> Result<(), Error> {
        Ok(self.socket.read_exact(&mut [0])?)
    }

    fn end(mut self) -> Result<(), Error> {
        drop(self.socket);
        self.child.wait()?;
        Ok(())
    }
}

fn ping_pong(scale: &'static Scale) -> Result<Figures, Error> {
    let Other { mut child, socket } = Other::start("echo", Stdio::null())?;
    let samples = tokio::runtime::Runtime::new()?.block_on(async {
        let calls = tokio::spawn(async move {
            socket.set_nonblocking(true)?;
            let mut socket = tokio::net::UnixStream::from_std(socket)?;
            let mut samples = Vec::with_capacity(scale.calls);
            let mut message = [7; TINY];
            for _ in 0..WARM_UP + scale.calls {
                let began = Instant::now();
                socket.write_all(&message).await?;
                socket.read_exact(&mut message).await?;
                samples.push(began.elapsed());
            }
            Ok::<_, Error>(samples)
        });
        calls.await?
    })?;
    child.wait()?;
    Ok(latencies(samples.into_iter().skip(WARM_UP).collect()))
}

fn encoding(scale: &Scale) -> Result<Figures, Error> {
    const CHUNK: u64 = 10_000;
    let mut buffer = vec![0; 10 * CHUNK as usize + 10];
    let began = Instant::now();
    let mut items = 0;
    while items < scale.items as u64 {
        let mut values: Vec<u64> = (items..items + CHUNK).collect();
        for _ in ["argument", "result"] {
            let bytes = postcard::to_slice(&values, &mut buffer)?;
            values = postcard::from_bytes(bytes)?;
        }
        items += black_box(values).len() as u64;
    }
    Ok(Figures::default().with("default", rate(items as usize, began)))
}

/// Bytes that both processes copy in and out.
struct Memory {
    other: Other,
    memory: File,
    bytes: Vec<u8>,
}

impl Memory {
    fn new() -> Result<Self, Error> {
        let memory = memfd_create("limit", MemfdFlags::CLOEXEC)?;
        Ok(Self {
            other: Other::start("memory", Stdio::from(memory.try_clone()?))?,
            memory: File::from(memory),
            bytes: Vec::new(),
        })
    }

    /// Megabytes a second, after two echoes that touch all pages.
    fn echoes(&mut self, (size, echoes): (usize, usize)) -> Result<f64, Error> {
        self.bytes.resize(size, 7);
        self.echo()?;
        self.echo()?;
        let began = Instant::now();
        for _ in 0..echoes {
            self.echo()?;
        }
        Ok(echo_rate((size, echoes), began))
    }

    fn echo(&mut self) -> Result<(), Error> {
        write_all(&self.memory, &self.bytes)?;
        let size = self.bytes.len() as u64;
        self.other.socket.write_all(&size.to_le_bytes())?;
        self.other.answered()?;
        read_all(&self.memory, &mut self.bytes)
    }
}

fn write_all(memory: impl AsFd, bytes: &[u8]) -> Result<(), Error> {
    let mut at = 0;
    while at < bytes.len() {
        at += pwrite(&memory, &bytes[at..], at as u64)?;
    }
    Ok(())
}

fn read_all(memory: impl AsFd, bytes: &mut [u8]) -> Result<(), Error> {
    let mut at = 0;
    while at < bytes.len() {
        match pread(&memory, &mut bytes[at..], at as u64)? {
            0 => return Err("the memory has an early end".into()),
            n => at += n,
        }
    }
    Ok(())
}

/// Two side by side, each to its first byte; one to its end.
fn spawns(scale: &Scale) -> Result<Figures, Error> {
    let one = || -> Result<Other, Error> {
        let mut other = Other::start("byte", Stdio::null())?;
        other.answered()?;
        Ok(other)
    };
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let began = Instant::now();
        let (one, two) = std::thread::scope(|scope| {
            let two = scope.spawn(one);
            (one(), two.join())
        });
        times.push(milliseconds(began));
        one?.end()?;
        two.map_err(|_| "a thread panicked")??.end()?;
    }
    let mut joins = Vec::new();
    for _ in 0..scale.starts {
        let began = Instant::now();
        one()?.end()?;
        joins.push(milliseconds(began));
    }
    Ok(Figures::default()
        .with("first", times.remove(0))
        .with("again", median(times))
        .with("join", median(joins)))
}

fn scaling(scale: &Scale) -> Result<Figures, Error> {
    let steps = ten_milliseconds()?;
    let mut times = Vec::new();
    for processes in 1..=WORKERS {
        let mut others = Vec::new();
        for _ in 0..processes {
            others.push(Other::start("compute", Stdio::null())?);
        }
        // All have started when the clock does.
        for other in &mut others {
            other.socket.write_all(&1_u128.to_le_bytes())?;
            other.answered()?;
        }
        let order = u128::from(steps) | ((scale.computations / processes) as u128) << 64;
        let began = Instant::now();
        for other in &mut others {
            other.socket.write_all(&order.to_le_bytes())?;
        }
        for other in &mut others {
            other.answered()?;
        }
        times.push(milliseconds(began));
        for other in others {
            other.end()?;
        }
    }
    Ok(Figures::default().with("scaling", times[0] / (2.0 * times[1])))
}
