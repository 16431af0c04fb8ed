//! What parent and worker say to each other.
//!
//! The worker says [`MAGIC`], then [`Hello`]. The parent says [`Welcome`]: in advance where the worker is the very same
//! program, as an answer to any other. The worker sets itself up and sends `READY` or `INIT_FAILED`. From then on tasks go one way and replies the other, until `SHUTDOWN` and `BYE`.
//! What must reach a worker that is busy goes over a second socket, message by message ([`Control`]).

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::mark::Token;
use crate::error::RemotePanic;
use crate::memory::MemoryMechanism;

/// The version of everything in this folder. Both sides must speak the same.
pub(crate) const PROTOCOL: u32 = 3;

/// The first bytes of a worker. What comes before it is somebody else's: a login banner, say.
pub(crate) const MAGIC: [u8; 16] = *b"\0procession/1\r\n\0";

/// The longest message where values are at most `max_frame_size` long: a value with what stands in front of it, or one
/// of the library's own, a panic with its backtrace, say, whatever the limit for values is.
pub(crate) fn message_limit(max_frame_size: u64) -> u64 {
    max_frame_size.max(1 << 20).saturating_add(4096)
}

/// Message kinds. Their bodies are postcard unless the comment says otherwise.
pub(crate) mod kind {
    /// Worker: [`Hello`](super::Hello).
    pub(crate) const HELLO: u8 = 1;
    /// Parent: [`Welcome`](super::Welcome), with the descriptors that it announces.
    pub(crate) const WELCOME: u8 = 2;
    /// Worker: [`Ready`](super::Ready), send tasks.
    pub(crate) const READY: u8 = 3;
    /// Worker: [`InitFailure`](super::InitFailure).
    pub(crate) const INIT_FAILED: u8 = 4;
    /// Parent: a row number as `u32`, then the argument.
    pub(crate) const TASK: u8 = 5;
    /// Parent: a row number and a count as `u32`, then as many [records](super::super::codec::push_record).
    pub(crate) const CHUNK: u8 = 6;
    /// Worker: the task's run time in nanoseconds as `u32`, then the result.
    pub(crate) const VALUE: u8 = 7;
    /// Worker: [`Failure`](super::Failure).
    pub(crate) const FAILURE: u8 = 8;
    /// Worker: some records of a chunk; more come.
    pub(crate) const PART: u8 = 9;
    /// Worker: the chunk's run time in nanoseconds as `u64`, as the last part of a chunk.
    pub(crate) const CHUNK_END: u8 = 10;
    /// Worker: the ids of tasks that were called back before they started.
    pub(crate) const RECALLED: u8 = 11;
    /// Parent: no more tasks will come; finish and exit.
    pub(crate) const SHUTDOWN: u8 = 12;
    /// Worker: exits now, with nothing left to say.
    pub(crate) const BYE: u8 = 13;
    /// Parent: a chunk whose elements are timed one by one.
    pub(crate) const TIMED_CHUNK: u8 = 14;
    /// Worker: the last part of a chunk that was told to stop before its end; the run time as in `CHUNK_END`.
    pub(crate) const CHUNK_STOPPED: u8 = 15;
    /// Parent: the [`Context`](super::super::context::Context) of the task that follows under the same id.
    pub(crate) const CONTEXT: u8 = 16;
    /// Parent: a template shall copy itself; the copy's marker, with its connection and its standard error.
    pub(crate) const FORK: u8 = 17;
    /// Worker: what has come of it, as `Result<u32, String>`, the number of the copy.
    pub(crate) const FORKED: u8 = 18;

    /// Whether the message is a chunk of tasks.
    pub(crate) fn is_chunk(kind: u8) -> bool {
        matches!(kind, CHUNK | TIMED_CHUNK)
    }
}

/// What a worker says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    pub(crate) version: String,
    pub(crate) target: String,
    /// Of the task table: the same on both sides, or a row number would name different functions.
    pub(crate) fingerprint: u64,
    pub(crate) pid: u32,
    pub(crate) host: String,
}

/// What a process is started for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// To run the tasks of a pool, until that wants no more.
    Worker { pool: String, worker: usize },
    /// To run the initializer and then be copied, with its one thread, into processes of the other kinds.
    Template {
        name: String,
        /// What threads of the initializer's may take to end when it has returned.
        patience: Duration,
    },
    /// To run one function.
    Process {
        name: String,
        /// It starts no processes.
        is_daemon: bool,
        /// It ends when its parent does, and takes along what it started: as a daemon, or because the parent itself is
        /// bound to the end of another.
        is_bound: bool,
        /// It adopts what is orphaned below it while it runs, and buries it, for its parent would have to.
        adopts: bool,
        parent: Parent,
    },
}

/// What a process knows of the one that started it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    pub(crate) pid: u32,
    pub(crate) name: String,
}

/// What a worker needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) role: Role,
    pub(crate) depth: u32,
    pub(crate) max_frame_size: u64,
    pub(crate) tasks_per_worker: usize,
    /// A task row and its encoded argument.
    pub(crate) initializer: Option<(u32, Bytes)>,
    /// Whether the parent wants to know its resident memory after each task.
    pub(crate) measures_memory: bool,
    pub(crate) stdout: Stdout,
    pub(crate) limits: WorkerLimits,
    pub(crate) words: Words,
    /// How long a task is looked for before the worker sleeps.
    pub(crate) spin: Duration,
}

/// What a worker keeps itself to, before its initializer and its first task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerLimits {
    pub(crate) memory: Option<MemoryOrder>,
    pub(crate) cpu_seconds: Option<u64>,
    pub(crate) open_files: Option<u64>,
    pub(crate) file_size: Option<u64>,
    pub(crate) nice: Option<i32>,
    pub(crate) cpus: Option<Vec<usize>>,
    /// `None`: above that of the parent.
    pub(crate) oom_score_adj: Option<i32>,
}

/// A limit on the worker's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryOrder {
    pub(crate) bytes: u64,
    /// `None`: the best that works.
    pub(crate) mechanism: Option<MemoryMechanism>,
    /// The directory of a cgroup that has the limit, for the worker to move into.
    pub(crate) leaf: Option<String>,
}

/// Which limit a worker could not keep itself to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LimitOption {
    Memory,
    Mechanism,
    CpuTime,
    OpenFiles,
    FileSize,
    Nice,
    Affinity,
    OomScore,
    StartMethod,
}

impl LimitOption {
    /// The builder's method.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory_limit",
            Self::Mechanism => "memory_mechanism",
            Self::CpuTime => "cpu_time_limit",
            Self::OpenFiles => "open_files_limit",
            Self::FileSize => "file_size_limit",
            Self::Nice => "nice",
            Self::Affinity => "cpu_affinity",
            Self::OomScore => "oom_score_adj",
            Self::StartMethod => "start_method",
        }
    }
}

/// What a worker says when it is set up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// How its memory limit is kept, if it has one.
    pub(crate) memory: Option<MemoryMechanism>,
}

/// What a worker must do for its words to be told apart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Words {
    /// What marks begin with, where a stream has any.
    pub(crate) token: Option<Token>,
    pub(crate) mark_stdout: bool,
    pub(crate) mark_stderr: bool,
    /// Spans and events up to this verbosity go to the descriptor behind the ledger's memory.
    pub(crate) events: Option<u8>,
}

/// Descriptors of a `Welcome` before those for events, what a process may have to read itself of what it prints, and
/// for stdout: the control socket and the ledger's memory.
pub(crate) const WELCOME_FDS: usize = 2;

/// Where a worker's fd 1 goes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Stdout {
    Null,
    /// To the last descriptor of the `Welcome`.
    Attached,
}

/// Why a worker could not be set up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum InitFailure {
    /// The initializer returned an error.
    Failed(String),
    Task(Failure),
    /// The worker could not prepare itself.
    Setup(String),
    /// The worker could not keep itself to a limit.
    Limit {
        option: LimitOption,
        reason: String,
    },
}

/// How a task failed that a worker survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Panicked(RemotePanic),
    /// The argument, on arrival.
    DecodeArgument(String),
    /// The result, on departure.
    EncodeResult(String),
    TooLarge {
        size: Option<u64>,
        limit: u64,
    },
    /// A row that the table does not have.
    UnknownTask(u32),
    /// An async task that was aborted on request.
    Cancelled,
}

/// What the control socket carries, a datagram each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// Give back every task that has not started.
    Recall,
    /// Stop a task: an async one that shares its worker is dropped, others may ask whether they should end.
    Abort(u64),
}
