//! The library's own runtime: one thread on which workers are started, watched and reaped, whatever becomes of the
//! runtimes that pools are used on.

use std::collections::VecDeque;
use std::fmt;
use std::future::pending;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use futures::FutureExt;
use rustix::thread::sched_getaffinity;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::wire::buffers;
use crate::wire::codec::drop_quietly;

/// The library's runtime, started when it is first asked for. It lives until the process ends.
///
/// Its thread is started here and not by tokio, which panics where the system has no more threads.
pub(crate) fn handle() -> io::Result<&'static Handle> {
    static HANDLE: OnceLock<Handle> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(handle) = HANDLE.get() {
        return Ok(handle);
    }
    // Two at a time must not start two.
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = HANDLE.get() {
        return Ok(handle);
    }
    have_descriptors()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    // Shared, so that it is still here when the thread is not: it must not be dropped where somebody awaits.
    let runtime = Arc::new(Mutex::new(Some(runtime)));
    let shared = Arc::clone(&runtime);
    let thread = thread::Builder::new()
        .name("procession".to_owned())
        .spawn(move || {
            if let Some(runtime) = take(&shared) {
                runtime.block_on(pending::<()>());
            }
        });
    if let Err(error) = thread {
        if let Some(runtime) = take(&runtime) {
            runtime.shutdown_background();
        }
        return Err(error);
    }
    Ok(HANDLE.get_or_init(|| handle))
}

/// Has large buffers given back to the system when they have not been used for a while.
pub(crate) fn watch_buffers() {
    let Ok(own) = handle() else {
        return;
    };
    own.spawn(async {
        while let Some(left) = buffers::shed() {
            tokio::time::sleep_until(tokio::time::Instant::now() + left).await;
        }
    });
}

/// Whether a runtime finds the descriptors that it needs: tokio panics where there is none for its signals.
fn have_descriptors() -> io::Result<()> {
    let pairs: io::Result<Vec<_>> = (0..4).map(|_| UnixStream::pair()).collect();
    pairs.map(drop)
}

/// Runs what blocks on a thread of its own, or here where the system has no more threads.
pub(crate) async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, is_done) = oneshot::channel();
    // Shared, so that it is still there when the thread is not.
    let run = Arc::new(Mutex::new(Some(run)));
    let shared = Arc::clone(&run);
    let thread = thread::Builder::new()
        .name("procession-start".to_owned())
        .spawn(move || {
            if let Some(run) = take(&shared) {
                // Nobody may wait for it any more.
                done.send(run()).ok();
            }
        });
    if thread.is_err() {
        let run = take(&run)?;
        return Some(run());
    }
    is_done.await.ok()
}

/// Runs what blocks for a short while, many at a time, in their order on a few threads. They end when nothing is left.
#[derive(Default)]
pub(crate) struct Crew {
    state: Mutex<CrewState>,
}

#[derive(Default)]
struct CrewState {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").finish_non_exhaustive()
    }
}

impl Crew {
    /// It is on its way when this returns. Where the system has no more threads, it has run here.
    pub(crate) fn run<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        self: &Arc<Self>,
        run: F,
    ) -> impl Future<Output = Option<T>> + use<T, F> {
        let (done, is_done) = oneshot::channel();
        // Nobody may wait for it any more.
        if self.push(Box::new(move || drop(done.send(run())))) {
            let crew = Arc::clone(self);
            let thread = thread::Builder::new()
                .name("procession-start".to_owned())
                .spawn(move || crew.work());
            if thread.is_err() {
                self.work();
            }
        }
        is_done.map(Result::ok)
    }

    /// Whether it takes one more thread: there are at most as many as there are processors.
    fn push(&self, job: Box<dyn FnOnce() + Send>) -> bool {
        let mut state = self.lock();
        state.jobs.push_back(job);
        // The standard library's count looks into cgroups, which takes as long as half a start.
        let most = sched_getaffinity(None).map_or(1, |processors| processors.count() as usize);
        let takes_one = state.threads < most;
        state.threads += usize::from(takes_one);
        takes_one
    }

    fn work(&self) {
        let mut state = self.lock();
        while let Some(job) = state.jobs.pop_front() {
            drop(state);
            // One that panics has answered by not answering.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
                drop_quietly(payload);
            }
            state = self.lock();
        }
        state.threads -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, CrewState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take<T>(shared: &Mutex<Option<T>>) -> Option<T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner).take()
}
