//! The curves, a file each.

pub(crate) mod workers;
pub(crate) mod lengths;
pub(crate) mod payloads;
pub(crate) mod depth;
pub(crate) mod callers;
pub(crate) mod pools;
pub(crate) mod idle;
pub(crate) mod looking;
pub(crate) mod fairness;
