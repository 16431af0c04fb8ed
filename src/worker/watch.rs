//! The watcher: a thread that sees what the busy main thread cannot, the parent's end and what it wants at once.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::cancel;
use super::enter::die;
use super::inbox::Inbox;
use super::reply::Replies;
use super::serve::{Aborts, give_back};
use crate::wire::codec;
use crate::wire::message::Control;

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
        })?;
    Ok(())
}

/// Returns when the parent is gone.
fn watch(inbox: &Inbox, replies: &Replies, control: &OwnedFd, aborts: &Aborts) -> io::Result<()> {
    loop {
        let connection = replies.connection();
        let mut fds = [
            PollFd::from_borrowed_fd(connection, PollFlags::RDHUP),
            PollFd::new(control, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
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
                aborts.abort(id);
                cancel::wake();
            }
            Err(message) => return Err(io::Error::new(io::ErrorKind::InvalidData, message)),
        }
    }
}
