//! Standard input and output in a worker.
//!
//! They begin as the connection. The connection moves to a private descriptor before anything else runs, so that no
//! `println!`, C library or grandchild can write into a frame or read one.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::wire::message::{Role, Stdout};

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

/// Points standard output where the pool wants it.
pub(super) fn redirect_stdout(policy: Stdout, attached: Option<OwnedFd>) -> io::Result<()> {
    match (policy, attached) {
        (Stdout::Attached, Some(fd)) => dup2_stdout(fd)?,
        (Stdout::Null, _) | (Stdout::Attached, None) => dup2_stdout(null()?)?,
    }
    Ok(())
}

/// Points the outputs that went through the parent, which is gone, to nowhere: a pipe without a reader would end who
/// writes to it.
pub(super) fn let_go() -> io::Result<()> {
    let Some(Role::Process {
        piped: [stdout, stderr],
        ..
    }) = super::role()
    else {
        return Ok(());
    };
    if *stdout {
        dup2_stdout(null()?)?;
    }
    if *stderr {
        dup2_stderr(null()?)?;
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
