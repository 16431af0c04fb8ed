//! Emitting again what a worker emitted: records from its pipe become spans and events of this process.

use std::collections::{HashMap, HashSet, hash_map};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use tracing::dispatcher::{self, Dispatch};
use tracing::field::{Field, FieldSet, ValueSet};
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::{Event, Metadata};
use tracing_core::callsite::{self, Callsite, Identifier};
use tracing_core::metadata::Kind;
use tracing_core::subscriber::Interest;

use super::origin::{Events, Origin};
use crate::shared::ledger::Ledger;
use crate::wire::codec;
use crate::wire::record::{Parent, Parts, Record, Site, Value, Values};

/// Places in programs that are known here, for they are never forgotten. Those beyond share one for each level.
const MOST_SITES: usize = 4096;
/// What `tracing` can take of a place's fields at once.
const MOST_FIELDS: usize = 32;
/// What is kept of a name, in bytes.
const LONGEST_NAME: usize = 1024;

/// A record with all that is needed to emit it.
pub(crate) struct Heard {
    process: u64,
    worker: usize,
    pid: u32,
    what: What,
    bytes: usize,
    /// Records of this worker that were dropped in front of it.
    dropped: u64,
}

enum What {
    Span {
        id: u64,
        place: Place,
        values: Values,
    },
    Values {
        id: u64,
        site: Arc<Known>,
        values: Values,
    },
    Follows {
        id: u64,
        follows: u64,
    },
    Close {
        id: u64,
    },
    Event {
        place: Place,
        values: Values,
    },
    /// The process will emit nothing more.
    End,
}

/// Where something was emitted.
struct Place {
    site: Arc<Known>,
    parent: Parent,
    origin: Option<Arc<Origin>>,
}

impl Heard {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The events of one process, as they come out of its pipe.
pub(super) struct Stream {
    process: u64,
    worker: usize,
    pid: u32,
    parts: Parts,
    sites: HashMap<u32, Arc<Known>>,
    /// Spans that were passed on and are not closed.
    open: HashSet<u64>,
    /// Dropped here since the last record that was passed on.
    dropped: u64,
    /// What the worker had dropped when it was last looked at.
    worker_dropped: u64,
    ledger: Arc<Ledger>,
}

impl Stream {
    pub(super) fn new(process: u64, worker: usize, pid: u32, ledger: &Arc<Ledger>) -> Self {
        Self {
            process,
            worker,
            pid,
            parts: Parts::default(),
            sites: HashMap::new(),
            open: HashSet::new(),
            dropped: 0,
            worker_dropped: 0,
            ledger: Arc::clone(ledger),
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8], events: &Events) {
        self.parts.push(bytes);
        while let Some(record) = self.parts.next() {
            // A worker may send what it likes. What makes no sense is none of its events.
            if let Ok(record) = codec::decode::<Record>(&record) {
                self.hear(record, events);
            }
        }
    }

    fn hear(&mut self, record: Record, events: &Events) {
        match record {
            Record::Site { number, site } => {
                if self.sites.len() < MOST_SITES {
                    self.sites.insert(number, Arc::new(Known::new(site)));
                }
            }
            Record::Span {
                id,
                site,
                parent,
                task,
                values,
            } => {
                let Some(place) = self.place(site, parent, task, events) else {
                    return;
                };
                if self.pass(What::Span { id, place, values }, events) {
                    self.open.insert(id);
                }
            }
            Record::Values { id, site, values } => {
                let Some(site) = self.sites.get(&site).cloned() else {
                    return;
                };
                if self.open.contains(&id) {
                    self.pass(What::Values { id, site, values }, events);
                }
            }
            Record::Follows { id, follows } => {
                if self.open.contains(&id) {
                    self.pass(What::Follows { id, follows }, events);
                }
            }
            Record::Close { id } => {
                if self.open.remove(&id) {
                    self.pass(What::Close { id }, events);
                }
            }
            Record::Event {
                site,
                parent,
                task,
                values,
            } => {
                if let Some(place) = self.place(site, parent, task, events) {
                    self.pass(What::Event { place, values }, events);
                }
            }
        }
    }

    fn place(&self, site: u32, parent: Parent, task: u64, events: &Events) -> Option<Place> {
        Some(Place {
            site: Arc::clone(self.sites.get(&site)?),
            parent,
            origin: events.origin(task),
        })
    }

    fn pass(&mut self, what: What, events: &Events) -> bool {
        let bytes = what.bytes();
        let by_worker = self.ledger.events_dropped();
        let since = by_worker.saturating_sub(self.worker_dropped);
        let passed = events.passer().record(Heard {
            process: self.process,
            worker: self.worker,
            pid: self.pid,
            what,
            bytes,
            dropped: self.dropped + since,
        });
        if passed {
            (self.dropped, self.worker_dropped) = (0, by_worker);
        } else {
            self.dropped += 1;
            events.count_dropped();
        }
        passed
    }

    pub(super) fn end(mut self, events: &Events) {
        self.pass(What::End, events);
        events.end(self.process);
    }
}

impl What {
    /// What it takes in memory, about. What gives memory back is of no size, for it must not be dropped.
    fn bytes(&self) -> usize {
        match self {
            Self::Span { values, .. } | Self::Values { values, .. } | Self::Event { values, .. } => {
                let texts: usize = values.iter().map(|(_, value)| value.bytes()).sum();
                size_of::<Heard>() + texts
            }
            Self::Follows { .. } => size_of::<Heard>(),
            Self::Close { .. } | Self::End => 0,
        }
    }
}

impl Value {
    fn bytes(&self) -> usize {
        let text = match self {
            Self::Text(text) | Self::Debug(text) => text.len(),
            _ => 0,
        };
        size_of::<(u8, Self)>() + text
    }
}

/// The spans of workers that are open here.
#[derive(Default)]
pub(super) struct Replay {
    spans: HashMap<(u64, u64), Open>,
}

struct Open {
    dispatch: Dispatch,
    id: Id,
}

impl Replay {
    /// Emits a record.
    pub(super) fn play(&mut self, heard: Heard) {
        let Heard {
            process,
            worker,
            pid,
            what,
            dropped,
            ..
        } = heard;
        if dropped > 0 {
            tracing::event!(
                target: "procession::worker",
                parent: None,
                tracing::Level::WARN,
                worker,
                pid,
                dropped,
                "{dropped} spans or events dropped"
            );
        }
        match what {
            What::Span { id, place, values } => {
                let (dispatch, parent) = self.parent(process, &place);
                let Some(site) = place.site.for_subscriber(&dispatch) else {
                    return;
                };
                let id_here = site.with_values(values, |values| {
                    let attributes = match parent {
                        Some(parent) => Attributes::child_of(parent, site.metadata, values),
                        None => Attributes::new_root(site.metadata, values),
                    };
                    dispatch.new_span(&attributes)
                });
                let open = Open {
                    dispatch,
                    id: id_here,
                };
                if let hash_map::Entry::Vacant(place) = self.spans.entry((process, id)) {
                    place.insert(open);
                } else {
                    open.close();
                }
            }
            What::Values { id, site, values } => {
                if let Some(open) = self.spans.get(&(process, id)) {
                    let site = site.interned();
                    site.with_values(values, |values| {
                        open.dispatch.record(&open.id, &SpanRecord::new(values));
                    });
                }
            }
            What::Follows { id, follows } => {
                if let (Some(open), Some(followed)) = (
                    self.spans.get(&(process, id)),
                    self.spans.get(&(process, follows)),
                ) {
                    open.dispatch.record_follows_from(&open.id, &followed.id);
                }
            }
            What::Close { id } => {
                if let Some(open) = self.spans.remove(&(process, id)) {
                    open.close();
                }
            }
            What::Event { place, values } => {
                let (dispatch, parent) = self.parent(process, &place);
                let Some(site) = place.site.for_subscriber(&dispatch) else {
                    return;
                };
                site.with_values(values, |values| {
                    dispatch.event(&Event::new_child_of(parent, site.metadata, values));
                });
            }
            What::End => {
                // A process that died in the middle of them has closed none.
                let left: Vec<(u64, u64)> = self
                    .spans
                    .keys()
                    .filter(|(of, _)| *of == process)
                    .copied()
                    .collect();
                for key in left {
                    if let Some(open) = self.spans.remove(&key) {
                        open.close();
                    }
                }
            }
        }
    }

    /// Who hears of something, and the span that it belongs under.
    fn parent(&self, process: u64, place: &Place) -> (Dispatch, Option<Id>) {
        if let Parent::Span(id) = place.parent
            && let Some(open) = self.spans.get(&(process, id))
        {
            return (open.dispatch.clone(), Some(open.id.clone()));
        }
        let Some(origin) = &place.origin else {
            return (dispatcher::get_default(Clone::clone), None);
        };
        let parent = match place.parent {
            Parent::Root => None,
            _ => origin.span.id(),
        };
        (origin.dispatch.clone(), parent)
    }
}

impl Open {
    fn close(self) {
        self.dispatch.try_close(self.id);
    }
}

/// A place in a worker's program, and what stands for it here once it is needed.
struct Known {
    site: Site,
    interned: OnceLock<Interned>,
}

/// What stands for a place of a worker's program.
#[derive(Clone, Copy)]
struct Interned {
    metadata: &'static Metadata<'static>,
    /// The names of the fields, where the place shares its own with others.
    shared: bool,
}

impl Known {
    fn new(mut site: Site) -> Self {
        // It is kept for ever, whatever the worker says.
        site.fields.truncate(MOST_FIELDS);
        let names = [&mut site.name, &mut site.target].into_iter();
        let places = [&mut site.file, &mut site.module].into_iter().flatten();
        for text in names.chain(places).chain(&mut site.fields) {
            codec::truncate(text, LONGEST_NAME);
        }
        Self {
            site,
            interned: OnceLock::new(),
        }
    }

    fn interned(&self) -> Emitter<'_> {
        let interned = self.interned.get_or_init(|| intern(&self.site));
        Emitter {
            site: &self.site,
            metadata: interned.metadata,
            shared: interned.shared,
        }
    }

    /// `None` where the subscriber does not want it.
    fn for_subscriber(&self, dispatch: &Dispatch) -> Option<Emitter<'_>> {
        let emitter = self.interned();
        dispatch.enabled(emitter.metadata).then_some(emitter)
    }
}

struct Emitter<'a> {
    site: &'a Site,
    metadata: &'static Metadata<'static>,
    shared: bool,
}

impl Emitter<'_> {
    fn with_values<T>(&self, values: Values, use_them: impl FnOnce(&ValueSet<'_>) -> T) -> T {
        let values = if self.shared {
            self.as_text(&values)
        } else {
            values
        };
        let fields = self.metadata.fields();
        let named: Vec<Field> = fields.iter().take(MOST_FIELDS).collect();
        let borrowed: Vec<(usize, Box<dyn tracing::Value + '_>)> = values
            .iter()
            .filter(|(field, _)| usize::from(*field) < named.len())
            .map(|(field, value)| (usize::from(*field), value.borrow()))
            .take(MOST_FIELDS)
            .collect();
        let Some(any) = named.first() else {
            return use_them(&fields.value_set(&[]));
        };
        let mut set: [(&Field, Option<&dyn tracing::Value>); MOST_FIELDS] = [(any, None); MOST_FIELDS];
        for (place, (field, value)) in set.iter_mut().zip(&borrowed) {
            *place = (&named[*field], Some(&**value));
        }
        use_them(&fields.value_set(&set))
    }

    /// What happened at a place that has no fields of its own here.
    fn as_text(&self, values: &Values) -> Values {
        let mut message = String::new();
        for (field, value) in values {
            let name = self
                .site
                .fields
                .get(usize::from(*field))
                .map_or("", String::as_str);
            if !message.is_empty() {
                message.push(' ');
            }
            message.push_str(&match (name, value) {
                ("message", Value::Text(text) | Value::Debug(text)) => text.clone(),
                (name, Value::Text(text)) => format!("{name}={text:?}"),
                (name, Value::Debug(text)) => format!("{name}={text}"),
                (name, Value::Bool(value)) => format!("{name}={value}"),
                (name, Value::I64(value)) => format!("{name}={value}"),
                (name, Value::U64(value)) => format!("{name}={value}"),
                (name, Value::I128(value)) => format!("{name}={value}"),
                (name, Value::U128(value)) => format!("{name}={value}"),
                (name, Value::F64(value)) => format!("{name}={value}"),
            });
        }
        vec![
            (0, Value::Debug(message)),
            (1, Value::Text(self.site.name.clone())),
            (2, Value::Text(self.site.target.clone())),
        ]
    }
}

/// The fields of places that share one.
const SHARED_FIELDS: [&str; 3] = ["message", "name", "target"];

impl Value {
    fn borrow(&self) -> Box<dyn tracing::Value + '_> {
        match self {
            Self::Bool(value) => Box::new(*value),
            Self::I64(value) => Box::new(*value),
            Self::U64(value) => Box::new(*value),
            Self::I128(value) => Box::new(*value),
            Self::U128(value) => Box::new(*value),
            Self::F64(value) => Box::new(*value),
            Self::Text(value) => Box::new(value.as_str()),
            // What is displayed is recorded as something to debug.
            Self::Debug(value) => Box::new(tracing::field::display(value)),
        }
    }
}

/// The place that stands for `site`. It is made once, and then kept for ever, as `tracing` wants it.
fn intern(site: &Site) -> Interned {
    static KNOWN: LazyLock<Mutex<HashMap<Site, &'static Metadata<'static>>>> = LazyLock::new(Mutex::default);
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(metadata) = known.get(site) {
        return Interned {
            metadata,
            shared: false,
        };
    }
    let is_full = known.len() >= MOST_SITES;
    // Not under the lock, for subscribers are told of it.
    drop(known);
    let (wanted, shared) = if is_full {
        let shared = Site {
            name: "procession".to_owned(),
            target: "procession::worker".to_owned(),
            verbosity: site.verbosity,
            file: None,
            line: None,
            module: None,
            fields: SHARED_FIELDS.map(str::to_owned).to_vec(),
            is_span: site.is_span,
        };
        (shared, true)
    } else {
        (site.clone(), false)
    };
    static SHARED: LazyLock<Mutex<HashMap<Site, &'static Metadata<'static>>>> = LazyLock::new(Mutex::default);
    let map = if shared { &SHARED } else { &KNOWN };
    if let Some(metadata) = map.lock().unwrap_or_else(PoisonError::into_inner).get(&wanted) {
        return Interned { metadata, shared };
    }
    let metadata = leak(&wanted);
    // Another thread may have been faster; two of the same do no harm.
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    let metadata = *map.entry(wanted).or_insert(metadata);
    Interned { metadata, shared }
}

fn leak(site: &Site) -> &'static Metadata<'static> {
    let text = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let anchor: &'static Anchor = Box::leak(Box::new(Anchor {
        metadata: OnceLock::new(),
    }));
    let fields: Vec<&'static str> = site.fields.iter().map(|field| text(field)).collect();
    let level = match site.verbosity {
        0 | 1 => tracing::Level::ERROR,
        2 => tracing::Level::WARN,
        3 => tracing::Level::INFO,
        4 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let metadata: &'static Metadata<'static> = Box::leak(Box::new(Metadata::new(
        text(&site.name),
        text(&site.target),
        level,
        site.file.as_deref().map(text),
        site.line,
        site.module.as_deref().map(text),
        FieldSet::new(Box::leak(fields.into_boxed_slice()), Identifier(anchor)),
        if site.is_span { Kind::SPAN } else { Kind::EVENT },
    )));
    anchor.metadata.get_or_init(|| metadata);
    callsite::register(anchor);
    metadata
}

/// What `tracing` knows a place by: its address.
struct Anchor {
    metadata: OnceLock<&'static Metadata<'static>>,
}

impl Callsite for Anchor {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.metadata.get().copied().unwrap_or(&NOWHERE_METADATA)
    }
}

/// The place of what has none yet, which nobody ever asks for.
struct Nowhere;

static NOWHERE: Nowhere = Nowhere;
static NOWHERE_METADATA: Metadata<'static> = Metadata::new(
    "nowhere",
    "procession::worker",
    tracing::Level::TRACE,
    None,
    None,
    None,
    FieldSet::new(&[], Identifier(&NOWHERE)),
    Kind::EVENT,
);

impl Callsite for Nowhere {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        &NOWHERE_METADATA
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::field::Visit;

    fn site(number: usize, fields: usize) -> Site {
        Site {
            name: format!("site {number}"),
            target: "target".to_owned(),
            verbosity: 3,
            file: None,
            line: None,
            module: None,
            fields: (0..fields).map(|field| format!("field{field}")).collect(),
            is_span: false,
        }
    }

    /// What a subscriber would see of values at a place.
    fn seen(site: &Known, values: Values) -> Vec<String> {
        struct Seen(Vec<String>);
        impl Visit for Seen {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0.push(format!("{}={value:?}", field.name()));
            }
        }
        let mut seen = Seen(Vec::new());
        site.interned()
            .with_values(values, |values| SpanRecord::new(values).record(&mut seen));
        seen.0
    }

    /// One test, for the places are those of the whole process.
    #[test]
    fn values_find_their_fields_and_places_without_end_come_to_share_one() {
        values_find_their_fields();
        places_without_end_share_one();
    }

    fn values_find_their_fields() {
        let values = || {
            vec![
                (1, Value::U64(7)),
                (0, Value::Debug("x".to_owned())),
                (200, Value::Bool(true)),
            ]
        };
        assert_eq!(seen(&Known::new(site(0, 2)), values()), ["field1=7", "field0=x"]);
        assert_eq!(seen(&Known::new(site(0, 0)), values()), [""; 0]);
        let many = Known::new(site(0, 1000));
        let values = (0..=255)
            .map(|field| (field, Value::U64(u64::from(field))))
            .collect();
        assert_eq!(seen(&many, values).len(), MOST_FIELDS);
    }

    fn places_without_end_share_one() {
        let first = Known::new(site(1, 1));
        let metadata = first.interned().metadata;
        assert_eq!(metadata.name(), "site 1");
        for number in 2..MOST_SITES + 10 {
            Known::new(site(number, 1)).interned();
        }
        let late = Known::new(site(usize::MAX, 1));
        let values = vec![(0, Value::Text("text".to_owned()))];
        assert_eq!(
            seen(&late, values),
            [
                "message=field0=\"text\"".to_owned(),
                format!("name=\"site {}\"", usize::MAX),
                "target=\"target\"".to_owned(),
            ]
        );
        assert_eq!(late.interned().metadata.level(), &tracing::Level::INFO);
        // One that was there before is still itself.
        assert!(std::ptr::eq(Known::new(site(1, 1)).interned().metadata, metadata));
    }
}
