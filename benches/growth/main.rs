//! How cost grows: a curve for each thing that there can be more of. `cargo bench --bench growth`.
//!
//! ```text
//! cargo bench --bench growth                             all curves, five runs, about half an hour
//! cargo bench --bench growth -- --only workers --only depth   these alone; an unknown name lists them
//! cargo bench --bench growth -- --quick                  fewer points, one run
//! cargo bench --bench growth -- --runs 9
//! cargo bench --bench growth -- --write                  plots and tables into benches/growth/figures as well
//! cargo bench -- --test, cargo test --benches            one tiny point of each, which shows only that it works
//! ```
//!
//! Plots and tables are in `target/growth`. Every measurement has a process of its own, and a run goes over all points
//! of a curve before the next begins, so that a machine that slows down slows all of them.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

mod curve;
mod curves;
mod measure;
mod observe;
mod pace;
#[path = "../plot/mod.rs"]
mod plot;
mod report;
mod tasks;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use curve::{CURVES, Curve, Extent};
use report::Samples;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    procession::init();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("growth: {error}");
            ExitCode::FAILURE
        }
    }
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
        observe::allow_many_files()?;
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
        (Extent::Full, 5)
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
                let name = arguments.next().ok_or("--only wants the name of a curve")?;
                request.curves.push(curve::find(name)?);
            }
            other => return Err(format!("{other} is no option").into()),
        }
    }
    if request.runs == 0 {
        return Err("--runs wants at least one".into());
    }
    if request.curves.is_empty() {
        request.curves = CURVES.to_vec();
    }
    Ok(request)
}

fn draw(curve: &Curve, request: &Request) -> Result<bool, Error> {
    let mut well = true;
    let mut samples = Samples::default();
    for run in 1..=request.runs {
        for (x, _) in curve.points(request.extent) {
            for (series, name) in curve.series {
                match measure::run(curve, series, x, request.extent) {
                    Ok(figures) => samples.add(series, x, &figures),
                    Err(error) => {
                        eprintln!("growth: {}, {name} at {x}, run {run}: {error}", curve.name);
                        well = false;
                    }
                }
            }
        }
        eprintln!("growth: {}, run {run} of {} done", curve.name, request.runs);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places = vec![root.join("target/growth")];
    if request.write {
        places.push(root.join("benches/growth/figures"));
    }
    let table = report::table(curve, request.extent, request.runs, &samples);
    for place in places {
        fs::create_dir_all(&place)?;
        fs::write(place.join(format!("{}.md", curve.name)), &table)?;
        for (file, svg) in report::plots(curve, request.extent, request.runs, &samples) {
            fs::write(place.join(file), svg)?;
        }
    }
    println!("{table}");
    Ok(well)
}
