//! Every way to end a pool, from everywhere: each kind of runtime and none, twice, in a panic, beside submits.

use std::future::IntoFuture;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use futures::executor::block_on;
use procession::{Output, Pool, TaskError, TaskErrorKind};
use tokio::runtime::{Builder, Runtime};

use crate::fuse::{FUSE, eventually};
use crate::scene::{alone, children, same};

/// How a pool is ended.
#[derive(Clone, Copy, Debug)]
enum Ending {
    CloseAndJoin,
    TerminateAndJoin,
    Shutdown,
    Drop,
}

const ENDINGS: [Ending; 4] = [
    Ending::CloseAndJoin,
    Ending::TerminateAndJoin,
    Ending::Shutdown,
    Ending::Drop,
];

/// Where the caller runs.
#[derive(Clone, Copy, Debug)]
enum Place {
    MultiThread,
    CurrentThread,
    LocalSet,
    NoRuntime,
    SpawnBlocking,
}

const PLACES: [Place; 5] = [
    Place::MultiThread,
    Place::CurrentThread,
    Place::LocalSet,
    Place::NoRuntime,
    Place::SpawnBlocking,
];

async fn build() -> Pool {
    let builder = Pool::builder().workers(2).queue_capacity(1000);
    builder.stderr(Output::null()).build().await.unwrap()
}

async fn end(pool: Pool, ending: Ending) {
    match ending {
        Ending::CloseAndJoin => {
            pool.close();
            pool.join().await.unwrap();
        }
        Ending::TerminateAndJoin => {
            pool.terminate();
            pool.join().await.unwrap();
        }
        Ending::Shutdown => assert!(pool.shutdown(FUSE).await),
        Ending::Drop => drop(pool),
    }
}

/// Builds a pool, gives it tasks, and ends it, twice by different handles.
async fn life(ending: Ending) {
    let pool = build().await;
    assert_eq!(pool.apply(same::<u32>, 7).await.unwrap(), 7);
    let handles: Vec<_> = (0..100).map(|n| pool.apply_async(same::<u32>, n)).collect();
    let twin = pool.clone();
    end(pool, ending).await;
    end(twin, ending).await;
    for (n, handle) in handles.into_iter().enumerate() {
        match (ending, handle.await) {
            (_, Ok(value)) => assert_eq!(value, n as u32),
            (Ending::TerminateAndJoin | Ending::Drop, Err(error)) => {
                assert_eq!(error.kind(), TaskErrorKind::PoolClosed);
            }
            (_, Err(error)) => panic!("{ending:?}: {error}"),
        }
    }
}

fn runtime(place: Place) -> Runtime {
    match place {
        Place::CurrentThread | Place::LocalSet => Builder::new_current_thread().enable_all().build().unwrap(),
        _ => Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap(),
    }
}

fn run(place: Place, ending: Ending) {
    match place {
        Place::MultiThread | Place::CurrentThread => runtime(place).block_on(life(ending)),
        Place::LocalSet => tokio::task::LocalSet::new().block_on(&runtime(place), life(ending)),
        Place::NoRuntime => block_on(life(ending)),
        Place::SpawnBlocking => {
            let runtime = runtime(place);
            let blocking = runtime.spawn_blocking(move || block_on(life(ending)));
            runtime.block_on(blocking).unwrap();
        }
    }
}

fn nothing_is_left() {
    eventually("no child is left, alive or dead", || children().is_empty());
}

#[test]
fn every_ending_works_everywhere_and_twice() {
    alone("endings::every_ending_works_everywhere_and_twice", || {
        for place in PLACES {
            for ending in ENDINGS {
                run(place, ending);
                nothing_is_left();
            }
        }
    });
}

/// Ends its pool when it is dropped, in a panic too.
struct Guard(Option<Pool>, Ending);

impl Drop for Guard {
    fn drop(&mut self) {
        assert!(thread::panicking());
        let pool = self.0.take().unwrap();
        block_on(end(pool, self.1));
    }
}

#[test]
fn every_ending_works_while_its_thread_panics() {
    alone("endings::every_ending_works_while_its_thread_panics", || {
        for ending in ENDINGS {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let pool = block_on(build());
                let _guard = Guard(Some(pool.clone()), ending);
                drop(pool.apply_async(same::<u32>, 1));
                drop(pool);
                std::panic::panic_any("on purpose");
            }));
            assert!(panicked.is_err());
            nothing_is_left();
        }
    });
}

#[test]
fn every_ending_works_beside_submits() {
    alone("endings::every_ending_works_beside_submits", || {
        for ending in ENDINGS {
            let pool = block_on(build());
            let submitters: Vec<_> = (0..4)
                .map(|_| {
                    let pool = pool.clone();
                    thread::spawn(move || submit_until_refused(&pool))
                })
                .collect();
            // The submitters' clones keep a pool alive whose handle is dropped here.
            let last = matches!(ending, Ending::Drop).then(|| pool.clone());
            block_on(end(pool, ending));
            if let Some(last) = last {
                assert!(last.is_open());
                last.terminate();
            }
            for submitter in submitters {
                let error = submitter.join().unwrap();
                assert!(error.is_pool_closed(), "{ending:?}: {error}");
            }
            nothing_is_left();
        }
    });
}

fn submit_until_refused(pool: &Pool) -> TaskError {
    for n in 0.. {
        let results = [
            block_on(pool.apply(same::<u32>, n)),
            block_on(
                pool.task(same::<u32>, n)
                    .timeout(Duration::from_secs(20))
                    .submit(),
            ),
            block_on(pool.map(same::<u32>, n..n + 1).into_future()).map(|values| values[0]),
        ];
        for result in results {
            match result {
                Ok(value) => assert_eq!(value, n),
                Err(error) => return error,
            }
        }
    }
    unreachable!("the numbers are endless")
}
