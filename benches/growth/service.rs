//! What measurements run in, and on.

use std::future::Future;
use std::time::Duration;

use procession::{BuildError, Pool};

use crate::Error;
use crate::figures::Figures;
use crate::tasks::successor;

/// Runs a measurement in a spawned task of tokio's default runtime, as the handlers of a service run.
pub(crate) fn in_service<F>(measurement: F) -> Result<Figures, Error>
where
    F: Future<Output = Result<Figures, Error>> + Send + 'static,
{
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async { tokio::spawn(measurement).await? })
}

pub(crate) async fn pool(workers: usize) -> Result<Pool, BuildError> {
    Pool::builder().workers(workers).build().await
}

/// Has every worker give a result, and the pool's paths be warm.
pub(crate) async fn warm(pool: &Pool) -> Result<(), Error> {
    let workers = pool.workers().len();
    let calls: Vec<_> = (0..20 * workers as u64)
        .map(|n| pool.apply_async(successor, n))
        .collect();
    for call in calls {
        call.await?;
    }
    Ok(())
}

/// Their process ids.
pub(crate) fn workers(pool: &Pool) -> Vec<u32> {
    pool.workers().iter().filter_map(|worker| worker.pid).collect()
}

/// Blocks the thread, as callbacks must not, and as they do.
#[expect(clippy::disallowed_methods, reason = "it is the blocking that is measured")]
pub(crate) fn block(time: Duration) {
    std::thread::sleep(time);
}
