//! Variables of this process's own environment, changed while it has a single thread.

#![expect(unsafe_code, reason = "the environment is the C library's, and raw memory")]

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    static mut environ: *const *mut c_char;
}

/// Sets the variable `name`, or removes it. `false` where there is more than one thread.
pub(crate) fn set(name: &str, value: Option<&str>) -> bool {
    if super::fork::threads() != Some(1) {
        return false;
    }
    match value {
        // SAFETY: there is one thread, this one, and nobody else reads the environment.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
    true
}

/// Gives the variable `name` another value of the same length, in place: so that others see it in
/// `/proc/<pid>/environ`, and what is started here inherits it. `false` where there is no variable of that length, or
/// more than one thread.
pub(crate) fn replace(name: &str, value: &str) -> bool {
    if super::fork::threads() != Some(1) {
        return false;
    }
    // SAFETY: there is one thread, this one, and it changes nothing meanwhile.
    let mut entry = unsafe { environ };
    while !entry.is_null() {
        // SAFETY: the list goes on up to its null pointer.
        let variable = unsafe { *entry };
        if variable.is_null() {
            break;
        }
        // SAFETY: variables end with a NUL byte, and nobody changes them meanwhile.
        let text = unsafe { CStr::from_ptr(variable) }.to_bytes();
        let old = text
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="));
        if let Some(old) = old {
            if old.len() != value.len() {
                return false;
            }
            // SAFETY: the value begins behind the name and the sign, within the variable.
            let start = unsafe { variable.add(name.len() + 1) };
            // SAFETY: as many bytes as are there already, in memory that belongs to this process and is writable.
            unsafe { start.copy_from_nonoverlapping(value.as_ptr().cast(), value.len()) };
            return true;
        }
        // SAFETY: the list goes on behind what was not its end.
        entry = unsafe { entry.add(1) };
    }
    false
}
