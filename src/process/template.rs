//! Templates, as their parent sees them: started once, asked for copies, replaced when they are lost.
//!
//! One task for each template asks it for one copy after the other. A copy is a child of this process and not of the
//! template, and it says hello over a connection of its own: to whoever waits for it, it is as if it had been executed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, setpgid};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::child::Child;
use super::handshake::{HandshakeFailure, handshake};
use super::launch::{Launched, Order, Report, execute};
use super::listen::{Ears, Speaker};
use super::output::Output;
use super::spawn::Program;
use super::streams::Streams;
use crate::error::BuildError;
use crate::runtime::{self, Crew};
use crate::shared::ledger::Ledger;
use crate::shared::watched::{self, Watched};
use crate::task::encode;
use crate::wire::codec::{self, message_bytes};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Role, Welcome, Words, WorkerLimits, kind, message_limit};
use crate::wire::transport::{Outbox, Received, Receiver};

/// What the last words of a template may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// What a template may take from hanging up to its end before it is killed.
const HANG_UP_GRACE: Duration = Duration::from_millis(100);

/// What a template is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it is called.
    pub(crate) name: String,
    pub(crate) program: Program,
    /// A row and an argument.
    pub(crate) initializer: Option<(u32, Vec<u8>)>,
    pub(crate) depth: u32,
    pub(crate) max_frame_size: u64,
    pub(crate) start_timeout: Duration,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// What it inherits are descriptors, and no pipes.
    pub(crate) is_free: bool,
    pub(crate) ears: Arc<Ears>,
}

/// A template, which is started at once, and ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Template {
    requests: mpsc::UnboundedSender<Request>,
    stop: watch::Sender<bool>,
}

impl Drop for Template {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the template is wanted for.
#[derive(Debug)]
enum Request {
    /// To be there.
    Ready(oneshot::Sender<Result<(), BuildError>>),
    Copy {
        connection: OwnedFd,
        stderr: OwnedFd,
        marker: String,
        copied: oneshot::Sender<Result<Child, BuildError>>,
    },
}

impl Request {
    fn fail(self, error: BuildError) {
        // Who asked may have stopped waiting.
        match self {
            Self::Ready(ready) => drop(ready.send(Err(error))),
            Self::Copy { copied, .. } => drop(copied.send(Err(error))),
        }
    }
}

impl Template {
    pub(crate) fn new(plan: Plan) -> io::Result<Self> {
        let (requests, received) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        runtime::handle()?.spawn(Keeper::new(plan, stopped).keep(received));
        Ok(Self { requests, stop })
    }

    /// Waits until it has run its initializer.
    pub(crate) async fn ready(&self) -> Result<(), BuildError> {
        let (ready, is_ready) = oneshot::channel();
        self.requests.send(Request::Ready(ready)).ok();
        is_ready.await.unwrap_or(Err(BuildError::Closed))
    }

    /// A copy of it, with its own end of a connection, its standard error, and its marker.
    pub(super) async fn copy(
        &self,
        connection: OwnedFd,
        stderr: OwnedFd,
        marker: String,
    ) -> Result<Child, BuildError> {
        let (copied, is_copied) = oneshot::channel();
        let request = Request::Copy {
            connection,
            stderr,
            marker,
            copied,
        };
        self.requests.send(request).ok();
        is_copied.await.unwrap_or(Err(BuildError::Closed))
    }

    /// Ends it, and refuses further copies. Those that there are live on.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until it is gone.
    pub(crate) async fn gone(&self) {
        self.requests.closed().await;
    }
}

/// A template that is there.
#[derive(Debug)]
struct Running {
    child: Child,
    connection: Watched,
    receiver: Receiver,
    ledger: Ledger,
    /// Its number where it is heard.
    speaker: u64,
    /// The template ends with this.
    _control: OwnedFd,
}

/// Looks after one template.
struct Keeper {
    plan: Plan,
    crew: Arc<Crew>,
    stopped: watch::Receiver<bool>,
    running: Option<Running>,
    /// The last one has ended, and nobody has been told.
    lost: Option<BuildError>,
}

impl Keeper {
    fn new(plan: Plan, stopped: watch::Receiver<bool>) -> Self {
        Self {
            plan,
            crew: Arc::default(),
            stopped,
            running: None,
            lost: None,
        }
    }

    /// Does what is requested until there is nobody left for it.
    async fn keep(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut waiting = VecDeque::new();
        let mut failed = self.start().await.err();
        loop {
            let request = match waiting.pop_front() {
                Some(request) => Some(request),
                None => self.next(&mut requests).await,
            };
            let Some(request) = request else { break };
            if let Some(lost) = self.lost.take() {
                request.fail(lost);
                failed = self.start().await.err();
                continue;
            }
            if self.running.is_none() && failed.is_none() {
                failed = self.start().await.err();
            }
            if let Some(error) = failed.take() {
                // One start for all that wait for it.
                while let Ok(request) = requests.try_recv() {
                    waiting.push_back(request);
                }
                for request in waiting.drain(..) {
                    request.fail(error.clone());
                }
                request.fail(error);
                continue;
            }
            self.serve(request).await;
        }
        // Nobody asks any more, and what was asked is not answered: the receiver is closed when this returns.
        if let Some(template) = self.running.take() {
            template.child.killer().kill();
            self.bury(template).await;
        }
    }

    /// The next request. `None` when there will be none.
    async fn next(&mut self, requests: &mut mpsc::UnboundedReceiver<Request>) -> Option<Request> {
        loop {
            let ended = async {
                match &self.running {
                    Some(template) => template.child.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.stopped.wait_for(|&stopped| stopped) => return None,
                () = ended => {}
                request = requests.recv() => return request,
            }
            if let Some(template) = self.running.take() {
                self.lost = Some(self.bury(template).await);
            }
        }
    }

    /// Starts a template.
    async fn start(&mut self) -> Result<(), BuildError> {
        let plan = &self.plan;
        let streams = match plan.is_free {
            true => Streams::of_its_own(&plan.stdout, &plan.stderr)?,
            false => Streams::through_here(&plan.stdout, &plan.stderr)?,
        };
        let stdout = streams.stdout;
        let (stdout_fd, stderr, heard_streams) = streams.divide();
        let welcome = Welcome {
            role: Role::Template {
                name: plan.name.clone(),
            },
            depth: plan.depth,
            max_frame_size: plan.max_frame_size,
            tasks_per_worker: 1,
            initializer: plan.initializer.clone(),
            measures_memory: false,
            stdout,
            limits: WorkerLimits::default(),
            words: Words::default(),
            spin: Duration::ZERO,
        };
        let order = Order {
            program: plan.program.clone(),
            label: plan.name.clone(),
            welcome,
            stderr,
            fds: stdout_fd.into_iter().collect(),
            message: None,
        };
        let Launched {
            child,
            connection,
            control,
            ledger,
            heard,
            greeting,
        } = match self.crew.run(move || execute(order)).await {
            Some(launched) => launched?,
            // The thread that started it is gone, and the process with it.
            None => return Err(BuildError::Closed),
        };
        let speaker = Speaker {
            number: plan.ears.number(),
            worker: 0,
            name: Some(plan.name.clone()),
            pid: child.pid(),
            ledger: heard,
            token: None,
        };
        heard_streams.listen(&plan.ears, &speaker);
        let limit = message_limit(plan.max_frame_size);
        let greeted = tokio::select! {
            greeted = handshake(&connection, greeting, limit, plan.start_timeout) => Some(greeted),
            _ = self.stopped.wait_for(|&stopped| stopped) => None,
        };
        let receiver = match greeted {
            Some(Ok((receiver, _))) => receiver,
            Some(Err(error)) => {
                let ended = match error.failure {
                    // It is about to end by itself, and how it does is what the error should say.
                    HandshakeFailure::End(_) => timeout(HANG_UP_GRACE, child.ended()).await.is_ok(),
                    _ => false,
                };
                if !ended {
                    child.killer().kill();
                }
                let (status, stderr) = self.last_words(child, speaker.number).await;
                let plan = &self.plan;
                let report = Report {
                    program: plan.program.path(),
                    start_timeout: plan.start_timeout,
                    initializer: plan
                        .initializer
                        .as_ref()
                        .map(|(row, _)| encode::name(*row).to_owned()),
                    status,
                    stderr,
                };
                return Err(report.error(error));
            }
            None => {
                child.killer().kill();
                self.last_words(child, speaker.number).await;
                return Err(BuildError::Closed);
            }
        };
        match watched::watch(&connection, Interest::READABLE) {
            Ok(connection) => {
                self.running = Some(Running {
                    child,
                    connection,
                    receiver,
                    ledger,
                    speaker: speaker.number,
                    _control: control,
                });
                Ok(())
            }
            Err(error) => {
                child.killer().kill();
                self.last_words(child, speaker.number).await;
                Err(BuildError::Io {
                    action: "watch a template's connection",
                    source: Arc::new(error),
                })
            }
        }
    }

    /// Buries a template that has ended or is about to, and says what whoever wanted it is told.
    async fn bury(&self, template: Running) -> BuildError {
        let (status, stderr) = self.last_words(template.child, template.speaker).await;
        BuildError::TemplateLost { status, stderr }
    }

    async fn last_words(&self, child: Child, speaker: u64) -> (Option<ExitStatus>, String) {
        let status = child.wait().await;
        let stderr = timeout(LAST_WORDS, self.plan.ears.settle(speaker)).await;
        (status, stderr.unwrap_or_default())
    }

    async fn serve(&mut self, request: Request) {
        let Request::Copy {
            connection,
            stderr,
            marker,
            copied,
        } = request
        else {
            if let Request::Ready(ready) = request {
                // Who asked may have stopped waiting.
                ready.send(Ok(())).ok();
            }
            return;
        };
        let Some(template) = &mut self.running else {
            copied.send(Err(BuildError::Closed)).ok();
            return;
        };
        let copy = tokio::select! {
            copy = timeout(self.plan.start_timeout, template.copy(connection, stderr, &marker)) => copy.ok(),
            _ = self.stopped.wait_for(|&stopped| stopped) => None,
        };
        let child = match copy {
            Some(Ok(Ok(pid))) => adopt(pid, marker),
            Some(Ok(Err(reason))) => Err(BuildError::Io {
                action: "fork the template",
                source: Arc::new(io::Error::other(reason)),
            }),
            Some(Err(_)) | None => {
                // It does not answer. What it may have made meanwhile is known all the same.
                let Some(template) = self.running.take() else {
                    return;
                };
                template.child.killer().kill();
                template.child.ended().await;
                let number = template.ledger.forked().load(Ordering::Acquire);
                if let Some(pid) = number_of(number)
                    && let Ok(child) = adopt(pid, marker)
                {
                    child.killer().kill();
                    child.wait().await;
                }
                Err(self.bury(template).await)
            }
        };
        if let Err(Ok(child)) = copied.send(child) {
            // Nobody waits for it any more.
            child.killer().kill();
            child.wait().await;
        }
    }
}

impl Running {
    /// Asks for a copy and gives its number, or why there is none. An error means that the template is lost.
    async fn copy(
        &mut self,
        connection: OwnedFd,
        stderr: OwnedFd,
        marker: &str,
    ) -> io::Result<Result<Pid, String>> {
        self.ledger.forked().store(0, Ordering::Release);
        let mut bytes = Outgoing::buffer(64);
        message_bytes(&marker, &mut bytes);
        let mut outbox = Outbox::default();
        outbox.push(Outgoing::new(kind::FORK, bytes, vec![connection, stderr]), 0);
        // There is room, for nothing else is on its way.
        outbox.write(self.connection.get_ref().as_fd(), SendFlags::DONTWAIT)?;
        let answer = self.receive().await?;
        if answer.kind != kind::FORKED {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let copied: Result<u32, String> =
            codec::decode(&answer.body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match copied.map(|number| number_of(u64::from(number))) {
            Ok(Some(pid)) => Ok(Ok(pid)),
            Ok(None) => Err(io::ErrorKind::InvalidData.into()),
            Err(reason) => Ok(Err(reason)),
        }
    }

    async fn receive(&mut self) -> io::Result<Message> {
        loop {
            match self.receiver.next() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
            match self
                .receiver
                .receive(self.connection.get_ref().as_fd(), RecvFlags::DONTWAIT)?
            {
                Received::Bytes { .. } => {}
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                // Cleared before the next look, so that what comes in between is not missed.
                Received::WouldBlock => self.connection.readable().await?.clear_ready(),
            }
        }
    }
}

/// A copy by its number, as a child of this process.
fn adopt(pid: Pid, marker: String) -> Result<Child, BuildError> {
    // It does so itself; whoever comes first.
    setpgid(Some(pid), Some(pid)).ok();
    Child::copied(pid, marker).map_err(|error| BuildError::Io {
        action: "watch a process",
        source: Arc::new(error),
    })
}

fn number_of(number: u64) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}
