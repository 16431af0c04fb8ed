//! The link-time task table.
//!
//! Whoever submits a function emits a row into the linker section `procession_tasks`: the distance to a function
//! that describes the task. Parent and worker are the same binary, so they have the same rows in the same order,
//! and a row's number is all that crosses the wire. A number out of range is refused; one in range is a genuine task,
//! whatever bytes arrive.

#![expect(unsafe_code, reason = "the linker section is raw memory between two symbols")]

use std::arch::asm;
use std::sync::OnceLock;

use super::entry::{Describe, Entry};

/// A distance from where it stands to a `fn() -> Entry`.
type Row = i32;

unsafe extern "C" {
    #[link_name = "__start_procession_tasks"]
    static FIRST: Row;
    #[link_name = "__stop_procession_tasks"]
    static END: Row;
}

/// Emits the row of `D` and gives its number.
///
/// The row exists wherever the call was compiled, whether or not it is ever reached.
#[inline(never)]
pub(crate) fn row<D: Describe>() -> u32 {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the directives only add data to another section; the one instruction computes an address.
    unsafe {
        asm!(
            ".pushsection procession_tasks,\"aR\",@progbits",
            ".p2align 2",
            "77: .long {describe} - .",
            ".popsection",
            "lea {address}, [rip + 77b]",
            describe = sym D::describe,
            address = out(reg) address,
            options(nomem, nostack, preserves_flags),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the directives only add data to another section; the two instructions compute an address.
    unsafe {
        asm!(
            ".pushsection procession_tasks,\"aR\",@progbits",
            ".p2align 2",
            "77: .long {describe} - .",
            ".popsection",
            "adrp {address}, 77b",
            "add {address}, {address}, :lo12:77b",
            describe = sym D::describe,
            address = out(reg) address,
            options(nomem, nostack, preserves_flags),
        );
    }
    ((address - (&raw const FIRST).addr()) / size_of::<Row>()) as u32
}

/// Rows in the table.
pub(crate) fn len() -> u32 {
    // One row stands here, so that the section exists in every program.
    let _ = row::<super::entry::Nothing>();
    (((&raw const END).addr() - (&raw const FIRST).addr()) / size_of::<Row>()) as u32
}

/// What the row `number` describes, if there is such a row.
pub(crate) fn entry(number: u32) -> Option<Entry> {
    if number >= len() {
        return None;
    }
    let first = &raw const FIRST;
    // SAFETY: the number is below the number of rows between the two symbols.
    let row = unsafe { first.add(number as usize) };
    // SAFETY: rows are written by the linker and never change.
    let distance = unsafe { row.read() };
    let describe = row.cast::<u8>().wrapping_offset(distance as isize);
    // SAFETY: only `row` above adds to the section, always the distance to a `fn() -> Entry`.
    let describe = unsafe { std::mem::transmute::<*const u8, fn() -> Entry>(describe) };
    Some(describe())
}

/// A number that two builds share only if their tables are the same: FNV-1a over the rows' names.
pub(crate) fn fingerprint() -> u64 {
    static FINGERPRINT: OnceLock<u64> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for number in 0..len() {
            let entry = entry(number);
            let names = entry
                .map(|entry| [entry.name, entry.argument, entry.result])
                .unwrap_or_default();
            for byte in names.iter().flat_map(|name| name.bytes().chain([0])) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        hash
    })
}

/// Brings a function back from its type alone.
///
/// The parent had a value of `F` when it emitted the row; a second one is as good as the first, for it has no bytes.
pub(crate) fn conjure<F: Copy + 'static>() -> F {
    const { assert_no_captures::<F>() };
    // SAFETY: `F` has no bytes to read, and is `Copy`, so that one more value of it breaks no promise.
    unsafe { std::ptr::NonNull::<F>::dangling().as_ptr().read() }
}

/// Stops the build where a function carries data.
pub(crate) const fn assert_no_captures<F>() {
    assert!(
        size_of::<F>() == 0,
        "this closure captures variables, or is a function pointer, and cannot be sent to another process: \
         pass what it needs as part of the argument, e.g. `pool.apply(|(x, factor)| x * factor, (x, factor))`, \
         and name functions directly instead of through a pointer"
    );
}

#[cfg(test)]
mod tests {
    use super::super::entry::blocking;
    use super::*;

    fn twice(x: u64) -> u64 {
        2 * x
    }

    #[test]
    fn rows_name_what_they_run() {
        fn number<F: Fn(u64) -> u64 + Copy + 'static>(function: F) -> u32 {
            blocking::<F, _, _, _>(&function)
        }
        let numbers = [number(twice), number(|x| x + 1)];
        assert_ne!(numbers[0], numbers[1]);
        assert!(entry(numbers[0]).unwrap().name.ends_with("twice"));
        assert!(entry(numbers[1]).unwrap().name.contains("{{closure}}"));
        assert_eq!(entry(numbers[0]).unwrap().argument, "u64");
    }

    #[test]
    fn a_number_outside_the_table_is_no_entry() {
        assert!(entry(len()).is_none());
        assert!(entry(u32::MAX).is_none());
        assert!((0..len()).all(|number| entry(number).is_some()));
    }
}
