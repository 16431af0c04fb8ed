//! Streams of results: [`Imap`], in input order or in order of completion.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::stream::{FusedStream, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chunks::ChunkSize;
use super::dispatch::Shared;
use super::map::{Counter, Engine, Options, Source};
use super::progress::Progress;
use crate::error::TaskError;

/// Elements that are read ahead for each task that the pool runs at a time.
const AHEAD: usize = 8;

/// A stream of results, made by [`Pool::imap`](crate::Pool::imap) and its kin. Options come before the first poll.
///
/// Every element has its own `Result`, and a failure does not end the stream; use `try_collect` or `try_next` to stop
/// at the first. When the pool ends, the elements that were read fail and the stream ends.
///
/// The input is read as results are taken: the number of elements that were read and not yielded is never more than
/// [`look_ahead`](Self::look_ahead). A consumer that stops polling stops the reading.
///
/// Dropping the stream cancels what has not ended.
///
/// # Cancel safety
///
/// `next` on it is cancel safe: a result that was not yielded is yielded by the next call.
#[must_use = "streams do nothing unless polled"]
pub struct Imap<S, R> {
    state: State<S, R>,
    ordered: bool,
}

enum State<S, R> {
    /// Not polled.
    Fresh {
        shared: Arc<Shared>,
        row: u32,
        source: S,
        options: Options,
        look_ahead: Option<usize>,
    },
    Running(Box<Streaming<S, R>>),
    Ended,
}

struct Streaming<S, R> {
    engine: Engine<S>,
    counter: Counter,
    /// Results to be yielded now.
    ready: VecDeque<Result<R, TaskError>>,
    /// Results that came before their turn.
    early: BTreeMap<u64, VecDeque<Result<R, TaskError>>>,
    next: u64,
}

// Sources are iterators and boxed streams, which are never pinned here, and nothing else is.
impl<S, R> Unpin for Imap<S, R> {}

impl<S, R> fmt::Debug for Imap<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap")
            .field("ordered", &self.ordered)
            .finish_non_exhaustive()
    }
}

impl<S, R> Imap<S, R> {
    pub(crate) fn new(shared: Arc<Shared>, row: u32, source: S, ordered: bool) -> Self {
        let state = State::Fresh {
            options: Options::new(shared.config.task_options),
            shared,
            row,
            source,
            look_ahead: None,
        };
        Self { state, ordered }
    }

    /// How many elements travel and run together. Zero is
    /// [`InvalidOption`](crate::TaskErrorKind::InvalidOption). Defaults to one at a time, and more where elements
    /// are measured to be short, up to an eighth of what is read ahead for a worker.
    #[doc(alias = "chunksize")]
    pub fn chunk_size(self, elements: usize) -> Self {
        self.with(|options| options.chunk_size = Some(elements))
    }

    /// How many elements may be read and not yielded, at least one chunk. Defaults to 8 for each task that the pool
    /// runs at a time (workers × tasks per worker), or 4 chunks for each where the chunk size is given.
    #[doc(alias = "buffersize")]
    pub fn look_ahead(mut self, elements: usize) -> Self {
        if let State::Fresh { look_ahead, .. } = &mut self.state {
            *look_ahead = Some(elements.max(1));
        }
        self
    }

    /// Gives results in order of completion, as [`imap_unordered`](crate::Pool::imap_unordered) does.
    pub fn unordered(mut self) -> Self {
        self.ordered = false;
        self
    }

    /// Tells how many elements have been yielded.
    pub fn progress(self, progress: impl Progress) -> Self {
        self.with(|options| options.progress = Some(Box::new(progress)))
    }

    /// How long an element may run, from its start on a worker, as [`Task::timeout`](crate::Task::timeout). One that
    /// takes longer costs itself alone, not its chunk. Zero is [`InvalidOption`](crate::TaskErrorKind::InvalidOption).
    /// Defaults to [`task_timeout`](crate::PoolBuilder::task_timeout).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.task.timeout = Some(timeout))
    }

    /// When the elements must have ended. Those that have not by then end with
    /// [`TimedOut`](crate::TaskErrorKind::TimedOut): those that run are stopped, the others never run. What is read
    /// after that fails as well, so an input without end should be left then. Defaults to none.
    pub fn deadline(self, deadline: Instant) -> Self {
        self.with(|options| options.task.deadline = Some(deadline))
    }

    /// How often an element is tried again after its worker was lost or its time was up, as
    /// [`Task::retries`](crate::Task::retries). Defaults to [`task_retries`](crate::PoolBuilder::task_retries).
    pub fn retries(self, retries: u32) -> Self {
        self.with(|options| options.task.retries = retries)
    }

    /// Elements of a higher priority start before tasks of a lower one that wait. Defaults to 0.
    pub fn priority(self, priority: i32) -> Self {
        self.with(|options| options.task.priority = priority)
    }

    fn with(mut self, set: impl FnOnce(&mut Options)) -> Self {
        if let State::Fresh { options, .. } = &mut self.state {
            set(options);
        }
        self
    }
}

impl<S: Source, R> Imap<S, R>
where
    S::Item: Serialize,
    R: DeserializeOwned,
{
    fn start(&mut self) -> Result<(), TaskError> {
        let State::Fresh {
            shared,
            row,
            source,
            options,
            look_ahead,
        } = std::mem::replace(&mut self.state, State::Ended)
        else {
            return Ok(());
        };
        options.check(row)?;
        let lanes = shared.config.workers * shared.config.tasks_per_worker;
        let ahead = match (look_ahead, options.chunk_size) {
            (Some(elements), size) => elements.max(size.unwrap_or(1)),
            (None, Some(size)) => size.saturating_mul(4 * lanes),
            (None, None) => AHEAD * lanes,
        };
        let size = ChunkSize::for_stream(options.chunk_size, ahead, lanes);
        let (least, most) = source.size_hint();
        let counter = Counter::new(options.progress, most.filter(|&most| most == least));
        let engine = Engine::new(shared, row, source, size, ahead, options.task);
        let streaming = Streaming {
            engine,
            counter,
            ready: VecDeque::new(),
            early: BTreeMap::new(),
            next: 0,
        };
        self.state = State::Running(Box::new(streaming));
        Ok(())
    }
}

impl<S: Source, R> Stream for Imap<S, R>
where
    S::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let State::Fresh { .. } = self.state
            && let Err(error) = self.start()
        {
            return Poll::Ready(Some(Err(error)));
        }
        let ordered = self.ordered;
        let State::Running(streaming) = &mut self.state else {
            return Poll::Ready(None);
        };
        loop {
            if let Some(result) = streaming.ready.pop_front() {
                streaming.engine.yielded(1);
                streaming.counter.add(1);
                return Poll::Ready(Some(result));
            }
            let Some(ended) = ready!(streaming.engine.poll_ended(context)) else {
                self.state = State::Ended;
                return Poll::Ready(None);
            };
            let is_early = ordered && ended.index != streaming.next;
            let values = if is_early {
                streaming.early.entry(ended.index).or_default()
            } else {
                &mut streaming.ready
            };
            values.reserve(ended.room());
            ended.decode_all(|result| values.push_back(result));
            if ordered && !is_early {
                streaming.next += 1;
                while let Some(mut values) = streaming.early.remove(&streaming.next) {
                    streaming.ready.append(&mut values);
                    streaming.next += 1;
                }
            }
        }
    }
}

impl<S: Source, R> FusedStream for Imap<S, R>
where
    S::Item: Serialize,
    R: DeserializeOwned,
{
    fn is_terminated(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}
