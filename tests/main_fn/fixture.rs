//! Programs to run, each with a fuse against hanging.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a program may take.
pub(crate) const FUSE: Duration = Duration::from_secs(30);
/// How long a build may take, with others that have the same target directory.
const BUILD_FUSE: Duration = Duration::from_secs(600);

/// Looks at something that tells nobody when it changes, until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < FUSE, "not within {FUSE:?}: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// What a program printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// What it printed, if it ended well.
    #[track_caller]
    pub(crate) fn expect_success(self) -> Self {
        assert!(self.success, "{}{}", self.stdout, self.stderr);
        self
    }
}

/// Runs a program to its end, with nothing on its standard input.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Ran {
    run_within(command, FUSE)
}

#[track_caller]
fn run_within(command: &mut Command, fuse: Duration) -> Ran {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(fuse) {
        Ok(output) => {
            let Output {
                status,
                stdout,
                stderr,
            } = output.unwrap();
            Ran {
                success: status.success(),
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            }
        }
        Err(_) => {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            panic!("{command:?} hangs");
        }
    }
}

/// The cargo that built this test, at the root of the tree.
pub(crate) fn cargo(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    // A nextest that runs this test tells it things that a second one would take for its own.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NEXTEST") {
            command.env_remove(name);
        }
    }
    run_within(&mut command, BUILD_FUSE)
}

/// The path of a program in `tests/fixtures/programs`, built if it must be.
pub(crate) fn program(name: &str) -> &'static Path {
    static PROGRAMS: LazyLock<HashMap<String, PathBuf>> = LazyLock::new(|| {
        let built = cargo(&[
            "build",
            "-p",
            "fixture-programs",
            "--bins",
            "--message-format=json",
        ])
        .expect_success();
        let messages = built
            .stdout
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let programs = messages.filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        });
        programs.collect()
    });
    PROGRAMS.get(name).unwrap_or_else(|| panic!("no program {name}"))
}

/// A directory of a test's own that everybody may use, gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("procession-main-fn-")
            .tempdir()
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy of a program.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        // By another process: a file that is open for writing here is so in whatever another test is just starting,
        // and cannot be executed meanwhile.
        run(Command::new("cp").arg(program(name)).arg(&copy)).expect_success();
        copy
    }
}

/// A program that runs beside the test and is killed with it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Running {
    pub(crate) fn start(path: &Path) -> Self {
        Self::start_command(&mut Command::new(path))
    }

    pub(crate) fn start_command(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, stdin, lines }
    }

    /// The next line that it prints.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(FUSE).unwrap()
    }

    pub(crate) fn say(&mut self, line: &str) {
        // In one piece, for who reads it may end in its midst.
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        eventually("the program ends", || self.child.try_wait().unwrap().is_some());
    }

    /// Kills it, and nobody else.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
