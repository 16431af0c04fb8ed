//! From the first instruction of a worker to its last: handshake, set-up, serving, exit.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getpid, kill_current_process_group, set_child_subreaper,
    set_parent_process_death_signal, setpriority_process, setrlimit, wait,
};
use rustix::thread::gettid;

use super::execute::Limits;
use super::footprint::Footprint;
#[cfg(feature = "tracing")]
use super::forward;
use super::inbox::Inbox;
use super::reply::Replies;
use super::{IDENTITY, Identity, adopted, cancel, limits, marks, memory, panic, serve, stdio, watch};
use crate::process::descendants::{Stat, Sweep};
use crate::shared::ledger::Ledger;
use crate::shared::{c_stdout, dispositions};
use crate::task::entry::Run;
use crate::task::table;
use crate::wire::buffers;
use crate::wire::codec::{self, message_bytes};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{
    Failure, Hello, InitFailure, MAGIC, PROTOCOL, Ready, WELCOME_FDS, Welcome, kind, message_limit,
};
use crate::wire::transport::{Outbox, Received, Receiver, send};

/// How a worker ends that could not go on; the parent has been told why, or is gone.
const EXIT_FAILED: i32 = 71;

/// What a worker that ends spends at most on ending what it started.
const LONGEST_SWEEP: Duration = Duration::from_secs(1);

/// The value of `nice` that gives way to all others.
const LOWEST_PRIORITY: i32 = 19;

/// What is kept of an initializer's error, in bytes.
const LONGEST_ERROR: usize = 256 * 1024;

/// Lives the life of a worker.
#[expect(
    clippy::exit,
    reason = "a worker ends here and must not return into the program's main"
)]
pub(crate) fn run(depth: u32) -> ! {
    // Whatever is started here stays below this process, however often it forks, so that it can be found and ended.
    set_child_subreaper(Some(getpid())).ok();
    let status = match work(depth) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("procession: a worker cannot go on: {error}");
            EXIT_FAILED
        }
    };
    // The parent would kill the group, but not what has left it, and it may be the parent's end that ends this worker.
    end_descendants();
    exit(status)
}

fn work(depth: u32) -> io::Result<()> {
    dispositions::reset_for_worker();
    dispositions::outlive_parent();
    // A worker that is stopped does not see its parent's end: that itself must wake it. The signal comes at the end of
    // threads of the parent too, and means nothing to a worker that runs.
    set_parent_process_death_signal(Some(Signal::CONT)).ok();
    let connection = stdio::take_connection()?;
    let mut receiver = Receiver::new(u64::MAX);
    let greeted = send_hello(&connection)?;
    let Some(message) = receive(&connection, &mut receiver)? else {
        return Ok(());
    };
    let mut fds = message.fds;
    let welcome: Welcome = codec::decode(&message.body).map_err(invalid)?;
    if message.kind != kind::WELCOME || fds.len() < WELCOME_FDS {
        return Err(invalid("the parent did not say welcome"));
    }
    let mut others = fds.drain(WELCOME_FDS..);
    #[cfg(feature = "tracing")]
    let events = welcome.words.events.and_then(|_| others.next());
    let stdout = others.next_back();
    drop(others);
    let (Some(memory), Some(control)) = (fds.pop(), fds.pop()) else {
        return Err(invalid("the welcome lacks its descriptors"));
    };
    let ledger = Ledger::open(memory.as_fd(), welcome.tasks_per_worker)?;
    drop(memory);
    stdio::redirect_stdout(welcome.stdout, stdout)?;
    c_stdout::by_lines();
    marks::set_up(&welcome.words)?;
    set_name(welcome.worker);
    panic::install_hook();

    let identity = Identity {
        pool: welcome.pool,
        worker: welcome.worker,
        depth: depth.max(welcome.depth),
    };
    let set = IDENTITY.set(identity);
    debug_assert!(set.is_ok(), "a worker is set up once");
    receiver.set_limit(message_limit(welcome.max_frame_size));
    let inbox = Arc::new(Inbox::new(connection.try_clone()?, receiver, welcome.spin));
    let replies = Arc::new(Replies::new(connection, ledger, greeted)?);
    cancel::set_up(Arc::clone(&replies), welcome.tasks_per_worker);
    let aborts = Arc::new(serve::Aborts::default());
    watch::start(
        Arc::clone(&inbox),
        Arc::clone(&replies),
        control,
        Arc::clone(&aborts),
    )?;

    let prepare = || -> Result<Ready, InitFailure> {
        let ready = limits::apply(&welcome.limits, &replies)?;
        if let Some((row, argument)) = &welcome.initializer {
            let _running = memory::running();
            adopted::tasks_run(true);
            initialize(*row, argument)?;
        }
        Ok(ready)
    };
    #[cfg(feature = "tracing")]
    let prepared = forward::set_up(events, welcome.words.events, &replies, prepare);
    #[cfg(not(feature = "tracing"))]
    let prepared = prepare();
    let mut bytes = Outgoing::buffer(64);
    match prepared {
        Ok(ready) => {
            message_bytes(&ready, &mut bytes);
            replies.send(&Outgoing::new(kind::READY, bytes, Vec::new()), 0)?;
        }
        Err(failure) => {
            message_bytes(&failure, &mut bytes);
            return replies.send(&Outgoing::new(kind::INIT_FAILED, bytes, Vec::new()), 0);
        }
    }
    let limits = Limits {
        max_frame_size: welcome.max_frame_size,
    };
    let footprint = Footprint::new(welcome.measures_memory);
    let lanes = welcome.tasks_per_worker;
    // Memory that is counted is for tasks alone. Of several tasks at a time nobody sees when there is nothing to do.
    if lanes == 1 && welcome.limits.memory.is_none() && !welcome.measures_memory {
        // The loop that serves tasks looks after them.
        buffers::keep_more(|| ());
    }
    serve::serve(&inbox, &replies, &aborts, limits, lanes, footprint)?;
    replies.send(&Outgoing::new(kind::BYE, Outgoing::buffer(0), Vec::new()), 0)
}

/// Says hello, and gives the length of that in the stream, which begins behind the magic.
fn send_hello(connection: &OwnedFd) -> io::Result<u64> {
    let hello = Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        fingerprint: table::fingerprint(),
        pid: std::process::id(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let mut bytes = Outgoing::buffer(128);
    message_bytes(&hello, &mut bytes);
    let mut magic = &MAGIC[..];
    while !magic.is_empty() {
        let sent = send(
            connection.as_fd(),
            &[IoSlice::new(magic)],
            &[],
            SendFlags::empty(),
        )?;
        magic = &magic[sent..];
    }
    let hello = Outgoing::new(kind::HELLO, bytes, Vec::new());
    let length = hello.wire_length();
    let mut outbox = Outbox::default();
    outbox.push(hello, 0);
    outbox.write(connection.as_fd(), SendFlags::empty())?;
    Ok(length)
}

/// The next message; `None` when the parent is gone.
fn receive(connection: &OwnedFd, receiver: &mut Receiver) -> io::Result<Option<Message>> {
    loop {
        if let Some(message) = receiver.next().map_err(|error| invalid(error.to_string()))? {
            return Ok(Some(message));
        }
        if receiver.receive(connection.as_fd(), RecvFlags::empty())? == Received::End {
            return Ok(None);
        }
    }
}

/// Runs the pool's initializer.
fn initialize(row: u32, argument: &[u8]) -> Result<(), InitFailure> {
    let Some(Run::Blocking { one: run, .. }) = table::entry(row).map(|entry| entry.run) else {
        return Err(InitFailure::Task(Failure::UnknownTask(row)));
    };
    let mut result = Vec::new();
    let outcome: Result<(), String> = match panic::catch(|| run(argument.into(), &mut result, u64::MAX)) {
        Ok(Ok(_)) => codec::decode(&result).map_err(InitFailure::Setup)?,
        Ok(Err(failure)) => return Err(InitFailure::Task(failure)),
        Err(panic) => return Err(InitFailure::Task(Failure::Panicked(panic))),
    };
    outcome.map_err(|mut message| {
        codec::truncate(&mut message, LONGEST_ERROR);
        InitFailure::Failed(message)
    })
}

/// Gives the process a name of its own: executed through `/proc/self/exe`, it would be called `exe`.
fn set_name(worker: usize) {
    let shown = std::env::args_os().next().unwrap_or_default();
    let shown = shown.to_string_lossy();
    // The parent put the worker's own name behind the program's.
    let (program, _) = shown.split_once(": ").unwrap_or((&shown, ""));
    let program = program.rsplit('/').next().unwrap_or_default();
    let number = format!("/{worker}");
    // The kernel keeps 15 bytes.
    let mut name = String::new();
    for character in program.chars().filter(|&c| c != '\0') {
        if name.len() + character.len_utf8() + number.len() > 15 {
            break;
        }
        name.push(character);
    }
    name.push_str(&number);
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name is a help for people and nothing depends on it.
        rustix::thread::set_name(&name).ok();
    }
}

/// Ends this worker and everything that it started, for its parent is gone.
#[expect(clippy::exit, reason = "nobody is left to return to")]
pub(super) fn die() -> ! {
    limits::kill_leaf();
    // Nothing here may start anything any more. Where that does not hold, for root say, it is a race that is won.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Nproc, none).ok();
    yield_to_this_thread();
    end_descendants();
    // Only as the leader of a group of its own: a launcher may have put the worker into somebody else's.
    if Stat::of(getpid()).is_some_and(|own| own.group == getpid().as_raw_pid()) {
        kill_current_process_group(Signal::KILL).ok();
    }
    exit(0)
}

/// Lets tasks that are about to end have what is left of the processor, on a machine where many others end as well.
fn yield_to_this_thread() {
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
        let number = thread
            .ok()
            .and_then(|thread| thread.file_name().to_str()?.parse().ok());
        let number = number
            .and_then(Pid::from_raw)
            .filter(|&number| number != gettid());
        if let Some(number) = number {
            setpriority_process(Some(number), LOWEST_PRIORITY).ok();
        }
    }
}

/// Ends and buries what this worker has started.
///
/// Nearly always there is nothing, and no look into `/proc` is needed to know it. Such a look would cost the parent,
/// too: what the kernel has there of a process with several threads takes it milliseconds to clear away, now and then.
fn end_descendants() {
    if bury_all() {
        Sweep::new(getpid(), None).run(LONGEST_SWEEP);
        bury_all();
    }
}

/// Waits for children that have ended: a parent that adopts them would otherwise have to. Whether there are others.
fn bury_all() -> bool {
    let mut options = WaitOptions::NOHANG;
    // `__WALL`: those too whose end sends no SIGCHLD.
    options |= WaitOptions::from_bits_retain(0x4000_0000);
    loop {
        match wait(options) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(Errno::CHILD) => return false,
            _ => return true,
        }
    }
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
