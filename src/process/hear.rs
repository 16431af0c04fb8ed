//! Reading what a process says, in turns.

use std::io;
use std::os::fd::AsFd;

use rustix::net::RecvFlags;
use tokio::task::yield_now;

use crate::shared::watched::Watched;
use crate::wire::transport::{Received, Receiver, is_disconnect};

/// Bytes that are read from one process before others get their turn: a socket that is filled as fast as it is emptied
/// would keep the library's thread from everything else.
const TURN: u64 = 256 << 10;

/// Waits for more from a process; `false` when it has hung up.
///
/// Cancel safe: what has come is in `receiver`.
pub(super) async fn more(connection: &Watched, receiver: &mut Receiver) -> io::Result<bool> {
    let before = receiver.total();
    loop {
        match receiver.receive(connection.get_ref().as_fd(), RecvFlags::DONTWAIT) {
            Ok(Received::Bytes { .. }) => {
                if receiver.total() / TURN != before / TURN {
                    yield_now().await;
                }
                return Ok(true);
            }
            Ok(Received::End) => return Ok(false),
            // Cleared before the next look, so that what comes in between is not missed.
            Ok(Received::WouldBlock) => connection.readable().await?.clear_ready(),
            Err(error) if is_disconnect(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
