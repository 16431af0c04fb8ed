//! What is taken along when a task is submitted: the trace context of who submits it, and the span it is in.

use std::sync::OnceLock;

use super::dispatch::Shared;
use crate::wire::codec::message_bytes;
use crate::wire::context::{Context, TraceContext};
use crate::wire::frame::Outgoing;
use crate::wire::message::kind;

/// A call's companions. Nothing where nobody asked for any.
#[derive(Default)]
pub(crate) struct Companions(OnceLock<Box<Company>>);

#[derive(Default)]
struct Company {
    /// What the caller gave for this call alone.
    trace: Option<TraceContext>,
    context: OnceLock<Context>,
    #[cfg(feature = "tracing")]
    origin: std::sync::Mutex<Option<Origin>>,
}

#[cfg(feature = "tracing")]
pub(crate) enum Origin {
    Captured(std::sync::Arc<crate::process::origin::Origin>),
    /// Known to who listens to workers, until this is dropped.
    Announced(#[expect(dead_code, reason = "held for its drop")] crate::process::origin::Ticket),
}

impl Companions {
    /// What the caller gives for this call alone.
    pub(crate) fn set_trace(&mut self, trace: TraceContext) {
        let mut company = self.0.take().unwrap_or_default();
        company.trace = Some(trace);
        self.0 = OnceLock::from(company);
    }

    /// Looks around. Only the first time counts, for a task that waits for room is submitted more than once.
    pub(crate) fn capture(&self, shared: &Shared) {
        if self
            .0
            .get()
            .is_some_and(|company| company.context.get().is_some())
        {
            return;
        }
        let given = self.0.get().and_then(|company| company.trace.clone());
        let mut context = Context {
            trace: given.or_else(|| shared.config.current_trace_context()),
            verbosity: None,
        };
        #[cfg(feature = "tracing")]
        if shared.config.wants_origin() {
            use crate::process::origin;
            context.verbosity = origin::verbosity(shared.config.tracing);
            *self.0.get_or_init(Box::default).lock() = Some(Origin::Captured(origin::Origin::capture()));
        }
        if context == Context::default() {
            // Not kept, so that nothing is sent.
            return;
        }
        context.trace = context.trace.filter(TraceContext::is_valid);
        // Somebody who submits the same call at the same time saw the same.
        self.0.get_or_init(Box::default).context.set(context).ok();
    }

    /// The task has the number `id`.
    #[cfg(feature = "tracing")]
    pub(crate) fn announce(&self, shared: &Shared, id: u64) {
        if !shared.config.wants_origin() {
            return;
        }
        let Some(company) = self.0.get() else { return };
        let mut origin = company.lock();
        if let (Some(Origin::Captured(captured)), Some(ears)) = (&*origin, &shared.ears) {
            *origin = Some(Origin::Announced(ears.announce(id, captured)));
        }
    }

    /// The task has ended: what it emitted has come, and nobody will ask for its span any more.
    #[cfg(feature = "tracing")]
    ///
    /// What comes back is to be dropped without locks: the end of a span runs the user's code.
    #[must_use]
    pub(crate) fn retire(&self) -> Option<Origin> {
        self.0.get()?.lock().take()
    }

    /// The message to send in front of the task.
    pub(crate) fn message(&self) -> Option<Outgoing> {
        let context = self.0.get()?.context.get()?;
        let mut bytes = Outgoing::buffer(128);
        message_bytes(context, &mut bytes);
        Some(Outgoing::new(kind::CONTEXT, bytes, Vec::new()))
    }
}

#[cfg(feature = "tracing")]
impl Company {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Origin>> {
        self.origin
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
