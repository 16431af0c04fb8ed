//! Starting a worker: this program again, with one end of a socket pair as its standard input and output.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use rustix::param::linux_execfn;

use super::child::Child;
use super::handshake::Greeting;
use crate::error::BuildError;
use crate::init;
use crate::wire::transport;

/// The running image itself: it can be started even when its file was replaced or deleted.
const SELF: &str = "/proc/self/exe";

/// This program: the running image, or without `/proc` the file that it was started from, as far as that is known.
/// Whether it is the same still is for the handshake to tell.
fn own_program() -> &'static Path {
    static OWN: LazyLock<PathBuf> = LazyLock::new(|| {
        // Asked first, for some that run programs, valgrind among them, do not tell the file.
        if Path::new(SELF).exists() {
            return SELF.into();
        }
        let file = Path::new(OsStr::from_bytes(linux_execfn().to_bytes()));
        match std::path::absolute(file) {
            Ok(file) if file.is_file() => file,
            _ => SELF.into(),
        }
    });
    &OWN
}

/// How a process's environment differs from this one's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    is_cleared: bool,
    /// Variables that are set, or removed, the later over the earlier.
    changes: Vec<(OsString, Option<OsString>)>,
}

impl Environment {
    pub(crate) fn set(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    pub(crate) fn remove(&mut self, key: impl Into<OsString>) {
        self.changes.push((key.into(), None));
    }

    pub(crate) fn clear(&mut self) {
        self.is_cleared = true;
        self.changes.clear();
    }

    /// Refuses what no environment can hold.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        for (key, value) in &self.changes {
            // One that cannot be there is removed already.
            let Some(value) = value else { continue };
            let name = key.as_bytes();
            let reason = if name.is_empty() {
                "the name of a variable is empty".to_owned()
            } else if name.contains(&b'=') || name.contains(&0) {
                format!("the name {key:?} contains a NUL byte or a =")
            } else if value.as_bytes().contains(&0) {
                format!("the value of {key:?} contains a NUL byte")
            } else {
                continue;
            };
            return Err(BuildError::InvalidOption {
                option: "env",
                reason,
            });
        }
        Ok(())
    }

    /// What a variable will be.
    pub(super) fn get(&self, key: &str) -> Option<OsString> {
        match self.changes.iter().rev().find(|(changed, _)| changed == key) {
            Some((_, value)) => value.clone(),
            None if self.is_cleared => None,
            None => std::env::var_os(key),
        }
    }

    fn apply(&self, command: &mut Command) {
        if self.is_cleared {
            command.env_clear();
        }
        for (key, value) in &self.changes {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
    }
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    /// Another program than this one.
    pub(crate) path: Option<PathBuf>,
    pub(crate) env: Environment,
    pub(crate) current_dir: Option<PathBuf>,
}

impl Program {
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or_else(|| own_program())
    }

    /// Whether what is started is the running image, and so understands what this process says.
    fn is_this(&self) -> bool {
        self.path().as_os_str() == SELF
    }
}

/// The system does not say whether it is the program that is missing or the directory.
fn explain(program: &Program, error: io::Error) -> io::Error {
    let directory = program.current_dir.as_deref();
    let refused = directory.and_then(|directory| Some((directory, fs::metadata(directory.join(".")).err()?)));
    match refused {
        Some((directory, reason)) => {
            let directory = directory.display();
            io::Error::new(
                error.kind(),
                format!("its working directory {directory}: {reason}"),
            )
        }
        None => error,
    }
}

/// A process that has been started, and the parent's end of its connection.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) connection: Arc<OwnedFd>,
    /// What has not been sent of the greeting.
    pub(crate) greeting: Greeting,
}

/// A connection for a process that is about to be started, and the marker that goes with it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) ours: OwnedFd,
    pub(super) theirs: OwnedFd,
    pub(super) marker: String,
}

impl Line {
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        let (ours, theirs) = transport::stream_pair()?;
        let marker = init::marker(&theirs, depth)?;
        Ok(Self { ours, theirs, marker })
    }
}

/// Starts `program` as a worker that `ps` shows as `label`. Blocks until the new program is in place.
///
/// Nothing is set up between fork and exec, so that the system's fast path serves (posix_spawn); what a worker
/// needs, it does itself.
///
/// The running image finds `greeting` waiting for it. Another program is told nothing before it has said what it is: a
/// shell would take it for commands.
pub(crate) fn spawn(
    program: &Program,
    label: &str,
    depth: u32,
    stderr: OwnedFd,
    mut greeting: Greeting,
) -> io::Result<Spawned> {
    let Line { ours, theirs, marker } = Line::new(depth)?;
    if program.is_this() {
        // What does not fit, or cannot be sent now, follows when the process has said hello.
        greeting.write(ours.as_fd());
    }
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_default();

    let mut command = Command::new(program.path());
    let shown = program
        .path
        .as_ref()
        .map_or(own_name.as_os_str(), |path| path.as_os_str());
    let mut name = shown.to_owned();
    name.push(format!(": {label}"));
    command.arg0(name).args(arguments);
    program.env.apply(&mut command);
    command.env(init::MARKER, &marker);
    if let Some(directory) = &program.current_dir {
        command.current_dir(directory);
    }
    command
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs))
        .stderr(Stdio::from(stderr));
    // A group of its own: Ctrl-C reaches the parent alone, and the worker can be killed with all that it starts.
    command.process_group(0);
    let child = command.spawn().map_err(|error| explain(program, error))?;
    let child = Child::new(child, marker)?;
    Ok(Spawned {
        child,
        connection: Arc::new(ours),
        greeting,
    })
}
