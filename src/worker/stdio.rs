//! Standard input and output in a worker.
//!
//! They begin as the connection. The connection moves to a private descriptor before anything else runs, so that no
//! `println!`, C library or grandchild can write into a frame or read one.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The lowest number for the private descriptor: out of the way of programs that count on the first few.
pub(super) const PRIVATE: i32 = 10;

/// Takes the connection from standard input and output. Until [`redirect_stdout`], output goes to standard error.
pub(super) fn take_connection() -> io::Result<OwnedFd> {
    // What the program printed before it came here goes ahead of the handshake, where nobody minds it. The rest of an
    // unfinished line would otherwise come out among what tasks print.
    io::stdout().flush().ok();
    let connection = fcntl_dupfd_cloexec(io::stdin().as_fd(), PRIVATE)?;
    dup2_stdin(null()?)?;
    if dup2_stdout(io::stderr()).is_err() {
        // The parent runs without a standard error.
        dup2_stdout(null()?)?;
    }
    Ok(connection)
}

/// Points standard output where the parent wants it, if that is anywhere.
pub(super) fn redirect_stdout(attached: Option<OwnedFd>) -> io::Result<()> {
    match attached {
        Some(fd) => dup2_stdout(fd)?,
        None => dup2_stdout(null()?)?,
    }
    Ok(())
}

/// Points the outputs that went through the parent, which is gone, to nowhere. `pipes` are their reading ends.
pub(super) fn let_go(pipes: &[OwnedFd]) -> io::Result<()> {
    for pipe in pipes {
        let pipe = fstat(pipe)?;
        // What was pointed elsewhere meanwhile stays there.
        let is_pipe = |stream: BorrowedFd<'_>| {
            fstat(stream).is_ok_and(|found| (found.st_dev, found.st_ino) == (pipe.st_dev, pipe.st_ino))
        };
        if is_pipe(io::stdout().as_fd()) {
            dup2_stdout(null()?)?;
        }
        if is_pipe(io::stderr().as_fd()) {
            dup2_stderr(null()?)?;
        }
    }
    Ok(())
}

/// Reads, and forgets, what comes through `pipes` for as long as somebody may write there: a thread that was about to,
/// or what this process has started. Without a reader it would end them.
pub(super) fn drain(mut pipes: Vec<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while !pipes.is_empty() {
        let mut fds: Vec<_> = pipes
            .iter()
            .map(|pipe| PollFd::new(pipe, PollFlags::IN))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        pipes.retain(|pipe| {
            if ready.next() != Some(true) {
                return true;
            }
            match rustix::io::read(pipe, &mut buffer) {
                Ok(length) => length > 0,
                Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
            }
        });
    }
    Ok(())
}

/// Gives a copy of a template its own standard error, and standard output until [`redirect_stdout`].
pub(super) fn take_stderr(stderr: OwnedFd) -> io::Result<()> {
    dup2_stderr(&stderr)?;
    Ok(dup2_stdout(stderr)?)
}

fn null() -> io::Result<OwnedFd> {
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}
