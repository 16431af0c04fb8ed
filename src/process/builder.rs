//! The options of a [`Process`], and its start.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::child::Child;
use super::children;
use super::descendants::adopts;
use super::error::{Cause, ProcessError};
use super::handle::{Held, Process, Run};
use super::identity::current;
use super::launch::{Launched, Order, copy, execute, refused};
use super::life::{Care, Life, live};
use super::limits::{LimitOptions, bounded};
use super::listen::{Ears, Speaker};
use super::memory::claim;
use super::orphans::Orphans;
use super::output::Output;
use super::spawn::Program;
use super::start_method::StartMethod;
use super::streams::{Heard, Streams, ears};
use super::template::{Plan, Template};
use crate::error::BuildError;
use crate::memory::MemoryMechanism;
use crate::task::initializer::{Initializer, InitializerOutcome};
use crate::task::{encode, entry};
use crate::wire::codec::EncodeError;
use crate::wire::frame::Outgoing;
use crate::wire::message::{Parent, Role, Welcome, Words};
use crate::{init, runtime, worker};

/// Options for a new [`Process`], from [`Process::builder`].
///
/// A builder may start any number of processes, one after the other or at once.
#[must_use = "nothing runs before spawn"]
#[derive(Clone)]
pub struct ProcessBuilder {
    name: Option<String>,
    is_daemon: bool,
    kills_on_drop: bool,
    program: Program,
    stdout: Output,
    stderr: Output,
    limits: LimitOptions,
    max_frame_size: u64,
    start_timeout: Duration,
    nested: bool,
    max_depth: u32,
    start_method: StartMethod,
    initializer: Option<Initializer>,
    /// Clones share it; what differs from it gets another.
    shared: Arc<Shared>,
}

/// What builders have together that start the same.
struct Shared {
    /// Made when it is first needed.
    template: Mutex<Option<Arc<Template>>>,
    /// Who may have a copy of it made.
    turns: Semaphore,
}

/// Copies of one template that are on their way: one is made, and the next ones have all that they need.
const COPIES_AT_ONCE: usize = 4;

impl Default for Shared {
    fn default() -> Self {
        Self {
            template: Mutex::default(),
            turns: Semaphore::new(COPIES_AT_ONCE),
        }
    }
}

impl Default for ProcessBuilder {
    fn default() -> Self {
        Self {
            name: None,
            is_daemon: false,
            kills_on_drop: false,
            program: Program::default(),
            stdout: Output::inherit(),
            stderr: Output::inherit(),
            limits: LimitOptions::default(),
            max_frame_size: 1 << 30,
            start_timeout: Duration::from_secs(30),
            nested: false,
            max_depth: 8,
            start_method: StartMethod::Exec,
            initializer: None,
            shared: Arc::default(),
        }
    }
}

impl fmt::Debug for ProcessBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessBuilder")
            .field("name", &self.name)
            .field("is_daemon", &self.is_daemon)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl ProcessBuilder {
    /// The process's name, for people: in errors, and in `ps`, which shows it behind the program's. A NUL byte in it is
    /// an error. Defaults to `Process-1` and so on, counted here; in a process of that name to `Process-1:1` and so on.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether the process ends with its parent, whatever ends that, and takes along all that it started. It may start
    /// no pools and no processes with this library, which would be left behind. Defaults to `false`: the process goes on
    /// when its parent has ended, for as long as its function does, and its value is lost.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.is_daemon = daemon;
        self
    }

    /// Whether the process is [killed](Process::kill) when its handle is dropped, or the future of
    /// [`spawn`](Self::spawn) or [`join`](Process::join) before it is ready. So a time limit is one of any future:
    /// `tokio::time::timeout(limit, process.join())`. Defaults to `false`: it is detached.
    pub fn kill_on_drop(mut self, kill: bool) -> Self {
        self.kills_on_drop = kill;
        self
    }

    /// Sets a variable in the process's environment, which otherwise is the parent's. A name that is empty or contains
    /// `=`, and a NUL byte anywhere, are errors.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.program.env.set(key, value);
        self.shared = Arc::default();
        self
    }

    /// Sets variables in the process's environment.
    pub fn envs<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        for (key, value) in variables {
            self.program.env.set(key, value);
        }
        self.shared = Arc::default();
        self
    }

    /// Removes a variable from the process's environment.
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.program.env.remove(key);
        self.shared = Arc::default();
        self
    }

    /// Begins with an empty environment, but for what the library needs. What was set before is forgotten.
    pub fn env_clear(mut self) -> Self {
        self.program.env.clear();
        self.shared = Arc::default();
        self
    }

    /// The process's working directory. Defaults to the parent's, as it is when the process starts, or its
    /// [template](StartMethod::ForkServer).
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.program.current_dir = Some(directory.into());
        self.shared = Arc::default();
        self
    }

    /// Another program, as for [`PoolBuilder::program`](crate::PoolBuilder::program).
    #[doc(alias = "set_executable")]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program.path = Some(program.into());
        self.shared = Arc::default();
        self
    }

    /// Where the process's standard output goes. [`Output::inherit`] is the parent's own descriptor here, not a pipe, so
    /// that the process can go on printing when its parent has ended; what goes through the parent goes nowhere then.
    /// Defaults to [`Output::inherit`].
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self.shared = Arc::default();
        self
    }

    /// Where the process's standard error goes, as [`stdout`](Self::stdout). The end of it is in errors unless it is
    /// inherited. Defaults to [`Output::inherit`].
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self.shared = Arc::default();
        self
    }

    /// The longest argument and result, in bytes. Longer ones are [`TooLarge`](crate::ProcessErrorKind::TooLarge). Zero
    /// is an error. Defaults to 1 GiB.
    pub fn max_frame_size(mut self, bytes: u64) -> Self {
        self.max_frame_size = bytes;
        self.shared = Arc::default();
        self
    }

    /// How long the process may take from its start until its function is called. Zero is an error. Defaults to 30
    /// seconds.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self.shared = Arc::default();
        self
    }

    /// How the process comes to be. With [`StartMethod::ForkServer`] this builder has a template, from the first start or
    /// [`warm_up`](Self::warm_up) on and as long as it is there, or a clone of it: keep it. Defaults to
    /// [`StartMethod::Exec`].
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.start_method = method;
        self
    }

    /// Runs `initializer` with a copy of `argument` in front of the function, or once in the template. It may return `()`
    /// or a `Result<(), E>`; when it fails, nothing is started: the error is [`Start`](crate::ProcessErrorKind::Start)
    /// with [`Initializer`](BuildError::Initializer). The argument cannot hold an [`Fd`](crate::Fd), and may be longer than
    /// [`max_frame_size`](Self::max_frame_size). Defaults to none.
    pub fn initializer<F, A, O>(mut self, initializer: F, argument: A) -> Self
    where
        F: Fn(A) -> O + Copy + 'static,
        A: Serialize + DeserializeOwned,
        O: InitializerOutcome,
    {
        self.initializer = Some(Initializer::new(initializer, &argument));
        self.shared = Arc::default();
        self
    }

    /// Starts the template, where there is to be one, and waits until it has run the initializer. Otherwise the first
    /// start does that.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn), but for the argument.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the template goes on.
    pub async fn warm_up(&self) -> Result<(), ProcessError> {
        let ready = async {
            self.check("template")?;
            match self.template()? {
                Some(template) => template.ready().await,
                None => Ok(()),
            }
        };
        let failed = |error| ProcessError::new("template", None, None, Cause::Start(error));
        ready.await.map_err(failed)
    }

    /// Allows this process to be started inside a pool's worker. There it ends with the worker at the latest, whatever
    /// ends that, and takes along all that it has started itself, as a daemon does. Defaults to `false`.
    pub fn nested(mut self, nested: bool) -> Self {
        self.nested = nested;
        self
    }

    /// How deep processes may nest, workers of pools among them: 1 is a process that a process of the main program
    /// starts. Defaults to 8.
    pub fn max_depth(mut self, depth: u32) -> Self {
        self.max_depth = depth;
        self
    }

    /// How much memory the process may have, in bytes, as [`PoolBuilder::memory_limit`](crate::PoolBuilder::memory_limit).
    /// Where a cgroup keeps it to that, what the process leaves running ends with it.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.limits.memory = Some(bytes);
        self
    }

    /// How the memory limit is kept, as [`PoolBuilder::memory_mechanism`](crate::PoolBuilder::memory_mechanism).
    pub fn memory_mechanism(mut self, mechanism: MemoryMechanism) -> Self {
        self.limits.mechanism = Some(mechanism);
        self
    }

    /// How much processor time it may use, as [`PoolBuilder::cpu_time_limit`](crate::PoolBuilder::cpu_time_limit).
    pub fn cpu_time_limit(mut self, time: Duration) -> Self {
        self.limits.cpu_time = Some(time);
        self
    }

    /// How many descriptors it may have, as [`PoolBuilder::open_files_limit`](crate::PoolBuilder::open_files_limit).
    pub fn open_files_limit(mut self, files: u64) -> Self {
        self.limits.open_files = Some(files);
        self
    }

    /// How large a file it may make, in bytes, as [`PoolBuilder::file_size_limit`](crate::PoolBuilder::file_size_limit).
    pub fn file_size_limit(mut self, bytes: u64) -> Self {
        self.limits.file_size = Some(bytes);
        self
    }

    /// Its nice value, as [`PoolBuilder::nice`](crate::PoolBuilder::nice).
    pub fn nice(mut self, nice: i32) -> Self {
        self.limits.nice = Some(nice);
        self
    }

    /// The processors that it may run on, by their numbers, as
    /// [`PoolBuilder::cpu_affinity`](crate::PoolBuilder::cpu_affinity).
    pub fn cpu_affinity(mut self, processors: impl IntoIterator<Item = usize>) -> Self {
        let processors = bounded(processors);
        self.limits.affinity = Some(Arc::new(move |_| processors.clone()));
        self
    }

    /// How willingly the kernel kills it when memory is short, as
    /// [`PoolBuilder::oom_score_adj`](crate::PoolBuilder::oom_score_adj).
    pub fn oom_score_adj(mut self, adjustment: i32) -> Self {
        self.limits.oom_score_adj = Some(adjustment);
        self
    }

    /// Starts a process that runs `function` with `argument`, and gives its handle as soon as it is on its way. Executing
    /// the program blocks for half a millisecond or so, as every way to do that does.
    ///
    /// One that is no [daemon](Self::daemon) has been sent its whole argument by then, and runs whatever becomes of this
    /// process. For an argument of more than some hundred KiB, and for another [program](Self::program), that means that
    /// it is up and reads.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::ProcessErrorKind::Encode) and [`TooLarge`](crate::ProcessErrorKind::TooLarge) for the argument;
    /// [`Start`](crate::ProcessErrorKind::Start) with the [`BuildError`] that says why:
    /// [`NotInitialized`](BuildError::NotInitialized), [`Daemon`](BuildError::Daemon), [`Template`](BuildError::Template),
    /// [`Nested`](BuildError::Nested), [`TooDeep`](BuildError::TooDeep), [`InvalidOption`](BuildError::InvalidOption),
    /// [`Encode`](BuildError::Encode) for the initializer's argument, [`Spawn`](BuildError::Spawn) and
    /// [`Io`](BuildError::Io) for what the system refuses, and where it is copied whatever becomes of the template,
    /// [`TemplateLost`](BuildError::TemplateLost) among it. What goes wrong once it is on its way, a limit that it cannot
    /// keep itself to among it, is the error of [`join`](Process::join).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, the process may have been started, and its handle is dropped then.
    pub fn spawn<F, A, R>(
        &self,
        function: F,
        argument: A,
    ) -> impl Future<Output = Result<Process<R>, ProcessError>> + Send + use<F, A, R>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        let row = entry::blocking::<F, F, A, R>(&function);
        self.spawn_row(encode::single(row, argument, self.max_frame_size))
    }

    /// Starts a process that runs an async `function`, as [`spawn`](Self::spawn). It is polled on the process's main
    /// thread, beside a tokio runtime for timers and sockets; its future need not be `Send`.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn spawn_async<F, A, T, R>(
        &self,
        function: F,
        argument: A,
    ) -> impl Future<Output = Result<Process<R>, ProcessError>> + Send + use<F, A, T, R>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        let row = entry::asynchronous::<F, A, T, R>(&function);
        self.spawn_row(encode::single(row, argument, self.max_frame_size))
    }

    /// Starts a process that [runs](Run::run) `value`, as [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn run<T: Run>(
        &self,
        value: T,
    ) -> impl Future<Output = Result<Process<T::Output>, ProcessError>> + Send + use<T> {
        self.spawn(T::run, value)
    }

    /// Whether the process ends with this one.
    fn is_bound(&self) -> bool {
        self.is_daemon || worker::is_bound()
    }

    fn spawn_row<R>(
        &self,
        message: Result<Outgoing, Box<EncodeError>>,
    ) -> impl Future<Output = Result<Process<R>, ProcessError>> + Send + use<R> {
        let name = self.name.clone().unwrap_or_else(next_name);
        let builder = self.clone();
        async move {
            let held = builder.start(name.clone(), message).await;
            held.map(Process::new)
                .map_err(|cause| ProcessError::new(&name, None, None, cause))
        }
    }

    /// Starts a process, which is looked after from then on, whoever waits for this. What it takes of the system, it
    /// takes when it is its turn.
    async fn start(self, name: String, message: Result<Outgoing, Box<EncodeError>>) -> Result<Held, Cause> {
        self.check(&name)?;
        let message = message.map_err(|error| Cause::from(*error))?;
        let own = runtime::handle().map_err(refused("start the library's thread"))?;
        let (held, told) = match self.template()? {
            // Here, for nobody else has to be woken then.
            None => {
                let (order, starting) = self.prepare(name, message)?;
                starting.begin(execute(order)?, own)?
            }
            Some(template) => {
                let (started, is_started) = oneshot::channel();
                own.spawn(async move {
                    // Nobody closes it.
                    let _turn = self.shared.turns.acquire().await;
                    if self.kills_on_drop && started.is_closed() {
                        // It would be killed.
                        return;
                    }
                    let begun = match self.prepare(name, message) {
                        Ok((order, starting)) => copy(order, &template)
                            .await
                            .and_then(|launched| starting.begin(launched, own)),
                        Err(error) => Err(error),
                    };
                    // Who asked for it may have stopped waiting.
                    started.send(begun).ok();
                });
                is_started.await.unwrap_or(Err(BuildError::Closed))?
            }
        };
        if let Some(told) = told {
            // The end of the channel is the sign.
            told.await.ok();
        }
        Ok(held)
    }

    /// The options, checked.
    fn check(&self, name: &str) -> Result<(), BuildError> {
        init::check()?;
        let invalid = |option, reason: &str| {
            Err(BuildError::InvalidOption {
                option,
                reason: reason.to_owned(),
            })
        };
        let depth = worker::depth();
        match worker::role() {
            Some(Role::Process { is_daemon: true, .. }) => return Err(BuildError::Daemon),
            Some(Role::Template { .. }) => return Err(BuildError::Template),
            Some(Role::Worker { .. }) if !self.nested => return Err(BuildError::Nested),
            _ => {}
        }
        if depth > self.max_depth {
            return Err(BuildError::TooDeep {
                depth,
                limit: self.max_depth,
            });
        }
        if name.contains('\0') {
            return invalid("name", "it contains a NUL byte");
        }
        if self.max_frame_size == 0 {
            return invalid("max_frame_size", "nothing fits into zero bytes");
        }
        if self.start_timeout.is_zero() {
            return invalid("start_timeout", "no process starts in no time");
        }
        self.program.env.check()?;
        self.limits.check(1)
    }

    /// The template, where processes are copied.
    fn template(&self) -> Result<Option<Arc<Template>>, BuildError> {
        if self.start_method == StartMethod::Exec {
            return Ok(None);
        }
        let mut template = self
            .shared
            .template
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if template.is_none() {
            let plan = Plan {
                name: "template".to_owned(),
                program: self.program.clone(),
                initializer: self.initializer.clone().map(Initializer::encoded).transpose()?,
                depth: worker::depth() + 1,
                max_frame_size: self.max_frame_size,
                start_timeout: self.start_timeout,
                stdout: self.stdout.clone(),
                stderr: self.stderr.clone(),
                is_free: true,
                ears: Arc::clone(ears()?),
            };
            *template = Some(Arc::new(
                Template::new(plan).map_err(refused("start the library's thread"))?,
            ));
        }
        Ok(template.clone())
    }

    /// Makes what the process is started with.
    fn prepare(&self, name: String, message: Outgoing) -> Result<(Order, Starting), BuildError> {
        claim::begin();
        let (limits, memory) = self.limits.prepare(0)?;
        let current = current();
        let streams = Streams::of_its_own(&self.stdout, &self.stderr)?;
        let role = Role::Process {
            name: name.clone(),
            is_daemon: self.is_daemon,
            is_bound: self.is_bound(),
            adopts: self.is_bound() || adopts(),
            parent: Parent {
                pid: current.pid,
                name: current.name,
            },
        };
        let mut fds = match self.is_bound() {
            true => Vec::new(),
            false => streams.readers()?,
        };
        let stdout = streams.stdout;
        let (stdout_fd, stderr, heard) = streams.divide();
        fds.extend(stdout_fd);
        let welcome = Welcome {
            role,
            depth: worker::depth() + 1,
            max_frame_size: self.max_frame_size,
            tasks_per_worker: 1,
            // A copy of the template has that behind it.
            initializer: match (self.start_method, &self.initializer) {
                (StartMethod::Exec, Some(initializer)) => Some(initializer.clone().encoded()?),
                _ => None,
            },
            measures_memory: false,
            stdout,
            limits,
            words: Words::default(),
            // What there is to do comes with the welcome.
            spin: Duration::ZERO,
        };
        let order = Order {
            program: self.program.clone(),
            label: name.clone(),
            welcome,
            stderr,
            fds,
            message: Some(message),
        };
        let ears = match heard.is_empty() {
            true => None,
            false => Some(ears()?),
        };
        let starting = Starting {
            name,
            is_daemon: self.is_daemon,
            is_bound: self.is_bound(),
            kills_on_drop: self.kills_on_drop,
            ears,
            heard,
            care: Care {
                initializer: self.initializer.as_ref().map(Initializer::name),
                program: self.program.clone(),
                start_timeout: self.start_timeout,
                max_frame_size: self.max_frame_size,
                memory,
                orphans: None,
                heard: None,
            },
        };
        Ok((order, starting))
    }
}

/// This process's side of one that is about to be started.
struct Starting {
    name: String,
    is_daemon: bool,
    is_bound: bool,
    kills_on_drop: bool,
    ears: Option<&'static Arc<Ears>>,
    heard: Heard,
    care: Care,
}

impl Starting {
    /// The process is there: it has a life from now on. With what ends when it has been told what to do, where that
    /// matters: one that is to go on without this process must know it by then.
    fn begin(
        self,
        mut launched: Launched,
        own: &Handle,
    ) -> Result<(Held, Option<oneshot::Receiver<()>>), BuildError> {
        let Self {
            name,
            is_daemon,
            is_bound,
            kills_on_drop,
            ears,
            heard,
            mut care,
        } = self;
        let sentinel = match sentinel(&launched.child) {
            Ok(sentinel) => sentinel,
            Err(error) => {
                launched.child.killer().kill();
                own.spawn(launched.child.wait());
                return Err(refused("make an event descriptor")(error));
            }
        };
        let life = Arc::new(Life::new(name, is_daemon, is_bound, &launched.child, sentinel));
        children::add(&life);
        if let Some(ears) = ears {
            let number = ears.number();
            let speaker = Speaker {
                number,
                worker: 0,
                name: Some(life.name.clone()),
                pid: life.pid,
                ledger: Arc::clone(&launched.heard),
                token: None,
            };
            heard.listen(ears, &speaker);
            care.heard = Some((ears, number));
        }
        if !is_bound {
            care.orphans = Orphans::of(&launched.child);
        }
        let told = match is_bound {
            true => None,
            false => launched.greeting.sent(),
        };
        own.spawn(live(Arc::clone(&life), launched, care));
        Ok((Held::new(life, kills_on_drop), told))
    }
}

/// What is readable when the process has ended.
fn sentinel(child: &Child) -> io::Result<Arc<OwnedFd>> {
    match child.killer().pidfd() {
        Some(pidfd) => Ok(Arc::clone(pidfd)),
        // It has ended already, and somebody else has buried it.
        None => Ok(Arc::new(eventfd(1, EventfdFlags::CLOEXEC)?)),
    }
}

/// `Process-1` and so on, behind this process's own name if it has one.
fn next_name() -> String {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let number = STARTED.fetch_add(1, Ordering::Relaxed) + 1;
    match worker::role() {
        Some(Role::Process { name, .. }) => format!("{name}:{number}"),
        _ => format!("Process-{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::cgroup;
    use crate::wire::message::kind;

    #[test]
    fn kills_for_want_of_memory_are_counted_from_the_first_process_on() {
        init();
        let message = Outgoing::new(kind::TASK, Outgoing::buffer(0), Vec::new());
        assert!(Process::builder().prepare("a".to_owned(), message).is_ok());
        assert_eq!(claim::has_begun(), cgroup::own_kills().is_some());
    }
}
