//! The life of one process, as its parent sees it: what it is asked, what it answers, its end.
//!
//! It is told everything at once: what it is, the one task, and that no other will come. So it is a worker that ends
//! by itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use event_listener::Event;
use rustix::net::RecvFlags;
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::time::timeout;

use super::child::{Child, Killer};
use super::children;
use super::error::{Cause, Exit, ProcessError};
use super::handshake::{Greeting, HandshakeError, HandshakeFailure, handshake};
use super::hear::more;
use super::launch::{LAST_WORDS, Launched, Report, last_words, words_of_free};
use super::listen::Ears;
use super::memory::WorkerMemory;
use super::orphans::Orphans;
use super::spawn::Program;
use crate::error::StartPhase;
use crate::shared::ledger::Ledger;
use crate::shared::watched::watch;
use crate::wire::attachments;
use crate::wire::codec::{self, Encoded};
use crate::wire::frame::Message;
use crate::wire::message::{Failure, kind, message_limit};
use crate::wire::transport::{Received, Receiver};

/// What a result's run time takes in front of it.
const RUN_TIME: usize = 4;

/// A process, for those who hold it.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) is_daemon: bool,
    /// What it started ends with it.
    is_bound: bool,
    pub(crate) killer: Arc<Killer>,
    /// Readable when it has ended.
    pub(crate) sentinel: Arc<OwnedFd>,
    /// Somebody has sent it a signal through here.
    is_signalled: AtomicBool,
    /// How it ended, as soon as that is known.
    status: OnceLock<Option<ExitStatus>>,
    /// What became of its function. A value is for the first who asks.
    outcome: Mutex<Option<Outcome>>,
    /// Set when everything is over.
    is_over: OnceLock<()>,
    over: Event,
}

/// What a process has come to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Value(Message),
    Failed(Cause),
}

impl Life {
    pub(crate) fn new(
        name: String,
        is_daemon: bool,
        is_bound: bool,
        child: &Child,
        sentinel: Arc<OwnedFd>,
    ) -> Self {
        Self {
            pid: child.pid(),
            name,
            is_daemon,
            is_bound,
            killer: child.killer(),
            sentinel,
            is_signalled: AtomicBool::new(false),
            status: OnceLock::new(),
            outcome: Mutex::new(None),
            is_over: OnceLock::new(),
            over: Event::new(),
        }
    }

    /// Waits until the process has ended and been buried, and all that it said has been read.
    pub(crate) async fn over(&self) {
        while !self.is_over() {
            let over = self.over.listen();
            if !self.is_over() {
                over.await;
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get().is_some()
    }

    /// How it ended, if it has and that is known.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        if let Some(status) = self.status.get() {
            return *status;
        }
        let status = self.killer.status();
        // It may have been buried meanwhile, after this was noted.
        status.or_else(|| self.status.get().copied().flatten())
    }

    pub(crate) fn error(&self, cause: Cause) -> ProcessError {
        ProcessError::new(&self.name, Some(self.pid), self.status(), cause)
    }

    /// What it has given is no value, for whoever asks.
    pub(crate) fn fail(&self, cause: Cause) {
        let outcome = Outcome::Failed(cause);
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    pub(crate) fn take_outcome(&self) -> Option<Outcome> {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match &*outcome {
            Some(Outcome::Failed(cause)) => Some(Outcome::Failed(cause.clone())),
            _ => outcome.take(),
        }
    }

    /// Sends it a signal. That it has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.is_signalled.store(true, Ordering::Release);
        self.killer.signal(signal)
    }

    /// Kills it, with its group or with all that it started.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.is_signalled.store(true, Ordering::Release);
        if self.is_bound {
            // It goes last itself, for with it the tree of what it started falls apart.
            self.killer.kill();
            return self.killer.may_signal();
        }
        self.killer.send(Signal::KILL);
        // It may have left its group, or changed its user.
        self.killer.signal(Signal::KILL)
    }
}

/// What is needed to live with a process.
#[derive(Debug)]
pub(crate) struct Care {
    pub(crate) program: Program,
    pub(crate) start_timeout: Duration,
    /// The initializer's name.
    pub(crate) initializer: Option<String>,
    pub(crate) max_frame_size: u64,
    pub(crate) memory: WorkerMemory,
    /// What it will leave to this process.
    pub(crate) orphans: Option<Orphans>,
    /// Where what it prints is heard, and its number there.
    pub(crate) heard: Option<(&'static Arc<Ears>, u64)>,
}

/// Lives with a process until it is over.
///
/// Must run on the library's runtime.
pub(crate) async fn live(life: Arc<Life>, launched: Launched, mut care: Care) {
    let Launched {
        child,
        connection,
        control,
        ledger,
        heard: _,
        greeting,
    } = launched;
    let mut said = Said::default();
    let mut receiver = None;
    let mut failure = {
        let conversation = converse(&connection, greeting, &care, &mut receiver, &mut said);
        tokio::pin!(conversation);
        tokio::select! {
            failure = &mut conversation => failure,
            // What it said last is on its way.
            () = child.ended() => timeout(LAST_WORDS, conversation).await.unwrap_or(None),
        }
    };
    let speaks_nonsense = match &failure {
        Some(Trouble::Nonsense(_)) => true,
        Some(Trouble::Start(error)) => !matches!(
            error.failure,
            HandshakeFailure::End(_) | HandshakeFailure::Initializer(_)
        ),
        None => false,
    };
    if speaks_nonsense {
        // One that may not be killed has to be waited for.
        life.kill().ok();
    }
    child.ended().await;
    if let (Some(receiver), None) = (&mut receiver, &failure)
        && let Err(fault) = said.take_rest(receiver, connection.as_fd(), &ledger)
    {
        failure = Some(Trouble::Nonsense(fault));
    }
    let answer = said.outcome;
    let orphans = match care.orphans.take() {
        Some(orphans) => orphans.gather().await,
        None => None,
    };
    let status = life.killer.status();
    if life.status.set(status).is_err() {
        debug_assert!(false, "a process ends once");
    }
    if life.is_bound {
        child.wait().await;
    } else {
        child.bury();
    }
    let stderr = match care.heard {
        Some((ears, process)) if life.is_bound => last_words(ears, process).await,
        Some((ears, process)) => words_of_free(ears, process).await,
        None => String::new(),
    };
    let out_of_memory = match answer {
        Some(_) => None,
        None => care.memory.cause(status, ledger.resident_at_end(), &stderr),
    };
    care.memory.bury().await;
    let outcome = match (answer, failure) {
        (Some(outcome), _) => outcome,
        (None, Some(Trouble::Start(error)))
            if out_of_memory.is_some() || !is_own_end(&life, &care, &error, status) =>
        {
            let report = Report {
                program: care.program.path(),
                start_timeout: care.start_timeout,
                initializer: care.initializer,
                status,
                stderr,
            };
            Outcome::Failed(Cause::Start(match out_of_memory {
                Some(end) => report.starved("it", end),
                None => report.error(error),
            }))
        }
        (None, failure) => Outcome::Failed(Cause::Exited(Exit {
            fault: match failure {
                Some(Trouble::Nonsense(fault)) => Some(fault),
                _ => None,
            },
            out_of_memory,
            stderr,
        })),
    };
    *life.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    // Whoever has joined it finds no descriptor of it left but the handle's.
    drop((connection, control, ledger, receiver));
    children::forget(&life);
    life.is_over.get_or_init(|| ());
    life.over.notify(usize::MAX);
    if let Some((orphans, living)) = orphans {
        orphans.bury(living).await;
    }
}

/// Whether a process that never was ready was ended by somebody, and is itself not to blame. A signal that comes while
/// an initializer runs is that one's, unless it was sent through the handle.
fn is_own_end(life: &Life, care: &Care, error: &HandshakeError, status: Option<ExitStatus>) -> bool {
    let is_signalled = life.is_signalled.load(Ordering::Acquire);
    // Where nobody knows how it ended, it did what it was told.
    let has_signal = status.map_or(is_signalled, |status| status.signal().is_some());
    match error.failure {
        HandshakeFailure::End(StartPhase::Initializer) if care.initializer.is_some() => {
            has_signal && is_signalled
        }
        HandshakeFailure::End(_) => has_signal,
        _ => false,
    }
}

/// What a conversation can come to, other than its end.
#[derive(Debug)]
enum Trouble {
    Start(HandshakeError),
    Nonsense(String),
}

/// What a process has said since it was ready.
#[derive(Debug, Default)]
struct Said {
    /// What its function has come to.
    outcome: Option<Outcome>,
    /// That nothing more will come.
    is_last: bool,
}

impl Said {
    fn take(&mut self, message: Message) -> Result<(), String> {
        match message.kind {
            other if self.is_last => return Err(format!("sent a message of kind {other} behind its last")),
            kind::VALUE if self.outcome.is_none() => self.outcome = Some(Outcome::Value(message)),
            kind::FAILURE if self.outcome.is_none() => {
                let failure: Failure = codec::decode(&message.body)
                    .map_err(|error| format!("sent a failure that cannot be read: {error}"))?;
                self.outcome = Some(Outcome::Failed(failure.into()));
            }
            kind::BYE => self.is_last = true,
            other => return Err(format!("sent a message of kind {other}")),
        }
        Ok(())
    }

    /// Takes what a process that has ended had sent and nobody has read, and what it had finished and not sent.
    fn take_rest(
        &mut self,
        receiver: &mut Receiver,
        connection: BorrowedFd<'_>,
        ledger: &Ledger,
    ) -> Result<(), String> {
        // An error here is the end of what can be read.
        while !self.is_last
            && let Ok(Received::Bytes { .. }) = receiver.receive(connection, RecvFlags::DONTWAIT)
        {
            while let Some(message) = receiver.next().map_err(|error| format!("sent {error}"))? {
                self.take(message)?;
            }
        }
        let unsent = ledger.unsent(receiver.total());
        let mut messages = Vec::new();
        let injected = receiver.inject(&unsent, &mut messages);
        messages.into_iter().try_for_each(|message| self.take(message))?;
        injected.map_err(|error| format!("sent {error}"))
    }
}

/// Tells a process what it has to do and hears what has come of it, until it takes leave or hangs up. `receiver` is who hears it, from
/// when it is ready.
async fn converse(
    connection: &Arc<OwnedFd>,
    greeting: Greeting,
    care: &Care,
    receiver: &mut Option<Receiver>,
    said: &mut Said,
) -> Option<Trouble> {
    let limit = message_limit(care.max_frame_size);
    let (ready_receiver, ready) = match handshake(connection, greeting, limit, care.start_timeout).await {
        Ok(greeted) => greeted,
        Err(error) => return Some(Trouble::Start(error)),
    };
    care.memory.set_in_force(ready.memory);
    match hear(connection, receiver.insert(ready_receiver), said).await {
        Ok(()) => None,
        Err(fault) => Some(Trouble::Nonsense(fault)),
    }
}

async fn hear(connection: &Arc<OwnedFd>, receiver: &mut Receiver, said: &mut Said) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("its connection failed: {error}");
    let connection = watch(connection, Interest::READABLE).map_err(unreadable)?;
    loop {
        while let Some(message) = receiver.next().map_err(|error| format!("sent {error}"))? {
            said.take(message)?;
        }
        if said.is_last && said.outcome.is_some() {
            return Ok(());
        }
        if !more(&connection, receiver).await.map_err(unreadable)? {
            return Ok(());
        }
    }
}

/// What a function returned.
pub(crate) fn decode<R: DeserializeOwned>(message: Message) -> Result<R, Cause> {
    let Message { head, body, fds, .. } = message;
    let (bytes, tail) = match head.is_empty() {
        true => (&body[..], None),
        false => (&head[..], Some(())),
    };
    let Some(bytes) = bytes.get(RUN_TIME..) else {
        return Err(Cause::Decode("the result: it has no run time".to_owned()));
    };
    let decoded = match tail {
        None => attachments::provide(fds, || codec::decode(bytes)),
        Some(()) => {
            let bytes = bytes.to_vec();
            let tail = Some(body.into_vec());
            attachments::provide(fds, || codec::decode_encoded(Encoded { bytes: &bytes, tail }))
        }
    };
    decoded.map_err(|message| Cause::Decode(format!("the result: {message}")))
}
