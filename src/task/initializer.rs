//! What runs in a process before its first task.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{encode, entry};
use crate::error::BuildError;
use crate::wire::codec::{self, EncodeError};

/// What an initializer may return: nothing, or a `Result` whose error says why the worker cannot work.
pub trait InitializerOutcome {
    #[doc(hidden)]
    fn into_outcome(self) -> Result<(), String>;
}

impl InitializerOutcome for () {
    fn into_outcome(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> InitializerOutcome for Result<(), E> {
    fn into_outcome(self) -> Result<(), String> {
        // The alternate form has the sources too, where a type has one: only text crosses.
        self.map_err(|error| format!("{error:#}"))
    }
}

/// A row and an argument, encoded when it was given.
#[derive(Clone, Debug)]
pub(crate) struct Initializer {
    row: u32,
    argument: Result<Bytes, String>,
}

impl Initializer {
    pub(crate) fn new<F, A, O>(initializer: F, argument: &A) -> Self
    where
        F: Fn(A) -> O + Copy + 'static,
        A: Serialize + DeserializeOwned,
        O: InitializerOutcome,
    {
        let row = entry::blocking::<F, _, _, _>(&move |argument: A| initializer(argument).into_outcome());
        let mut bytes = Vec::new();
        let argument = match codec::encode(argument, &mut bytes, u64::MAX).map_err(|error| *error) {
            Ok(()) => Ok(bytes.into()),
            Err(EncodeError::Refused(message)) => Err(message),
            Err(EncodeError::TooLarge { limit }) => Err(format!("over {limit} bytes")),
        };
        Self { row, argument }
    }

    /// The row and the argument's bytes, which are shared, if it could be encoded.
    pub(crate) fn encoded(self) -> Result<(u32, Bytes), BuildError> {
        let argument = self.argument.map_err(|message| BuildError::Encode { message })?;
        Ok((self.row, argument))
    }

    pub(crate) fn name(&self) -> String {
        encode::name(self.row).to_owned()
    }
}
