//! Starting a process and telling it what it is: what pools and single processes have in common.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::child::{Child, is_ending};
use super::handshake::{Greeting, HandshakeError, HandshakeFailure, handshake};
use super::listen::Ears;
use super::spawn::{Line, Program, Spawned, spawn};
use super::template::Template;
use crate::error::{BuildError, StartPhase};
use crate::memory::OutOfMemory;
use crate::shared::ledger::Ledger;
use crate::wire::frame::Outgoing;
use crate::wire::message::{Failure, InitFailure, LimitOption, Ready, Welcome, kind, message_limit};
use crate::wire::transport::{Receiver, datagram_pair};

/// What a process may take from hanging up to its end, on a machine that is busy, before it is killed.
pub(crate) const HANG_UP_GRACE: Duration = Duration::from_secs(1);
/// What the last words of a process that has ended may take to arrive.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(200);
/// The number of the one task of a process that gets no other.
const TASK: u64 = 1;

/// What to start.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) program: Program,
    /// What `ps` shows behind the program.
    pub(crate) label: String,
    pub(crate) welcome: Welcome,
    pub(crate) stderr: OwnedFd,
    /// Behind the library's own: for events, the reading ends of what goes through this process, for standard output.
    pub(crate) fds: Vec<OwnedFd>,
    /// The one task that it is for, where it is to end behind that.
    pub(crate) message: Option<Outgoing>,
}

/// A process that has been started, and has not been heard of yet.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) connection: Arc<OwnedFd>,
    pub(crate) control: OwnedFd,
    pub(crate) ledger: Ledger,
    /// The same memory, for who listens to the process.
    pub(crate) heard: Arc<Ledger>,
    /// What it has not been told yet.
    pub(crate) greeting: Greeting,
}

/// What this process keeps of one that is about to be started.
struct Kept {
    control: OwnedFd,
    ledger: Ledger,
    heard: Ledger,
}

/// Makes what a process is told, and what is kept of it.
fn prepare(
    welcome: &Welcome,
    others: Vec<OwnedFd>,
    message: Option<Outgoing>,
) -> Result<(Greeting, Kept), BuildError> {
    if is_ending() {
        return Err(BuildError::Closed);
    }
    let lanes = welcome.tasks_per_worker;
    let (ledger, ledger_fd) = Ledger::create(lanes).map_err(refused("make shared memory"))?;
    let heard = Ledger::open(ledger_fd.as_fd(), lanes).map_err(refused("map shared memory"))?;
    let (control, control_fd) = datagram_pair().map_err(refused("make a socket pair"))?;
    let mut fds = vec![control_fd, ledger_fd];
    fds.extend(others);
    let mut greeting = Greeting::new(welcome, fds);
    if let Some(message) = message {
        greeting.push(message, TASK);
        greeting.push_short(kind::SHUTDOWN, &[], 0);
    }
    let kept = Kept {
        control,
        ledger,
        heard,
    };
    Ok((greeting, kept))
}

impl Kept {
    fn launched(self, spawned: Spawned) -> Launched {
        Launched {
            child: spawned.child,
            connection: spawned.connection,
            control: self.control,
            ledger: self.ledger,
            heard: Arc::new(self.heard),
            greeting: spawned.greeting,
        }
    }
}

/// Executes the program. Blocks until it is in place.
pub(crate) fn execute(order: Order) -> Result<Launched, BuildError> {
    let (greeting, kept) = prepare(&order.welcome, order.fds, order.message)?;
    let spawned = spawn(
        &order.program,
        &order.label,
        order.welcome.depth,
        order.stderr,
        greeting,
    );
    let spawned = spawned.map_err(|error| BuildError::Spawn {
        program: order.program.path().to_owned(),
        source: Arc::new(error),
    })?;
    Ok(kept.launched(spawned))
}

/// Copies a template, which has executed the program.
///
/// Cancel safe: dropped before it is ready, the copy is killed.
pub(crate) async fn copy(order: Order, template: &Template) -> Result<Launched, BuildError> {
    let (mut greeting, kept) = prepare(&order.welcome, order.fds, order.message)?;
    let line = Line::new(order.welcome.depth).map_err(refused("make a socket pair"))?;
    let connection = Arc::new(line.ours);
    greeting.write(connection.as_fd());
    let child = template.copy(line.theirs, order.stderr, line.marker).await?;
    Ok(kept.launched(Spawned {
        child,
        connection,
        greeting,
    }))
}

/// The error of something that the system refused.
pub(crate) fn refused(action: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |error| BuildError::Io {
        action,
        source: Arc::new(error),
    }
}

/// A process that has said that it is ready.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) child: Child,
    pub(crate) connection: Arc<OwnedFd>,
    pub(crate) control: OwnedFd,
    pub(crate) ledger: Ledger,
    pub(crate) receiver: Receiver,
    pub(crate) ready: Ready,
}

/// A process of which nothing came. It is buried.
#[derive(Debug)]
pub(crate) struct Failed {
    /// `None` where nobody wanted it any more.
    pub(crate) error: Option<HandshakeError>,
    pub(crate) ledger: Ledger,
    pub(crate) status: Option<ExitStatus>,
    /// Its last words.
    pub(crate) stderr: String,
}

impl Launched {
    /// Waits until the process is ready, or not wanted any more. `speaker` is its number at `ears`.
    ///
    /// Must run on the library's runtime.
    pub(crate) async fn greet(
        self,
        max_frame_size: u64,
        start_timeout: Duration,
        unwanted: &mut watch::Receiver<bool>,
        ears: &Ears,
        speaker: u64,
    ) -> Result<Greeted, Failed> {
        let Self {
            child,
            connection,
            control,
            ledger,
            heard: _,
            greeting,
        } = self;
        let limit = message_limit(max_frame_size);
        let greeted = tokio::select! {
            greeted = handshake(&connection, greeting, limit, start_timeout) => Some(greeted),
            _ = unwanted.wait_for(|&unwanted| unwanted) => None,
        };
        let error = match greeted {
            Some(Ok((receiver, ready))) => {
                return Ok(Greeted {
                    child,
                    connection,
                    control,
                    ledger,
                    receiver,
                    ready,
                });
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        let killer = child.killer();
        let ending = child.wait();
        tokio::pin!(ending);
        let status = match &error {
            // It is about to end by itself, and how it does is what the error should say.
            Some(HandshakeError {
                failure: HandshakeFailure::End(_),
                ..
            }) => timeout(HANG_UP_GRACE, &mut ending).await.ok(),
            _ => None,
        };
        let status = match status {
            Some(status) => status,
            None => {
                killer.kill();
                ending.await
            }
        };
        Err(Failed {
            error,
            ledger,
            status,
            stderr: last_words(ears, speaker).await,
        })
    }
}

/// The last words of a process that has ended, with all that it started. From here on nothing more is heard of it.
pub(crate) fn last_words(ears: &Ears, speaker: u64) -> impl Future<Output = String> + use<> {
    words(ears.settle(speaker, false))
}

/// The last words of a process that has ended, and others go on that it started.
pub(super) fn words_of_free(ears: &Ears, speaker: u64) -> impl Future<Output = String> + use<> {
    words(ears.settle(speaker, true))
}

async fn words(words: impl Future<Output = String>) -> String {
    timeout(LAST_WORDS, words).await.unwrap_or_default()
}

/// What whoever starts a process is told when nothing came of it.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) program: &'a Path,
    pub(crate) start_timeout: Duration,
    /// The name of the initializer, where there is one.
    pub(crate) initializer: Option<String>,
    /// How the process ended, as far as that is known.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stderr: String,
}

impl Report<'_> {
    /// Of one that had too little memory. `who` names it.
    pub(crate) fn starved(self, who: &str, end: OutOfMemory) -> BuildError {
        if let Some(name) = self.initializer {
            return BuildError::Initializer {
                name,
                message: format!("{who} {end}"),
                panic: None,
            };
        }
        if end.limit.is_none() {
            return BuildError::Handshake {
                program: self.program.to_owned(),
                reason: format!("it {end} before it was ready"),
                first_bytes: Vec::new(),
                stderr: self.stderr,
            };
        }
        BuildError::InvalidOption {
            option: LimitOption::Memory.name(),
            reason: format!("{who} {end} before it was ready"),
        }
    }

    /// Of one whose handshake failed.
    pub(crate) fn error(self, error: HandshakeError) -> BuildError {
        let HandshakeError { failure, first_bytes } = error;
        let Self {
            program,
            start_timeout,
            initializer,
            status,
            stderr,
        } = self;
        let ended = match status {
            Some(status) => format!("it ended ({status})"),
            None => "it ended".to_owned(),
        };
        let handshake = |reason, first_bytes, stderr| BuildError::Handshake {
            program: program.to_owned(),
            reason,
            first_bytes,
            stderr,
        };
        match (failure, initializer) {
            (HandshakeFailure::End(StartPhase::Handshake), _) => {
                handshake(format!("{ended} before the handshake"), first_bytes, stderr)
            }
            (HandshakeFailure::End(StartPhase::Initializer), Some(name)) => {
                let message = if stderr.is_empty() {
                    ended
                } else {
                    format!("{ended}; its standard error ended with:\n{}", stderr.trim_end())
                };
                BuildError::Initializer {
                    name,
                    message,
                    panic: None,
                }
            }
            (HandshakeFailure::End(StartPhase::Initializer), None) => {
                handshake(format!("{ended} before it was ready"), first_bytes, stderr)
            }
            (HandshakeFailure::Timeout(phase), initializer) => BuildError::StartTimeout {
                // Without an initializer it had only to set itself up.
                phase: if initializer.is_some() {
                    phase
                } else {
                    StartPhase::Handshake
                },
                timeout: start_timeout,
                first_bytes,
                stderr,
            },
            (HandshakeFailure::Refused(reason), _) => handshake(reason, first_bytes, stderr),
            (HandshakeFailure::Io(error), _) => {
                handshake(format!("its connection failed: {error}"), first_bytes, stderr)
            }
            (HandshakeFailure::Initializer(InitFailure::Limit { option, reason }), _) => {
                BuildError::InvalidOption {
                    option: option.name(),
                    reason,
                }
            }
            (HandshakeFailure::Initializer(InitFailure::Setup(reason)), _) => {
                handshake(reason, first_bytes, stderr)
            }
            (HandshakeFailure::Initializer(failure), initializer) => {
                let (message, panic) = match failure {
                    InitFailure::Failed(message)
                    | InitFailure::Setup(message)
                    | InitFailure::Limit { reason: message, .. } => (message, None),
                    InitFailure::Task(Failure::Panicked(panic)) => (panic.message.clone(), Some(panic)),
                    InitFailure::Task(Failure::DecodeArgument(message)) => {
                        (format!("its argument: {message}"), None)
                    }
                    InitFailure::Task(failure) => (format!("{failure:?}"), None),
                };
                BuildError::Initializer {
                    name: initializer.unwrap_or_default(),
                    message,
                    panic,
                }
            }
        }
    }
}
