//! What workers are told to do, good and bad.

#![expect(unsafe_code, reason = "tasks do what no safe code can: crash")]

use std::hint::{black_box, spin_loop};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use procession::worker;
use serde::{Deserialize, Serialize};

use crate::starts;

/// What a task does before it answers, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    Spin,
    Sleep,
    Allocate,
    /// More than the pool allows.
    Hog,
    Panic,
    Exit,
    Abort,
    Segfault,
    /// Standard input and output, and most likely the connection.
    CloseFiles,
    Print,
    /// Leaves a process behind that would go on for long.
    Grandchild,
    /// Asks whether it should end, and goes on for long otherwise.
    Cooperative,
    /// Never asks, and goes on for long.
    Stuck,
}

impl Action {
    /// Whether nothing but another's violence keeps it from its value.
    pub(crate) fn gives_value(self) -> bool {
        !matches!(self, Self::Panic | Self::Exit | Self::Abort | Self::Segfault)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) action: Action,
    pub(crate) seed: u64,
    /// How long it takes, where that is up to it.
    pub(crate) micros: u64,
    /// Bytes of the answer.
    pub(crate) answer: usize,
    pub(crate) payload: Bytes,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    pub(crate) sum: u64,
    pub(crate) payload: Bytes,
}

/// So many bytes that follow from a seed.
pub(crate) fn bytes(seed: u64, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = seed | 1;
    while bytes.len() < len {
        word = word
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words
        .chain(rest.iter().map(|&byte| u64::from(byte)))
        .fold(0x9e37_79b9, |sum, word| {
            (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
        })
}

pub(crate) fn perform(order: Order) -> Answer {
    starts::record(order.id);
    let time = Duration::from_micros(order.micros);
    match order.action {
        Action::Sleep => sleep(time),
        Action::Cooperative => wait_until(time, worker::cancelled),
        _ => act(&order, time),
    }
    answer(&order)
}

pub(crate) async fn perform_async(order: Order) -> Answer {
    starts::record(order.id);
    let time = Duration::from_micros(order.micros);
    match order.action {
        Action::Sleep => {
            // An async task that waits is what its worker's other lanes are for.
            let never = std::future::pending::<()>();
            tokio::time::timeout(time, never).await.unwrap_or_default();
        }
        Action::Cooperative => {
            tokio::time::timeout(time, worker::cancellation())
                .await
                .unwrap_or_default();
        }
        _ => act(&order, time),
    }
    answer(&order)
}

fn answer(order: &Order) -> Answer {
    Answer {
        id: order.id,
        sum: checksum(&order.payload),
        payload: bytes(order.seed, order.answer),
    }
}

#[expect(clippy::exit, reason = "what a task must not do")]
fn act(order: &Order, time: Duration) {
    match order.action {
        Action::Spin | Action::Stuck => wait_until(time, || false),
        Action::Sleep | Action::Cooperative => {}
        Action::Allocate => allocate(order.seed as usize % (24 << 20)),
        Action::Hog => {
            let held = vec![1_u8; 320 << 20];
            wait_until(Duration::from_millis(200), || false);
            black_box(held);
        }
        Action::Panic => panic!("task {} panics as it was told to", order.id),
        Action::Exit => std::process::exit((order.seed % 256) as i32),
        Action::Abort => std::process::abort(),
        // SAFETY: none: that address is never mapped, and the process ends here, which is the purpose.
        Action::Segfault => unsafe { std::ptr::without_provenance_mut::<u8>(64).write_volatile(1) },
        Action::CloseFiles => {
            starts::let_go();
            for number in 0..30 {
                // SAFETY: whoever owned it fails from now on, which is the purpose; nothing is opened meanwhile.
                unsafe { rustix::io::close(number) };
            }
        }
        Action::Print => {
            let line = "words ".repeat((order.seed % 40) as usize);
            // Whether anybody listens is no concern of the task.
            writeln!(std::io::stdout(), "{} says {line}", order.id).unwrap_or_default();
            writeln!(std::io::stderr(), "{} warns of {line}", order.id).unwrap_or_default();
        }
        Action::Grandchild => {
            let mut sleeper = Command::new("sleep");
            sleeper.arg("1000").stdin(Stdio::null());
            drop(sleeper.spawn());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a task that sleeps is a load, not a way to wait for something"
)]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

fn wait_until(time: Duration, is_over: impl Fn() -> bool) {
    let began = Instant::now();
    while began.elapsed() < time && !is_over() {
        for _ in 0..50 {
            spin_loop();
        }
    }
}

fn allocate(bytes: usize) {
    let mut held = vec![0_u8; bytes + 1];
    // Touched, or it would not be memory.
    held.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    black_box(held);
}
