//! Bounds on waiting: a test that hangs fails instead.

use std::future::IntoFuture;
use std::time::{Duration, Instant};

/// What anything may take before it counts as a hang.
pub(crate) const FUSE: Duration = Duration::from_secs(30);

/// Awaits `future` under the fuse.
pub(crate) async fn within<F: IntoFuture>(future: F) -> F::Output {
    match tokio::time::timeout(FUSE, future.into_future()).await {
        Ok(output) => output,
        Err(_) => panic!("nothing happened within {FUSE:?}"),
    }
}

/// Looks at something that tells nobody when it changes, such as a process table, until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < FUSE, "not within {FUSE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Receives from a channel under the fuse.
pub(crate) fn receive<T>(receiver: &std::sync::mpsc::Receiver<T>) -> T {
    match receiver.recv_timeout(FUSE) {
        Ok(value) => value,
        Err(error) => panic!("{error} within {FUSE:?}"),
    }
}
