//! Whoever waits for an answer looks for it himself, where that is quicker than to be woken.
//!
//! While few wait each looks for its own. Of more one looks for all, the *lookout*: it sends what the others have
//! submitted, takes the answers of all workers, and gives way to those whom it has woken before it looks again. So
//! that their calls cost no more than one after the other by a single caller, nobody else is woken: neither the
//! driving futures, nor a thread. Where tasks are long enough for the processors to have better things to do, nobody
//! looks.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::call::Call;
use super::dispatch::Shared;
use super::link::Link;
use crate::look::Looks;
use crate::shared::ledger::clock;

/// A lookout that has not looked for so long may be replaced, nanoseconds: its thread has other things to do.
const AWAY: u64 = 100_000;

/// Nobody is the lookout.
const VACANT: u64 = 0;

/// Those who wait for answers.
#[derive(Debug)]
pub(crate) struct Callers {
    /// Callers that exist, whether or not they have submitted their task yet.
    count: AtomicUsize,
    /// When the lookout looked last, on the ledgers' clock, which tells it from others; or [`VACANT`].
    lookout: AtomicU64,
    looks: Mutex<Looks>,
    /// There is a processor for the lookout.
    may_look: AtomicBool,
}

impl Callers {
    /// An answer is looked for so long at most.
    pub(crate) fn new(spin: Duration) -> Self {
        Self {
            count: AtomicUsize::new(0),
            lookout: AtomicU64::new(VACANT),
            looks: Mutex::new(Looks::new(spin)),
            may_look: AtomicBool::new(true),
        }
    }

    /// Says whether there is a processor for a lookout.
    pub(crate) fn set_may_look(&self, may_look: bool) {
        if self.may_look.load(Ordering::Relaxed) != may_look {
            self.may_look.store(may_look, Ordering::Relaxed);
        }
    }

    /// Whether somebody is about to send what waits for workers, and to take what they leave.
    pub(crate) fn has_lookout(&self) -> bool {
        // In total order with what has been put into an outbox: see `Attention::resign`.
        let since = self.lookout.load(Ordering::SeqCst);
        since != VACANT && clock().saturating_sub(since) < AWAY
    }

    /// Becomes the lookout, if there may be one and is none. Gives what tells it from others.
    fn claim(&self) -> Option<u64> {
        if !self.may_look.load(Ordering::Relaxed) {
            return None;
        }
        let since = self.lookout.load(Ordering::Relaxed);
        let now = clock();
        if since != VACANT && now.saturating_sub(since) < AWAY {
            return None;
        }
        let claimed = self
            .lookout
            .compare_exchange(since, now, Ordering::SeqCst, Ordering::Relaxed);
        claimed.is_ok().then_some(now)
    }
}

/// How far a caller is with looking for its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Attention {
    #[default]
    Fresh,
    /// Others had their turn on this thread.
    Waited,
    /// It has looked, and waits to be woken from now on.
    Tired,
}

impl Attention {
    /// Looks for the answer of a call that is pending, once. `true` when it has come.
    pub(crate) fn look(&mut self, shared: &Shared, call: &Arc<Call>, context: &mut Context<'_>) -> bool {
        let most = shared.config.lookers;
        if *self == Self::Tired || shared.callers.count.load(Ordering::Relaxed) > most {
            return false;
        }
        if *self == Self::Fresh && others_wait_for_this_thread() {
            *self = Self::Waited;
            context.waker().wake_by_ref();
            return false;
        }
        // What never waits would leave other futures of its task, and other tasks of its thread, no turn.
        if pin!(tokio::task::coop::consume_budget())
            .poll(context)
            .is_pending()
        {
            return false;
        }
        *self = Self::Tired;
        let link = {
            let core = shared.lock();
            if core.state.has_more_than(most) {
                return false;
            }
            call.place().and_then(|place| core.links.get(place)?.clone())
        };
        link.is_some_and(|link| {
            link.look(shared, || call.is_finished());
            call.is_finished()
        })
    }
}

/// What a caller is to the others. It is told from an earlier or later lookout by when it looked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Post {
    None,
    /// It has become the lookout, and others have not had their turn since.
    Appointed(u64),
    /// It is the lookout, unless another has taken its place.
    Lookout(u64),
}

/// One that waits for one answer; counted for as long as it exists.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) shared: Arc<Shared>,
    attention: Attention,
    post: Post,
}

impl Caller {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.callers.count.fetch_add(1, Ordering::Relaxed);
        Self {
            shared,
            attention: Attention::default(),
            post: Post::None,
        }
    }

    /// Before its task is submitted: a lookout sends that itself, with those of others.
    pub(crate) fn prepare(&mut self) {
        if self.is_one_of_many()
            && let Some(mine) = self.shared.callers.claim()
        {
            self.post = Post::Appointed(mine);
        }
    }

    fn is_one_of_many(&self) -> bool {
        let most = self.shared.config.lookers;
        most > 0 && self.shared.callers.count.load(Ordering::Relaxed) > most
    }

    /// Looks for the answer of its call, which is pending. `true` when it has come.
    pub(crate) fn look(&mut self, call: &Arc<Call>, context: &mut Context<'_>) -> bool {
        let callers = &self.shared.callers;
        match self.post {
            Post::Appointed(mine) | Post::Lookout(mine)
                if mine == callers.lookout.load(Ordering::Relaxed) =>
            {
                if self.post == Post::Lookout(mine) {
                    let found = self.look_for_all(call);
                    if call.is_finished() {
                        return true;
                    }
                    if !found {
                        self.resign();
                        return false;
                    }
                }
                let now = clock();
                // Whoever took its place in this moment has lost it again.
                callers.lookout.store(now, Ordering::SeqCst);
                self.post = Post::Lookout(now);
            }
            _ if self.attention == Attention::Tired => return false,
            _ if self.is_one_of_many() => match callers.claim() {
                Some(mine) => self.post = Post::Lookout(mine),
                None => return false,
            },
            _ => return self.attention.look(&self.shared, call, context),
        }
        give_way(context);
        false
    }

    /// `false` when nothing has come.
    fn look_for_all(&self, call: &Arc<Call>) -> bool {
        let Ok(mut looks) = self.shared.callers.looks.try_lock() else {
            return false;
        };
        let links: Vec<Arc<Link>> = {
            let core = self.shared.lock();
            if !core.state.may_look() {
                return false;
            }
            let links = core.links.iter().flatten();
            links
                .filter(|link| core.state.has_tasks(link.place))
                .cloned()
                .collect()
        };
        looks.begin() && Link::look_at_all(&links, &self.shared, &mut looks, || call.is_finished())
    }

    /// Has its answer, or waits to be woken: if it is the lookout, another may be.
    pub(crate) fn resign(&mut self) {
        let (Post::Appointed(mine) | Post::Lookout(mine)) = self.post else {
            return;
        };
        (self.post, self.attention) = (Post::None, Attention::Tired);
        let lookout = &self.shared.callers.lookout;
        if lookout
            .compare_exchange(mine, VACANT, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            return;
        }
        // Who has submitted something and left it to the lookout has done so before, and it is seen here.
        for link in self.shared.lock().links.iter().flatten() {
            if link.is_waiting() {
                link.wake();
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.resign();
        self.shared.callers.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Has this task polled again when others that are ready have had their turn.
fn give_way(context: &mut Context<'_>) {
    if others_wait_for_this_thread() {
        context.waker().wake_by_ref();
    } else {
        // Not the end of the thread's own queue: there another thread would be woken to steal it.
        let is_pending = pin!(tokio::task::yield_now()).poll(context).is_pending();
        debug_assert!(is_pending, "yields once");
    }
}

/// Whether other tasks may be ready that run on no thread but this one: a task is polled here, not the runtime's root,
/// and another poll costs next to nothing.
fn others_wait_for_this_thread() -> bool {
    tokio::task::try_id().is_some()
        && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}
