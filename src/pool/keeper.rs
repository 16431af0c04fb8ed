//! One keeper per pool: it has workers started, and does what is due at a certain time.
//!
//! It runs on the library's own runtime, and only when there is something to do: an idle pool wakes nobody.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::call::{Call, Outcome};
use super::dispatch::{CHUNK_GRACE, Core, RECALL_GRACE, Shared};
use super::in_flight::Stop;
use super::link::Link;
use super::state::WorkerState;
use super::supervisor::{Services, supervise};
use super::timers::after;
use crate::error::{Cause, TimeLimit};
use crate::shared::ledger::clock;
use crate::signals::suspended_between;

/// A task that runs for longer than this is long: nothing waits behind it.
const LONG: Duration = Duration::from_millis(10);
/// The same while a worker is idle.
const LONG_BESIDE_IDLE: Duration = Duration::from_millis(1);

/// A worker that is to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// Its index in the state.
    pub(crate) worker: usize,
    pub(crate) number: usize,
    /// Predecessors that failed to start, or died with nothing to do, one after the other.
    pub(crate) failures: u32,
}

/// What is to be done at a certain time. `process` tells a worker from another that has its index later.
#[derive(Debug)]
pub(crate) enum Due {
    /// A task that has not started may have waited too long, or its deadline has come.
    Expire(Weak<Call>),
    /// A task at a worker may run for too long.
    Check { worker: usize, process: u64 },
    /// Tasks may wait at a worker behind one that is long.
    Wait { worker: usize, process: u64 },
    /// A task that shall be stopped may still stand at its worker.
    Stop { worker: usize, process: u64, id: u64 },
    /// A worker is old.
    Age { worker: usize, process: u64 },
    /// A worker may have been idle for long.
    Idle { worker: usize, process: u64 },
}

/// When a worker is looked at, and since when it has nothing to do.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The next look at how long its tasks have run.
    check: Option<Instant>,
    idle_since: Option<Instant>,
    /// A look at what waits there is due.
    wait_check: bool,
    /// A look at how long it has been idle is due.
    idle_check: bool,
}

/// Keeps a pool until it is over.
pub(crate) async fn keep(
    shared: Arc<Shared>,
    services: Arc<Services>,
    mut starts: mpsc::UnboundedReceiver<Start>,
) {
    let over = shared.workers_gone();
    tokio::pin!(over);
    loop {
        tokio::select! {
            start = starts.recv() => {
                let Some(start) = start else { return };
                services.own.spawn(supervise(Arc::clone(&shared), Arc::clone(&services), start));
            }
            () = shared.timers.wait() => shared.do_due(),
            () = &mut over => {
                if let Some(template) = &shared.template {
                    template.stop();
                }
                return;
            }
        }
    }
}

impl Shared {
    /// Does everything that is due.
    fn do_due(&self) {
        while let Ok(due) = self.timers.pop(Instant::now()) {
            match due {
                Due::Expire(call) => {
                    if let Some(call) = call.upgrade() {
                        self.expire(&call);
                    }
                }
                Due::Check { worker, process } => self.check(worker, process),
                Due::Wait { worker, process } => self.look_behind(worker, process),
                Due::Stop { worker, process, id } => {
                    let mut core = self.lock();
                    if let Some(link) = core.link(worker, process) {
                        let started = link.ledger.started();
                        let has_started = |id| started.iter().any(|started| started.id == id);
                        if core.state.unresponsive(worker, id, has_started) {
                            self.timers.insert(after(RECALL_GRACE), due);
                        }
                        self.act(core);
                    }
                }
                Due::Age { worker, process } => {
                    let mut core = self.lock();
                    if core.link(worker, process).is_some() {
                        core.state.worn(worker);
                        self.act(core);
                    }
                }
                Due::Idle { worker, process } => self.idle(worker, process),
            }
        }
    }

    /// A task's time to wait is up, or its deadline has come.
    fn expire(&self, call: &Arc<Call>) {
        let limit = match call.waited(Instant::now()) {
            Ok(limit) => limit,
            Err(Some(at)) => return call.watch(&self.timers, at),
            Err(None) => return,
        };
        let mut ran = None;
        // The process where it has been revoked, and that has been heard since.
        let mut heard = None;
        // One revokes at a time, and as long as the lock is held the task stays where it is.
        let mut core = self.lock();
        while let Some(link) = core.link_of(call.id()) {
            let id = call.id();
            if heard == Some(link.process) && link.ledger.is_revoked(id) {
                break;
            }
            let has_started = || link.ledger.started().iter().any(|started| started.id == id);
            if has_started() {
                drop(core);
                return match call.deadline() {
                    Some(deadline) if deadline <= Instant::now() => self.overrun(link.place, link.process),
                    Some(deadline) => call.watch(&self.timers, deadline),
                    None => {}
                };
            }
            // From now on it does not start. If it has done so meanwhile, it is told to end.
            link.ledger.revoke(id);
            drop(core);
            ran = has_started().then_some((link.number, link.pid));
            // It may be over: what has been answered in time counts, whether or not somebody has read it yet.
            link.read_all(self);
            heard = Some(link.process);
            core = self.lock();
        }
        if ran.is_none()
            && let Some(link) = core.link_of(call.id())
            && core
                .state
                .may_have_started(link.place, call.id(), &link.ledger.last_started())
        {
            if !core.state.is_stopping(link.place, call.id()) {
                // It is over, with its answer still at the worker, or was revoked in time: the worker says which.
                let stop = Stop::Yes {
                    settled: false,
                    polite: true,
                };
                core.state.stop(link.place, call.id(), stop);
                self.act(core);
                call.watch(&self.timers, after(CHUNK_GRACE));
                return;
            }
            // It does not say. Nobody is told that it has not run.
            ran = Some((link.number, link.pid));
        }
        let cause = Cause::TimedOut { limit, ran };
        if call.id() == 0 {
            // Whoever is about to submit it finds that its time is up.
            drop(core);
            call.complete(Err(call.error(cause)), &self.callbacks);
        } else {
            self.end_call(core, call, cause);
        }
    }

    /// Has the tasks at a worker looked at by `at`.
    pub(crate) fn check_by(&self, link: &Link, at: Instant) {
        let mut watch = link.lock_watch();
        if watch.check.is_some_and(|check| check <= at) {
            return;
        }
        watch.check = Some(at);
        let due = Due::Check {
            worker: link.place,
            process: link.process,
        };
        self.timers.insert(at, due);
    }

    /// A task was sent to a busy worker: it must not wait there for long while others could have it.
    pub(crate) fn wait_at(&self, core: &Core, link: &Link) {
        // A single worker has nobody to leave it to.
        if self.config.workers > 1 {
            self.flush_later(core, link);
        }
    }

    /// Has somebody look after a while whether there is something that has not been sent to the worker.
    pub(crate) fn flush_later(&self, core: &Core, link: &Link) {
        let mut watch = link.lock_watch();
        if !watch.wait_check {
            watch.wait_check = true;
            drop(watch);
            let due = Due::Wait {
                worker: link.place,
                process: link.process,
            };
            self.timers.insert(after(core.patience()), due);
        }
    }

    /// Looks whether tasks wait at a worker behind long ones, and takes them back.
    fn look_behind(&self, worker: usize, process: u64) {
        let mut core = self.lock();
        let Some(link) = core.link(worker, process) else {
            return;
        };
        link.lock_watch().wait_check = false;
        if link.is_waiting() {
            link.wake();
        }
        if !core.state.has_waiting(worker) {
            return;
        }
        let started = link.ledger.started();
        let last = started.iter().map(|started| started.since).max();
        let ran = last.map_or(0, |since| clock().saturating_sub(since));
        let is_full = started.len() == self.config.tasks_per_worker;
        if is_full && u128::from(ran) >= core.patience().as_nanos() {
            core.state.rescue(worker);
            self.act(core);
        } else {
            self.wait_at(&core, &link);
        }
    }

    /// Looks how long tasks at a worker have run.
    fn check(&self, worker: usize, process: u64) {
        let Some(link) = self.lock().link(worker, process) else {
            return;
        };
        {
            let mut watch = link.lock_watch();
            match watch.check {
                // An earlier look took this one's place and has arranged for the next.
                Some(check) if check > Instant::now() => return,
                _ => watch.check = None,
            }
        }
        self.overrun(worker, process);
    }

    /// Stops the tasks at a worker whose time is up, and arranges for the next look.
    fn overrun(&self, worker: usize, process: u64) {
        let Some(link) = self.lock().link(worker, process) else {
            return;
        };
        // What has been answered in time counts, whether or not somebody has read it yet.
        link.read_all(self);
        let mut done: Vec<(Arc<Call>, Outcome)> = Vec::new();
        let mut core = self.lock();
        if core.link(worker, process).is_none() {
            return;
        }
        let (now, ticks) = (Instant::now(), clock());
        let started = link.ledger.started();
        let mut next: Option<Instant> = None;
        let mut overdue = Vec::new();
        for (id, call) in core.state.tasks_at(worker) {
            let since = started.iter().find(|started| started.id == id);
            if since.is_some() && call.is_late(now) {
                overdue.push((id, Arc::clone(call), TimeLimit::Deadline));
                continue;
            }
            let Some(timeout) = call.timeout() else { continue };
            let ran = since.map_or(Duration::ZERO, |started| {
                let stood_still = suspended_between(started.since, ticks);
                Duration::from_nanos(ticks.saturating_sub(started.since).saturating_sub(stood_still))
            });
            if ran >= timeout {
                overdue.push((id, Arc::clone(call), TimeLimit::Timeout(timeout)));
            } else {
                let end = after(timeout.saturating_sub(ran));
                next = next.into_iter().chain([end]).min();
            }
        }
        for (id, call, limit) in overdue {
            self.stop_late(&mut core, &link, id, call, limit, &mut done);
        }
        self.act(core);
        if let Some(next) = next {
            self.check_by(&link, next);
        }
        self.complete(done);
    }

    /// Stops a task that runs and whose time is up.
    fn stop_late(
        &self,
        core: &mut Core,
        link: &Link,
        id: u64,
        call: Arc<Call>,
        limit: TimeLimit,
        done: &mut Vec<(Arc<Call>, Outcome)>,
    ) {
        let polite = self.may_end(link);
        // What a chunk has finished is with its worker, so that it ends as that does.
        let settled = !call.is_chunk();
        if core
            .state
            .stop(link.place, id, Stop::Yes { settled, polite })
            .is_none()
        {
            return;
        }
        self.ask_to_end(link, id, polite);
        if settled {
            let cause = Cause::TimedOut {
                limit,
                ran: Some((link.number, link.pid)),
            };
            core.fail(link, call, 0, cause, done);
        } else {
            link.set_overdue(id, limit);
        }
    }

    /// After answers of a worker: whether it should be replaced, and whether it is idle.
    pub(crate) fn look_at(&self, core: &mut Core, link: &Link) {
        if core.end.is_some() {
            return;
        }
        if let Some(most) = self.config.max_worker_memory
            && link.ledger.resident() > most
            && !link.set_worn()
        {
            core.state.worn(link.place);
        }
        if self.config.can_shrink() {
            let is_idle = core.state.is_idle(link.place);
            let mut watch = link.lock_watch();
            watch.idle_since = is_idle.then(Instant::now);
            if is_idle && !watch.idle_check && core.state.size() > self.config.least_workers {
                watch.idle_check = true;
                drop(watch);
                self.check_idle(link, after(self.config.idle_timeout));
            }
        }
    }

    fn check_idle(&self, link: &Link, at: Instant) {
        let due = Due::Idle {
            worker: link.place,
            process: link.process,
        };
        self.timers.insert(at, due);
    }

    /// Ends a worker that has been idle for long, where more are there than must be.
    fn idle(&self, worker: usize, process: u64) {
        let mut core = self.lock();
        let Some(link) = core.link(worker, process) else {
            return;
        };
        let mut watch = link.lock_watch();
        let since = watch.idle_since;
        let end = since.and_then(|since| since.checked_add(self.config.idle_timeout));
        if let Some(end) = end
            && end > Instant::now()
        {
            drop(watch);
            self.check_idle(&link, end);
            return;
        }
        // Otherwise it is busy, or stays: the next answer arranges for the next look. One that stands by has none yet.
        let stands_by = core.state.worker_state(worker) == WorkerState::Standby;
        watch.idle_check = stands_by;
        drop(watch);
        if stands_by {
            self.check_idle(&link, after(self.config.idle_timeout));
            return;
        }
        if since.is_some() && core.state.idle(worker) {
            self.act(core);
            self.changed.notify(usize::MAX);
        }
    }

    /// Arranges for what is due in a worker's life: it has just become ready.
    pub(crate) fn watch_over(&self, core: &Core, link: &Link) {
        if let Some(age) = self.config.max_worker_age {
            // Up to a tenth earlier, so that workers of an age are not replaced all at once.
            let spread = u32::try_from(link.process.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60).unwrap_or(0);
            let due = Due::Age {
                worker: link.place,
                process: link.process,
            };
            self.timers.insert(after(age - age / 160 * spread), due);
        }
        if self.config.can_shrink() {
            let mut watch = link.lock_watch();
            watch.idle_since = core.state.is_idle(link.place).then(Instant::now);
            if core.state.size() > self.config.least_workers {
                watch.idle_check = true;
                drop(watch);
                self.check_idle(link, after(self.config.idle_timeout));
            }
        }
    }
}

impl Core {
    /// The worker that a task was sent to and has not answered.
    fn link_of(&self, id: u64) -> Option<Arc<Link>> {
        self.links[self.state.worker_of(id)?].clone()
    }

    /// What a task must run for to be long.
    fn patience(&self) -> Duration {
        if self.state.has_idle_lane() {
            LONG_BESIDE_IDLE
        } else {
            LONG
        }
    }

    /// The worker at an index, if it is still that process.
    fn link(&self, worker: usize, process: u64) -> Option<Arc<Link>> {
        let link = self.links.get(worker)?.as_ref()?;
        (link.process == process).then(|| Arc::clone(link))
    }
}
