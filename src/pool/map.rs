//! Many calls: the engine that reads input, keeps the workers busy with chunks of it and takes results in; and
//! [`Map`], which wants them all together.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, Reply};
use super::chunks::{
    ChunkSize, Gather, Packed, Packer, Shares, decode_all, decode_chunk, decode_single, single,
};
use super::dispatch::Shared;
use super::options::TaskOptions;
use super::progress::Progress;
use super::result::AsyncResult;
use crate::error::{Cause, TaskError};
use crate::shared::pages;

/// Frames for each worker that a map keeps under way.
const FRAMES_PER_WORKER: usize = 4;

/// Bytes for which a map makes room before there are so many results.
const MOST_ROOM: usize = 256 << 20;

/// Where the elements of an [`Imap`](crate::Imap) come from: an iterator or a stream.
///
/// Of the library's own use.
pub trait Source {
    /// The elements.
    type Item;
    #[doc(hidden)]
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Self::Item>>;
    /// How many there are, at least and at most.
    #[doc(hidden)]
    fn size_hint(&self) -> (usize, Option<usize>);
}

/// An iterator as a [`Source`].
#[derive(Debug)]
pub struct IterSource<I>(pub(crate) I);

impl<I: Iterator> Source for IterSource<I> {
    type Item = I::Item;

    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// A stream as a [`Source`].
#[derive(Debug)]
pub struct StreamSource<S>(pub(crate) Pin<Box<S>>);

impl<S: Stream> Source for StreamSource<S> {
    type Item = S::Item;

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(context)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// A frame that has ended, and its place in the order.
pub(crate) struct Ended {
    pub(crate) index: u64,
    /// How many elements it has.
    pub(crate) count: usize,
    outcome: Result<(Arc<Call>, Reply), TaskError>,
}

impl Ended {
    /// Gives the elements' results to `take`, in order, until it wants no more.
    #[inline]
    pub(crate) fn decode<R: DeserializeOwned, B>(
        self,
        mut take: impl FnMut(Result<R, TaskError>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        match self.outcome {
            Ok((call, reply)) if reply.is_single() => take(decode_single(&call, reply)),
            Ok((call, reply)) => decode_chunk(&call, &reply, self.count, take),
            Err(error) => (0..self.count).try_for_each(|_| take(Err(error.clone()))),
        }
    }

    /// Gives the results of all elements to `take`, in order.
    pub(crate) fn decode_all<R: DeserializeOwned>(self, mut take: impl FnMut(Result<R, TaskError>)) {
        let taken = self.decode(|result| {
            take(result);
            ControlFlow::<()>::Continue(())
        });
        debug_assert!(taken.is_continue());
    }

    /// How many values to make room for: no more than there are bytes for, since they may be many and large.
    pub(crate) fn room(&self) -> usize {
        let bytes = self.outcome.as_ref().map_or(0, |(_, reply)| reply.body().len());
        self.count.min(bytes)
    }
}

/// The time of one poll, after which other tasks on this thread have theirs.
struct Turn(Instant);

impl Turn {
    const LENGTH: Duration = Duration::from_micros(500);

    fn begin() -> Self {
        Self(Instant::now())
    }

    /// Whether to return, to be polled again soon.
    fn is_over(&self, context: &Context<'_>) -> bool {
        let is_over = self.0.elapsed() > Self::LENGTH;
        if is_over {
            context.waker().wake_by_ref();
        }
        is_over
    }
}

/// Reads elements ahead, within bounds, and gives their results frame by frame in order of completion.
///
/// Dropping it cancels what has not ended.
pub(crate) struct Engine<S> {
    shared: Arc<Shared>,
    row: u32,
    source: Option<S>,
    packer: Packer,
    /// Of every element.
    task: TaskOptions,
    size: ChunkSize,
    /// Elements that may be read and not yielded.
    ahead: usize,
    /// Frames that may be under way.
    frames: usize,
    /// Elements read and not yet [given up](Self::yielded).
    outstanding: usize,
    next_index: u64,
    /// A frame that waits for room in the queue.
    blocked: Option<Running>,
    /// Frames behind that one: an element can complete two.
    behind: VecDeque<Running>,
    running: FuturesUnordered<Running>,
    ready: VecDeque<Ended>,
}

impl<S: Source> Engine<S>
where
    S::Item: Serialize,
{
    pub(crate) fn new(
        shared: Arc<Shared>,
        row: u32,
        source: S,
        size: ChunkSize,
        ahead: usize,
        task: TaskOptions,
    ) -> Self {
        let frames = FRAMES_PER_WORKER * shared.config.workers * shared.config.tasks_per_worker;
        Self {
            packer: Packer::new(row, shared.config.max_frame_size, task),
            task,
            shared,
            row,
            source: Some(source),
            size,
            ahead,
            frames,
            outstanding: 0,
            next_index: 0,
            blocked: None,
            behind: VecDeque::new(),
            running: FuturesUnordered::new(),
            ready: VecDeque::new(),
        }
    }

    /// `n` elements have reached the user: as many more may be read.
    pub(crate) fn yielded(&mut self, n: usize) {
        self.outstanding -= n;
    }

    /// Reads no more, and cancels what has not ended.
    pub(crate) fn stop(&mut self) {
        self.stop_reading();
        self.packer.take();
        self.blocked = None;
        self.behind.clear();
        self.ready.clear();
        self.running.clear();
    }

    /// Reads no more.
    pub(crate) fn stop_reading(&mut self) {
        self.source = None;
    }

    /// Frames in order of completion, then `None`.
    pub(crate) fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<Option<Ended>> {
        self.feed(context);
        if let Some(ended) = self.ready.pop_front() {
            return Poll::Ready(Some(ended));
        }
        match Pin::new(&mut self.running).poll_next(context) {
            Poll::Ready(Some(ended)) => {
                self.learn(&ended);
                Poll::Ready(Some(ended))
            }
            Poll::Ready(None)
                if self.source.is_none() && self.blocked.is_none() && self.packer.count() == 0 =>
            {
                Poll::Ready(None)
            }
            _ => Poll::Pending,
        }
    }

    fn learn(&mut self, ended: &Ended) {
        match &ended.outcome {
            Ok((_, reply)) => self.size.learn(ended.count, reply.run_time()),
            // The rest of the input would fare no better, and may have no end.
            Err(error) if error.is_pool_closed() => self.stop_reading(),
            Err(_) => {}
        }
    }

    /// Reads and submits as much as the bounds allow.
    fn feed(&mut self, context: &mut Context<'_>) {
        let mut dry = self.source.is_none();
        let turn = Turn::begin();
        loop {
            // Polled whenever there is one, for nothing else says that the queue has room again.
            if let Some(running) = self.blocked.take() {
                if running.call.poll_admitted(context).is_pending() {
                    self.blocked = Some(running);
                    return;
                }
                self.running.push(running);
            } else if let Some(running) = self.behind.pop_front() {
                self.submit(running);
            } else if !dry && self.running.len() < self.frames && self.outstanding < self.ahead {
                dry = self.read(context);
                // No worker goes without for it.
                if self.running.len() >= self.shared.config.workers && turn.is_over(context) {
                    return;
                }
            } else if self.packer.count() > 0 && (dry || self.running.is_empty()) {
                // Nothing more can be read, or nothing else is under way: what is packed must not wait for more.
                let packed = self.packer.take();
                self.start(packed);
            } else {
                return;
            }
        }
    }

    /// Reads elements until a frame has been started, or as many as may be. `true` when there are no more now.
    fn read(&mut self, context: &mut Context<'_>) -> bool {
        let size = self.size.next();
        while self.outstanding < self.ahead {
            let element = match self.source.as_mut().map(|source| source.poll_next(context)) {
                Some(Poll::Ready(Some(element))) => element,
                Some(Poll::Pending) => return true,
                Some(Poll::Ready(None)) | None => {
                    self.source = None;
                    return true;
                }
            };
            self.outstanding += 1;
            if size == 1 && self.packer.count() == 0 {
                self.start_single(&element);
                return false;
            }
            if let Err(error) = self.packer.push(&element) {
                self.refuse(error);
                return false;
            }
            if let Some(complete) = self.packer.complete() {
                complete.into_iter().for_each(|packed| self.start(Some(packed)));
                return false;
            }
            if self.packer.count() >= size {
                let packed = self.packer.take();
                self.start(packed);
                return false;
            }
        }
        false
    }

    fn start_single(&mut self, element: &S::Item) {
        match single(self.row, element, self.shared.config.max_frame_size, &self.task) {
            Ok(call) => self.start(Some(Packed {
                call: Arc::new(call),
                count: 1,
            })),
            Err(error) => self.refuse(error),
        }
    }

    /// The element behind those that have been packed cannot be encoded.
    fn refuse(&mut self, error: TaskError) {
        let before = self.packer.take();
        self.start(before);
        self.ready.push_back(Ended {
            index: self.next_index,
            count: 1,
            outcome: Err(error),
        });
        self.next_index += 1;
    }

    fn start(&mut self, packed: Option<Packed>) {
        let Some(Packed { call, count }) = packed else {
            return;
        };
        self.size.sent(count);
        let index = self.next_index;
        self.next_index += 1;
        self.submit(Running {
            shared: Arc::clone(&self.shared),
            call,
            index,
            count,
            ended: false,
        });
    }

    fn submit(&mut self, running: Running) {
        if self.blocked.is_some() {
            self.behind.push_back(running);
            return;
        }
        if self.shared.submit_or_wait(&running.call) {
            self.blocked = Some(running);
        } else {
            self.running.push(running);
        }
    }
}

/// A frame under way. Dropping it cancels the frame.
struct Running {
    shared: Arc<Shared>,
    call: Arc<Call>,
    index: u64,
    count: usize,
    ended: bool,
}

impl Future for Running {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let outcome = ready!(self.call.poll(context));
        self.ended = true;
        Poll::Ready(Ended {
            index: self.index,
            count: self.count,
            outcome: outcome.map(|reply| (Arc::clone(&self.call), reply)),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended && self.call.id() != 0 {
            self.shared.cancel(&self.call);
        }
    }
}

/// Options that every call over many elements takes.
pub(crate) struct Options {
    pub(crate) chunk_size: Option<usize>,
    pub(crate) progress: Option<Box<dyn Progress>>,
    /// Of every element.
    pub(crate) task: TaskOptions,
}

impl Options {
    pub(crate) fn new(task: TaskOptions) -> Self {
        Self {
            chunk_size: None,
            progress: None,
            task,
        }
    }

    pub(crate) fn check(&self, row: u32) -> Result<(), TaskError> {
        let checked = match self.chunk_size {
            Some(0) => Err(Cause::InvalidOption {
                option: "chunk_size",
                reason: "a chunk has at least one element",
            }),
            _ => self.task.check(),
        };
        checked.map_err(|cause| {
            let name = crate::task::table::entry(row).map_or("", |entry| entry.name);
            TaskError::new(name, cause)
        })
    }
}

/// Counts results for a [`Progress`].
pub(crate) struct Counter {
    progress: Option<Box<dyn Progress>>,
    done: u64,
    total: Option<u64>,
}

impl Counter {
    pub(crate) fn new(progress: Option<Box<dyn Progress>>, total: Option<usize>) -> Self {
        let mut counter = Self {
            progress,
            done: 0,
            total: total.map(|total| total as u64),
        };
        counter.add(0);
        counter
    }

    pub(crate) fn add(&mut self, n: usize) {
        self.done += n as u64;
        if let Some(progress) = &mut self.progress {
            progress.update(self.done, self.total);
        }
    }
}

/// A call over many elements whose results are wanted all together, made by [`Pool::map`](crate::Pool::map):
/// options, then `.await`, [`submit`](Self::submit) or [`collect_results`](Self::collect_results).
///
/// Dropping it does nothing: nothing has been read or submitted.
///
/// # Cancel safety
///
/// Its future is [`MapFuture`], which is not cancel safe.
#[must_use = "a map does nothing until it is awaited or submitted"]
pub struct Map<I, R> {
    shared: Arc<Shared>,
    row: u32,
    input: I,
    options: Options,
    result: PhantomData<fn() -> R>,
}

impl<I, R> fmt::Debug for Map<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("chunk_size", &self.options.chunk_size)
            .finish_non_exhaustive()
    }
}

impl<I, R> Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    pub(crate) fn new(shared: Arc<Shared>, row: u32, input: I) -> Self {
        Self {
            row,
            input,
            options: Options::new(shared.config.task_options),
            shared,
            result: PhantomData,
        }
    }

    /// How many elements travel and run together. Zero is
    /// [`InvalidOption`](crate::TaskErrorKind::InvalidOption). Defaults to a quarter of each worker's share, from the
    /// middle of the input on to ever less, and to less where elements are measured to take long, which
    /// [`submit`](Self::submit) does not do; one at a time where workers run several tasks at once.
    #[doc(alias = "chunksize")]
    pub fn chunk_size(mut self, elements: usize) -> Self {
        self.options.chunk_size = Some(elements);
        self
    }

    /// Tells how many elements are done.
    pub fn progress(mut self, progress: impl Progress) -> Self {
        self.options.progress = Some(Box::new(progress));
        self
    }

    /// How long an element may run, from its start on a worker, as [`Task::timeout`](crate::Task::timeout). One that
    /// takes longer costs itself alone, not its chunk. Zero is [`InvalidOption`](crate::TaskErrorKind::InvalidOption).
    /// Defaults to [`task_timeout`](crate::PoolBuilder::task_timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.task.timeout = Some(timeout);
        self
    }

    /// When all of it must have ended. Elements that have not by then end with
    /// [`TimedOut`](crate::TaskErrorKind::TimedOut): those that run are stopped, the others never run. Defaults to
    /// none.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.options.task.deadline = Some(deadline);
        self
    }

    /// How often an element is tried again after its worker was lost or its time was up, as
    /// [`Task::retries`](crate::Task::retries). Defaults to [`task_retries`](crate::PoolBuilder::task_retries).
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.task.retries = retries;
        self
    }

    /// Elements of a higher priority start before tasks of a lower one that wait. Defaults to 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.task.priority = priority;
        self
    }

    /// Gives every element its own result, in input order, instead of stopping at the first failure.
    ///
    /// Dropping the future cancels what has not ended.
    ///
    /// # Errors
    ///
    /// None of its own. What ends the whole call, a closed pool or a chunk size of zero, is the result of every
    /// element from there on.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped before it is ready, elements are cancelled and all results lost.
    pub fn collect_results(self) -> CollectResults<I, R> {
        CollectResults {
            gathering: Gathering::new(self),
        }
    }

    /// Starts now, and gives a handle. The input is read to its end before this returns.
    ///
    /// Chunks for which a [bounded](crate::PoolBuilder::queue_capacity) queue has no room are kept, and submitted as
    /// it gets some.
    ///
    /// Progress is not reported, for nobody polls.
    pub fn submit(self) -> AsyncResult<Vec<R>>
    where
        R: 'static,
    {
        let Self {
            shared,
            row,
            input,
            options,
            ..
        } = self;
        match pack_all(&shared, row, input, &options) {
            Ok(packed) => {
                let name = crate::task::table::entry(row).map_or("", |entry| entry.name);
                let whole = Arc::new(Call::whole(name));
                let gather = Gather::submit(&shared, &whole, packed);
                AsyncResult::gathered(shared, whole, gather, decode_all::<R>)
            }
            Err(error) => AsyncResult::failed(shared, error, decode_all::<R>),
        }
    }
}

/// Packs a whole input. An element that cannot be encoded fails the call.
fn pack_all<I: Iterator>(
    shared: &Shared,
    row: u32,
    input: I,
    options: &Options,
) -> Result<Vec<Packed>, TaskError>
where
    I::Item: Serialize,
{
    options.check(row)?;
    let limit = shared.config.max_frame_size;
    let workers = shared.config.workers;
    let elements: Vec<I::Item> = input.collect();
    let fixed = match options.chunk_size {
        None if shared.config.tasks_per_worker > 1 => Some(1),
        size => size,
    };
    let mut shares = Shares::new(elements.len(), workers);
    let mut size = fixed.unwrap_or(shares.next());
    let mut packer = Packer::new(row, limit, options.task);
    let mut packed = Vec::new();
    for element in elements {
        shares.take(1);
        if size == 1 && packer.count() == 0 {
            packed.push(Packed {
                call: Arc::new(single(row, &element, limit, &options.task)?),
                count: 1,
            });
            continue;
        }
        packer.push(&element)?;
        if let Some(complete) = packer.complete() {
            packed.extend(complete);
        }
        if packer.count() >= size {
            packed.extend(packer.take());
            size = fixed.unwrap_or(shares.next());
        }
    }
    packed.extend(packer.take());
    Ok(packed)
}

impl<I, R> IntoFuture for Map<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Output = Result<Vec<R>, TaskError>;
    type IntoFuture = MapFuture<I, R>;

    fn into_future(self) -> MapFuture<I, R> {
        MapFuture {
            gathering: Gathering::new(self),
        }
    }
}

/// What both futures of a map share: the engine, and what they keep of the results so far.
struct Gathering<I, V> {
    engine: Engine<IterSource<I>>,
    refused: Option<TaskError>,
    counter: Counter,
    values: Vec<V>,
    /// What came before its turn.
    early: BTreeMap<u64, Vec<V>>,
    next: u64,
}

// The input is an iterator, which is never pinned, and nothing else here is.
impl<I, V> Unpin for Gathering<I, V> {}

impl<I, V> Gathering<I, V>
where
    I: Iterator,
    I::Item: Serialize,
{
    fn new<R>(map: Map<I, R>) -> Self {
        let Map {
            shared,
            row,
            input,
            options,
            ..
        } = map;
        let refused = options.check(row).err();
        let source = IterSource(input);
        let (least, most) = source.size_hint();
        let total = most.filter(|&most| most == least);
        let fixed = match options.chunk_size {
            None if shared.config.tasks_per_worker > 1 => Some(1),
            size => size,
        };
        let size = ChunkSize::for_map(fixed.map(|size| size.max(1)), most, shared.config.workers);
        let mut engine = Engine::new(shared, row, source, size, usize::MAX, options.task);
        if refused.is_some() {
            engine.stop_reading();
        }
        Self {
            engine,
            refused,
            counter: Counter::new(options.progress, total),
            values: Vec::new(),
            early: BTreeMap::new(),
            next: 0,
        }
    }

    /// Makes room for all results with the first ones, if they are many and not more than can be believed: memory that
    /// is never touched costs nothing, and is cheaper to touch for the first time where it need not be moved.
    fn make_room(&mut self) {
        let Some(total) = self.counter.total.filter(|_| self.values.capacity() == 0) else {
            return;
        };
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        if total.saturating_mul(size_of::<V>()) <= MOST_ROOM && self.values.try_reserve_exact(total).is_ok() {
            pages::prefer_huge(&mut self.values);
        }
    }

    /// All results, or the first of which `keep` makes an error.
    fn poll_all<R: DeserializeOwned>(
        &mut self,
        context: &mut Context<'_>,
        keep: impl Fn(Result<R, TaskError>) -> Result<V, TaskError>,
    ) -> Poll<Result<(), TaskError>> {
        if let Some(error) = self.refused.take() {
            return Poll::Ready(Err(error));
        }
        let turn = Turn::begin();
        while let Some(ended) = ready!(self.engine.poll_ended(context)) {
            let (index, count) = (ended.index, ended.count);
            let mut values = if index == self.next {
                self.make_room();
                std::mem::take(&mut self.values)
            } else {
                Vec::new()
            };
            values.reserve(ended.room());
            let kept = ended.decode(|result| match keep(result) {
                Ok(value) => {
                    values.push(value);
                    ControlFlow::Continue(())
                }
                Err(error) => ControlFlow::Break(error),
            });
            if let ControlFlow::Break(error) = kept {
                self.engine.stop();
                return Poll::Ready(Err(error));
            }
            self.engine.yielded(count);
            self.counter.add(count);
            if index == self.next {
                self.values = values;
                self.next += 1;
                while let Some(mut values) = self.early.remove(&self.next) {
                    self.values.append(&mut values);
                    self.next += 1;
                }
            } else {
                self.early.insert(index, values);
            }
            if turn.is_over(context) {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The future of a [`Map`]: all results in input order, or the first failure, at once; what has not ended is then
/// cancelled.
///
/// The input is read as workers take it. Dropping the future cancels what has not ended. Polled again after it gave
/// its values or an error, it gives an empty vector.
///
/// # Errors
///
/// The [`TaskError`] of the first element that failed, in order of completion, of any kind but
/// [`QueueFull`](crate::TaskErrorKind::QueueFull): it waits for room. A chunk size of zero is
/// [`InvalidOption`](crate::TaskErrorKind::InvalidOption).
///
/// # Cancel safety
///
/// Not cancel safe: dropped before it is ready, elements are cancelled and all results lost.
#[must_use = "futures do nothing unless polled"]
pub struct MapFuture<I, R> {
    gathering: Gathering<I, R>,
}

impl<I, R> fmt::Debug for MapFuture<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapFuture")
            .field("done", &self.gathering.counter.done)
            .finish_non_exhaustive()
    }
}

impl<I, R> Future for MapFuture<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Output = Result<Vec<R>, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gathering = &mut self.gathering;
        if let Err(error) = ready!(gathering.poll_all(context, |result| result)) {
            gathering.values.clear();
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(std::mem::take(&mut gathering.values)))
    }
}

/// The future of [`Map::collect_results`]: a result for every element, in input order.
///
/// Dropping it cancels what has not ended.
///
/// # Cancel safety
///
/// Not cancel safe: dropped before it is ready, elements are cancelled and all results lost.
#[must_use = "futures do nothing unless polled"]
pub struct CollectResults<I, R> {
    gathering: Gathering<I, Result<R, TaskError>>,
}

impl<I, R> fmt::Debug for CollectResults<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectResults")
            .field("done", &self.gathering.counter.done)
            .finish_non_exhaustive()
    }
}

impl<I, R> Future for CollectResults<I, R>
where
    I: Iterator,
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Output = Vec<Result<R, TaskError>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gathering = &mut self.gathering;
        if let Err(error) = ready!(gathering.poll_all(context, Ok)) {
            gathering.values.push(Err(error));
        }
        Poll::Ready(std::mem::take(&mut gathering.values))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};

    use super::*;
    use crate::pool::builder::Config;
    use crate::task::entry;
    use crate::wire::attachments::Fd;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// An engine over `input` on a pool whose queue is full: it has no room, and its worker is not there yet.
    fn engine<I: Iterator<Item = Option<Fd>>>(input: I) -> Engine<IterSource<I>> {
        fn row<F: Fn(Option<Fd>) -> bool + Copy + 'static>(function: F) -> u32 {
            entry::blocking::<F, F, _, _>(&function)
        }
        let mut config = Config::default();
        config.queue_capacity = Some(0);
        let size = ChunkSize::for_map(Some(3), None, 1);
        let row = row(|fd: Option<Fd>| fd.is_some());
        Engine::new(
            Arc::new(Shared::new(config, None).0),
            row,
            IterSource(input),
            size,
            10,
            TaskOptions::default(),
        )
    }

    fn make_room(shared: &Shared) {
        let mut core = shared.lock();
        core.links.resize(1, None);
        core.state.ready(0);
        shared.act(core);
    }

    #[test]
    fn a_last_frame_that_finds_the_queue_full_is_woken() {
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let mut context = Context::from_waker(&waker);
        let mut engine = engine([None, None].into_iter());
        assert!(engine.poll_ended(&mut context).is_pending());
        assert!(engine.blocked.is_some());
        make_room(&engine.shared);
        assert!(flag.0.load(Ordering::Acquire));
        assert!(engine.poll_ended(&mut context).is_pending());
        assert_eq!(engine.running.len(), 1);
    }

    #[test]
    fn two_frames_of_one_element_wait_for_a_full_queue() {
        let mut context = Context::from_waker(Waker::noop());
        let file = Fd::from(std::fs::File::open("/dev/null").unwrap());
        let mut engine = engine([None, Some(file)].into_iter());
        assert!(engine.poll_ended(&mut context).is_pending());
        assert_eq!(engine.behind.len(), 1);
        make_room(&engine.shared);
        assert!(engine.poll_ended(&mut context).is_pending());
        assert_eq!((engine.running.len(), engine.behind.len()), (1, 0));
        assert!(engine.blocked.is_some());
    }
}
