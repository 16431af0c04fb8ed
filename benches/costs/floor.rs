//! What a call takes in principle: one send and one receive each way, and to encode and decode.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::Error;

/// What goes into a socket at once here, and out of it again before the next does.
const SLICE: usize = 64 * 1024;

/// Nanoseconds to get so many bytes through a socket, in one thread, which never waits.
pub(crate) fn one_way(bytes: usize) -> Result<f64, Error> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let sent = vec![7; bytes];
    let mut received = vec![0; bytes];
    let mut once = || -> Result<(), Error> {
        for (from, to) in sent.chunks(SLICE).zip(received.chunks_mut(SLICE)) {
            ours.write_all(from)?;
            theirs.read_exact(to)?;
        }
        Ok(())
    };
    once()?;
    let rounds = (50_000_000 / (bytes + 2000)).max(3);
    let began = Instant::now();
    for _ in 0..rounds {
        once()?;
    }
    Ok(began.elapsed().as_nanos() as f64 / rounds as f64)
}

/// Nanoseconds to encode a number and to decode it.
pub(crate) fn codec() -> Result<f64, Error> {
    const ROUNDS: u64 = 1_000_000;
    let mut buffer = [0; 16];
    let began = Instant::now();
    for n in 0..ROUNDS {
        let encoded = postcard::to_slice(black_box(&n), &mut buffer)?;
        black_box(postcard::from_bytes::<u64>(encoded)?);
    }
    Ok(began.elapsed().as_nanos() as f64 / ROUNDS as f64)
}
