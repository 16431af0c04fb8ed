//! Other crates' pools: a package of its own, which is built when it is to be measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::output;
use crate::plan::{Peer, Workload};
use crate::scale::Scale;

pub(crate) struct RustPeers {
    package: PathBuf,
    program: PathBuf,
}

impl RustPeers {
    /// Builds it, which needs the registry the first time. What cannot be built is said on standard error.
    pub(crate) fn build() -> Option<Self> {
        match Self::try_build() {
            Ok(built) => Some(built),
            Err(error) => {
                eprintln!("peers: procspawn, tarnish and zng-task are skipped: {error}");
                None
            }
        }
    }

    fn try_build() -> Result<Self, Error> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rust-peers");
        if !package.join("Cargo.toml").exists() {
            return Err("packages do not carry them; they are in the repository".into());
        }
        let target = output::folder()?.join("rust");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
            .arg(&target)
            .current_dir(&package)
            .status()?;
        if !status.success() {
            return Err(format!("their build failed: {status}").into());
        }
        Ok(Self {
            package,
            program: target.join("release/rust-peers"),
        })
    }

    pub(crate) fn package(&self) -> &Path {
        &self.package
    }

    pub(crate) fn command(&self, peer: &Peer, workload: &Workload, scale: &Scale) -> Command {
        let mut command = Command::new(&self.program);
        command.args([peer.key, workload.key, scale.key]);
        command
    }
}
