//! One supervisor per worker: it starts the process, greets it, waits for its end, and starts the next.
//!
//! Supervisors run on the library's own runtime, so that no child is left unburied when another runtime ends.

use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::{End, Shared};
use super::link::{Link, Parts, drive, watch_on};
use super::state::WorkerState;
use crate::error::{BuildError, StartPhase, WorkerLoss};
use crate::process::child::Child;
use crate::process::handshake::{HandshakeError, HandshakeFailure, handshake};
use crate::process::output::{OutputThread, Sink, Stream, own_stdout};
use crate::process::spawn::{Spawned, spawn};
use crate::shared::ledger::Ledger;
use crate::wire::message::{Failure, InitFailure, Stdout, Welcome, message_limit};
use crate::wire::transport::datagram_pair;

/// Starts that fail one after the other, while no worker runs, before the pool gives up.
const START_ATTEMPTS: u32 = 5;
/// The pause before the second start; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What a process may take from hanging up to its end before it is killed.
const HANG_UP_GRACE: Duration = Duration::from_millis(100);
/// What the last words of a dead worker may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// What a worker may take to give back or stop a cancelled task before it is killed.
const RECALL_GRACE: Duration = Duration::from_secs(1);

/// What supervisors use and nobody else.
#[derive(Debug)]
pub(crate) struct Services {
    /// The runtime that connections are driven on.
    home: Handle,
    /// The library's own.
    own: Handle,
    output: OutputThread,
    /// The next number for a process, which tells its output from that of its predecessor.
    processes: AtomicU64,
}

impl Services {
    pub(crate) fn new(home: Handle, own: Handle, output: OutputThread) -> Self {
        Self {
            home,
            own,
            output,
            processes: AtomicU64::new(0),
        }
    }
}

/// Keeps the place `worker` filled until the pool wants it no more. `ready` is told how the first start went.
pub(crate) async fn supervise(
    shared: Arc<Shared>,
    services: Arc<Services>,
    worker: usize,
    ready: oneshot::Sender<Result<(), BuildError>>,
) {
    let mut ready = Some(ready);
    // Starts that failed, and workers that died with nothing to do, one after the other.
    let (mut failures, mut deaths) = (0, 0);
    let mut restarts = false;
    while wants_worker(&shared, worker) {
        if failures + deaths > 0
            && !(pause(&shared, worker, failures + deaths).await && wants_worker(&shared, worker))
        {
            break;
        }
        if restarts {
            shared.lock().records[worker].restarts += 1;
        }
        restarts = true;
        match start(&shared, &services, worker).await {
            Ok((child, link)) => {
                if attach(&shared, &services, &link) {
                    shared.config.worker_started(worker, link.pid);
                    if let Some(ready) = ready.take() {
                        // Whoever built the pool may have stopped waiting.
                        ready.send(Ok(())).ok();
                    }
                } else {
                    link.killer.kill();
                }
                let began = Instant::now();
                let had_tasks = run(&shared, &services, child, &link).await;
                failures = 0;
                // A worker that dies again and again with nothing to do is started ever more slowly; one that
                // tasks kill is started at once, for those are paid for by the tasks.
                deaths = if had_tasks || began.elapsed() > LONGEST_PAUSE {
                    0
                } else {
                    deaths + 1
                };
            }
            Err(error) => {
                failures += 1;
                if let Some(ready) = ready.take() {
                    ready.send(Err(error)).ok();
                    break;
                }
                if failures >= START_ATTEMPTS && !shared.lock().state.has_live_worker() {
                    shared.end(End::Failed(error));
                    break;
                }
            }
        }
    }
    shared.supervisor_finished(worker);
}

fn wants_worker(shared: &Shared, worker: usize) -> bool {
    let mut core = shared.lock();
    let wanted = core.end.is_none() && core.state.wants_workers();
    if wanted {
        return true;
    }
    core.state.gone(worker);
    false
}

/// Waits before another start; `false` when there must be none.
async fn pause(shared: &Shared, worker: usize, failures: u32) -> bool {
    let pause = FIRST_PAUSE
        .saturating_mul(1 << (failures - 1).min(16))
        .min(LONGEST_PAUSE);
    // Spread, so that many workers do not start in step.
    let pause = pause + pause / 8 * (worker % 8) as u32;
    let mut stop = shared.stop.subscribe();
    let until = Instant::now() + pause;
    tokio::select! {
        () = sleep_until(until) => {}
        _ = stop.wait_for(|&stop| stop) => return false,
        () = unwanted(shared) => {}
    }
    true
}

/// Waits until the pool has no more work for a worker.
async fn unwanted(shared: &Shared) {
    loop {
        let changed = shared.changed.listen();
        if !shared.lock().state.wants_workers() {
            return;
        }
        changed.await;
    }
}

/// Starts a process and makes a worker of it.
async fn start(
    shared: &Shared,
    services: &Services,
    worker: usize,
) -> Result<(Child, Arc<Link>), BuildError> {
    let config = &shared.config;
    let io = |action| {
        move |error| BuildError::Io {
            action,
            source: Arc::new(error),
        }
    };
    let process = services.processes.fetch_add(1, Ordering::Relaxed);
    let stderr = services
        .output
        .pipe(process, worker, Stream::Stderr, config.stderr.sink.clone())
        .map_err(io("make a pipe for a worker's standard error"))?;
    let (stdout, stdout_fd) = match &config.stdout.sink {
        Sink::Null => (Stdout::Null, None),
        Sink::Inherit => match own_stdout() {
            Some(fd) => (Stdout::Attached, Some(fd)),
            None => (Stdout::Null, None),
        },
        sink @ Sink::Lines(_) => {
            let pipe = services
                .output
                .pipe(process, worker, Stream::Stdout, sink.clone())
                .map_err(io("make a pipe for a worker's standard output"))?;
            (Stdout::Attached, Some(pipe))
        }
    };
    let (ledger, ledger_fd) = Ledger::create(config.tasks_per_worker).map_err(io("make shared memory"))?;
    let (control, control_fd) = datagram_pair().map_err(io("make a socket pair"))?;

    let label = format!("{} {} {worker}", config.name, config.worker_name);
    let (program, depth) = (config.program.clone(), config.depth);
    // Starting blocks until the new program is in place, and others start at the same time.
    let spawned = services
        .own
        .spawn_blocking(move || spawn(&program, &label, depth, stderr))
        .await;
    let spawned = match spawned {
        Ok(Ok(spawned)) => spawned,
        Ok(Err(error)) => {
            services.output.settle(process).await;
            return Err(BuildError::Spawn {
                program: config.program.path().to_owned(),
                source: Arc::new(error),
            });
        }
        // The library's runtime ends, and with it the process.
        Err(_) => return Err(BuildError::Closed),
    };
    let Spawned { child, connection } = spawned;
    let killer = child.killer();

    let welcome = Welcome {
        pool: config.name.clone(),
        worker,
        depth,
        max_frame_size: config.max_frame_size,
        tasks_per_worker: config.tasks_per_worker,
        initializer: config.initializer.clone(),
        stdout,
    };
    let mut fds = vec![control_fd, ledger_fd];
    fds.extend(stdout_fd);
    let limit = message_limit(config.max_frame_size);
    let mut stop = shared.stop.subscribe();
    let greeted = tokio::select! {
        greeted = handshake(&connection, &welcome, fds, limit, config.start_timeout) => Some(greeted),
        _ = stop.wait_for(|&stop| stop) => None,
    };
    let pid = child.pid();
    match greeted {
        Some(Ok(receiver)) => {
            let parts = Parts {
                worker,
                pid,
                process,
                connection,
                control,
                receiver,
                ledger,
                killer,
            };
            Ok((child, Arc::new(Link::new(parts))))
        }
        Some(Err(error)) => {
            // One that has hung up is about to end by itself, and how it does is what the error should say.
            let ending = child.wait();
            tokio::pin!(ending);
            let status = match error.failure {
                HandshakeFailure::End(_) => timeout(HANG_UP_GRACE, &mut ending).await.ok(),
                _ => None,
            };
            let status = match status {
                Some(status) => status,
                None => {
                    killer.kill();
                    ending.await
                }
            };
            let stderr = last_words(services, process).await;
            Err(start_error(shared, error, status, stderr))
        }
        None => {
            killer.kill();
            child.wait().await;
            services.output.settle(process).await;
            Err(BuildError::Closed)
        }
    }
}

/// What whoever builds the pool is told of a process that did not become a worker.
fn start_error(
    shared: &Shared,
    error: HandshakeError,
    status: Option<ExitStatus>,
    stderr: String,
) -> BuildError {
    let HandshakeError { failure, first_bytes } = error;
    let program = shared.config.program.path().to_owned();
    let ended = match status {
        Some(status) => format!("it ended ({status})"),
        None => "it ended".to_owned(),
    };
    match failure {
        HandshakeFailure::End(StartPhase::Handshake) => BuildError::Handshake {
            program,
            reason: format!("{ended} before the handshake"),
            first_bytes,
            stderr,
        },
        HandshakeFailure::End(StartPhase::Initializer) if shared.config.initializer.is_some() => {
            let message = if stderr.is_empty() {
                ended
            } else {
                format!("{ended}; its standard error ended with:\n{}", stderr.trim_end())
            };
            BuildError::Initializer {
                name: shared.config.initializer_name(),
                message,
                panic: None,
            }
        }
        HandshakeFailure::End(StartPhase::Initializer) => BuildError::Handshake {
            program,
            reason: format!("{ended} before it was ready"),
            first_bytes,
            stderr,
        },
        HandshakeFailure::Timeout(phase) => {
            // Without an initializer the worker had only to set itself up.
            let phase = if shared.config.initializer.is_some() {
                phase
            } else {
                StartPhase::Handshake
            };
            BuildError::StartTimeout {
                phase,
                timeout: shared.config.start_timeout,
                first_bytes,
                stderr,
            }
        }
        HandshakeFailure::Refused(reason) => BuildError::Handshake {
            program,
            reason,
            first_bytes,
            stderr,
        },
        HandshakeFailure::Io(error) => BuildError::Handshake {
            program,
            reason: format!("its connection failed: {error}"),
            first_bytes,
            stderr,
        },
        HandshakeFailure::Initializer(failure) => {
            let (message, panic) = match failure {
                InitFailure::Failed(message) | InitFailure::Setup(message) => (message, None),
                InitFailure::Task(Failure::Panicked(panic)) => (panic.message.clone(), Some(panic)),
                InitFailure::Task(Failure::DecodeArgument(message)) => {
                    (format!("its argument: {message}"), None)
                }
                InitFailure::Task(failure) => (format!("{failure:?}"), None),
            };
            BuildError::Initializer {
                name: shared.config.initializer_name(),
                message,
                panic,
            }
        }
    }
}

/// Lets the worker have tasks; `false` when the pool has ended.
fn attach(shared: &Arc<Shared>, services: &Services, link: &Arc<Link>) -> bool {
    let mut core = shared.lock();
    core.links[link.worker] = Some(Arc::clone(link));
    if core.end.is_some() {
        return false;
    }
    match watch_on(link, &services.home, &services.own) {
        Ok((watched, runtime)) => {
            runtime.spawn(drive(watched, Arc::clone(link), Arc::clone(shared)));
        }
        Err(error) => {
            link.set_fault(format!("its connection cannot be watched: {error}"));
            link.broken.notify_one();
        }
    }
    core.state.ready(link.worker);
    shared.act(core);
    // A worker that can take a task is room, even in a queue without any.
    shared.room.notify_additional(usize::MAX);
    true
}

/// Waits for the worker's end and clears up after it; `true` when it had been sent tasks.
async fn run(shared: &Shared, services: &Services, child: Child, link: &Arc<Link>) -> bool {
    let ending = child.wait();
    tokio::pin!(ending);
    let status = loop {
        tokio::select! {
            status = &mut ending => break status,
            () = link.broken.notified() => {
                // Garbage is answered at once. One that has hung up is about to end by itself, if it is well.
                let ends = shared.lock().state.worker_state(link.worker) == WorkerState::Ending;
                let grace = if ends { shared.config.shutdown_grace } else { HANG_UP_GRACE };
                if link.fault().is_none() && let Ok(status) = timeout(grace, &mut ending).await {
                    break status;
                }
                if link.fault().is_none() && !ends {
                    link.set_fault("it closed its connection".to_owned());
                }
                link.killer.kill();
                break ending.await;
            }
            () = link.recalled.notified() => {
                let Some(id) = shared.lock().state.doomed(link.worker) else { continue };
                let until = Instant::now() + RECALL_GRACE;
                tokio::select! {
                    status = &mut ending => break status,
                    () = sleep_until(until) => {}
                    () = link.broken.notified() => {
                        link.broken.notify_one();
                        continue;
                    }
                }
                let mut core = shared.lock();
                core.state.unresponsive(link.worker, id);
                shared.act(core);
            }
            () = link.ending.notified() => {
                if let Ok(status) = timeout(shared.config.shutdown_grace, &mut ending).await {
                    break status;
                }
                link.killer.kill();
                break ending.await;
            }
        }
    };
    link.close();
    let stderr = last_words(services, link.process).await;
    let loss = WorkerLoss {
        worker: link.worker,
        pid: link.pid,
        status,
        fault: None,
        stderr,
    };
    shared.lost(link, &loss);
    shared.config.worker_exited(&loss);
    link.had_tasks()
}

async fn last_words(services: &Services, process: u64) -> String {
    timeout(LAST_WORDS, services.output.settle(process))
        .await
        .unwrap_or_default()
}

/// Ends the pool with the runtime that it was built on.
pub(crate) fn watch_runtime(shared: &Arc<Shared>, runtime: &Handle) {
    /// Dropped with the future that holds it, when that has ended or its runtime is shut down.
    struct Sentinel(Weak<Shared>);

    impl Drop for Sentinel {
        fn drop(&mut self) {
            if let Some(shared) = self.0.upgrade() {
                shared.end(End::RuntimeShutdown);
            }
        }
    }

    let sentinel = Sentinel(Arc::downgrade(shared));
    let weak = Arc::downgrade(shared);
    runtime.spawn(async move {
        let mut sentinel = sentinel;
        if let Some(shared) = weak.upgrade() {
            shared.all_gone().await;
        }
        // The pool was first.
        sentinel.0 = Weak::new();
    });
}
