//! An async process pool: functions run in worker processes, results come back as futures.

#[cfg(not(target_os = "linux"))]
compile_error!("procession runs on Linux only, so far");

mod error;
mod init;
mod runtime;
mod pool;
mod process;
mod task;
mod wire;
mod shared;
pub mod worker;

pub use crate::error::{
    BuildError, JoinError, RemotePanic, StartPhase, TaskError, TaskErrorKind, TryApplyError,
};
pub use crate::init::init;
pub use crate::pool::asynchronous::Asynchronous;
pub use crate::pool::builder::{InitializerOutcome, PoolBuilder, WorkerEvent};
pub use crate::pool::handle::Pool;
pub use crate::pool::imap::Imap;
pub use crate::pool::map::{CollectResults, IterSource, Map, MapFuture, Source, StreamSource};
pub use crate::pool::progress::Progress;
pub use crate::pool::result::{Apply, AsyncResult, Task};
pub use crate::pool::stats::{Latency, Stats, WorkerStats, WorkerStatus};
pub use crate::process::output::Output;
pub use crate::task::arguments::{Row, StarFn};
pub use crate::wire::attachments::Fd;
#[cfg(feature = "json")]
pub use crate::wire::json::Json;
