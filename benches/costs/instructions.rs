//! Instructions of tasks, counted one by one.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;
use crate::load::{CALL, Load, MAP, QUEUED, SINGLE};
use crate::watch::Watch;

/// What is counted, for so many tasks, in whose process: few, for each step takes some ten microseconds.
const COUNTS: [(&Load, usize, Side); 7] = [
    (&QUEUED, 40, Side::Parent),
    (&CALL, 10, Side::Parent),
    (&CALL, 20, Side::Worker),
    (&SINGLE, 32, Side::Parent),
    (&SINGLE, 32, Side::Worker),
    (&MAP, 500, Side::Parent),
    (&MAP, 500, Side::Worker),
];
/// Of each the least is taken. Where even that is too many, for a machine so busy that a worker has to wait within a
/// call, there are some more.
const ROUNDS: usize = 2;
const MOST_ROUNDS: usize = 6;
/// More than expected by this share is a failure.
const TOLERANCE: f64 = 0.1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Parent,
    Worker,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Parent => "parent",
            Self::Worker => "worker",
        }
    }
}

fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("benches/costs")
        .join(file)
}

/// Compiles the program that steps; `None` where there is no compiler.
fn build_steps() -> Result<Option<PathBuf>, Error> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/costs-steps");
    if let Some(directory) = program.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut compiler = Command::new("cc");
    compiler.arg("-O2").arg("-o").arg(&program).arg(source("steps.c"));
    match compiler.status() {
        Ok(status) if status.success() => Ok(Some(program)),
        Ok(status) => Err(format!("steps.c does not compile: {status}").into()),
        Err(_) => Ok(None),
    }
}

/// Instructions of a task; `None` where the system does not let processes be traced.
fn count(steps: &Path, load: &Load, n: usize, side: Side) -> Result<Option<f64>, Error> {
    let mut watch = Watch::begin(load, n, true)?;
    let pids = match side {
        Side::Parent => vec![watch.parent()],
        Side::Worker => watch.workers.clone(),
    };
    let mut stepping = Command::new(steps)
        .args(pids.iter().map(u32::to_string))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(stepping.stdout.take().ok_or("no standard output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    if line.trim() != "ready" {
        stepping.wait()?;
        return Ok(None);
    }
    watch.tasks()?;
    let pid = Pid::from_raw(stepping.id().try_into()?).ok_or("no process id")?;
    kill_process(pid, Signal::TERM)?;
    let mut counts = String::new();
    output.read_to_string(&mut counts)?;
    stepping.wait()?;
    let counts: Vec<u64> = counts.lines().map(str::parse).collect::<Result<_, _>>()?;
    Ok(Some(counts.iter().sum::<u64>() as f64 / n as f64))
}

/// Which compiler, and for which processor: what a count depends on besides the sources.
fn compiler() -> Result<String, Error> {
    let output = Command::new("rustc").arg("--version").output()?;
    let version = String::from_utf8(output.stdout)?;
    Ok(format!("{}, {}", version.trim(), std::env::consts::ARCH))
}

/// What was counted beside what is expected, as Markdown.
pub(crate) struct Compared {
    pub(crate) text: String,
    /// `false` when something is more by too much.
    pub(crate) well: bool,
}

/// Counts, and writes what is expected from now on when it is to.
pub(crate) fn compare(write: bool) -> Result<Compared, Error> {
    let skipped = |why: &str| Compared {
        text: format!("Skipped: {why}, so that instructions are not counted.\n"),
        well: true,
    };
    let Some(steps) = build_steps()? else {
        return Ok(skipped("there is no C compiler"));
    };
    let file = source("expected.txt");
    let expected = fs::read_to_string(&file).unwrap_or_default();
    let compiler = compiler()?;
    let is_comparable = expected.lines().next() == Some(&compiler);
    let mut written = format!("{compiler}\n");
    let mut well = true;
    let mut text = format!(
        "Outside the kernel, built by {compiler}; one worker, one thread of the runtime, looking again switched off.\n\n\
         | instructions of | in the | expected | counted, least of two [–most] | |\n| --- | --- | --- | --- | --- |\n"
    );
    for (load, n, side) in COUNTS {
        let key = format!("{} {}", load.key, side.name());
        let line = expected
            .lines()
            .find_map(|line| line.strip_prefix(&key)?.strip_prefix(": "));
        let expected: Option<f64> = line.and_then(|number| number.parse().ok());
        let enough = expected.map_or(f64::INFINITY, |expected| expected * (1.0 + TOLERANCE));
        let (mut count, mut most, mut rounds) = (f64::INFINITY, 0.0_f64, 0);
        while rounds < ROUNDS || count > enough && rounds < MOST_ROUNDS {
            let Some(counted) = self::count(&steps, load, n, side)? else {
                return Ok(skipped("processes cannot be traced here"));
            };
            (count, most, rounds) = (count.min(counted), most.max(counted), rounds + 1);
        }
        written += &format!("{key}: {count:.0}\n");
        let change = expected.map_or(0.0, |expected| count / expected - 1.0);
        let is_more = is_comparable && change > TOLERANCE && !write;
        well &= !is_more;
        text += &format!(
            "| {} | {} | {} | {count:.0} [–{most:.0}] | {:+.1} %{} |\n",
            load.about,
            side.name(),
            expected.map_or("–".to_owned(), |expected| format!("{expected:.0}")),
            change * 100.0,
            if is_more { ": too many" } else { "" },
        );
    }
    if write {
        fs::write(&file, written)?;
    } else if !is_comparable {
        text += "\nexpected.txt is of another compiler: nothing is held against it.\n";
    }
    if !well {
        text += "\nSomething takes a tenth more than expected; `--write` where that is meant.\n";
    }
    Ok(Compared { text, well })
}
