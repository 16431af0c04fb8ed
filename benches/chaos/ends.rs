//! Pools that come and go, ended in every way there is while tasks are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::future::join_all;
use procession::{BuildError, Pool};
use tokio::time::timeout;

use crate::load::Load;
use crate::random::Random;
use crate::site::{Site, worn};
use crate::staff::Staff;
use crate::tally::{Class, Outcome, Outcomes};
use crate::tasks::perform;

/// The ways of a pool's end.
const WAYS: [&str; 6] = [
    "close and join",
    "shutdown",
    "terminate",
    "drop",
    "terminate twice, with submits",
    "dropped build",
];

#[derive(Debug, Default)]
pub(crate) struct Ended([AtomicU64; WAYS.len()]);

impl Ended {
    pub(crate) fn table(&self) -> String {
        let counts = WAYS.iter().zip(&self.0);
        let parts: Vec<String> = counts
            .map(|(way, count)| format!("{way} {}", count.load(Relaxed)))
            .collect();
        parts.join(", ")
    }
}

/// Builds and ends pools until the load is over.
pub(crate) async fn come_and_go(
    load: Arc<Load>,
    staff: Arc<Staff>,
    ended: Arc<Ended>,
    number: usize,
    seed: u64,
) {
    let mut random = Random::new(seed);
    let starts = load.tally.starts.path();
    while !load.is_over.load(Relaxed) {
        let way = random.within(0..WAYS.len() as u64) as usize;
        load.wait(number, format!("the build of a pool for '{}'", WAYS[way]));
        let mut builder = Pool::builder().name("brief").workers(1);
        if random.one_in(3) {
            builder = worn(builder, 2);
        }
        if random.one_in(4) {
            builder = builder.shutdown_grace(Duration::from_millis(50));
        }
        let build = staff.watch(builder, &starts).build();
        if WAYS[way] == "dropped build" {
            // One that was built in time is dropped as well.
            drop(timeout(random.micros(0..20_000), build).await);
        } else {
            match build.await {
                Ok(pool) => {
                    let site = Site {
                        name: "brief",
                        pool,
                        may: Outcomes::of(&[Outcome::PoolClosed]),
                        retries: 0,
                        has_memory_limit: false,
                        is_async: false,
                        is_bounded: false,
                        submitters: 0,
                    };
                    load.wait(number, format!("the end of a pool, '{}'", WAYS[way]));
                    use_and_end(&load, site, way, &mut random).await;
                }
                // A worker that is killed before it is ready fails the build.
                Err(BuildError::Handshake { .. }) => {}
                Err(error) => load.tally.mismatch(format!("a pool was not built: {error}")),
            }
        }
        ended.0[way].fetch_add(1, Relaxed);
        load.wait(number, "a pause between pools".to_owned());
        let pause = random.millis(1..200);
        timeout(pause, std::future::pending::<()>())
            .await
            .unwrap_or_default();
        load.wait_over(number);
    }
}

async fn use_and_end(load: &Load, site: Site, way: usize, random: &mut Random) {
    // What a closed pool has accepted it does.
    let may = match WAYS[way] {
        "close and join" => Outcomes::of(&[]),
        _ => site.may,
    };
    let mut calls = Vec::new();
    for _ in 0..random.within(0..40) {
        let order = load.order(random, &site, false);
        let entry = load.tally.enter(site.name, &order, Class::Async, 0, may);
        calls.push((entry, site.pool.apply_async(perform, order)));
    }
    let pause = random.micros(0..30_000);
    timeout(pause, std::future::pending::<()>())
        .await
        .unwrap_or_default();
    match WAYS[way] {
        "close and join" => {
            site.pool.close();
            if let Err(error) = site.pool.join().await {
                load.tally
                    .mismatch(format!("a closed pool was not joined: {error}"));
            }
        }
        "shutdown" => {
            site.pool.shutdown(random.millis(0..100)).await;
        }
        "terminate" => {
            site.pool.terminate();
            if let Err(error) = site.pool.join().await {
                load.tally
                    .mismatch(format!("a terminated pool was not joined: {error}"));
            }
        }
        "drop" => {}
        _ => {
            let (first, second) = (site.pool.clone(), site.pool.clone());
            let ends = [
                tokio::spawn(async move { first.terminate() }),
                tokio::spawn(async move { second.terminate() }),
            ];
            for _ in 0..20 {
                let order = load.order(random, &site, false);
                let entry = load.tally.enter(site.name, &order, Class::Async, 0, may);
                calls.push((entry, site.pool.apply_async(perform, order)));
            }
            join_all(ends).await;
        }
    }
    drop(site);
    for (entry, call) in calls {
        load.tally.settle(&entry, &call.await);
    }
}
