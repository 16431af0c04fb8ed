//! One measurement in a process of its own.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::Error;
use crate::figures::Figures;
use crate::plan::{Peer, Workload};
use crate::scale::Scale;

/// The argument that makes this program measure one thing and print the figures.
pub(crate) const MEASURE: &str = "--measure";
/// A measurement that takes longer hangs.
const FUSE: Duration = Duration::from_secs(120);

/// This program, to measure one thing.
pub(crate) fn command(peer: &Peer, workload: &Workload, scale: &Scale) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([MEASURE, peer.key, workload.key, scale.key]);
    Ok(command)
}

/// Runs a measurement. What it says on standard error goes there.
pub(crate) async fn run(mut command: Command) -> Result<Figures, Error> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = timeout(FUSE, child.wait_with_output())
        .await
        .map_err(|_| format!("it hung for {} s", FUSE.as_secs()))??;
    if !output.status.success() {
        return Err(format!("it failed: {}", output.status).into());
    }
    Figures::parse(&String::from_utf8(output.stdout)?)
}
