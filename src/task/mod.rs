//! A task as a value, and the table that names every function that can be one.

pub(crate) mod table;
pub(crate) mod encode;
pub(crate) mod entry;
pub(crate) mod initializer;
pub(crate) mod arguments;
