//! Streams: input without end, results as they come, and memory that stays bounded because nothing is read further
//! ahead than `look_ahead`. `imap` keeps the order of its input, `imap_unordered` gives what is done first,
//! `imap_stream` takes its input from a stream.
//!
//! `cargo run --example streams`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::cell::Cell;
use std::future::ready;
use std::ops::Range;

use futures::channel::mpsc;
use futures::{SinkExt, StreamExt, TryStreamExt};
use procession::Pool;

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn factor((n, mut candidates): (u64, Range<u64>)) -> Option<u64> {
    candidates.find(|&d| n.is_multiple_of(d))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().workers(2).build().await?;

    // All numbers there are, of which it reads those that are wanted, and a few more.
    let read = Cell::new(0);
    let numbers = (1_000_000_000..).inspect(|_| read.set(read.get() + 1));
    let mut answers = pool.imap(|n: u64| (n, is_prime(n)), numbers).look_ahead(10);
    for taken in 1..=100 {
        let Some((n, prime)) = answers.try_next().await? else {
            break;
        };
        if prime {
            println!("{n} is prime");
        }
        assert!(read.get() <= taken + 10, "{} read, {taken} taken", read.get());
    }
    drop(answers);

    // The first answer, whichever worker has it. Dropping the stream cancels the search for others.
    let n = 1_000_003 * 1_000_000_007;
    let ranges = (0..).map(|i| (n, 2 + i * 10_000..2 + (i + 1) * 10_000));
    let mut factors = pool
        .imap_unordered(factor, ranges)
        .try_filter_map(|factor| ready(Ok(factor)));
    if let Some(factor) = factors.try_next().await? {
        println!("{n} = {factor} * {}", n / factor);
    }
    drop(factors);

    // A producer that sends as fast as it is let. Nobody polls the stream after ten results, and so it stands still.
    let (mut lines, input) = mpsc::channel(0);
    let producer = tokio::spawn(async move {
        let mut sent = 0;
        while lines.send(format!("line {sent}")).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let shouted = pool
        .imap_stream(|line: String| line.to_uppercase(), input)
        .look_ahead(10);
    let some: Vec<String> = shouted.take(10).try_collect().await?;
    println!("{} to {}", some[0], some[9]);
    // Ten were taken and ten read ahead; the channel itself holds one.
    let sent = producer.await?;
    assert!((10..=21).contains(&sent), "{sent} lines were sent");

    pool.close();
    pool.join().await?;
    Ok(())
}
