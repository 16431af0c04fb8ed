//! Templates, as their parent sees them: started once, asked for copies, replaced when they are lost.
//!
//! One task for each template asks it for one copy after the other. A copy is a child of this process and not of the
//! template, and it says hello over a connection of its own: to whoever waits for it, it is as if it had been executed.

use std::future::pending;
use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Pid, WaitId, WaitIdOptions, setpgid, test_kill_process, waitid};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::child::Child;
use super::handshake::CROWDED;
use super::hear::more;
use super::large_pages;
use super::launch::{Greeted, Order, Report, execute, last_words, refused};
use super::listen::{Ears, Speaker};
use super::output::Output;
use super::spawn::Program;
use super::streams::Streams;
use crate::error::{BuildError, StartPhase};
use crate::runtime::{self, Crew};
use crate::shared::ledger::Ledger;
use crate::shared::watched::{self, Watched};
use crate::task::encode;
use crate::wire::codec::{self, message_bytes};
use crate::wire::frame::Outgoing;
use crate::wire::message::{LimitOption, Role, Welcome, Words, WorkerLimits, kind};
use crate::wire::transport::{Outbox, Receiver, is_crowded};

/// What threads of an initializer's may take to end when it has returned.
const LONGEST_END: Duration = Duration::from_secs(1);

/// What a template is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it is called.
    pub(crate) name: String,
    pub(crate) program: Program,
    /// A row and an argument.
    pub(crate) initializer: Option<(u32, Bytes)>,
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
}

/// Refuses a request and those that wait behind it.
fn fail_all(request: Option<Request>, requests: &mut mpsc::UnboundedReceiver<Request>, error: &BuildError) {
    let waiting = iter::from_fn(|| requests.try_recv().ok());
    let all = request.into_iter().chain(waiting);
    all.for_each(|request| request.fail(error.clone()));
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
        if let Err(error) = self.start().await
            && let Some(request) = self.next(&mut requests).await
        {
            // Whoever it was started for may only be about to ask.
            fail_all(Some(request), &mut requests, &error);
        }
        while let Some(request) = self.next(&mut requests).await {
            if let Some(lost) = self.lost.take() {
                request.fail(lost);
                self.start_for(None, &mut requests).await;
            } else if self.running.is_none() {
                self.start_for(Some(request), &mut requests).await;
            } else {
                self.serve(request).await;
            }
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
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.stopped.wait_for(|&stopped| stopped) => return None,
                () = ended => {}
                request = requests.recv() => return request,
            }
            if let Some(template) = self.running.take() {
                let (status, stderr) = self.bury(template).await;
                self.lost = Some(BuildError::TemplateLost { status, stderr });
            }
        }
    }

    /// Starts a template, for a request and for those that come meanwhile: where that fails, all of them are told, and
    /// nobody who comes later.
    async fn start_for(&mut self, request: Option<Request>, requests: &mut mpsc::UnboundedReceiver<Request>) {
        match (self.start().await, request) {
            (Ok(()), Some(request)) => self.serve(request).await,
            (Ok(()), None) => {}
            (Err(error), request) => fail_all(request, requests, &error),
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
                // What becomes of them is the error then, and not that the time for the start was up.
                patience: LONGEST_END.min(plan.start_timeout / 2),
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
        let mut program = plan.program.clone();
        // A pool has few copies made, and whoever builds it waits for the first.
        if plan.is_free || !large_pages::come_late() {
            large_pages::ask_for(&mut program.env);
        }
        let order = Order {
            program,
            label: plan.name.clone(),
            welcome,
            stderr,
            fds: stdout_fd.into_iter().collect(),
            message: None,
        };
        let launched = match self.crew.run(move || execute(order)).await {
            Some(launched) => launched?,
            // The thread that started it is gone, and the process with it.
            None => return Err(BuildError::Closed),
        };
        let speaker = Speaker {
            number: plan.ears.number(),
            worker: 0,
            name: Some(plan.name.clone()),
            pid: launched.child.pid(),
            ledger: Arc::clone(&launched.heard),
            token: None,
        };
        heard_streams.listen(&plan.ears, &speaker);
        let greeted = launched.greet(
            plan.max_frame_size,
            plan.start_timeout,
            &mut self.stopped,
            &plan.ears,
            speaker.number,
        );
        let greeted = match greeted.await {
            Ok(greeted) => greeted,
            Err(failed) => {
                let Some(error) = failed.error else {
                    return Err(BuildError::Closed);
                };
                let report = Report {
                    program: plan.program.path(),
                    start_timeout: plan.start_timeout,
                    initializer: plan
                        .initializer
                        .as_ref()
                        .map(|(row, _)| encode::name(*row).to_owned()),
                    status: failed.status,
                    stderr: failed.stderr,
                };
                return Err(report.error(error));
            }
        };
        let number = greeted.ledger.forked().load(Ordering::Acquire);
        let watched = match number == u64::from(greeted.child.pid()) {
            true => watched::watch(&greeted.connection, Interest::READABLE)
                .map_err(refused("watch a template's connection")),
            false => Err(BuildError::InvalidOption {
                option: LimitOption::StartMethod.name(),
                reason: format!(
                    "{} starts the template instead of becoming it, so that copies would not be children of this \
                     process",
                    plan.program.path().display()
                ),
            }),
        };
        let Greeted {
            child,
            ledger,
            receiver,
            ..
        } = greeted;
        match watched {
            Ok(connection) => {
                self.running = Some(Running {
                    child,
                    connection,
                    receiver,
                    ledger,
                    speaker: speaker.number,
                });
                Ok(())
            }
            Err(error) => {
                child.killer().kill();
                child.wait().await;
                last_words(&plan.ears, speaker.number).await;
                Err(error)
            }
        }
    }

    /// Ends a template that cannot be used any more, and says why there is no copy.
    async fn give_up(&self, template: Running, loss: Loss, marker: String) -> BuildError {
        template.child.killer().kill();
        template.child.ended().await;
        // What it may have made meanwhile is known all the same.
        let number = template.ledger.forked().load(Ordering::Acquire);
        if let Some(pid) = number_of(number)
            && is_own(pid)
            && let Ok(child) = adopt(pid, marker)
        {
            child.killer().kill();
            child.wait().await;
        }
        let (status, stderr) = self.bury(template).await;
        match loss {
            Loss::Ended => BuildError::TemplateLost { status, stderr },
            Loss::Late => BuildError::StartTimeout {
                phase: StartPhase::Handshake,
                timeout: self.plan.start_timeout,
                first_bytes: Vec::new(),
                stderr,
            },
            Loss::Foreign(pid) => refused("adopt a copy of the template")(io::Error::other(format!(
                "process {} is not a child of this one",
                pid.as_raw_pid()
            ))),
            Loss::Unwanted => BuildError::Closed,
        }
    }

    /// Buries a template that has ended or is about to. How it ended, and its last words.
    async fn bury(&self, template: Running) -> (Option<ExitStatus>, String) {
        let status = template.child.wait().await;
        (status, last_words(&self.plan.ears, template.speaker).await)
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
        // Whatever is there from now on is this copy's.
        template.ledger.forked().store(0, Ordering::Release);
        let copy = tokio::select! {
            copy = template.copy(connection, stderr, &marker, self.plan.start_timeout) => copy,
            _ = self.stopped.wait_for(|&stopped| stopped) => Err(Loss::Unwanted),
        };
        let copy = match copy {
            Ok(Ok(pid)) if !is_own(pid) => Err(Loss::Foreign(pid)),
            copy => copy,
        };
        let child = match copy {
            Ok(copy) => copy.and_then(|pid| adopt(pid, marker)),
            Err(loss) => {
                let Some(template) = self.running.take() else {
                    return;
                };
                Err(self.give_up(template, loss, marker).await)
            }
        };
        if let Err(Ok(child)) = copied.send(child) {
            // Nobody waits for it any more.
            child.killer().kill();
            child.wait().await;
        }
    }
}

/// Why a template cannot be used any more.
#[derive(Debug)]
enum Loss {
    /// It hung up, or does not make sense.
    Ended,
    /// It does not answer.
    Late,
    /// What it calls its copy is not a child of this process.
    Foreign(Pid),
    /// Nobody wants another copy.
    Unwanted,
}

impl Running {
    /// Asks for a copy and gives its number, or why there is none.
    async fn copy(
        &mut self,
        connection: OwnedFd,
        stderr: OwnedFd,
        marker: &str,
        start_timeout: Duration,
    ) -> Result<Result<Pid, BuildError>, Loss> {
        let mut bytes = Outgoing::buffer(64);
        message_bytes(&marker, &mut bytes);
        let mut outbox = Outbox::default();
        outbox.push(Outgoing::new(kind::FORK, bytes, vec![connection, stderr]), 0);
        let late = timeout(start_timeout, pending::<()>());
        tokio::pin!(late);
        tokio::select! {
            asked = self.ask(&mut outbox) => asked?,
            // The template has not been asked, and is as good as ever.
            _ = &mut late => {
                return Ok(Err(refused("send descriptors to a template")(Errno::TOOMANYREFS.into())));
            }
        }
        let answer = tokio::select! {
            answer = self.answer() => answer.map_err(|_| Loss::Ended)?,
            _ = &mut late => return Err(Loss::Late),
        };
        match answer.map(|number| number_of(u64::from(number))) {
            Ok(Some(pid)) => Ok(Ok(pid)),
            Ok(None) => Err(Loss::Ended),
            Err(reason) => Ok(Err(refused("fork the template")(io::Error::other(reason)))),
        }
    }

    async fn ask(&self, outbox: &mut Outbox<Outgoing>) -> Result<(), Loss> {
        loop {
            // There is room for the bytes, for nothing else is on its way.
            match outbox.write(self.connection.get_ref().as_fd(), SendFlags::DONTWAIT) {
                Ok(()) => return Ok(()),
                Err(error) if is_crowded(&error) => sleep_until(Instant::now() + CROWDED).await,
                Err(_) => return Err(Loss::Ended),
            }
        }
    }

    /// The number of a copy, or the template's own error.
    async fn answer(&mut self) -> io::Result<Result<u32, String>> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        loop {
            match self.receiver.next().map_err(|error| invalid(error.to_string()))? {
                Some(answer) if answer.kind == kind::FORKED => {
                    return codec::decode(&answer.body).map_err(invalid);
                }
                Some(other) => return Err(invalid(format!("message kind {}", other.kind))),
                None => {}
            }
            if !more(&self.connection, &mut self.receiver).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Whether a process is a child of this one, or was and is gone: nobody else is adopted, signalled or waited for. A
/// template in a namespace of its own has other numbers for its copies, and a process that is not this one's child leaves
/// them to its own parent.
fn is_own(pid: Pid) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(pid), look) {
        // The host program ignores SIGCHLD, or waits for any child.
        Err(Errno::CHILD) => test_kill_process(pid) == Err(Errno::SRCH),
        _ => true,
    }
}

/// A copy by its number, as a child of this process.
fn adopt(pid: Pid, marker: String) -> Result<Child, BuildError> {
    // It does so itself; whoever comes first.
    setpgid(Some(pid), Some(pid)).ok();
    Child::copied(pid, marker).map_err(refused("watch a process"))
}

fn number_of(number: u64) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::getpid;

    use super::*;

    #[test]
    fn nobody_elses_process_is_adopted() {
        assert!(!is_own(getpid()));
        assert!(!is_own(Pid::INIT));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(is_own(pid));
        child.stdin.take();
        assert!(child.wait().unwrap().success());
        // It is gone.
        assert!(is_own(pid));
    }
}
