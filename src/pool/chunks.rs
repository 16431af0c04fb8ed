//! Several elements in one frame: packing arguments, unpacking results, and how many to pack.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{Call, Outcome, Reply};
use super::callback::Callbacks;
use super::dispatch::{Shared, failure_error};
use super::options::TaskOptions;
use crate::error::{Cause, TaskError};
use crate::task::encode;
use crate::wire::codec::{self, EncodeError, Encoded, push_record, take_record};
use crate::wire::frame::{HEADER, Outgoing};
use crate::wire::message::{Failure, kind};
use crate::{runtime, wire};

/// A chunk that has grown to this many bytes is sent, however few its elements.
const CHUNK_BYTES: usize = 4 << 20;
/// What a row number and a count take.
const HEAD: usize = 8;

/// Packs arguments of one task into frames.
#[derive(Debug)]
pub(crate) struct Packer {
    row: u32,
    limit: u64,
    /// A frame of more bytes is divided.
    most: usize,
    options: TaskOptions,
    bytes: Vec<u8>,
    count: u32,
    /// Frames that [`push`](Self::push) has completed.
    complete: Vec<Packed>,
}

/// A frame that is ready, and how many elements it carries.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) call: Arc<Call>,
    pub(crate) count: usize,
}

impl Packer {
    pub(crate) fn new(row: u32, limit: u64, options: TaskOptions) -> Self {
        Self {
            row,
            limit,
            most: CHUNK_BYTES.min(usize::try_from(limit).unwrap_or(usize::MAX)),
            options,
            bytes: Vec::new(),
            count: 0,
            complete: Vec::new(),
        }
    }

    /// Adds an argument. Frames may be [complete](Self::complete) by it: what is in front of it when it does not fit
    /// behind that, and itself when it carries file descriptors, for then it travels alone.
    #[inline]
    pub(crate) fn push<A: Serialize>(&mut self, argument: &A) -> Result<(), TaskError> {
        if self.count == 0 {
            self.begin();
        }
        let start = self.bytes.len();
        let limit = self.limit;
        let result = wire::attachments::refuse(|| {
            push_record(&mut self.bytes, |bytes| {
                codec::encode(argument, bytes, limit).map(|()| false)
            })
        });
        match result {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(encode_error(self.row, *error)),
            None => return self.push_alone(argument, start),
        }
        if self.bytes.len() - HEADER > self.most {
            self.divide(start);
        }
        self.count += 1;
        Ok(())
    }

    /// The element at `start` has descriptors.
    #[cold]
    fn push_alone<A: Serialize>(&mut self, argument: &A, start: usize) -> Result<(), TaskError> {
        self.bytes.truncate(start);
        let call = Arc::new(single_kept(self.row, argument, self.limit, &self.options)?);
        self.complete_frame();
        self.complete.push(Packed { call, count: 1 });
        Ok(())
    }

    /// With the element at `start` the frame is too long: it goes into the next.
    #[cold]
    fn divide(&mut self, start: usize) {
        if self.count > 0 {
            let last = self.bytes.split_off(start);
            self.complete_frame();
            self.begin();
            self.bytes.extend_from_slice(&last);
        }
    }

    fn complete_frame(&mut self) {
        let packed = self.take();
        self.complete.extend(packed);
    }

    #[cold]
    fn begin(&mut self) {
        self.bytes = Outgoing::buffer(64);
        self.bytes.extend_from_slice(&self.row.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
    }

    /// Frames that are complete and have not been taken, in order.
    #[inline]
    pub(crate) fn complete(&mut self) -> Option<Vec<Packed>> {
        (!self.complete.is_empty()).then(|| std::mem::take(&mut self.complete))
    }

    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    /// The frame as it is, if there is anything in it.
    pub(crate) fn take(&mut self) -> Option<Packed> {
        if self.count == 0 {
            return None;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes[HEADER + 4..HEADER + HEAD].copy_from_slice(&self.count.to_le_bytes());
        let count = std::mem::take(&mut self.count) as usize;
        let kind = match self.options.timeout {
            Some(_) => kind::TIMED_CHUNK,
            None => kind::CHUNK,
        };
        let mut call = Call::new(Outgoing::new(kind, bytes, Vec::new()), self.row);
        call.set_options(&self.options);
        Some(Packed {
            call: Arc::new(call),
            count,
        })
    }
}

/// The call of a single task.
pub(crate) fn single<A: Serialize>(
    row: u32,
    argument: A,
    limit: u64,
    options: &TaskOptions,
) -> Result<Call, TaskError> {
    single_call(row, options, encode::single(row, argument, limit))
}

/// The same, where the argument is kept.
pub(crate) fn single_kept<A: Serialize>(
    row: u32,
    argument: &A,
    limit: u64,
    options: &TaskOptions,
) -> Result<Call, TaskError> {
    single_call(row, options, encode::single_kept(row, argument, limit))
}

fn single_call(
    row: u32,
    options: &TaskOptions,
    encoded: Result<Outgoing, Box<EncodeError>>,
) -> Result<Call, TaskError> {
    let mut call = Call::new(encoded.map_err(|error| encode_error(row, *error))?, row);
    call.set_options(options);
    Ok(call)
}

fn encode_error(row: u32, error: EncodeError) -> TaskError {
    let cause = match error {
        EncodeError::TooLarge { limit } => Cause::TooLarge {
            what: "the argument",
            size: None,
            limit,
        },
        EncodeError::Refused(message) => Cause::Encode(format!("the argument: {message}")),
    };
    TaskError::new(encode::name(row), cause)
}

/// The result of a single task.
pub(crate) fn decode_single<R: DeserializeOwned>(call: &Call, mut reply: Reply) -> Result<R, TaskError> {
    let (fds, tail) = (reply.take_fds(), reply.take_tail());
    let encoded = Encoded {
        bytes: reply.body(),
        tail,
    };
    let decoded = wire::attachments::provide(fds, || codec::decode_encoded(encoded));
    reply.give();
    decoded.map_err(|message| call.error(Cause::Decode(format!("the result: {message}"))))
}

/// Gives the results of a chunk's elements to `take`, in order, until it wants no more.
#[inline]
pub(crate) fn decode_chunk<R: DeserializeOwned, B>(
    call: &Call,
    reply: &Reply,
    count: usize,
    mut take: impl FnMut(Result<R, TaskError>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let mut records = reply.body();
    let mut lost = reply.lost().iter().peekable();
    for index in 0..count as u64 {
        let result = if let Some((_, error)) = lost.next_if(|(element, _)| *element == index) {
            Err(error.clone())
        } else {
            match take_record(&mut records) {
                Some((false, bytes)) => codec::decode(bytes).map_err(|message| undecoded(call, &message)),
                failed => Err(element_failure(call, reply, failed.map(|(_, bytes)| bytes))),
            }
        };
        take(result)?;
    }
    ControlFlow::Continue(())
}

#[cold]
fn undecoded(call: &Call, message: &str) -> TaskError {
    call.error(Cause::Decode(format!("the result: {message}")))
}

/// The error of an element whose record says of a failure, or is missing.
#[cold]
fn element_failure(call: &Call, reply: &Reply, record: Option<&[u8]>) -> TaskError {
    match record.map(codec::decode::<Failure>) {
        Some(Ok(failure)) => {
            let (worker, pid) = reply.worker();
            failure_error(call.name(), failure, worker, pid)
        }
        Some(Err(message)) => call.error(Cause::Decode(format!("the failure: {message}"))),
        None => call.error(Cause::Decode(
            "the worker sent no result for this element".to_owned(),
        )),
    }
}

/// A chunk of elements that take no longer together is not made smaller to spread the work.
const LEAST_TIME: Duration = Duration::from_micros(200);

/// Elements of a chunk whose size was not asked for: the bytes of so many tiny ones, and of their results, are still in
/// a processor's cache when they are looked at again.
const MOST: usize = 1 << 16;

/// How elements are shared out whose number is known.
///
/// As in Python, four frames for each worker would take them all; but from the middle on they become smaller, so that
/// nobody waits long for the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    largest: usize,
    left: usize,
    workers: usize,
}

impl Shares {
    pub(crate) fn new(total: usize, workers: usize) -> Self {
        Self {
            largest: total.div_ceil(4 * workers),
            left: total,
            workers,
        }
    }

    pub(crate) fn take(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }

    /// Elements of the next frame, at least one.
    pub(crate) fn next(&self) -> usize {
        self.left.div_ceil(2 * self.workers).clamp(1, self.largest.max(1))
    }
}

/// How many elements go into a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkSize {
    fixed: Option<usize>,
    /// How long a chunk should keep a worker.
    time: Duration,
    /// What one element takes, once some have been measured.
    element: Option<Duration>,
    /// How many a frame may carry that is sent before that.
    unmeasured: usize,
    most: usize,
    /// What is to be shared out, if that is known.
    shares: Option<Shares>,
}

impl ChunkSize {
    /// For a call whose results are wanted all together; `total` is how many elements there are at most, if that is
    /// known.
    ///
    /// Fewer elements than their [share](Shares) where they take long, so that the work spreads.
    pub(crate) fn for_map(fixed: Option<usize>, total: Option<usize>, workers: usize) -> Self {
        Self {
            fixed,
            time: Duration::from_millis(4),
            element: None,
            unmeasured: if total.is_some() { 256 } else { 1 },
            most: MOST,
            shares: total.map(|total| Shares::new(total, workers)),
        }
    }

    /// For a stream of results that looks `ahead` elements ahead: one at a time until they are known to be short.
    pub(crate) fn for_stream(fixed: Option<usize>, ahead: usize, workers: usize) -> Self {
        Self {
            fixed,
            time: Duration::from_micros(200),
            element: None,
            unmeasured: 1,
            most: (ahead / (4 * workers)).max(1),
            shares: None,
        }
    }

    /// Takes the run time of a chunk of `count` elements into account.
    pub(crate) fn learn(&mut self, count: usize, run_time: Duration) {
        if count == 0 {
            return;
        }
        let element = run_time / u32::try_from(count).unwrap_or(u32::MAX);
        let average = self
            .element
            .map_or(element, |average| (average * 3 + element) / 4);
        self.element = Some(average);
    }

    /// A frame of `count` elements is on its way.
    pub(crate) fn sent(&mut self, count: usize) {
        if let Some(shares) = &mut self.shares {
            shares.take(count);
        }
    }

    /// How many elements the next frame should carry.
    pub(crate) fn next(&self) -> usize {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let share = self.shares.map_or(usize::MAX, |shares| shares.next());
        let fitting = match self.element {
            None => share.min(self.unmeasured),
            Some(element) => {
                let fill = |time: Duration| {
                    usize::try_from(time.as_nanos() / element.as_nanos().max(1)).unwrap_or(usize::MAX)
                };
                share.max(fill(LEAST_TIME)).min(fill(self.time))
            }
        };
        fitting.clamp(1, self.most)
    }
}

/// Chunks that together are one call, whose outcome is all their records.
pub(crate) struct Gather {
    shared: Weak<Shared>,
    whole: Arc<Call>,
    state: Mutex<Gathering>,
}

struct Gathering {
    chunks: Vec<Arc<Call>>,
    counts: Vec<usize>,
    outcomes: Vec<Option<Reply>>,
    missing: usize,
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather")
            .field("whole", &self.whole)
            .finish_non_exhaustive()
    }
}

impl Gather {
    /// Submits all chunks of a call.
    pub(crate) fn submit(shared: &Arc<Shared>, whole: &Arc<Call>, packed: Vec<Packed>) -> Arc<Self> {
        let counts = packed.iter().map(|packed| packed.count).collect();
        let chunks: Vec<Arc<Call>> = packed.into_iter().map(|packed| packed.call).collect();
        let gather = Arc::new(Self {
            shared: Arc::downgrade(shared),
            whole: Arc::clone(whole),
            state: Mutex::new(Gathering {
                outcomes: chunks.iter().map(|_| None).collect(),
                missing: chunks.len(),
                chunks: chunks.clone(),
                counts,
            }),
        });
        if chunks.is_empty() {
            whole.complete(Ok(Reply::default()), &shared.callbacks);
        }
        for (index, chunk) in chunks.iter().enumerate() {
            chunk.set_gather(Arc::clone(&gather), index);
        }
        let mut chunks = chunks.into_iter();
        while let Some(chunk) = chunks.next() {
            // An early failure has ended them all.
            if chunk.is_finished() {
                break;
            }
            let waits = shared.submit_or_wait(&chunk);
            if chunk.is_finished() {
                // By another's failure, perhaps, that came before it had a number to be found by.
                shared.cancel(&chunk);
            }
            if waits {
                Self::submit_rest(shared, chunk, chunks.collect());
                break;
            }
        }
        gather
    }

    /// Submits the chunks behind `waits`, which waits for room, one after the other, with nobody waiting for that. All
    /// at once they would stand in the line in front of everybody who comes later.
    fn submit_rest(shared: &Arc<Shared>, mut waits: Arc<Call>, rest: Vec<Arc<Call>>) {
        // The pool runs, so its runtime does.
        let Ok(own) = runtime::handle() else { return };
        let shared = Arc::clone(shared);
        own.spawn(async move {
            for chunk in rest {
                std::future::poll_fn(|context| waits.poll_admitted(context)).await;
                // A failure has ended them all.
                if chunk.is_finished() {
                    break;
                }
                shared.submit_or_wait(&chunk);
                // It may have done so meanwhile. One that has been answered already is not known any more.
                if chunk.is_finished() {
                    shared.cancel(&chunk);
                }
                waits = chunk;
            }
        });
    }

    /// Stops every chunk that has not ended.
    pub(crate) fn cancel(&self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let chunks = std::mem::take(&mut self.lock().chunks);
        for chunk in chunks {
            shared.cancel(&chunk);
            // One that had not been submitted is not known there.
            chunk.complete(Err(chunk.error(Cause::Cancelled)), &shared.callbacks);
        }
    }

    /// A chunk has ended.
    pub(crate) fn complete(self: &Arc<Self>, index: usize, outcome: Outcome, callbacks: &Callbacks) {
        let failed = match &outcome {
            Ok(reply) => first_failure(&self.whole, reply),
            Err(error) => Some(error.clone()),
        };
        if let Some(error) = failed {
            self.whole.complete(Err(error), callbacks);
            self.cancel();
            return;
        }
        let mut state = self.lock();
        state.outcomes[index] = outcome.ok();
        state.missing -= 1;
        if state.missing > 0 {
            return;
        }
        let outcomes = std::mem::take(&mut state.outcomes);
        let counts = std::mem::take(&mut state.counts);
        state.chunks.clear();
        drop(state);
        let mut whole = Vec::new();
        for (reply, count) in outcomes.into_iter().flatten().zip(counts) {
            if reply.is_single() {
                let pushed = push_record(&mut whole, |bytes| {
                    bytes.extend_from_slice(reply.body());
                    bytes.extend(reply.tail().into_iter().flatten());
                    Ok::<_, ()>(false)
                });
                debug_assert_eq!((pushed, count), (Ok(()), 1));
            } else {
                whole.extend_from_slice(reply.body());
            }
        }
        self.whole
            .complete(Ok(Reply::records(whole, Vec::new())), callbacks);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Gathering> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first element of a chunk that failed.
fn first_failure(call: &Call, reply: &Reply) -> Option<TaskError> {
    if let Some((_, error)) = reply.lost().first() {
        return Some(error.clone());
    }
    if reply.is_single() {
        return None;
    }
    let mut records = reply.body();
    while let Some((failed, bytes)) = take_record(&mut records) {
        if failed {
            return Some(element_failure(call, reply, Some(bytes)));
        }
    }
    None
}

/// All records of a call that was gathered.
pub(crate) fn decode_all<R: DeserializeOwned>(call: &Call, reply: Reply) -> Result<Vec<R>, TaskError> {
    let mut records = reply.body();
    let mut values = Vec::new();
    while let Some((_, bytes)) = take_record(&mut records) {
        values.push(codec::decode(bytes).map_err(|message| undecoded(call, &message))?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of all frames of so many elements.
    fn sizes(mut shares: Shares) -> Vec<usize> {
        let mut sizes = Vec::new();
        while shares.left > 0 {
            sizes.push(shares.next());
            shares.take(shares.next());
        }
        sizes
    }

    #[test]
    fn shares_are_equal_until_half_is_left_and_become_smaller_then() {
        assert_eq!(sizes(Shares::new(42, 2)), [6, 6, 6, 6, 5, 4, 3, 2, 1, 1, 1, 1]);
        assert_eq!(sizes(Shares::new(3, 2)), [1, 1, 1]);
        assert!(sizes(Shares::new(0, 2)).is_empty());
    }

    #[test]
    fn elements_that_take_long_go_alone_and_short_ones_fill_a_frame() {
        let mut size = ChunkSize::for_map(None, Some(1_000_000), 2);
        assert_eq!(size.next(), 256);
        size.learn(1, Duration::from_millis(10));
        assert_eq!(size.next(), 1);
        let mut size = ChunkSize::for_map(None, Some(1_000_000), 2);
        size.learn(256, Duration::from_micros(256));
        assert_eq!(size.next(), 4000);
        // The last ones are not worth a frame each.
        size.sent(999_900);
        assert_eq!(size.next(), 200);
    }

    #[test]
    fn a_size_that_was_asked_for_stays() {
        let mut size = ChunkSize::for_map(Some(7), Some(100), 2);
        size.learn(7, Duration::from_secs(1));
        size.sent(99);
        assert_eq!(size.next(), 7);
    }
}
