//! Greeting a process that should become a worker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::hear::more;
use crate::error::StartPhase;
use crate::shared::watched::{Watched, watch};
use crate::task::table;
use crate::wire::codec::{self, message_bytes};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Hello, InitFailure, MAGIC, PROTOCOL, Ready, Welcome, kind};
use crate::wire::transport::{Outbox, Receiver, is_crowded, is_disconnect};

/// Foreign bytes that may come before the magic.
const MAX_FOREIGN: usize = 64 * 1024;
/// Foreign bytes that an error quotes.
const QUOTED: usize = 256;
/// The pause before descriptors are sent again that had no room.
pub(super) const CROWDED: Duration = Duration::from_millis(1);

/// Why a process did not become a worker.
#[derive(Debug)]
pub(crate) struct HandshakeError {
    pub(crate) failure: HandshakeFailure,
    /// The first bytes that were not of the handshake.
    pub(crate) first_bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) enum HandshakeFailure {
    /// The connection ended.
    End(StartPhase),
    Timeout(StartPhase),
    /// It speaks, and is not a worker of this program.
    Refused(String),
    Initializer(InitFailure),
    Io(io::Error),
}

/// What a process is told before anything is heard of it.
#[derive(Debug)]
pub(crate) struct Greeting {
    outbox: Outbox<Outgoing>,
    /// Dropped when there is nothing left to be sent, or nobody left who would.
    sent: Option<oneshot::Sender<()>>,
}

impl Greeting {
    /// Its welcome, with the descriptors that go with that. More may be put behind it.
    pub(crate) fn new(welcome: &Welcome, fds: Vec<OwnedFd>) -> Self {
        let mut bytes = Outgoing::buffer(256);
        message_bytes(welcome, &mut bytes);
        let mut outbox = Outbox::default();
        outbox.push(Outgoing::new(kind::WELCOME, bytes, fds), 0);
        Self { outbox, sent: None }
    }

    pub(crate) fn push(&mut self, message: Outgoing, id: u64) {
        self.outbox.push(message, id);
    }

    pub(crate) fn push_short(&mut self, kind: u8, body: &[u8], id: u64) {
        self.outbox.push_short(kind, body, id);
    }

    /// Sends what the connection takes at once.
    pub(super) fn write(&mut self, connection: BorrowedFd<'_>) {
        // An error shows when the process is heard.
        self.outbox.write(connection, SendFlags::DONTWAIT).ok();
    }

    /// What ends when the process has been sent all of it, or never will be. `None` where it has been.
    pub(super) fn sent(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.outbox.is_empty() {
            return None;
        }
        let (sent, is_sent) = oneshot::channel();
        self.sent = Some(sent);
        Some(is_sent)
    }
}

/// Greets the worker at the other end of `connection`, which is ready for tasks then. `greeting` is what it has not
/// been sent of that.
///
/// Must run on the library's runtime.
pub(crate) async fn handshake(
    connection: &Arc<OwnedFd>,
    greeting: Greeting,
    limit: u64,
    timeout: Duration,
) -> Result<(Receiver, Ready), HandshakeError> {
    let mut receiver = Receiver::new(limit);
    let mut foreign = Vec::new();
    match greet(connection, &mut receiver, &mut foreign, greeting, timeout).await {
        Ok(ready) => Ok((receiver, ready)),
        Err(failure) => {
            foreign.truncate(QUOTED);
            Err(HandshakeError {
                failure,
                first_bytes: foreign,
            })
        }
    }
}

async fn greet(
    connection: &Arc<OwnedFd>,
    receiver: &mut Receiver,
    foreign: &mut Vec<u8>,
    mut greeting: Greeting,
    timeout: Duration,
) -> Result<Ready, HandshakeFailure> {
    let now = Instant::now();
    // A timeout that is too long for the clock is as good as a year.
    let deadline = now
        .checked_add(timeout)
        .unwrap_or(now + Duration::from_secs(365 * 24 * 3600));
    let connection = watch(connection, Interest::READABLE).map_err(HandshakeFailure::Io)?;

    let phase = StartPhase::Handshake;
    loop {
        receive(&connection, receiver, deadline, phase).await?;
        if receiver.skip_to(&MAGIC, foreign) {
            break;
        }
        if foreign.len() > MAX_FOREIGN {
            return Err(HandshakeFailure::Refused(format!(
                "it wrote {} bytes of something else",
                foreign.len()
            )));
        }
    }
    let message = next(&connection, receiver, deadline, phase).await?;
    if message.kind != kind::HELLO {
        return Err(HandshakeFailure::Refused(format!(
            "its first message is of kind {}",
            message.kind
        )));
    }
    let hello: Hello = codec::decode(&message.body).map_err(HandshakeFailure::Refused)?;
    check(&hello).map_err(HandshakeFailure::Refused)?;

    loop {
        let written = greeting
            .outbox
            .write_some(connection.get_ref().as_fd(), SendFlags::DONTWAIT);
        match written {
            Ok(true) => break,
            // It takes it as fast as it is sent.
            Ok(false) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // An argument that is larger than the socket's buffer.
                wait_writable(&connection, deadline).await?;
            }
            // Nobody tells when there is room again.
            Err(error) if is_crowded(&error) && Instant::now() < deadline => {
                sleep_until(Instant::now() + CROWDED).await
            }
            // It may have said why before it hung up.
            Err(error) if is_disconnect(&error) => break,
            Err(error) => return Err(HandshakeFailure::Io(error)),
        }
    }
    drop(greeting);

    let phase = StartPhase::Initializer;
    let message = next(&connection, receiver, deadline, phase).await?;
    match message.kind {
        kind::READY => codec::decode(&message.body).map_err(HandshakeFailure::Refused),
        kind::INIT_FAILED => match codec::decode(&message.body) {
            Ok(failure) => Err(HandshakeFailure::Initializer(failure)),
            Err(message) => Err(HandshakeFailure::Refused(message)),
        },
        other => Err(HandshakeFailure::Refused(format!(
            "its second message is of kind {other}"
        ))),
    }
}

fn check(hello: &Hello) -> Result<(), String> {
    if hello.protocol != PROTOCOL {
        return Err(format!(
            "it speaks version {} of the protocol (procession {}), this program version {PROTOCOL}",
            hello.protocol, hello.version
        ));
    }
    if hello.fingerprint != table::fingerprint() {
        return Err(format!(
            "it is another build of the program ({}, procession {}): its tasks are not the same",
            hello.target, hello.version
        ));
    }
    Ok(())
}

async fn next(
    connection: &Watched,
    receiver: &mut Receiver,
    deadline: Instant,
    phase: StartPhase,
) -> Result<Message, HandshakeFailure> {
    loop {
        match receiver.next() {
            Ok(Some(message)) => return Ok(message),
            Ok(None) => receive(connection, receiver, deadline, phase).await?,
            Err(error) => return Err(HandshakeFailure::Refused(format!("it sent {error}"))),
        }
    }
}

async fn receive(
    connection: &Watched,
    receiver: &mut Receiver,
    deadline: Instant,
    phase: StartPhase,
) -> Result<(), HandshakeFailure> {
    match timeout_at(deadline, more(connection, receiver)).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(HandshakeFailure::End(phase)),
        Ok(Err(error)) => Err(HandshakeFailure::Io(error)),
        Err(_) => Err(HandshakeFailure::Timeout(phase)),
    }
}

async fn wait_writable(connection: &Watched, deadline: Instant) -> Result<(), HandshakeFailure> {
    let copy = Arc::new(connection.get_ref().try_clone().map_err(HandshakeFailure::Io)?);
    let copy = watch(&copy, Interest::WRITABLE).map_err(HandshakeFailure::Io)?;
    match timeout_at(deadline, copy.writable()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(HandshakeFailure::Io(error)),
        Err(_) => Err(HandshakeFailure::Timeout(StartPhase::Initializer)),
    }
}
