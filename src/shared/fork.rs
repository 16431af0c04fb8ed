//! Fork without exec, for a process that has a single thread.
//!
//! What is forked is a child of this process's *parent*, as if that had started it: it is the parent's to wait for, its
//! exit status and signals are as those of any other child, and nothing depends on the process that was copied.
//!
//! In a process with several threads a fork would copy the memory in the midst of what the others do, their locks held
//! for ever. That is why nothing here forks the host program, and why the one thread is counted first.

#![expect(unsafe_code, reason = "the system call is reached through the C library only")]

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use rustix::fs::stat;
use rustix::process::getpid;
use rustix::thread::get_clear_child_tid_address;

const CLONE_PARENT: c_long = 0x8000;
const CLONE_PARENT_SETTID: c_long = 0x10_0000;
const CLONE_CHILD_CLEARTID: c_long = 0x20_0000;
const CLONE_CHILD_SETTID: c_long = 0x100_0000;
#[cfg(target_arch = "x86_64")]
const SYS_CLONE: c_long = 56;
#[cfg(target_arch = "x86_64")]
const SYS_SET_ROBUST_LIST: c_long = 273;
#[cfg(target_arch = "x86_64")]
const SYS_GET_ROBUST_LIST: c_long = 274;
#[cfg(target_arch = "aarch64")]
const SYS_CLONE: c_long = 220;
#[cfg(target_arch = "aarch64")]
const SYS_SET_ROBUST_LIST: c_long = 99;
#[cfg(target_arch = "aarch64")]
const SYS_GET_ROBUST_LIST: c_long = 100;

const OBSTACLE: &str = if cfg!(target_env = "gnu") {
    "the kernel does not tell where the number of a thread is kept (PR_GET_TID_ADDRESS)"
} else {
    "it takes glibc"
};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fflush(stream: *mut c_void) -> c_int;
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
pub(crate) fn threads() -> Option<u64> {
    // Each has a directory there, which is a link; two are the directory's own. To list them takes ten times as long.
    stat("/proc/self/task").ok()?.st_nlink.checked_sub(2)
}

/// What keeps this process from being copied, however many threads it has.
///
/// The C library keeps the thread's number in memory, in glibc at the very place that the kernel clears at its end. Where
/// nobody tells that place, a copy would take itself for its original.
pub(crate) fn obstacle() -> Option<&'static str> {
    match own_number() {
        Some(_) => None,
        None => Some(OBSTACLE),
    }
}

/// Copies this process, which has a single thread, into a new child of its parent. The kernel writes the copy's number
/// into `number` before either side goes on, so that it is known there whatever becomes of this process.
///
/// What the C library would do around a fork (`pthread_atfork`) is not done.
///
/// # Errors
///
/// There is more than one thread, or that cannot be seen; there is an [`obstacle`]; the system has no room for another
/// process.
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
    let place = own_number().ok_or_else(|| io::Error::other(OBSTACLE))?.as_ptr();
    // Buffers of C code would be written out by both.
    // SAFETY: a null pointer means all streams.
    unsafe { fflush(ptr::null_mut()) };
    let locks = RobustList::of_this_thread();
    let flags = CLONE_PARENT | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
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
        Ok(0) => {
            locks.tell();
            Ok(Side::Copy)
        }
        Ok(number) => Ok(Side::Original(number)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Where the C library lists the robust mutexes that this thread holds, so that the kernel can tell others when it ends.
/// A copy has the list at the same place, and the kernel has to be told of it anew.
struct RobustList {
    head: *mut c_void,
    length: usize,
}

impl RobustList {
    fn of_this_thread() -> Self {
        let mut list = Self {
            head: ptr::null_mut(),
            length: 0,
        };
        let this_thread: c_int = 0;
        let (head, length) = (&raw mut list.head, &raw mut list.length);
        // SAFETY: both places are valid for what the kernel writes. It never refuses what a thread asks of itself.
        unsafe { syscall(SYS_GET_ROBUST_LIST, this_thread, head, length) };
        list
    }

    fn tell(&self) {
        // SAFETY: the C library keeps the list for as long as the thread lives.
        unsafe { syscall(SYS_SET_ROBUST_LIST, self.head, self.length) };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_is_not_copied() {
        // Tests may run on the first thread, and alone.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv().unwrap_err());
        let listed = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert!(listed >= 2 && threads().is_some_and(|threads| threads >= 2));
        let number = AtomicU64::new(0);
        let error = sibling(&number).unwrap_err();
        assert!(error.to_string().contains("threads"), "{error}");
        assert_eq!(number.into_inner(), 0);
        drop(stop);
        other.join().unwrap();
    }

    #[test]
    fn where_the_number_of_the_thread_is_not_known_there_is_an_obstacle() {
        // On a thread other than the first the place has another number.
        std::thread::spawn(|| assert!(obstacle().is_some()))
            .join()
            .unwrap();
    }
}
