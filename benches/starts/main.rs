//! How long processes take to start, and what they take in memory, by each start method and beside Python's: `cargo bench
//! --bench starts`.
//!
//! ```text
//! cargo bench --bench starts                   five rounds, two minutes
//! cargo bench --bench starts -- --rounds 9
//! cargo bench -- --test, cargo test --benches  a tiny run that shows nothing but that it works
//! ```
//!
//! An initializer loads 200 MiB. A start is the time from asking for a process to its first result, which comes through a
//! pipe and needs all of what was loaded: `first` is the first of all, with whatever must be started and loaded for it, `again`
//! the median of those that follow, one at a time. `bare` is that median with nothing loaded. `memory` is the
//! proportional set size of four processes that have all read it, by their number: what is shared counts once. `pool` and
//! `pool memory` are the same of a pool of four, from building it until each worker has had a result.
//! `PROCESSION_BENCH_PYTHON` names Python's interpreter.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

#[path = "../common/figures.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod figures;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../common/measure.rs"]
mod measure;
#[path = "../common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::Instant;

use figures::{Figures, check, median, milliseconds};
use procession::{Fd, Pool, PoolBuilder, Process, StartMethod};

/// What a figure takes that others are told.
const LEAST_ROUNDS: usize = 5;
/// Processes that are held at a time.
const HELD: usize = 4;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What is started, by the names that the report has.
const CONTENDERS: [(&str, &str); 5] = [
    ("exec", "`StartMethod::Exec`"),
    ("forkserver", "`StartMethod::ForkServer`"),
    ("python-fork", "Python, fork"),
    ("python-forkserver", "Python, forkserver"),
    ("python-spawn", "Python, spawn"),
];
const METRICS: [(&str, &str); 6] = [
    ("first", "first, ms"),
    ("again", "again, ms"),
    ("bare", "bare, ms"),
    ("memory", "memory, MiB"),
    ("pool", "pool, ms"),
    ("pool-memory", "pool memory, MiB"),
];

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    mebibytes: usize,
    starts: usize,
}

const FULL: Scale = Scale {
    mebibytes: 200,
    starts: 9,
};
const BARE: Scale = Scale {
    mebibytes: 0,
    starts: 49,
};
const TEST: Scale = Scale {
    mebibytes: 1,
    starts: 1,
};

fn main() -> ExitCode {
    procession::init();
    program::exit("starts", run())
}

fn run() -> Result<bool, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let scale = |key: &str| match key {
        "full" => FULL,
        "bare" => BARE,
        _ => TEST,
    };
    if let [flag, contender, key] = &arguments[..]
        && flag == measure::MEASURE
    {
        let runtime = tokio::runtime::Runtime::new()?;
        print!("{}", runtime.block_on(ours(contender, scale(key)))?);
        return Ok(true);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(true);
    }
    // `cargo bench` says `--bench`, `cargo test` nothing.
    let is_test = arguments.iter().any(|argument| argument == "--test")
        || !arguments.iter().any(|argument| argument == "--bench");
    let rounds = arguments.iter().position(|argument| argument == "--rounds");
    let rounds = match rounds {
        Some(at) => arguments.get(at + 1).ok_or("--rounds takes a number")?.parse()?,
        None if is_test => 1,
        None => LEAST_ROUNDS,
    };
    let keys: &[&str] = if is_test { &["test"] } else { &["full", "bare"] };
    let python = if is_test { None } else { python() };
    let mut figures: BTreeMap<(&str, String), Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        eprintln!("starts: round {round} of {rounds}, load {}", machine::load());
        for (contender, _) in CONTENDERS {
            for &key in keys {
                machine::settle();
                let measured = match (contender.strip_prefix("python-"), &python) {
                    (None, _) => measure::run(measure::command(&[contender, key])?)?,
                    (Some(method), Some((python, _))) => measure::run(theirs(python, method, scale(key)))?,
                    (Some(_), None) => continue,
                };
                for (metric, figure) in measured.iter() {
                    let metric = match (key, metric) {
                        ("bare", "again") => "bare",
                        ("bare", _) => continue,
                        (_, metric) => metric,
                    };
                    let samples = figures.entry((contender, metric.to_owned())).or_default();
                    samples.push(figure);
                }
            }
        }
    }
    report(
        &figures,
        rounds,
        python.as_ref().map(|(_, version)| version.as_str()),
    );
    Ok(true)
}

fn report(figures: &BTreeMap<(&str, String), Vec<f64>>, rounds: usize, python: Option<&str>) {
    println!(
        "procession {}, Python {}; {}; {rounds} rounds, medians [least to most]\n",
        machine::version(),
        python.unwrap_or("skipped"),
        machine::machine()
    );
    println!("| | {} |", METRICS.map(|(_, name)| name).join(" | "));
    println!("| --- | {} |", METRICS.map(|_| "---").join(" | "));
    for (contender, name) in CONTENDERS {
        let cells: Vec<String> = METRICS
            .iter()
            .filter_map(|(metric, _)| {
                let samples = figures.get(&(contender, (*metric).to_owned()))?;
                let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
                let most = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                Some(format!(
                    "{:.2} [{least:.2} to {most:.2}]",
                    median(samples.clone())
                ))
            })
            .collect();
        if !cells.is_empty() {
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
}

/// What the initializer has loaded.
static DATA: OnceLock<Vec<u8>> = OnceLock::new();

fn load(mebibytes: usize) -> Result<(), String> {
    DATA.set(vec![b'x'; mebibytes << 20])
        .map_err(|_| "loaded twice".to_owned())
}

/// Reads every page of what was loaded.
fn total() -> u64 {
    DATA.get().map_or(0, |data| {
        data.iter().step_by(4096).map(|&byte| u64::from(byte)).sum()
    })
}

/// Task: has read it, and says so.
fn send(ready: Fd) {
    let mut ready = fs::File::from(ready.into_inner());
    // Nobody hears it who does not get the sum.
    ready.write_all(&total().to_le_bytes()).ok();
}

/// Task: has read it, and stays until it is told.
fn hold((ready, gate): (Fd, Fd)) {
    send(ready);
    let told = fs::File::from(gate.into_inner()).read(&mut [0]);
    drop(told);
}

async fn ours(contender: &str, scale: Scale) -> Result<Figures, Error> {
    let method = match contender {
        "exec" => StartMethod::Exec,
        "forkserver" => StartMethod::ForkServer,
        other => return Err(format!("no start method {other}").into()),
    };
    let mut builder = Process::builder().start_method(method);
    if scale.mebibytes > 0 {
        builder = builder.initializer(load, scale.mebibytes);
    }
    let expected = u64::from(b'x') * (scale.mebibytes as u64) * 256;
    let mut times = Vec::new();
    for _ in 0..=scale.starts {
        let (mut result, ready) = std::io::pipe()?;
        let mut sum = [0; 8];
        let began = Instant::now();
        let process = builder.spawn(send, ready.into()).await?;
        result.read_exact(&mut sum)?;
        times.push(milliseconds(began));
        check(u64::from_le_bytes(sum) == expected)?;
        process.join().await?;
    }
    let first = times.remove(0);
    let mut held = Vec::new();
    for _ in 0..HELD {
        let (mut is_ready, ready) = std::io::pipe()?;
        let (behind, gate) = std::io::pipe()?;
        let process = builder.spawn(hold, (ready.into(), behind.into())).await?;
        is_ready.read_exact(&mut [0; 8])?;
        held.push((process, gate));
    }
    let mut memory = 0.0;
    for (process, _) in &held {
        memory += proportional(process.pid())? / HELD as f64 / 1024.0;
    }
    for (process, gate) in held {
        drop(gate);
        process.join().await?;
    }
    let mut pool = Pool::builder().workers(HELD).start_method(method);
    if scale.mebibytes > 0 {
        pool = pool.initializer(load, scale.mebibytes);
    }
    let (pooled, pool_memory) = worked(pool).await?;
    Ok(Figures::default()
        .with("first", first)
        .with("again", median(times))
        .with("memory", memory)
        .with("pool", pooled)
        .with("pool-memory", pool_memory))
}

/// How long a pool takes until each worker has had a result, and what a worker takes then.
async fn worked(builder: PoolBuilder) -> Result<(f64, f64), Error> {
    let (mut is_ready, ready) = std::io::pipe()?;
    let (behind, gate) = std::io::pipe()?;
    let began = Instant::now();
    let pool = builder.build().await?;
    let mut held = Vec::new();
    for _ in 0..HELD {
        let (ready, behind) = (ready.try_clone()?, behind.try_clone()?);
        held.push(pool.apply_async(hold, (ready.into(), behind.into())));
    }
    is_ready.read_exact(&mut [0; 8 * HELD])?;
    let time = milliseconds(began);
    let mut memory = 0.0;
    for pid in pool.workers().iter().filter_map(|worker| worker.pid) {
        memory += proportional(pid)? / HELD as f64 / 1024.0;
    }
    drop((behind, gate));
    for held in held {
        held.await?;
    }
    pool.close();
    pool.join().await?;
    Ok((time, memory))
}

/// Kilobytes, what is shared divided by those who share it.
fn proportional(pid: u32) -> Result<f64, Error> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("smaps_rollup has no Pss")?.parse()?)
}

fn theirs(python: &Path, method: &str, scale: Scale) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/starts");
    let mut command = Command::new(python);
    command
        .arg(folder.join("starts.py"))
        .args([method, &scale.starts.to_string(), &HELD.to_string()])
        .env("STARTS_MIB", scale.mebibytes.to_string())
        // What a template of Python's imports first it finds through this alone.
        .env("PYTHONPATH", &folder)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// An interpreter that runs, which the mere presence of a command does not show, and its version.
fn python() -> Option<(PathBuf, String)> {
    let named = std::env::var("PROCESSION_BENCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let version = Command::new(&named).arg("--version").output().ok();
    let version = version.filter(|output| output.status.success());
    let Some(version) = version else {
        eprintln!("starts: Python is skipped: {named} does not run; PROCESSION_BENCH_PYTHON may name one");
        return None;
    };
    let version = String::from_utf8_lossy(&version.stdout);
    Some((
        named.into(),
        version.trim().trim_start_matches("Python ").to_owned(),
    ))
}
