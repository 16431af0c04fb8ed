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
use super::{
    Identity, adopted, cancel, limits, marks, memory, panic, serve, set_identity, stdio, template, watch,
};
use crate::process::children;
use crate::process::descendants::{Stat, Sweep};
use crate::process::large_pages;
use crate::shared::ledger::Ledger;
use crate::shared::{c_stdout, dispositions};
use crate::task::entry::Run;
use crate::task::table;
use crate::wire::buffers;
use crate::wire::codec::{self, message_bytes};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{
    Failure, Hello, InitFailure, MAGIC, PROTOCOL, Ready, Role, Stdout, WELCOME_FDS, Welcome, kind,
    message_limit,
};
use crate::wire::transport::{Outbox, Received, Receiver, is_disconnect, send};

/// How a worker ends that could not go on; the parent has been told why, or is gone.
const EXIT_FAILED: i32 = 71;

/// How a process ends whose function panicked: as a program whose `main` does.
const EXIT_PANICKED: i32 = 101;

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
    large_pages::insist();
    dispositions::reset_for_worker();
    dispositions::outlive_parent();
    let mut begun = stdio::take_connection();
    let status = loop {
        // Whatever is started here stays below this process, however often it forks, so that it can be found and ended.
        set_child_subreaper(Some(getpid())).ok();
        // A worker that is stopped does not see its parent's end: that itself must wake it. The signal comes at the end
        // of threads of the parent too, and means nothing to a worker that runs.
        set_parent_process_death_signal(Some(Signal::CONT)).ok();
        match begun.and_then(|connection| work(connection, depth)) {
            Ok(End::Exit(status)) => break status,
            Ok(End::Copied(connection)) => begun = Ok(connection),
            Err(error) => {
                // Nobody is to blame for the parent's end.
                if !is_disconnect(&error) {
                    eprintln!("procession: a worker cannot go on: {error}");
                }
                break EXIT_FAILED;
            }
        }
    };
    if matches!(super::role(), Some(Role::Process { .. })) {
        // Processes of the library's are waited for, as at the end of any parent.
        children::join_all();
    }
    if is_free() {
        if adopts() {
            // A parent that adopts what this leaves could not tell it from its own children.
            children::end_bound(LONGEST_SWEEP);
            bury_all();
        }
        // What else it started is its own business.
        exit(status);
    }
    // The parent would kill the group, but not what has left it, and it may be the parent's end that ends this worker.
    end_descendants();
    exit(status)
}

/// How [`work`] ends.
#[derive(Debug)]
enum End {
    /// The process is to exit, with this code.
    Exit(i32),
    /// This is a copy of the template, with a connection and a life of its own.
    Copied(OwnedFd),
}

/// Whether this is a process of its own, which neither ends with its parent nor takes along what it started.
pub(super) fn is_free() -> bool {
    matches!(super::role(), Some(Role::Process { is_bound: false, .. }))
}

/// Whether what is orphaned below this process becomes its child.
fn adopts() -> bool {
    matches!(super::role(), Some(Role::Process { adopts: true, .. }))
}

fn work(connection: OwnedFd, depth: u32) -> io::Result<End> {
    let mut receiver = Receiver::new(u64::MAX);
    receiver.need_fds(true);
    let greeted = match send_hello(&connection) {
        // The parent has ended. What it had said before that is there, and may say that this process goes on.
        Err(error) if is_disconnect(&error) => 0,
        greeted => greeted?,
    };
    let Some(message) = receive(&connection, &mut receiver)? else {
        return Ok(End::Exit(0));
    };
    let Message {
        kind, body, mut fds, ..
    } = message;
    let mut welcome: Welcome = codec::decode(&body).map_err(invalid)?;
    // It holds the initializer's argument, which may be large.
    drop(body);
    if kind != kind::WELCOME || fds.len() < WELCOME_FDS {
        return Err(invalid("the parent did not say welcome"));
    }
    let mut others = fds.drain(WELCOME_FDS..);
    #[cfg(feature = "tracing")]
    let events = welcome.words.events.and_then(|_| others.next());
    let stdout = match welcome.stdout {
        Stdout::Attached => others.next_back(),
        Stdout::Null => None,
    };
    let pipes: Vec<OwnedFd> = others.collect();
    let (Some(memory), Some(control)) = (fds.pop(), fds.pop()) else {
        return Err(invalid("the welcome lacks its descriptors"));
    };
    let ledger = Ledger::open(memory.as_fd(), welcome.tasks_per_worker)?;
    drop(memory);
    stdio::redirect_stdout(stdout)?;
    c_stdout::by_lines();
    marks::set_up(&welcome.words)?;
    set_name(&welcome.role);
    panic::install_hook();

    let patience = match &welcome.role {
        Role::Template { patience, .. } => Some(*patience),
        _ => None,
    };
    let is_process = matches!(welcome.role, Role::Process { .. });
    let identity = Identity {
        role: welcome.role,
        depth: depth.max(welcome.depth),
    };
    set_identity(identity);
    if let Some(patience) = patience {
        let copied = template::serve(
            &connection,
            &mut receiver,
            &ledger,
            control,
            welcome.initializer.take(),
            patience,
        )?;
        return Ok(copied.map_or(End::Exit(0), End::Copied));
    }
    if is_free() {
        if !adopts() {
            set_child_subreaper(None).ok();
        }
        // The parent's end is no reason to go on for one that somebody has stopped.
        set_parent_process_death_signal(None).ok();
    }
    receiver.set_limit(message_limit(welcome.max_frame_size));
    // Another worker has room for what this one's tasks have left none for; a process has no other.
    receiver.need_fds(!is_process);
    let inbox = Arc::new(Inbox::new(connection.try_clone()?, receiver, welcome.spin)?);
    let replies = Arc::new(Replies::new(connection, ledger, greeted, is_free())?);
    cancel::set_up(Arc::clone(&replies), welcome.tasks_per_worker);
    let aborts = Arc::new(serve::Aborts::default());

    let initializer = welcome.initializer.take();
    let prepare = || -> Result<Ready, InitFailure> {
        let (inbox, replies) = (Arc::clone(&inbox), Arc::clone(&replies));
        // One that goes on without its parent, keeps no pipe open for it and adopts nothing has nothing to watch.
        if !is_free() || adopts() || !pipes.is_empty() {
            watch::start(inbox, Arc::clone(&replies), control, Arc::clone(&aborts), pipes)
                .map_err(|error| InitFailure::Setup(error.to_string()))?;
        }
        let ready = limits::apply(&welcome.limits, &replies)?;
        if let Some((row, argument)) = initializer {
            let _running = memory::running();
            adopted::tasks_run(true);
            initialize(row, &argument)?;
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
            replies.send(&Outgoing::new(kind::INIT_FAILED, bytes, Vec::new()), 0)?;
            return Ok(End::Exit(match failure {
                _ if !is_process => 0,
                InitFailure::Task(Failure::Panicked(_)) => EXIT_PANICKED,
                _ => EXIT_FAILED,
            }));
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
    let failed = serve::serve(&inbox, &replies, &aborts, limits, lanes, footprint)?;
    replies.send(&Outgoing::new(kind::BYE, Outgoing::buffer(0), Vec::new()), 0)?;
    // A worker ends as it should, whatever became of its last task.
    let failed = failed.filter(|_| is_process);
    Ok(End::Exit(match failed.map(|reply| codec::decode(reply.body())) {
        None => 0,
        Some(Ok(Failure::Panicked(_))) => EXIT_PANICKED,
        Some(_) => EXIT_FAILED,
    }))
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
    let hello = Outgoing::new(kind::HELLO, bytes, Vec::new());
    let length = hello.wire_length();
    // In one piece, so that the parent is woken once.
    let mut said = MAGIC.to_vec();
    hello.append_single(0, &mut said);
    let mut rest = &said[..];
    while !rest.is_empty() {
        let sent = send(connection.as_fd(), &[IoSlice::new(rest)], &[], SendFlags::empty())?;
        rest = &rest[sent..];
    }
    Ok(length)
}

/// Sends a message that nothing waits behind.
pub(super) fn say(connection: &OwnedFd, message: Outgoing) -> io::Result<()> {
    let mut outbox = Outbox::default();
    outbox.push(message, 0);
    outbox.write(connection.as_fd(), SendFlags::empty())
}

/// The next message; `None` when the parent is gone.
pub(super) fn receive(connection: &OwnedFd, receiver: &mut Receiver) -> io::Result<Option<Message>> {
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
pub(super) fn initialize(row: u32, argument: &[u8]) -> Result<(), InitFailure> {
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
fn set_name(role: &Role) {
    let name = match role {
        Role::Process { name, .. } | Role::Template { name, .. } => shortened(name, ""),
        Role::Worker { worker, .. } => {
            let shown = std::env::args_os().next().unwrap_or_default();
            let shown = shown.to_string_lossy();
            // The parent put the worker's own name behind the program's.
            let (program, _) = shown.split_once(": ").unwrap_or((&shown, ""));
            let program = program.rsplit('/').next().unwrap_or_default();
            shortened(program, &format!("/{worker}"))
        }
    };
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name is a help for people and nothing depends on it.
        rustix::thread::set_name(&name).ok();
    }
}

/// The kernel keeps 15 bytes of a name.
fn shortened(name: &str, end: &str) -> String {
    let mut short = String::new();
    for character in name.chars().filter(|&c| c != '\0') {
        if short.len() + character.len_utf8() + end.len() > 15 {
            break;
        }
        short.push(character);
    }
    short + end
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

pub(super) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
