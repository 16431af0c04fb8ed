//! The watcher: a thread that sees what the busy main thread cannot, the parent's end and what it wants at once.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{RecvFlags, recv};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

use super::adopted::Undertaker;
use super::cancel;
use super::enter::die;
use super::inbox::Inbox;
use super::reply::{LATE, Replies};
use super::serve::{Aborts, give_back};
use crate::wire::codec;
use crate::wire::message::Control;
use crate::wire::transport::is_disconnect;

const STACK: usize = 256 * 1024;

/// Starts the watcher.
pub(super) fn start(
    inbox: Arc<Inbox>,
    replies: Arc<Replies>,
    control: OwnedFd,
    aborts: Arc<Aborts>,
) -> io::Result<()> {
    thread::Builder::new()
        .name("procession-watch".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            // Whatever ends the watcher, a worker that nobody watches must not go on.
            if let Err(error) = watch(&inbox, &replies, &control, &aborts) {
                eprintln!("procession: a worker cannot watch its parent: {error}");
            }
            die()
        })
        .map_err(|error| {
            io::Error::other(format!(
                "cannot start the thread that watches the parent: {error}"
            ))
        })?;
    Ok(())
}

/// The process that made the connection, if that is what started this one. The connection alone would not tell of its
/// end while another that it forked holds a copy.
fn parent(connection: BorrowedFd<'_>) -> Option<OwnedFd> {
    let maker = socket_peercred(connection).ok()?.pid;
    let pidfd = pidfd_open(maker, PidfdFlags::empty()).ok()?;
    // If it ended before it was opened, another is the parent by now.
    (getppid() == Some(maker)).then_some(pidfd)
}

/// Returns when the parent is gone.
fn watch(inbox: &Inbox, replies: &Replies, control: &OwnedFd, aborts: &Aborts) -> io::Result<()> {
    let connection = replies.connection();
    let parent = parent(connection);
    let mut undertaker = Undertaker::default();
    let wake = Undertaker::wake()?;
    let after = |pause: Option<Duration>| pause.map(|pause| Instant::now() + pause);
    let mut look_again = after(undertaker.look());
    let mut flush_at = None;
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(connection, PollFlags::RDHUP),
            PollFd::new(control, PollFlags::IN),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::new(replies.waiting(), PollFlags::IN),
        ];
        fds.extend(parent.iter().map(|parent| PollFd::new(parent, PollFlags::IN)));
        let first: Option<Instant> = look_again.into_iter().chain(flush_at).min();
        let left = first.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[2].revents().is_empty() {
            rustix::io::read(wake, &mut [0; 8]).ok();
        }
        if !fds[2].revents().is_empty() || look_again.is_some_and(|at| Instant::now() >= at) {
            look_again = after(undertaker.look());
        }
        if !fds[3].revents().is_empty() {
            rustix::io::read(replies.waiting(), &mut [0; 8]).ok();
            flush_at = after(Some(LATE));
        } else if flush_at.is_some_and(|at| Instant::now() >= at) {
            flush_at = match replies.flush_late() {
                Ok(waits) => after(waits.then_some(LATE)),
                Err(error) if is_disconnect(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        if !fds[0].revents().is_empty() || fds.get(4).is_some_and(|parent| !parent.revents().is_empty()) {
            return Ok(());
        }
        if fds[1].revents().is_empty() {
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
