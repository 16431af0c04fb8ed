//! Python's pools, by the script beside this file, in an environment of its own below `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::output;
use crate::plan::{Peer, Workload};
use crate::scale::{Scale, WORKERS};

/// The variable that names the interpreter.
const PYTHON: &str = "PROCESSION_BENCH_PYTHON";
const CANDIDATES: [&str; 3] = ["python3.14", "python3.13", "python3"];
/// The packages that the environment is given.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// An interpreter that runs.
pub(crate) struct Python {
    program: PathBuf,
    pub(crate) version: String,
    /// Names and versions of the packages that it finds.
    pub(crate) packages: Vec<(String, String)>,
}

/// The first interpreter that runs, which the mere presence of a command does not show. With `install`, it is given an
/// environment with the pools that are packages; what cannot be had is said on standard error and left out.
pub(crate) fn find(install: bool) -> Option<Python> {
    let named = std::env::var(PYTHON).ok();
    let candidates = match &named {
        Some(named) => vec![named.as_str()],
        None => CANDIDATES.to_vec(),
    };
    let mut found = None;
    for program in candidates {
        if let Some(version) = version(Path::new(program)) {
            found = Some((PathBuf::from(program), version));
            break;
        }
    }
    let Some((mut program, version)) = found else {
        eprintln!(
            "peers: Python's pools are skipped: no Python 3.9 or later runs as {}; {PYTHON} may name one",
            CANDIDATES.join(", ")
        );
        return None;
    };
    if install {
        match environment(&program, &version) {
            Ok(own) => program = own,
            Err(error) => eprintln!("peers: loky, mpire and pebble are skipped: {error}"),
        }
    }
    let packages = said(Command::new(&program).arg(script()).arg("versions"));
    let packages = packages.unwrap_or_default();
    let packages = packages.lines().filter_map(|line| line.split_once(' '));
    Some(Python {
        program,
        version,
        packages: packages
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect(),
    })
}

fn version(program: &Path) -> Option<String> {
    const PROBE: &str =
        "import platform, sys; print(platform.python_version()); sys.exit(sys.version_info < (3, 9))";
    let version = said(Command::new(program).args(["-c", PROBE])).ok()?;
    Some(version.trim().to_owned())
}

/// The interpreter of an environment with the packages, made when there is none.
fn environment(program: &Path, version: &str) -> Result<PathBuf, crate::Error> {
    let folder = output::folder()?.join(format!("python-{version}"));
    let own = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == REQUIREMENTS) {
        return Ok(own);
    }
    eprintln!(
        "peers: installing {} in {}",
        REQUIREMENTS.replace('\n', " ").trim(),
        folder.display()
    );
    said(Command::new(program).args(["-m", "venv"]).arg(&folder))?;
    let mut all = true;
    for package in REQUIREMENTS.lines() {
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--retries",
            "1",
            package,
        ];
        if let Err(error) = said(Command::new(&own).args(pip)) {
            eprintln!("peers: {package} is skipped: {error}");
            all = false;
        }
    }
    if all {
        std::fs::write(stamp, REQUIREMENTS)?;
    }
    Ok(own)
}

/// What a command prints, when it succeeds.
fn said(command: &mut Command) -> Result<String, crate::Error> {
    let output = command.output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let last = error.trim().lines().last().unwrap_or("it said nothing");
        return Err(format!("{:?}: {}: {last}", command.get_program(), output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Python {
    /// Whether the peer is part of Python or installed.
    pub(crate) fn has(&self, peer: &Peer) -> bool {
        let is_package = REQUIREMENTS.lines().any(|line| line.starts_with(peer.key));
        !is_package || self.packages.iter().any(|(name, _)| name == peer.key)
    }

    pub(crate) fn command(&self, peer: &Peer, workload: &Workload, scale: &Scale) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(script()).args([peer.key, workload.key]);
        let chunks: Vec<String> = scale.chunks.iter().map(usize::to_string).collect();
        let numbers = [
            ("workers", WORKERS),
            ("slow_calls", scale.slow_calls),
            ("slow_tasks", scale.slow_tasks),
            ("items", scale.items),
            ("slow_items", scale.slow_items),
            ("single_items", scale.single_items),
            ("small_bytes", scale.small.0),
            ("small_echoes", scale.small.1),
            ("large_bytes", scale.large.0),
            ("large_echoes", scale.large.1),
            ("starts", scale.starts),
            ("slow_queued", scale.slow_queued),
            ("computations", scale.computations),
        ];
        command.args(numbers.map(|(name, number)| format!("{name}={number}")));
        command.arg(format!("chunks={}", chunks.join(",")));
        command
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/peers.py")
}
