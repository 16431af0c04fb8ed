//! Memory for large bodies: cheap to touch for the first time, and received into as it is.

#![expect(
    unsafe_code,
    reason = "advice to the kernel and memory that is not initialised; both are bounded here"
)]

use std::os::fd::BorrowedFd;

use rustix::mm::{Advice, madvise};
use rustix::net::{RecvFlags, recv};

/// Smaller buffers are not worth a system call.
const SMALLEST: usize = 4 << 20;
/// What addresses given to the kernel are rounded to. Where its pages are larger, it refuses the advice, and that is
/// all.
const PAGE: usize = 4096;

/// Asks for large pages in a large buffer, of which the system hands out 2 MiB in the time of a few small ones.
///
/// The page in which the buffer begins and the one in which it ends may hold other things of this process, for which
/// the advice means as little as it does for the buffer: how memory is backed, never what is in it.
pub(crate) fn prefer_huge<T>(buffer: &mut Vec<T>) {
    let size = buffer.capacity().saturating_mul(size_of::<T>());
    if size < SMALLEST {
        return;
    }
    let start = buffer.as_mut_ptr().cast::<u8>();
    let before = start.addr() % PAGE;
    let length = (before + size).next_multiple_of(PAGE);
    // SAFETY: the advice neither reads nor writes memory, nor takes any away.
    let advised = unsafe { madvise(start.wrapping_sub(before).cast(), length, Advice::LinuxHugepage) };
    // A system without large pages is slower and no more.
    advised.ok();
}

/// Receives up to `most` bytes behind what `buffer` holds, as far as it has room for them.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    most: usize,
    flags: RecvFlags,
) -> rustix::io::Result<usize> {
    let length = buffer.len();
    let spare = buffer.spare_capacity_mut();
    let most = most.min(spare.len());
    let ((received, _), _) = recv(fd, &mut spare[..most], flags)?;
    let received = received.len();
    // SAFETY: so many bytes behind `length` have just been received, and they are within the capacity.
    unsafe { buffer.set_len(length + received) };
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn advice_changes_nothing() {
        for capacity in [0, SMALLEST - 1, SMALLEST, SMALLEST + 12_345] {
            let mut buffer = vec![7; capacity];
            prefer_huge(&mut buffer);
            assert!(buffer.iter().all(|&byte| byte == 7) && buffer.len() == capacity);
        }
    }

    #[test]
    fn what_is_received_is_appended() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"abcdefgh").unwrap();
        let mut buffer = Vec::with_capacity(8);
        buffer.extend_from_slice(b"12");
        assert_eq!(receive(b.as_fd(), &mut buffer, 3, RecvFlags::empty()), Ok(3));
        assert_eq!(buffer, b"12abc");
        let room = buffer.capacity() - buffer.len();
        assert_eq!(
            receive(b.as_fd(), &mut buffer, 100, RecvFlags::empty()),
            Ok(room.min(5))
        );
        assert!(buffer.starts_with(b"12abcdef"));
    }
}
