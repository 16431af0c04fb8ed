//! Processes that are copied from a template.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use procession::{
    BuildError, Output, Pool, PoolBuilder, Process, ProcessBuilder, ProcessErrorKind, StartMethod,
};
use rustix::process::Signal;

use crate::fuse::{eventually, within};
use crate::scene::{children, exists, gone, pid, pids, signal};

fn warm() -> ProcessBuilder {
    Process::builder()
        .start_method(StartMethod::ForkServer)
        .stdout(Output::null())
        .stderr(Output::null())
}

fn warm_pool(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .start_method(StartMethod::ForkServer)
        .stdout(Output::null())
        .stderr(Output::null())
}

/// What the initializer has loaded, and in which process.
static LOADED: OnceLock<(String, u32)> = OnceLock::new();

/// Initializer.
fn load(what: String) {
    LOADED.set((what, std::process::id())).unwrap();
}

/// Task: never ends.
fn park(_: ()) {
    loop {
        std::thread::park();
    }
}

/// Task: what was loaded, and where, and where this is.
fn loaded(_: ()) -> (String, u32, u32) {
    let (what, by) = LOADED.get().unwrap().clone();
    (what, by, std::process::id())
}

#[tokio::test]
async fn the_initializer_runs_once_for_all_processes() {
    let builder = warm().initializer(load, "model".to_owned());
    within(builder.warm_up()).await.unwrap();
    let mut templates = Vec::new();
    for _ in 0..3 {
        let process = within(builder.spawn(loaded, ())).await.unwrap();
        let pid = process.pid();
        let (what, by, own) = within(process.join()).await.unwrap();
        assert_eq!((what.as_str(), own), ("model", pid));
        assert_ne!(by, pid);
        templates.push(by);
    }
    templates.dedup();
    let [template] = templates[..] else {
        panic!("{templates:?}")
    };
    assert!(exists(template));
    drop(builder);
    gone(template);
}

#[tokio::test]
async fn copies_are_children_of_this_process_with_groups_of_their_own() {
    let process = within(warm().spawn(
        |_: ()| {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            // Behind the state and the parent.
            let group: u32 = stat[stat.rfind(')').unwrap()..]
                .split(' ')
                .nth(3)
                .unwrap()
                .parse()
                .unwrap();
            let parent = rustix::process::getppid().unwrap().as_raw_pid().cast_unsigned();
            let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
            std::thread::spawn(|| ()).join().unwrap();
            (group, parent, threads)
        },
        (),
    ))
    .await
    .unwrap();
    let pid = process.pid();
    assert!(children().contains(&pid));
    let (group, parent, threads) = within(process.join()).await.unwrap();
    assert_eq!((group, parent), (pid, std::process::id()));
    assert!(threads >= 2, "it has a watcher: {threads}");
    assert!(!exists(pid));
}

#[tokio::test]
async fn they_end_as_others_do() {
    let builder = warm();
    for code in [0, 3] {
        let process = within(builder.spawn(|code: i32| -> () { std::process::exit(code) }, code))
            .await
            .unwrap();
        let error = within(process.join()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.exit_code()),
            (ProcessErrorKind::Exited, Some(code))
        );
    }
    let process = within(builder.spawn(|_: ()| -> () { std::process::abort() }, ()))
        .await
        .unwrap();
    assert_eq!(within(process.join()).await.unwrap_err().exit_code(), Some(-6));
    let process = within(builder.spawn(|_: ()| -> () { panic!("no") }, ()))
        .await
        .unwrap();
    let error = within(process.join()).await.unwrap_err();
    assert_eq!(
        (error.exit_code(), error.panic().unwrap().message.as_str()),
        (Some(101), "no")
    );
    let mut process = within(builder.spawn(park, ())).await.unwrap();
    process.terminate().unwrap();
    within(process.wait()).await.unwrap();
    assert_eq!(process.exit_code(), Some(-15));
    let mut process = within(builder.spawn(park, ())).await.unwrap();
    process.kill().unwrap();
    within(process.wait()).await.unwrap();
    assert_eq!(process.exit_code(), Some(-9));
}

#[tokio::test]
async fn a_template_that_dies_is_an_error_and_another_one_starts() {
    let builder = warm().initializer(load, "x".to_owned());
    let process = within(builder.spawn(loaded, ())).await.unwrap();
    let (_, template, _) = within(process.join()).await.unwrap();
    let running = within(builder.spawn(park, ())).await.unwrap();
    signal(template, Signal::KILL);
    gone(template);
    let error = within(builder.spawn(loaded, ())).await.unwrap_err();
    assert!(
        matches!(
            error.start_error(),
            Some(BuildError::TemplateLost { status: Some(_), .. })
        ),
        "{error:?}"
    );
    assert!(
        error.start_error().unwrap().to_string().contains("signal: 9"),
        "{error:?}"
    );
    let process = within(builder.spawn(loaded, ())).await.unwrap();
    let (_, other, _) = within(process.join()).await.unwrap();
    assert_ne!(template, other);
    // What it had made before is not concerned.
    assert!(running.is_alive());
    running.kill().unwrap();
    let error = within(running.join()).await.unwrap_err();
    assert_eq!(error.exit_code(), Some(-9));
}

#[tokio::test]
async fn an_initializer_that_fails_or_leaves_a_thread_is_told() {
    let failing = warm().initializer(|_: ()| Err::<(), _>("no model"), ());
    for _ in 0..2 {
        let error = within(failing.spawn(pid::<()>, ())).await.unwrap_err();
        match error.start_error() {
            Some(BuildError::Initializer { message, .. }) if message == "no model" => {}
            _ => panic!("{error:?}"),
        }
    }
    let threaded = warm().initializer(
        |_: ()| {
            drop(std::thread::spawn(|| {
                loop {
                    std::thread::park()
                }
            }))
        },
        (),
    );
    let error = within(threaded.warm_up()).await.unwrap_err();
    match error.start_error() {
        Some(BuildError::InvalidOption {
            option: "start_method",
            reason,
        }) if reason.contains("2 threads") => {}
        _ => panic!("{error:?}"),
    }
    let builder = warm().initializer(
        |_: ()| {
            let pool = futures::executor::block_on(Pool::new()).map(drop);
            let process = futures::executor::block_on(Process::spawn(pid::<()>, ())).map(drop);
            match (pool, process) {
                (Err(BuildError::Template), Err(error)) => Err(error.start_error().unwrap().to_string()),
                other => Err(format!("{other:?}")),
            }
        },
        (),
    );
    let error = within(builder.warm_up()).await.unwrap_err();
    match error.start_error() {
        Some(BuildError::Initializer { message, .. }) if *message == BuildError::Template.to_string() => {}
        _ => panic!("{error:?}"),
    }
    let dying = warm().initializer(|_: ()| -> () { std::process::abort() }, ());
    let error = within(dying.warm_up()).await.unwrap_err();
    assert!(
        matches!(error.start_error(), Some(BuildError::Initializer { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_pool_is_copied_from_one_template() {
    let pool = within(warm_pool(3).initializer(load, "pool".to_owned()).build())
        .await
        .unwrap();
    let told = within(pool.map(|_: u32| loaded(()), 0..100)).await.unwrap();
    let template = told[0].1;
    assert!(
        told.iter()
            .all(|(what, by, own)| what == "pool" && *by == template && own != by)
    );
    // A worker that is lost is replaced by another copy.
    let lost = pids(&pool)[0];
    signal(lost, Signal::KILL);
    eventually("it is replaced", || {
        pids(&pool).len() == 3 && !pids(&pool).contains(&lost)
    });
    let told = within(pool.map(|_: u32| loaded(()), 0..100)).await.unwrap();
    assert!(told.iter().all(|(_, by, _)| *by == template));
    pool.close();
    within(pool.join()).await.unwrap();
    assert!(!exists(template));
}

#[tokio::test]
async fn a_pool_survives_the_loss_of_its_template() {
    let pool = within(warm_pool(2).initializer(load, "pool".to_owned()).build())
        .await
        .unwrap();
    let (_, template, worker) = within(pool.apply(loaded, ())).await.unwrap();
    signal(template, Signal::KILL);
    gone(template);
    signal(worker, Signal::KILL);
    gone(worker);
    eventually("it is replaced", || {
        pids(&pool).len() == 2 && !pids(&pool).contains(&worker)
    });
    let told = within(pool.map(|_: u32| loaded(()), 0..100)).await.unwrap();
    assert!(told.iter().all(|(what, ..)| what == "pool"));
    pool.terminate();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_pool_ends_with_a_template_that_is_still_at_it() {
    let builder = warm_pool(2).initializer(park, ());
    let building = tokio::spawn(builder.build());
    let before = children();
    eventually("the template is there", || {
        !children().is_empty() || !before.is_empty()
    });
    building.abort();
    building.await.unwrap_err();
}

#[tokio::test]
#[expect(clippy::zombie_processes, reason = "it is what the library has to see to")]
async fn what_a_copy_starts_ends_with_it() {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let pool = within(warm_pool(2).build()).await.unwrap();
    let (strays, worker): (u32, u32) = within(pool.apply(
        |_: ()| {
            COUNT.fetch_add(1, Ordering::Relaxed);
            let stray = std::process::Command::new("setsid")
                .args(["sleep", "1000"])
                .spawn()
                .unwrap();
            (stray.id(), std::process::id())
        },
        (),
    ))
    .await
    .unwrap();
    eventually("it has a session of its own", || {
        std::fs::read_to_string(format!("/proc/{strays}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    signal(worker, Signal::KILL);
    gone(strays);
    // The other worker, a copy of the same template, lives on.
    assert_eq!(within(pool.apply(|x: u64| x + 1, 1)).await.unwrap(), 2);
}

#[tokio::test]
async fn what_the_initializer_printed_is_printed_once() {
    let (lines, printed) = std::sync::mpsc::channel();
    let builder = Process::builder()
        .start_method(StartMethod::ForkServer)
        .initializer(|_: ()| print!("half a line, "), ())
        .stdout(Output::lines(move |line| lines.send(line.text.clone()).unwrap()))
        .stderr(Output::null());
    for n in 0..2 {
        let process = within(builder.spawn(|n: u32| println!("copy {n}"), n))
            .await
            .unwrap();
        within(process.join()).await.unwrap();
    }
    drop(builder);
    let mut all: Vec<String> = (0..3).map(|_| crate::fuse::receive(&printed)).collect();
    all.sort();
    assert_eq!(all, ["copy 0", "copy 1", "half a line, "]);
}
