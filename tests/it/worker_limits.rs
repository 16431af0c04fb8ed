//! Limits that workers set themselves, as tasks see them and as they are reached.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::time::Duration;

use procession::{
    BuildError, Fd, MemoryMechanism, Output, Pool, PoolBuilder, TaskError, TaskErrorKind, worker,
};
use rustix::process::{Resource, Rlimit, Signal, getpriority_process, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use tokio::sync::Barrier;

use crate::fuse::{eventually, receive, within};
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, children, exists, pid, pids, same, signal};

/// Far more than a worker of this program needs, and far less than the machine has.
const LIMIT: u64 = 256 << 20;
const MIB: usize = 1 << 20;

fn quiet(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .stdout(Output::null())
        .stderr(Output::null())
}

async fn build(builder: PoolBuilder) -> Pool {
    within(builder.build()).await.unwrap()
}

async fn refusal(builder: PoolBuilder) -> BuildError {
    within(builder.build()).await.map(|_| ()).unwrap_err()
}

/// The option and the reason that an invalid one is refused with.
async fn invalid(builder: PoolBuilder) -> (&'static str, String) {
    match refusal(builder).await {
        BuildError::InvalidOption { option, reason } => (option, reason),
        error => panic!("{error:?}"),
    }
}

fn signal_of(error: &TaskError) -> Option<i32> {
    error.exit_status().and_then(|status| status.signal())
}

/// Task: takes memory and uses it, up to so many MiB. Gives how many it got.
fn hog(most: usize) -> usize {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    while blocks.len() < most {
        let mut block = vec![1; MIB];
        std::hint::black_box(&mut block);
        blocks.push(block);
    }
    blocks.len()
}

/// More than any limit here.
const TOO_MUCH: usize = 2048;

fn limit_of(resource: Resource) -> (Option<u64>, Option<u64>) {
    let Rlimit { current, maximum } = getrlimit(resource);
    (current, maximum)
}

/// Task: processor time, open files, file size.
fn rlimits((): ()) -> [(Option<u64>, Option<u64>); 3] {
    [Resource::Cpu, Resource::Nofile, Resource::Fsize].map(limit_of)
}

fn oom_score<A>(_: A) -> i32 {
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    score.trim().parse().unwrap()
}

fn niceness<A>(_: A) -> i32 {
    getpriority_process(None).unwrap()
}

fn processors(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

#[tokio::test]
async fn a_task_sees_the_limits_in_a_replacement_too() {
    let pool = build(
        quiet(1)
            .cpu_time_limit(Duration::from_millis(99_001))
            .open_files_limit(77)
            .file_size_limit(1 << 30)
            .nice(niceness(()).max(0) + 3),
    )
    .await;
    let expected = [(100, 101), (77, 77), (1 << 30, 1 << 30)].map(|(soft, hard)| (Some(soft), Some(hard)));
    let nice = niceness(()).max(0) + 3;
    assert_eq!(within(pool.apply(rlimits, ())).await.unwrap(), expected);
    assert_eq!(within(pool.apply(niceness, ())).await.unwrap(), nice);
    signal(pids(&pool)[0], Signal::KILL);
    eventually("it is replaced", || pool.stats().restarts == 1);
    assert_eq!(within(pool.apply(rlimits, ())).await.unwrap(), expected);
    assert_eq!(within(pool.apply(niceness, ())).await.unwrap(), nice);
}

#[tokio::test]
async fn what_a_task_starts_has_the_limits() {
    let pool = build(quiet(1).open_files_limit(66).nice(19)).await;
    let printed = |(): ()| {
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -n; nice"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(within(pool.apply(printed, ())).await.unwrap(), "66\n19\n");
}

#[tokio::test]
async fn the_initializer_has_the_limits() {
    let check = |files: u64| -> Result<(), String> {
        match limit_of(Resource::Nofile) {
            (Some(soft), _) if soft == files => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    build(quiet(2).open_files_limit(55).initializer(check, 55)).await;
}

#[tokio::test]
async fn without_options_limits_are_those_of_the_parent() {
    let pool = build(quiet(1)).await;
    assert_eq!(within(pool.apply(rlimits, ())).await.unwrap(), rlimits(()));
    assert_eq!(within(pool.apply(niceness, ())).await.unwrap(), niceness(()));
    let cpus = |(): ()| processors(&sched_getaffinity(None).unwrap());
    assert_eq!(within(pool.apply(cpus, ())).await.unwrap(), cpus(()));
    assert!(pool.stats().workers[0].memory_limit.is_none());
}

#[tokio::test]
async fn the_kernel_would_rather_kill_a_worker_than_the_parent() {
    let own = oom_score(());
    let pool = build(quiet(1)).await;
    assert_eq!(
        within(pool.apply(oom_score, ())).await.unwrap(),
        (own + 500).min(1000)
    );
    let pool = build(quiet(1).oom_score_adj(1000)).await;
    assert_eq!(within(pool.apply(oom_score, ())).await.unwrap(), 1000);
    assert_eq!(oom_score(()), own);
}

#[tokio::test]
async fn each_worker_runs_on_its_processors() {
    let usable = processors(&sched_getaffinity(None).unwrap());
    let of = {
        let usable = usable.clone();
        move |worker: usize| [usable[worker % usable.len()]]
    };
    let pool = build(quiet(3).cpu_affinity(of)).await;
    let at = |gate: Fd| {
        wait_at(gate);
        (
            worker::id().unwrap(),
            processors(&sched_getaffinity(None).unwrap()),
        )
    };
    let (mut gates, handles): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| {
            let (gate, argument) = gate();
            (gate, pool.apply_async(at, argument))
        })
        .unzip();
    gates.iter_mut().for_each(|gate| {
        gate.entered();
    });
    drop(gates);
    for handle in handles {
        let (id, seen) = within(handle).await.unwrap();
        assert_eq!(seen, [usable[id % usable.len()]]);
    }
}

#[tokio::test]
async fn options_without_meaning_are_refused_by_name() {
    let second = Duration::from_secs(1);
    let cases: [(PoolBuilder, &str, &str); 13] = [
        (quiet(1).memory_limit(0), "memory_limit", "zero bytes"),
        (
            quiet(1).memory_mechanism(MemoryMechanism::Watching),
            "memory_mechanism",
            "no memory_limit",
        ),
        (
            quiet(1).cpu_time_limit(Duration::ZERO),
            "cpu_time_limit",
            "no time",
        ),
        (quiet(1).open_files_limit(0), "open_files_limit", "connection"),
        // Raised above what the kernel allows anybody.
        (
            quiet(1).open_files_limit(u64::MAX - 1),
            "open_files_limit",
            "cannot be set",
        ),
        (
            quiet(1).open_files_limit(4),
            "open_files_limit",
            "4 are fewer than a worker has open itself",
        ),
        (quiet(1).file_size_limit(0), "file_size_limit", "zero bytes"),
        (quiet(1).nice(20), "nice", "20 is not within -20 and 19"),
        (quiet(1).nice(-21), "nice", "-21 is not within -20 and 19"),
        (
            quiet(1).oom_score_adj(1001),
            "oom_score_adj",
            "1001 is not within -1000 and 1000",
        ),
        (
            quiet(2).cpu_affinity(|worker| 0..1 - worker),
            "cpu_affinity",
            "worker 1 is given no processor",
        ),
        (
            quiet(1).cpu_affinity(|_| [0, 99_999]),
            "cpu_affinity",
            "worker 0 is given processor 99999, which is none",
        ),
        (
            quiet(1).cpu_time_limit(second).cpu_affinity(|_| [1023]),
            "cpu_affinity",
            "may not use the processors [1023]",
        ),
    ];
    for (builder, option, part) in cases {
        let error = refusal(builder).await;
        let text = error.to_string();
        assert!(text.contains(option) && text.contains(part), "{text}");
        match error {
            BuildError::InvalidOption { option: found, .. } => assert_eq!(found, option),
            error => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn what_takes_a_privilege_is_granted_or_refused_by_name() {
    let nice = niceness(()) - 1;
    let score = oom_score(()) - 1;
    match within(quiet(1).nice(nice).build()).await {
        Ok(pool) => assert_eq!(within(pool.apply(niceness, ())).await.unwrap(), nice),
        Err(error) => {
            let expected =
                format!("nice: {nice} cannot be set, for it is below what this process may give itself");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
    match within(quiet(1).oom_score_adj(score).build()).await {
        Ok(pool) => assert_eq!(within(pool.apply(oom_score, ())).await.unwrap(), score),
        Err(error) => {
            let expected = format!("oom_score_adj: {score} cannot be set: ");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}

#[tokio::test]
async fn an_affinity_that_panics_is_an_error() {
    let builder = quiet(2).cpu_affinity(|worker| if worker == 1 { panic!("no place") } else { [0] });
    let (option, reason) = invalid(builder).await;
    assert_eq!(
        (option, reason.as_str()),
        ("cpu_affinity", "it panicked for worker 1")
    );
}

#[tokio::test]
async fn an_endless_affinity_is_an_error() {
    let (option, reason) = invalid(quiet(1).cpu_affinity(|_| 0..)).await;
    assert_eq!(option, "cpu_affinity");
    assert!(reason.contains("which is none"), "{reason}");
}

/// Runs a task that takes too much beside one that is held, and gives its error: everything else must be well.
async fn run_out(builder: PoolBuilder) -> TaskError {
    let pool = build(builder.workers(2)).await;
    let before = pids(&pool);
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    let sibling = gate.entered();
    let fatal = pool.apply_async(hog, TOO_MUCH);
    let behind: Vec<_> = (0..30).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let error = within(fatal).await.unwrap_err();
    for (n, handle) in (0..).zip(behind) {
        assert_eq!(within(handle).await.unwrap(), n);
    }
    assert!(exists(sibling));
    gate.open();
    assert_eq!(within(held).await.unwrap(), sibling);
    let victim = error.worker_pid().unwrap();
    assert!(before.contains(&victim) && victim != sibling);
    assert!(!exists(victim));
    assert_eq!(pool.stats().restarts, 1);
    assert_eq!(error.kind(), TaskErrorKind::WorkerLost);
    assert!(error.is_out_of_memory(), "{error}");
    let end = error.out_of_memory().unwrap();
    assert_eq!(end.limit, pool.stats().workers[0].memory_limit, "{error}");
    assert!(error.to_string().contains("it ran out of memory: "), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_over_its_memory_limit_costs_its_task_and_nothing_else() {
    let error = run_out(quiet(2).memory_limit(LIMIT)).await;
    assert_eq!(error.out_of_memory().unwrap().limit.unwrap().bytes, LIMIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_worker_that_is_over_the_limit_says_what_it_had() {
    let builder = quiet(2)
        .memory_limit(LIMIT)
        .memory_mechanism(MemoryMechanism::Watching);
    let error = run_out(builder).await;
    let end = error.out_of_memory().unwrap();
    let resident = end.resident.unwrap();
    assert_eq!(end.limit.unwrap().mechanism, MemoryMechanism::Watching);
    assert!(
        resident > LIMIT && resident < LIMIT + (TOO_MUCH * MIB) as u64 / 2,
        "{resident}"
    );
    let text = format!("ran out of memory: {resident} bytes resident, limit {LIMIT}, kept by watching");
    assert!(error.to_string().contains(&text), "{error}");
    assert_eq!(signal_of(&error), Some(Signal::KILL.as_raw()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allocation_that_an_rlimit_refuses_is_out_of_memory() {
    let builder = quiet(2)
        .memory_limit(LIMIT)
        .memory_mechanism(MemoryMechanism::Rlimit);
    let error = run_out(builder).await;
    let limit = error.out_of_memory().unwrap().limit.unwrap();
    assert_eq!((limit.bytes, limit.mechanism), (LIMIT, MemoryMechanism::Rlimit));
    assert_eq!(signal_of(&error), Some(Signal::ABORT.as_raw()));
    assert!(
        error
            .to_string()
            .contains(&format!("limit {LIMIT}, kept by an rlimit")),
        "{error}"
    );
}

#[tokio::test]
async fn a_mechanism_that_was_asked_for_is_in_force_or_the_pool_is_not_built() {
    for mechanism in [
        MemoryMechanism::Cgroup,
        MemoryMechanism::Watching,
        MemoryMechanism::Rlimit,
    ] {
        let builder = quiet(1).memory_limit(LIMIT).memory_mechanism(mechanism);
        match within(builder.build()).await {
            Ok(pool) => {
                let limit = pool.workers()[0].memory_limit.unwrap();
                assert_eq!((limit.bytes, limit.mechanism), (LIMIT, mechanism));
                assert_eq!(within(pool.apply(hog, 8)).await.unwrap(), 8);
            }
            // Not every machine has delegated a cgroup.
            Err(BuildError::InvalidOption { option, reason }) => {
                assert_eq!(mechanism, MemoryMechanism::Cgroup, "{reason}");
                assert_eq!(option, "memory_mechanism");
                assert!(reason.contains("cgroup"), "{reason}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn less_memory_than_a_worker_begins_with_is_refused() {
    for mechanism in [
        None,
        Some(MemoryMechanism::Watching),
        Some(MemoryMechanism::Rlimit),
    ] {
        let mut builder = quiet(2).memory_limit(64 << 10);
        if let Some(mechanism) = mechanism {
            builder = builder.memory_mechanism(mechanism);
        }
        let (option, reason) = invalid(builder).await;
        assert_eq!(option, "memory_limit");
        assert!(
            reason.contains("65536 bytes are too few") && reason.contains("before its first task"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn an_initializer_that_takes_too_much_is_an_error_that_says_so() {
    for mechanism in [MemoryMechanism::Watching, MemoryMechanism::Rlimit] {
        let greedy = |most: usize| {
            hog(most);
        };
        let builder = quiet(1)
            .memory_limit(LIMIT)
            .memory_mechanism(mechanism)
            .initializer(greedy, TOO_MUCH);
        match refusal(builder).await {
            BuildError::Initializer { message, .. } => {
                assert!(message.contains("worker 0 ran out of memory: "), "{message}");
                assert!(message.contains(&format!("limit {LIMIT}")), "{message}");
            }
            error => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn of_a_chunk_only_the_element_that_took_too_much_is_lost() {
    let builder = quiet(1)
        .memory_limit(LIMIT)
        .memory_mechanism(MemoryMechanism::Watching);
    let pool = build(builder).await;
    let results = pool
        .map(hog, [1, 2, TOO_MUCH, 3, 4])
        .chunk_size(5)
        .collect_results();
    let results = within(results).await;
    for (result, expected) in results.iter().zip([1, 2, 0, 3, 4]) {
        match result {
            Ok(count) => assert_eq!(*count, expected),
            Err(error) => assert!(expected == 0 && error.is_out_of_memory(), "{error}"),
        }
    }
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
}

/// When two of it run in the same process, one takes too much and the other waits for ever.
async fn meet(takes_all: bool) -> usize {
    static BARRIER: OnceLock<Barrier> = OnceLock::new();
    BARRIER.get_or_init(|| Barrier::new(2)).wait().await;
    if takes_all {
        hog(TOO_MUCH)
    } else {
        std::future::pending().await
    }
}

#[tokio::test]
async fn async_tasks_that_share_a_worker_share_its_end() {
    let (events, ends) = std::sync::mpsc::channel();
    let builder = quiet(1)
        .tasks_per_worker(2)
        .memory_limit(LIMIT)
        .memory_mechanism(MemoryMechanism::Watching)
        .on_worker_exit(move |event| {
            events.send(event.out_of_memory).ok();
        });
    let pool = build(builder).await;
    let both = [true, false].map(|takes_all| pool.asynchronous().apply_async(meet, takes_all));
    for handle in both {
        let error = within(handle).await.unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
    }
    let end = receive(&ends).unwrap();
    assert_eq!(end.limit.unwrap().bytes, LIMIT);
}

#[tokio::test]
async fn a_worker_that_rested_is_watched_again() {
    let builder = quiet(1)
        .memory_limit(LIMIT)
        .memory_mechanism(MemoryMechanism::Watching);
    let pool = build(builder).await;
    let own = pids(&pool)[0];
    // The watcher sleeps when nothing has run for a while: it does not wake up any more.
    let find = || {
        fs::read_dir(format!("/proc/{own}/task"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|thread| fs::read_to_string(thread.join("comm")).unwrap() == "procession-memo\n")
    };
    // A thread names itself.
    eventually("there is a watcher", || find().is_some());
    let watcher = find().unwrap();
    let wakings = || {
        let status = fs::read_to_string(watcher.join("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.unwrap().to_owned()
    };
    let mut last = (String::new(), 0);
    eventually("the watcher sleeps", || {
        let now = wakings();
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        // Many times its longest pause.
        last.1 > 300
    });
    assert!(
        within(pool.apply(hog, TOO_MUCH))
            .await
            .unwrap_err()
            .is_out_of_memory()
    );
    within(pool.apply(pid, ())).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_somebody_kills_did_not_run_out_of_memory() {
    for mechanism in [
        None,
        Some(MemoryMechanism::Watching),
        Some(MemoryMechanism::Rlimit),
    ] {
        let mut builder = quiet(1);
        if let Some(mechanism) = mechanism {
            builder = builder.memory_limit(LIMIT).memory_mechanism(mechanism);
        }
        let pool = build(builder).await;
        let (mut gate, argument) = gate();
        let held = pool.apply_async(wait_at, argument);
        signal(gate.entered(), Signal::KILL);
        let error = within(held).await.unwrap_err();
        assert_eq!(signal_of(&error), Some(Signal::KILL.as_raw()));
        assert!(error.is_worker_lost() && !error.is_out_of_memory(), "{error}");
        assert!(error.out_of_memory().is_none());
        assert!(error.to_string().contains("signal: 9"), "{error}");
        let aborted = pool.apply(|(): ()| -> u8 { std::process::abort() }, ());
        assert!(!within(aborted).await.unwrap_err().is_out_of_memory());
    }
}

#[tokio::test]
async fn a_task_that_only_computes_meets_the_processor_time_limit() {
    let pool = build(quiet(1).cpu_time_limit(Duration::from_millis(300))).await;
    let spin = |(): ()| -> u8 {
        loop {
            std::hint::spin_loop();
        }
    };
    let error = within(pool.apply(spin, ())).await.unwrap_err();
    assert_eq!(signal_of(&error), Some(Signal::XCPU.as_raw()), "{error}");
    assert!(!error.is_out_of_memory());
    assert_eq!(within(pool.apply(same::<u8>, 7)).await.unwrap(), 7);
}

/// Opens files until that fails, and gives them with the error.
fn open_all() -> (Vec<File>, Option<i32>) {
    let mut files = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => return (files, error.raw_os_error()),
        }
    }
}

/// Task: takes every descriptor that there is and keeps it.
fn exhaust((): ()) -> Option<i32> {
    let (files, error) = open_all();
    Box::leak(files.into_boxed_slice());
    error
}

/// Task: gives one of them where there is none left for a copy of it.
fn give_last((): ()) -> Fd {
    let (mut files, _) = open_all();
    let last = files.pop().unwrap();
    Box::leak(files.into_boxed_slice());
    Fd::from(last)
}

#[tokio::test]
async fn a_worker_without_a_descriptor_left_still_answers() {
    let pool = build(quiet(1).open_files_limit(40)).await;
    let own = pids(&pool)[0];
    let too_many = rustix::io::Errno::MFILE.raw_os_error();
    // A result's descriptor is copied for the way.
    let error = within(pool.apply(give_last, ())).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::Encode, "{error}");
    assert_eq!(within(pool.apply(exhaust, ())).await.unwrap(), Some(too_many));
    // Small, large, in many parts.
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), own);
    let large = "x".repeat(300_000);
    assert_eq!(
        within(pool.apply(same::<String>, large.clone())).await.unwrap(),
        large
    );
    let mapped = within(pool.map(same::<u32>, 0..1000)).await.unwrap();
    assert!(mapped.into_iter().eq(0..1000));
    // One that cannot arrive goes to the worker's replacement.
    let (gate, argument) = gate();
    gate.open();
    assert_ne!(within(pool.apply(wait_at, argument)).await.unwrap(), own);
}

#[tokio::test]
async fn a_file_that_grows_too_large_ends_the_worker() {
    let pool = build(quiet(1).file_size_limit(64 << 10)).await;
    let write = |(path, length): (String, usize)| {
        let mut file = File::create(path).unwrap();
        file.write_all(&vec![0; length])
            .map_err(|error| error.to_string())
    };
    let scratch = Scratch::new();
    let small = within(pool.apply(write, (scratch.path(), 64 << 10)));
    assert_eq!(small.await.unwrap(), Ok(()));
    let large = within(pool.apply(write, (scratch.path(), (64 << 10) + 1)));
    let error = large.await.unwrap_err();
    assert_eq!(signal_of(&error), Some(Signal::XFSZ.as_raw()), "{error}");
    // What it sends is no file.
    let reply = within(pool.apply(|length: usize| "x".repeat(length), 1 << 20));
    assert_eq!(reply.await.unwrap().len(), 1 << 20);
}

#[test]
fn nothing_is_left_of_workers_that_a_limit_refused() {
    crate::scene::alone(
        "worker_limits::nothing_is_left_of_workers_that_a_limit_refused",
        || {
            crate::scene::runtime().block_on(async {
                invalid(quiet(4).memory_limit(64 << 10)).await;
                invalid(quiet(4).open_files_limit(4)).await;
            });
            assert!(children().is_empty());
        },
    );
}
