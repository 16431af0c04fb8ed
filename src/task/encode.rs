//! The message that asks for a task.

use serde::Serialize;

use super::table;
use crate::wire::attachments;
use crate::wire::codec::{self, EncodeError};
use crate::wire::frame::{HEADER, Outgoing};
use crate::wire::message::kind;

/// Asks for the task of the row `row` with `argument`, of at most `limit` bytes.
pub(crate) fn single<A: Serialize>(row: u32, argument: &A, limit: u64) -> Result<Outgoing, EncodeError> {
    let mut bytes = Outgoing::buffer(48);
    bytes.extend_from_slice(&row.to_le_bytes());
    let (tail, fds) = attachments::collect(|| codec::encode_with_tail(argument, &mut bytes, limit));
    let tail = tail.map_err(|error| *error)?;
    Ok(Outgoing::new(kind::TASK, bytes, fds).with_head(tail - HEADER))
}

/// The name of the task of the row `row`.
pub(crate) fn name(row: u32) -> &'static str {
    table::entry(row).map_or("", |entry| entry.name)
}
