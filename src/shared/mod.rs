//! What is shared below the level of Rust: memory that several processes map, descriptors that a reactor watches;
//! and every `unsafe` line that this takes.

pub(crate) mod ledger;
pub(crate) mod watched;
