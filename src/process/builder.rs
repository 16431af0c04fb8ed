//! The options of a [`Process`], and its start.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::child::Child;
use super::children;
use super::error::{Cause, ProcessError};
use super::handle::{Process, Run};
use super::identity::current;
use super::launch::{Order, launch, refused};
use super::life::{Care, Life, live};
use super::limits::{LimitOptions, bounded};
use super::listen::{self, Ears, Pipe, pipe};
use super::output::{Output, OutputStream, Sink};
use super::spawn::Program;
use crate::error::BuildError;
use crate::memory::MemoryMechanism;
use crate::runtime::Crew;
use crate::task::{encode, entry};
use crate::wire::codec::EncodeError;
use crate::wire::frame::Outgoing;
use crate::wire::message::{Parent, Role, Stdout, Welcome, Words};
use crate::{init, runtime, worker};

/// What may wait of each stream of all processes for who takes its lines.
const OUTPUT_BUFFER: usize = 8 << 20;

/// Options for a new [`Process`], from [`Process::builder`].
///
/// A builder may start any number of processes, one after the other or at once.
#[must_use = "nothing runs before spawn"]
#[derive(Clone)]
pub struct ProcessBuilder {
    name: Option<String>,
    is_daemon: bool,
    program: Program,
    stdout: Output,
    stderr: Output,
    limits: LimitOptions,
    max_frame_size: u64,
    start_timeout: Duration,
    nested: bool,
    max_depth: u32,
}

impl Default for ProcessBuilder {
    fn default() -> Self {
        Self {
            name: None,
            is_daemon: false,
            program: Program::default(),
            stdout: Output::inherit(),
            stderr: Output::inherit(),
            limits: LimitOptions::default(),
            max_frame_size: 1 << 30,
            start_timeout: Duration::from_secs(30),
            nested: false,
            max_depth: 8,
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

    /// Sets a variable in the process's environment, which otherwise is the parent's.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.program.env.push((key.into(), value.into()));
        self
    }

    /// The process's working directory. Defaults to the parent's, as it is when the process starts.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.program.current_dir = Some(directory.into());
        self
    }

    /// Another program, as for [`PoolBuilder::program`](crate::PoolBuilder::program).
    #[doc(alias = "set_executable")]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program.path = Some(program.into());
        self
    }

    /// Where the process's standard output goes. [`Output::inherit`] is the parent's own descriptor here, not a pipe, so
    /// that the process can go on printing when its parent has ended; what goes through the parent goes nowhere then.
    /// Defaults to [`Output::inherit`].
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where the process's standard error goes, as [`stdout`](Self::stdout). The end of it is in errors unless it is
    /// inherited. Defaults to [`Output::inherit`].
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self
    }

    /// The longest argument and result, in bytes. Longer ones are [`TooLarge`](crate::ProcessErrorKind::TooLarge). Zero
    /// is an error. Defaults to 1 GiB.
    pub fn max_frame_size(mut self, bytes: u64) -> Self {
        self.max_frame_size = bytes;
        self
    }

    /// How long the process may take from its start until its function is called. Zero is an error. Defaults to 30
    /// seconds.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Allows this process to be started inside a pool's worker, which it ends with at the latest. Defaults to `false`.
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

    /// Starts a process that runs `function` with `argument`, and gives its handle as soon as it is on its way.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::ProcessErrorKind::Encode) and [`TooLarge`](crate::ProcessErrorKind::TooLarge) for the argument;
    /// [`Start`](crate::ProcessErrorKind::Start) with the [`BuildError`] that says why:
    /// [`NotInitialized`](BuildError::NotInitialized), [`Daemon`](BuildError::Daemon), [`Nested`](BuildError::Nested),
    /// [`InvalidOption`](BuildError::InvalidOption), [`Spawn`](BuildError::Spawn). What goes wrong once it is on its way,
    /// a limit that it cannot keep itself to among it, is the error of [`join`](Process::join).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, the process may have been started, and is detached then.
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
        self.spawn_row(encode::single(row, &argument, self.max_frame_size))
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
        self.spawn_row(encode::single(row, &argument, self.max_frame_size))
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

    fn spawn_row<R>(
        &self,
        message: Result<Outgoing, EncodeError>,
    ) -> impl Future<Output = Result<Process<R>, ProcessError>> + Send + use<R> {
        let name = self.name.clone().unwrap_or_else(next_name);
        let starting = self.prepare(&name, message);
        async move {
            let failed = |cause| ProcessError::new(&name, None, None, cause);
            let life = start(starting.map_err(failed)?).await;
            life.map(Process::new)
                .map_err(|error| failed(Cause::Start(error)))
        }
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
        self.limits.check(1)
    }

    /// Makes what the process is started with.
    fn prepare(&self, name: &str, message: Result<Outgoing, EncodeError>) -> Result<Starting, Cause> {
        self.check(name)?;
        let message = message?;
        let (limits, memory) = self.limits.prepare(0)?;
        let current = current();
        let (stdout, stdout_fd, stdout_pipe) = match &self.stdout.sink {
            Sink::Null => (Stdout::Null, None, None),
            Sink::Inherit => (Stdout::Attached, Some(own(io::stdout())?), None),
            _ => {
                let (pipe, fd) = pipe().map_err(refused("make a pipe for a process's standard output"))?;
                (Stdout::Attached, Some(fd), Some(pipe))
            }
        };
        let (stderr, stderr_pipe) = match &self.stderr.sink {
            Sink::Inherit => (own(io::stderr())?, None),
            _ => {
                let (pipe, fd) = pipe().map_err(refused("make a pipe for a process's standard error"))?;
                (fd, Some(pipe))
            }
        };
        let role = Role::Process {
            name: name.to_owned(),
            is_daemon: self.is_daemon,
            parent: Parent {
                pid: current.pid,
                name: current.name,
            },
            piped: [stdout_pipe.is_some(), stderr_pipe.is_some()],
        };
        let welcome = Welcome {
            role,
            depth: worker::depth() + 1,
            max_frame_size: self.max_frame_size,
            tasks_per_worker: 1,
            initializer: None,
            measures_memory: false,
            stdout,
            limits,
            words: Words::default(),
            // What there is to do comes with the welcome.
            spin: Duration::ZERO,
        };
        let order = Order {
            program: self.program.clone(),
            label: name.to_owned(),
            welcome,
            stderr,
            fds: stdout_fd.into_iter().collect(),
            message: Some(message),
        };
        let ears = match stdout_pipe.is_some() || stderr_pipe.is_some() {
            true => Some(ears().map_err(refused("start the output thread"))?),
            false => None,
        };
        let pipes = [
            (OutputStream::Stdout, self.stdout.sink.clone(), stdout_pipe),
            (OutputStream::Stderr, self.stderr.sink.clone(), stderr_pipe),
        ];
        Ok(Starting {
            name: name.to_owned(),
            is_daemon: self.is_daemon,
            order,
            ears,
            pipes: pipes
                .into_iter()
                .filter_map(|(stream, sink, pipe)| Some((stream, sink, pipe?)))
                .collect(),
            care: Care {
                program: self.program.clone(),
                start_timeout: self.start_timeout,
                max_frame_size: self.max_frame_size,
                memory,
                heard: None,
            },
        })
    }
}

/// A process that is about to be started.
struct Starting {
    name: String,
    is_daemon: bool,
    order: Order,
    ears: Option<&'static Arc<Ears>>,
    pipes: Vec<(OutputStream, Sink, Pipe)>,
    care: Care,
}

/// Starts a process, which is looked after from then on whoever waits for this.
async fn start(starting: Starting) -> Result<Arc<Life>, BuildError> {
    static CREW: LazyLock<Arc<Crew>> = LazyLock::new(Arc::default);
    let own = runtime::handle().map_err(refused("start the library's thread"))?;
    let (started, is_started) = oneshot::channel();
    own.spawn(async move {
        let Starting {
            name,
            is_daemon,
            order,
            ears,
            pipes,
            mut care,
        } = starting;
        let launched = match launch(order, &CREW).await {
            Ok(launched) => launched,
            Err(error) => {
                started.send(Err(error)).ok();
                return;
            }
        };
        let sentinel = match sentinel(&launched.child) {
            Ok(sentinel) => sentinel,
            Err(error) => {
                launched.child.killer().kill();
                launched.child.wait().await;
                started.send(Err(refused("make an event descriptor")(error))).ok();
                return;
            }
        };
        let life = Arc::new(Life::new(name, is_daemon, &launched.child, sentinel));
        children::add(&life);
        if let Some(ears) = ears {
            // All its pipes under one number, which no other process has.
            static SPEAKERS: AtomicU64 = AtomicU64::new(0);
            let number = SPEAKERS.fetch_add(1, Ordering::Relaxed);
            let speaker = listen::Process {
                number,
                worker: 0,
                pid: life.pid,
                ledger: Arc::clone(&launched.heard),
                token: None,
            };
            for (stream, sink, pipe) in pipes {
                ears.listen(&speaker, stream, sink, pipe);
            }
            care.heard = Some((ears, number));
        }
        started.send(Ok(Arc::clone(&life))).ok();
        live(life, launched, care).await;
    });
    is_started.await.unwrap_or(Err(BuildError::Closed))
}

/// What is readable when the process has ended.
fn sentinel(child: &Child) -> io::Result<Arc<OwnedFd>> {
    match child.killer().pidfd() {
        Some(pidfd) => Ok(Arc::clone(pidfd)),
        // It has ended already, and somebody else has buried it.
        None => Ok(Arc::new(eventfd(1, EventfdFlags::CLOEXEC)?)),
    }
}

/// A descriptor of this process's own, for another one.
fn own(stream: impl AsFd) -> Result<OwnedFd, BuildError> {
    stream
        .as_fd()
        .try_clone_to_owned()
        .map_err(refused("duplicate a standard stream"))
}

/// What hears all processes whose output goes through this one.
fn ears() -> io::Result<&'static Arc<Ears>> {
    static EARS: OnceLock<Arc<Ears>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    // Two at a time must not start two.
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ears) = EARS.get() {
        return Ok(ears);
    }
    let (ears, reader) = Ears::new(OUTPUT_BUFFER)?;
    reader.start()?;
    Ok(EARS.get_or_init(|| ears))
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
