//! Spans and events on their way from a worker to its parent.
//!
//! They go through a pipe, where they outlive the worker. Each record is cut into parts of at most `PIPE_BUF` bytes,
//! so that the pipe takes a part whole or not at all:
//!
//! ```text
//! | length (u16) | flags | body …
//! ```

use serde::{Deserialize, Serialize};

/// The longest part, its head included: what a pipe takes in one piece on Linux.
const PART: usize = 4096;
const HEAD: usize = 3;
/// The longest record. Its texts are cut so that most come below.
pub(crate) const LONGEST: usize = 256 * 1024;

const FIRST: u8 = 1;
const LAST: u8 = 2;

/// What a worker tells of its spans and events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// A place in the program, before the first record that names it.
    Site {
        number: u32,
        site: Site,
    },
    Span {
        id: u64,
        site: u32,
        parent: Parent,
        /// The task that made it; 0 where that is not known.
        task: u64,
        values: Values,
    },
    Values {
        id: u64,
        site: u32,
        values: Values,
    },
    Follows {
        id: u64,
        follows: u64,
    },
    Close {
        id: u64,
    },
    Event {
        site: u32,
        parent: Parent,
        task: u64,
        values: Values,
    },
}

/// Where something stands among spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Parent {
    /// Under none, as the worker wished it.
    Root,
    /// Under none of the worker's.
    Outermost,
    Span(u64),
}

/// Values, each with the number of its field.
pub(crate) type Values = Vec<(u8, Value)>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    Bool(bool),
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    F64(f64),
    Text(String),
    /// The `Debug` form of something else.
    Debug(String),
}

/// A place in the program that spans or events come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) target: String,
    /// 1 is an error, 5 a trace.
    pub(crate) verbosity: u8,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) module: Option<String>,
    pub(crate) fields: Vec<String>,
    pub(crate) is_span: bool,
}

/// The parts of a record, each for one write.
pub(crate) fn parts(record: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let count = record.len().div_ceil(PART - HEAD);
    record.chunks(PART - HEAD).enumerate().map(move |(index, body)| {
        let mut flags = 0;
        if index == 0 {
            flags |= FIRST;
        }
        if index + 1 == count {
            flags |= LAST;
        }
        let mut part = Vec::with_capacity(HEAD + body.len());
        part.extend_from_slice(&(body.len() as u16).to_le_bytes());
        part.push(flags);
        part.extend_from_slice(body);
        part
    })
}

/// Puts records together again. A record whose last part never came is left out.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    bytes: Vec<u8>,
    record: Vec<u8>,
    begun: bool,
}

impl Parts {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next record that is whole.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let mut at = 0;
        let mut found = None;
        while found.is_none()
            && let Some(&[low, high, flags]) = self.bytes.get(at..).and_then(<[u8]>::first_chunk)
        {
            let length = usize::from(u16::from_le_bytes([low, high]));
            let Some(body) = self.bytes.get(at + HEAD..at + HEAD + length) else {
                break;
            };
            if flags & FIRST != 0 {
                self.record.clear();
                self.begun = true;
            }
            if self.begun && self.record.len() + length <= LONGEST {
                self.record.extend_from_slice(body);
            } else {
                self.begun = false;
            }
            if flags & LAST != 0 && self.begun {
                self.begun = false;
                found = Some(std::mem::take(&mut self.record));
            }
            at += HEAD + length;
        }
        self.bytes.drain(..at);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_size_come_whole() {
        let records: Vec<Vec<u8>> = [1, 100, PART, 3 * PART]
            .iter()
            .map(|&length| (0..length).map(|n| n as u8).collect())
            .collect();
        let wire: Vec<u8> = records
            .iter()
            .flat_map(|record| parts(record))
            .flatten()
            .collect();
        for step in [1, 7, 5000, wire.len()] {
            let mut together = Parts::default();
            let mut found = Vec::new();
            for piece in wire.chunks(step) {
                together.push(piece);
                while let Some(record) = together.next() {
                    found.push(record);
                }
            }
            assert!(found == records, "in steps of {step}");
        }
    }

    #[test]
    fn a_record_that_was_given_up_is_left_out() {
        let long = vec![1; 2 * PART];
        let mut together = Parts::default();
        together.push(&parts(&long).next().unwrap());
        parts(&[2, 3]).for_each(|part| together.push(&part));
        assert_eq!(together.next(), Some(vec![2, 3]));
        assert_eq!(together.next(), None);
    }

    #[test]
    fn garbage_is_bounded() {
        let mut together = Parts::default();
        for _ in 0..1000 {
            together.push(&[0xff, 0x0f, 0]);
            together.push(&[7; 0x0fff]);
            assert_eq!(together.next(), None);
        }
        assert!(together.record.len() <= LONGEST && together.bytes.is_empty());
    }
}
