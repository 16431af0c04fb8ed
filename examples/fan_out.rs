//! Many commands, each run and watched by a process of its own, so many at a time: what a tool does that logs in on a
//! hundred machines. What they print comes out in the order of the commands, and the failures are named.
//!
//! `cargo run --example fan_out` runs a few commands that stand in for logins; `cargo run --example fan_out -- 'ssh a
//! uptime' 'ssh b uptime'` runs yours.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use procession::{Process, ProcessError};
use serde::{Deserialize, Serialize};

/// How many run at a time.
const AT_ONCE: usize = 4;
/// What a command may take.
const LONGEST: Duration = Duration::from_secs(20);

/// What a command has printed, and how it ended.
#[derive(Serialize, Deserialize)]
struct Done {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

/// In a process of its own, whose group the command is in: killed, it takes the command along.
fn run(command: String) -> Result<Done, String> {
    let output = Command::new("sh").args(["-c", &command]).output();
    let output = output.map_err(|error| format!("cannot run sh: {error}"))?;
    Ok(Done {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    })
}

/// What went wrong, and why.
fn told(error: ProcessError) -> String {
    let first: &dyn Error = &error;
    let causes = std::iter::successors(Some(first), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Has a process run one command, and kills it when that takes too long.
async fn supervise(command: &str) -> Result<Done, String> {
    let builder = Process::builder().name(command).daemon(true);
    let mut process = builder.spawn(run, command.to_owned()).await.map_err(told)?;
    match process.join_timeout(LONGEST).await.map_err(told)? {
        Some(done) => done,
        None => {
            process.kill().map_err(|error| error.to_string())?;
            Err(format!("was killed after {LONGEST:?}"))
        }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    procession::init();
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut commands: Vec<String> = std::env::args().skip(1).collect();
        if commands.is_empty() {
            commands = (1..=8).map(|n| format!("echo host {n} is up")).collect();
            commands[2] = "echo no route to host 3 >&2; exit 255".to_owned();
            commands[5] = "echo half an answer; kill -KILL $PPID; sleep 100".to_owned();
        }
        let running = commands
            .iter()
            .map(|command| async move { (command, supervise(command).await) });
        // In their order, however they end.
        let mut done = stream::iter(running).buffered(AT_ONCE);
        let mut failed = 0;
        while let Some((command, done)) = done.next().await {
            match done {
                Ok(Done {
                    stdout,
                    code: Some(0),
                    ..
                }) => print!("{stdout}"),
                Ok(Done { stdout, stderr, code }) => {
                    print!("{stdout}");
                    let code = code.map_or("a signal".to_owned(), |code| code.to_string());
                    println!("failed with {code}: {command}: {}", stderr.trim_end());
                    failed += 1;
                }
                Err(error) => {
                    println!("failed: {command}: {error}");
                    failed += 1;
                }
            }
        }
        println!("{failed} of {} failed", commands.len());
        Ok(ExitCode::from(u8::from(failed > 0)))
    })
}
