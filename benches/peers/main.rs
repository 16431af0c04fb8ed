//! The seven workloads, by this crate, by others and by the bare machine, in one run: `cargo bench --bench peers`.
//!
//! ```text
//! cargo bench --bench peers                                five rounds, some ten minutes
//! cargo bench --bench peers -- --quick                     one small round
//! cargo bench --bench peers -- --rounds 9 --only W1,W4     these workloads alone; `others` are those
//!                                                          that are none of the seven
//! cargo bench --bench peers -- --peer procession,limit     these peers alone
//! cargo bench --bench peers -- --write                     the outcome goes into README.md and
//!                                                          benches/peers/README.md as well
//! cargo bench -- --test, cargo test --benches              a tiny run that shows nothing but that it works
//! ```
//!
//! Other Rust crates are built, and Python's pools installed, below `target/peers` before anything is measured; what
//! cannot be had is skipped with a message. `PROCESSION_BENCH_PYTHON` names the interpreter, else the newest is taken. There go `report.md`, `figures.json` and `peers.svg` as well.
//!
//! Every measurement has a process of its own, so that none inherits another's heap, threads or warm pages. Rounds go
//! over all workloads and peers before the next begins, so that a machine that slows down slows all of them; each begins
//! with another peer, and a measurement when what ran before it has ended for good.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

mod callers;
#[path = "../common/cases.rs"]
#[expect(dead_code, reason = "other pools cannot do without it all")]
mod cases;
#[path = "../common/figures.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod figures;
mod limits;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../common/marked.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod marked;
#[path = "../common/measure.rs"]
mod measure;
#[path = "../common/memory.rs"]
mod memory;
mod others;
mod ours;
mod output;
mod plan;
mod plot;
#[path = "../common/program.rs"]
mod program;
mod python;
mod report;
mod results;
mod rust_peers;
mod scale;
mod targets;
#[path = "../common/tasks.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod tasks;
mod threads;
mod versions;

use std::process::ExitCode;

use figures::Figures;
use plan::{By, PEERS, Peer, WORKLOADS, Workload};
use python::Python;
use report::Facts;
use results::Results;
use rust_peers::RustPeers;
use scale::{Scale, scale};

/// What a figure takes that others are told.
const LEAST_ROUNDS: usize = 5;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // In front of `init`, which would only cost time here: a bare process is measured.
    let mut arguments = std::env::args().skip(1);
    let result = if arguments.next().as_deref() == Some(limits::CHILD) {
        limits::child(&arguments.next().unwrap_or_default()).map(|()| true)
    } else {
        procession::init();
        run()
    };
    program::exit("peers", result)
}

/// What the command line asks for.
struct Request {
    scale: &'static Scale,
    rounds: usize,
    workloads: Vec<&'static Workload>,
    peers: Vec<&'static Peer>,
    /// Whether others may be built and installed.
    install: bool,
    write: bool,
}

/// `false` when a measurement of this program failed.
fn run() -> Result<bool, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, peer, workload, scale_key] = &arguments[..]
        && flag == measure::MEASURE
    {
        let figures = measure_here(plan::peer(peer)?, plan::workload(workload)?, scale(scale_key)?)?;
        print!("{figures}");
        return Ok(true);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(true);
    }
    let request = parse(&arguments)?;
    compare(&request)
}

fn measure_here(peer: &Peer, workload: &Workload, scale: &'static Scale) -> Result<Figures, Error> {
    match peer.key {
        plan::OURS => ours::measure(workload.key, scale),
        plan::ASLEEP => ours::measure_asleep(scale),
        plan::SPAWN_BLOCKING => threads::measure_tokio(workload.key, scale),
        "rayon" => threads::measure_rayon(workload.key, scale),
        plan::LIMIT => limits::measure(workload.key, scale),
        other => Err(format!("{other} is not measured in this process").into()),
    }
}

fn parse(arguments: &[String]) -> Result<Request, Error> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    // `cargo bench` says `--bench`, `cargo test` nothing.
    let is_test = has("--test") || !has("--bench");
    let (scale_key, rounds) = if is_test {
        ("test", 1)
    } else if has("--quick") {
        ("quick", 1)
    } else {
        ("full", LEAST_ROUNDS)
    };
    let mut request = Request {
        scale: scale(scale_key)?,
        rounds,
        workloads: Vec::new(),
        peers: Vec::new(),
        install: !is_test,
        write: false,
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--bench" | "--test" | "--quick" => {}
            "--write" => request.write = true,
            "--rounds" => request.rounds = value()?.parse()?,
            "--only" => {
                for name in value()?.split(',') {
                    request.workloads.extend(plan::workloads(name)?);
                }
            }
            "--peer" => {
                for key in value()?.split(',') {
                    request.peers.push(plan::peer(key)?);
                }
            }
            other => {
                return Err(format!("{other} is not understood; benches/peers/main.rs says what is").into());
            }
        }
    }
    if request.rounds == 0 {
        return Err("--rounds wants at least one".into());
    }
    let is_part = has("--quick") || is_test || !request.workloads.is_empty() || !request.peers.is_empty();
    if request.write && (is_part || request.rounds < LEAST_ROUNDS) {
        return Err(format!("--write is for everything, in {LEAST_ROUNDS} rounds or more").into());
    }
    if request.workloads.is_empty() {
        request.workloads = WORKLOADS.iter().collect();
    }
    if request.peers.is_empty() {
        request.peers = PEERS.iter().collect();
    }
    Ok(request)
}

fn compare(request: &Request) -> Result<bool, Error> {
    let wanted = |by| request.peers.iter().any(|peer| peer.by == by);
    let python = match wanted(By::Python) {
        true => python::find(request.install),
        false => None,
    };
    let rust = match request.install && wanted(By::RustPeers) {
        true => RustPeers::build(),
        false => None,
    };
    let facts = Facts {
        machine: machine::machine(),
        load: machine::load(),
        versions: versions::versions(rust.as_ref(), python.as_ref()),
        rounds: request.rounds,
        scale: request.scale.about,
    };
    let (results, well) = measure_all(request, rust.as_ref(), python.as_ref())?;
    let targets = targets::targets(&results);
    let report = report::markdown(&facts, &targets, &results);
    let caption = format!(
        "{}; {}, medians, whiskers from the least to the most",
        facts.machine,
        facts.rounds()
    );
    let plot = plot::svg(&results, &caption);
    let folder = output::folder()?;
    std::fs::write(folder.join("report.md"), &report)?;
    std::fs::write(
        folder.join("figures.json"),
        format!("{:#}\n", report::json(&facts, &targets, &results)),
    )?;
    std::fs::write(folder.join("peers.svg"), &plot)?;
    print!("{report}");
    println!(
        "\nreport.md, figures.json and peers.svg are in {}",
        folder.display()
    );
    if request.write {
        output::write_into_tree(&plot, &report, &report::readme(&facts, &results))?;
        println!("README.md, {} and {} are written", output::PLOT, output::PAGE);
    }
    Ok(well)
}

/// Everything round by round, and whether all that this program measures itself went well.
fn measure_all(
    request: &Request,
    rust: Option<&RustPeers>,
    python: Option<&Python>,
) -> Result<(Results, bool), Error> {
    let mut well = true;
    let mut results = Results::default();
    for round in 1..=request.rounds {
        for workload in &request.workloads {
            let mut peers: Vec<_> = request.peers.iter().filter(|peer| workload.has(peer)).collect();
            // In another order each time: none always comes behind the same other.
            let first = (round - 1) % peers.len().max(1);
            peers.rotate_left(first);
            for peer in peers {
                let command = match peer.by {
                    By::ThisProgram => Some(measure::command(&[peer.key, workload.key, request.scale.key])?),
                    By::RustPeers => rust.map(|rust| rust.command(peer, workload, request.scale)),
                    By::Python => python
                        .filter(|python| python.has(peer))
                        .map(|python| python.command(peer, workload, request.scale)),
                };
                let Some(command) = command else { continue };
                machine::settle();
                match measure::run(command) {
                    Ok(figures) => results.add(workload.key, peer.key, round, &figures),
                    Err(error) => {
                        eprintln!("peers: {} {}, round {round}: {error}", workload.key, peer.name);
                        results.add_failure(workload.key, peer.key);
                        well &= peer.by != By::ThisProgram;
                    }
                }
            }
        }
        eprintln!("peers: round {round} of {} done", request.rounds);
    }
    Ok((results, well))
}
