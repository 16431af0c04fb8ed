//! How cost grows: a curve for each thing that there can be more of. `cargo bench --bench growth`.
//!
//! ```text
//! cargo bench --bench growth                             all curves, five runs, about a quarter of an hour
//! cargo bench --bench growth -- --only workers,depth     these alone, each one to three minutes; an unknown name lists them
//! cargo bench --bench growth -- --quick                  fewer points, one run
//! cargo bench --bench growth -- --runs 9
//! cargo bench --bench growth -- --write                  plots and sections go into benches/growth as well
//! cargo bench -- --test, cargo test --benches            one tiny point of each, which shows only that it works
//! ```
//!
//! The page with plots, tables and what they say is in `target/growth`, and with `--write` in `benches/growth`: a curve
//! that was measured replaces its section there, so that they can be measured one after the other. Every measurement has
//! a process of its own, and a run goes over all points of a curve before the next begins, so that a machine that slows
//! down slows all of them.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

mod curve;
mod curves;
#[path = "../common/figures.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod figures;
#[path = "../common/machine.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod machine;
#[path = "../common/marked.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod marked;
#[path = "../common/measure.rs"]
mod measure;
#[path = "../common/memory.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod memory;
mod outcome;
mod pace;
mod page;
#[path = "../plot/mod.rs"]
mod plot;
#[path = "../common/program.rs"]
mod program;
mod report;
mod service;
#[path = "../common/tasks.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod tasks;
#[path = "../common/usage.rs"]
mod usage;

use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use curve::{CURVES, Curve, Extent};
use outcome::{Outcome, Samples};

/// What a figure takes that others are told.
const LEAST_RUNS: usize = 5;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    procession::init();
    program::exit("growth", run())
}

/// What the command line asks for.
struct Request {
    extent: Extent,
    runs: usize,
    curves: Vec<&'static Curve>,
    write: bool,
}

/// `false` when a measurement failed, or showed what must not be.
fn run() -> Result<bool, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, curve, series, x, extent] = &arguments[..]
        && flag == measure::MEASURE
    {
        let curve = curve::find(curve)?;
        let series = curve.series.iter().find(|(key, _)| key == series);
        let (series, _) = series.ok_or("no such series")?;
        allow_many_files()?;
        print!("{}", (curve.measure)(series, x.parse()?, Extent::parse(extent)?)?);
        return Ok(true);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(true);
    }
    let request = parse(&arguments)?;
    let mut well = true;
    for curve in &request.curves {
        well &= draw(curve, &request)?;
    }
    Ok(well)
}

fn parse(arguments: &[String]) -> Result<Request, Error> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    // `cargo bench` says `--bench`, `cargo test` nothing.
    let (extent, runs) = if has("--test") || !has("--bench") {
        (Extent::Test, 1)
    } else if has("--quick") {
        (Extent::Quick, 1)
    } else {
        (Extent::Full, LEAST_RUNS)
    };
    let mut request = Request {
        extent,
        runs,
        curves: Vec::new(),
        write: false,
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" | "--test" | "--quick" => {}
            "--write" => request.write = true,
            "--runs" => request.runs = arguments.next().ok_or("--runs wants a number")?.parse()?,
            "--only" => {
                let names = arguments.next().ok_or("--only wants the names of curves")?;
                for name in names.split(',') {
                    request.curves.push(curve::find(name)?);
                }
            }
            other => return Err(format!("{other} is no option").into()),
        }
    }
    if request.runs == 0 {
        return Err("--runs wants at least one".into());
    }
    if request.write && (extent != Extent::Full || request.runs < LEAST_RUNS) {
        return Err(format!("--write is for full runs, {LEAST_RUNS} or more").into());
    }
    if request.curves.is_empty() {
        request.curves = CURVES.to_vec();
    }
    Ok(request)
}

/// As many as the system lets this process allow itself: five hundred workers need more than are usual.
fn allow_many_files() -> Result<(), Error> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?)
}

fn draw(curve: &'static Curve, request: &Request) -> Result<bool, Error> {
    let mut well = true;
    let mut samples = Samples::default();
    for run in 1..=request.runs {
        for (x, shown) in curve.points(request.extent) {
            if run > (curve.most_runs)(x) {
                continue;
            }
            for (series, name) in curve.series {
                let what = [curve.name, series, &x.to_string(), request.extent.key()];
                match measure::command(&what).and_then(measure::run) {
                    Ok(figures) => samples.add(series, x, &figures),
                    Err(error) => {
                        eprintln!("growth: {}, {name} at {shown}, run {run}: {error}", curve.name);
                        well = false;
                    }
                }
            }
        }
        eprintln!("growth: {}, run {run} of {} done", curve.name, request.runs);
    }
    let outcome = Outcome {
        curve,
        extent: request.extent,
        runs: request.runs,
        samples: &samples,
    };
    let plots = report::plots(&outcome);
    let section = report::section(&outcome, &plots);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    page::write(&root.join("target/growth"), curve.name, &section, &plots)?;
    if request.write {
        page::write(&root.join("benches/growth"), curve.name, &section, &plots)?;
    }
    println!("{section}");
    Ok(well)
}
