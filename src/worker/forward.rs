//! The subscriber of a worker: it sends spans and events to the parent.
//!
//! Each leaves with one write, so that it is safe from this process's end. Where the pipe is full it is dropped and
//! counted: no task waits for the parent to read.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::ioctl_fionbio;
use tracing::dispatcher::{self, Dispatch};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::{Event, Metadata};
use tracing_core::callsite::{Identifier, rebuild_interest_cache};
use tracing_core::span::Current;
use tracing_core::subscriber::{Interest, Subscriber};

use super::current;
use super::reply::Replies;
use crate::process::origin::level_number;
use crate::wire::codec::{message_bytes, truncate};
use crate::wire::record::{LONGEST, Parent, Record, Site, Value, Values, parts};

/// What is kept of a text, in bytes.
const LONGEST_TEXT: usize = 16 * 1024;

/// How much the parent wants to hear now.
static VERBOSITY: AtomicU8 = AtomicU8::new(0);

thread_local! {
    /// Spans that this thread is in.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Runs the initializer with its spans and events going to the parent, and has those of tasks go there too, unless
/// the initializer has seen to them.
pub(super) fn set_up<T>(
    events: Option<OwnedFd>,
    verbosity: Option<u8>,
    replies: &Arc<Replies>,
    initialize: impl FnOnce() -> T,
) -> T {
    let (Some(pipe), Some(verbosity)) = (events, verbosity) else {
        return initialize();
    };
    if ioctl_fionbio(&pipe, true).is_err() {
        // It would make tasks wait.
        return initialize();
    }
    VERBOSITY.store(verbosity, Ordering::Relaxed);
    let dispatch = Dispatch::new(Forward {
        replies: Arc::clone(replies),
        next: AtomicU64::new(1),
        state: Mutex::new(State {
            pipe,
            sites: HashMap::new(),
            spans: HashMap::new(),
            closes: Vec::new(),
        }),
    });
    let result = dispatcher::with_default(&dispatch, initialize);
    // Somebody who has set one wins.
    dispatcher::set_global_default(dispatch).ok();
    result
}

/// The parent wants to hear so much from now on.
pub(super) fn set_verbosity(verbosity: u8) {
    if VERBOSITY.swap(verbosity, Ordering::Relaxed) != verbosity {
        rebuild_interest_cache();
    }
}

struct Forward {
    replies: Arc<Replies>,
    /// The number of the next span.
    next: AtomicU64,
    state: Mutex<State>,
}

struct State {
    pipe: OwnedFd,
    /// Places that the parent knows, by number.
    sites: HashMap<Identifier, u32>,
    spans: HashMap<u64, SpanState>,
    /// Spans that were closed while the pipe was full.
    closes: Vec<u64>,
}

struct SpanState {
    handles: usize,
    metadata: &'static Metadata<'static>,
    parent: Parent,
    /// The parent knows of it.
    sent: bool,
}

impl fmt::Debug for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward").finish_non_exhaustive()
    }
}

impl Forward {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_dropped(&self) {
        self.replies.ledger().drop_events(1);
    }
}

impl State {
    /// `false` when the pipe is full.
    fn send(&mut self, record: &Record) -> bool {
        while let Some(&id) = self.closes.last() {
            if !self.write(&Record::Close { id }) {
                return false;
            }
            self.closes.pop();
        }
        self.write(record)
    }

    fn write(&mut self, record: &Record) -> bool {
        let mut bytes = Vec::with_capacity(256);
        message_bytes(record, &mut bytes);
        // What was begun and cannot be finished is left out by who reads it.
        bytes.len() <= LONGEST
            && parts(&bytes).all(|part| {
                loop {
                    match rustix::io::write(&self.pipe, &part) {
                        Ok(_) => return true,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(_) => return false,
                    }
                }
            })
    }

    /// The number of a place, once the parent knows it.
    fn site(&mut self, metadata: &'static Metadata<'static>) -> Option<u32> {
        let key = metadata.callsite();
        if let Some(&number) = self.sites.get(&key) {
            return Some(number);
        }
        let number = self.sites.len() as u32;
        let site = Site {
            name: metadata.name().to_owned(),
            target: metadata.target().to_owned(),
            verbosity: level_number(*metadata.level()),
            file: metadata.file().map(str::to_owned),
            line: metadata.line(),
            module: metadata.module_path().map(str::to_owned),
            fields: metadata
                .fields()
                .iter()
                .map(|field| field.name().to_owned())
                .collect(),
            is_span: metadata.is_span(),
        };
        if !self.send(&Record::Site { number, site }) {
            return None;
        }
        self.sites.insert(key, number);
        Some(number)
    }

    /// The innermost of a span and those around it that the parent knows of.
    fn known(&self, mut parent: Parent) -> Parent {
        while let Parent::Span(id) = parent {
            match self.spans.get(&id) {
                Some(span) if span.sent => return parent,
                Some(span) => parent = span.parent,
                None => return Parent::Outermost,
            }
        }
        parent
    }
}

/// Where something stands that says `explicit` of its parent, or nothing.
fn parent(is_root: bool, explicit: Option<&Id>) -> Parent {
    if is_root {
        return Parent::Root;
    }
    match explicit {
        Some(id) => Parent::Span(id.into_u64()),
        None => entered().map_or(Parent::Outermost, Parent::Span),
    }
}

/// The span that this thread is in.
fn entered() -> Option<u64> {
    ENTERED
        .try_with(|entered| entered.borrow().last().copied())
        .ok()
        .flatten()
}

fn task() -> u64 {
    current::get().map_or(0, |current| current.id)
}

impl Subscriber for Forward {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        level_number(*metadata.level()) <= VERBOSITY.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match VERBOSITY.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let metadata = attributes.metadata();
        let mut values = Collected::default();
        attributes.record(&mut values);
        let parent = parent(attributes.is_root(), attributes.parent());
        let task = task();
        let mut state = self.lock();
        let sent = state.site(metadata).is_some_and(|site| {
            let parent = state.known(parent);
            state.send(&Record::Span {
                id,
                site,
                parent,
                task,
                values: values.values,
            })
        });
        state.spans.insert(
            id,
            SpanState {
                handles: 1,
                metadata,
                parent,
                sent,
            },
        );
        drop(state);
        if !sent {
            self.count_dropped();
        }
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, record: &SpanRecord<'_>) {
        let mut values = Collected::default();
        record.record(&mut values);
        let id = span.into_u64();
        let mut state = self.lock();
        let Some(metadata) = state
            .spans
            .get(&id)
            .filter(|span| span.sent)
            .map(|span| span.metadata)
        else {
            return;
        };
        let sent = state.site(metadata).is_some_and(|site| {
            state.send(&Record::Values {
                id,
                site,
                values: values.values,
            })
        });
        drop(state);
        if !sent {
            self.count_dropped();
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        let (id, follows) = (span.into_u64(), follows.into_u64());
        let mut state = self.lock();
        let is_known = |id| state.spans.get(&id).is_some_and(|span| span.sent);
        if is_known(id) && is_known(follows) && !state.send(&Record::Follows { id, follows }) {
            drop(state);
            self.count_dropped();
        }
    }

    fn event(&self, event: &Event<'_>) {
        let mut values = Collected::default();
        event.record(&mut values);
        let parent = parent(event.is_root(), event.parent());
        let task = task();
        let mut state = self.lock();
        let sent = state.site(event.metadata()).is_some_and(|site| {
            let parent = state.known(parent);
            state.send(&Record::Event {
                site,
                parent,
                task,
                values: values.values,
            })
        });
        drop(state);
        if !sent {
            self.count_dropped();
        }
    }

    fn enter(&self, span: &Id) {
        // A thread whose locals are torn down is in no span.
        ENTERED
            .try_with(|entered| entered.borrow_mut().push(span.into_u64()))
            .ok();
    }

    fn exit(&self, span: &Id) {
        let id = span.into_u64();
        ENTERED
            .try_with(|entered| {
                let mut entered = entered.borrow_mut();
                // Spans need not be left in the order in which they were entered.
                if let Some(at) = entered.iter().rposition(|&entered| entered == id) {
                    entered.remove(at);
                }
            })
            .ok();
    }

    fn clone_span(&self, span: &Id) -> Id {
        if let Some(state) = self.lock().spans.get_mut(&span.into_u64()) {
            state.handles += 1;
        }
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let id = span.into_u64();
        let mut state = self.lock();
        let Some(span) = state.spans.get_mut(&id) else {
            return false;
        };
        span.handles = span.handles.saturating_sub(1);
        if span.handles > 0 {
            return false;
        }
        let sent = span.sent;
        state.spans.remove(&id);
        if sent && !state.send(&Record::Close { id }) {
            state.closes.push(id);
        }
        true
    }

    fn current_span(&self) -> Current {
        let Some(id) = entered() else {
            return Current::none();
        };
        match self.lock().spans.get(&id) {
            Some(span) => Current::new(Id::from_u64(id), span.metadata),
            None => Current::none(),
        }
    }
}

/// Values, as they can be told in another process.
#[derive(Default)]
struct Collected {
    values: Values,
}

impl Collected {
    fn push(&mut self, field: &Field, value: Value) {
        if let Ok(index) = u8::try_from(field.index()) {
            self.values.push((index, value));
        }
    }
}

fn cut(mut text: String) -> String {
    truncate(&mut text, LONGEST_TEXT);
    text
}

impl Visit for Collected {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::U64(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.push(field, Value::I128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.push(field, Value::U128(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::Text(cut(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Value::Debug(cut(format!("{value:?}"))));
    }
}
