//! Every example, run as its users run it: the program that cargo has built, its whole output, and that nothing is
//! left of it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails so")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;
use tempfile::TempDir;

/// For what would otherwise hang.
const FUSE: Duration = Duration::from_secs(30);

#[test]
fn quickstart() {
    let expected = "\
2^31 - 1 is prime: true
in another process: true
primes below 100: 25
a crash: Err(WorkerLost)
and on: 42
";
    assert_eq!(stdout_of("quickstart"), expected);
}

#[test]
fn callbacks() {
    let expected = "\
6 words
failed: there is nothing to count
counted 3
3 is even: false
the handle gave 4
the next callback saw 4
";
    assert_eq!(stdout_of("callbacks"), expected);
}

#[test]
fn streams() {
    let expected = "\
1000000007 is prime
1000000009 is prime
1000000021 is prime
1000000033 is prime
1000000087 is prime
1000000093 is prime
1000000097 is prime
1000003007000021 = 1000003 * 1000000007
LINE 0 to LINE 9
";
    assert_eq!(stdout_of("streams"), expected);
}

#[test]
fn async_tasks() {
    let expected = "\
Ok(\"hello task 1\") to Ok(\"hello task 20\")
its connection was closed: true
cancelled: true
42, in the same worker: true
";
    assert_eq!(stdout_of("async_tasks"), expected);
}

#[test]
fn fan_out() {
    let output = finish(&mut example("fan_out"));
    let expected = "\
host 1 is up
host 2 is up
failed with 255: echo no route to host 3 >&2; exit 255: no route to host 3
host 4 is up
host 5 is up
failed: echo half an answer; kill -KILL $PPID; sleep 100: process `echo half an answer; kill -KILL $PPID; sleep 100` (pid N) ended without a value (signal: 9 (SIGKILL))
host 7 is up
host 8 is up
2 of 8 failed
";
    assert_eq!(without_number_after(&text(&output.stdout), "(pid "), expected);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn fan_out_says_why_a_process_was_not_started() {
    // As long as an argument may be, so that it is too long with the program's name in front of it.
    let command = format!("true {}", "x".repeat(131_060));
    let output = finish(example("fan_out").arg(command));
    let printed = text(&output.stdout);
    let end = printed.trim_end().rsplit(' ').take(12).collect::<Vec<_>>();
    assert!(printed.contains(": Argument list too long"), "{end:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn prefork_server() {
    let expected = "\
400 requests, answered by several processes: true
lost at most the one that was in the process that was killed: true
";
    assert_eq!(stdout_of("prefork_server"), expected);
}

#[test]
fn prefork_server_replaces_processes_and_their_template() {
    let server = Service::start_example("prefork_server");
    let (status, body) = server.request("GET", "/a", "");
    assert_eq!(status, 200);
    let served = |body: &str| body.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    let pid: u32 = served(&body);
    let template = child_called(server.child.id(), "template").unwrap();
    let kill = |pid: u32| kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    kill(template);
    let wait_for = |what: &str, condition: &dyn Fn() -> bool| {
        let deadline = Instant::now() + FUSE;
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    };
    wait_for("the template is buried", &|| {
        child_called(server.child.id(), "template").is_none()
    });
    kill(pid);
    wait_for("there is another template", &|| {
        child_called(server.child.id(), "template").is_some()
    });
    for _ in 0..10 {
        let (status, body) = server.request("GET", "/b", "");
        assert_eq!(status, 200);
        assert_ne!(served(&body), pid);
    }
    server.interrupt();
    server.end();
}

#[test]
fn crash_isolation() {
    let expected = "\
abort: worker N (pid N) was lost while running `crash_isolation::abort`: signal: 6 (SIGABRT)
exit: worker N (pid N) was lost while running `crash_isolation::exit`: exit status: 3
kill: worker N (pid N) was lost while running `crash_isolation::kill`: signal: 9 (SIGKILL)
bad access: worker N (pid N) was lost while running `crash_isolation::bad_access`: signal: 11 (SIGSEGV)
stack overflow: worker N (pid N) was lost while running `crash_isolation::overflow_the_stack`: signal: 6 (SIGABRT); its standard error ended with:

thread 'main' (N) has overflowed its stack
fatal runtime error: stack overflow, aborting
panic: `crash_isolation::panic` panicked at examples/crash_isolation.rs:N:N in worker N (pid N): a panic costs nothing: the worker lives on
0 1 4 WorkerLost 16 25 36 Panicked 64 81
12 * 12 = 144
";
    // Where a constructor runs the tasks, nobody has said yet what to do of an overflow: the signal is all there is.
    let unhandled = expected.replace(
        "signal: 6 (SIGABRT); its standard error ended with:\n\nthread 'main' (N) has overflowed its stack\n\
         fatal runtime error: stack overflow, aborting\n",
        "signal: 11 (SIGSEGV)\n",
    );
    let expected = match cfg!(feature = "auto-init") {
        true => unhandled,
        false => expected.to_owned(),
    };
    let mut shown = stdout_of("crash_isolation");
    // Which worker, which process and which line may vary; the causes may not.
    for before in ["worker ", "(pid ", "'main' (", ".rs:", ".rs:N:"] {
        shown = without_number_after(&shown, before);
    }
    assert_eq!(shown, expected);
}

#[test]
fn sha256sum_prints_what_coreutils_print() {
    let tree = Tree::new();
    let names: &[&[u8]] = &[
        b"plain",
        b"with space",
        b" ",
        b"-dash",
        b"--workers",
        b"back\\slash",
        b"new\nline",
        b"return\r",
        b"\\\n\r",
        b"tab\t and \x01 and \x7f",
        b"\xff\xfe not text",
        "größe".as_bytes(),
        b"*",
        b"a.b",
        b"a/b",
        b"a/\n/c",
        b"a-/z",
    ];
    for (n, name) in names.iter().enumerate() {
        tree.file(OsStr::from_bytes(name), &vec![b'x'; n]);
    }
    for length in [0, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 3_000_000] {
        tree.file(format!("sizes/{length}"), &vec![7; length]);
    }
    for n in 0..500 {
        tree.file(format!("many/{n}"), n.to_string().as_bytes());
    }
    // Skipped, and not followed: a loop.
    symlink("../plain", tree.path("a/link")).unwrap();
    symlink("..", tree.path("a/loop")).unwrap();
    symlink("many", tree.path("a directory")).unwrap();
    symlink("nowhere", tree.path("dangling")).unwrap();
    fs::create_dir(tree.path("empty")).unwrap();

    let whole = tree.path("");
    let cases: &[&[&OsStr]] = &[
        &[".".as_ref()],
        &["./".as_ref()],
        &["many//".as_ref(), "a".as_ref(), "a".as_ref()],
        &["plain".as_ref(), "a directory".as_ref(), "a/link".as_ref()],
        &["new\nline".as_ref(), "sizes".as_ref(), "return\r".as_ref()],
        &["empty".as_ref(), "plain".as_ref()],
        &[whole.as_os_str()],
        &[OsStr::from_bytes(b"\xff\xfe not text")],
    ];
    for case in cases {
        let mut pipeline = Command::new("sh");
        let script = "find -H \"$@\" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --";
        pipeline
            .args(["-c", script, "sh"])
            .args(*case)
            .current_dir(tree.root());
        let expected = finish(&mut pipeline);
        assert!(expected.status.success(), "{expected:?}");
        for workers in ["1", "3"] {
            let mut ours = example("sha256sum");
            ours.args(["--workers", workers, "--"])
                .args(*case)
                .current_dir(tree.root());
            let got = finish(&mut ours);
            assert_eq!(text(&got.stderr), "", "{case:?}");
            assert!(got.status.success(), "{case:?}: {}", got.status);
            assert!(got.stdout == expected.stdout, "{case:?}: {:?}", text(&got.stdout));
        }
    }
}

#[test]
fn sha256sum_goes_on_after_what_it_cannot_read() {
    let tree = Tree::new();
    tree.file("good/1", b"one");
    tree.file("good/2", b"two");
    tree.file("locked", b"secret");
    fs::set_permissions(tree.path("locked"), fs::Permissions::from_mode(0o000)).unwrap();
    // To root nothing is locked.
    let is_root = rustix::process::geteuid().is_root();

    let mut command = example("sha256sum");
    // A file that opens and cannot be read, even by root.
    command.args(["good", "missing\n", "/proc/self/mem", "/dev/null"]);
    if !is_root {
        command.arg("locked");
    }
    let output = finish(command.current_dir(tree.root()));
    assert_eq!(output.status.code(), Some(1));
    let expected = "\
7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed  good/1
3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3  good/2
";
    assert_eq!(text(&output.stdout), expected);
    let complaints = text(&output.stderr);
    let mut expected = vec![
        r#"sha256sum: "missing\n": No such file or directory (os error 2)"#,
        r#"sha256sum: "/dev/null": neither a file nor a directory"#,
        r#"sha256sum: "/proc/self/mem": Input/output error (os error 5)"#,
    ];
    if !is_root {
        expected.push(r#"sha256sum: "locked": Permission denied (os error 13)"#);
    }
    assert_eq!(complaints.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn sha256sum_ends_quietly_when_nobody_reads_on() {
    let tree = Tree::new();
    for n in 0..100 {
        tree.file(format!("{n}"), b"");
    }
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    drop(read_end);
    let mut command = example("sha256sum");
    command.arg(tree.root());
    let output = finish_with(&mut command, Stdio::from(write_end), Stdio::piped());
    assert_eq!(text(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn sha256sum_says_that_it_could_not_print() {
    let mut command = example("sha256sum");
    command.arg("Cargo.toml").current_dir(env!("CARGO_MANIFEST_DIR"));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = finish_with(&mut command, Stdio::from(full), Stdio::piped());
    assert_eq!(
        text(&output.stderr),
        "sha256sum: No space left on device (os error 28)\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn sha256sum_refuses_bad_arguments() {
    let cases: &[&[&str]] = &[
        &[],
        &["--"],
        &["--workers"],
        &["--workers", "2"],
        &["--workers", "0", "src"],
        &["--workers", "-1", "src"],
        &["--workers", "many", "src"],
        &["--check", "src"],
        &["-", "src"],
    ];
    for case in cases {
        let mut command = example("sha256sum");
        let output = finish(command.args(*case));
        assert_eq!(output.status.code(), Some(2), "{case:?}");
        assert_eq!(
            text(&output.stderr),
            "usage: sha256sum [--workers N] PATH...\n",
            "{case:?}"
        );
        assert_eq!(text(&output.stdout), "", "{case:?}");
    }
}

#[test]
fn sha256sum_shows_a_progress_bar_on_a_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let tree = Tree::new();
    for n in 0..20 {
        tree.file(format!("{n:02}"), b"");
    }
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let stderr = fs::File::options()
        .read(true)
        .write(true)
        .open(OsStr::from_bytes(name.as_bytes()))
        .unwrap();

    let mut command = example("sha256sum");
    command
        .arg(tree.root())
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    let output = finish_with(&mut command, Stdio::piped(), Stdio::from(stderr));
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 20);

    let mut shown = Vec::new();
    // A terminal that nobody has open any more gives an error when all is read.
    fs::File::from(terminal).read_to_end(&mut shown).unwrap_err();
    assert!(
        text(&shown).contains("20/20") || text(&shown).contains("19/20"),
        "{:?}",
        text(&shown)
    );
}

#[test]
fn axum_service() {
    let service = Service::start();

    // A password, hashed elsewhere.
    let (status, hash) = service.request("POST", "/hash", "secret");
    assert_eq!(status, 200, "{hash}");
    let hash = PasswordHash::new(&hash).unwrap();
    Argon2::default().verify_password(b"secret", &hash).unwrap();

    // A crash is an answer, and a request beside it does not notice.
    let mut waiting = vec![service.open("GET", "/mine/256", "")];
    service.until(|status| status["in_flight"] == 1);
    let (status, cause) = service.request("GET", "/crash", "");
    assert_eq!(status, 500);
    assert!(
        cause.contains("was lost while running `axum_service::crash`"),
        "{cause}"
    );
    assert!(cause.contains("signal: 11 (SIGSEGV)"), "{cause}");
    let status = service.until(|status| status["restarts"] == 1);
    assert_eq!(status["in_flight"], 1);

    // Two run, two wait, the fifth is sent away.
    for (running, queued) in [(2, 0), (2, 1), (2, 2)] {
        waiting.push(service.open("GET", "/mine/256", ""));
        service.until(|status| status["in_flight"] == running && status["queued"] == queued);
    }
    let (status, cause) = service.request("POST", "/hash", "secret");
    assert_eq!((status, cause.as_str()), (503, "service overloaded"));
    let (status, cause) = service.request("GET", "/mine/8", "");
    assert_eq!((status, cause.as_str()), (503, "the queue is full"));

    // Clients that go away take their tasks with them: nothing runs, nothing waits, and two workers are new.
    let done = service.until_at_work()["done"].clone();
    waiting.truncate(2);
    service.until(|status| status["queued"] == 0);
    drop(waiting);
    let status = service.until(|status| status["in_flight"] == 0 && status["restarts"] == 3);
    assert_eq!(status["done"], done);

    // And it goes on.
    let (status, nonce) = service.request("GET", "/mine/8", "");
    assert_eq!(status, 200, "{nonce}");

    // Ctrl-C: what is being done is done first.
    let mut request = service.open("GET", "/mine/17", "");
    service
        .until(|status| status["in_flight"] == 1 || status["done"].as_u64() > done.as_u64().map(|n| n + 1));
    service.interrupt();
    let (status, nonce) = answer(&mut request);
    assert_eq!(status, 200, "{nonce}");
    assert_eq!(service.end(), "draining\ndrained\n");
}

#[test]
fn axum_service_sends_away_what_it_has_no_room_for() {
    let service = Service::start();
    // One place is left of four, and forty want it. Each brings a mebibyte.
    let mut mines = Vec::new();
    for (running, queued) in [(1, 0), (2, 0), (2, 1)] {
        mines.push(service.open("GET", "/mine/256", ""));
        service.until(|status| status["in_flight"] == running && status["queued"] == queued);
    }
    let password = "x".repeat(1 << 20);
    let mut waiting = service.open("POST", "/hash", &password);
    service.until(|status| status["queued"] == 2);
    let shed = || {
        let mut requests: Vec<_> = (0..40)
            .map(|_| service.open("POST", "/hash", &password))
            .collect();
        for request in &mut requests {
            let answer = answer(request);
            assert_eq!(answer, (503, "service overloaded".to_owned()));
        }
    };
    shed();
    let before = service.resident_memory();
    for _ in 0..10 {
        shed();
    }
    let grown = service.resident_memory().saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes more, after 400 MiB of requests");

    // The one is answered when there is a worker for it.
    drop(mines);
    let (status, hash) = answer(&mut waiting);
    assert_eq!(status, 200, "{hash}");

    // Of many at once some are answered and some are sent away, and none is forgotten.
    let mut requests: Vec<_> = (0..40).map(|_| service.open("POST", "/hash", "secret")).collect();
    let mut hashes = 0;
    for request in &mut requests {
        match answer(request) {
            (200, _) => hashes += 1,
            (status, cause) => assert_eq!((status, cause.as_str()), (503, "service overloaded")),
        }
    }
    assert!(hashes > 0);
    service.interrupt();
    assert_eq!(service.end(), "draining\ndrained\n");
}

#[test]
fn axum_service_does_not_wait_after_a_second_interrupt() {
    let mut service = Service::start();
    let mut request = service.open("GET", "/mine/256", "");
    service.until(|status| status["in_flight"] == 1);
    service.interrupt();
    let mut line = String::new();
    service.stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "draining\n");
    service.interrupt();
    let (status, cause) = answer(&mut request);
    assert_eq!(status, 500);
    assert_eq!(
        cause,
        "the pool was terminated while `axum_service::mine` was at a worker"
    );
    assert_eq!(service.end(), "drained\n");
}

/// The example program `name`, which cargo has built beside this one, in an environment that marks it and all that it
/// starts.
fn example(name: &str) -> Command {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    // Crashes are shown here, and no dump of them is wanted.
    let limit = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Core)
    };
    setrlimit(Resource::Core, limit).unwrap();

    let this = std::env::current_exe().unwrap();
    let program = this.parent().unwrap().with_file_name("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: cargo build --examples",
        program.display()
    );
    let mut command = Command::new(program);
    let run = format!("{}.{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    command
        .env(MARK, run)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LIB_BACKTRACE");
    command
}

/// The environment variable by which the processes of a run are known.
const MARK: &str = "PROCESSION_EXAMPLE_RUN";

/// Runs an example to its end, and gives what it printed.
fn stdout_of(name: &str) -> String {
    let output = finish(&mut example(name));
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout).into_owned()
}

fn finish(command: &mut Command) -> Output {
    finish_with(command, Stdio::piped(), Stdio::piped())
}

/// Runs a program to its end. Nothing that it started is there any more, then.
fn finish_with(command: &mut Command, stdout: Stdio, stderr: Stdio) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap();
    // The command has copies of what was given.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let fuse = fuse(&child);
    let output = child.wait_with_output().unwrap();
    drop(fuse);
    wait_until_nothing_is_left(command);
    output
}

/// Workers of a program that has ended may take a moment to see it.
fn wait_until_nothing_is_left(command: &Command) {
    let Some((_, Some(run))) = command.get_envs().find(|(key, _)| *key == MARK) else {
        return;
    };
    let mark = [MARK.as_bytes(), b"=", run.as_bytes()].concat();
    let deadline = Instant::now() + FUSE;
    loop {
        let left: Vec<PathBuf> = fs::read_dir("/proc")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|process| {
                let variables = fs::read(process.join("environ")).unwrap_or_default();
                variables
                    .split(|&byte| byte == 0)
                    .any(|variable| variable == mark)
            })
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left of {command:?}: {left:?}");
        thread::yield_now();
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// `text` with an N for the number that follows every `before`.
fn without_number_after(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        all.push_str(before);
        all.push_str(if rest.len() < part.len() { "N" } else { "" });
        all.push_str(rest);
    }
    all
}

/// A directory of files, removed when dropped.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join(path)
    }

    fn file(&self, path: impl AsRef<Path>, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// What a process has computed so far; none if there is none.
fn processor_time(pid: &Value) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
    Duration::from_secs(ticks.sum()) / u32::try_from(clock_ticks_per_second()).unwrap()
}

/// The service, running. Killed when dropped.
struct Service {
    command: Command,
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
    _fuse: mpsc::Sender<()>,
}

impl Service {
    fn start() -> Self {
        Self::start_example("axum_service")
    }

    fn start_example(name: &str) -> Self {
        let mut command = example(name);
        command
            .arg("127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line
            .trim_end()
            .strip_prefix("listening on http://")
            .expect(&line)
            .to_owned();
        Self {
            _fuse: fuse(&child),
            command,
            child,
            stdout,
            address,
        }
    }

    /// Sends a request, and leaves the answer in the connection.
    fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection.set_read_timeout(Some(FUSE)).unwrap();
        let (host, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}"
        );
        connection
            .write_all(format!("{head}\r\n\r\n{body}").as_bytes())
            .unwrap();
        connection
    }

    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        answer(&mut self.open(method, path, body))
    }

    /// Asks for the pool's state until it is as wanted.
    fn until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + FUSE / 2;
        loop {
            let (_, status) = self.request("GET", "/status", "");
            let status = serde_json::from_str(&status).unwrap();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "it stays so: {status}");
        }
    }

    /// Waits until both workers compute: what was sent to a worker may not have begun, and is cancelled without its end.
    fn until_at_work(&self) -> Value {
        self.until(|status| {
            let pids = status["pids"].as_array().unwrap();
            pids.len() == 2
                && pids
                    .iter()
                    .all(|pid| processor_time(pid) >= Duration::from_millis(200))
        })
    }

    /// Of the server, without its workers.
    fn resident_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kilobytes.unwrap().parse::<u64>().unwrap() * 1024
    }

    fn interrupt(&self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// Waits for its end, which must be a good one and leave nothing behind, and gives what it has printed since.
    fn end(mut self) -> String {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        wait_until_nothing_is_left(&self.command);
        rest
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The number of a child by its name.
fn child_called(parent: u32, name: &str) -> Option<u32> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (pid, rest) = stat.split_once(" (")?;
        let (its_name, rest) = rest.rsplit_once(") ")?;
        let its_parent: u32 = rest.split(' ').nth(1)?.parse().ok()?;
        (its_name == name && its_parent == parent).then(|| pid.parse().ok())?
    })
}

/// Reads the status and the body of a response.
fn answer(connection: &mut TcpStream) -> (u16, String) {
    let mut response = String::new();
    connection.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").expect(&response);
    let status = head.split(' ').nth(1).expect(head);
    (status.parse().unwrap(), body.to_owned())
}

/// Kills a process that has not ended when [`FUSE`] is over, so that nobody who reads from it waits for ever. Dropping
/// what it gives cuts it off.
fn fuse(child: &Child) -> mpsc::Sender<()> {
    let pid = Pid::from_child(child);
    let (fuse, burnt) = mpsc::channel();
    thread::spawn(move || {
        if burnt.recv_timeout(FUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
            kill_process(pid, Signal::KILL).unwrap();
        }
    });
    fuse
}
