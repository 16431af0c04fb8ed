//! What the seven workloads leave out: other types, sizes that are mixed, results larger than arguments, tasks of other
//! lengths, several callers. Each pool that takes part has to run a [`Case`] in two ways.

use std::time::Instant;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::figures::{Figures, check, rate};
use crate::scale::Scale;
use crate::tasks::{compute, steps_per_microsecond};

/// A function for workers, as a type: some pools take functions that are zero-sized, others pointers.
pub(crate) trait Case: 'static {
    type Argument: Serialize + DeserializeOwned + Clone + Send + 'static;
    type Value: Serialize + DeserializeOwned + Send + 'static;
    /// Whether a pool that cannot hold many large bodies must not be given many.
    const IS_LARGE: bool = false;

    fn run(argument: Self::Argument) -> Self::Value;
}

pub(crate) trait Calls {
    /// Each argument submitted by itself, all results collected.
    fn all<C: Case>(&self, arguments: Vec<C::Argument>) -> Result<Vec<C::Value>, Error>;

    /// Each caller with one call at a time.
    fn in_turn<C: Case>(&self, callers: Vec<Vec<C::Argument>>) -> Result<(), Error>;
}

struct Text;

impl Case for Text {
    type Argument = String;
    type Value = String;

    fn run(text: String) -> String {
        text.to_uppercase()
    }
}

/// Something as services send it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    id: u64,
    name: String,
    tags: Vec<String>,
    values: Vec<f64>,
    parent: Option<i64>,
}

impl Case for Record {
    type Argument = Self;
    type Value = Self;

    fn run(mut record: Self) -> Self {
        record.values.iter_mut().for_each(|value| *value *= 2.0);
        record.tags.reverse();
        record
    }
}

/// A number in, a thousand out.
struct Table;

impl Case for Table {
    type Argument = u64;
    type Value = Vec<u64>;

    fn run(n: u64) -> Vec<u64> {
        (0..1000).map(|row| n * row).collect()
    }
}

/// A thousand numbers in, one out.
struct Sum;

impl Case for Sum {
    type Argument = Vec<f64>;
    type Value = f64;

    fn run(values: Vec<f64>) -> f64 {
        values.iter().sum()
    }
}

struct Make;

impl Case for Make {
    type Argument = u64;
    type Value = Bytes;
    const IS_LARGE: bool = true;

    fn run(length: u64) -> Bytes {
        crate::tasks::produce(length)
    }
}

struct Echo;

impl Case for Echo {
    type Argument = Bytes;
    type Value = Bytes;
    const IS_LARGE: bool = true;

    fn run(bytes: Bytes) -> Bytes {
        bytes
    }
}

struct Compute;

impl Case for Compute {
    type Argument = u64;
    type Value = u64;

    fn run(steps: u64) -> u64 {
        compute(steps)
    }
}

const CALLERS: usize = 8;

pub(crate) fn measure(pool: &impl Calls, scale: &Scale) -> Result<Figures, Error> {
    let n = scale.cases;
    let texts = |n: usize| (0..n).map(|n| format!("{n:0100}")).collect::<Vec<_>>();
    let mut figures = Figures::default()
        .with("text", singly::<Text>(pool, texts(n))?)
        .with("record", singly::<Record>(pool, (0..n).map(record).collect())?)
        .with("table", singly::<Table>(pool, (0..n as u64).collect())?)
        .with("sum", singly::<Sum>(pool, vec![vec![1.5; 1000]; n])?);

    let made = (n / 32).max(1);
    let bytes = (made << 20) as f64;
    let each = singly::<Make>(pool, vec![1 << 20; made])? / made as f64;
    figures = figures.with("make", each * bytes / 1e6);

    let mixed: Vec<Bytes> = (0..(n / 8).max(2))
        .map(|n| Bytes::from(vec![7; size(n)]))
        .collect();
    let bytes = 2.0 * mixed.iter().map(Bytes::len).sum::<usize>() as f64;
    let each = singly::<Echo>(pool, mixed.clone())? / mixed.len() as f64;
    figures = figures.with("mixed", each * bytes / 1e6);

    let steps = steps_per_microsecond()?;
    for (key, length) in [("10", 10.0), ("100", 100.0), ("1000", 1000.0)] {
        let n = ((n as f64 * 20.0 / length) as usize).clamp(2, n);
        let done = singly::<Compute>(pool, vec![(steps * length) as u64; n])?;
        figures = figures.with(key, done * length / 1e6);
    }

    let callers = vec![texts((n / CALLERS).max(1)); CALLERS];
    pool.in_turn::<Text>(vec![texts(2); CALLERS])?;
    let calls = callers.iter().map(Vec::len).sum();
    let began = Instant::now();
    pool.in_turn::<Text>(callers)?;
    Ok(figures.with("callers", rate(calls, began)))
}

/// Tasks a second, after some that do not count.
fn singly<C: Case>(pool: &impl Calls, arguments: Vec<C::Argument>) -> Result<f64, Error> {
    let n = arguments.len();
    pool.all::<C>(arguments[..n.div_ceil(10)].to_vec())?;
    let began = Instant::now();
    let values = pool.all::<C>(arguments)?;
    let rate = rate(n, began);
    check(values.len() == n)?;
    Ok(rate)
}

fn record(n: usize) -> Record {
    Record {
        id: n as u64,
        name: format!("record {n}"),
        tags: (0..4).map(|tag| format!("tag {tag}")).collect(),
        values: vec![0.5; 16],
        parent: (!n.is_multiple_of(3)).then_some(-1),
    }
}

/// Sizes from 16 B to 1 MiB, each power of two as often as any other, in no order.
fn size(n: usize) -> usize {
    16 << (n * 7 % 17)
}
