//! What can be seen of a pool.

use procession::{Pool, WorkerStatus};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{exists, pids, pool, same};

#[tokio::test]
async fn counts_follow_what_happens() {
    let pool = pool(2).await;
    let fresh = pool.stats();
    assert_eq!(
        (fresh.queued, fresh.in_flight, fresh.tasks_done, fresh.restarts),
        (0, 0, 0, 0)
    );
    assert!(fresh.latency.is_none());
    assert_eq!(fresh.workers.len(), 2);

    let (mut gates, handles): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (gate, argument) = gate();
            (gate, pool.apply_async(wait_at, argument))
        })
        .unzip();
    gates.iter_mut().for_each(|gate| {
        gate.entered();
    });
    let queued: Vec<_> = (0..10).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let busy = pool.stats();
    assert_eq!((busy.queued, busy.in_flight, busy.tasks_done), (10, 2, 0));
    assert!(
        busy.workers
            .iter()
            .all(|worker| worker.status == WorkerStatus::Busy)
    );

    drop(gates);
    for handle in handles.into_iter().chain(queued) {
        within(handle).await.unwrap();
    }
    let done = pool.stats();
    assert_eq!((done.queued, done.in_flight, done.tasks_done), (0, 0, 12));
    assert_eq!(
        done.workers.iter().map(|worker| worker.tasks_done).sum::<u64>(),
        12
    );
    assert!(
        done.workers
            .iter()
            .all(|worker| worker.status == WorkerStatus::Idle)
    );
    let latency = done.latency.unwrap();
    assert!(latency.p50 <= latency.p90 && latency.p90 <= latency.p99 && latency.p99 <= latency.max);
}

#[tokio::test]
async fn workers_are_listed_with_what_they_are() {
    let pool = pool(2).await;
    for (id, worker) in pool.workers().iter().enumerate() {
        assert_eq!(worker.id, id);
        assert!(worker.pid.is_some_and(exists));
        assert!(worker.resident_memory.is_some_and(|bytes| bytes > 100_000));
        assert_eq!(
            (worker.status, worker.tasks_done, worker.restarts),
            (WorkerStatus::Idle, 0, 0)
        );
    }
    within(pool.apply(|_: ()| -> () { std::process::exit(1) }, ()))
        .await
        .unwrap_err();
    eventually("it is replaced", || pids(&pool).len() == 2);
    assert_eq!(pool.stats().restarts, 1);
    assert_eq!(
        pool.workers().iter().map(|worker| worker.restarts).sum::<u64>(),
        1
    );
    pool.close();
    within(pool.join()).await.unwrap();
    assert!(
        pool.workers()
            .iter()
            .all(|worker| worker.status == WorkerStatus::Gone && worker.pid.is_none())
    );
}

#[tokio::test]
async fn failures_count_as_done() {
    let pool = pool(1).await;
    within(pool.apply(|_: ()| -> () { panic!("on purpose") }, ()))
        .await
        .unwrap_err();
    within(pool.apply(same::<u8>, 1)).await.unwrap();
    assert_eq!(pool.stats().tasks_done, 2);
}

#[tokio::test]
async fn the_default_number_of_workers_is_that_of_usable_processors() {
    let pool = within(Pool::new()).await.unwrap();
    let usable = std::thread::available_parallelism().unwrap().get();
    assert_eq!(pool.workers().len(), usable);
    assert_eq!(pids(&pool).len(), usable);
}

#[test]
fn the_default_number_of_workers_honours_the_affinity() {
    crate::scene::alone(
        "stats::the_default_number_of_workers_honours_the_affinity",
        || {
            let all = rustix::thread::sched_getaffinity(None).unwrap();
            let first = (0..rustix::thread::CpuSet::MAX_CPU)
                .find(|&cpu| all.is_set(cpu))
                .unwrap();
            let mut one = rustix::thread::CpuSet::new();
            one.set(first);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            crate::scene::runtime().block_on(async {
                let pool = within(Pool::new()).await.unwrap();
                assert_eq!(pool.workers().len(), 1);
            });
        },
    );
}

#[tokio::test]
async fn a_pool_can_be_printed() {
    let pool = within(Pool::builder().workers(1).name("printed").build())
        .await
        .unwrap();
    let text = format!("{pool:?} {:?}", pool.apply_async(same::<u8>, 1));
    assert!(text.contains("printed") && text.contains("AsyncResult"), "{text}");
}

#[tokio::test]
async fn ps_shows_the_program_the_pool_and_the_worker() {
    let builder = Pool::builder().workers(2).name("images").worker_name("resizer");
    let pool = within(builder.build()).await.unwrap();
    for worker in pool.workers() {
        let pid = worker.pid.unwrap();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let first = String::from_utf8_lossy(line.split(|&byte| byte == 0).next().unwrap()).into_owned();
        assert!(
            first.ends_with(&format!(": images resizer {}", worker.id)),
            "{first}"
        );
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert!(
            name.trim_end().ends_with(&format!("/{}", worker.id)) && name.starts_with("it-"),
            "{name}"
        );
    }
}
