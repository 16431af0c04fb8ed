//! The pool as a `tower::Service`.

use std::convert::Infallible;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use procession::{AsyncResult, Output, Pool, TaskErrorKind, TaskService, TimeoutPhase};
use rustix::process::Signal;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use crate::fuse::{eventually, receive, within};
use crate::gate::{Gate, gate, wait_at};
use crate::scene::{Scratch, append, pid, pids, same, signal};

async fn bounded(capacity: usize) -> Pool {
    let builder = Pool::builder()
        .workers(1)
        .queue_capacity(capacity)
        .stderr(Output::null());
    within(builder.build()).await.unwrap()
}

/// Keeps a worker busy.
fn hold(pool: &Pool) -> (Gate, AsyncResult<u32>) {
    let (mut gate, argument) = gate();
    let held = pool.apply_async(wait_at, argument);
    gate.entered();
    (gate, held)
}

/// What a service says now, to nobody who would come back for it.
fn asked<S: Service<u32>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

fn echo(pool: &Pool) -> TaskService<u32, u32> {
    pool.service(same::<u32>)
}

#[tokio::test]
async fn a_service_runs_its_function_for_every_request() {
    let pool = bounded(4).await;
    let mut service = pool.service(|text: String| text.to_uppercase());
    for text in ["a", "b"] {
        let response = within(service.ready()).await.unwrap().call(text.to_owned());
        assert_eq!(within(response).await.unwrap(), text.to_uppercase());
    }
    async fn later(n: u32) -> u32 {
        tokio::task::yield_now().await;
        n + 1
    }
    let service = pool.asynchronous().service(later);
    assert_eq!(within(service.oneshot(1)).await.unwrap(), 2);
}

#[tokio::test]
async fn a_service_is_ready_exactly_when_the_queue_has_room() {
    let pool = bounded(2).await;
    let (gate, held) = hold(&pool);
    let mut services: Vec<_> = (0..3).map(|_| echo(&pool)).collect();
    assert!(asked(&mut services[0]).is_ready());
    assert!(asked(&mut services[1]).is_ready());
    assert!(asked(&mut services[2]).is_pending());
    // Asked again, it is ready still, and keeps no more room than that.
    assert!(asked(&mut services[0]).is_ready());
    // The room is theirs, although nothing waits yet.
    assert_eq!(pool.stats().queued, 0);
    assert!(pool.try_apply(pid, ()).unwrap_err().is_queue_full());

    // A ready one is called, and never waits.
    let first = services[0].call(1);
    let second = services[1].call(2);
    assert_eq!(pool.stats().queued, 2);
    assert!(asked(&mut services[0]).is_pending());
    gate.open();
    within(held).await.unwrap();
    assert_eq!(within(first).await.unwrap(), 1);
    assert_eq!(within(second).await.unwrap(), 2);
    // Those that waited hear of it.
    let third = within(services[2].ready()).await.unwrap().call(3);
    assert_eq!(within(third).await.unwrap(), 3);
}

#[tokio::test]
async fn a_clone_has_no_room_of_its_original() {
    let pool = bounded(1).await;
    let (_gate, _held) = hold(&pool);
    let mut original = echo(&pool);
    assert!(asked(&mut original).is_ready());
    let mut clone = original.clone();
    assert!(asked(&mut clone).is_pending());
    let _called = original.call(1);
    assert!(asked(&mut clone).is_pending());
    assert_eq!(pool.stats().queued, 1);
}

#[tokio::test]
async fn a_ready_service_that_is_dropped_gives_its_room_back() {
    let pool = bounded(1).await;
    let (gate, held) = hold(&pool);
    for _ in 0..5 {
        let mut ready = echo(&pool);
        let mut waiting = echo(&pool);
        let mut gives_up = echo(&pool);
        assert!(asked(&mut ready).is_ready());
        assert!(asked(&mut gives_up).is_pending());
        assert!(asked(&mut waiting).is_pending());
        drop(gives_up);
        assert!(asked(&mut waiting).is_pending());
        drop(ready);
        assert!(asked(&mut waiting).is_ready());
    }
    // Nothing was given back twice: there is room for one.
    let queued = pool.try_apply(pid, ()).unwrap();
    assert!(asked(&mut echo(&pool)).is_pending());
    gate.open();
    within(held).await.unwrap();
    within(queued).await.unwrap();
}

#[tokio::test]
async fn a_waiting_service_stands_in_line_with_calls() {
    let pool = bounded(0).await;
    let file = Scratch::new();
    let line = |name: &str| (file.path(), name.to_owned());
    let (gate, held) = hold(&pool);
    let mut before = pool.apply(append, line("before"));
    assert!(futures::poll!(&mut before).is_pending());
    let mut service = pool.service(append);
    let request = async {
        let response = service.ready().await.unwrap().call(line("request"));
        response.await.unwrap();
    };
    let mut request = Box::pin(request);
    assert!(futures::poll!(&mut request).is_pending());
    let mut after = pool.apply(append, line("after"));
    assert!(futures::poll!(&mut after).is_pending());
    gate.open();
    let (held, before, (), after) = within(async { tokio::join!(held, before, request, after) }).await;
    held.unwrap();
    before.and(after).unwrap();
    assert_eq!(file.lines(), ["before", "request", "after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_services_and_hundred_callers_all_make_progress() {
    for capacity in [0, 1, 3] {
        let pool = bounded(capacity).await;
        let requests = (0..100_u32).map(|n| {
            let (service, pool) = (echo(&pool), pool.clone());
            tokio::spawn(async move {
                for _ in 0..5 {
                    let mut service = service.clone();
                    assert_eq!(service.ready().await.unwrap().call(n).await.unwrap(), n);
                    assert_eq!(pool.apply(same::<u32>, n).await.unwrap(), n);
                    // Given up at some point of its wait, or in time.
                    asked(&mut service).is_ready().then(|| service.call(n));
                }
            })
        });
        for result in within(join_all(requests)).await {
            result.unwrap();
        }
        // No room is lost: while one task runs, as many wait as ever.
        let (mut gate, argument) = gate();
        let held = tokio::spawn(pool.apply(wait_at, argument));
        gate.entered();
        eventually("there is room for as many", || {
            while let Ok(handle) = pool.try_apply(same::<u32>, 0) {
                drop(handle);
            }
            pool.stats().queued == capacity
        });
        gate.open();
        within(held).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_service_of_a_pool_that_has_ended_says_so() {
    for ending in [Pool::close as fn(&Pool), Pool::terminate] {
        let pool = bounded(1).await;
        let (gate, held) = hold(&pool);
        let (mut ready, mut called, mut waiting) = (echo(&pool), echo(&pool), echo(&pool));
        assert!(asked(&mut called).is_ready());
        let was_called = called.call(1);
        let queued = pool.stats().queued;
        assert!(asked(&mut ready).is_pending());
        let wait = tokio::spawn(async move { waiting.ready().await.map(drop) });
        ending(&pool);
        let error = within(wait).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
        assert!(error.task_name().contains("same"), "{error}");
        for service in [&mut ready, &mut called] {
            let answer = asked(service).map(|answer| answer.unwrap_err().kind());
            assert_eq!(answer, Poll::Ready(TaskErrorKind::PoolClosed));
        }
        // Called all the same, it fails.
        assert!(within(ready.call(1)).await.unwrap_err().is_pool_closed());
        gate.open();
        assert_eq!(queued, 1);
        assert_eq!(within(held).await.is_ok(), within(was_called).await.is_ok());
        within(pool.join()).await.unwrap();
    }
}

#[tokio::test]
async fn while_no_worker_starts_it_is_the_call_that_fails() {
    let file = Scratch::new();
    let initialize = |path: String| match std::fs::exists(&path) {
        Ok(false) => {
            append((path, "first".to_owned()));
            Ok(())
        }
        _ => Err("only once".to_owned()),
    };
    let builder = Pool::builder().workers(1).queue_capacity(0);
    let builder = builder
        .initializer(initialize, file.path())
        .stderr(Output::null());
    let pool = within(builder.build()).await.unwrap();
    let (_gate, held) = hold(&pool);
    let mut waiting = echo(&pool);
    assert!(asked(&mut waiting).is_pending());
    signal(pids(&pool)[0], Signal::KILL);
    assert!(within(held).await.unwrap_err().is_worker_lost());
    for _ in 0..2 {
        let response = within(waiting.ready()).await.unwrap().call(1);
        let error = within(response).await.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::PoolFailed, "{error}");
    }
}

#[tokio::test]
async fn a_pool_that_ends_between_ready_and_call_fails_the_call() {
    let pool = bounded(1).await;
    let mut service = echo(&pool);
    assert!(asked(&mut service).is_ready());
    pool.close();
    assert_eq!(
        within(service.call(1)).await.unwrap_err().kind(),
        TaskErrorKind::PoolClosed
    );
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn a_call_without_being_ready_waits_in_its_future() {
    let pool = bounded(0).await;
    let (gate, held) = hold(&pool);
    let mut service = echo(&pool);
    let mut response = service.call(5);
    assert!(futures::poll!(&mut response).is_pending());
    assert_eq!(pool.stats().queued, 0);
    gate.open();
    within(held).await.unwrap();
    assert_eq!(within(response).await.unwrap(), 5);
}

struct Unfit;

impl serde::Serialize for Unfit {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("unfit"))
    }
}

impl<'de> serde::Deserialize<'de> for Unfit {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Self)
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_encoded_gives_its_room_back() {
    let pool = bounded(1).await;
    let (gate, held) = hold(&pool);
    let mut service = pool.service(|_: Unfit| ());
    let ready = within(service.ready()).await.unwrap();
    let error = within(ready.call(Unfit)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::Encode);
    let queued = pool.try_apply(pid, ()).unwrap();
    gate.open();
    within(held).await.unwrap();
    within(queued).await.unwrap();
}

#[tokio::test]
async fn a_response_that_is_dropped_is_cancelled() {
    let pool = bounded(1).await;
    let file = Scratch::new();
    let (gate, held) = hold(&pool);
    let mut service = pool.service(append);
    let response = within(service.ready())
        .await
        .unwrap()
        .call((file.path(), "ran".to_owned()));
    drop(response);
    // And its room is free.
    let (path, line) = (file.path(), "after".to_owned());
    let after = within(service.ready()).await.unwrap().call((path, line));
    gate.open();
    within(held).await.unwrap();
    within(after).await.unwrap();
    assert_eq!(file.lines(), ["after"]);
}

#[tokio::test]
async fn every_request_has_the_options_of_the_service() {
    let pool = bounded(10).await;
    let file = Scratch::new();
    let (gate, held) = hold(&pool);
    let (told, hears) = std::sync::mpsc::channel();
    let mut low = pool.service(append);
    let mut high = low
        .clone()
        .map_task(|task| task.priority(1))
        .map_task(move |task| {
            let told = told.clone();
            task.callback(move |()| told.send("done").unwrap())
        });
    let mut responses = Vec::new();
    for (service, name) in [(&mut low, "second"), (&mut high, "first")] {
        let ready = within(service.ready()).await.unwrap();
        responses.push(ready.call((file.path(), name.to_owned())));
    }
    gate.open();
    within(held).await.unwrap();
    for response in responses {
        within(response).await.unwrap();
    }
    assert_eq!(file.lines(), ["first", "second"]);
    assert_eq!(receive(&hears), "done");
}

#[tokio::test]
async fn a_request_has_the_times_of_its_task() {
    let pool = bounded(1).await;
    let (gate, held) = hold(&pool);
    let mut service = echo(&pool).map_task(|task| task.queue_timeout(Duration::from_millis(20)));
    // Into room that is kept for it, and into the line.
    let queued = within(service.ready()).await.unwrap().call(1);
    let waiting = service.call(2);
    for response in within(join_all([queued, waiting])).await {
        let error = response.unwrap_err();
        assert_eq!(error.kind(), TaskErrorKind::TimedOut(TimeoutPhase::Queued));
    }
    // One whose time is up when it comes gives the room back that was kept for it.
    let mut late = echo(&pool).map_task(|task| task.deadline(std::time::Instant::now()));
    let response = within(late.ready()).await.unwrap().call(3);
    assert!(within(response).await.unwrap_err().is_timeout());
    let queued = pool.try_apply(pid, ()).unwrap();
    gate.open();
    within(held).await.unwrap();
    within(queued).await.unwrap();
}

#[tokio::test]
async fn a_task_of_another_pool_takes_no_room_of_this_one() {
    let (pool, other) = (bounded(1).await, bounded(1).await);
    let elsewhere = other.clone();
    let mut service = echo(&pool).map_task(move |_| elsewhere.task(|()| 77, ()));
    for _ in 0..5 {
        assert_eq!(
            within(within(service.ready()).await.unwrap().call(1))
                .await
                .unwrap(),
            77
        );
    }
    assert_eq!((pool.stats().tasks_done, other.stats().tasks_done), (0, 5));
}

#[tokio::test]
async fn load_shed_sheds_what_the_queue_has_no_room_for() {
    let pool = bounded(2).await;
    let (gate, held) = hold(&pool);
    let service = ServiceBuilder::new().load_shed().service(echo(&pool));
    let mut responses: Vec<_> = (0..20).map(|n| Box::pin(service.clone().oneshot(n))).collect();
    let answers: Vec<_> = responses
        .iter_mut()
        .map(|response| response.now_or_never())
        .collect();
    // Two wait for their turn, 18 are sent away.
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            None => assert!(n < 2),
            Some(answer) => {
                let error = answer.as_ref().unwrap_err();
                assert!(
                    n >= 2 && error.is::<tower::load_shed::error::Overloaded>(),
                    "{error}"
                );
            }
        }
    }
    gate.open();
    within(held).await.unwrap();
    for (n, response) in (0..2).zip(responses) {
        assert_eq!(within(response).await.unwrap(), n);
    }
}

#[tokio::test]
async fn a_service_that_is_kept_after_it_was_shed_does_not_keep_others_out() {
    let pool = bounded(0).await;
    let (gate, held) = hold(&pool);
    let mut shed = ServiceBuilder::new().load_shed().service(echo(&pool));
    assert!(within(within(shed.ready()).await.unwrap().call(1)).await.is_err());
    let mut call = pool.apply(same::<u32>, 2);
    assert!(futures::poll!(&mut call).is_pending());
    gate.open();
    within(held).await.unwrap();
    // It is the turn of the service, which nobody asks any more.
    assert_eq!(within(call).await.unwrap(), 2);
    // It can be used again.
    assert_eq!(
        within(within(shed.ready()).await.unwrap().call(3)).await.unwrap(),
        3
    );
}

#[tokio::test]
async fn a_service_that_was_late_keeps_its_place() {
    let pool = bounded(0).await;
    let file = Scratch::new();
    let line = |name: &str| (file.path(), name.to_owned());
    let (gate, held) = hold(&pool);
    let mut late = pool.service(append);
    assert!(late.ready().now_or_never().is_none());
    let (mut second_gate, argument) = crate::gate::gate();
    let mut second = pool.apply(wait_at, argument);
    assert!(futures::poll!(&mut second).is_pending());
    let mut third = pool.apply(append, line("third"));
    assert!(futures::poll!(&mut third).is_pending());
    gate.open();
    within(held).await.unwrap();
    // The room of the first is taken back, and given to the second.
    second_gate.entered();
    let request = async { late.ready().await.unwrap().call(line("late")).await };
    let mut request = Box::pin(request);
    assert!(futures::poll!(&mut request).is_pending());
    second_gate.open();
    within(second).await.unwrap();
    let (late, third) = within(futures::future::join(request, third)).await;
    late.and(third).unwrap();
    assert_eq!(file.lines(), ["late", "third"]);
}

#[tokio::test]
async fn other_layers_of_tower_stand_over_it() {
    let pool = bounded(1).await;
    let limited = ServiceBuilder::new().concurrency_limit(1).service(echo(&pool));
    let responses = (0..20).map(|n| limited.clone().oneshot(n));
    let values: Vec<u32> = within(join_all(responses))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(values, (0..20).collect::<Vec<_>>());

    let buffered = ServiceBuilder::new().buffer(5).service(echo(&pool));
    let responses = (0..20).map(|n| buffered.clone().oneshot(n));
    let values: Vec<u32> = within(join_all(responses))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(values, (0..20).collect::<Vec<_>>());

    // A task that takes too long is cancelled.
    let (gate, argument) = gate();
    let timed = ServiceBuilder::new()
        .timeout(Duration::from_millis(50))
        .service(pool.service(wait_at));
    let response: Result<u32, BoxError> = within(timed.oneshot(argument)).await;
    assert!(response.unwrap_err().is::<tower::timeout::error::Elapsed>());
    gate.abandoned();

    let mapped = echo(&pool)
        .map_response(|n| n + 1)
        .map_err(|_| -> Infallible { unreachable!() });
    assert_eq!(within(mapped.oneshot(1)).await.unwrap(), 2);
}

#[tokio::test]
async fn a_service_keeps_its_pool_open() {
    let pool = bounded(1).await;
    let mut service = echo(&pool);
    drop(pool);
    assert_eq!(
        within(within(service.ready()).await.unwrap().call(8))
            .await
            .unwrap(),
        8
    );
    assert!(format!("{service:?}").contains("TaskService"), "{service:?}");
}
