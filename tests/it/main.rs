//! The pool against real processes, one module for each subject.
//!
//! The crate's feature `auto-init` makes workers of this binary before its `main`, so that no test has a line for it.

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
mod codec;
mod duplex;
mod panics;
mod stdio;
mod lost_workers;
mod start;
mod runtimes;
mod nested;
mod shutdown;
mod stats;
