//! Processes that are copied from a template.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use procession::{
    BuildError, Fd, Output, Pool, PoolBuilder, Process, ProcessBuilder, ProcessErrorKind, StartMethod,
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::fuse::{eventually, within};
use crate::gate::{gate, wait_at};
use crate::scene::{
    Scratch, alone, append, children, descriptors, exists, gone, pid, pids, program, runtime, same, signal,
};

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
    let (mut gate, theirs) = gate();
    let process = within(warm().spawn(
        |gate: Fd| {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            // Behind the state and the parent.
            let group: u32 = stat[stat.rfind(')').unwrap()..]
                .split(' ')
                .nth(3)
                .unwrap()
                .parse()
                .unwrap();
            let parent = rustix::process::getppid().unwrap().as_raw_pid().cast_unsigned();
            wait_at(gate);
            let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
            (group, parent, threads)
        },
        theirs,
    ))
    .await
    .unwrap();
    let pid = process.pid();
    assert_eq!(gate.entered(), pid);
    assert!(children().contains(&pid));
    gate.open();
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

/// Initializer: says where it runs, and fails as long as the second file is there.
fn unless_forbidden((log, forbidden): (String, String)) -> Result<(), String> {
    append((log, std::process::id().to_string()));
    match std::fs::exists(forbidden) {
        Ok(false) => Ok(()),
        _ => Err("forbidden".to_owned()),
    }
}

#[test]
fn a_start_that_failed_is_told_to_nobody_who_comes_later() {
    alone(
        "start_methods::a_start_that_failed_is_told_to_nobody_who_comes_later",
        || {
            runtime().block_on(async {
                let any = || async {
                    let builder = Process::builder().stderr(Output::null());
                    let process = within(builder.spawn(same::<u8>, 7)).await.unwrap();
                    within(process.join()).await.unwrap();
                };
                any().await;
                let before = descriptors().len();
                let (log, forbidden) = (Scratch::new(), Scratch::new());
                let builder = warm().initializer(unless_forbidden, (log.path(), forbidden.path()));
                within(builder.warm_up()).await.unwrap();
                append((forbidden.path(), String::new()));
                let template = log.lines()[0].parse().unwrap();
                signal(template, Signal::KILL);
                gone(template);
                let error = within(builder.spawn(same::<u8>, 1)).await.unwrap_err();
                assert!(
                    matches!(error.start_error(), Some(BuildError::TemplateLost { .. })),
                    "{error:?}"
                );
                eventually("the next has failed", || {
                    log.lines().len() == 2 && children().is_empty() && descriptors().len() <= before
                });
                // The library's thread has come to the end of that.
                any().await;
                std::fs::remove_file(forbidden.path()).unwrap();
                let process = within(builder.spawn(same::<u8>, 1)).await.unwrap();
                assert_eq!(within(process.join()).await.unwrap(), 1);
            });
        },
    );
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

/// Initializer: says which process it is in, and never ends.
fn park_here(path: String) {
    append((path, std::process::id().to_string()));
    park(());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_ends_with_a_template_that_is_still_at_it() {
    let scratch = Scratch::new();
    let building = tokio::spawn(warm_pool(2).initializer(park_here, scratch.path()).build());
    eventually("the template is there", || !scratch.lines().is_empty());
    let template = scratch.lines()[0].parse().unwrap();
    assert!(exists(template));
    building.abort();
    building.await.unwrap_err();
    gone(template);
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
    let others: Vec<u32> = pids(&pool).into_iter().filter(|&pid| pid != worker).collect();
    // By its mark, which no other copy of the template has.
    let mark = |pid: u32| {
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        let mut variables = environment.split('\0').map(str::to_owned);
        variables
            .find(|variable| variable.starts_with("PROCESSION_WORKER="))
            .unwrap()
    };
    assert_eq!(mark(strays), mark(worker));
    assert_ne!(mark(others[0]), mark(worker));
    signal(worker, Signal::KILL);
    gone(strays);
    eventually("it is replaced", || {
        pids(&pool).len() == 2 && !pids(&pool).contains(&worker)
    });
    // The other worker, a copy of the same template, lives on.
    assert!(others.len() == 1 && pids(&pool).contains(&others[0]) && exists(others[0]));
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

#[tokio::test]
async fn a_copy_has_the_descriptors_that_an_executed_process_has() {
    /// Task: what its descriptors refer to, but for what tells one of a kind from another.
    fn kinds(_: ()) -> Vec<String> {
        eventually("the watcher watches the parent", || {
            descriptors().iter().any(|line| line.contains("pidfd"))
        });
        let mut kinds: Vec<String> = descriptors()
            .iter()
            .map(|line| {
                let (_, target) = line.split_once(' ').unwrap();
                let kind = target.split_once(":[").map_or(target, |(kind, _)| kind);
                kind.to_owned()
            })
            .collect();
        kinds.sort();
        kinds
    }
    let told = async |builder: ProcessBuilder| {
        let builder = builder.stdout(Output::null()).stderr(Output::null());
        let mut told = Vec::new();
        // Of a template that has made one already.
        for _ in 0..2 {
            let process = within(builder.spawn(kinds, ())).await.unwrap();
            told.push(within(process.join()).await.unwrap());
        }
        told
    };
    let executed = told(Process::builder()).await;
    assert_eq!(told(warm()).await, executed);
    let pool = within(warm_pool(1).build()).await.unwrap();
    let of_pool = within(pool.apply(kinds, ())).await.unwrap();
    let pool = Pool::builder()
        .workers(1)
        .stdout(Output::null())
        .stderr(Output::null());
    let pool = within(pool.build()).await.unwrap();
    assert_eq!(of_pool, within(pool.apply(kinds, ())).await.unwrap());
}

#[test]
fn a_thousand_starts_leave_nothing() {
    alone("start_methods::a_thousand_starts_leave_nothing", || {
        runtime().block_on(async {
            // Once, for what is made once and kept.
            let piped = || {
                Process::builder()
                    .start_method(StartMethod::ForkServer)
                    .stdout(Output::lines(|_| ()))
            };
            within(within(piped().spawn(|_: ()| (), ())).await.unwrap().join())
                .await
                .unwrap();
            eventually("no child", || children().is_empty());
            let before = descriptors();
            let builder = piped();
            let starters: Vec<_> = (0..4)
                .map(|_| {
                    let builder = builder.clone();
                    tokio::spawn(async move {
                        for n in 0..250_u32 {
                            let process = within(builder.spawn(|n: u32| n + 1, n)).await.unwrap();
                            // Every third one is nobody's from here on.
                            if n % 3 != 0 {
                                assert_eq!(within(process.join()).await.unwrap(), n + 1);
                            }
                        }
                    })
                })
                .collect();
            for starter in starters {
                within(starter).await.unwrap();
            }
            drop(builder);
            eventually("no child", || children().is_empty());
            eventually("descriptors are back", || descriptors().len() <= before.len());
        });
    });
}

#[tokio::test]
async fn a_template_ends_with_its_builder_and_not_with_its_processes() {
    let (mut gate, theirs) = gate();
    let scratch = Scratch::new();
    let say = |path| append((path, std::process::id().to_string()));
    let process = within(warm().initializer(say, scratch.path()).spawn(wait_at, theirs))
        .await
        .unwrap();
    // The builder was a temporary.
    gone(scratch.lines()[0].parse().unwrap());
    assert_eq!(gate.entered(), process.pid());
    gate.open();
    within(process.join()).await.unwrap();
}

#[test]
fn a_template_that_is_killed_at_any_moment_costs_no_process() {
    alone(
        "start_methods::a_template_that_is_killed_at_any_moment_costs_no_process",
        || {
            runtime().block_on(async {
                let scratch = Scratch::new();
                let builder = warm().initializer(
                    |path| append((path, std::process::id().to_string())),
                    scratch.path(),
                );
                let mut seed = 0x2545_f491_4f6c_dd1d_u64;
                let (mut started, mut lost) = (0, 0);
                for _ in 0..60 {
                    let starts =
                        futures::future::join_all((0..4_u32).map(|n| builder.spawn(|n: u32| n + 1, n)));
                    let template = scratch
                        .lines()
                        .last()
                        .and_then(|line| Pid::from_raw(line.parse().unwrap()));
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let moment = Duration::from_micros(seed % 3000);
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "any moment will do, nothing waits for it"
                    )]
                    let killer = std::thread::spawn(move || {
                        std::thread::sleep(moment);
                        if let Some(template) = template {
                            // It may have been buried.
                            kill_process(template, Signal::KILL).ok();
                        }
                    });
                    for (n, start) in (0..).zip(within(starts).await) {
                        match start {
                            // What has been started is as any other.
                            Ok(process) => assert_eq!(within(process.join()).await.unwrap(), n + 1),
                            Err(error) => {
                                lost += 1;
                                let error = error.start_error().unwrap();
                                assert!(
                                    matches!(
                                        error,
                                        BuildError::TemplateLost { .. } | BuildError::Initializer { .. }
                                    ),
                                    "{error:?}"
                                );
                                continue;
                            }
                        }
                        started += 1;
                    }
                    killer.join().unwrap();
                }
                assert!(started > 0 && lost > 0, "{started} started, {lost} lost");
                drop(builder);
                eventually("no child", || children().is_empty());
            });
        },
    );
}

#[tokio::test]
async fn a_template_that_does_not_answer_is_a_timeout() {
    let builder = warm()
        .initializer(load, "x".to_owned())
        .start_timeout(Duration::from_secs(2));
    let process = within(builder.spawn(loaded, ())).await.unwrap();
    let (_, template, _) = within(process.join()).await.unwrap();
    signal(template, Signal::STOP);
    let error = within(builder.spawn(loaded, ())).await.unwrap_err();
    assert!(
        matches!(error.start_error(), Some(BuildError::StartTimeout { timeout, .. }) if timeout.as_secs() == 2),
        "{error:?}"
    );
    gone(template);
    let process = within(builder.spawn(loaded, ())).await.unwrap();
    assert_ne!(within(process.join()).await.unwrap().1, template);
}

#[tokio::test]
async fn a_program_that_starts_the_template_instead_of_becoming_it_is_refused() {
    let own = std::env::current_exe().unwrap();
    let becoming = warm().program(program("banner.sh")).env("PROGRAM", &own);
    let process = within(becoming.spawn(pid::<()>, ())).await.unwrap();
    let pid_of_it = process.pid();
    assert_eq!(within(process.join()).await.unwrap(), pid_of_it);
    let scratch = Scratch::new();
    let starting = warm()
        .program(program("wrapper.sh"))
        .env("PROGRAM", &own)
        .initializer(
            |path| append((path, std::process::id().to_string())),
            scratch.path(),
        );
    let error = within(starting.spawn(pid::<()>, ())).await.unwrap_err();
    match error.start_error() {
        Some(BuildError::InvalidOption {
            option: "start_method",
            reason,
        }) if reason.contains("wrapper.sh") => {}
        _ => panic!("{error:?}"),
    }
    gone(scratch.lines()[0].parse().unwrap());
}

#[tokio::test]
async fn a_template_may_be_run_by_the_dynamic_loader() {
    let loader = "/lib64/ld-linux-x86-64.so.2";
    if !std::path::Path::new(loader).exists() {
        return;
    }
    // Nobody can say beforehand which of them execute themselves again.
    for n in 0..12 {
        let builder = warm()
            .program(program("loader.sh"))
            .env("LOADER", loader)
            .env("PROGRAM", std::env::current_exe().unwrap());
        let process = within(builder.spawn(same::<u8>, n)).await.unwrap();
        assert_eq!(within(process.join()).await.unwrap(), n);
    }
}

#[tokio::test]
async fn a_thread_that_an_initializer_leaves_is_named_before_the_time_for_the_start_is_up() {
    fn leave((): ()) {
        let endless = || {
            loop {
                std::thread::park();
            }
        };
        drop(std::thread::spawn(endless));
    }
    let builder = warm()
        .initializer(leave, ())
        .start_timeout(Duration::from_secs(5));
    let error = within(builder.warm_up()).await.unwrap_err();
    assert!(
        matches!(
            error.start_error(),
            Some(BuildError::InvalidOption { option: "start_method", reason }) if reason.contains("2 threads")
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn threads_that_end_with_the_initializer_may_take_a_moment() {
    let builder = warm().initializer(
        |_: ()| {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| ());
                }
            });
            // One that ends a little later, as any of the others may.
            #[expect(
                clippy::disallowed_methods,
                reason = "it is to end late, and nothing waits for it"
            )]
            let late = || std::thread::sleep(Duration::from_millis(50));
            drop(std::thread::spawn(late));
        },
        (),
    );
    within(builder.warm_up()).await.unwrap();
}

#[tokio::test]
async fn what_the_initializer_started_ends_with_a_parent_that_is_killed() {
    /// Initializer: starts something in a session of its own, says who is there, and never ends.
    #[expect(
        clippy::zombie_processes,
        reason = "it is left to whoever ends the initializer"
    )]
    fn start(path: String) {
        let stray = std::process::Command::new("setsid")
            .args(["sleep", "1000"])
            .spawn()
            .unwrap();
        eventually("it has a session of its own", || {
            std::fs::read_to_string(format!("/proc/{}/comm", stray.id())).is_ok_and(|name| name == "sleep\n")
        });
        append((path.clone(), stray.id().to_string()));
        park_here(path);
    }
    let scratch = Scratch::new();
    let parent = Process::builder().stdout(Output::null()).stderr(Output::null());
    let parent = within(parent.spawn_async(
        |path| async { warm().initializer(start, path).warm_up().await.unwrap() },
        scratch.path(),
    ))
    .await
    .unwrap();
    eventually("the template is at it", || scratch.lines().len() == 2);
    parent.kill().unwrap();
    for line in scratch.lines() {
        gone(line.parse().unwrap());
    }
}

#[tokio::test]
async fn the_initializers_argument_is_not_kept_and_may_be_large() {
    /// Task: resident memory that is its own, in MiB.
    fn resident(_: ()) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.unwrap()
            .trim()
            .strip_suffix(" kB")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1024
    }
    for builder in [
        warm(),
        Process::builder().stdout(Output::null()).stderr(Output::null()),
    ] {
        let builder = builder.initializer(drop::<String>, "x".repeat(16 << 20));
        let process = within(builder.spawn(resident, ())).await.unwrap();
        let resident = within(process.join()).await.unwrap();
        assert!(resident < 24, "{resident} MiB");
    }
}

#[test]
fn a_template_survives_that_descriptors_cannot_be_sent() {
    alone(
        "start_methods::a_template_survives_that_descriptors_cannot_be_sent",
        || {
            // The kernel counts descriptors on their way by user, and lets the administrator alone.
            let nobody = rustix::process::Uid::from_raw(54_321);
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let builder = warm();
                within(builder.warm_up()).await.unwrap();
                let limit = Rlimit {
                    current: Some(300),
                    ..getrlimit(Resource::Nofile)
                };
                setrlimit(Resource::Nofile, limit).unwrap();
                let (ours, theirs) = socketpair(
                    AddressFamily::UNIX,
                    SocketType::SEQPACKET,
                    SocketFlags::CLOEXEC,
                    None,
                )
                .unwrap();
                let many = [std::os::fd::AsFd::as_fd(&ours); 253];
                for _ in 0..2 {
                    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
                    let sent = sendmsg(
                        &ours,
                        &[std::io::IoSlice::new(b"x")],
                        &mut control,
                        SendFlags::empty(),
                    );
                    assert_eq!(sent, Ok(1));
                }
                let starting = builder.spawn(pid::<()>, ());
                tokio::pin!(starting);
                // No time is enough. It is an error at once, or waits.
                let early = tokio::time::timeout(Duration::from_millis(50), &mut starting).await;
                assert!(early.is_err(), "{early:?}");
                drop(theirs);
                let process = within(starting).await.unwrap();
                let pid = process.pid();
                assert_eq!(within(process.join()).await.unwrap(), pid);
            });
        },
    );
}

#[tokio::test]
async fn what_the_initializer_loads_is_in_large_pages_and_the_environment_does_not_tell() {
    /// Initializer.
    fn load(_: ()) {
        static DATA: OnceLock<Vec<u8>> = OnceLock::new();
        DATA.set(vec![1; 64 << 20]).unwrap();
    }
    /// Task: whether the system was asked for large pages there, and what a program that is started here is told of them.
    fn large_pages(_: ()) -> (bool, Option<String>) {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut size = 0;
        let flags = maps.lines().find_map(|line| {
            if let Some(kibibytes) = line.strip_prefix("Size:") {
                size = kibibytes.trim().trim_end_matches(" kB").parse().unwrap();
            }
            // What was loaded, with or without what malloc adds to it.
            line.strip_prefix("VmFlags:").filter(|_| size >= 64 << 10)
        });
        let is_asked = flags.unwrap().contains(" hg");
        (is_asked, std::env::var("GLIBC_TUNABLES").ok())
    }
    let told = async |builder: ProcessBuilder| {
        let process = within(builder.initializer(load, ()).spawn(large_pages, ()))
            .await
            .unwrap();
        within(process.join()).await.unwrap()
    };
    let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let has_to_ask = cfg!(target_env = "gnu") && mode.is_ok_and(|mode| mode.contains("[madvise]"));
    // Nobody can say beforehand which starts glibc would not understand.
    for _ in 0..10 {
        let told = told(warm().env_remove("GLIBC_TUNABLES")).await;
        assert_eq!(told, (has_to_ask, None));
    }
    let (_, environment) = told(warm().env("GLIBC_TUNABLES", "glibc.malloc.perturb=1")).await;
    assert_eq!(environment.as_deref(), Some("glibc.malloc.perturb=1"));
}

#[tokio::test]
async fn the_kernel_knows_of_the_mutexes_that_a_copy_holds() {
    /// Task: where its list of robust mutexes is.
    #[expect(unsafe_code, reason = "nobody else offers the system call")]
    fn robust_list((): ()) -> (usize, usize) {
        use std::ffi::c_long;
        unsafe extern "C" {
            fn syscall(number: c_long, ...) -> c_long;
        }
        let number: c_long = if cfg!(target_arch = "x86_64") { 274 } else { 100 };
        let (mut head, mut length) = (0_usize, 0_usize);
        // SAFETY: the places are valid for what the kernel writes.
        let result = unsafe { syscall(number, 0, &raw mut head, &raw mut length) };
        assert_eq!(result, 0);
        (head, length)
    }
    for builder in [warm(), Process::builder()] {
        let process = within(builder.spawn(robust_list, ())).await.unwrap();
        let (head, length) = within(process.join()).await.unwrap();
        assert!(
            head != 0 && length == 3 * size_of::<usize>(),
            "{head:#x}, {length}"
        );
    }
}
