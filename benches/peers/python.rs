//! Python's pools, by the script beside this file.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::plan::{Peer, Scale, WORKERS, Workload};

/// The variable that names the interpreter.
const PYTHON: &str = "PROCESSION_BENCH_PYTHON";
pub(crate) const SKIPPED: &str = "Python's pools are skipped: no Python 3.9 or later runs as python3.13 or python3; \
                                  PROCESSION_BENCH_PYTHON may name one";

/// An interpreter that runs.
pub(crate) struct Python {
    program: String,
    pub(crate) version: String,
}

/// The first interpreter that runs, which the mere presence of a command does not show.
pub(crate) async fn find() -> Option<Python> {
    const PROBE: &str =
        "import platform, sys; print(platform.python_version()); sys.exit(sys.version_info < (3, 9))";
    let named = std::env::var(PYTHON).ok();
    let candidates = match &named {
        Some(named) => vec![named.as_str()],
        None => vec!["python3.13", "python3"],
    };
    for program in candidates {
        let output = Command::new(program).args(["-c", PROBE]).output().await;
        if let Ok(output) = output
            && output.status.success()
        {
            return Some(Python {
                program: program.to_owned(),
                version: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            });
        }
    }
    None
}

impl Python {
    pub(crate) fn command(&self, peer: &Peer, workload: &Workload, scale: &Scale) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(script()).args([peer.key, workload.key]);
        let chunks: Vec<String> = scale.chunks.iter().map(usize::to_string).collect();
        let numbers = [
            ("workers", WORKERS),
            ("calls", scale.calls),
            ("tasks", scale.tasks),
            ("items", scale.items),
            ("single_items", scale.single_items),
            ("small_bytes", scale.small.0),
            ("small_echoes", scale.small.1),
            ("large_bytes", scale.large.0),
            ("large_echoes", scale.large.1),
            ("queued", scale.queued),
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
