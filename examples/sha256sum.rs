//! `sha256sum` on every core: hashes the files under the given paths in worker processes and prints what coreutils'
//! `sha256sum` prints for the same files, byte for byte, in the order of `LC_ALL=C sort`. Each file is opened and
//! read inside a worker, a piece at a time. Symbolic links given as arguments are followed, those met on the way are
//! skipped, as `find -H PATH… -type f` does.
//!
//! `cargo run --release --example sha256sum -- [--workers N] PATH…`

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use futures::StreamExt;
use indicatif::ProgressBar;
use procession::Pool;
use sha2::{Digest, Sha256};

const USAGE: &str = "usage: sha256sum [--workers N] PATH...";

/// The task. An `OsString`, for a file's name need not be text.
fn sha256(path: OsString) -> Result<String, String> {
    let hash = || -> io::Result<String> {
        let mut file = File::open(&path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                length => hasher.update(&buffer[..length]),
            }
        }
        Ok(hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    };
    hash().map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    procession::init();
    let Some((workers, paths)) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Err(error) = run(workers, &find(paths)) {
        eprintln!("sha256sum: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(COMPLAINED.load(Relaxed)))
}

fn run(workers: Option<NonZeroUsize>, files: &[OsString]) -> Result<(), Box<dyn Error>> {
    tokio::runtime::Runtime::new()?.block_on(print_sums(workers, files))
}

async fn print_sums(workers: Option<NonZeroUsize>, files: &[OsString]) -> Result<(), Box<dyn Error>> {
    let mut builder = Pool::builder();
    if let Some(workers) = workers {
        builder = builder.workers(workers.get());
    }
    let pool = builder.build().await?;

    // On standard error, and hidden where that is no terminal.
    let bar = ProgressBar::new(files.len() as u64);
    let shown = bar.clone();
    // Results come in the order of the input, so that each meets its file again.
    let sums = pool
        .imap(sha256, files.iter().cloned())
        .progress(move |done, _| shown.set_position(done));
    let mut files_and_sums = futures::stream::iter(files).zip(sums);
    let mut stdout = io::stdout().lock();
    while let Some((file, sum)) = files_and_sums.next().await {
        let printed = bar.suspend(|| {
            match sum {
                Ok(Ok(sum)) => return stdout.write_all(&line(&sum, file)),
                Ok(Err(message)) => complain(file, message),
                // The worker died: of a file, say, whose device made the kernel kill who read it.
                Err(error) => complain(file, error),
            }
            Ok(())
        });
        match printed {
            // Nobody reads on, as under `| head -1`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            printed => printed?,
        }
    }
    bar.finish_and_clear();

    // What was read ahead and is not wanted any more is cancelled with the stream.
    drop(files_and_sums);
    pool.close();
    pool.join().await?;
    Ok(())
}

/// A line as coreutils has it: a name with a backslash, newline or carriage return is escaped, and the line begins
/// with a backslash to say so.
fn line(sum: &str, file: &OsStr) -> Vec<u8> {
    let mut name = Vec::new();
    for &byte in file.as_bytes() {
        match byte {
            b'\\' => name.extend(br"\\"),
            b'\n' => name.extend(br"\n"),
            b'\r' => name.extend(br"\r"),
            byte => name.push(byte),
        }
    }
    let mark: &[u8] = if name.len() > file.len() { b"\\" } else { b"" };
    [mark, sum.as_bytes(), b"  ", &name, b"\n"].concat()
}

/// The regular files at and under `paths`, sorted by the bytes of their whole paths. (`Path` compares by components:
/// `a/b` before `a.b`.)
fn find(paths: Vec<PathBuf>) -> Vec<OsString> {
    let mut files = Vec::new();
    let mut directories = Vec::new();
    for path in paths {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => directories.push(path),
            Ok(metadata) if metadata.is_file() => files.push(path.into_os_string()),
            Ok(_) => complain(path.as_os_str(), "neither a file nor a directory"),
            Err(error) => complain(path.as_os_str(), error),
        }
    }
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                complain(directory.as_os_str(), error);
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) if kind.is_dir() => directories.push(path),
                Ok((kind, path)) if kind.is_file() => files.push(path.into_os_string()),
                Ok(_) => {}
                Err(error) => complain(directory.as_os_str(), error),
            }
        }
    }
    files.sort();
    files
}

/// Whether anything was said on standard error.
static COMPLAINED: AtomicBool = AtomicBool::new(false);

fn complain(file: &OsStr, problem: impl Display) {
    eprintln!("sha256sum: {file:?}: {problem}");
    COMPLAINED.store(true, Relaxed);
}

/// `None` where they make no sense.
fn arguments() -> Option<(Option<NonZeroUsize>, Vec<PathBuf>)> {
    let mut workers = None;
    let mut paths = Vec::new();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--workers" {
            workers = Some(arguments.next()?.to_str()?.parse().ok()?);
        } else if argument == "--" {
            paths.extend(arguments.by_ref().map(PathBuf::from));
        } else if argument.as_bytes().starts_with(b"-") {
            return None;
        } else {
            paths.push(argument.into());
        }
    }
    (!paths.is_empty()).then_some((workers, paths))
}
