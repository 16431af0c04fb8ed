//! Tasks print, read, close what they like: results are unharmed, and output arrives where it should.

#![expect(
    unsafe_code,
    reason = "tests close descriptors that they do not own, as tasks may"
)]

use std::io::{Read, Write};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use procession::{Output, Pool};

use crate::fuse::{receive, within};
use crate::scene::{alone, pid, pids, pool, runtime, same};

/// A pool of one worker whose lines come through two channels.
async fn listening() -> (Pool, Receiver<String>, Receiver<String>) {
    let (out, stdout) = channel();
    let (err, stderr) = channel();
    let builder = Pool::builder()
        .workers(1)
        .stdout(Output::lines(move |line| {
            out.send(format!("{} {}", line.worker, line.text)).unwrap()
        }))
        .stderr(Output::lines(move |line| {
            err.send(format!("{} {}", line.worker, line.text)).unwrap()
        }));
    (within(builder.build()).await.unwrap(), stdout, stderr)
}

#[tokio::test]
async fn what_tasks_print_arrives_line_by_line() {
    let (pool, stdout, stderr) = listening().await;
    let print = |n: u32| {
        println!("line {n}\nand one");
        print!("the end");
        eprintln!("to stderr");
        n
    };
    assert_eq!(within(pool.apply(print, 1)).await.unwrap(), 1);
    assert_eq!(receive(&stdout), "0 line 1");
    assert_eq!(receive(&stdout), "0 and one");
    assert_eq!(receive(&stderr), "0 to stderr");
    // The rest of the last line comes with the worker's end.
    pool.close();
    within(pool.join()).await.unwrap();
    assert_eq!(receive(&stdout), "0 the end");
}

#[tokio::test]
async fn lines_may_be_long_and_need_not_be_text() {
    let (pool, stdout, _) = listening().await;
    let print = |n: usize| {
        let mut out = std::io::stdout().lock();
        out.write_all(&vec![b'x'; n]).unwrap();
        out.write_all(b"\n\xff\xfe\r\n\n").unwrap();
        out.flush().unwrap();
    };
    within(pool.apply(print, 200_000)).await.unwrap();
    let mut length = 0;
    while length < 200_000 {
        let piece = receive(&stdout);
        assert!(piece[2..].bytes().all(|byte| byte == b'x'), "{}", piece.len());
        length += piece.len() - 2;
    }
    assert_eq!(length, 200_000);
    assert_eq!(receive(&stdout), "0 \u{fffd}\u{fffd}");
    assert_eq!(receive(&stdout), "0 ");
}

#[tokio::test]
async fn children_of_a_task_may_print() {
    let (pool, stdout, stderr) = listening().await;
    let run = |_: ()| {
        Command::new("sh")
            .args(["-c", "echo from a child; echo and to stderr >&2"])
            .status()
            .unwrap()
            .success()
    };
    assert!(within(pool.apply(run, ())).await.unwrap());
    assert_eq!(receive(&stdout), "0 from a child");
    assert_eq!(receive(&stderr), "0 and to stderr");
}

#[tokio::test]
async fn standard_input_of_a_task_is_empty() {
    let pool = pool(1).await;
    let read = |_: ()| std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(within(pool.apply(read, ())).await.unwrap(), 0);
    let child = |_: ()| Command::new("cat").output().unwrap().stdout.len();
    assert_eq!(within(pool.apply(child, ())).await.unwrap(), 0);
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_task_may_close_its_standard_streams() {
    for fds in [vec![0], vec![1], vec![2], vec![0, 1, 2]] {
        let (pool, _stdout, _stderr) = listening().await;
        let worker = pids(&pool)[0];
        let close = |fds: Vec<i32>| {
            for fd in fds {
                // SAFETY: nothing in the worker's code keeps these three by number.
                unsafe { rustix::io::close(fd) };
            }
        };
        within(pool.apply(close, fds)).await.unwrap();
        for n in 0..20_u32 {
            assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
        }
        let panicked = within(pool.apply(|_: ()| -> () { panic!("unheard") }, ()))
            .await
            .unwrap_err();
        assert_eq!(panicked.panic().unwrap().message, "unheard");
        assert_eq!(within(pool.apply(pid, ())).await.unwrap(), worker);
    }
}

#[tokio::test]
async fn printing_after_standard_output_was_closed_is_the_tasks_own_trouble() {
    let pool = pool(1).await;
    let close = |_: ()| {
        // SAFETY: nothing in the worker's code keeps it by number.
        unsafe { rustix::io::close(1) };
        let opened = std::fs::File::open("/dev/null").unwrap();
        println!("to a file that is open for reading alone");
        drop(opened);
    };
    // Whether it panics is up to the standard library.
    let _ = within(pool.apply(close, ())).await;
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

/// Ten megabytes to each of both.
fn shout(_: u32) -> u32 {
    let line = [b'o'; 1023].into_iter().chain([b'\n']).collect::<Vec<u8>>();
    for _ in 0..10_240 {
        std::io::stdout().write_all(&line).unwrap();
        std::io::stderr().write_all(&line).unwrap();
    }
    std::process::id()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_of_output_hold_nothing_up() {
    let silent = pool(2).await;
    assert_eq!(within(silent.map(shout, 0..2)).await.unwrap().len(), 2);

    let counted = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (out, err) = (std::sync::Arc::clone(&counted), std::sync::Arc::clone(&counted));
    let builder = Pool::builder()
        .workers(2)
        .stdout(Output::lines(move |line| {
            assert_eq!(line.text.len(), 1023);
            out.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }))
        .stderr(Output::lines(move |line| {
            assert_eq!(line.text.len(), 1023);
            err.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }));
    let pool = within(builder.build()).await.unwrap();
    within(pool.map(shout, 0..2).chunk_size(1)).await.unwrap();
    pool.close();
    within(pool.join()).await.unwrap();
    // What comes faster than the listener counts may be dropped, and is counted then.
    crate::fuse::eventually("all lines are accounted for", || {
        counted.load(std::sync::atomic::Ordering::Relaxed) + pool.stats().lines_dropped >= 2 * 2 * 10_240
    });
    assert_eq!(
        counted.load(std::sync::atomic::Ordering::Relaxed) + pool.stats().lines_dropped,
        2 * 2 * 10_240
    );
}

#[tokio::test]
async fn a_listener_that_panics_loses_a_line_and_nothing_else() {
    let (sender, received) = channel();
    let builder = Pool::builder().workers(1).stdout(Output::lines(move |line| {
        assert_ne!(line.text, "bad", "the listener's own");
        sender.send(line.text.clone()).unwrap();
    }));
    let pool = within(builder.build()).await.unwrap();
    within(pool.apply(|_: ()| println!("bad\ngood"), ()))
        .await
        .unwrap();
    assert_eq!(receive(&received), "good");
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_streams_open_holds_nothing_up() {
    let pool = pool(1).await;
    let worker = pids(&pool)[0];
    // It ignores the hang-up and would outlive its parent, were the group not killed.
    let start = |_: ()| {
        drop(
            Command::new("sh")
                .args(["-c", "trap '' HUP TERM; sleep 1000"])
                .spawn()
                .unwrap(),
        );
        std::process::abort()
    };
    let error = within(pool.apply(start, ())).await.map(|_: ()| ()).unwrap_err();
    assert!(error.is_worker_lost());
    assert_eq!(error.worker_pid(), Some(worker));
    assert_ne!(within(pool.apply(pid, ())).await.unwrap(), worker);
    pool.close();
    within(pool.join()).await.unwrap();
}

#[test]
fn inherited_output_goes_to_the_parents_own() {
    let printed = alone("stdio::inherited_output_goes_to_the_parents_own", || {
        runtime().block_on(async {
            let pool = within(Pool::builder().workers(1).build()).await.unwrap();
            let print = |_: ()| {
                println!("a task's stdout");
                eprintln!("a task's stderr");
            };
            within(pool.apply(print, ())).await.unwrap();
            pool.close();
            within(pool.join()).await.unwrap();
        });
    });
    let Some((stdout, stderr)) = printed else { return };
    assert_eq!(stdout.matches("a task's stdout").count(), 1, "{stdout}");
    assert_eq!(stderr.matches("a task's stderr").count(), 1, "{stderr}");
    assert!(!stdout.contains("a task's stderr"));
}
