//! The message that asks for a task.

use serde::Serialize;

use super::table;
use crate::wire::attachments;
use crate::wire::codec::{self, EncodeError};
use crate::wire::frame::Outgoing;
use crate::wire::message::kind;
use crate::wire::tail::Ending;

/// Asks for the task of the row `row` with `argument`, of at most `limit` bytes.
pub(crate) fn single<A: Serialize>(row: u32, argument: A, limit: u64) -> Result<Outgoing, Box<EncodeError>> {
    message(row, |bytes| codec::encode_with_ending(argument, bytes, limit))
}

/// The same, where the argument is kept.
pub(crate) fn single_kept<A: Serialize>(
    row: u32,
    argument: &A,
    limit: u64,
) -> Result<Outgoing, Box<EncodeError>> {
    message(row, |bytes| codec::encode_kept(argument, bytes, limit))
}

fn message(
    row: u32,
    encode: impl FnOnce(&mut Vec<u8>) -> Result<Ending, Box<EncodeError>>,
) -> Result<Outgoing, Box<EncodeError>> {
    let mut bytes = Outgoing::buffer(48);
    bytes.extend_from_slice(&row.to_le_bytes());
    let (ending, fds) = attachments::collect(|| encode(&mut bytes));
    Ok(Outgoing::new(kind::TASK, bytes, fds).with_ending(ending?))
}

/// The name of the task of the row `row`.
pub(crate) fn name(row: u32) -> &'static str {
    table::entry(row).map_or("", |entry| entry.name)
}
