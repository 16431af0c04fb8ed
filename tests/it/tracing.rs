//! Spans and events of tasks are emitted again in the parent, where the task was submitted.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ::tracing::dispatcher::{Dispatch, set_default};
use ::tracing::field::{Field, Visit};
use ::tracing::level_filters::LevelFilter;
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::{Event, Level, Metadata, Subscriber, debug, error, info, info_span, trace, warn};
use procession::{Output, Pool, PoolBuilder};

use crate::fuse::{eventually, within};
use crate::gate::{Gate, gate, wait_at};
use crate::scene::{alone, runtime, same};

/// A span or an event as it came to the subscriber.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: String,
    target: String,
    level: String,
    place: Option<(String, u32)>,
    fields: HashMap<String, String>,
    /// Names of the spans around it, from the outermost.
    path: Vec<String>,
    closed: bool,
}

#[derive(Default)]
struct Log {
    spans: HashMap<u64, Seen>,
    events: Vec<Seen>,
}

/// A subscriber that remembers everything up to a level.
#[derive(Clone)]
struct Remember {
    level: LevelFilter,
    log: Arc<Mutex<Log>>,
    entered: Arc<Mutex<HashMap<std::thread::ThreadId, Vec<u64>>>>,
    handles: Arc<Mutex<HashMap<u64, usize>>>,
    next: Arc<AtomicU64>,
    /// What an event waits for.
    hold: Arc<Mutex<()>>,
    count_alone: bool,
    counted: Arc<AtomicU64>,
}

impl Remember {
    fn new(level: LevelFilter) -> Self {
        Self {
            level,
            log: Arc::default(),
            entered: Arc::default(),
            handles: Arc::default(),
            next: Arc::new(AtomicU64::new(1)),
            hold: Arc::default(),
            count_alone: false,
            counted: Arc::default(),
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    fn events(&self) -> Vec<Seen> {
        self.log().events.clone()
    }

    fn messages(&self) -> Vec<String> {
        let log = self.log();
        log.events
            .iter()
            .map(|event| event.fields["message"].clone())
            .collect()
    }

    fn span(&self, name: &str) -> Option<Seen> {
        self.log().spans.values().find(|span| span.name == name).cloned()
    }

    fn seen(&self, metadata: &Metadata<'_>, parent: Option<&Id>, is_root: bool) -> Seen {
        assert!(
            metadata.level() <= &self.level,
            "what is not enabled is not emitted"
        );
        let parent = match parent {
            Some(parent) => Some(parent.into_u64()),
            None if is_root => None,
            None => self.current(),
        };
        let mut path = Vec::new();
        if let Some(parent) = parent {
            let log = self.log();
            let parent = &log.spans[&parent];
            path.clone_from(&parent.path);
            path.push(parent.name.clone());
        }
        Seen {
            name: metadata.name().to_owned(),
            target: metadata.target().to_owned(),
            level: metadata.level().to_string(),
            place: metadata.file().map(str::to_owned).zip(metadata.line()),
            path,
            ..Seen::default()
        }
    }

    fn current(&self) -> Option<u64> {
        let entered = self.entered.lock().unwrap();
        entered.get(&std::thread::current().id())?.last().copied()
    }
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields
            .insert(field.name().to_owned(), format!("str {value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields
            .insert(field.name().to_owned(), format!("f64 {value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields
            .insert(field.name().to_owned(), format!("i64 {value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields
            .insert(field.name().to_owned(), format!("u64 {value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields
            .insert(field.name().to_owned(), format!("bool {value}"));
    }
}

impl Subscriber for Remember {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= &self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen(attributes.metadata(), attributes.parent(), attributes.is_root());
        attributes.record(&mut seen);
        self.log().spans.insert(id, seen);
        self.handles.lock().unwrap().insert(id, 1);
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(self.log().spans.get_mut(&span.into_u64()).unwrap());
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        drop(self.hold.lock().unwrap());
        if self.count_alone {
            if event.metadata().target() != "procession::worker" {
                self.counted.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let mut seen = self.seen(event.metadata(), event.parent(), event.is_root());
        event.record(&mut seen);
        self.log().events.push(seen);
    }

    fn enter(&self, span: &Id) {
        let mut entered = self.entered.lock().unwrap();
        entered
            .entry(std::thread::current().id())
            .or_default()
            .push(span.into_u64());
    }

    fn exit(&self, span: &Id) {
        let mut entered = self.entered.lock().unwrap();
        let entered = entered.entry(std::thread::current().id()).or_default();
        entered.retain(|id| *id != span.into_u64());
    }

    fn clone_span(&self, span: &Id) -> Id {
        *self.handles.lock().unwrap().get_mut(&span.into_u64()).unwrap() += 1;
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let mut handles = self.handles.lock().unwrap();
        let left = handles.get_mut(&span.into_u64()).unwrap();
        *left -= 1;
        if *left > 0 {
            return false;
        }
        self.log().spans.get_mut(&span.into_u64()).unwrap().closed = true;
        true
    }

    fn current_span(&self) -> tracing_core::span::Current {
        match self.current() {
            None => tracing_core::span::Current::none(),
            Some(id) => tracing_core::span::Current::new(Id::from_u64(id), &METADATA_OF_ANY),
        }
    }
}

/// Nobody looks at the metadata of the current span here.
static METADATA_OF_ANY: Metadata<'static> = tracing_core::metadata! {
    name: "any",
    target: "any",
    level: Level::INFO,
    fields: &[],
    callsite: &ANY,
    kind: tracing_core::metadata::Kind::SPAN,
};
static ANY: Any = Any;
struct Any;

impl tracing_core::callsite::Callsite for Any {
    fn set_interest(&self, _: tracing_core::subscriber::Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        &METADATA_OF_ANY
    }
}

fn builder(workers: usize) -> PoolBuilder {
    Pool::builder()
        .workers(workers)
        .stderr(Output::null())
        .tracing(Level::TRACE)
}

async fn finish(pool: &Pool) {
    pool.close();
    within(pool.join()).await.unwrap();
}

#[tokio::test]
async fn an_event_comes_under_the_span_of_who_submitted() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(1).build()).await.unwrap();
    let task = |n: u64| {
        info!(n, text = "words", negative = -1_i64, half = 0.5, yes = true, debugged = ?[1, 2], "hello {n}");
    };
    let span = info_span!("request");
    let handle = span.in_scope(|| pool.apply_async(task, 7));
    within(handle).await.unwrap();
    finish(&pool).await;
    let events = remember.events();
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!(event.path, ["request"]);
    assert_eq!(
        (event.target.as_str(), event.level.as_str()),
        ("it::tracing", "INFO")
    );
    let (file, line) = event.place.clone().unwrap();
    assert!(file.ends_with("tracing.rs") && line > 0);
    for (field, value) in [
        ("message", "hello 7"),
        ("n", "u64 7"),
        ("text", "str words"),
        ("negative", "i64 -1"),
        ("half", "f64 0.5"),
        ("yes", "bool true"),
        ("debugged", "[1, 2]"),
    ] {
        assert_eq!(event.fields[field], value, "{field}");
    }
    // What was held for the worker's sake is let go.
    assert!(!remember.span("request").unwrap().closed);
    drop(span);
    eventually("the span is closed", || remember.span("request").unwrap().closed);
}

#[tokio::test]
async fn spans_nest_as_they_did_in_the_worker() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(1).build()).await.unwrap();
    let task = |_: ()| {
        let outer = info_span!("outer", key = 1, later = ::tracing::field::Empty);
        let entered = outer.enter();
        info!("in outer");
        info_span!("inner").in_scope(|| warn!("in inner"));
        info!(parent: None, "at the root");
        drop(entered);
        outer.record("later", "recorded");
        info!(parent: &outer, "explicitly in outer");
        info!("outside");
    };
    let span = info_span!("request");
    within(span.in_scope(|| pool.apply_async(task, ())))
        .await
        .unwrap();
    finish(&pool).await;
    let found: Vec<_> = remember
        .events()
        .into_iter()
        .map(|event| (event.fields["message"].clone(), event.path.join(" ")))
        .collect();
    let expected = [
        ("in outer", "request outer"),
        ("in inner", "request outer inner"),
        ("at the root", ""),
        ("explicitly in outer", "request outer"),
        ("outside", "request"),
    ];
    assert_eq!(
        found,
        expected.map(|(message, path)| (message.to_owned(), path.to_owned()))
    );
    let outer = remember.span("outer").unwrap();
    assert_eq!(
        (outer.fields["key"].as_str(), outer.fields["later"].as_str()),
        ("i64 1", "str recorded")
    );
    assert!(outer.closed && remember.span("inner").unwrap().closed);
}

#[tokio::test]
async fn each_task_has_its_own_submitter() {
    let remember = Remember::new(LevelFilter::INFO);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(2).build()).await.unwrap();
    let handles: Vec<_> = (0..200)
        .map(|n| {
            let span = info_span!("request", n);
            span.in_scope(|| pool.apply_async(|n: i32| info!("{n}"), n))
        })
        .collect();
    for handle in handles {
        within(handle).await.unwrap();
    }
    finish(&pool).await;
    let log = remember.log();
    assert_eq!(log.events.len(), 200);
    assert!(log.events.iter().all(|event| event.path == ["request"]));
    drop(log);
    eventually("all spans are closed", || {
        remember.log().spans.values().all(|span| span.closed)
    });
}

#[tokio::test]
async fn what_was_emitted_before_an_abort_arrives() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(1).build()).await.unwrap();
    let task = |_: ()| -> () {
        let span = info_span!("doomed");
        let _entered = span.enter();
        error!("last words");
        std::process::abort()
    };
    let span = info_span!("request");
    let lost = within(span.in_scope(|| pool.apply_async(task, ()))).await;
    assert!(lost.unwrap_err().is_worker_lost());
    eventually("the event arrives", || remember.messages() == ["last words"]);
    assert_eq!(remember.events()[0].path, ["request", "doomed"]);
    // The worker could not close it any more.
    eventually("its span is closed", || remember.span("doomed").unwrap().closed);
    finish(&pool).await;
}

#[tokio::test]
async fn events_of_maps_and_of_threads_have_a_submitter_too() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(2).build()).await.unwrap();
    let span = info_span!("request");
    let task = |n: u32| std::thread::spawn(move || info!("{n}")).join().unwrap();
    let results = pool.map(task, 0..50).chunk_size(5);
    {
        use ::tracing::Instrument as _;
        within(async { results.await }.instrument(span)).await.unwrap();
    }
    finish(&pool).await;
    let events = remember.events();
    assert_eq!(events.len(), 50);
    assert!(events.iter().all(|event| event.path == ["request"]), "{events:?}");
}

#[tokio::test]
async fn events_of_an_initializer_were_submitted_by_nobody() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = builder(1).initializer(|name: String| info!("{name} is ready"), "worker".to_owned());
    let pool = within(pool.build()).await.unwrap();
    finish(&pool).await;
    // Nobody submitted it, so that it goes to the global subscriber, which this test has none of.
    assert_eq!(remember.messages(), Vec::<String>::new());
}

#[test]
fn a_program_with_a_global_subscriber_hears_all_and_of_a_quiet_one_nothing_is_sent() {
    let name = "tracing::a_program_with_a_global_subscriber_hears_all_and_of_a_quiet_one_nothing_is_sent";
    alone(name, || {
        runtime().block_on(async {
            // Without any subscriber nothing is wanted, and that is known in the worker.
            let enabled = |_: ()| {
                [
                    ::tracing::enabled!(Level::ERROR),
                    ::tracing::enabled!(Level::WARN),
                    ::tracing::enabled!(Level::INFO),
                    ::tracing::enabled!(Level::DEBUG),
                ]
            };
            let pool = within(builder(1).build()).await.unwrap();
            assert_eq!(within(pool.apply(enabled, ())).await.unwrap(), [false; 4]);

            let remember = Remember::new(LevelFilter::INFO);
            ::tracing::dispatcher::set_global_default(Dispatch::new(remember.clone())).unwrap();
            // The worker that is there already hears of it with the next task.
            let found = within(pool.apply(enabled, ())).await.unwrap();
            assert_eq!(found, [true, true, true, false]);
            // The pool may want less than the subscriber.
            let less = within(builder(1).tracing(Level::WARN).build()).await.unwrap();
            let found = within(less.apply(enabled, ())).await.unwrap();
            assert_eq!(found, [true, true, false, false]);
            // By default it wants nothing.
            let none = within(Pool::builder().workers(1).build()).await.unwrap();
            assert_eq!(within(none.apply(enabled, ())).await.unwrap(), [false; 4]);

            let chatty = |_: ()| {
                trace!("trace");
                debug!("debug");
                info!("info");
                warn!("warn");
            };
            within(pool.apply(chatty, ())).await.unwrap();
            finish(&pool).await;
            let builder = builder(1).initializer(|_: ()| info!("ready"), ());
            let with_initializer = within(builder.build()).await.unwrap();
            for pool in [pool, less, none, with_initializer] {
                finish(&pool).await;
                assert_eq!(pool.stats().events_dropped, 0);
            }
            assert_eq!(remember.messages(), ["info", "warn", "ready"]);
        });
    });
}

#[tokio::test]
async fn a_subscriber_that_the_initializer_sets_wins() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let builder = builder(1).initializer(
        |_: ()| ::tracing::dispatcher::set_global_default(Dispatch::new(Remember::new(LevelFilter::TRACE))),
        (),
    );
    let pool = within(builder.build()).await.unwrap();
    within(pool.apply(|_: ()| info!("not for the parent"), ()))
        .await
        .unwrap();
    finish(&pool).await;
    assert_eq!(remember.messages(), Vec::<String>::new());
}

#[tokio::test]
async fn printed_lines_can_be_events() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let builder = Pool::builder()
        .workers(1)
        .stdout(Output::tracing())
        .stderr(Output::tracing());
    let pool = within(builder.build()).await.unwrap();
    let print = |_: ()| {
        println!("to stdout");
        std::process::id()
    };
    let span = info_span!("request");
    let pid = within(span.in_scope(|| pool.apply_async(print, ())))
        .await
        .unwrap();
    eventually("the line arrives", || remember.messages() == ["to stdout"]);
    within(span.in_scope(|| pool.apply_async(|_: ()| eprintln!("to stderr"), ())))
        .await
        .unwrap();
    finish(&pool).await;
    let events = remember.events();
    let of = |field: &str| -> Vec<_> { events.iter().map(|event| event.fields[field].clone()).collect() };
    assert_eq!(of("message"), ["to stdout", "to stderr"]);
    assert_eq!(of("stream"), ["stdout", "stderr"]);
    assert_eq!(of("task"), ["u64 1", "u64 2"]);
    assert_eq!(of("pid"), vec![format!("u64 {pid}"); 2]);
    assert_eq!(events[0].level, "INFO");
    assert_eq!(events[1].level, "WARN");
    assert!(
        events
            .iter()
            .all(|event| event.target == "procession::worker" && event.path == ["request"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_events_holds_nothing_up_and_every_one_is_accounted_for() {
    const EVENTS: u64 = 1_000_000;
    let mut remember = Remember::new(LevelFilter::INFO);
    remember.count_alone = true;
    let dispatch = Dispatch::new(remember.clone());
    let builder = builder(2).output_buffer(64 * 1024);
    let pool = within(builder.build()).await.unwrap();
    let flood = |events: u64| {
        for n in 0..events {
            info!(n, "flood");
        }
        events
    };
    // The subscriber takes none for now.
    let held = remember.hold.lock().unwrap();
    let flooding = ::tracing::dispatcher::with_default(&dispatch, || pool.apply_async(flood, EVENTS));
    let hold_up = async {
        for n in 0..100_u32 {
            assert_eq!(within(pool.apply(same::<u32>, n)).await.unwrap(), n);
        }
        assert_eq!(within(flooding).await.unwrap(), EVENTS);
    };
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(hold_up));
    assert!(pool.stats().events_dropped > 0);
    drop(held);
    finish(&pool).await;
    let total = || remember.counted.load(Ordering::Relaxed) + pool.stats().events_dropped;
    eventually("every event is accounted for", || total() >= EVENTS);
    assert_eq!(total(), EVENTS);
    assert!(remember.counted.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn long_texts_are_cut_and_arrive() {
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(1).build()).await.unwrap();
    let long = |n: usize| info!(text = "x".repeat(n), "long");
    for length in [5_000, 100_000] {
        within(pool.apply(long, length)).await.unwrap();
    }
    finish(&pool).await;
    let lengths: Vec<_> = remember
        .events()
        .iter()
        .map(|event| event.fields["text"].len())
        .collect();
    assert_eq!(lengths[0], "str ".len() + 5_000);
    assert!(lengths[1] > 16_000 && lengths[1] < 17_000, "{lengths:?}");
}

#[tokio::test]
async fn async_tasks_side_by_side_keep_their_submitters() {
    async fn task(gate: procession::Fd) {
        info!("before");
        tokio::task::spawn_blocking(|| wait_at(gate)).await.unwrap();
        info!("after");
    }
    let remember = Remember::new(LevelFilter::TRACE);
    let _guard = set_default(&Dispatch::new(remember.clone()));
    let pool = within(builder(1).tasks_per_worker(4).build()).await.unwrap();
    let (mut gates, handles): (Vec<Gate>, Vec<_>) = ["first", "second"]
        .map(|name| {
            let (gate, argument) = gate();
            let span = info_span!("request", name);
            let handle = span.in_scope(|| pool.asynchronous().apply_async(task, argument));
            (gate, handle)
        })
        .into_iter()
        .unzip();
    for gate in &mut gates {
        gate.entered();
    }
    gates.reverse();
    gates.into_iter().for_each(Gate::open);
    for handle in handles {
        within(handle).await.unwrap();
    }
    finish(&pool).await;
    let events = remember.events();
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event.path == ["request"]), "{events:?}");
}
