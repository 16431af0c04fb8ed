//! The last that this program does.

#![expect(
    unsafe_code,
    reason = "the section of functions that run at a program's end is written to by name"
)]

/// Runs when `main` has returned or `exit` was called, while other threads still run.
extern "C" fn at_exit() {
    // Nothing may unwind from here.
    std::panic::catch_unwind(crate::process::listen::at_exit).ok();
}

// SAFETY: the section holds pointers to functions of this type, which the C library calls once each.
#[unsafe(link_section = ".fini_array")]
#[used]
static AT_EXIT: extern "C" fn() = at_exit;
