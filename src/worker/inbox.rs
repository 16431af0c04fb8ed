//! Tasks that have come and not started.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::look::Looks;
use crate::shared::ledger::{Ledger, clock};
use crate::wire::codec::{self, take_u32};
use crate::wire::context::Context;
use crate::wire::frame::Message;
use crate::wire::message::kind;
use crate::wire::transport::{Received, Receiver, is_disconnect};

/// The connection's reading side. The thread that runs tasks takes from it, and the watcher gives back what is
/// recalled: whoever holds the lock sees everything that has come.
#[derive(Debug)]
pub(super) struct Inbox {
    connection: OwnedFd,
    waiting: Mutex<Waiting>,
    looks: Mutex<Looks>,
}

#[derive(Debug)]
struct Waiting {
    receiver: Receiver,
    tasks: VecDeque<(Message, Option<Context>)>,
    /// What came in front of tasks that have not come.
    contexts: HashMap<u64, Context>,
    shutdown: bool,
    /// Recalls that have been answered.
    recalls: u64,
}

/// What [`Inbox::try_next`] found.
#[derive(Debug)]
pub(super) enum Next {
    /// A task, when it started, and what came with it.
    Task(Message, u64, Option<Context>),
    /// The parent wants back what has not started.
    Recall,
    /// A task that was cancelled before it started.
    Revoked(u64),
    /// Nothing has come, when the parent had rung so often.
    Empty(u64),
    /// The parent wants the worker to end.
    Shutdown,
    /// The parent is gone.
    End,
}

impl Inbox {
    /// Begins with what `receiver` has brought and nobody has taken. A task that may come soon is looked for for `spin`
    /// before this process sleeps.
    pub(super) fn new(connection: OwnedFd, receiver: Receiver, spin: Duration) -> io::Result<Self> {
        let mut waiting = Waiting {
            receiver,
            tasks: VecDeque::new(),
            contexts: HashMap::new(),
            shutdown: false,
            recalls: 0,
        };
        waiting.take()?;
        Ok(Self {
            connection,
            waiting: Mutex::new(waiting),
            looks: Mutex::new(Looks::new(spin)),
        })
    }

    /// The next task, which counts as started in `lane` from here on.
    pub(super) fn try_next(&self, ledger: &Ledger, lane: usize) -> io::Result<Next> {
        let mut waiting = self.lock();
        if ledger.recalls() != waiting.recalls {
            return Ok(Next::Recall);
        }
        loop {
            if let Some((task, context)) = waiting.tasks.pop_front() {
                let revocations = ledger.revocations();
                if ledger.is_revoked(task.id) {
                    return Ok(Next::Revoked(task.id));
                }
                // Under the lock: a recall must see a task either here or started, never in between.
                ledger.set_row(take_u32(&mut task.start()).unwrap_or(u32::MAX));
                let now = clock();
                ledger.start(lane, task.id, now);
                // The parent revokes and then looks what has started: it sees this, or this sees that.
                if ledger.revocations() != revocations && ledger.is_revoked(task.id) {
                    ledger.finish(lane);
                    return Ok(Next::Revoked(task.id));
                }
                return Ok(Next::Task(task, now, context));
            }
            if waiting.shutdown {
                return Ok(Next::Shutdown);
            }
            let rings = ledger.rings();
            match waiting.receive(self.connection.as_fd())? {
                Received::Bytes { .. } => {}
                Received::WouldBlock => return Ok(Next::Empty(rings)),
                Received::End => return Ok(Next::End),
            }
        }
    }

    /// Looks whether something comes soon, given how often the parent had rung when nothing was there.
    pub(super) fn look(&self, ledger: &Ledger, rings: u64) -> bool {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.begin() && looks.look(|| (ledger.rings() != rings).then_some(())).is_some()
    }

    /// Waits, without the lock, until something has come, the parent is gone, or `most` has passed.
    pub(super) fn wait(&self, most: Option<&Timespec>) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.connection, PollFlags::IN)];
        match poll(&mut fds, most) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes back every task that has come and not started, and says which they were. `None` where that has been
    /// done since the parent asked.
    pub(super) fn recall(&self, ledger: &Ledger) -> io::Result<Option<Vec<u64>>> {
        let mut waiting = self.lock();
        let recalls = ledger.recalls();
        if recalls == waiting.recalls {
            return Ok(None);
        }
        waiting.recalls = recalls;
        while let Received::Bytes { .. } = waiting.receive(self.connection.as_fd())? {}
        Ok(Some(waiting.tasks.drain(..).map(|(task, _)| task.id).collect()))
    }

    pub(super) fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn receive(&mut self, connection: BorrowedFd<'_>) -> io::Result<Received> {
        let received = match self.receiver.receive(connection, RecvFlags::DONTWAIT) {
            // One that has ended with something unread.
            Err(error) if is_disconnect(&error) => Received::End,
            received => received?,
        };
        self.take()?;
        Ok(received)
    }

    /// Takes the messages that the receiver has.
    fn take(&mut self) -> io::Result<()> {
        while let Some(message) = self
            .receiver
            .next()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?
        {
            match message.kind {
                kind::TASK | kind::CHUNK | kind::TIMED_CHUNK => {
                    let context = match self.contexts.is_empty() {
                        true => None,
                        false => self.contexts.remove(&message.id),
                    };
                    self.tasks.push_back((message, context));
                }
                kind::CONTEXT => {
                    let context = codec::decode(&message.body)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    self.contexts.insert(message.id, context);
                }
                kind::SHUTDOWN => self.shutdown = true,
                other => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("message kind {other}"),
                    ));
                }
            }
        }
        Ok(())
    }
}
