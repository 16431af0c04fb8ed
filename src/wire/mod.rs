//! What crosses the connection, from the outside in: bytes to frames, frames to messages, messages to values.
//!
//! `frame` knows no I/O: bytes in, messages out. `message` says what the two sides tell each other, `codec` turns
//! values into bytes and back, `attachments` carries file descriptors beside them, and `transport` moves it all
//! over a socket.

pub(crate) mod body;
pub(crate) mod buffers;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod codec;
pub(crate) mod depth;
mod encoder;
pub(crate) mod tail;
pub(crate) mod attachments;
pub(crate) mod transport;
pub(crate) mod mark;
pub(crate) mod context;
#[cfg(feature = "tracing")]
pub(crate) mod record;
mod refusal;
#[cfg(feature = "json")]
pub(crate) mod json;
