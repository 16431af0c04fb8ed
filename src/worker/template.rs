//! A template: it runs the initializer once, and is then copied, warm, as often as the parent wants.
//!
//! It has a single thread when it is copied, for what else would run, or hold a lock, does not exist in a copy. While the
//! initializer runs there is a second one, which watches the parent.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::setpgid;

use super::enter::{initialize, invalid, receive, say};
use super::{stdio, watch};
use crate::init::MARKER;
use crate::process::large_pages;
use crate::shared::ledger::Ledger;
use crate::shared::{environment, fork};
use crate::wire::codec::{self, message_bytes};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{InitFailure, LimitOption, Ready, kind};
use crate::wire::transport::Receiver;

/// The pause between two looks at threads that are about to end.
const LOOKS_AGAIN: Duration = Duration::from_millis(1);

/// Runs the initializer, and copies this process until the parent wants no more. In a copy: its connection.
///
/// Nothing ever comes over `control`, whose other end closes with the parent.
pub(super) fn serve(
    connection: &OwnedFd,
    receiver: &mut Receiver,
    ledger: &Ledger,
    control: OwnedFd,
    initializer: Option<(u32, Bytes)>,
    patience: Duration,
) -> io::Result<Option<OwnedFd>> {
    let mut bytes = Outgoing::buffer(64);
    if let Err(failure) = prepare(control, initializer, patience) {
        message_bytes(&failure, &mut bytes);
        say(connection, Outgoing::new(kind::INIT_FAILED, bytes, Vec::new()))?;
        return Ok(None);
    }
    // The parent looks whether that is the process that it has started: copies are children of whoever did that.
    ledger
        .forked()
        .store(u64::from(std::process::id()), Ordering::Release);
    message_bytes(&Ready { memory: None }, &mut bytes);
    say(connection, Outgoing::new(kind::READY, bytes, Vec::new()))?;
    // From here on the end of the connection is seen as soon as it comes.
    while let Some(Message { kind, body, fds, .. }) = receive(connection, receiver)? {
        if kind == kind::SHUTDOWN {
            break;
        }
        let Ok([theirs, stderr]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(invalid("what asks for a copy lacks its descriptors"));
        };
        if kind != kind::FORK {
            return Err(invalid(format!("message kind {kind}")));
        }
        let marker: String = codec::decode(&body).map_err(invalid)?;
        io::stdout().flush().ok();
        let copied = match fork::sibling(ledger.forked()) {
            Ok(fork::Side::Copy) => {
                begin(&marker, stderr)?;
                return Ok(Some(theirs));
            }
            Ok(fork::Side::Original(number)) => Ok(number),
            Err(error) => Err(error.to_string()),
        };
        let mut bytes = Outgoing::buffer(16);
        message_bytes::<Result<u32, String>>(&copied, &mut bytes);
        say(connection, Outgoing::new(kind::FORKED, bytes, Vec::new()))?;
    }
    Ok(None)
}

/// Runs the initializer, which must leave a single thread. Others have so long to end.
fn prepare(
    control: OwnedFd,
    initializer: Option<(u32, Bytes)>,
    patience: Duration,
) -> Result<(), InitFailure> {
    let refused = |reason| {
        Err(InitFailure::Limit {
            option: LimitOption::StartMethod,
            reason,
        })
    };
    if let Some(obstacle) = fork::obstacle() {
        return refused(format!("this process cannot be forked: {obstacle}"));
    }
    large_pages::forget();
    if let Some((row, argument)) = initializer {
        let watch = watch::while_busy(control).map_err(|error| InitFailure::Setup(error.to_string()))?;
        let initialized = initialize(row, &argument);
        watch.end();
        initialized?;
    }
    let began = Instant::now();
    loop {
        match fork::threads() {
            Some(1) => return Ok(()),
            // One that has been waited for may take a moment until it is gone, in a scope more than that.
            Some(2..) if began.elapsed() < patience => thread::park_timeout(LOOKS_AGAIN),
            Some(threads) => {
                return refused(format!(
                    "the template has {threads} threads when its initializer has run, and can be forked with a \
                     single one: a lock that another holds would be held for ever in the copy"
                ));
            }
            None => {
                return refused("without /proc nobody can tell how many threads the template has".to_owned());
            }
        }
    }
}

/// The first steps of a copy: what a process that is executed has from the start.
fn begin(marker: &str, stderr: OwnedFd) -> io::Result<()> {
    // The parent does the same, so that there is a group whoever comes first.
    setpgid(None, None).ok();
    if !environment::replace(MARKER, marker) {
        return Err(invalid("the environment has no marker any more"));
    }
    stdio::take_stderr(stderr)
}
