//! What values say when they refuse to be encoded or decoded.
//!
//! The errors that pass through a value's serde implementation are as small as can be, for every number could be one.
//! The text of the last is kept here, on the thread that encodes or decodes.

use std::cell::Cell;
use std::fmt::{self, Display, Write};

/// What is kept of a text, in bytes: it may quote a value from a worker, however long that is.
const LONGEST: usize = 256 * 1024;

thread_local! {
    static TEXT: Cell<String> = const { Cell::new(String::new()) };
}

/// Keeps what is said in the place of what was said before.
#[cold]
pub(super) fn keep(said: impl Display) {
    let mut text = Bounded(String::new());
    // An error stops what does not fit.
    if write!(text, "{said}").is_err() {
        text.0.push_str(" [cut]");
    }
    TEXT.set(text.0);
}

/// Takes what was said last.
pub(super) fn take() -> String {
    TEXT.take()
}

/// What was said last, and is kept.
pub(super) fn kept() -> String {
    let text = TEXT.take();
    TEXT.set(text.clone());
    text
}

struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = LONGEST.saturating_sub(self.0.len());
        if part.len() <= room {
            self.0.push_str(part);
            return Ok(());
        }
        let end = (0..=room).rev().find(|&end| part.is_char_boundary(end));
        self.0.push_str(&part[..end.unwrap_or(0)]);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_last_and_no_longer_than_it_may_be() {
        keep("first");
        keep(format_args!("{}, {}", "second", 2));
        assert_eq!(kept(), "second, 2");
        assert_eq!((take().as_str(), take().as_str()), ("second, 2", ""));
        keep("\u{e9}".repeat(LONGEST));
        let text = take();
        assert_eq!(text.len(), LONGEST + " [cut]".len());
        assert!(text.ends_with("\u{e9} [cut]"));
    }
}
