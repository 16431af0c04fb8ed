//! W3C trace contexts travel with tasks.

use std::sync::atomic::{AtomicU32, Ordering};

use procession::{Output, Pool, TraceContext, worker};

use crate::fuse::within;
use crate::gate::{gate, wait_at};
use crate::scene::{Scratch, append, pool};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn numbered(number: u32) -> TraceContext {
    TraceContext::new(format!("00-{number:032x}-{number:016x}-00")).unwrap()
}

/// Task: the headers that came with it.
fn headers<A>(_: A) -> Option<(String, Option<String>)> {
    let context = worker::trace_context()?;
    Some((
        context.traceparent().to_owned(),
        context.tracestate().map(str::to_owned),
    ))
}

#[tokio::test]
async fn a_task_finds_what_it_was_given() {
    let pool = pool(1).await;
    let context = TraceContext::new(PARENT).unwrap().with_state("a=1,b=2").unwrap();
    let task = pool.task(headers, ()).trace_context(context);
    let found = within(task).await.unwrap();
    assert_eq!(found, Some((PARENT.to_owned(), Some("a=1,b=2".to_owned()))));
    // It is the task's own, not the worker's.
    assert_eq!(within(pool.apply(headers, ())).await.unwrap(), None);
    assert_eq!(worker::trace_context(), None);
}

#[tokio::test]
async fn threads_of_a_task_find_it_too() {
    let pool = pool(1).await;
    let on_a_thread = |_: ()| std::thread::spawn(|| headers(())).join().unwrap();
    let task = pool.task(on_a_thread, ()).trace_context(numbered(7));
    assert_eq!(within(task).await.unwrap().unwrap().0, numbered(7).traceparent());
}

#[tokio::test]
async fn the_pools_hook_is_asked_at_every_submission() {
    let next = AtomicU32::new(1);
    let builder = Pool::builder()
        .workers(2)
        .stderr(Output::null())
        .trace_context(move || match next.fetch_add(1, Ordering::Relaxed) {
            3 => None,
            4 => panic!("the hook's own"),
            number => Some(numbered(number)),
        });
    let pool = within(builder.build()).await.unwrap();
    for n in 1..=6 {
        let expected = match n {
            3 | 4 => None,
            n => Some(numbered(n).traceparent().to_owned()),
        };
        let found = within(pool.apply(headers, n)).await.unwrap();
        assert_eq!(found.map(|(parent, _)| parent), expected, "{n}");
    }
    // What a task is given itself comes first.
    let task = pool.task(headers, 0).trace_context(numbered(100));
    let found = within(task).await.unwrap().unwrap();
    assert_eq!(found.0, numbered(100).traceparent());
    let found = within(pool.map(headers::<u32>, 0..10)).await.unwrap();
    assert!(found.iter().all(Option::is_some), "{found:?}");
}

#[tokio::test]
async fn async_tasks_side_by_side_have_their_own() {
    async fn twice(_: ()) -> [Option<String>; 2] {
        let parent = || worker::trace_context().map(|context| context.traceparent().to_owned());
        let before = parent();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        [before, parent()]
    }
    let next = AtomicU32::new(1);
    let builder = Pool::builder()
        .workers(1)
        .tasks_per_worker(8)
        .trace_context(move || Some(numbered(next.fetch_add(1, Ordering::Relaxed))));
    let pool = within(builder.build()).await.unwrap();
    let handles: Vec<_> = (0..32)
        .map(|_| pool.asynchronous().apply_async(twice, ()))
        .collect();
    for (handle, number) in handles.into_iter().zip(1..) {
        let expected = Some(numbered(number).traceparent().to_owned());
        assert_eq!(within(handle).await.unwrap(), [expected.clone(), expected]);
    }
}

#[tokio::test]
async fn it_is_sent_again_with_what_is_sent_again() {
    let next = AtomicU32::new(1);
    let builder = Pool::builder()
        .workers(1)
        .stderr(Output::null())
        .trace_context(move || Some(numbered(next.fetch_add(1, Ordering::Relaxed))));
    let pool = within(builder.build()).await.unwrap();
    // Sent ahead to a worker that dies before it begins them.
    let (mut gate, argument) = gate();
    let first = pool.apply_async(wait_at, argument);
    let waiting: Vec<_> = (0..4).map(|_| pool.apply_async(headers, ())).collect();
    let worker = gate.entered();
    crate::scene::signal(worker, rustix::process::Signal::KILL);
    assert!(within(first).await.unwrap_err().is_worker_lost());
    for (handle, number) in waiting.into_iter().zip(2..) {
        let found = within(handle).await.unwrap().unwrap();
        assert_eq!(found.0, numbered(number).traceparent());
    }
}

#[tokio::test]
async fn the_rest_of_a_chunk_has_what_the_chunk_had() {
    let scratch = Scratch::new();
    let builder = Pool::builder()
        .workers(1)
        .stderr(Output::null())
        .trace_context(|| Some(numbered(5)));
    let pool = within(builder.build()).await.unwrap();
    let note = |(path, n): (String, u32)| {
        let found = headers(()).map_or_else(|| "none".to_owned(), |(parent, _)| parent);
        append((path, found));
        if n == 2 {
            std::process::abort();
        }
    };
    let arguments: Vec<_> = (0..6).map(|n| (scratch.path(), n)).collect();
    let results = within(pool.map(note, arguments).chunk_size(6).collect_results()).await;
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
    assert_eq!(scratch.lines(), vec![numbered(5).traceparent(); 6]);
}
