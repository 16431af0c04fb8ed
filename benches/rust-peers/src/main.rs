//! Other crates' pools on the workloads of `benches/peers`, one measurement a process: `rust-peers PEER WORKLOAD SCALE`
//! prints figures as lines of a key, a tab and a number.

#![allow(dead_code, reason = "the shared modules have more than every peer can use")]

#[path = "../../common/cases.rs"]
mod cases;
#[path = "../../common/figures.rs"]
mod figures;
#[path = "../../common/memory.rs"]
mod memory;
mod procspawn_pool;
#[path = "../../peers/scale.rs"]
mod scale;
mod tarnish_pool;
#[path = "../../common/tasks.rs"]
mod tasks;
mod work;
mod zng_workers;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    // Each knows its own workers by marks in the environment that the others never set.
    if let Some(status) = tarnish::worker_main::<work::Worker>() {
        std::process::exit(status);
    }
    zng_workers::run_worker();
    procspawn::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [peer, workload, scale] = &arguments[..] else {
        return Err("usage: rust-peers procspawn|tarnish|zng-task|zng-bytes W1..W7 SCALE".into());
    };
    let scale = scale::scale(scale)?;
    let figures = match peer.as_str() {
        "procspawn" => procspawn_pool::measure(workload, scale),
        "tarnish" => tarnish_pool::measure(workload, scale),
        "zng-task" => zng_workers::measure(workload, scale),
        "zng-bytes" => zng_workers::shared_bytes(scale),
        other => Err(format!("no peer is called {other}").into()),
    }?;
    print!("{figures}");
    Ok(())
}
