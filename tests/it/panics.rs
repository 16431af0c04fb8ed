//! A panic fails its task, and tells all about itself.

use procession::{Output, Pool, TaskErrorKind};
use serde::{Deserialize, Serialize};

use crate::fuse::within;
use crate::scene::{pid, pids, pool, same};

// Backtraces of optimised builds must have it too.
#[inline(never)]
fn divide((a, b): (u32, u32)) -> u32 {
    a / b
}

#[tokio::test]
async fn a_panic_says_what_where_and_in_which_task() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    let line = line!() + 1;
    let error = within(pool.apply(|n: u32| -> u32 { panic!("not {n}, please") }, 13))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::Panicked);
    assert_eq!((error.worker_pid(), error.worker_id()), (Some(worker), Some(0)));
    let panic = error.panic().unwrap();
    assert_eq!(panic.message, "not 13, please");
    assert_eq!((panic.file.as_str(), panic.line), (file!(), line));
    assert!(panic.column > 0);
    let text = error.to_string();
    for part in [
        "not 13, please",
        &panic.location(),
        &worker.to_string(),
        "a_panic_says_what",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(error.task_name().contains("a_panic_says_what"));

    let error = within(pool.apply(divide, (1, 0))).await.unwrap_err();
    assert!(error.panic().unwrap().message.contains("divide by zero"));
    assert!(
        error.task_name().ends_with("panics::divide"),
        "{}",
        error.task_name()
    );
}

#[tokio::test]
async fn the_worker_lives_on() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    for _ in 0..20 {
        within(pool.apply(divide, (1, 0))).await.unwrap_err();
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
    }
    assert_eq!(pool.stats().restarts, 0);
}

#[tokio::test]
async fn four_panics_in_sixteen_tasks_are_four_failures() {
    let pool = pool(2).await;
    let handles: Vec<_> = (0..16).map(|n| pool.apply_async(divide, (n, n % 4))).collect();
    let mut failed = 0;
    for (n, handle) in (0..).zip(handles) {
        match within(handle).await {
            Ok(value) => assert_eq!(value, n / (n % 4)),
            Err(error) => {
                assert!(error.is_panic() && n % 4 == 0, "{n}: {error}");
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 4);
}

#[tokio::test]
async fn a_backtrace_comes_when_the_environment_asks_for_one() {
    for (setting, wanted) in [("1", true), ("0", false)] {
        let builder = Pool::builder()
            .workers(1)
            .env("RUST_BACKTRACE", setting)
            .stderr(Output::null());
        let pool = within(builder.build()).await.unwrap();
        let error = within(pool.apply(divide, (1, 0))).await.unwrap_err();
        let backtrace = error.panic().unwrap().backtrace.as_ref();
        assert_eq!(backtrace.is_some(), wanted);
        if let Some(backtrace) = backtrace {
            assert!(backtrace.contains("divide"), "{backtrace}");
            assert!(error.to_string().contains(backtrace.trim_end()));
        }
    }
}

#[tokio::test]
async fn a_payload_that_is_not_text_arrives_as_a_placeholder() {
    let pool = pool(1).await;
    let error = within(pool.apply(|_: ()| -> () { std::panic::panic_any(42) }, ()))
        .await
        .unwrap_err();
    assert_eq!(
        error.panic().unwrap().message,
        "<a panic payload that is not text>"
    );
    assert!(error.panic().unwrap().line > 0);
    let error = within(pool.apply(|_: ()| -> () { std::panic::panic_any(Bomb(1)) }, ()))
        .await
        .unwrap_err();
    assert!(error.is_panic());
    let error = within(pool.apply(
        |_: ()| -> () { std::panic::resume_unwind(Box::new("quietly")) },
        (),
    ))
    .await
    .unwrap_err();
    assert_eq!(error.panic().unwrap().message, "quietly");
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

/// Panics when it is dropped, if its number says so, in workers alone.
#[derive(Debug, Serialize, Deserialize)]
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 == 1 && procession::worker::is_worker() && !std::thread::panicking() {
            panic!("in Drop")
        }
    }
}

#[tokio::test]
async fn a_panic_in_drop_fails_only_its_task() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    // The argument is dropped by the task, the result when it has been encoded.
    let argument = within(pool.apply(
        |bomb: Bomb| {
            let _ = &bomb;
            1_u8
        },
        Bomb(1),
    ))
    .await
    .unwrap_err();
    assert_eq!(argument.panic().unwrap().message, "in Drop");
    let result = within(pool.apply(|n: u32| Bomb(n), 1)).await;
    assert!(result.is_err_and(|error| error.panic().is_some_and(|panic| panic.message == "in Drop")));
    let each = within(
        pool.map(|n: u32| Bomb(n), [0, 1, 0])
            .chunk_size(3)
            .collect_results(),
    )
    .await;
    assert_eq!(
        each.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, false, true]
    );
    // Decoding fails behind a value that is then dropped.
    let error = within(pool.apply(|(_, text): (Bomb, Bad)| text.0, (Bomb(1), Bad(3))))
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind(), TaskErrorKind::Decode | TaskErrorKind::Panicked),
        "{error}"
    );
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
}

/// Is written as a number and read as something that is not there.
#[derive(Debug)]
struct Bad(u8);

impl Serialize for Bad {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bad {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <(u8, u64)>::deserialize(deserializer).map(|(n, _)| Self(n))
    }
}

/// Panics in workers: on its way in, on its way out or in the end, as its number says.
#[derive(Debug)]
struct Touchy(u32);

impl Touchy {
    fn touch(&self, last_digit: u32) {
        let is_meant = self.0 % 10 == last_digit && procession::worker::is_worker();
        assert!(!is_meant || std::thread::panicking(), "touched");
    }
}

impl Serialize for Touchy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.touch(7);
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let touchy = Self(u32::deserialize(deserializer)?);
        touchy.touch(3);
        Ok(touchy)
    }
}

impl Drop for Touchy {
    fn drop(&mut self) {
        self.touch(9);
    }
}

#[tokio::test]
async fn in_whatever_way_elements_panic_the_others_keep_their_values() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    let work = |touchy: Touchy| {
        touchy.touch(5);
        touchy
    };
    let each = within(
        pool.map(work, (0..1000).map(Touchy))
            .chunk_size(1000)
            .collect_results(),
    )
    .await;
    assert_eq!(each.len(), 1000);
    for (n, result) in (0..).zip(each) {
        let expected = match n % 10 {
            3 => Err(TaskErrorKind::Decode),
            5 | 9 => Err(TaskErrorKind::Panicked),
            7 => Err(TaskErrorKind::Encode),
            _ => Ok(n),
        };
        assert_eq!(
            result.map(|touchy| touchy.0).map_err(|error| error.kind()),
            expected,
            "{n}"
        );
    }
    assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
}

#[tokio::test]
async fn the_place_of_a_panic_that_another_element_caught_is_not_taken_for_it() {
    let pool = pool(1).await;
    let work = |n: u32| match n {
        0 => drop(std::panic::catch_unwind(|| panic!("caught"))),
        _ => std::panic::resume_unwind(Box::new("without a place")),
    };
    let each = within(pool.map(work, 0..2).chunk_size(2).collect_results()).await;
    assert!(each[0].is_ok());
    let panic = each[1].as_ref().unwrap_err().panic().unwrap();
    assert_eq!((panic.message.as_str(), panic.line), ("without a place", 0));
}

#[tokio::test]
async fn a_panic_in_a_thread_of_the_worker_is_that_threads_own() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    let spawn = |_: ()| {
        let caught = std::thread::spawn(|| panic!("in a thread")).join().is_err();
        drop(std::thread::spawn(|| panic!("in another thread")));
        caught
    };
    assert!(within(pool.apply(spawn, ())).await.unwrap());
    for _ in 0..10 {
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
    }
}

#[tokio::test]
async fn a_panic_that_the_task_catches_is_no_failure() {
    let pool = pool(1).await;
    let catch = |_: ()| std::panic::catch_unwind(|| panic!("caught")).is_err();
    assert!(within(pool.apply(catch, ())).await.unwrap());
}

#[tokio::test]
async fn the_place_of_a_panic_that_was_caught_is_not_taken_for_another() {
    let pool = pool(1).await;
    let resume = |_: ()| -> () {
        std::panic::catch_unwind(|| panic!("caught")).unwrap_err();
    };
    within(pool.apply(resume, ())).await.unwrap();
    let resume = |_: ()| -> () { std::panic::resume_unwind(Box::new("without a place")) };
    let error = within(pool.apply(resume, ())).await.unwrap_err();
    assert_eq!(error.panic().unwrap().message, "without a place");
    assert_eq!(error.panic().unwrap().line, 0, "{error}");
}

#[tokio::test]
async fn a_task_that_takes_the_panic_hook_fails_like_any_other() {
    let pool = pool(1).await;
    within(pool.apply(|_: ()| std::panic::set_hook(Box::new(|_| {})), ()))
        .await
        .unwrap();
    let error = within(pool.apply(divide, (1, 0))).await.unwrap_err();
    assert!(error.is_panic());
    assert!(
        error.panic().unwrap().message.contains("divide by zero"),
        "{error}"
    );
}

#[tokio::test]
async fn errors_are_cheap_clones_that_tell_the_same() {
    let pool = pool(1).await;
    let error = within(pool.apply(divide, (1, 0))).await.unwrap_err();
    let copy = error.clone();
    assert_eq!(copy.to_string(), error.to_string());
    assert_eq!(copy.panic(), error.panic());
    assert!(copy.exit_status().is_none() && copy.stderr().is_none());
    let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(copy);
    assert!(boxed.source().is_none());
}
