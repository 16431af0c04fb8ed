//! The pool against real processes, one module for each subject.
//!
//! A constructor makes workers of this binary before its `main`, so that no test has a line for it: what the feature
//! `auto-init` does for others. Turned on here, it would hold for the examples too, which show the life without it.

#![expect(
    clippy::exit,
    clippy::expect_used,
    clippy::let_underscore_must_use,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected has failed; tasks misbehave on purpose"
)]

mod fuse;
mod gate;
mod scene;

mod apply;
mod handles;
mod callbacks;
mod map;
mod imap;
mod asynchronous;
mod limits;
mod worker_limits;
mod admission;
mod service;
mod codec;
mod duplex;
mod large;
mod panics;
mod process;
mod processes;
mod stdio;
mod output;
mod trace_context;
mod tracing;
mod lost_workers;
mod start;
mod start_methods;
mod runtimes;
mod nested;
mod shutdown;
mod endings;
mod host;
mod signals;
mod descendants;
mod soak;
mod stats;
mod times;
mod cancelling;
mod retries;
mod no_waiting;
mod looking;
mod recycling;
mod second_reading;

#[ctor::ctor(unsafe)]
fn enter_worker_mode() {
    procession::init();
}
