//! Callbacks: what happens to a result without anybody waiting for it. They run in this process, once, in order of
//! completion, whether or not the handle is kept; one may start the next task, and one that panics hurts nothing.
//!
//! `cargo run --example callbacks`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::mpsc;

use procession::{Pool, TaskError};

fn word_count(text: String) -> usize {
    assert!(!text.is_empty(), "there is nothing to count");
    text.split_whitespace().count()
}

fn is_even(n: usize) -> bool {
    n.is_multiple_of(2)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().workers(2).build().await?;
    let (says, said) = mpsc::channel::<String>();

    // On a handle, which is then dropped: the task goes on, and so do its callbacks.
    for text in ["to be or not to be", ""] {
        let (counts, fails) = (says.clone(), says.clone());
        let handle = pool
            .apply_async(word_count, text.to_owned())
            .callback(move |n| counts.send(format!("{n} words")).unwrap_or_default())
            .error_callback(move |error: &TaskError| {
                let message = error.panic().map_or("?", |panic| &panic.message);
                fails.send(format!("failed: {message}")).unwrap_or_default();
            });
        drop(handle);
        println!("{}", said.recv()?);
    }

    // A callback that starts the next task, with what the first one gave.
    let (next, evens) = (pool.clone(), says.clone());
    let counted = pool
        .task(word_count, "one two three".to_owned())
        .callback(move |&n| {
            let even = next
                .apply_async(is_even, n)
                .callback(move |even| evens.send(format!("{n} is even: {even}")).unwrap_or_default());
            drop(even);
        })
        .submit();
    // Who awaits the handle goes on after its callbacks have run.
    println!("counted {}", counted.await?);
    println!("{}", said.recv()?);

    // One that panics is reported on standard error. The handle keeps its value, the next callback its turn.
    let handle = pool
        .apply_async(word_count, "a b c d".to_owned())
        .callback(|_| panic!("this callback is broken"))
        .callback(move |n| {
            says.send(format!("the next callback saw {n}"))
                .unwrap_or_default()
        });
    println!("the handle gave {}", handle.await?);
    println!("{}", said.recv()?);

    pool.close();
    pool.join().await?;
    Ok(())
}
