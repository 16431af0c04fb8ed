//! The first five minutes: calls, maps and a crash. The functions run in worker processes, which are this program
//! again; what they give is awaited here.
//!
//! `cargo run --example quickstart`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use procession::{Pool, TaskError};

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // In a worker, this line never returns.
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().workers(2).build().await?;

    // One call: a function or a closure that captures nothing, and its argument.
    println!(
        "2^31 - 1 is prime: {}",
        pool.apply(is_prime, (1 << 31) - 1).await?
    );
    println!(
        "in another process: {}",
        pool.apply(|parent: u32| std::process::id() != parent, std::process::id())
            .await?
    );

    // Many calls, in input order.
    let primes = pool.map(is_prime, 0..100).await?;
    println!(
        "primes below 100: {}",
        primes.iter().filter(|&&prime| prime).count()
    );

    // A crash is an error of that one call.
    let crash: Result<(), TaskError> = pool.apply(|_: ()| std::process::abort(), ()).await;
    println!("a crash: {:?}", crash.map_err(|error| error.kind()));
    println!(
        "and on: {}",
        pool.apply(|(a, b): (u64, u64)| a + b, (40, 2)).await?
    );

    pool.close();
    pool.join().await?;
    Ok(())
}
