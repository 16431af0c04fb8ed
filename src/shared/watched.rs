//! File descriptors that a tokio runtime watches.

#![expect(
    unsafe_code,
    reason = "tokio must be promised that a watched descriptor stays open"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that the current runtime watches.
pub(crate) type Watched = AsyncFd<Arc<OwnedFd>>;

/// Has the current runtime watch a descriptor.
pub(crate) fn watch(fd: &Arc<OwnedFd>, interest: Interest) -> io::Result<Watched> {
    // SAFETY: the result holds a share of the descriptor, which keeps it open, and nobody takes a descriptor out of
    // a shared `OwnedFd` or exchanges the share.
    let watched = unsafe { AsyncFd::register_with_interest(Arc::clone(fd), interest) };
    Ok(watched?)
}
