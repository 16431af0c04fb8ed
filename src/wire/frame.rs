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
//! All numbers are little endian. `length` counts what follows in this frame alone. The first frame of a longer
//! message has the message's whole length as a `u64` in front of its share of the body. That share may be a head,
//! which the receiver keeps apart, so that the rest lies in memory of its own.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::body::{Body, HERE};
use super::buffers;
use super::tail::Ending;
use crate::shared::pages;

/// Bytes in front of every frame's body.
pub(crate) const HEADER: usize = 16;
/// The most body bytes that one frame carries.
pub(crate) const CHUNK: usize = 256 * 1024;
/// The length of a longer message, in front of the body in its first frame.
const TOTAL: usize = 8;
/// Unfinished messages that a peer may have open at once.
const MAX_PARTIAL: usize = 1024;
/// What is set aside for a longer message before its bytes have come, for one at a time: addresses, for memory that
/// is not written costs nothing.
const RESERVE: u64 = 32 << 20;
/// What travels as a head at most.
const LONGEST_HEAD: usize = 4 * 1024;
/// What is worth a head in front of it.
pub(super) const SHORTEST_TAIL: usize = 64 * 1024;
/// Descriptors that may wait for the frame that claims them.
const MAX_WAITING_FDS: usize = 1024;
/// Descriptors that one message may carry: what one `sendmsg` takes on Linux (SCM_MAX_FD).
pub(crate) const MAX_FDS: usize = 253;

/// More frames of this message follow.
const MORE: u8 = 1;
/// The first of several frames: the message's length is in front of its body.
const FIRST: u8 = 2;
/// A first frame whose body is the message's head.
const HEAD: u8 = 4;

/// A whole message, as it left the other side.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) id: u64,
    /// What the sender wanted to be kept apart from the rest; most often nothing.
    pub(crate) head: Vec<u8>,
    pub(crate) body: Body,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Message {
    /// Where the message begins: the head if it has one.
    pub(crate) fn start(&self) -> &[u8] {
        if self.head.is_empty() {
            &self.body
        } else {
            &self.head
        }
    }
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
                    "a frame that claims {claimed} file descriptors where {received} had come; is there room for more \
                     (ulimit -n)?"
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
/// The body is encoded once, behind the room, so that a small message is sent as it lies in memory. What a large one
/// ends with may lie where its value had it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    kind: u8,
    bytes: Vec<u8>,
    /// Bytes of the body that are its head.
    head: usize,
    /// The body behind its head, where it lies apart.
    tail: Option<Bytes>,
    fds: Vec<OwnedFd>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.bytes));
        if let Some(tail) = self.tail.take() {
            buffers::give_bytes(tail);
        }
    }
}

impl Outgoing {
    /// `bytes` must begin with [`HEADER`] bytes of room.
    pub(crate) fn new(kind: u8, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Self {
        debug_assert!(bytes.len() >= HEADER);
        Self {
            kind,
            bytes,
            head: 0,
            tail: None,
            fds,
        }
    }

    /// Has the tail of the body kept apart from the rest where it arrives, if that is worth it.
    pub(crate) fn with_ending(mut self, ending: Ending) -> Self {
        let (start, tail) = match ending {
            Ending::Within(start) => (start, None),
            Ending::Apart(tail) => (self.bytes.len(), Some(tail)),
        };
        let head = start - HEADER;
        let length = self.bytes.len() + tail.as_ref().map_or(0, Bytes::len);
        if (1..=LONGEST_HEAD).contains(&head) && length >= start + SHORTEST_TAIL {
            self.head = head;
            self.tail = tail;
        } else if let Some(tail) = tail {
            self.bytes.extend_from_slice(&tail);
        }
        self
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

    /// The length of the body.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - HEADER + self.tail.as_ref().map_or(0, Bytes::len)
    }

    /// The body, but for a tail that lies apart.
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// The bytes of a [frame](Self::frame_at).
    pub(crate) fn part(&self, range: Range<usize>) -> &[u8] {
        match range.start.checked_sub(self.body().len()) {
            None => &self.body()[range],
            Some(start) => self
                .tail
                .as_ref()
                .map_or(&[], |tail| &tail[start..][..range.len()]),
        }
    }

    pub(crate) fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// Bytes that the message takes on the wire, headers included.
    pub(crate) fn wire_length(&self) -> u64 {
        let frames = (self.len() - self.head).div_ceil(CHUNK).max(1) + usize::from(self.head > 0);
        let total = if self.is_single() { 0 } else { TOTAL };
        (self.len() + frames * HEADER + total) as u64
    }

    /// Whether the message is one frame.
    pub(crate) fn is_single(&self) -> bool {
        self.head == 0 && self.len() <= CHUNK
    }

    /// Appends the message's only frame.
    pub(crate) fn append_single(&self, id: u64, out: &mut Vec<u8>) {
        debug_assert!(self.is_single());
        out.extend_from_slice(&header(self.body().len(), self.kind, 0, self.fds.len(), id));
        out.extend_from_slice(self.body());
    }

    /// The header of the frame whose body begins at `offset`, and how many body bytes belong to it.
    pub(crate) fn frame_at(&self, id: u64, offset: usize) -> (Prefix, usize) {
        let total = self.len();
        let is_head = offset < self.head;
        let length = if is_head {
            self.head
        } else {
            (total - offset).min(CHUNK)
        };
        let more = offset + length < total;
        if offset == 0 && more {
            let flags = FIRST | MORE | if is_head { HEAD } else { 0 };
            let mut prefix = Prefix::new(&header(length + TOTAL, self.kind, flags, self.fds.len(), id));
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
    /// The length of the whole.
    total: u64,
    head: Vec<u8>,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Partial {
    fn length(&self) -> u64 {
        (self.head.len() + self.body.len()) as u64
    }
}

/// The frame whose body is being read.
#[derive(Debug)]
struct Current {
    kind: u8,
    id: u64,
    more: bool,
    is_head: bool,
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
    header: [u8; HEADER + TOTAL],
    header_len: usize,
    current: Option<Current>,
    partial: HashMap<(u8, u64), Partial>,
    fds: VecDeque<Waiting>,
    /// What comes without its descriptors is an error.
    needs_fds: bool,
}

/// What waits for the frame that it came with.
#[derive(Debug)]
enum Waiting {
    Fd(OwnedFd),
    /// All that came with a frame, for which there was no room in this process.
    Lost,
}

impl Decoder {
    /// Refuses messages whose body is longer than `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            header: [0; HEADER + TOTAL],
            header_len: 0,
            current: None,
            partial: HashMap::new(),
            fds: VecDeque::new(),
            needs_fds: false,
        }
    }

    /// Whether messages that come without their descriptors are refused. They are not unless this is said.
    pub(crate) fn need_fds(&mut self, needs_fds: bool) {
        self.needs_fds = needs_fds;
    }

    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Takes descriptors that came with the bytes about to be decoded.
    pub(crate) fn push_fds(&mut self, fds: impl IntoIterator<Item = OwnedFd>) -> Result<(), FrameError> {
        self.wait(fds.into_iter().map(Waiting::Fd))
    }

    /// The bytes about to be decoded came with descriptors that this process has no room for. Their message goes without,
    /// unless that [is refused](Self::need_fds).
    pub(crate) fn lose_fds(&mut self) -> Result<(), FrameError> {
        self.wait([Waiting::Lost])
    }

    fn wait(&mut self, waiting: impl IntoIterator<Item = Waiting>) -> Result<(), FrameError> {
        self.fds.extend(waiting);
        if self.fds.len() > MAX_WAITING_FDS {
            Err(FrameError::TooManyFds)
        } else {
            Ok(())
        }
    }

    /// A short message that is one frame and lies whole in front of `input`, as most do.
    #[inline]
    fn decode_short(&self, input: &mut &[u8]) -> Option<Message> {
        let (header, rest) = input.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, kind, 0, 0, 0, id @ ..] = *header else {
            return None;
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let is_short = length <= HERE && length as u64 <= self.limit;
        let (body, rest) = rest.split_at_checked(length).filter(|_| is_short)?;
        let message = Message {
            kind,
            id: u64::from_le_bytes(id),
            head: Vec::new(),
            body: Body::small(body)?,
            fds: Vec::new(),
        };
        *input = rest;
        Some(message)
    }

    /// Consumes bytes from the front of `input` until a message is whole or `input` is empty.
    pub(crate) fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Message>, FrameError> {
        if self.current.is_none()
            && self.header_len == 0
            && self.partial.is_empty()
            && let Some(message) = self.decode_short(input)
        {
            return Ok(Some(message));
        }
        loop {
            if let Some(mut current) = self.current.take() {
                let taken = current.remaining.min(input.len());
                let (bytes, rest) = input.split_at(taken);
                if current.is_head {
                    current.partial.head.extend_from_slice(bytes);
                } else {
                    current.partial.body.extend_from_slice(bytes);
                }
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
            let taken = (self.header_length() - self.header_len).min(input.len());
            let (bytes, rest) = input.split_at(taken);
            self.header[self.header_len..self.header_len + taken].copy_from_slice(bytes);
            self.header_len += taken;
            *input = rest;
            if self.header_len < HEADER {
                return Ok(None);
            }
            if self.header_len == HEADER
                && let Err(error) = self.check_header()
            {
                self.header_len = 0;
                return Err(error);
            }
            // A first frame's header is longer than others.
            if self.header_len < self.header_length() {
                if input.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            self.begin_frame()?;
        }
    }

    /// Bytes in front of the body of the frame that begins, as far as they have told it.
    fn header_length(&self) -> usize {
        if self.header_len >= HEADER && self.header[5] & FIRST != 0 {
            HEADER + TOTAL
        } else {
            HEADER
        }
    }

    /// The buffer into which the next bytes can be read directly, and how many belong there at most: the body of
    /// the frame that is being read. There is room for them. `None` where a header or a head comes next.
    pub(crate) fn body_buffer(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let current = self.current.as_mut().filter(|current| !current.is_head)?;
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

    /// Refuses a header that cannot be one, as soon as it has come.
    fn check_header(&self) -> Result<(), FrameError> {
        let Header {
            length, flags, id, ..
        } = self.header();
        let first = flags & FIRST != 0;
        if flags & !(FIRST | MORE | HEAD) != 0
            || (first && flags & MORE == 0)
            || (!first && flags & HEAD != 0)
        {
            return Err(FrameError::Flags(flags));
        }
        if first && length < TOTAL {
            return Err(FrameError::Short { id });
        }
        let longest = match flags {
            _ if flags & HEAD != 0 => LONGEST_HEAD + TOTAL,
            _ if first => CHUNK + TOTAL,
            _ => CHUNK,
        };
        if length > longest {
            return Err(FrameError::Oversized {
                length: length as u64,
                limit: longest as u64,
            });
        }
        if first && self.partial.contains_key(&(self.header[4], id)) {
            return Err(FrameError::Duplicate { id });
        }
        Ok(())
    }

    fn header(&self) -> Header {
        let h = &self.header;
        Header {
            length: u32::from_le_bytes([h[0], h[1], h[2], h[3]]) as usize,
            kind: h[4],
            flags: h[5],
            fds: usize::from(u16::from_le_bytes([h[6], h[7]])),
            id: u64::from_le_bytes([h[8], h[9], h[10], h[11], h[12], h[13], h[14], h[15]]),
        }
    }

    fn begin_frame(&mut self) -> Result<(), FrameError> {
        let Header {
            length,
            kind,
            flags,
            fds: claimed,
            id,
        } = self.header();
        let more = flags & MORE != 0;
        let is_head = flags & HEAD != 0;
        self.header_len = 0;
        let (mut partial, length) = if flags & FIRST != 0 {
            let mut total = [0; TOTAL];
            total.copy_from_slice(&self.header[HEADER..]);
            let length = length - TOTAL;
            let head = if is_head { length } else { 0 };
            (self.begin_message(u64::from_le_bytes(total), head)?, length)
        } else {
            // Nearly always there is none, which is not worth a search.
            let begun = match self.partial.is_empty() {
                true => None,
                false => self.partial.remove(&(kind, id)),
            };
            match begun {
                Some(partial) => (partial, length),
                None if more => return Err(FrameError::Orphan { id }),
                None => (self.begin_message(length as u64, 0)?, length),
            }
        };
        if claimed > 0 {
            if partial.fds.len() + claimed > MAX_FDS {
                return Err(FrameError::TooManyFds);
            }
            self.claim(claimed, &mut partial.fds)?;
        }
        let Some(missing) = partial.total.checked_sub(partial.length() + length as u64) else {
            return Err(FrameError::Overrun { id });
        };
        if !is_head {
            grow(&mut partial.body, length, missing);
        }
        self.current = Some(Current {
            kind,
            id,
            more,
            is_head,
            remaining: length,
            partial,
        });
        Ok(())
    }

    /// Takes the descriptors that a frame has come with, if they were not lost.
    fn claim(&mut self, claimed: usize, fds: &mut Vec<OwnedFd>) -> Result<(), FrameError> {
        for received in 0..claimed {
            match self.fds.pop_front() {
                Some(Waiting::Fd(fd)) => fds.push(fd),
                Some(Waiting::Lost) if received == 0 && !self.needs_fds => return Ok(()),
                _ => return Err(FrameError::MissingFds { claimed, received }),
            }
        }
        Ok(())
    }

    /// What is kept of a message of `total` bytes of which nothing has come, the first `head` of them being its head.
    fn begin_message(&self, total: u64, head: usize) -> Result<Partial, FrameError> {
        if total > self.limit {
            return Err(FrameError::Oversized {
                length: total,
                limit: self.limit,
            });
        }
        // So that a body of a usual size never grows. A longer one grows with what arrives, and so do those that
        // come at the same time, for a claim costs the peer nothing.
        let length = total.saturating_sub(head as u64);
        let body = if self.partial.is_empty() {
            let kept = usize::try_from(length).ok().and_then(buffers::take_large);
            kept.unwrap_or_else(|| buffers::take(length.min(RESERVE) as usize))
        } else {
            Vec::new()
        };
        Ok(Partial {
            total,
            head: Vec::with_capacity(head),
            body,
            fds: Vec::new(),
        })
    }

    fn end_frame(&mut self, current: Current) -> Result<Option<Message>, FrameError> {
        let Current {
            kind,
            id,
            more,
            partial,
            ..
        } = current;
        if more {
            if self.partial.len() >= MAX_PARTIAL {
                return Err(FrameError::TooManyPartial);
            }
            self.partial.insert((kind, id), partial);
            return Ok(None);
        }
        if partial.length() < partial.total {
            return Err(FrameError::Short { id });
        }
        Ok(Some(Message {
            kind,
            id,
            head: partial.head,
            body: partial.body.into(),
            fds: partial.fds,
        }))
    }
}

/// What stands in front of every frame.
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    fds: usize,
    id: u64,
}

/// Makes room for `more` bytes in a body to which `missing` are still to come behind them.
fn grow(body: &mut Vec<u8>, more: usize, missing: u64) {
    if body.capacity() - body.len() < more {
        let ahead = missing.min((body.len() + more) as u64) as usize;
        body.reserve_exact(more + ahead);
        pages::prefer_huge(body);
    }
}

#[cfg(test)]
mod tests;
