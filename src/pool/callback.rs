//! Callbacks: run once each, in order of completion, away from the path that reads results.
//!
//! One thread at a time runs them. Whoever awaits a task goes on after its callbacks have run, so that what they did
//! is visible there. A callback that takes longer than [`PATIENCE`] gives up its turn: its task is released, and
//! another thread goes on with the callbacks behind it. So one that blocks, or that awaits a task which has callbacks
//! of its own, holds up nothing for long.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use event_listener::Event;
use tokio::runtime::Handle;

use super::call::{Call, Outcome};
use crate::wire::codec::drop_quietly;

/// How long a callback may hold up those behind it.
const PATIENCE: Duration = Duration::from_millis(50);
/// Callbacks that may block at the same time before the next one has to wait for them.
const MOST_THREADS: usize = 256;

/// Something to do with a task's outcome.
pub(crate) type Callback = Box<dyn FnOnce(&Outcome) + Send>;

/// A task that has ended, with its callbacks.
pub(crate) struct Job {
    pub(crate) call: Arc<Call>,
    pub(crate) outcome: Outcome,
    pub(crate) callbacks: Vec<Callback>,
}

/// A pool's callbacks. The threads are started when they are first needed and end with the pool.
#[derive(Clone)]
pub(crate) struct Callbacks {
    inner: Arc<Inner>,
}

struct Inner {
    /// Callbacks may spawn on the runtime that the pool was built on.
    runtime: Option<Handle>,
    state: Mutex<State>,
    changed: Condvar,
    /// Told when no callback waits or has its turn.
    settled: Event,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    running: Option<Running>,
    turns: u64,
    threads: usize,
    /// Threads that wait for something to happen.
    waiting: usize,
    /// Threads that look after the running callback.
    watching: usize,
    closed: bool,
}

struct Running {
    turn: u64,
    since: Instant,
    call: Arc<Call>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks")
            .field("waiting", &self.inner.lock().jobs.len())
            .finish()
    }
}

impl Callbacks {
    pub(crate) fn new(runtime: Option<Handle>) -> Self {
        let inner = Inner {
            runtime,
            state: Mutex::default(),
            changed: Condvar::new(),
            settled: Event::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Runs the callbacks of a task, after those of tasks that ended before it.
    pub(crate) fn run(&self, job: Job) {
        let mut state = self.inner.lock();
        state.jobs.push_back(job);
        // Two: one runs, the other looks after it.
        while state.threads < 2 {
            if !self.inner.start_thread(&mut state) {
                break;
            }
        }
        if state.threads == 0 {
            // The system gives no thread. Once is promised, where is not.
            let jobs = std::mem::take(&mut state.jobs);
            drop(state);
            for job in jobs {
                let call = Arc::clone(&job.call);
                run(job);
                call.release();
            }
            return;
        }
        if state.waiting > 0 && state.running.is_none() {
            self.inner.changed.notify_one();
        }
    }

    /// Waits until no callback waits or has its turn. One that blocks has lost its turn after some time.
    pub(crate) async fn settled(&self) {
        loop {
            let settled = self.inner.settled.listen();
            if self.inner.is_settled() {
                return;
            }
            settled.await;
        }
    }

    /// No more callbacks will come. Those that wait still run.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.inner.changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_settled(&self) -> bool {
        let state = self.lock();
        state.jobs.is_empty() && state.running.is_none()
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) -> bool {
        let inner = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("procession-callback".to_owned())
            .spawn(move || inner.work());
        state.threads += usize::from(thread.is_ok());
        thread.is_ok()
    }

    fn work(self: Arc<Self>) {
        let _entered = self.runtime.as_ref().map(Handle::enter);
        let mut state = self.lock();
        loop {
            if let Some(running) = &state.running {
                let waited = running.since.elapsed();
                if waited < PATIENCE || state.threads >= MOST_THREADS {
                    let left = PATIENCE.saturating_sub(waited).max(Duration::from_millis(1));
                    state = self.wait_for(state, left);
                    continue;
                }
                // It blocks: its turn is over, and so is the wait of whoever wants its task.
                if let Some(running) = state.running.take() {
                    drop(state);
                    running.call.release();
                    self.settled.notify(usize::MAX);
                    state = self.lock();
                }
                continue;
            }
            let Some(job) = state.jobs.pop_front() else {
                if state.closed || state.threads > 2 {
                    state.threads -= 1;
                    return;
                }
                state = self.wait(state);
                continue;
            };
            state.turns += 1;
            let turn = state.turns;
            let call = Arc::clone(&job.call);
            state.running = Some(Running {
                turn,
                since: Instant::now(),
                call: Arc::clone(&call),
            });
            if state.waiting > 0 {
                self.changed.notify_one();
            } else if state.watching == 0 && state.threads < MOST_THREADS {
                // Everyone else is in a callback that blocks. Without a thread to look after this one, it may too.
                let _ = self.start_thread(&mut state);
            }
            drop(state);
            run(job);
            state = self.lock();
            if state.running.as_ref().is_some_and(|running| running.turn == turn) {
                state.running = None;
                drop(state);
                call.release();
                self.settled.notify(usize::MAX);
                state = self.lock();
            }
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// Looks after a running callback: whoever does is not waiting for a sign, its time is the sign.
    fn wait_for<'a>(&self, mut state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        state.watching += 1;
        let mut state = self
            .changed
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        state.watching -= 1;
        state
    }
}

fn run(job: Job) {
    let Job {
        outcome, callbacks, ..
    } = job;
    for callback in callbacks {
        // The panic hook has reported it; the task's own outcome is not concerned.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| callback(&outcome))) {
            drop_quietly(payload);
        }
    }
}
