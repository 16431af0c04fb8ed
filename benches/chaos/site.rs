//! The pools that live as long as the run, each with other settings.

use std::sync::Arc;
use std::time::Duration;

use procession::{BuildError, Pool, PoolBuilder, StartMethod};

use crate::staff::Staff;
use crate::tally::{Outcome, Outcomes};
use crate::templates;

/// Where tasks are submitted, and what they may end as there beside what their own options allow.
pub(crate) struct Site {
    pub(crate) name: &'static str,
    pub(crate) pool: Pool,
    pub(crate) may: Outcomes,
    pub(crate) retries: u32,
    pub(crate) has_memory_limit: bool,
    pub(crate) is_async: bool,
    pub(crate) is_bounded: bool,
    /// So many submit at a time.
    pub(crate) submitters: usize,
}

const NAMES: [&str; 7] = [
    "plain", "lanes", "worn", "bounded", "limited", "retrying", "forked",
];

/// At least one worker for each pool and two for those that come and go.
pub(crate) const LEAST_WORKERS: usize = NAMES.len() + 2;

/// Builds all of them, with so many workers altogether.
pub(crate) async fn build_all(
    workers: usize,
    staff: &Arc<Staff>,
    starts: &str,
    templates: &str,
) -> Result<Vec<Site>, BuildError> {
    let mut sites = Vec::new();
    for (index, name) in NAMES.into_iter().enumerate() {
        let workers = workers.saturating_sub(2);
        let share = (workers / NAMES.len() + usize::from(index < workers % NAMES.len())).max(1);
        let builder = Pool::builder().name(name).workers(share);
        let mut may = Outcomes::of(&[]);
        let mut retries = 0;
        let builder = match name {
            "lanes" => builder
                .tasks_per_worker(8)
                .cancel_grace(Duration::from_millis(50)),
            "worn" => worn(builder, share),
            "bounded" => {
                may = may.with(&[Outcome::QueueFull]);
                builder.queue_capacity(16).term_grace(Duration::ZERO)
            }
            "forked" => builder
                .start_method(StartMethod::ForkServer)
                .initializer(templates::enter, templates.to_owned()),
            "limited" => builder.memory_limit(160 << 20),
            "retrying" => {
                may = may.with(&[Outcome::TimedOutRunning]);
                retries = 2;
                builder
                    .task_retries(retries)
                    .task_timeout(Duration::from_secs(2))
                    .term_grace(Duration::from_millis(20))
            }
            _ => builder,
        };
        sites.push(Site {
            name,
            pool: staff.watch(builder, starts).build().await?,
            may,
            retries,
            has_memory_limit: name == "limited",
            is_async: name == "lanes",
            is_bounded: name == "bounded",
            submitters: if name == "lanes" { 16 } else { 4 + 2 * share },
        });
    }
    Ok(sites)
}

/// Workers of a short life.
pub(crate) fn worn(builder: PoolBuilder, most: usize) -> PoolBuilder {
    builder
        .workers_between(1, most)
        .idle_timeout(Duration::from_millis(20))
        .max_tasks_per_worker(300)
        .max_worker_memory(48 << 20)
        .max_worker_age(Duration::from_millis(500))
}
