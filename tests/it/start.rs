//! Workers that do not start, and what they need for it.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use procession::{BuildError, Output, Pool, PoolBuilder, StartPhase, TaskErrorKind};

use crate::fuse::{eventually, within};
use crate::scene::{Scratch, alone, append, children, descriptors, pid, pids, program, runtime, same};

fn quiet(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .stdout(Output::null())
        .stderr(Output::null())
}

async fn refused(builder: PoolBuilder) -> BuildError {
    match within(builder.build()).await {
        Ok(pool) => panic!("{pool:?} was built"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_an_error_that_names_it() {
    for (path, kind) in [
        (PathBuf::from("/does/not/exist"), std::io::ErrorKind::NotFound),
        (program("plain.txt"), std::io::ErrorKind::PermissionDenied),
        (PathBuf::from("/"), std::io::ErrorKind::PermissionDenied),
    ] {
        let error = refused(quiet(2).program(&path)).await;
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        let BuildError::Spawn { program, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((program, source.kind()), (&path, kind));
        assert!(error.source().is_some());
    }
}

#[tokio::test]
async fn a_missing_working_directory_is_an_error() {
    let error = refused(quiet(1).current_dir("/does/not/exist")).await;
    assert!(matches!(error, BuildError::Spawn { .. }), "{error:?}");
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_not_a_worker() {
    for (path, status) in [("/bin/true", "exit status: 0"), ("/bin/false", "exit status: 1")] {
        let error = refused(quiet(2).program(path)).await;
        assert!(matches!(error, BuildError::Handshake { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(path) && text.contains(status), "{text}");
    }
}

#[tokio::test]
async fn what_a_program_says_instead_of_a_handshake_is_quoted() {
    let error = refused(quiet(1).program(program("talker.sh"))).await;
    let text = error.to_string();
    let BuildError::Handshake {
        first_bytes, stderr, ..
    } = error
    else {
        panic!("{text}")
    };
    assert_eq!(first_bytes, b"usage: talker FILE\n");
    assert_eq!(stderr, "talker: bad option\n");
    for part in [
        "talker.sh",
        "exit status: 2",
        "usage: talker FILE",
        "talker: bad option",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_program_that_says_nothing_is_given_up_in_time() {
    let error = refused(
        quiet(2)
            .program(program("silent.sh"))
            .start_timeout(Duration::from_secs(2)),
    )
    .await;
    let BuildError::StartTimeout {
        phase,
        timeout,
        stderr,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!((phase, timeout), (StartPhase::Handshake, Duration::from_secs(2)));
    assert_eq!(stderr, "waiting\n");
}

#[tokio::test]
async fn a_program_that_never_stops_talking_is_cut_off() {
    let error = refused(quiet(1).program(program("flood.sh"))).await;
    let BuildError::Handshake { first_bytes, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(first_bytes.starts_with(b"something else\n") && first_bytes.len() <= 256);
}

#[tokio::test]
async fn foreign_bytes_before_the_handshake_are_skipped() {
    let own = std::env::current_exe().unwrap();
    let builder = quiet(2).program(program("banner.sh")).env("PROGRAM", own);
    let pool = within(builder.build()).await.unwrap();
    assert_eq!(within(pool.map(same::<u32>, 0..10)).await.unwrap().len(), 10);
}

#[tokio::test]
async fn a_script_that_starts_the_worker_may_stand_in_between() {
    let own = std::env::current_exe().unwrap();
    let builder = quiet(1).program(program("wrapper.sh")).env("PROGRAM", own);
    let pool = within(builder.build()).await.unwrap();
    let worker = within(pool.apply(pid, ())).await.unwrap();
    assert_ne!(Some(&worker), pids(&pool).first());
    within(pool.apply(|_: ()| -> () { std::process::abort() }, ()))
        .await
        .unwrap_err();
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), worker);
    pool.terminate();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_copy_of_the_program_serves_as_the_worker() {
    let pool = within(quiet(1).program(std::env::current_exe().unwrap()).build())
        .await
        .unwrap();
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn an_initializer_that_fails_is_an_error_that_says_how() {
    fn fail(text: String) -> Result<(), String> {
        Err(text)
    }
    let error = refused(quiet(2).initializer(fail, "no licence".to_owned())).await;
    let text = error.to_string();
    let BuildError::Initializer { name, message, panic } = error else {
        panic!("{text}")
    };
    assert!(name.contains("fail"), "{name}");
    assert_eq!((message.as_str(), panic), ("no licence", None));
    assert!(text.contains("no licence"), "{text}");

    // However long it is.
    let error = refused(quiet(1).initializer(fail, "no".repeat(2 << 20))).await;
    let BuildError::Initializer { message, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(message.starts_with("nono") && message.ends_with("[cut]"));

    let line = line!() + 1;
    let error = refused(quiet(2).initializer(|n: u32| assert_eq!(n, 1, "not one"), 2)).await;
    let text = error.to_string();
    let BuildError::Initializer {
        panic: Some(panic), ..
    } = error
    else {
        panic!("{text}")
    };
    assert!(panic.message.contains("not one"), "{text}");
    assert_eq!((panic.file.as_str(), panic.line), (file!(), line));
    assert!(text.contains(&panic.location()), "{text}");
}

#[tokio::test]
async fn an_initializer_that_ends_the_worker_is_an_error_that_says_how() {
    let exits = |_: u32| {
        eprintln!("about to leave");
        std::process::exit(3)
    };
    let error = refused(quiet(2).initializer(move |n: u32| -> () { exits(n) }, 0)).await;
    let text = error.to_string();
    assert!(matches!(error, BuildError::Initializer { .. }), "{text}");
    assert!(
        text.contains("exit status: 3") && text.contains("about to leave"),
        "{text}"
    );

    let error = refused(quiet(2).initializer(|_: u32| -> () { std::process::abort() }, 0)).await;
    assert!(matches!(error, BuildError::Initializer { .. }), "{error:?}");
    assert!(error.to_string().contains("signal: 6"), "{error}");
}

#[tokio::test]
async fn an_initializer_that_hangs_is_given_up_in_time() {
    let hang = |_: u32| loop {
        std::thread::park();
    };
    let error = refused(
        quiet(2)
            .initializer(move |n: u32| -> () { hang(n) }, 0)
            .start_timeout(Duration::from_secs(3)),
    )
    .await;
    let BuildError::StartTimeout { phase, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(phase, StartPhase::Initializer);
    assert!(
        error.to_string().contains("the initializer did not return"),
        "{error}"
    );
}

#[tokio::test]
async fn an_initializers_argument_that_cannot_cross_is_an_error() {
    let error = refused(quiet(1).initializer(|_: serde_json::Value| (), serde_json::json!([1]))).await;
    match &error {
        BuildError::Encode { message } | BuildError::Initializer { message, .. } => {
            assert!(message.contains("serde_json"), "{error}");
        }
        _ => panic!("{error:?}"),
    }
}

static GIVEN: OnceLock<(String, u32)> = OnceLock::new();

#[tokio::test]
async fn an_initializer_runs_once_in_every_worker_before_its_first_task() {
    let file = Scratch::new();
    let initialize = |path: String| {
        append((path.clone(), std::process::id().to_string()));
        println!("initializers may print");
        GIVEN.set((path, std::process::id())).map_err(|_| "twice")
    };
    let pool = within(quiet(2).initializer(initialize, file.path()).build())
        .await
        .unwrap();
    let mut expected: Vec<String> = pids(&pool).iter().map(u32::to_string).collect();
    expected.sort();
    let mut lines = file.lines();
    lines.sort();
    assert_eq!(lines, expected);
    for _ in 0..5 {
        let given = within(pool.apply(
            |_: ()| {
                GIVEN
                    .get()
                    .cloned()
                    .map(|(path, pid)| (path, pid == std::process::id()))
            },
            (),
        ));
        assert_eq!(given.await.unwrap(), Some((file.path(), true)));
    }
    assert_eq!(file.lines().len(), 2);
    // In one that takes the place of another too.
    within(pool.apply(|_: ()| -> () { std::process::abort() }, ()))
        .await
        .unwrap_err();
    eventually("the initializer has run again", || file.lines().len() == 3);
    eventually("two workers", || pids(&pool).len() == 2);
    let each = within(pool.map(|_: u32| GIVEN.get().is_some(), 0..20))
        .await
        .unwrap();
    assert_eq!(each, [true; 20]);
}

#[tokio::test]
async fn an_argument_of_many_megabytes_reaches_the_initializer() {
    static LENGTH: OnceLock<usize> = OnceLock::new();
    let store = |text: String| LENGTH.set(text.len()).map_err(|_| "twice");
    let pool = within(quiet(2).initializer(store, "i".repeat(20 << 20)).build())
        .await
        .unwrap();
    assert_eq!(
        within(pool.apply(|_: ()| LENGTH.get().copied(), ()))
            .await
            .unwrap(),
        Some(20 << 20)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_initializer_that_fails_in_replacements_alone_fails_every_task_until_it_does_not() {
    let file = Scratch::new();
    let initialize = |path: String| match std::fs::read_to_string(&path).as_deref() {
        // The first, and all of them once it is said so.
        Err(_) => {
            append((path, "first".to_owned()));
            Ok(())
        }
        Ok("first\nagain\n") => Ok(()),
        Ok(_) => Err("only once".to_owned()),
    };
    let pool = within(quiet(1).initializer(initialize, file.path()).build())
        .await
        .unwrap();
    let fatal = pool.apply_async(|_: ()| -> u32 { std::process::abort() }, ());
    let queued: Vec<_> = (0..10).map(|n| pool.apply_async(same::<u32>, n)).collect();
    assert!(within(fatal).await.unwrap_err().is_worker_lost());
    for handle in queued {
        let error = within(handle).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}");
        assert!(error.source().unwrap().to_string().contains("only once"));
    }
    let error = within(pool.apply(same::<u32>, 1)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::PoolFailed);
    // The argument comes back.
    assert_eq!(pool.try_apply(same::<u32>, 1).unwrap_err().into_inner(), 1);
    assert!(pool.is_open(), "it goes on trying");
    append((file.path(), "again".to_owned()));
    eventually("a worker", || pids(&pool).len() == 1);
    assert_eq!(within(pool.apply(same::<u32>, 1)).await.unwrap(), 1);
    assert!(pool.try_apply(same::<u32>, 1).is_ok());
    pool.close();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_cannot_start_workers_ends_when_it_is_told_to() {
    for terminates in [false, true] {
        let initialize = |path: String| match std::fs::exists(&path) {
            Ok(false) => {
                append((path, "first".to_owned()));
                Ok(())
            }
            _ => Err("only once".to_owned()),
        };
        let file = Scratch::new();
        let pool = within(quiet(1).initializer(initialize, file.path()).build())
            .await
            .unwrap();
        let fatal = pool.apply_async(|_: ()| -> u32 { std::process::abort() }, ());
        within(fatal).await.unwrap_err();
        let handle = pool.apply_async(same::<u32>, 1);
        if terminates {
            pool.terminate();
        } else {
            pool.close();
        }
        let kind = within(handle).await.unwrap_err().kind();
        assert!(
            matches!(kind, TaskErrorKind::PoolFailed | TaskErrorKind::PoolClosed),
            "{kind:?}"
        );
        within(pool.join()).await.unwrap();
    }
}

#[tokio::test]
async fn options_without_a_meaning_are_refused_by_name() {
    for (builder, name) in [
        (quiet(0), "workers"),
        (quiet(5000), "workers"),
        (quiet(1).tasks_per_worker(0), "tasks_per_worker"),
        (quiet(1).tasks_per_worker(5000), "tasks_per_worker"),
        (quiet(1).max_frame_size(0), "max_frame_size"),
        (quiet(1).start_timeout(Duration::ZERO), "start_timeout"),
        (quiet(1).name("a\0b"), "name"),
        (quiet(1).worker_name("a\0b"), "worker_name"),
        (quiet(1).env("", "a"), "env"),
        (quiet(1).env("a=b", "c"), "env"),
        (quiet(1).envs([("a\0", "b")]), "env"),
        (quiet(1).env("A", "b\0c"), "env"),
    ] {
        let error = refused(builder).await;
        let text = error.to_string();
        let BuildError::InvalidOption { option, .. } = error else {
            panic!("{text}")
        };
        assert_eq!(option, name);
        assert!(text.contains(name), "{text}");
    }
}

#[tokio::test]
async fn the_longest_timeouts_are_no_overflow() {
    let builder = quiet(1)
        .start_timeout(Duration::MAX)
        .shutdown_grace(Duration::MAX);
    let pool = within(builder.build()).await.unwrap();
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    pool.close();
    within(pool.join()).await.unwrap();
}

#[test]
fn starts_that_fail_leave_nothing_behind() {
    alone("start::starts_that_fail_leave_nothing_behind", || {
        runtime().block_on(async {
            // Once, for what is made once and kept.
            refused(quiet(1).program("/bin/true")).await;
            eventually("no child", || children().is_empty());
            let mut before = Vec::new();
            eventually("descriptors are at rest", || {
                let now = descriptors();
                std::mem::replace(&mut before, now) == before
            });
            let hang = |_: u32| -> () {
                loop {
                    std::thread::park();
                }
            };
            for builder in [
                quiet(3).program("/does/not/exist"),
                quiet(3).program("/bin/true"),
                quiet(3).program(program("talker.sh")),
                quiet(3).program(program("flood.sh")),
                quiet(3)
                    .program(program("silent.sh"))
                    .start_timeout(Duration::from_millis(100)),
                quiet(3).initializer(|_: u32| Err::<(), _>("no"), 0),
                quiet(3)
                    .initializer(hang, 0)
                    .start_timeout(Duration::from_millis(300)),
            ] {
                refused(builder).await;
                assert_eq!(children(), [].into(), "right after the error");
            }
            // Given up half-way by the caller.
            for delay in 0..20 {
                let started = quiet(2).build();
                let _ = tokio::time::timeout(Duration::from_millis(delay), started).await;
            }
            eventually("no child", || children().is_empty());
            eventually("no descriptor", || descriptors().len() <= before.len());
        });
    });
}
