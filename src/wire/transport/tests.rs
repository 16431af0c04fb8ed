use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::frame::{CHUNK, HEADER};
use super::super::message::MAGIC;
use super::super::tail::Ending;
use super::*;

const LIMIT: u64 = 1 << 30;

/// How long a message's body is, and how many descriptors it carries.
type Shape = (usize, usize);

/// Bodies around the places where the way to send or to receive them changes.
fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let around = |middle: usize| middle - 20..middle + 20;
    let length = prop_oneof![
        6 => 0..200_usize,
        2 => around(COALESCE),
        1 => around(DIRECT),
        1 => around(SCRATCH),
        1 => around(CHUNK),
        1 => around(3 * CHUNK),
    ];
    vec((length, prop_oneof![3 => Just(0), 1 => 1..4_usize]), 0..25)
}

/// Bytes that tell where they belong.
fn body(id: u64, length: usize) -> Vec<u8> {
    let pattern: Vec<u8> = (0..251).map(|n| n ^ id as u8).collect();
    let mut body = pattern.repeat(length / pattern.len() + 1);
    body.truncate(length);
    body
}

/// A message whose descriptors tell where they belong.
fn message(id: u64, (length, fds): Shape) -> Outgoing {
    let mut bytes = Outgoing::buffer(length);
    bytes.extend_from_slice(&body(id, length));
    let head = HEADER + id as usize % 3 * 5;
    let ending = if !id.is_multiple_of(2) && bytes.len() > head {
        Ending::Apart(bytes.split_off(head).into())
    } else {
        Ending::Within(head)
    };
    let fds = (0..fds).map(|n| {
        let file = memfd_create("procession-test", MemfdFlags::CLOEXEC).unwrap();
        File::from(file.try_clone().unwrap())
            .write_all(&[id as u8, n as u8])
            .unwrap();
        file
    });
    Outgoing::new(3, bytes, fds.collect()).with_ending(ending)
}

fn assert_is(message: Message, id: u64, (length, fds): Shape) {
    assert_eq!((message.kind, message.id), (3, id));
    assert!([&message.head[..], &message.body].concat() == body(id, length));
    assert_eq!(message.fds.len(), fds);
    for (n, fd) in message.fds.into_iter().enumerate() {
        let mut label = [0; 2];
        File::from(fd).read_exact_at(&mut label, 0).unwrap();
        assert_eq!(label, [id as u8, n as u8]);
    }
}

/// One end of a connection: what it has to send, what it should receive, and how far it is.
struct End {
    fd: OwnedFd,
    outbox: Outbox<Outgoing>,
    unsent: VecDeque<(u64, Shape)>,
    receiver: Receiver,
    expected: VecDeque<(u64, Shape)>,
}

impl End {
    fn new(fd: OwnedFd, send: &[Shape], expect: &[Shape]) -> Self {
        let numbered = |shapes: &[Shape]| (1_u64..).zip(shapes.iter().copied()).collect();
        Self {
            fd,
            outbox: Outbox::default(),
            unsent: numbered(send),
            receiver: Receiver::new(LIMIT),
            expected: numbered(expect),
        }
    }

    fn is_done(&self) -> bool {
        self.outbox.is_empty() && self.unsent.is_empty() && self.expected.is_empty()
    }

    /// Queues up to `more` messages and sends as far as the socket takes it; `true` when something may have left.
    fn send(&mut self, more: usize) -> bool {
        let more = more.min(self.unsent.len());
        for (id, shape) in self.unsent.drain(..more) {
            self.outbox.push(message(id, shape), id);
        }
        if self.outbox.is_empty() {
            return more > 0;
        }
        match self.outbox.write(self.fd.as_fd(), SendFlags::DONTWAIT) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => more > 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads up to `calls` times; `true` when something came.
    fn receive(&mut self, calls: usize) -> bool {
        let mut progress = false;
        for _ in 0..calls {
            match self
                .receiver
                .receive(self.fd.as_fd(), RecvFlags::DONTWAIT)
                .unwrap()
            {
                Received::Bytes { .. } => progress = true,
                Received::WouldBlock => break,
                Received::End => panic!("the other end is there"),
            }
            while let Some(message) = self.receiver.next().unwrap() {
                let (id, shape) = self.expected.pop_front().unwrap();
                assert_is(message, id, shape);
            }
        }
        progress
    }
}

/// Has both ends send and receive, in steps of the given sizes over and over, until everything has come.
fn exchange(mut ends: [End; 2], steps: &[(usize, usize)]) {
    let mut idle = 0;
    for &(more, calls) in steps.iter().cycle() {
        if ends.iter().all(End::is_done) {
            return;
        }
        let mut progress = false;
        for end in &mut ends {
            progress |= end.send(more);
            progress |= end.receive(calls);
        }
        idle = if progress { 0 } else { idle + 1 };
        assert!(idle <= 2 * steps.len(), "nothing moves any more");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn both_directions_at_once_whatever_the_buffers(
        there in shapes(),
        back in shapes(),
        buffers in prop_oneof![Just(None), (1..40_000_usize).prop_map(Some)],
        steps in vec((1..5_usize, 1..4_usize), 1..6),
    ) {
        let (a, b) = stream_pair().unwrap();
        if let Some(size) = buffers {
            for end in [&a, &b] {
                sockopt::set_socket_send_buffer_size(end, size).unwrap();
            }
        }
        exchange([End::new(a, &there, &back), End::new(b, &back, &there)], &steps);
    }

    #[test]
    fn foreign_bytes_in_front_are_kept_apart(
        foreign in vec(prop_oneof![any::<u8>(), Just(0), Just(b'p')], 0..300),
        false_starts in vec((any::<Index>(), 1..MAGIC.len()), 0..4),
        there in shapes(),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let mut expected = foreign;
        for (index, length) in false_starts {
            let index = index.index(expected.len() + 1);
            expected.splice(index..index, MAGIC[..length].iter().copied());
        }
        let before = [&expected[..], &MAGIC[..MAGIC.len() - 1]].concat();
        prop_assume!(before.windows(MAGIC.len()).all(|window| window != MAGIC));
        let there: Vec<Shape> = there.into_iter().filter(|&(length, fds)| length < 200 && fds == 0).collect();
        let mut bytes = [&expected[..], &MAGIC].concat();
        for (id, &shape) in (1..).zip(&there) {
            message(id, shape).append_single(id, &mut bytes);
        }
        let total = (bytes.len() - expected.len() - MAGIC.len()) as u64;

        let (a, b) = stream_pair().unwrap();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(bytes.len());
        let mut start = 0;
        let mut end = End::new(b, &[], &there);
        let (mut found, mut skipped) = (false, Vec::new());
        for cut in ends {
            let piece = &bytes[std::mem::replace(&mut start, cut)..cut];
            if piece.is_empty() {
                continue;
            }
            prop_assert_eq!(send(a.as_fd(), &[IoSlice::new(piece)], &[], SendFlags::empty()).unwrap(), piece.len());
            end.receiver.receive(end.fd.as_fd(), RecvFlags::DONTWAIT).unwrap();
            found = found || end.receiver.skip_to(&MAGIC, &mut skipped);
            while found && let Some(message) = end.receiver.next().unwrap() {
                let (id, shape) = end.expected.pop_front().unwrap();
                assert_is(message, id, shape);
            }
        }
        prop_assert!(found && end.is_done());
        prop_assert_eq!(skipped, expected);
        prop_assert_eq!(end.receiver.total(), total);
    }
}

#[test]
fn large_bodies_with_descriptors_cross() {
    let (a, b) = stream_pair().unwrap();
    let there = [(24 << 20, 3), (0, 1), (24 << 20, 0)];
    let back = [(10, 0), (24 << 20, MAX_FDS), (24 << 20, 1)];
    exchange(
        [End::new(a, &there, &back), End::new(b, &back, &there)],
        &[(1, 1), (2, 3)],
    );
}

#[test]
fn a_peer_that_has_gone_is_an_error_and_no_signal() {
    let (a, b) = stream_pair().unwrap();
    drop(b);
    let mut outbox = Outbox::default();
    outbox.push(message(1, (10, 0)), 1);
    let error = outbox.write(a.as_fd(), SendFlags::DONTWAIT).unwrap_err();
    assert!(is_disconnect(&error), "{error}");
    let received = Receiver::new(LIMIT).receive(a.as_fd(), RecvFlags::DONTWAIT);
    assert_eq!(received.unwrap(), Received::End);
}

#[test]
fn what_a_dead_peer_had_sent_still_comes() {
    let (a, b) = stream_pair().unwrap();
    let shapes = [(3, 1), (5000, 0)];
    let mut sender = End::new(a, &shapes, &[]);
    sender.send(2);
    assert!(sender.is_done());
    drop(sender);
    let mut end = End::new(b, &[], &shapes);
    let mut ended = false;
    while !ended {
        ended = end.receiver.receive(end.fd.as_fd(), RecvFlags::DONTWAIT).unwrap() == Received::End;
        while !ended && let Some(message) = end.receiver.next().unwrap() {
            let (id, shape) = end.expected.pop_front().unwrap();
            assert_is(message, id, shape);
        }
    }
    assert!(end.is_done());
}

#[test]
fn garbage_is_an_error() {
    let (a, b) = stream_pair().unwrap();
    send(a.as_fd(), &[IoSlice::new(&[0xff; 40])], &[], SendFlags::empty()).unwrap();
    let mut receiver = Receiver::new(LIMIT);
    receiver.receive(b.as_fd(), RecvFlags::DONTWAIT).unwrap();
    assert!(receiver.next().is_err());
}

#[test]
fn both_ends_close_on_exec() {
    let (a, b) = stream_pair().unwrap();
    let (c, d) = datagram_pair().unwrap();
    for fd in [a, b, c, d] {
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
