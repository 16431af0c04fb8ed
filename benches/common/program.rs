//! How these programs end.

use std::process::ExitCode;

use crate::Error;

/// Failure when something failed, which is said, or showed what must not be.
pub(crate) fn exit(program: &str, outcome: Result<bool, Error>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}
