//! One supervisor per worker: it starts the process, greets it, waits for its end, and clears up after it.
//!
//! Supervisors run on the library's own runtime, so that no child is left unburied when another runtime ends.

use std::collections::HashMap;
use std::future::ready;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::{End, Shared};
use super::keeper::Start;
use super::link::{Link, Parts, drive, watch_on};
use super::state::WorkerState;
use crate::error::{BuildError, WorkerLoss};
use crate::process::child::Child;
#[cfg(feature = "tracing")]
use crate::process::launch::refused;
use crate::process::launch::{HANG_UP_GRACE, Launched, Order, Report, copy, execute, last_words};
use crate::process::listen::{Ears, Speaker};
#[cfg(feature = "tracing")]
use crate::process::listen::{Pipe, events_pipe};
use crate::process::memory::WorkerMemory;
use crate::process::streams::{Heard, Streams};
use crate::process::template::Template;
use crate::runtime::Crew;
use crate::wire::mark::Token;
use crate::wire::message::{Role, Welcome};

/// Starts that fail one after the other, while no worker runs, before the pool gives up.
const START_ATTEMPTS: u32 = 5;
/// The pause before the second start; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What supervisors use and nobody else.
#[derive(Debug)]
pub(crate) struct Services {
    /// The runtime that connections are driven on.
    home: Handle,
    /// The library's own.
    pub(super) own: Handle,
    ears: Arc<Ears>,
    /// Who builds the pool wants to know how the first starts go, by the workers' indices.
    builders: Mutex<HashMap<usize, oneshot::Sender<Result<(), BuildError>>>>,
    /// Where workers are started: that blocks until the new program is in place.
    starters: Arc<Crew>,
    /// Where workers are copied instead.
    template: Option<Arc<Template>>,
}

impl Drop for Services {
    fn drop(&mut self) {
        self.ears.close();
    }
}

impl Services {
    pub(crate) fn new(home: Handle, own: Handle, ears: Arc<Ears>, template: Option<Arc<Template>>) -> Self {
        Self {
            template,
            home,
            own,
            ears,
            builders: Mutex::default(),
            starters: Arc::default(),
        }
    }

    /// Tells how the start of the worker at index `worker` goes, which has not begun.
    pub(crate) fn first_start(&self, worker: usize) -> oneshot::Receiver<Result<(), BuildError>> {
        let (builder, result) = oneshot::channel();
        let mut builders = self.builders.lock().unwrap_or_else(PoisonError::into_inner);
        builders.insert(worker, builder);
        result
    }

    /// Tells who builds the pool, if somebody does.
    fn tell_builder(&self, worker: usize, result: Result<(), BuildError>) -> bool {
        let mut builders = self.builders.lock().unwrap_or_else(PoisonError::into_inner);
        match builders.remove(&worker) {
            Some(builder) => builder.send(result).is_ok(),
            None => false,
        }
    }
}

/// Starts the first workers, one of them on this thread: nobody else has to be woken for it. Blocks for as long as
/// that takes.
pub(super) fn start_first(
    shared: &Arc<Shared>,
    services: &Arc<Services>,
    orders: impl IntoIterator<Item = Start>,
) {
    let mut orders = orders.into_iter();
    let here = match &services.template {
        None => orders.next(),
        Some(_) => None,
    };
    let mut begun: Vec<_> = orders
        .map(|order| (order, begin_elsewhere(shared, services, order)))
        .collect();
    if let Some(here) = here {
        let first = begin(shared, services, here);
        begun.push((here, ready(Some(first)).boxed()));
    }
    for (order, begun) in begun {
        services
            .own
            .spawn(live(Arc::clone(shared), Arc::clone(services), order, begun));
    }
}

/// Starts a worker when it is time, and stays with it.
pub(crate) async fn supervise(shared: Arc<Shared>, services: Arc<Services>, order: Start) {
    let Start {
        worker,
        number,
        failures,
    } = order;
    if failures > 0 {
        pause(&shared, worker, number, failures).await;
    }
    if !shared.lock().wants(worker) {
        shared.not_started(worker);
        return;
    }
    let begun = begin_elsewhere(&shared, &services, order);
    live(shared, services, order, begun).await;
}

/// One worker's life: start, greeting, tasks, end.
async fn live(shared: Arc<Shared>, services: Arc<Services>, order: Start, begun: Beginning) {
    let Start { worker, number, .. } = order;
    // Otherwise the thread that started it is gone, and the process with it.
    let begun = begun.await.unwrap_or(Err(BuildError::Closed));
    let started = match begun {
        Ok(begun) => greet(&shared, &services, order, begun).await,
        Err(error) => Err(error),
    };
    match started {
        Ok((child, link)) => {
            let is_attached = attach(&shared, &services, &link);
            if is_attached {
                shared.config.worker_started(number, link.pid);
                // Whoever built the pool may have stopped waiting.
                services.tell_builder(worker, Ok(()));
            } else {
                link.killer.kill();
            }
            let loss = run(&shared, &services, child, &link).await;
            if is_attached {
                shared.config.worker_exited(&loss);
            }
            link.memory.bury().await;
        }
        Err(error) => {
            let (failures, has_live_worker) = {
                let mut core = shared.lock();
                (core.count_failure(number), core.state.has_live_worker())
            };
            // Before the next start is decided, so that the pool that cannot be built is ended instead.
            if !services.tell_builder(worker, Err(error.clone()))
                && failures >= START_ATTEMPTS
                && !has_live_worker
            {
                shared.cannot_start(&error);
            }
            shared.not_started(worker);
        }
    }
}

/// Waits before another start, or until there must be none.
async fn pause(shared: &Shared, worker: usize, number: usize, failures: u32) {
    let pause = FIRST_PAUSE
        .saturating_mul(1 << (failures - 1).min(16))
        .min(LONGEST_PAUSE);
    // Spread, so that many workers do not start in step.
    let pause = pause + pause / 8 * (number % 8) as u32;
    tokio::select! {
        () = sleep_until(Instant::now() + pause) => {}
        () = unwanted(shared, worker) => {}
    }
}

/// Waits until the pool has no more work for a worker.
async fn unwanted(shared: &Shared, worker: usize) {
    loop {
        let changed = shared.changed.listen();
        if !shared.lock().wants(worker) {
            return;
        }
        changed.await;
    }
}

/// A process that has been started and not been greeted.
struct Begun {
    launched: Launched,
    process: u64,
    memory: WorkerMemory,
}

/// What is made of a started process; `None` where the thread is gone that should have started it, and the process with
/// it.
type Beginning = BoxFuture<'static, Option<Result<Begun, BuildError>>>;

/// Begins to start a process, somewhere else, which is on its way when this returns.
fn begin_elsewhere(shared: &Arc<Shared>, services: &Arc<Services>, order: Start) -> Beginning {
    let (shared, its_services) = (Arc::clone(shared), Arc::clone(services));
    match &services.template {
        None => services
            .starters
            .run(move || begin(&shared, &its_services, order))
            .boxed(),
        Some(template) => {
            let template = Arc::clone(template);
            async move {
                let starting = Starting::new(&shared, &its_services, order);
                Some(match starting {
                    Ok((order, starting)) => {
                        let launched = copy(order, &template).await;
                        launched.map(|launched| starting.begun(&its_services, launched))
                    }
                    Err(error) => Err(error),
                })
            }
            .boxed()
        }
    }
}

/// Starts a process. Blocks until the new program is in place.
fn begin(shared: &Shared, services: &Services, order: Start) -> Result<Begun, BuildError> {
    let (order, starting) = Starting::new(shared, services, order)?;
    let launched = execute(order)?;
    Ok(starting.begun(services, launched))
}

/// This process's side of one that is about to be started.
struct Starting {
    worker: usize,
    process: u64,
    memory: WorkerMemory,
    token: Option<Token>,
    heard: Heard,
    #[cfg(feature = "tracing")]
    events: Option<Pipe>,
}

impl Starting {
    fn new(shared: &Shared, services: &Services, order: Start) -> Result<(Order, Self), BuildError> {
        let worker = order.number;
        let config = &shared.config;
        let (limits, memory) = config.limits.prepare(worker)?;
        let streams = Streams::through_here(&config.stdout, &config.stderr)?;
        let stdout = streams.stdout;
        let (stdout_fd, stderr, heard) = streams.divide();
        let words = config.words();
        let token = words.token;
        let mut fds = Vec::new();
        #[cfg(feature = "tracing")]
        let events = match words.events {
            Some(_) => {
                let (pipe, fd) = events_pipe().map_err(refused("make a pipe for a worker's events"))?;
                fds.push(fd);
                Some(pipe)
            }
            None => None,
        };
        fds.extend(stdout_fd);
        let welcome = Welcome {
            role: Role::Worker {
                pool: config.name.clone(),
                worker,
            },
            depth: config.depth,
            max_frame_size: config.max_frame_size,
            tasks_per_worker: config.tasks_per_worker,
            // A copy of the template has that behind it.
            initializer: config.initializer.clone().filter(|_| services.template.is_none()),
            measures_memory: config.max_worker_memory.is_some(),
            stdout,
            limits,
            words,
            spin: config.spin,
        };
        let order = Order {
            program: config.program.clone(),
            label: format!("{} {} {worker}", config.name, config.worker_name),
            welcome,
            stderr,
            fds,
            message: None,
        };
        let starting = Self {
            worker,
            process: services.ears.number(),
            memory,
            token,
            heard,
            #[cfg(feature = "tracing")]
            events,
        };
        Ok((order, starting))
    }

    /// The process is there.
    fn begun(self, services: &Services, launched: Launched) -> Begun {
        let speaker = Speaker {
            number: self.process,
            worker: self.worker,
            name: None,
            pid: launched.child.pid(),
            ledger: Arc::clone(&launched.heard),
            token: self.token,
        };
        self.heard.listen(&services.ears, &speaker);
        #[cfg(feature = "tracing")]
        if let Some(pipe) = self.events {
            services.ears.listen_events(&speaker, pipe);
        }
        Begun {
            launched,
            process: self.process,
            memory: self.memory,
        }
    }
}

/// Makes a worker of a process that has been started.
async fn greet(
    shared: &Shared,
    services: &Services,
    order: Start,
    begun: Begun,
) -> Result<(Child, Arc<Link>), BuildError> {
    let Start {
        worker: place,
        number: worker,
        ..
    } = order;
    let Begun {
        launched,
        process,
        memory,
    } = begun;
    let config = &shared.config;
    let mut stop = shared.stop.subscribe();
    let greeted = launched.greet(
        config.max_frame_size,
        config.start_timeout,
        &mut stop,
        &services.ears,
        process,
    );
    match greeted.await {
        Ok(greeted) => {
            memory.set_in_force(greeted.ready.memory);
            let child = greeted.child;
            let parts = Parts {
                place,
                number: worker,
                pid: child.pid(),
                process,
                connection: greeted.connection,
                control: greeted.control,
                receiver: greeted.receiver,
                ledger: greeted.ledger,
                killer: child.killer(),
                memory,
                spin: config.spin,
            };
            Ok((child, Arc::new(Link::new(parts))))
        }
        Err(failed) => {
            let end = memory.cause(failed.status, failed.ledger.resident_at_end(), &failed.stderr);
            memory.bury().await;
            let Some(error) = failed.error else {
                return Err(BuildError::Closed);
            };
            let report = Report {
                program: config.program.path(),
                start_timeout: config.start_timeout,
                initializer: config.initializer.is_some().then(|| config.initializer_name()),
                status: failed.status,
                stderr: failed.stderr,
            };
            Err(match end {
                Some(end) => report.starved(&format!("worker {worker}"), end),
                None => report.error(error),
            })
        }
    }
}

/// Lets the worker have tasks; `false` when the pool has ended.
fn attach(shared: &Arc<Shared>, services: &Services, link: &Arc<Link>) -> bool {
    let mut core = shared.lock();
    core.links[link.place] = Some(Arc::clone(link));
    if core.end.is_some() {
        return false;
    }
    core.started(link.number);
    match watch_on(link, &services.home, &services.own) {
        Ok((watched, runtime)) => {
            runtime.spawn(drive(watched, Arc::clone(link), Arc::clone(shared)));
        }
        Err(error) => {
            link.set_fault(format!("its connection cannot be watched: {error}"));
            link.broken.notify_one();
        }
    }
    core.state.ready(link.place);
    shared.watch_over(&core, link);
    shared.act(core);
    true
}

/// Waits for the worker's end and clears up after it.
async fn run(shared: &Shared, services: &Services, child: Child, link: &Arc<Link>) -> WorkerLoss {
    let ending = child.wait();
    tokio::pin!(ending);
    let status = tokio::select! {
        status = &mut ending => status,
        () = link.broken.notified() => {
            // Garbage is answered at once. One that has hung up is about to end by itself, if it is well.
            let ends = shared.lock().state.worker_state(link.place) == WorkerState::Ending;
            let grace = if ends { shared.config.shutdown_grace } else { HANG_UP_GRACE };
            let ended = match link.fault() {
                None => timeout(grace, &mut ending).await.ok(),
                Some(_) => None,
            };
            if ended.is_none() && !ends {
                link.set_fault("it closed its connection".to_owned());
            }
            kill_unless(ended, link, ending).await
        }
        () = link.stopping.notified() => {
            let ended = timeout(shared.config.term_grace, &mut ending).await.ok();
            kill_unless(ended, link, ending).await
        }
        () = link.ending.notified() => {
            let ended = timeout(shared.config.shutdown_grace, &mut ending).await.ok();
            kill_unless(ended, link, ending).await
        }
    };
    link.close();
    let words = last_words(&services.ears, link.process);
    // Where nothing went wrong nobody asks for them.
    let is_well = link.killer.has_obeyed(status) && link.ledger.started().is_empty();
    let stderr = if is_well { String::new() } else { words.await };
    let resident = link.ledger.resident_at_end();
    let out_of_memory = link.memory.cause(status, resident, &stderr);
    let loss = WorkerLoss {
        worker: link.number,
        pid: link.pid,
        status,
        fault: None,
        out_of_memory,
        stderr,
    };
    shared.lost(link, &loss);
    loss
}

/// Kills a worker that has not ended by itself.
async fn kill_unless(
    ended: Option<Option<ExitStatus>>,
    link: &Link,
    ending: impl Future<Output = Option<ExitStatus>>,
) -> Option<ExitStatus> {
    match ended {
        Some(status) => status,
        None => {
            link.killer.kill();
            ending.await
        }
    }
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
