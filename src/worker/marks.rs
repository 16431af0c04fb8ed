//! Marks behind what tasks print, so that the parent knows whose it is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{FileType, fstat};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionread};

use super::stdio::PRIVATE;
use crate::wire::mark::{Tag, Token};
use crate::wire::message::Words;

static MARKS: OnceLock<Marks> = OnceLock::new();

/// The pipes to mark, by descriptors of their own, for a task may point the standard ones elsewhere.
struct Marks {
    token: Token,
    pipes: Vec<OwnedFd>,
}

/// Marks what the parent wants marked, from now on.
pub(super) fn set_up(words: &Words) -> io::Result<()> {
    let Some(token) = words.token else { return Ok(()) };
    let mut pipes = Vec::new();
    if words.mark_stdout {
        pipes.extend(pipe(io::stdout())?);
    }
    if words.mark_stderr {
        pipes.extend(pipe(io::stderr())?);
    }
    MARKS.get_or_init(|| Marks { token, pipes });
    Ok(())
}

/// A second descriptor of a pipe; `None` where the program has put something else in its place.
fn pipe(stream: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let stat = fstat(&stream)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Ok(None);
    }
    Ok(Some(fcntl_dupfd_cloexec(stream, PRIVATE)?))
}

/// The task has ended. What it printed and nobody has read is marked as its own; what has been read was read while the
/// ledger named the task.
pub(super) fn end_of(id: u64, row: u32) {
    let Some(marks) = MARKS.get() else { return };
    for pipe in &marks.pipes {
        if ioctl_fionread(pipe).is_ok_and(|unread| unread > 0) {
            // One write, for it is shorter than PIPE_BUF. Without it the words are taken for a later task's.
            rustix::io::write(pipe, &marks.token.mark(Tag { id, row })).ok();
        }
    }
}
