//! The seven workloads, by this crate and by others, in one run: `cargo bench --bench peers`.
//!
//! ```text
//! cargo bench --bench peers                          five rounds, some minutes
//! cargo bench --bench peers -- --quick               one small round, for CI
//! cargo bench --bench peers -- --rounds 9 W1 W4      these workloads alone
//! cargo bench --bench peers -- --peer procession W2  this peer alone
//! cargo bench -- --test, cargo test --benches        a tiny run that shows nothing but that it works
//! ```
//!
//! Every measurement has a process of its own, so that none inherits another's heap, threads or warm pages. Rounds go
//! over all peers before the next begins, so that a machine that slows down slows all of them.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

mod machine;
mod measure;
mod memory;
mod ours;
mod plan;
mod procspawn_pool;
mod python;
mod report;
mod tasks;
mod threads;

use std::collections::HashMap;
use std::process::ExitCode;

use measure::Figures;
use plan::{PEERS, Peer, Scale, WORKLOADS, Workload};
use report::Samples;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // Each knows its own workers by a mark in the environment that the other never sets, and does nothing in those
    // of the other; `procspawn_pool::check_both` tries it.
    procession::init();
    ::procspawn::init();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Request {
    scale: &'static Scale,
    rounds: usize,
    workloads: Vec<&'static Workload>,
    peers: Vec<&'static Peer>,
}

/// `false` when a measurement of this crate or of a Rust peer failed.
fn run() -> Result<bool, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, peer, workload, scale] = &arguments[..]
        && flag == measure::MEASURE
    {
        let figures = measure_here(plan::peer(peer)?, plan::workload(workload)?, plan::scale(scale)?)?;
        print!("{figures}");
        return Ok(true);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(true);
    }
    let request = parse(&arguments)?;
    tokio::runtime::Runtime::new()?.block_on(compare(&request))
}

fn measure_here(peer: &Peer, workload: &Workload, scale: &'static Scale) -> Result<Figures, Error> {
    match peer.key {
        "procession" => ours::measure(workload.key, scale),
        "procspawn" => procspawn_pool::measure(workload.key, scale),
        "spawn_blocking" => threads::measure_tokio(workload.key, scale),
        "rayon" => threads::measure_rayon(workload.key, scale),
        other => Err(format!("{other} is not measured in this process").into()),
    }
}

fn parse(arguments: &[String]) -> Result<Request, Error> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    // `cargo bench` says `--bench`, `cargo test` nothing.
    let (scale, rounds) = if has("--test") || !has("--bench") {
        (&plan::TEST, 1)
    } else if has("--quick") {
        (&plan::QUICK, 1)
    } else {
        (&plan::FULL, 5)
    };
    let mut request = Request {
        scale,
        rounds,
        workloads: Vec::new(),
        peers: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" | "--test" | "--quick" => {}
            "--rounds" => request.rounds = arguments.next().ok_or("--rounds wants a number")?.parse()?,
            "--peer" => {
                let key = arguments.next().ok_or("--peer wants a name")?;
                request.peers.push(plan::peer(key)?);
            }
            key => request.workloads.push(plan::workload(key)?),
        }
    }
    if request.rounds == 0 {
        return Err("--rounds wants at least one".into());
    }
    if request.workloads.is_empty() {
        request.workloads = WORKLOADS.iter().collect();
    }
    if request.peers.is_empty() {
        request.peers = PEERS.iter().collect();
    }
    Ok(request)
}

async fn compare(request: &Request) -> Result<bool, Error> {
    let python = python::find().await;
    print!("{}", machine::facts(python.as_ref()));
    if python.is_none() {
        println!("{}", python::SKIPPED);
    }
    println!(
        "{} round{}, {}; {} workers, not pinned to cores",
        request.rounds,
        if request.rounds == 1 { "" } else { "s" },
        request.scale.about,
        plan::WORKERS
    );
    procspawn_pool::check_both().await?;

    let mut well = true;
    let mut samples: HashMap<&str, Samples> = HashMap::new();
    for round in 1..=request.rounds {
        for workload in &request.workloads {
            for peer in request.peers.iter().filter(|peer| workload.has(peer)) {
                let command = if peer.python {
                    let Some(python) = &python else { continue };
                    python.command(peer, workload, request.scale)
                } else {
                    measure::command(peer, workload, request.scale)?
                };
                let result = measure::run(command).await;
                if let Err(error) = &result {
                    eprintln!("peers: {} {}, round {round}: {error}", workload.key, peer.name);
                    well &= peer.python;
                }
                samples
                    .entry(workload.key)
                    .or_default()
                    .add(peer.key, result.ok());
            }
        }
        eprintln!("peers: round {round} of {} done", request.rounds);
    }
    for workload in &request.workloads {
        if let Some(samples) = samples.get(workload.key) {
            println!("\n{}", report::table(workload, &request.peers, samples));
        }
    }
    Ok(well)
}
