//! The way back: replies to the parent.
//!
//! Everything small goes through the [`Ledger`], so that it outlives this process, and leaves from there.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::SendFlags;

use crate::shared::ledger::{DATA, Ledger};
use crate::wire::frame::{HEADER, Outgoing, header};
use crate::wire::message::kind;
use crate::wire::transport::{Outbox, send};

/// The connection's writing side, shared by the thread that runs tasks and the watcher.
#[derive(Debug)]
pub(super) struct Replies {
    connection: OwnedFd,
    ledger: Ledger,
    state: Mutex<State>,
}

/// Bytes of the ledger's data that are in use, and where the frame of a chunk's results begins that still grows.
#[derive(Debug, Default)]
struct State {
    used: usize,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: u64,
    position: usize,
}

impl Replies {
    pub(super) fn new(connection: OwnedFd, ledger: Ledger) -> Self {
        Self {
            connection,
            ledger,
            state: Mutex::new(State::default()),
        }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Sends a message. It is safe from this process's end as soon as it is whole in the ledger, which a message
    /// over the ledger's size never is.
    pub(super) fn send(&self, message: Outgoing, id: u64) -> io::Result<()> {
        let mut state = self.lock();
        // While a chunk's frame grows, another message goes behind it; the frame is ended and a new one begun.
        self.close(&mut state);
        let length = HEADER + message.body().len();
        if length > DATA || !message.fds().is_empty() {
            self.flush(&mut state)?;
            let connection = self.connection.as_fd();
            let mut outbox = Outbox::default();
            let sent = message.wire_length();
            outbox.push(message, id);
            outbox.write(connection, SendFlags::empty())?;
            self.ledger.advance(sent);
            return Ok(());
        }
        if length > DATA - state.used {
            self.flush(&mut state)?;
        }
        let mut bytes = Vec::with_capacity(length);
        message.append_single(id, &mut bytes);
        self.ledger.write(state.used, &bytes);
        state.used += length;
        self.ledger.commit(state.used, None);
        self.flush(&mut state)
    }

    /// Adds the record of one finished element to the results of chunk `id`. They leave when the ledger is full or
    /// another message goes out, and are safe from this process's end at once.
    pub(super) fn push_record(&self, id: u64, record: &[u8]) -> io::Result<()> {
        if HEADER + record.len() > DATA {
            let mut bytes = Outgoing::buffer(record.len());
            bytes.extend_from_slice(record);
            return self.send(Outgoing::new(kind::PART, bytes, Vec::new()), id);
        }
        let mut state = self.lock();
        let header_length = if state.open.is_some_and(|open| open.id == id) {
            0
        } else {
            HEADER
        };
        if header_length + record.len() > DATA - state.used {
            self.close(&mut state);
            self.flush(&mut state)?;
        }
        let open = match state.open {
            Some(open) if open.id == id => open,
            _ => {
                self.close(&mut state);
                let open = Open {
                    id,
                    position: state.used,
                };
                self.ledger.write(state.used, &header(0, kind::PART, 0, 0, id));
                state.used += HEADER;
                state.open = Some(open);
                open
            }
        };
        self.ledger.write(state.used, record);
        state.used += record.len();
        self.ledger.commit(state.used, Some(open.position));
        Ok(())
    }

    /// Ends the frame that grows, if there is one.
    fn close(&self, state: &mut State) {
        if let Some(open) = state.open.take() {
            let length = state.used - open.position - HEADER;
            self.ledger
                .write(open.position, &header(length, kind::PART, 0, 0, open.id));
            self.ledger.commit(state.used, None);
        }
    }

    /// Sends what the ledger holds. No frame may be growing.
    fn flush(&self, state: &mut State) -> io::Result<()> {
        let mut rest = self.ledger.committed(state.used);
        while !rest.is_empty() {
            let sent = send(
                self.connection.as_fd(),
                &[IoSlice::new(rest)],
                &[],
                SendFlags::empty(),
            )?;
            rest = &rest[sent..];
        }
        if state.used > 0 {
            self.ledger.advance(state.used as u64);
            state.used = 0;
        }
        Ok(())
    }

    pub(super) fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
