//! Frames: length-prefixed pieces of messages, with no I/O.
//!
//! A message is a kind, an id, a body and file descriptors. A body of up to [`CHUNK`] bytes travels in one frame; a
//! longer one in several, which may interleave with the frames of other messages, so that a huge body does not
//! hold up a small one.
//!
//! ```text
//! 0        4      5       6      8        16
//! | length | kind | flags | fds  | id      | body …
//! ```
//!
//! All numbers are little endian. `length` counts the body bytes of this frame alone. The first frame of a longer
//! message begins its body with the message's whole length as a `u64`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::OwnedFd;

use super::buffers;

/// Bytes in front of every frame's body.
pub(crate) const HEADER: usize = 16;
/// The most body bytes that one frame carries.
pub(crate) const CHUNK: usize = 256 * 1024;
/// The length of a longer message, in front of the body in its first frame.
const TOTAL: usize = 8;
/// Unfinished messages that a peer may have open at once.
const MAX_PARTIAL: usize = 1024;
/// What is set aside for a longer message before its bytes have come, for one at a time.
const RESERVE: u64 = 2 << 20;
/// Descriptors that may wait for the frame that claims them.
const MAX_WAITING_FDS: usize = 1024;
/// Descriptors that one message may carry: what one `sendmsg` takes on Linux (SCM_MAX_FD).
pub(crate) const MAX_FDS: usize = 253;

/// More frames of this message follow.
const MORE: u8 = 1;
/// The first of several frames: its body begins with the message's length.
const FIRST: u8 = 2;

/// A whole message, as it left the other side.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) id: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Bytes that are no frames. The connection is of no use after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    Oversized { length: u64, limit: u64 },
    Flags(u8),
    Orphan { id: u64 },
    Duplicate { id: u64 },
    Overrun { id: u64 },
    Short { id: u64 },
    TooManyPartial,
    MissingFds { claimed: usize, received: usize },
    TooManyFds,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oversized { length, limit } => {
                write!(f, "a length of {length} bytes, over the limit of {limit}")
            }
            Self::Flags(flags) => write!(f, "unknown frame flags {flags:#04x}"),
            Self::Orphan { id } => write!(f, "a later part of message {id}, which was never begun"),
            Self::Duplicate { id } => write!(f, "message {id} begun twice"),
            Self::Overrun { id } => write!(f, "message {id} is longer than it said"),
            Self::Short { id } => write!(f, "message {id} is shorter than it said"),
            Self::TooManyPartial => write!(f, "more than {MAX_PARTIAL} messages begun and not finished"),
            Self::MissingFds { claimed, received } => {
                write!(
                    f,
                    "a frame that claims {claimed} file descriptors where {received} had come"
                )
            }
            Self::TooManyFds => write!(
                f,
                "more file descriptors than a message may carry, or more than {MAX_WAITING_FDS} that no frame claims"
            ),
        }
    }
}

/// A message on its way out: room for the first header, then the body.
///
/// The body is encoded once, behind the room, so that a small message is sent as it lies in memory.
#[derive(Debug)]
pub(crate) struct Outgoing {
    kind: u8,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.bytes));
    }
}

impl Outgoing {
    /// `bytes` must begin with [`HEADER`] bytes of room.
    pub(crate) fn new(kind: u8, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Self {
        debug_assert!(bytes.len() >= HEADER);
        Self { kind, bytes, fds }
    }

    /// A buffer with room for the header, to encode a body into.
    pub(crate) fn buffer(capacity: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + capacity);
        bytes.resize(HEADER, 0);
        bytes
    }

    pub(crate) fn kind(&self) -> u8 {
        self.kind
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    pub(crate) fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// Bytes that the message takes on the wire, headers included.
    pub(crate) fn wire_length(&self) -> u64 {
        let frames = self.body().len().div_ceil(CHUNK).max(1);
        let total = if self.is_single() { 0 } else { TOTAL };
        (self.body().len() + frames * HEADER + total) as u64
    }

    /// Whether the message is one frame.
    pub(crate) fn is_single(&self) -> bool {
        self.body().len() <= CHUNK
    }

    /// Appends the message's only frame.
    pub(crate) fn append_single(&self, id: u64, out: &mut Vec<u8>) {
        debug_assert!(self.is_single());
        out.extend_from_slice(&header(self.body().len(), self.kind, 0, self.fds.len(), id));
        out.extend_from_slice(self.body());
    }

    /// The header of the frame whose body begins at `offset`, and how many body bytes belong to it.
    pub(crate) fn frame_at(&self, id: u64, offset: usize) -> (Prefix, usize) {
        let total = self.body().len();
        let length = (total - offset).min(CHUNK);
        let more = offset + length < total;
        if offset == 0 && more {
            let mut prefix = Prefix::new(&header(
                length + TOTAL,
                self.kind,
                FIRST | MORE,
                self.fds.len(),
                id,
            ));
            prefix.push(&(total as u64).to_le_bytes());
            (prefix, length)
        } else {
            let flags = if more { MORE } else { 0 };
            let fds = if offset == 0 { self.fds.len() } else { 0 };
            (Prefix::new(&header(length, self.kind, flags, fds, id)), length)
        }
    }
}

/// What stands in front of a frame's share of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefix {
    bytes: [u8; HEADER + TOTAL],
    length: usize,
}

impl Prefix {
    fn new(header: &[u8; HEADER]) -> Self {
        let mut prefix = Self {
            bytes: [0; HEADER + TOTAL],
            length: 0,
        };
        prefix.push(header);
        prefix
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The header of one frame.
pub(crate) fn header(length: usize, kind: u8, flags: u8, fds: usize, id: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0..4].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[4] = kind;
    bytes[5] = flags;
    bytes[6..8].copy_from_slice(&(fds as u16).to_le_bytes());
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    bytes
}

/// A message of which some frames have come.
#[derive(Debug)]
struct Partial {
    /// The length of the whole; `None` until the first of several frames has told it.
    total: Option<u64>,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The frame whose body is being read.
#[derive(Debug)]
struct Current {
    kind: u8,
    id: u64,
    more: bool,
    /// Body bytes of this frame that have not come yet.
    remaining: usize,
    partial: Partial,
}

/// Turns bytes into messages, however they are split.
///
/// Memory follows what has arrived: a frame is at most [`CHUNK`] bytes, and a longer message's body grows with
/// its bytes, whatever length it claims.
#[derive(Debug)]
pub(crate) struct Decoder {
    limit: u64,
    header: [u8; HEADER],
    header_len: usize,
    current: Option<Current>,
    partial: HashMap<(u8, u64), Partial>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Refuses messages whose body is longer than `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            header: [0; HEADER],
            header_len: 0,
            current: None,
            partial: HashMap::new(),
            fds: VecDeque::new(),
        }
    }

    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Takes descriptors that came with the bytes about to be decoded.
    pub(crate) fn push_fds(&mut self, fds: impl IntoIterator<Item = OwnedFd>) -> Result<(), FrameError> {
        self.fds.extend(fds);
        if self.fds.len() > MAX_WAITING_FDS {
            Err(FrameError::TooManyFds)
        } else {
            Ok(())
        }
    }

    /// Consumes bytes from the front of `input` until a message is whole or `input` is empty.
    pub(crate) fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Message>, FrameError> {
        loop {
            if let Some(mut current) = self.current.take() {
                let taken = current.remaining.min(input.len());
                let (bytes, rest) = input.split_at(taken);
                current.partial.body.extend_from_slice(bytes);
                current.remaining -= taken;
                *input = rest;
                if current.remaining > 0 {
                    self.current = Some(current);
                    return Ok(None);
                }
                if let Some(message) = self.end_frame(current)? {
                    return Ok(Some(message));
                }
                continue;
            }
            let taken = (HEADER - self.header_len).min(input.len());
            let (bytes, rest) = input.split_at(taken);
            self.header[self.header_len..self.header_len + taken].copy_from_slice(bytes);
            self.header_len += taken;
            *input = rest;
            if self.header_len < HEADER {
                return Ok(None);
            }
            self.begin_frame()?;
        }
    }

    /// The buffer into which the next bytes can be read directly, and how many belong there at most: the body of
    /// the frame that is being read. `None` where a header comes next.
    pub(crate) fn body_buffer(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let current = self.current.as_mut()?;
        Some((&mut current.partial.body, current.remaining))
    }

    /// Says that `n` bytes were appended to [`Self::body_buffer`].
    pub(crate) fn body_read(&mut self, n: usize) -> Result<Option<Message>, FrameError> {
        let Some(mut current) = self.current.take() else {
            return Ok(None);
        };
        current.remaining = current.remaining.saturating_sub(n);
        if current.remaining > 0 {
            self.current = Some(current);
            return Ok(None);
        }
        self.end_frame(current)
    }

    fn begin_frame(&mut self) -> Result<(), FrameError> {
        let h = &self.header;
        let length = u32::from_le_bytes([h[0], h[1], h[2], h[3]]) as usize;
        let (kind, flags) = (h[4], h[5]);
        let claimed = usize::from(u16::from_le_bytes([h[6], h[7]]));
        let id = u64::from_le_bytes([h[8], h[9], h[10], h[11], h[12], h[13], h[14], h[15]]);
        let first = flags & FIRST != 0;
        let more = flags & MORE != 0;
        if flags & !(FIRST | MORE) != 0 || (first && !more) {
            return Err(FrameError::Flags(flags));
        }
        let longest = CHUNK + if first { TOTAL } else { 0 };
        if length > longest {
            return Err(FrameError::Oversized {
                length: length as u64,
                limit: longest as u64,
            });
        }
        if first && length < TOTAL {
            return Err(FrameError::Short { id });
        }
        self.header_len = 0;
        // Nearly always there is none, which is not worth a search.
        let begun = match self.partial.is_empty() {
            true => None,
            false => self.partial.remove(&(kind, id)),
        };
        let mut partial = match begun {
            Some(_) if first => return Err(FrameError::Duplicate { id }),
            Some(partial) => partial,
            None if first => Partial {
                total: None,
                body: buffers::take(length),
                fds: Vec::new(),
            },
            None if more => return Err(FrameError::Orphan { id }),
            None => {
                if length as u64 > self.limit {
                    return Err(FrameError::Oversized {
                        length: length as u64,
                        limit: self.limit,
                    });
                }
                Partial {
                    total: Some(length as u64),
                    body: buffers::take(length),
                    fds: Vec::new(),
                }
            }
        };
        if claimed > 0 {
            if claimed > self.fds.len() {
                return Err(FrameError::MissingFds {
                    claimed,
                    received: self.fds.len(),
                });
            }
            if partial.fds.len() + claimed > MAX_FDS {
                return Err(FrameError::TooManyFds);
            }
            partial.fds.extend(self.fds.drain(..claimed));
        }
        if partial
            .total
            .is_some_and(|total| (partial.body.len() + length) as u64 > total)
        {
            return Err(FrameError::Overrun { id });
        }
        self.current = Some(Current {
            kind,
            id,
            more,
            remaining: length,
            partial,
        });
        Ok(())
    }

    fn end_frame(&mut self, current: Current) -> Result<Option<Message>, FrameError> {
        let Current {
            kind,
            id,
            more,
            mut partial,
            ..
        } = current;
        let total = match partial.total {
            Some(total) => total,
            None => {
                let mut total = [0; TOTAL];
                total.copy_from_slice(&partial.body[..TOTAL]);
                partial.body.drain(..TOTAL);
                let total = u64::from_le_bytes(total);
                if total > self.limit {
                    return Err(FrameError::Oversized {
                        length: total,
                        limit: self.limit,
                    });
                }
                let Some(missing) = total.checked_sub(partial.body.len() as u64) else {
                    return Err(FrameError::Overrun { id });
                };
                // So that a body of a usual size grows once. A longer one grows with what arrives, and so do those
                // that come at the same time, for a claim costs the peer nothing.
                if self.partial.is_empty() {
                    partial.body.reserve_exact(missing.min(RESERVE) as usize);
                }
                *partial.total.insert(total)
            }
        };
        if more {
            if self.partial.len() >= MAX_PARTIAL {
                return Err(FrameError::TooManyPartial);
            }
            self.partial.insert((kind, id), partial);
            return Ok(None);
        }
        if (partial.body.len() as u64) < total {
            return Err(FrameError::Short { id });
        }
        Ok(Some(Message {
            kind,
            id,
            body: partial.body,
            fds: partial.fds,
        }))
    }
}

#[cfg(test)]
mod tests;
