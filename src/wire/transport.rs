//! Frames over a socket: the only place that sends and receives.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use crate::shared::pages;

use super::frame::{Decoder, FrameError, MAX_FDS, Message, Outgoing, Prefix, header};

/// What one `recvmsg` takes at most, unless it reads the body of a large frame.
const SCRATCH: usize = 64 * 1024;
/// The same before more has come at once: the memory would have to be touched while somebody waits for a worker.
const FIRST: usize = 4 * 1024;
/// From here on a body is read where it belongs instead of through the scratch buffer.
const DIRECT: usize = 16 * 1024;
/// Up to here a frame is copied behind the others that wait, so that they leave in one call.
const COALESCE: usize = 4 * 1024;
/// What a buffer of coalesced frames grows to before the next one is begun.
const BATCH: usize = 64 * 1024;
/// Frames of a large message that one `sendmsg` takes at most.
const FRAMES_AT_ONCE: usize = 8;
/// Times that so many are sent before others get their turn.
const LARGE_AT_ONCE: usize = 2;
/// What a socket's send buffer is asked to hold; the kernel may grant less.
const SOCKET_BUFFER: usize = 1024 * 1024;

/// A connection's two ends, both close-on-exec.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for end in [&a, &b] {
        // A small buffer makes large bodies slower and nothing else.
        sockopt::set_socket_send_buffer_size(end, SOCKET_BUFFER).ok();
    }
    Ok((a, b))
}

/// A pair of sockets that keep message boundaries, both close-on-exec.
pub(crate) fn datagram_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends bytes, and descriptors with the first of them. A peer that has gone is an error, never a signal.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    bytes: &[IoSlice<'_>],
    fds: &[OwnedFd],
    flags: SendFlags,
) -> io::Result<usize> {
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        let sent = if fds.is_empty() {
            sendmsg(fd, bytes, &mut SendAncillaryBuffer::default(), flags)
        } else {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&borrowed));
            sendmsg(fd, bytes, &mut control, flags)
        };
        match sent {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// A message that an [`Outbox`] can hold, by value or shared.
pub(crate) trait Carry {
    fn outgoing(&self) -> &Outgoing;
}

impl Carry for Outgoing {
    fn outgoing(&self) -> &Outgoing {
        self
    }
}

impl<T: Carry> Carry for &T {
    fn outgoing(&self) -> &Outgoing {
        (*self).outgoing()
    }
}

/// What waits to be sent.
#[derive(Debug)]
enum Piece<M> {
    /// Whole small frames, one behind the other.
    Bytes { bytes: Vec<u8>, sent: usize },
    /// A message that is sent from where it lies, frame by frame.
    Frames {
        message: M,
        id: u64,
        /// Where the frame that is being sent begins in the body.
        offset: usize,
        /// How much of it, prefix included, has been sent.
        within: usize,
    },
}

/// Messages on their way out, in order; small ones leave together.
#[derive(Debug)]
pub(crate) struct Outbox<M> {
    pieces: VecDeque<Piece<M>>,
    bytes: usize,
    /// The memory of frames that have left.
    spare: Vec<u8>,
}

impl<M> Default for Outbox<M> {
    fn default() -> Self {
        Self {
            pieces: VecDeque::new(),
            bytes: 0,
            spare: Vec::new(),
        }
    }
}

impl<M: Carry> Outbox<M> {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of coalesced frames that wait, roughly.
    pub(crate) fn waiting(&self) -> usize {
        self.bytes
    }

    /// A message of a few bytes, without descriptors.
    pub(crate) fn push_short(&mut self, kind: u8, body: &[u8], id: u64) {
        self.coalesce(body.len(), |bytes| {
            bytes.extend_from_slice(&header(body.len(), kind, 0, 0, id));
            bytes.extend_from_slice(body);
        });
    }

    pub(crate) fn push(&mut self, message: M, id: u64) {
        let outgoing = message.outgoing();
        let length = outgoing.len();
        if length <= COALESCE && outgoing.fds().is_empty() {
            self.coalesce(length, |bytes| outgoing.append_single(id, bytes));
            return;
        }
        self.bytes += length;
        self.pieces.push_back(Piece::Frames {
            message,
            id,
            offset: 0,
            within: 0,
        });
    }

    /// Has a frame written behind the others.
    fn coalesce(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes += length;
        if let Some(Piece::Bytes { bytes, .. }) = self.pieces.back_mut()
            && bytes.len() < BATCH
        {
            write(bytes);
            return;
        }
        let mut bytes = std::mem::take(&mut self.spare);
        write(&mut bytes);
        self.pieces.push_back(Piece::Bytes { bytes, sent: 0 });
    }

    /// Takes the memory of one that has sent all.
    pub(crate) fn reuse(&mut self, sent: Self) {
        self.spare = sent.spare;
    }

    /// Puts what `newer` holds behind what this one holds.
    pub(crate) fn append(&mut self, mut newer: Self) {
        self.bytes += newer.bytes;
        self.pieces.append(&mut newer.pieces);
    }

    /// Sends until everything has left. With `DONTWAIT` a full socket is `WouldBlock`, and what is left stays.
    pub(crate) fn write(&mut self, fd: BorrowedFd<'_>, flags: SendFlags) -> io::Result<()> {
        while !self.write_some(fd, flags)? {}
        Ok(())
    }

    /// The same, but not much at once: the other side may take it as fast as it is sent. `true` when everything has left.
    pub(crate) fn write_some(&mut self, fd: BorrowedFd<'_>, flags: SendFlags) -> io::Result<bool> {
        let mut large = 0;
        while let Some(piece) = self.pieces.front_mut() {
            if matches!(piece, Piece::Frames { .. }) {
                if large == LARGE_AT_ONCE {
                    return Ok(false);
                }
                large += 1;
            }
            let finished = match piece {
                Piece::Bytes { bytes, sent } => {
                    *sent += send(fd, &[IoSlice::new(&bytes[*sent..])], &[], flags)?;
                    *sent == bytes.len()
                }
                Piece::Frames {
                    message,
                    id,
                    offset,
                    within,
                } => write_frames(fd, message.outgoing(), *id, offset, within, flags)?,
            };
            if finished
                && let Some(Piece::Bytes { mut bytes, .. }) = self.pieces.pop_front()
                && bytes.capacity() <= 2 * BATCH
            {
                bytes.clear();
                self.spare = bytes;
            }
        }
        self.bytes = 0;
        Ok(true)
    }
}

/// Sends some more of a message; `true` when it was the last of it.
fn write_frames(
    fd: BorrowedFd<'_>,
    message: &Outgoing,
    id: u64,
    offset: &mut usize,
    within: &mut usize,
    flags: SendFlags,
) -> io::Result<bool> {
    let total = message.len();
    let mut frames: [Option<(Prefix, usize)>; FRAMES_AT_ONCE] = [None; FRAMES_AT_ONCE];
    let mut at = *offset;
    for frame in &mut frames {
        let (prefix, length) = message.frame_at(id, at);
        *frame = Some((prefix, length));
        at += length;
        if at >= total {
            break;
        }
    }
    let mut slices = Vec::with_capacity(2 * FRAMES_AT_ONCE);
    let mut at = *offset;
    let mut skip = *within;
    for (prefix, length) in frames.iter().flatten() {
        let prefix = prefix.as_slice();
        slices.push(IoSlice::new(&prefix[skip.min(prefix.len())..]));
        let part = message.part(at..at + length);
        slices.push(IoSlice::new(&part[skip.saturating_sub(prefix.len())..]));
        at += length;
        skip = 0;
    }
    // The descriptors go with the very first byte, for that is what the kernel ties them to.
    let fds = if *offset == 0 && *within == 0 {
        message.fds()
    } else {
        &[]
    };
    let mut sent = send(fd, &slices, fds, flags)? + *within;
    for (prefix, length) in frames.iter().flatten() {
        let frame = prefix.as_slice().len() + length;
        if sent < frame {
            break;
        }
        sent -= frame;
        *offset += length;
        if *offset == total {
            return Ok(true);
        }
    }
    *within = sent;
    Ok(false)
}

/// What one call of [`Receiver::receive`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes; `true` when the socket had more than there was room for, as far as one can tell.
    Bytes {
        more: bool,
    },
    WouldBlock,
    End,
}

/// Frames coming in.
#[derive(Debug)]
pub(crate) struct Receiver {
    decoder: Decoder,
    /// Grows to [`SCRATCH`] when so much comes that it is filled.
    scratch: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes received so far.
    total: u64,
    /// A message that was finished by reading directly into its body.
    ready: Option<Message>,
}

impl Receiver {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            decoder: Decoder::new(limit),
            scratch: vec![0; FIRST],
            start: 0,
            end: 0,
            total: 0,
            ready: None,
        }
    }

    /// Refuses messages longer than `limit` from here on.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.decoder.set_limit(limit);
    }

    /// Whether messages that come without their descriptors are refused, from here on. They are not unless this is said.
    pub(crate) fn need_fds(&mut self, needs_fds: bool) {
        self.decoder.need_fds(needs_fds);
    }

    /// Bytes that have come since the connection began, or since [`Self::skip`].
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Takes bytes that came by another way than the socket.
    pub(crate) fn inject(&mut self, mut bytes: &[u8], messages: &mut Vec<Message>) -> Result<(), FrameError> {
        self.total += bytes.len() as u64;
        while let Some(message) = self.decoder.decode(&mut bytes)? {
            messages.push(message);
        }
        Ok(())
    }

    /// Reads once. Call [`Self::next`] until it has nothing before reading again.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Received> {
        debug_assert_eq!(self.start, self.end);
        if let Some((body, remaining)) = self.decoder.body_buffer()
            && remaining >= DIRECT
        {
            return match retry(|| pages::receive(fd, body, remaining, flags)) {
                Ok(0) => Ok(Received::End),
                Ok(n) => {
                    self.total += n as u64;
                    self.ready = self.decoder.body_read(n).map_err(invalid)?;
                    Ok(Received::Bytes { more: n == remaining })
                }
                Err(Errno::AGAIN) => Ok(Received::WouldBlock),
                Err(error) => Err(error.into()),
            };
        }
        if self.end == self.scratch.len() && self.scratch.len() < SCRATCH {
            self.scratch.resize(SCRATCH, 0);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let result = retry(|| {
            recvmsg(
                fd,
                &mut [IoSliceMut::new(&mut self.scratch)],
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match result {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(Received::WouldBlock),
            Err(error) => return Err(error.into()),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                fds.extend(came);
            }
        }
        if received.bytes == 0 {
            return Ok(Received::End);
        }
        let is_lost = received.flags.contains(ReturnFlags::CTRUNC);
        let had_fds = is_lost || !fds.is_empty();
        if is_lost {
            // Some of them would be none of any use.
            self.decoder.lose_fds().map_err(invalid)?;
        } else {
            self.decoder.push_fds(fds).map_err(invalid)?;
        }
        self.start = 0;
        self.end = received.bytes;
        self.total += received.bytes as u64;
        // The kernel stops behind bytes that came with descriptors, whatever else is there.
        Ok(Received::Bytes {
            more: had_fds || received.bytes == self.scratch.len(),
        })
    }

    /// The next whole message among the bytes received.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, FrameError> {
        if let Some(message) = self.ready.take() {
            return Ok(Some(message));
        }
        let mut bytes = &self.scratch[self.start..self.end];
        let message = self.decoder.decode(&mut bytes)?;
        self.start = self.end - bytes.len();
        Ok(message)
    }

    /// Discards bytes up to and with `magic`, keeping the first few in `foreign`; `true` when it was found.
    pub(crate) fn skip_to(&mut self, magic: &[u8], foreign: &mut Vec<u8>) -> bool {
        foreign.extend_from_slice(&self.scratch[self.start..self.end]);
        match foreign.windows(magic.len()).position(|window| window == magic) {
            Some(position) => {
                let behind = foreign.len() - position - magic.len();
                self.start = self.end - behind;
                self.total = behind as u64;
                foreign.truncate(position);
                true
            }
            None => {
                self.start = self.end;
                false
            }
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Whether an I/O error says only that the other side has gone.
pub(crate) fn is_disconnect(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

/// Whether nothing was sent because too many descriptors are on their way between processes of this user: those that
/// they are for are busy, and will take them.
pub(crate) fn is_crowded(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error())
}

#[cfg(test)]
mod tests;
