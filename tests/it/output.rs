//! What workers print comes in whole lines, with the worker and the task, whoever wrote it, and holds nothing up.

use std::collections::HashSet;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use procession::{BuildError, Line, Output, OutputStream, Pool, PoolBuilder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fuse::{eventually, receive, within};
use crate::gate::{gate, wait_at};
use crate::scene::{alone, alone_to_the_end, pid, pids, runtime, same};

/// A builder whose lines of both streams come through one channel.
fn heard(workers: usize) -> (PoolBuilder, Receiver<Line>) {
    let (sender, lines) = channel();
    let sink = move |line: &Line| sender.send(line.clone()).unwrap();
    let sink = Output::lines(sink);
    let builder = Pool::builder().workers(workers).stdout(sink.clone()).stderr(sink);
    (builder, lines)
}

/// Task: prints a line by the standard library.
fn print(text: String) {
    std::io::stdout()
        .write_all(format!("{text}\n").as_bytes())
        .unwrap();
}

/// Task: writes bytes past the standard library, as C code does.
fn write(bytes: Vec<u8>) {
    let stdout = std::io::stdout();
    assert_eq!(rustix::io::write(&stdout, &bytes), Ok(bytes.len()));
}

#[tokio::test]
async fn a_line_says_whose_it_is() {
    let (builder, lines) = heard(1);
    let pool = within(builder.build()).await.unwrap();
    let handle = pool.apply_async(print, "by println".to_owned());
    let id = handle.id();
    within(handle).await.unwrap();
    let line = receive(&lines);
    assert_eq!(line.text, "by println");
    assert_eq!(line.stream, OutputStream::Stdout);
    assert_eq!((line.worker, line.task, line.dropped), (0, Some(id), 0));
    assert_eq!(Some(line.pid), pool.workers()[0].pid);
    assert_eq!(line.task_name, Some("it::output::print"));

    let handle = pool.apply_async(|_: ()| eprintln!("to stderr"), ());
    let id = handle.id();
    within(handle).await.unwrap();
    let line = receive(&lines);
    assert_eq!(
        (line.text.as_str(), line.stream),
        ("to stderr", OutputStream::Stderr)
    );
    assert_eq!(line.task, Some(id));
}

#[tokio::test]
async fn every_line_of_many_short_tasks_is_its_own_tasks() {
    let (builder, lines) = heard(2);
    let pool = within(builder.build()).await.unwrap();
    let mut expected = HashSet::new();
    let handles: Vec<_> = (0..500)
        .map(|n| {
            let handle = pool.apply_async(print, format!("task {n}"));
            expected.insert((handle.id(), format!("task {n}")));
            handle
        })
        .collect();
    for handle in handles {
        within(handle).await.unwrap();
    }
    let found: HashSet<_> = (0..500)
        .map(|_| receive(&lines))
        .map(|line| (line.task.unwrap_or(0), line.text))
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_tasks_last_line_ends_with_it() {
    let (builder, lines) = heard(1);
    let pool = within(builder.build()).await.unwrap();
    for (text, end) in [("begun", "1"), ("another's\n", "2")] {
        within(pool.apply(write, format!("{text}{end}").into_bytes()))
            .await
            .unwrap();
    }
    pool.close();
    within(pool.join()).await.unwrap();
    let texts: Vec<_> = lines.try_iter().map(|line| (line.task, line.text)).collect();
    let expected = [(1, "begun1"), (2, "another's"), (2, "2")];
    assert_eq!(texts, expected.map(|(task, text)| (Some(task), text.to_owned())));
}

#[tokio::test]
async fn what_is_written_in_pieces_comes_in_whole_lines() {
    let (builder, lines) = heard(2);
    let pool = within(builder.build()).await.unwrap();
    let pieces = |n: u32| {
        for part in ["one ", "line ", "of ", "many ", "pieces"] {
            write(part.into());
            std::thread::yield_now();
        }
        write(format!(" {n}\n").into_bytes());
    };
    within(pool.map(pieces, 0..100).chunk_size(1)).await.unwrap();
    let mut found: Vec<_> = (0..100).map(|_| receive(&lines).text).collect();
    let mut expected: Vec<_> = (0..100).map(|n| format!("one line of many pieces {n}")).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn grandchildren_and_bytes_that_are_no_text_are_heard() {
    let (builder, lines) = heard(1);
    let pool = within(builder.build()).await.unwrap();
    let shell = |_: ()| {
        let script = "echo out; echo err >&2; printf '\\377\\0\\n'; printf unfinished";
        Command::new("sh")
            .args(["-c", script])
            .status()
            .unwrap()
            .success()
    };
    assert!(within(pool.apply(shell, ())).await.unwrap());
    pool.close();
    within(pool.join()).await.unwrap();
    let all: Vec<_> = lines.try_iter().collect();
    assert!(all.iter().all(|line| line.task == Some(1)), "{all:?}");
    let of = |stream| -> Vec<_> {
        let lines = all.iter().filter(move |line| line.stream == stream);
        lines.map(|line| line.text.as_str()).collect()
    };
    assert_eq!(of(OutputStream::Stdout), ["out", "\u{fffd}\0", "unfinished"]);
    assert_eq!(of(OutputStream::Stderr), ["err"]);
}

#[tokio::test]
async fn what_was_printed_before_an_abort_arrives() {
    let (builder, lines) = heard(1);
    let pool = within(builder.build()).await.unwrap();
    let worker = pids(&pool)[0];
    let abort = |_: ()| {
        println!("last words");
        std::process::abort()
    };
    let lost = within(pool.apply(abort, ())).await.map(|_: ()| ()).unwrap_err();
    assert!(lost.is_worker_lost());
    let line = receive(&lines);
    assert_eq!(
        (line.text.as_str(), line.task, line.pid),
        ("last words", Some(1), worker)
    );
}

#[tokio::test]
async fn an_initializers_lines_are_nobodys() {
    let (builder, lines) = heard(1);
    let pool = within(builder.initializer(print, "ready".to_owned()).build())
        .await
        .unwrap();
    let line = receive(&lines);
    assert_eq!(
        (line.text.as_str(), line.task, line.task_name),
        ("ready", None, None)
    );
    within(pool.apply(print, "work".to_owned())).await.unwrap();
    assert_eq!(receive(&lines).task, Some(1));
}

#[tokio::test]
async fn tasks_side_by_side_share_their_lines() {
    let (builder, lines) = heard(1);
    let pool = within(builder.tasks_per_worker(2).build()).await.unwrap();
    within(pool.apply(print, "either".to_owned())).await.unwrap();
    let line = receive(&lines);
    assert_eq!((line.text.as_str(), line.task), ("either", None));
}

#[tokio::test]
async fn a_task_may_point_its_output_elsewhere() {
    let (builder, lines) = heard(1);
    let pool = within(builder.build()).await.unwrap();
    let scratch = crate::scene::Scratch::new();
    let redirect = |path: String| {
        println!("before");
        rustix::stdio::dup2_stdout(std::fs::File::create(path).unwrap()).unwrap();
        println!("into the file");
    };
    within(pool.apply(redirect, scratch.path())).await.unwrap();
    within(pool.apply(print, "there too".to_owned())).await.unwrap();
    let line = receive(&lines);
    assert_eq!((line.text.as_str(), line.task), ("before", Some(1)));
    assert_eq!(scratch.lines(), ["into the file", "there too"]);
}

#[tokio::test]
async fn an_errors_last_words_are_the_tasks_own() {
    let builder = Pool::builder().workers(1).stderr(Output::lines(|_| {}));
    let pool = within(builder.build()).await.unwrap();
    let noisy = |_: ()| -> () { panic!("an earlier task's panic") };
    assert!(within(pool.apply(noisy, ())).await.unwrap_err().panic().is_some());
    let quiet = |_: ()| -> () { std::process::abort() };
    let lost = within(pool.apply(quiet, ())).await.unwrap_err();
    assert_eq!(lost.stderr().unwrap_or_default(), "");
    let last = |_: ()| -> () {
        eprintln!("my own");
        std::process::abort()
    };
    let lost = within(pool.apply(last, ())).await.unwrap_err();
    assert_eq!(lost.stderr().unwrap_or_default(), "my own\n");
}

/// Task: so many lines, as fast as possible.
fn flood(lines: u64) -> u64 {
    let mut out = std::io::stdout().lock();
    for n in 0..lines {
        writeln!(out, "{n}").unwrap();
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_blocks_holds_up_neither_tasks_nor_results() {
    const LINES: u64 = 1_000_000;
    let (go, may_go) = channel::<()>();
    let (may_go, delivered) = (Mutex::new(may_go), Arc::new(AtomicU64::new(0)));
    let (count, gaps) = (Arc::clone(&delivered), Arc::new(AtomicU64::new(0)));
    let gap = Arc::clone(&gaps);
    let builder = Pool::builder()
        .workers(2)
        .output_buffer(64 * 1024)
        .stdout(Output::lines(move |line| {
            // Until the sender is dropped.
            let _ = may_go.lock().unwrap().recv();
            gap.fetch_add(line.dropped, Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
        }));
    let pool = within(builder.build()).await.unwrap();
    // The flood ends though nobody listens, and others are not held up.
    let flooding = pool.apply_async(flood, LINES);
    for n in 0..100_u32 {
        assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
    }
    assert_eq!(within(flooding).await.unwrap(), LINES);
    eventually("the flood has been read", || {
        pool.stats().lines_dropped > LINES / 2
    });
    drop(go);
    let total = || delivered.load(Ordering::Relaxed) + pool.stats().lines_dropped;
    eventually("every line is accounted for", || total() >= LINES);
    // A line behind the gap tells how large that was.
    within(
        pool.map(print, (0..2).map(|n| format!("after {n}")))
            .chunk_size(1),
    )
    .await
    .unwrap();
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(total(), LINES + 2);
    assert!(gaps.load(Ordering::Relaxed) <= pool.stats().lines_dropped);
}

#[tokio::test]
async fn a_blocked_listener_of_one_stream_does_not_stop_the_other() {
    let (mut gate, argument) = gate();
    let argument = Mutex::new(Some(argument));
    let (sender, lines) = channel();
    let builder = Pool::builder()
        .workers(1)
        .stdout(Output::lines(move |_| {
            if let Some(gate) = argument.lock().unwrap().take() {
                wait_at(gate);
            }
        }))
        .stderr(Output::lines(move |line| sender.send(line.text.clone()).unwrap()));
    let pool = within(builder.build()).await.unwrap();
    within(pool.apply(print, "stuck".to_owned())).await.unwrap();
    gate.entered();
    within(pool.apply(|_: ()| eprintln!("free"), ())).await.unwrap();
    assert_eq!(receive(&lines), "free");
    gate.open();
}

#[tokio::test]
async fn a_blocked_listener_does_not_stop_a_workers_replacement() {
    let (gate, argument) = gate();
    let argument = Mutex::new(Some(argument));
    let builder = Pool::builder().workers(1).stdout(Output::lines(move |_| {
        if let Some(gate) = argument.lock().unwrap().take() {
            wait_at(gate);
        }
    }));
    let pool = within(builder.build()).await.unwrap();
    let first = pids(&pool)[0];
    let abort = |_: ()| -> () {
        println!("stuck");
        std::process::abort()
    };
    assert!(within(pool.apply(abort, ())).await.unwrap_err().is_worker_lost());
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), first);
    gate.open();
}

/// A child process of the test's own prints by two workers at once; this looks at what came out of it.
fn printed(name: &str, output: fn() -> Output) -> Option<(String, String)> {
    alone_to_the_end(name, || {
        // The harness has begun a line.
        std::io::stdout().write_all(b"\n").unwrap();
        runtime().block_on(async {
            let builder = Pool::builder().workers(2).stdout(output()).stderr(output());
            let pool = within(builder.build()).await.unwrap();
            let pieces = |n: u32| {
                for _ in 0..20 {
                    for part in ["<", "a line ", "in pieces"] {
                        write(part.into());
                        eprint!("{part}");
                    }
                    write(format!(" {n}>\n").into_bytes());
                    eprintln!(" {n}>");
                }
            };
            within(pool.map(pieces, 0..20).chunk_size(1)).await.unwrap();
            // Neither closed nor joined: the end of the program waits for what is on its way.
        });
    })
}

#[test]
fn inherited_lines_of_two_workers_do_not_mix_and_none_is_lost() {
    let name = "output::inherited_lines_of_two_workers_do_not_mix_and_none_is_lost";
    let Some((stdout, stderr)) = printed(name, Output::inherit) else {
        return;
    };
    for text in [stdout, stderr] {
        for n in 0..20 {
            let line = format!("<a line in pieces {n}>");
            assert_eq!(text.matches(&line).count(), 20, "{line}\n{text}");
        }
    }
}

#[test]
fn tagged_lines_say_whose_they_are() {
    let name = "output::tagged_lines_say_whose_they_are";
    let Some((stdout, stderr)) = printed(name, Output::tagged) else {
        return;
    };
    for text in [stdout, stderr] {
        for n in 0..20 {
            let end = format!("] <a line in pieces {n}>");
            let found: Vec<_> = text.lines().filter(|line| line.ends_with(&end)).collect();
            assert_eq!(found.len(), 20, "{text}");
            let is_tagged = |line: &&str| {
                line.starts_with("[worker ") && line.contains(", task ") && line.contains("printed::")
            };
            assert!(found.iter().all(is_tagged), "{found:?}");
            // All of one task, and so the same.
            assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
        }
    }
}

#[tokio::test]
async fn a_buffer_without_room_is_refused() {
    let error = within(Pool::builder().output_buffer(0).build())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            BuildError::InvalidOption {
                option: "output_buffer",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_program_that_may_open_fewer_descriptors_than_it_has_goes_on_hearing() {
    alone(
        "output::a_program_that_may_open_fewer_descriptors_than_it_has_goes_on_hearing",
        || {
            runtime().block_on(async {
                let (sender, lines) = channel();
                let builder = Pool::builder()
                    .workers(4)
                    .stdout(Output::lines(move |line| sender.send(line.text.clone()).unwrap()));
                let pool = within(builder.build()).await.unwrap();
                let limit = getrlimit(Resource::Nofile);
                let few = Rlimit {
                    current: Some(4),
                    maximum: limit.maximum,
                };
                setrlimit(Resource::Nofile, few).unwrap();
                for n in 0..20_u32 {
                    within(pool.apply(print, format!("line {n}"))).await.unwrap();
                    assert_eq!(receive(&lines), format!("line {n}"));
                }
                setrlimit(Resource::Nofile, limit).unwrap();
                within(pool.apply(print, "the last".to_owned())).await.unwrap();
                assert_eq!(receive(&lines), "the last");
                assert_eq!(pool.stats().restarts, 0);
            });
        },
    );
}
