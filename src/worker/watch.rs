//! The watcher: a thread that sees what the busy main thread cannot, the parent's end and what it wants at once.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvFlags, recv};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use super::adopted::Undertaker;
use super::cancel;
use super::enter::{die, is_free};
use super::inbox::Inbox;
use super::reply::Replies;
use super::serve::{Aborts, give_back};
use super::stdio;
use crate::wire::codec;
use crate::wire::message::Control;
use crate::wire::transport::{datagram_pair, is_disconnect};

const STACK: usize = 256 * 1024;
/// The pause between two looks where nothing can be waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts the watcher. `pipes` are the reading ends of those that this process prints to through its parent.
pub(super) fn start(
    inbox: Arc<Inbox>,
    replies: Arc<Replies>,
    control: OwnedFd,
    aborts: Arc<Aborts>,
    pipes: Vec<OwnedFd>,
) -> io::Result<()> {
    // Here, so that it is there before the first task.
    let timer = Undertaker::timer()?;
    thread::Builder::new()
        .name("procession-watch".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            match watch(&inbox, &replies, &control, &aborts, timer) {
                Err(error) if !is_disconnect(&error) => {
                    eprintln!("procession: a worker cannot watch its parent: {error}");
                    if is_free() {
                        outlast(replies.connection());
                    }
                }
                _ => {}
            }
            if is_free() {
                // Without a descriptor to spare the outputs stay what they are, and are read here.
                stdio::let_go(&pipes).ok();
                stdio::drain(pipes).ok();
                return;
            }
            // Whatever ends the watcher, a worker that nobody watches must not go on.
            die()
        })
        .map_err(|error| {
            io::Error::other(format!(
                "cannot start the thread that watches the parent: {error}"
            ))
        })?;
    Ok(())
}

/// Watches the parent for as long as this thread is busy.
#[derive(Debug)]
pub(super) struct WhileBusy {
    /// The watcher returns when this is closed.
    stop: OwnedFd,
    watcher: thread::JoinHandle<()>,
}

/// Starts a watcher that ends this process with all that it started when the other end of `control` is closed.
pub(super) fn while_busy(control: OwnedFd) -> io::Result<WhileBusy> {
    let (stop, stopped) = datagram_pair()?;
    let watcher = thread::Builder::new()
        .name("procession-watch".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            loop {
                let mut fds = [
                    PollFd::new(&control, PollFlags::RDHUP),
                    PollFd::new(&stopped, PollFlags::RDHUP),
                ];
                // That it cannot watch is as good as the parent's end: nobody else does.
                if !matches!(poll(&mut fds, None), Ok(_) | Err(Errno::INTR)) || !fds[0].revents().is_empty() {
                    die();
                }
                if !fds[1].revents().is_empty() {
                    return;
                }
            }
        })?;
    Ok(WhileBusy { stop, watcher })
}

impl WhileBusy {
    /// Ends the watcher, and waits for its end.
    pub(super) fn end(self) {
        drop(self.stop);
        // It does not panic.
        self.watcher.join().ok();
    }
}

/// The process that made the connection, if that is what started this one. The connection alone would not tell of its
/// end while another that it forked holds a copy.
fn parent(connection: BorrowedFd<'_>) -> Option<OwnedFd> {
    let maker = socket_peercred(connection).ok()?.pid;
    let pidfd = pidfd_open(maker, PidfdFlags::empty()).ok()?;
    // If it ended before it was opened, another is the parent by now.
    (getppid() == Some(maker)).then_some(pidfd)
}

/// Waits until the parent is gone, and does nothing else.
fn outlast(connection: BorrowedFd<'_>) {
    let parent = parent(connection);
    let mut fds = vec![PollFd::from_borrowed_fd(connection, PollFlags::RDHUP)];
    fds.extend(parent.iter().map(|parent| PollFd::new(parent, PollFlags::IN)));
    while let Ok(0) | Err(Errno::INTR) = poll(&mut fds, None) {}
}

/// Returns when the parent is gone.
fn watch(
    inbox: &Inbox,
    replies: &Replies,
    control: &OwnedFd,
    aborts: &Aborts,
    timer: BorrowedFd<'_>,
) -> io::Result<()> {
    let connection = replies.connection();
    let parent = parent(connection);
    let first_parent = getppid();
    let mut undertaker = Undertaker::default();
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(connection, PollFlags::RDHUP),
            PollFd::new(control, PollFlags::IN),
            PollFd::from_borrowed_fd(timer, PollFlags::IN),
            PollFd::new(replies.late(), PollFlags::IN),
        ];
        fds.extend(parent.iter().map(|parent| PollFd::new(parent, PollFlags::IN)));
        let is_blind = match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => false,
            // This process may have fewer descriptors by now than are watched here.
            Err(Errno::INVAL) => true,
            Err(error) => return Err(error.into()),
        };
        if is_blind {
            thread::park_timeout(PAUSE);
            if getppid() != first_parent {
                return Ok(());
            }
        }
        if !fds[2].revents().is_empty() {
            undertaker.wake();
        }
        if is_blind || !fds[3].revents().is_empty() {
            match replies.flush_late() {
                Ok(()) => {}
                Err(error) if is_disconnect(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if !fds[0].revents().is_empty() || fds.get(4).is_some_and(|parent| !parent.revents().is_empty()) {
            return Ok(());
        }
        if !is_blind && fds[1].revents().is_empty() {
            continue;
        }
        let mut buffer = [0; 64];
        let length = match recv(control, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(()),
            Ok((length, _)) => length,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        match codec::decode(&buffer[..length]) {
            Ok(Control::Recall) => give_back(inbox, replies)?,
            Ok(Control::Abort(id)) => {
                // One that comes late may be for an earlier try of the task, which has been allowed since.
                if replies.ledger().is_revoked(id) {
                    aborts.abort(id);
                }
                cancel::wake();
            }
            Err(message) => return Err(io::Error::new(io::ErrorKind::InvalidData, message)),
        }
    }
}
