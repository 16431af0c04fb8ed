//! [`Asynchronous`]: the pool's calls for `async fn` tasks.

use std::future::Future;

use futures::stream::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::handle::Pool;
use super::imap::Imap;
use super::map::{IterSource, Map, StreamSource};
use super::result::{Apply, AsyncResult, Task};
use crate::error::TryApplyError;
use crate::task::entry;

/// The calls of a [`Pool`] for `async fn` tasks, from [`Pool::asynchronous`].
///
/// A worker polls them on its main thread, beside a tokio runtime for timers and sockets, up to
/// [`tasks_per_worker`](crate::PoolBuilder::tasks_per_worker) at a time. Their futures need not be `Send`. What they
/// spawn with `tokio::spawn` runs on that runtime's thread.
///
/// Cancelled while it runs, a task is dropped at its next await, where a worker runs more than one at a time;
/// otherwise its worker is killed and replaced.
#[derive(Clone, Copy, Debug)]
pub struct Asynchronous<'a> {
    pool: &'a Pool,
}

impl<'a> Asynchronous<'a> {
    pub(super) fn new(pool: &'a Pool) -> Self {
        Self { pool }
    }

    #[cfg(feature = "tower")]
    pub(super) fn pool(&self) -> &Pool {
        self.pool
    }

    /// As [`Pool::apply`].
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, the task is cancelled and its value lost.
    pub fn apply<F, A, T, R>(&self, function: F, argument: A) -> Apply<R>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.pool
            .apply_row(entry::asynchronous::<F, A, T, R>(&function), argument)
    }

    /// As [`Pool::apply_async`].
    pub fn apply_async<F, A, T, R>(&self, function: F, argument: A) -> AsyncResult<R>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.pool
            .apply_async_row(entry::asynchronous::<F, A, T, R>(&function), argument)
    }

    /// As [`Pool::try_apply`].
    ///
    /// # Errors
    ///
    /// As [`Pool::try_apply`].
    pub fn try_apply<F, A, T, R>(&self, function: F, argument: A) -> Result<AsyncResult<R>, TryApplyError<A>>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.pool
            .try_apply_row(entry::asynchronous::<F, A, T, R>(&function), argument)
    }

    /// As [`Pool::task`].
    pub fn task<F, A, T, R>(&self, function: F, argument: A) -> Task<R>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.pool
            .task_row(entry::asynchronous::<F, A, T, R>(&function), argument)
    }

    /// As [`Pool::map`].
    pub fn map<F, I, T, R>(&self, function: F, input: I) -> Map<I::IntoIter, R>
    where
        F: Fn(I::Item) -> T + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned,
    {
        self.pool.map_row(
            entry::asynchronous::<F, I::Item, T, R>(&function),
            input.into_iter(),
        )
    }

    /// As [`Pool::map_async`].
    pub fn map_async<F, I, T, R>(&self, function: F, input: I) -> AsyncResult<Vec<R>>
    where
        F: Fn(I::Item) -> T + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.map(function, input).submit()
    }

    /// As [`Pool::imap`].
    pub fn imap<F, I, T, R>(&self, function: F, input: I) -> Imap<IterSource<I::IntoIter>, R>
    where
        F: Fn(I::Item) -> T + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned,
    {
        self.pool.imap_row(
            entry::asynchronous::<F, I::Item, T, R>(&function),
            IterSource(input.into_iter()),
        )
    }

    /// As [`Pool::imap_unordered`].
    pub fn imap_unordered<F, I, T, R>(&self, function: F, input: I) -> Imap<IterSource<I::IntoIter>, R>
    where
        F: Fn(I::Item) -> T + Copy + 'static,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned,
    {
        self.imap(function, input).unordered()
    }

    /// As [`Pool::imap_stream`].
    pub fn imap_stream<F, S, T, R>(&self, function: F, input: S) -> Imap<StreamSource<S>, R>
    where
        F: Fn(S::Item) -> T + Copy + 'static,
        S: Stream,
        S::Item: Serialize + DeserializeOwned,
        T: Future<Output = R> + 'static,
        R: Serialize + DeserializeOwned,
    {
        self.pool.imap_row(
            entry::asynchronous::<F, S::Item, T, R>(&function),
            StreamSource(Box::pin(input)),
        )
    }
}
