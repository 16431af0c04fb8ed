//! What is shared below the level of Rust: memory that several processes map, descriptors that a reactor watches,
//! what signals do; and every `unsafe` line that this takes.

pub(crate) mod at_exit;
pub(crate) mod c_stdout;
pub(crate) mod environment;
pub(crate) mod fork;
pub(crate) mod delivery;
pub(crate) mod ledger;
pub(crate) mod pages;
pub(crate) mod same;
pub(crate) mod watched;
pub(crate) mod dispositions;
