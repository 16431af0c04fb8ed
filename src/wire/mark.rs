//! Marks in a worker's output: where one task's words end and another's begin.
//!
//! Output is bytes that anybody may write, a C library or a grandchild too, and the parent reads them late. So the
//! worker writes a mark behind what it has printed and nobody has read when a task ends. A mark is one write of less
//! than `PIPE_BUF`, and begins with bytes that were drawn for this one process.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde::{Deserialize, Serialize};

/// Bytes of a mark.
pub(crate) const MARK: usize = TOKEN + 12;
const TOKEN: usize = 16;

/// What marks begin with: a NUL, and bytes that no output has by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token([u8; TOKEN]);

/// A task and its row, as far as they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) id: u64,
    pub(crate) row: u32,
}

/// What [`Token::find`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A mark at this position.
    Mark(usize, Tag),
    /// What may become one when more bytes come, from this position on.
    Beginning(usize),
    Nothing,
}

impl Token {
    pub(crate) fn random() -> Self {
        let mut token = [0; TOKEN];
        for part in token[1..].chunks_mut(8) {
            // The keys come from the system's random numbers, and are others every time.
            let random = RandomState::new().build_hasher().finish().to_le_bytes();
            part.copy_from_slice(&random[..part.len()]);
        }
        Self(token)
    }

    pub(crate) fn mark(&self, tag: Tag) -> [u8; MARK] {
        let mut mark = [0; MARK];
        mark[..TOKEN].copy_from_slice(&self.0);
        mark[TOKEN..TOKEN + 8].copy_from_slice(&tag.id.to_le_bytes());
        mark[TOKEN + 8..].copy_from_slice(&tag.row.to_le_bytes());
        mark
    }

    pub(crate) fn find(&self, bytes: &[u8]) -> Found {
        let mut from = 0;
        while let Some(at) = bytes[from..].iter().position(|&byte| byte == 0) {
            let at = from + at;
            let rest = &bytes[at..];
            let length = rest.len().min(TOKEN);
            if rest[..length] == self.0[..length] {
                let (Some(id), Some(row)) = (
                    rest.get(TOKEN..).and_then(<[u8]>::first_chunk),
                    rest.get(TOKEN + 8..).and_then(<[u8]>::first_chunk),
                ) else {
                    return Found::Beginning(at);
                };
                let tag = Tag {
                    id: u64::from_le_bytes(*id),
                    row: u32::from_le_bytes(*row),
                };
                return Found::Mark(at, tag);
            }
            from = at + 1;
        }
        Found::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_it_is_cut() {
        let token = Token::random();
        let tag = Tag { id: 7, row: 3 };
        // A NUL that no mark begins with, whatever was drawn.
        let mut bytes = vec![b'a', 0, !token.0[1]];
        bytes.extend_from_slice(&token.mark(tag));
        bytes.extend_from_slice(b"c");
        assert_eq!(token.find(&bytes), Found::Mark(3, tag));
        for end in 4..3 + MARK {
            assert_eq!(token.find(&bytes[..end]), Found::Beginning(3), "{end}");
        }
        assert_eq!(token.find(&bytes[..3]), Found::Nothing);
        assert_eq!(token.find(b"plain"), Found::Nothing);
        assert_ne!(token, Token::random());
    }
}
