//! What values say when they refuse to be encoded or decoded.
//!
//! The errors that pass through a value's serde implementation are as small as can be, for every number could be one.
//! The text of the last is kept here, on the thread that encodes or decodes.

use std::cell::Cell;

thread_local! {
    static TEXT: Cell<String> = const { Cell::new(String::new()) };
}

pub(super) fn keep(text: String) {
    TEXT.set(text);
}

/// What was said last.
pub(super) fn take() -> String {
    TEXT.take()
}
