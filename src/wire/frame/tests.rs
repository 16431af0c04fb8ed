use std::fs::File;
use std::os::fd::AsRawFd;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

const LIMIT: u64 = 1 << 30;

/// What a decoder may hold beyond twice the bytes that have come: twice the frame that is being read, what it sets
/// aside for one longer message, and its table of unfinished messages.
const BOUND: usize = 2 * CHUNK + RESERVE as usize + 512 * 1024;

/// A message as plain data; `fds` are positions in the row of all descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plain {
    kind: u8,
    id: u64,
    head: Vec<u8>,
    body: Vec<u8>,
    fds: Vec<usize>,
}

/// Valid bytes, and what they say.
#[derive(Clone, Debug)]
struct Stream {
    bytes: Vec<u8>,
    /// How many descriptors come with them.
    fds: usize,
    /// In the order in which they become whole.
    messages: Vec<Plain>,
}

/// Messages cut into frames at any place, the frames of different messages in any order.
fn streams() -> impl Strategy<Value = Stream> {
    let message = (
        1..4_u8,
        vec(any::<u8>(), 0..60),
        0..3_usize,
        vec(any::<Index>(), 0..4),
        any::<bool>(),
    );
    (vec(message, 0..6), vec(any::<Index>(), 40)).prop_map(|(messages, turns)| {
        let mut open: Vec<(Plain, usize, VecDeque<Vec<u8>>)> = Vec::new();
        for (id, (kind, mut body, fds, cuts, has_head)) in messages.into_iter().enumerate() {
            let id = id as u64;
            let (frames, head) = frames(kind, id, &body, fds, &cuts, has_head);
            let plain = Plain {
                kind,
                id,
                head: body.drain(..head).collect(),
                body,
                fds: Vec::new(),
            };
            open.push((plain, fds, frames));
        }
        let mut stream = Stream {
            bytes: Vec::new(),
            fds: 0,
            messages: Vec::new(),
        };
        for turn in turns.iter().cycle() {
            if open.is_empty() {
                break;
            }
            let index = turn.index(open.len());
            let (plain, fds, frames) = &mut open[index];
            plain.fds.extend(stream.fds..stream.fds + *fds);
            stream.fds += std::mem::take(fds);
            stream.bytes.extend(frames.pop_front().into_iter().flatten());
            if frames.is_empty() {
                stream.messages.push(open.remove(index).0);
            }
        }
        stream
    })
}

/// A message's frames, shorter than this crate sends them, and how many bytes of it are its head.
fn frames(
    kind: u8,
    id: u64,
    body: &[u8],
    fds: usize,
    cuts: &[Index],
    has_head: bool,
) -> (VecDeque<Vec<u8>>, usize) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(body.len());
    let mut start = 0;
    let last = ends.len() - 1;
    let head = if has_head && last > 0 { ends[0] } else { 0 };
    let frames = ends.into_iter().enumerate().map(|(number, end)| {
        let piece = &body[std::mem::replace(&mut start, end)..end];
        let fds = if number == 0 { fds } else { 0 };
        let flags = match number {
            _ if last == 0 => 0,
            0 if has_head => FIRST | MORE | HEAD,
            0 => FIRST | MORE,
            number if number < last => MORE,
            _ => 0,
        };
        let total = (body.len() as u64).to_le_bytes();
        let total = if flags & FIRST != 0 { &total[..] } else { &[] };
        let header = header(total.len() + piece.len(), kind, flags, fds, id);
        [&header, total, piece].concat()
    });
    (frames.collect(), head)
}

/// Feeds the pieces, in either of the two ways in which bytes can come, and gives the messages that they make.
fn decode(
    decoder: &mut Decoder,
    bytes: &[u8],
    cuts: &[Index],
    direct: bool,
) -> Result<Vec<Message>, FrameError> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(bytes.len());
    let mut messages = Vec::new();
    let mut start = 0;
    for end in ends {
        let mut piece = &bytes[std::mem::replace(&mut start, end)..end];
        while !piece.is_empty() {
            if direct && let Some((body, remaining)) = decoder.body_buffer() {
                let taken = remaining.min(piece.len());
                body.extend_from_slice(&piece[..taken]);
                piece = &piece[taken..];
                messages.extend(decoder.body_read(taken)?);
            } else {
                messages.extend(decoder.decode(&mut piece)?);
            }
        }
    }
    Ok(messages)
}

fn descriptors(n: usize) -> Vec<OwnedFd> {
    (0..n).map(|_| File::open("/dev/null").unwrap().into()).collect()
}

/// Bytes of memory that a decoder has allocated, roughly.
fn held(decoder: &Decoder) -> usize {
    let fds = |fds: usize| fds * size_of::<OwnedFd>();
    let partial =
        |partial: &Partial| partial.head.capacity() + partial.body.capacity() + fds(partial.fds.capacity());
    decoder
        .current
        .as_ref()
        .map_or(0, |current| partial(&current.partial))
        + decoder.partial.values().map(partial).sum::<usize>()
        + decoder.partial.capacity() * size_of::<((u8, u64), Partial)>()
        + fds(decoder.fds.capacity())
}

/// A frame that may be anything, with some of its body, or bytes that are no frame at all.
fn hostile_pieces() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        4 => 0..64_usize,
        1 => select(vec![
            LONGEST_HEAD + TOTAL,
            LONGEST_HEAD + TOTAL + 1,
            CHUNK,
            CHUNK + TOTAL,
            CHUNK + TOTAL + 1,
            u32::MAX as usize,
        ]),
    ];
    let total = prop_oneof![
        0..64_u64,
        select(vec![LIMIT, LIMIT + 1, u64::MAX, CHUNK as u64, RESERVE])
    ];
    let frame = (
        length,
        0..2_u8,
        0..9_u8,
        prop_oneof![9 => Just(0), 1 => 0..3_usize],
        0..6_u64,
        total,
        0..600_usize,
    );
    let frame = frame.prop_map(|(length, kind, flags, fds, id, total, come)| {
        let mut bytes = header(length, kind, flags, fds, id).to_vec();
        if flags & FIRST != 0 {
            bytes.extend_from_slice(&total.to_le_bytes());
        }
        bytes.resize(HEADER + length.min(come.max(TOTAL)), 7);
        bytes
    });
    prop_oneof![9 => frame, 1 => vec(any::<u8>(), 0..80)]
}

proptest! {
    #[test]
    fn every_split_of_the_bytes_decodes_the_same(
        stream in streams(),
        cuts in vec(any::<Index>(), 0..30),
        direct: bool,
    ) {
        let fds = descriptors(stream.fds);
        let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut decoder = Decoder::new(LIMIT);
        decoder.push_fds(fds).unwrap();
        let messages = decode(&mut decoder, &stream.bytes, &cuts, direct).unwrap();
        let messages: Vec<Plain> = messages
            .into_iter()
            .map(|Message { kind, id, head, body, fds }| {
                let position = |fd: OwnedFd| numbers.iter().position(|&number| number == fd.as_raw_fd()).unwrap();
                Plain { kind, id, head, body: body.into_vec(), fds: fds.into_iter().map(position).collect() }
            })
            .collect();
        prop_assert_eq!(messages, stream.messages);
        prop_assert!(decoder.fds.is_empty());
    }

    #[test]
    fn truncated_bytes_give_what_is_whole_and_no_more(stream in streams(), at: Index) {
        let mut decoder = Decoder::new(LIMIT);
        decoder.push_fds(descriptors(stream.fds)).unwrap();
        let length = at.index(stream.bytes.len() + 1);
        let messages = decode(&mut decoder, &stream.bytes[..length], &[], false).unwrap();
        prop_assert!(messages.len() <= stream.messages.len());
        if length < stream.bytes.len() {
            prop_assert!(messages.len() < stream.messages.len());
        }
        for (message, expected) in messages.iter().zip(&stream.messages) {
            prop_assert_eq!((&message.head[..], &message.body[..]), (&expected.head[..], &expected.body[..]));
        }
    }

    #[test]
    fn spoilt_bytes_never_panic(
        mut stream in streams(),
        spoilt in vec((any::<Index>(), any::<u8>()), 1..8),
        cuts in vec(any::<Index>(), 0..10),
        direct: bool,
    ) {
        prop_assume!(!stream.bytes.is_empty());
        for (index, byte) in spoilt {
            let index = index.index(stream.bytes.len());
            stream.bytes[index] = byte;
        }
        let mut decoder = Decoder::new(LIMIT);
        decoder.push_fds(descriptors(stream.fds)).unwrap();
        let spoilt = decode(&mut decoder, &stream.bytes, &cuts, direct).is_err();
        // Nor does going on behind an error, though nobody should.
        let again = decode(&mut decoder, &stream.bytes, &cuts, direct).is_err();
        prop_assert!(!spoilt || held(&decoder) <= 4 * stream.bytes.len() + BOUND, "{}", again);
    }

    #[test]
    fn memory_follows_what_has_come(pieces in vec(hostile_pieces(), 0..40), direct: bool) {
        let mut decoder = Decoder::new(LIMIT);
        let mut come = 0;
        for piece in pieces {
            come += piece.len();
            let outcome = decode(&mut decoder, &piece, &[], direct);
            prop_assert!(held(&decoder) <= 2 * come + BOUND, "{} bytes for {}", held(&decoder), come);
            for message in outcome.iter().flatten() {
                prop_assert!(message.body.len() <= come);
            }
            if outcome.is_err() {
                break;
            }
        }
    }

    #[test]
    fn a_message_leaves_as_it_came(
        length in prop_oneof![
            0..100_usize,
            select(vec![CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK]),
            select(vec![SHORTEST_TAIL - 1, SHORTEST_TAIL, SHORTEST_TAIL + 1, SHORTEST_TAIL + LONGEST_HEAD]),
            SHORTEST_TAIL..SHORTEST_TAIL + LONGEST_HEAD,
        ],
        head in prop_oneof![0..40_usize, select(vec![LONGEST_HEAD - 1, LONGEST_HEAD, LONGEST_HEAD + 1])],
        kind: u8,
        id: u64,
        cuts in vec(any::<Index>(), 0..6),
        direct: bool,
        apart: bool,
    ) {
        let body: Vec<u8> = (0..length).map(|n| (n / 7) as u8).collect();
        let mut bytes = Outgoing::buffer(length);
        let ending = if apart && head <= length {
            bytes.extend_from_slice(&body[..head]);
            Ending::Apart(Bytes::copy_from_slice(&body[head..]))
        } else {
            bytes.extend_from_slice(&body);
            Ending::Within(HEADER + head)
        };
        let outgoing = Outgoing::new(kind, bytes, Vec::new()).with_ending(ending);
        prop_assert_eq!(outgoing.len(), length);
        let has_head = head > 0 && head <= LONGEST_HEAD && length >= head + SHORTEST_TAIL;
        let mut wire = Vec::new();
        if outgoing.is_single() {
            outgoing.append_single(id, &mut wire);
        }
        let mut by_frames = Vec::new();
        let mut offset = 0;
        loop {
            let (prefix, taken) = outgoing.frame_at(id, offset);
            by_frames.extend_from_slice(prefix.as_slice());
            by_frames.extend_from_slice(outgoing.part(offset..offset + taken));
            offset += taken;
            if offset == length {
                break;
            }
        }
        prop_assert!(wire.is_empty() || wire == by_frames);
        prop_assert_eq!(outgoing.wire_length(), by_frames.len() as u64);
        let mut messages = decode(&mut Decoder::new(LIMIT), &by_frames, &cuts, direct).unwrap();
        let message = messages.pop().unwrap();
        prop_assert!(messages.is_empty());
        prop_assert_eq!((message.kind, message.id), (kind, id));
        prop_assert_eq!(message.head.len(), if has_head { head } else { 0 });
        prop_assert!([&message.head[..], &message.body].concat() == body);
    }
}

/// The first frame of a longer message.
fn first(id: u64, total: u64, body: usize) -> Vec<u8> {
    let mut bytes = header(TOTAL + body, 1, FIRST | MORE, 0, id).to_vec();
    bytes.extend_from_slice(&total.to_le_bytes());
    bytes.resize(HEADER + TOTAL + body, 0);
    bytes
}

fn frame(flags: u8, id: u64, body: usize) -> Vec<u8> {
    let mut bytes = header(body, 1, flags, 0, id).to_vec();
    bytes.resize(HEADER + body, 0);
    bytes
}

#[test]
fn bytes_that_are_no_frames_are_told_apart() {
    let limit = 100;
    let cases = [
        (frame(8, 1, 0), FrameError::Flags(8)),
        (frame(FIRST, 1, 8), FrameError::Flags(FIRST)),
        (frame(HEAD, 1, 0), FrameError::Flags(HEAD)),
        (frame(HEAD | MORE, 1, 0), FrameError::Flags(HEAD | MORE)),
        (
            header(LONGEST_HEAD + TOTAL + 1, 1, FIRST | MORE | HEAD, 0, 1).to_vec(),
            FrameError::Oversized {
                length: (LONGEST_HEAD + TOTAL + 1) as u64,
                limit: (LONGEST_HEAD + TOTAL) as u64,
            },
        ),
        (frame(0, 1, 101), FrameError::Oversized { length: 101, limit }),
        (
            header(CHUNK + 1, 1, 0, 0, 1).to_vec(),
            FrameError::Oversized {
                length: CHUNK as u64 + 1,
                limit: CHUNK as u64,
            },
        ),
        (first(1, 101, 0), FrameError::Oversized { length: 101, limit }),
        (frame(MORE, 1, 4), FrameError::Orphan { id: 1 }),
        (
            [first(1, 9, 2), first(1, 9, 2)].concat(),
            FrameError::Duplicate { id: 1 },
        ),
        ([first(1, 9, 10)].concat(), FrameError::Overrun { id: 1 }),
        (
            [first(1, 9, 5), frame(0, 1, 5)].concat(),
            FrameError::Overrun { id: 1 },
        ),
        (
            [first(1, 9, 5), frame(0, 1, 3)].concat(),
            FrameError::Short { id: 1 },
        ),
        (frame(FIRST | MORE, 1, 7), FrameError::Short { id: 1 }),
        (
            header(0, 1, 0, 2, 1).to_vec(),
            FrameError::MissingFds {
                claimed: 2,
                received: 1,
            },
        ),
    ];
    for (bytes, expected) in cases {
        let mut decoder = Decoder::new(limit);
        decoder.push_fds(descriptors(1)).unwrap();
        assert_eq!(decode(&mut decoder, &bytes, &[], false).unwrap_err(), expected);
    }
}

#[test]
fn messages_begun_and_not_finished_are_counted_and_cost_little() {
    let mut decoder = Decoder::new(LIMIT);
    for id in 0..MAX_PARTIAL as u64 {
        decode(&mut decoder, &first(id, LIMIT, 1), &[], false).unwrap();
    }
    let held = held(&decoder);
    assert!(held <= BOUND, "{held} bytes");
    let error = decode(&mut decoder, &first(u64::MAX, LIMIT, 1), &[], false).unwrap_err();
    assert_eq!(error, FrameError::TooManyPartial);
}

#[test]
fn descriptors_that_no_frame_claims_are_counted() {
    // More of them than many systems allow at first.
    let allowed = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: allowed.maximum,
        ..allowed
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let mut decoder = Decoder::new(LIMIT);
    assert_eq!(decoder.push_fds(descriptors(MAX_FDS)), Ok(()));
    let mut outcome = Ok(());
    for _ in 0..MAX_WAITING_FDS / MAX_FDS {
        outcome = decoder.push_fds(descriptors(MAX_FDS));
    }
    assert_eq!(outcome, Err(FrameError::TooManyFds));
}

#[test]
fn descriptors_that_were_lost_are_missed_by_their_message_alone() {
    let mut decoder = Decoder::new(LIMIT);
    decoder.push_fds(descriptors(1)).unwrap();
    decoder.lose_fds().unwrap();
    decoder.push_fds(descriptors(2)).unwrap();
    let stream = [(1, 1), (2, 3), (3, 2)].map(|(id, fds)| header(0, 1, 0, fds, id));
    let messages = decode(&mut decoder, &stream.concat(), &[], false).unwrap();
    let fds: Vec<_> = messages
        .iter()
        .map(|message| (message.id, message.fds.len()))
        .collect();
    assert_eq!(fds, [(1, 1), (2, 0), (3, 2)]);
    let mut strict = Decoder::new(LIMIT);
    strict.need_fds(true);
    strict.lose_fds().unwrap();
    let error = decode(&mut strict, &header(0, 1, 0, 2, 4), &[], false).unwrap_err();
    let missing = FrameError::MissingFds {
        claimed: 2,
        received: 0,
    };
    assert_eq!(error, missing);
    // What is lost stands for no part of what a frame claims.
    decoder.push_fds(descriptors(1)).unwrap();
    decoder.lose_fds().unwrap();
    let error = decode(&mut decoder, &header(0, 1, 0, 2, 4), &[], false).unwrap_err();
    let missing = FrameError::MissingFds {
        claimed: 2,
        received: 1,
    };
    assert_eq!(error, missing);
}

#[test]
fn a_message_has_no_more_descriptors_than_one_can_carry() {
    let mut decoder = Decoder::new(LIMIT);
    decode(&mut decoder, &first(1, 9, 1), &[], false).unwrap();
    let mut outcome = Ok(Vec::new());
    for _ in 0..2 {
        decoder.push_fds(descriptors(MAX_FDS)).unwrap();
        outcome = decode(&mut decoder, &header(0, 1, MORE, MAX_FDS, 1), &[], false);
    }
    assert_eq!(outcome.unwrap_err(), FrameError::TooManyFds);
}
