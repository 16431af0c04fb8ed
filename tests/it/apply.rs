//! One call, one result.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};

use procession::{Pool, worker};
use serde::{Deserialize, Serialize};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, gone, pid, pids, pool, same};

fn double(x: u64) -> u64 {
    2 * x
}

fn largest<T: Ord + Copy>(values: Vec<T>) -> Option<T> {
    values.iter().max().copied()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: i32,
    y: i32,
}

impl Point {
    fn mirrored(self) -> Self {
        Self { x: self.y, y: self.x }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Nothing,
    Circle(Point, f64),
    Path { points: Vec<Point>, closed: bool },
}

#[tokio::test]
async fn functions_methods_generics_and_closures_are_tasks() {
    let pool = pool(2).await;
    assert_eq!(within(pool.apply(double, 21)).await.unwrap(), 42);
    assert_eq!(within(pool.apply(|x: u64| x + 1, 1)).await.unwrap(), 2);
    assert_eq!(
        within(pool.apply(largest::<u8>, vec![1, 3, 2])).await.unwrap(),
        Some(3)
    );
    assert_eq!(
        within(pool.apply(largest::<char>, vec!['a', 'c'])).await.unwrap(),
        Some('c')
    );
    let mirrored = within(pool.apply(Point::mirrored, Point { x: 1, y: 2 }))
        .await
        .unwrap();
    assert_eq!(mirrored, Point { x: 2, y: 1 });
    assert_eq!(within(pool.apply(u64::count_ones, 7)).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_and_results_of_many_types_arrive_unchanged() {
    let pool = pool(1).await;
    macro_rules! returns {
        ($type:ty, $value:expr) => {
            let value: $type = $value;
            assert_eq!(
                within(pool.apply(same::<$type>, value.clone()))
                    .await
                    .unwrap(),
                value
            );
        };
    }
    returns!((), ());
    returns!(bool, true);
    returns!(u128, u128::MAX);
    returns!(i64, i64::MIN);
    returns!(f64, -0.5);
    returns!(char, '√');
    returns!(String, "a text\0with\n\"everything\"".to_owned());
    returns!(Vec<u8>, (0..=255).collect());
    returns!(Option<Option<u8>>, Some(None));
    returns!(Result<u8, String>, Err("no".to_owned()));
    returns!((u8, (), [u16; 3]), (1, (), [2, 3, 4]));
    returns!(BTreeMap<String, Vec<i8>>, BTreeMap::from([("a".to_owned(), vec![-1]), (String::new(), vec![])]));
    returns!(Shape, Shape::Nothing);
    returns!(Shape, Shape::Circle(Point { x: 1, y: -1 }, 0.5));
    returns!(
        Shape,
        Shape::Path {
            points: vec![Point { x: 0, y: 0 }],
            closed: true
        }
    );
}

#[tokio::test]
async fn a_tasks_own_error_is_its_value() {
    let pool = pool(1).await;
    let parsed = within(pool.apply(
        |text: String| text.parse::<u8>().map_err(|error| error.to_string()),
        "x".to_owned(),
    ));
    assert_eq!(
        parsed.await.unwrap(),
        Err("invalid digit found in string".to_owned())
    );
}

#[tokio::test]
async fn an_error_of_a_mebibyte_arrives_whole() {
    let pool = pool(1).await;
    let failed = within(pool.apply(|n: usize| Err::<(), String>("e".repeat(n)), 1 << 20)).await;
    assert_eq!(failed.unwrap().unwrap_err().len(), 1 << 20);
    pool.close();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn every_worker_is_a_process_of_its_own() {
    let pool = pool(3).await;
    let started: HashSet<u32> = pids(&pool).into_iter().collect();
    assert_eq!(started.len(), 3);
    assert!(!started.contains(&std::process::id()));

    let mut gates = Vec::new();
    let mut handles = Vec::new();
    for _ in 0..3 {
        let (gate, argument) = gate();
        handles.push(pool.apply_async(wait_at, argument));
        gates.push(gate);
    }
    let seen: HashSet<u32> = gates.iter_mut().map(|gate| gate.entered()).collect();
    assert_eq!(seen, started);
    drop(gates);
    for handle in handles {
        assert!(started.contains(&within(handle).await.unwrap()));
    }
}

#[tokio::test]
async fn a_task_can_ask_where_it_runs() {
    let builder = Pool::builder().workers(2).name("a name");
    let pool = within(builder.build()).await.unwrap();
    assert_eq!(pool.name(), "a name");
    let asked = within(pool.apply(
        |()| {
            (
                worker::is_worker(),
                worker::id(),
                worker::pool_name().map(str::to_owned),
            )
        },
        (),
    ));
    let (is_worker, id, name) = asked.await.unwrap();
    assert!(is_worker);
    assert!(id.is_some_and(|id| id < 2));
    assert_eq!(name.as_deref(), Some("a name"));
    assert!(!worker::is_worker());
    assert_eq!((worker::id(), worker::pool_name()), (None, None));
}

#[tokio::test]
async fn a_workers_state_lasts_from_task_to_task() {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let pool = pool(1).await;
    for expected in 1..=3 {
        let counted = within(pool.apply(|()| COUNTER.fetch_add(1, Ordering::Relaxed) + 1, ()));
        assert_eq!(counted.await.unwrap(), expected);
    }
    assert_eq!(COUNTER.load(Ordering::Relaxed), 0);
}

/// Deeper than the stack of any thread but the main one allows, which is 2 MiB.
fn dig(depth: u32) -> u32 {
    let block = std::hint::black_box([1_u8; 1024]);
    if depth == 0 {
        0
    } else {
        dig(depth - 1) + u32::from(block[depth as usize % 1024])
    }
}

#[tokio::test]
async fn a_task_has_the_main_threads_stack() {
    let pool = pool(1).await;
    assert_eq!(within(pool.apply(dig, 2200)).await.unwrap(), 2200);
}

#[tokio::test]
async fn environment_and_directory_are_the_parents_unless_told_otherwise() {
    let as_parent = pool(1).await;
    let directory = |()| std::env::current_dir().unwrap();
    let path = |name: String| std::env::var(name).ok();
    assert_eq!(
        within(as_parent.apply(directory, ())).await.unwrap(),
        std::env::current_dir().unwrap()
    );
    assert_eq!(
        within(as_parent.apply(path, "PATH".to_owned())).await.unwrap(),
        std::env::var("PATH").ok()
    );

    let builder = Pool::builder()
        .workers(1)
        .env("A_VARIABLE", "its value")
        .current_dir("/");
    let told = within(builder.build()).await.unwrap();
    assert_eq!(
        within(told.apply(directory, ())).await.unwrap(),
        std::path::Path::new("/")
    );
    assert_eq!(
        within(told.apply(path, "A_VARIABLE".to_owned()))
            .await
            .unwrap()
            .as_deref(),
        Some("its value")
    );
    assert_eq!(
        within(told.apply(path, "PATH".to_owned())).await.unwrap(),
        std::env::var("PATH").ok()
    );
}

#[tokio::test]
async fn a_call_that_is_never_polled_runs_nothing() {
    let pool = pool(1).await;
    let file = Scratch::new();
    drop(pool.apply(append, (file.path(), "ran".to_owned())));
    drop(pool.task(append, (file.path(), "ran".to_owned())));
    within(pool.apply(pid, ())).await.unwrap();
    assert_eq!(pool.stats().tasks_done, 1);
    assert!(file.lines().is_empty());
}

#[tokio::test]
async fn a_call_that_is_dropped_while_queued_never_runs() {
    let pool = pool(1).await;
    let file = Scratch::new();
    let (mut gate, argument) = gate();
    let first = pool.apply_async(wait_at, argument);
    let worker = gate.entered();
    for _ in 0..3 {
        let mut queued = Box::pin(pool.apply(append, (file.path(), "ran".to_owned())));
        assert!(futures::poll!(&mut queued).is_pending());
    }
    gate.open();
    assert_eq!(within(first).await.unwrap(), worker);
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
    assert!(file.lines().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_while_it_runs_costs_its_worker_and_nothing_else() {
    let pool = pool(2).await;
    let (mut kept_gate, argument) = gate();
    let kept = pool.apply_async(wait_at, argument);
    let kept_pid = kept_gate.entered();

    let (mut dropped_gate, argument) = gate();
    let mut dropped = Box::pin(pool.apply(wait_at, argument));
    assert!(futures::poll!(&mut dropped).is_pending());
    let dropped_pid = dropped_gate.entered();
    drop(dropped);
    gone(dropped_pid);

    // The worker that takes its place serves.
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), dropped_pid);
    kept_gate.open();
    assert_eq!(within(kept).await.unwrap(), kept_pid);
    eventually("two workers", || pids(&pool).len() == 2);
}

#[tokio::test]
async fn a_call_is_dropped_by_the_callers_own_timeout() {
    let pool = pool(1).await;
    let (gate, argument) = gate();
    let timed = tokio::time::timeout(
        std::time::Duration::from_millis(50),
        pool.apply(wait_at, argument),
    );
    assert!(timed.await.is_err());
    gate.abandoned();
    assert_eq!(within(pool.apply(double, 4)).await.unwrap(), 8);
}

#[tokio::test]
async fn a_thousand_calls_at_once_all_end() {
    let pool = pool(2).await;
    let calls = (0..1000).map(|n| pool.apply(double, n));
    let values = within(futures::future::join_all(calls)).await;
    let values: Vec<u64> = values.into_iter().map(Result::unwrap).collect();
    assert_eq!(values, (0..1000).map(double).collect::<Vec<_>>());
}

#[tokio::test]
async fn hundred_calls_dropped_at_random_points_leave_the_pool_in_order() {
    let pool = pool(2).await;
    // Some are dropped before they are sent, some on their way, some while they run, some when they are done.
    for round in 0..100_u32 {
        let mut call = Box::pin(pool.apply(same::<u32>, round));
        for _ in 0..round % 7 {
            if futures::poll!(&mut call).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        if round % 10 == 0 {
            assert_eq!(within(pool.apply(same::<u32>, round)).await.unwrap(), round);
        }
    }
    assert_eq!(within(pool.map(double, 0..100)).await.unwrap().len(), 100);
    assert_eq!(pool.stats().queued, 0);
}
