//! What a call takes in principle: one send and one receive each way, and to encode and decode.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{pread, pwrite};

use crate::Error;

/// What goes into a socket at once here, and out of it again before the next does.
const SLICE: usize = 64 * 1024;

/// Nanoseconds to get so many bytes from one process to another, the faster of two ways, in one thread, which never
/// waits.
pub(crate) fn one_way(bytes: usize) -> Result<f64, Error> {
    Ok(through_socket(bytes)?.min(through_memory(bytes)?))
}

fn through_socket(bytes: usize) -> Result<f64, Error> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let sent = vec![7; bytes];
    let mut received = vec![0; bytes];
    repeated(bytes, || {
        for (from, to) in sent.chunks(SLICE).zip(received.chunks_mut(SLICE)) {
            ours.write_all(from)?;
            theirs.read_exact(to)?;
        }
        Ok(())
    })
}

/// Copied in and out, and told through a socket.
fn through_memory(bytes: usize) -> Result<f64, Error> {
    let memory = memfd_create("floor", MemfdFlags::CLOEXEC)?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let sent = vec![7; bytes];
    let mut received = vec![0; bytes];
    repeated(bytes, || {
        let mut at = 0;
        while at < bytes {
            at += pwrite(&memory, &sent[at..], at as u64)?;
        }
        ours.write_all(&[1])?;
        theirs.read_exact(&mut [0])?;
        let mut at = 0;
        while at < bytes {
            at += pread(&memory, &mut received[at..], at as u64)?;
        }
        Ok(())
    })
}

/// The mean of many times.
fn repeated(bytes: usize, mut once: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
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
