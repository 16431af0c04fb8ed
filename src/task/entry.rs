//! What a row of the task table describes: a function with its types put aside.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::table;
use crate::wire::codec::{self, EncodeError, Encoded};
use crate::wire::message::Failure;
use crate::wire::tail::Ending;

/// Decodes the argument, runs the function, appends the encoded result, at most `limit` bytes of it, and says where
/// its tail lies.
pub(crate) type RunBlocking =
    fn(argument: Encoded<'_>, result: &mut Vec<u8>, limit: u64) -> Result<Ending, Failure>;

/// Runs a chunk's elements one after the other. A panic leaves it in the midst of one; the rest is for the next call.
pub(crate) type RunElements = for<'a> fn(elements: &mut dyn Elements<'a>, limit: u64);

/// A chunk's elements as the worker hands them out.
pub(crate) trait Elements<'a> {
    /// The argument of the element that begins now; `None` when no more shall run.
    fn begin(&mut self) -> Option<&'a [u8]>;
    /// The element that was begun last has ended; `record` is what its result takes in the reply. Gives the argument
    /// of the next, which begins now.
    fn next(&mut self, record: &[u8]) -> Option<&'a [u8]>;
    /// The element that was begun last has failed.
    fn fail(&mut self, failure: &Failure);
}

/// Runs an async function and encodes its result behind what the buffer held, as [`RunBlocking`] does.
pub(crate) type AsyncTask = Pin<Box<dyn Future<Output = Result<(Vec<u8>, Ending), Failure>>>>;

/// Decodes the argument and gives the future that runs the function.
pub(crate) type RunAsync =
    fn(argument: Encoded<'_>, result: Vec<u8>, limit: u64) -> Result<AsyncTask, Failure>;

/// How a task is run.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    Blocking {
        one: RunBlocking,
        elements: RunElements,
    },
    Async(RunAsync),
    /// The row that stands in every table and is no task.
    Never,
}

/// A task with its types put aside.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) argument: &'static str,
    pub(crate) result: &'static str,
    pub(crate) run: Run,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) -> {}", self.name, self.argument, self.result)
    }
}

/// Types that a row can be made of.
pub(crate) trait Describe {
    fn describe() -> Entry;
}

/// No task.
pub(crate) struct Nothing;

impl Describe for Nothing {
    fn describe() -> Entry {
        Entry {
            name: "",
            argument: "",
            result: "",
            run: Run::Never,
        }
    }
}

/// `fn(A) -> R`, under the name of `N`.
struct Blocking<N, F, A, R>(PhantomData<(N, F, A, R)>);

impl<N, F, A, R> Describe for Blocking<N, F, A, R>
where
    F: Fn(A) -> R + Copy + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    fn describe() -> Entry {
        Entry {
            name: type_name::<N>(),
            argument: type_name::<A>(),
            result: type_name::<R>(),
            run: Run::Blocking {
                one: run_blocking::<F, A, R>,
                elements: run_elements::<F, A, R>,
            },
        }
    }
}

/// `async fn(A) -> R`.
struct Async<F, A, T, R>(PhantomData<(F, A, T, R)>);

impl<F, A, T, R> Describe for Async<F, A, T, R>
where
    F: Fn(A) -> T + Copy + 'static,
    A: DeserializeOwned,
    T: Future<Output = R> + 'static,
    R: Serialize,
{
    fn describe() -> Entry {
        Entry {
            name: type_name::<F>(),
            argument: type_name::<A>(),
            result: type_name::<R>(),
            run: Run::Async(run_async::<F, A, T, R>),
        }
    }
}

/// The row of a function, under the name of `N`, which is the function itself or what it calls.
pub(crate) fn blocking<N, F, A, R>(_: &F) -> u32
where
    F: Fn(A) -> R + Copy + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    const { table::assert_no_captures::<N>() };
    table::row::<Blocking<N, F, A, R>>()
}

/// The row of an async function.
pub(crate) fn asynchronous<F, A, T, R>(_: &F) -> u32
where
    F: Fn(A) -> T + Copy + 'static,
    A: DeserializeOwned,
    T: Future<Output = R> + 'static,
    R: Serialize,
{
    const { table::assert_no_captures::<F>() };
    table::row::<Async<F, A, T, R>>()
}

#[inline]
fn run_blocking<F, A, R>(argument: Encoded<'_>, result: &mut Vec<u8>, limit: u64) -> Result<Ending, Failure>
where
    F: Fn(A) -> R + Copy + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    let function = table::conjure::<F>();
    let argument = codec::decode_encoded(argument).map_err(Failure::DecodeArgument)?;
    let value = function(argument);
    codec::encode_with_ending(value, result, limit).map_err(encode_failure)
}

fn run_elements<F, A, R>(elements: &mut dyn Elements<'_>, limit: u64)
where
    F: Fn(A) -> R + Copy + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    let function = table::conjure::<F>();
    let mut record = Vec::new();
    let mut next = elements.begin();
    while let Some(argument) = next {
        record.clear();
        let result = codec::push_record(&mut record, |bytes| {
            let argument = codec::decode(argument).map_err(Failure::DecodeArgument)?;
            let value = function(argument);
            codec::encode(&value, bytes, limit).map_err(encode_failure)?;
            Ok(false)
        });
        next = match result {
            Ok(()) => elements.next(&record),
            Err(failure) => {
                elements.fail(&failure);
                elements.begin()
            }
        };
    }
}

fn run_async<F, A, T, R>(argument: Encoded<'_>, mut result: Vec<u8>, limit: u64) -> Result<AsyncTask, Failure>
where
    F: Fn(A) -> T + Copy + 'static,
    A: DeserializeOwned,
    T: Future<Output = R> + 'static,
    R: Serialize,
{
    let function = table::conjure::<F>();
    let argument = codec::decode_encoded(argument).map_err(Failure::DecodeArgument)?;
    let future = function(argument);
    Ok(Box::pin(async move {
        let value = future.await;
        let ending = codec::encode_with_ending(value, &mut result, limit).map_err(encode_failure)?;
        Ok((result, ending))
    }))
}

#[cold]
#[expect(clippy::boxed_local, reason = "it comes in a box")]
fn encode_failure(error: Box<EncodeError>) -> Failure {
    match *error {
        EncodeError::TooLarge { limit } => Failure::TooLarge { size: None, limit },
        EncodeError::Refused(message) => Failure::EncodeResult(message),
    }
}
