//! What the tests stand on: pools, processes, files, and a process of its own where a test must be alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use procession::{Output, Pool};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::fuse::{eventually, within};

/// A pool of so many workers whose output goes nowhere.
pub(crate) async fn pool(workers: usize) -> Pool {
    let builder = Pool::builder()
        .workers(workers)
        .stdout(Output::null())
        .stderr(Output::null());
    within(builder.build()).await.unwrap()
}

/// Task: where it runs.
pub(crate) fn pid<A>(_: A) -> u32 {
    std::process::id()
}

/// Task: itself.
pub(crate) fn same<T>(value: T) -> T {
    value
}

/// Process ids of a pool's workers.
pub(crate) fn pids(pool: &Pool) -> Vec<u32> {
    pool.workers().iter().filter_map(|worker| worker.pid).collect()
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The state letter and the parent of a process, if it exists.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether the process exists, if only as a zombie.
pub(crate) fn exists(pid: u32) -> bool {
    stat(pid).is_some()
}

/// Waits until a process is gone, zombie included.
pub(crate) fn gone(pid: u32) {
    eventually(&format!("process {pid} is gone"), || !exists(pid));
}

/// Child processes of this one, zombies included.
pub(crate) fn children() -> BTreeSet<u32> {
    let own = std::process::id();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| stat(pid).is_some_and(|(_, parent)| parent == own))
        .collect()
}

/// Open descriptors of this process and what they refer to.
pub(crate) fn descriptors() -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let target = fs::read_link(&path).ok()?;
            Some(format!("{} {}", path.display(), target.display()))
        })
        .filter(|line| !line.ends_with("/fd"))
        .collect();
    found.sort();
    found
}

/// Whether a descriptor of this process was inherited from who started it, beside the three standard ones.
pub(crate) fn is_inherited(line: &str) -> bool {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    let number = line.split(' ').next().and_then(|path| path.rsplit('/').next());
    let number: u32 = number.and_then(|number| number.parse().ok()).unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    number > 2 && flags.is_some_and(|flags| flags & CLOSE_ON_EXEC == 0)
}

/// Threads of this process.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// A file that nobody else uses, removed at the end, also for who comes late.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("procession-test-")
                .tempdir()
                .unwrap(),
        )
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("file")
    }

    pub(crate) fn path(&self) -> String {
        self.file().to_str().unwrap().to_owned()
    }

    /// Lines that tasks have written.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Task: adds a line to a file. One write, so that lines of several processes do not mix.
pub(crate) fn append((path, line): (String, String)) {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A program that stands beside the tests.
pub(crate) fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(name)
}

/// Runs `body` in a process where nothing else runs, for what is counted per process: `name` is the test's full
/// name. The test runs itself again with a filter, and the second time this calls `body`. The first time it gives what
/// the second printed to its standard output and standard error.
pub(crate) fn alone(name: &str, body: impl FnOnce()) -> Option<(String, String)> {
    if is_alone(name) {
        body();
        return None;
    }
    let (stdout, stderr) = printed_alone(name);
    assert!(stdout.contains("1 passed"), "{stdout}\n{stderr}");
    Some((stdout, stderr))
}

/// The same for a body with which the process ends, so that the harness prints nothing more among what is on its way.
#[expect(clippy::exit, reason = "the end of the program is what is looked at")]
pub(crate) fn alone_to_the_end(name: &str, body: impl FnOnce()) -> Option<(String, String)> {
    if is_alone(name) {
        body();
        std::process::exit(0);
    }
    Some(printed_alone(name))
}

const ALONE: &str = "PROCESSION_TEST_ALONE";

fn is_alone(name: &str) -> bool {
    std::env::var(ALONE).is_ok_and(|alone| alone == name)
}

fn printed_alone(name: &str) -> (String, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, name)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    (stdout, stderr)
}

/// A runtime like that of `#[tokio::main]`.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
