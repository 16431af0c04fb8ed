//! Fork without exec, for a process that has a single thread.
//!
//! What is forked is a child of this process's *parent*, as if that had started it: it is the parent's to wait for, its
//! exit status and signals are as those of any other child, and nothing depends on the process that was copied.
//!
//! In a process with several threads a fork would copy the memory in the midst of what the others do, their locks held
//! for ever. That is why nothing here forks the host program, and why the one thread is counted first.

#![expect(unsafe_code, reason = "the system call is reached through the C library only")]

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::process::{Signal, getpid};
use rustix::thread::get_clear_child_tid_address;

const CLONE_PARENT: c_long = 0x8000;
const CLONE_PARENT_SETTID: c_long = 0x10_0000;
const CLONE_CHILD_CLEARTID: c_long = 0x20_0000;
const CLONE_CHILD_SETTID: c_long = 0x100_0000;
#[cfg(target_arch = "x86_64")]
const SYS_CLONE: c_long = 56;
#[cfg(target_arch = "aarch64")]
const SYS_CLONE: c_long = 220;

const F_SETOWN: c_int = 8;
const F_SETSIG: c_int = 10;
const F_GETFL: c_int = 3;
const F_SETFL: c_int = 4;
const O_ASYNC: c_int = 0x2000;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn fflush(stream: *mut std::ffi::c_void) -> c_int;
}

/// Where one finds itself after a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// In the process that was copied; the copy has this number.
    Original(u32),
    /// In the copy.
    Copy,
}

/// The threads of this process; `None` where that cannot be seen.
pub(crate) fn threads() -> Option<usize> {
    std::fs::read_dir("/proc/self/task").ok().map(Iterator::count)
}

/// Copies this process, which has a single thread, into a new child of its parent. The kernel writes the copy's number
/// into `number` before either side goes on, so that it is known there whatever becomes of this process.
///
/// What the C library would do around a fork (`pthread_atfork`) is not done.
///
/// # Errors
///
/// There is more than one thread, or that cannot be seen; the system has no room for another process.
pub(crate) fn sibling(number: &AtomicU64) -> io::Result<Side> {
    match threads() {
        Some(1) => {}
        Some(threads) => return Err(io::Error::other(format!("it has {threads} threads"))),
        None => {
            return Err(io::Error::other(
                "without /proc nobody can tell how many threads it has",
            ));
        }
    }
    // Buffers of C code would be written out by both.
    // SAFETY: a null pointer means all streams.
    unsafe { fflush(ptr::null_mut()) };
    // The C library keeps the thread's number in memory, at the place that the kernel clears at its end: in glibc it is
    // one and the same. Where the kernel does not tell that place, a copy has the original's number there, which
    // matters to few.
    let place = own_number().map_or(ptr::null_mut(), NonNull::as_ptr);
    let mut flags = CLONE_PARENT | CLONE_PARENT_SETTID;
    if !place.is_null() {
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
    }
    let nowhere = ptr::null_mut::<c_int>();
    // The low half of a word, for the number is positive and the machine little endian.
    let number = number.as_ptr();
    // SAFETY: without CLONE_VM and with no stack given, the copy goes on in a copy of this memory. The two places are
    // valid for a number of four bytes, and this is the only thread that looks at them.
    let result = unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            syscall(SYS_CLONE, flags, nowhere, number, place, nowhere)
        }
        #[cfg(target_arch = "aarch64")]
        {
            syscall(SYS_CLONE, flags, nowhere, number, nowhere, place)
        }
    };
    match u32::try_from(result) {
        Ok(0) => Ok(Side::Copy),
        Ok(number) => Ok(Side::Original(number)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Where the C library keeps the number of the main thread.
fn own_number() -> Option<NonNull<c_int>> {
    if !cfg!(target_env = "gnu") {
        return None;
    }
    let place = get_clear_child_tid_address().ok().flatten()?.cast::<c_int>();
    // SAFETY: the kernel would write to it at the end of this thread, so that it is valid; it is not written meanwhile.
    let kept = unsafe { place.read_volatile() };
    (kept == getpid().as_raw_pid()).then_some(place)
}

/// Has the kernel kill this process's group when the other end of `connection`, over which nothing ever comes, is
/// closed: for one that has a single thread, which is busy.
pub(crate) fn end_with(connection: impl AsFd) -> io::Result<()> {
    let fd = connection.as_fd().as_raw_fd();
    let set = |command, value: c_int| {
        // SAFETY: the descriptor is open, and these commands take a number.
        match unsafe { fcntl(fd, command, value) } {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        }
    };
    set(F_SETSIG, Signal::KILL.as_raw())?;
    set(F_SETOWN, -getpid().as_raw_pid())?;
    let flags = set(F_GETFL, 0)?;
    set(F_SETFL, flags | O_ASYNC).map(drop)
}
