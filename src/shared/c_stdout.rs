//! The C library's standard output, which tasks in other languages print to.

#![expect(unsafe_code, reason = "the C library's streams are reached through it only")]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// `_IOLBF` of glibc and musl.
const LINES: c_int = 1;

unsafe extern "C" {
    static mut stdout: *mut c_void;
    fn setvbuf(stream: *mut c_void, buffer: *mut c_char, mode: c_int, size: usize) -> c_int;
}

/// Has C code write its lines as they end. It finds a pipe or a file where its standard output should be, and would
/// otherwise keep what it prints until much later, or lose it with the worker.
pub(crate) fn by_lines() {
    // SAFETY: the C library has set the pointer before any of this program ran, and nobody here changes it.
    let stream = unsafe { stdout };
    // SAFETY: the stream is open; with no buffer given the C library makes its own. Where something was printed before,
    // this may have no effect, and nothing else.
    unsafe { setvbuf(stream, ptr::null_mut(), LINES, 0) };
}
