//! Crashes: whatever a task does to its process, the one call fails, with an error that names the cause. The worker
//! is replaced, and everybody else's work goes on.
//!
//! `cargo run --example crash_isolation`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::hint::black_box;

use procession::{Output, Pool, TaskError, TaskErrorKind};
use rustix::process::{Signal, getpid, kill_process};

fn well_behaved(n: u64) -> u64 {
    n * n
}

fn abort(_: ()) {
    std::process::abort();
}

#[expect(clippy::exit, reason = "this is what is shown")]
fn exit(code: i32) {
    std::process::exit(code);
}

fn kill(_: ()) {
    kill_process(getpid(), Signal::KILL).unwrap_or_default();
}

fn bad_access(address: usize) {
    #[expect(unsafe_code, reason = "the point of it: a real segmentation fault")]
    // SAFETY: there is none. A worker process is what makes this bearable.
    unsafe {
        std::ptr::without_provenance_mut::<u8>(address).write_volatile(1);
    }
}

#[expect(unconditional_recursion, reason = "this is what is shown")]
fn overflow_the_stack(depth: u64) -> u64 {
    black_box(overflow_the_stack(black_box(depth + 1))) + 1
}

fn panic(_: ()) {
    panic!("a panic costs nothing: the worker lives on");
}

/// Ten elements in one call, of which two never come back.
fn mostly_well_behaved(n: u64) -> u64 {
    match n {
        3 => std::process::abort(),
        7 => panic!("seven"),
        n => well_behaved(n),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    // What dying workers write is quoted in their errors; it need not be on the terminal too.
    let pool = Pool::builder().workers(2).stderr(Output::null()).build().await?;

    report("abort", pool.apply(abort, ()).await);
    report("exit", pool.apply(exit, 3).await);
    report("kill", pool.apply(kill, ()).await);
    report("bad access", pool.apply(bad_access, 8).await);
    report(
        "stack overflow",
        pool.apply(overflow_the_stack, 0).await.map(drop),
    );
    report("panic", pool.apply(panic, ()).await);

    let results = pool.map(mostly_well_behaved, 0..10).collect_results().await;
    let shown: Vec<String> = results
        .iter()
        .map(|result| match result {
            Ok(square) => square.to_string(),
            Err(error) => format!("{:?}", error.kind()),
        })
        .collect();
    println!("{}", shown.join(" "));
    println!("12 * 12 = {}", pool.apply(well_behaved, 12).await?);

    pool.close();
    pool.join().await?;
    Ok(())
}

fn report(what: &str, outcome: Result<(), TaskError>) {
    let Err(error) = outcome else {
        return println!("{what}: survived");
    };
    assert!(matches!(
        error.kind(),
        TaskErrorKind::Panicked | TaskErrorKind::WorkerLost
    ));
    println!("{what}: {error}");
}
