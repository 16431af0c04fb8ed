//! One measurement in a process of its own.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;
use crate::figures::Figures;

/// The argument that makes these programs measure one thing and print the figures.
pub(crate) const MEASURE: &str = "--measure";
/// A measurement that takes longer hangs.
const FUSE: Duration = Duration::from_secs(120);

/// This program, to measure one thing.
pub(crate) fn command(what: &[&str]) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(MEASURE).args(what);
    Ok(command)
}

/// Runs a measurement. What it says on standard error goes there.
pub(crate) fn run(mut command: Command) -> Result<Figures, Error> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let pid = Pid::from_raw(child.id().try_into()?).ok_or("no process id")?;
    let (done, is_done) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = is_done.recv_timeout(FUSE) else {
        kill_process(pid, Signal::KILL)?;
        return Err(format!("it hung for {} s", FUSE.as_secs()).into());
    };
    let output = output?;
    if !output.status.success() {
        return Err(format!("it failed: {}", output.status).into());
    }
    Figures::parse(&String::from_utf8(output.stdout)?)
}
