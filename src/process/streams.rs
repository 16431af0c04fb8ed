//! The two streams that a process prints to: where they go, and who hears them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, FdFlags, fcntl_getfd};

use super::launch::refused;
use super::listen::{Ears, Pipe, Speaker, pipe};
use super::output::{Output, OutputStream, Sink};
use crate::error::BuildError;
use crate::wire::message::Stdout;

/// What may wait of each stream of all single processes for who takes its lines.
const OUTPUT_BUFFER: usize = 8 << 20;

/// A process's ends of its streams, and this process's.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdout: Stdout,
    pub(crate) stdout_fd: Option<OwnedFd>,
    pub(crate) stderr_fd: OwnedFd,
    heard: Heard,
}

/// This process's ends of what goes through it.
#[derive(Debug)]
pub(crate) struct Heard {
    pipes: Vec<(OutputStream, Sink, Pipe)>,
}

impl Streams {
    /// For a process whose output all goes through this one, also what is inherited; the end of its standard error is
    /// wanted in any case.
    pub(crate) fn through_here(stdout: &Output, stderr: &Output) -> Result<Self, BuildError> {
        let (stdout_pipe, stdout_fd) = match &stdout.sink {
            Sink::Null => (None, None),
            _ => piped("make a pipe for a worker's standard output")
                .map(|(pipe, fd)| (Some(pipe), Some(fd)))?,
        };
        let (stderr_pipe, stderr_fd) = piped("make a pipe for a worker's standard error")?;
        Ok(Self::new(
            [stdout, stderr],
            stdout_fd,
            stderr_fd,
            [stdout_pipe, Some(stderr_pipe)],
        ))
    }

    /// For a process that may go on without this one: what it inherits are the descriptors themselves.
    pub(crate) fn of_its_own(stdout: &Output, stderr: &Output) -> Result<Self, BuildError> {
        let (stdout_pipe, stdout_fd) = match &stdout.sink {
            Sink::Null => (None, None),
            Sink::Inherit => (None, Some(own(io::stdout())?)),
            _ => piped("make a pipe for a process's standard output")
                .map(|(pipe, fd)| (Some(pipe), Some(fd)))?,
        };
        let (stderr_pipe, stderr_fd) = match &stderr.sink {
            Sink::Inherit => (None, own(io::stderr())?),
            _ => piped("make a pipe for a process's standard error").map(|(pipe, fd)| (Some(pipe), fd))?,
        };
        Ok(Self::new(
            [stdout, stderr],
            stdout_fd,
            stderr_fd,
            [stdout_pipe, stderr_pipe],
        ))
    }

    fn new(
        [stdout, stderr]: [&Output; 2],
        stdout_fd: Option<OwnedFd>,
        stderr_fd: OwnedFd,
        [stdout_pipe, stderr_pipe]: [Option<Pipe>; 2],
    ) -> Self {
        let pipes = [
            (OutputStream::Stdout, stdout.sink.clone(), stdout_pipe),
            (OutputStream::Stderr, stderr.sink.clone(), stderr_pipe),
        ];
        let pipes = pipes
            .into_iter()
            .filter_map(|(stream, sink, pipe)| Some((stream, sink, pipe?)));
        Self {
            stdout: match stdout_fd {
                Some(_) => Stdout::Attached,
                None => Stdout::Null,
            },
            stdout_fd,
            stderr_fd,
            heard: Heard {
                pipes: pipes.collect(),
            },
        }
    }

    /// This process's ends once more, for a process that goes on without this one: who writes to a pipe that nobody can
    /// read is ended for it.
    pub(crate) fn readers(&self) -> Result<Vec<OwnedFd>, BuildError> {
        let copies = self.heard.pipes.iter().map(|(.., pipe)| pipe.copy());
        copies
            .collect::<io::Result<_>>()
            .map_err(refused("duplicate the end of a pipe"))
    }

    /// What the process is given, and what is heard of it.
    pub(crate) fn divide(self) -> (Option<OwnedFd>, OwnedFd, Heard) {
        (self.stdout_fd, self.stderr_fd, self.heard)
    }
}

impl Heard {
    pub(crate) fn is_empty(&self) -> bool {
        self.pipes.is_empty()
    }

    /// Has it heard, as the words of `speaker`.
    pub(crate) fn listen(self, ears: &Ears, speaker: &Speaker) {
        for (stream, sink, pipe) in self.pipes {
            ears.listen(speaker, stream, sink, pipe);
        }
    }
}

fn piped(action: &'static str) -> Result<(Pipe, OwnedFd), BuildError> {
    pipe().map_err(refused(action))
}

/// A standard stream of this process, for another one. Where this process has closed it there is nothing to inherit,
/// nor where something else has taken its number since: what is opened later closes on exec, a standard stream does not.
fn own(stream: impl AsFd) -> Result<OwnedFd, BuildError> {
    let is_closed = match fcntl_getfd(&stream) {
        Ok(flags) => flags.contains(FdFlags::CLOEXEC),
        Err(error) => error == Errno::BADF,
    };
    let own = match is_closed {
        true => open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from),
        false => stream.as_fd().try_clone_to_owned(),
    };
    own.map_err(refused("duplicate a standard stream"))
}

/// What hears all single processes whose output goes through this one.
pub(crate) fn ears() -> Result<&'static Arc<Ears>, BuildError> {
    static EARS: OnceLock<Arc<Ears>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    // Two at a time must not start two.
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ears) = EARS.get() {
        return Ok(ears);
    }
    let (ears, reader) = Ears::new(OUTPUT_BUFFER).map_err(refused("make an event descriptor"))?;
    reader.start().map_err(refused("start the output thread"))?;
    Ok(EARS.get_or_init(|| ears))
}
