//! What a process of its own leaves to this one: it goes on, and is buried when it ends.
//!
//! That is so in the first process of a container, and in one that has made itself a subreaper. Elsewhere the system
//! has another for it. As long as the process itself runs, it adopts and buries what is orphaned below it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use futures::future::select_all;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid};
use tokio::io::Interest;

use super::child::Child;
use super::descendants::{Stat, adopts, can_see, children};
use super::marked;
use crate::runtime;
use crate::shared::watched::{Watched, watch};

/// Those that one process leaves.
#[derive(Debug)]
pub(crate) struct Orphans {
    leader: Pid,
    /// What they have in their environment, unless they have cleared that.
    mark: String,
    /// Those who are known to be of them, and the process itself, by number and start: others may get the numbers.
    family: HashMap<Pid, u64>,
}

impl Orphans {
    /// Those that `child` will leave; `None` where they are not this process's to bury.
    pub(super) fn of(child: &Child) -> Option<Self> {
        if !adopts() || !can_see() {
            return None;
        }
        let leader = Pid::from_raw(child.pid().cast_signed())?;
        let start = Stat::of(leader)?.start;
        Some(Self {
            leader,
            mark: marked::mark(child.killer().marker()),
            family: HashMap::from([(leader, start)]),
        })
    }

    /// Looks for them, and gives those who live. For when the process has ended and nobody has been told: whoever ends
    /// before that cannot be told from others any more.
    pub(super) async fn gather(mut self) -> Option<(Self, Vec<Arc<OwnedFd>>)> {
        let look = move || {
            let living = self.look();
            (self, living)
        };
        runtime::blocking(look).await
    }

    /// Buries them as they end, until nobody is left.
    ///
    /// Must run on the library's runtime.
    pub(super) async fn bury(mut self, mut living: Vec<Arc<OwnedFd>>) {
        loop {
            let watched: Vec<Watched> = living
                .iter()
                .filter_map(|pidfd| watch(pidfd, Interest::READABLE).ok())
                .collect();
            if watched.is_empty() {
                return;
            }
            // Whoever ends may leave children to this process in its turn, so that all are looked at again.
            drop(select_all(watched.iter().map(|pidfd| Box::pin(pidfd.readable()))).await);
            drop(watched);
            match self.gather().await {
                Some((orphans, left)) => (self, living) = (orphans, left),
                None => return,
            }
        }
    }

    /// Buries those who have ended, and gives the others.
    fn look(&mut self) -> Vec<Arc<OwnedFd>> {
        let own = getpid();
        let own_session = Stat::of(own).map(|stat| stat.session);
        let mut living = Vec::new();
        for pid in children(own).into_iter().filter(|&pid| pid != self.leader) {
            // Looked at when it is open, for until then the number may become another's.
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let Some(stat) = Stat::of(pid).filter(|stat| stat.parent == own.as_raw_pid()) else {
                continue;
            };
            let is_of_them = self.knows(pid)
                || [stat.group, stat.session]
                    .into_iter()
                    .any(|leader| Pid::from_raw(leader).is_some_and(|leader| self.knows(leader)))
                || marked::is_marked(pid, std::slice::from_ref(&self.mark));
            // Nobody starts a process in a third session: this one was left by somebody.
            let is_adopted =
                stat.session != pid.as_raw_pid() && own_session.is_some_and(|own| own != stat.session);
            if is_of_them {
                self.family.insert(pid, stat.start);
            }
            if stat.has_ended() && (is_of_them || is_adopted) {
                let buried = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                waitid(WaitId::PidFd(pidfd.as_fd()), buried).ok();
            } else if is_of_them {
                living.push(Arc::new(pidfd));
            }
        }
        living
    }

    /// Whether the number stands for one of them, who may be gone: it is nobody else's as long as it is that of a group
    /// or a session.
    fn knows(&self, pid: Pid) -> bool {
        let start = self.family.get(&pid);
        start.is_some_and(|&start| Stat::of(pid).is_none_or(|stat| stat.start == start))
    }
}
