//! The cases that are none of the seven, by pools that are awaited.

use std::future::Future;

use tokio::runtime::Runtime;

use crate::Error;
use crate::cases::{self, Calls, Case};
use crate::figures::Figures;
use crate::scale::Scale;

/// A pool that runs any function.
pub(crate) trait Runs: Clone + Send + Sync + Sized + 'static {
    fn start() -> impl Future<Output = Result<Self, Error>> + Send;

    /// Begins at once.
    fn submit<C: Case>(
        &self,
        argument: C::Argument,
    ) -> impl Future<Output = Result<C::Value, Error>> + Send + 'static;

    /// Begins when it is awaited.
    fn call<C: Case>(&self, argument: C::Argument) -> impl Future<Output = Result<C::Value, Error>> + Send {
        self.submit::<C>(argument)
    }
}

pub(crate) fn measure<P: Runs>(scale: &Scale) -> Result<Figures, Error> {
    let runtime = Runtime::new()?;
    let pool = runtime.block_on(P::start())?;
    cases::measure(&Others { runtime, pool }, scale)
}

/// A pool, and the runtime on which spawned tasks call it.
struct Others<P> {
    runtime: Runtime,
    pool: P,
}

impl<P: Runs> Calls for Others<P> {
    fn all<C: Case>(&self, arguments: Vec<C::Argument>) -> Result<Vec<C::Value>, Error> {
        let pool = self.pool.clone();
        let calls = async move {
            let calls: Vec<_> = arguments
                .into_iter()
                .map(|argument| pool.submit::<C>(argument))
                .collect();
            let mut values = Vec::with_capacity(calls.len());
            for call in calls {
                values.push(call.await?);
            }
            Ok(values)
        };
        self.runtime.block_on(async { tokio::spawn(calls).await? })
    }

    fn in_turn<C: Case>(&self, callers: Vec<Vec<C::Argument>>) -> Result<(), Error> {
        self.runtime.block_on(async {
            let callers = callers.into_iter().map(|arguments| {
                let pool = self.pool.clone();
                tokio::spawn(async move {
                    for argument in arguments {
                        pool.call::<C>(argument).await?;
                    }
                    Ok::<_, Error>(())
                })
            });
            for caller in callers.collect::<Vec<_>>() {
                caller.await??;
            }
            Ok(())
        })
    }
}
