//! The books: every task is entered when it is made and settled once when it has ended.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use procession::{TaskError, TaskErrorKind, TimeoutPhase};

use crate::Error;
use crate::starts::{SLOTS, Starts, slot};
use crate::tasks::{Action, Answer, Order, bytes, checksum};

/// The ways to run tasks.
pub(crate) const CLASSES: [&str; 12] = [
    "apply",
    "apply, dropped",
    "apply_async",
    "  aborted",
    "  detached",
    "task, options",
    "try_apply",
    "map",
    "collect_results",
    "imap, ordered",
    "imap_unordered",
    "map_async, aborted",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Apply,
    Dropped,
    Async,
    Aborted,
    Detached,
    Options,
    Try,
    Map,
    Collect,
    Imap,
    Unordered,
    MapAborted,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Value,
    Panicked,
    WorkerLost,
    OutOfMemory,
    TimedOutQueued,
    TimedOutRunning,
    Cancelled,
    QueueFull,
    PoolClosed,
    PoolFailed,
    /// Nobody wanted to know any more.
    Dropped,
    /// An element of a map that another one ended.
    Skipped,
    /// What no task here may end with.
    Other,
}

const OUTCOMES: [(&str, Outcome); 13] = [
    ("value", Outcome::Value),
    ("panic", Outcome::Panicked),
    ("lost", Outcome::WorkerLost),
    ("memory", Outcome::OutOfMemory),
    ("t queued", Outcome::TimedOutQueued),
    ("t running", Outcome::TimedOutRunning),
    ("cancelled", Outcome::Cancelled),
    ("full", Outcome::QueueFull),
    ("closed", Outcome::PoolClosed),
    ("failed", Outcome::PoolFailed),
    ("dropped", Outcome::Dropped),
    ("skipped", Outcome::Skipped),
    ("other", Outcome::Other),
];

impl Outcome {
    pub(crate) fn of(error: &TaskError) -> Self {
        match error.kind() {
            TaskErrorKind::Panicked => Self::Panicked,
            TaskErrorKind::WorkerLost if error.is_out_of_memory() => Self::OutOfMemory,
            TaskErrorKind::WorkerLost => Self::WorkerLost,
            TaskErrorKind::TimedOut(TimeoutPhase::Queued) => Self::TimedOutQueued,
            TaskErrorKind::TimedOut(TimeoutPhase::Running) => Self::TimedOutRunning,
            TaskErrorKind::Cancelled => Self::Cancelled,
            TaskErrorKind::QueueFull => Self::QueueFull,
            TaskErrorKind::PoolClosed => Self::PoolClosed,
            TaskErrorKind::PoolFailed => Self::PoolFailed,
            _ => Self::Other,
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A set of outcomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcomes(u32);

impl fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = OUTCOMES
            .iter()
            .filter(|(_, outcome)| self.has(*outcome))
            .map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

impl Outcomes {
    pub(crate) fn of(outcomes: &[Outcome]) -> Self {
        Self(outcomes.iter().fold(0, |set, outcome| set | outcome.bit()))
    }

    pub(crate) fn with(self, outcomes: &[Outcome]) -> Self {
        Self(self.0 | Self::of(outcomes).0)
    }

    fn has(self, outcome: Outcome) -> bool {
        self.0 & outcome.bit() != 0
    }
}

/// What is known of a task that has not ended.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    site: &'static str,
    class: Class,
    action: Action,
    seed: u64,
    answer: usize,
    sum: u64,
    retries: u32,
    may: Outcomes,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            site,
            class,
            action,
            retries,
            may,
            ..
        } = self;
        write!(
            f,
            "task {id} ({site}, {class:?}, {action:?}, {retries} retries, may end as {may:?})"
        )
    }
}

/// A slot of the file: nothing, a task that has not ended, or the starts that one which has may have had.
const FREE: u64 = 0;
const OPEN: u64 = 1;

pub(crate) struct Tally {
    pub(crate) starts: Starts,
    slots: Box<[AtomicU64]>,
    next: AtomicU64,
    entered: [AtomicU64; CLASSES.len()],
    settled: [[AtomicU64; OUTCOMES.len()]; CLASSES.len()],
    pub(crate) callbacks_wanted: AtomicU64,
    pub(crate) callbacks_run: AtomicU64,
    mismatches: Mutex<Vec<String>>,
    mismatch_count: AtomicU64,
}

impl Tally {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            starts: Starts::new()?,
            slots: (0..SLOTS).map(|_| AtomicU64::new(FREE)).collect(),
            next: AtomicU64::new(1),
            entered: Default::default(),
            settled: Default::default(),
            callbacks_wanted: AtomicU64::new(0),
            callbacks_run: AtomicU64::new(0),
            mismatches: Mutex::default(),
            mismatch_count: AtomicU64::new(0),
        })
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub(crate) fn mismatch(&self, text: String) {
        if self.mismatch_count.fetch_add(1, Relaxed) < 20 {
            eprintln!("chaos: MISMATCH: {text}");
            self.mismatches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(text);
        }
    }

    pub(crate) fn mismatches(&self) -> u64 {
        self.mismatch_count.load(Relaxed)
    }

    /// A task is about to be submitted, which may end in these ways, or as its action and other people's violence
    /// make it.
    pub(crate) fn enter(
        &self,
        site: &'static str,
        order: &Order,
        class: Class,
        retries: u32,
        may: Outcomes,
    ) -> Entry {
        let slot = slot(order.id);
        self.look_back(slot);
        if !self.starts.clear(slot) {
            self.mismatch("the file of starts cannot be written".to_owned());
        }
        self.slots[slot as usize].store(OPEN, Relaxed);
        self.entered[class as usize].fetch_add(1, Relaxed);
        let mut may = may.with(&[Outcome::WorkerLost]);
        if order.action.gives_value() {
            may = may.with(&[Outcome::Value]);
        }
        match order.action {
            Action::Panic => may = may.with(&[Outcome::Panicked]),
            // The kernel's own killer is not told apart from others where the hog is not alone in its pool.
            _ => may = may.with(&[Outcome::OutOfMemory]),
        }
        Entry {
            id: order.id,
            site,
            class,
            action: order.action,
            seed: order.seed,
            answer: order.answer,
            sum: checksum(&order.payload),
            retries,
            may,
        }
    }

    pub(crate) fn settle(&self, entry: &Entry, result: &Result<Answer, TaskError>) {
        match result {
            Ok(answer) => {
                let is_right = answer.id == entry.id
                    && answer.sum == entry.sum
                    && answer.payload == bytes(entry.seed, entry.answer);
                if !is_right {
                    self.mismatch(format!("a wrong value, that of {}, for {entry:?}", answer.id));
                }
                self.settle_as(entry, Outcome::Value);
            }
            Err(error) => {
                let outcome = Outcome::of(error);
                if !entry.may.has(outcome) {
                    self.mismatch(format!("{entry:?} ended with: {error}"));
                }
                self.book(entry, outcome);
            }
        }
    }

    /// Settles without an error at hand.
    pub(crate) fn settle_as(&self, entry: &Entry, outcome: Outcome) {
        let aside = [Outcome::Dropped, Outcome::Skipped];
        if !entry.may.has(outcome) && !aside.contains(&outcome) {
            self.mismatch(format!("{entry:?} ended as {outcome:?}"));
        }
        self.book(entry, outcome);
    }

    fn book(&self, entry: &Entry, outcome: Outcome) {
        let most = match outcome {
            Outcome::QueueFull => 0,
            Outcome::TimedOutQueued if entry.retries == 0 => 0,
            _ => 1 + u64::from(entry.retries),
        };
        let least = u64::from(matches!(outcome, Outcome::Value | Outcome::Panicked));
        let ended = 2 | least << 8 | most << 16 | (outcome as u64) << 32;
        let before = self.slots[slot(entry.id) as usize].swap(ended, Relaxed);
        if before != OPEN {
            self.mismatch(format!("{entry:?} ended twice, now as {outcome:?}"));
        }
        self.settled[entry.class as usize][outcome as usize].fetch_add(1, Relaxed);
    }

    /// Looks at what became of the task that had a slot: not before another needs it, so that a late start is seen.
    fn look_back(&self, slot: u64) {
        match self.slots[slot as usize].load(Relaxed) {
            FREE => {}
            OPEN => self.mismatch(format!("the task in slot {slot} has never ended")),
            ended => {
                let started = u64::from(self.starts.read(slot));
                let (least, most) = (ended >> 8 & 0xff, ended >> 16 & 0xffff);
                if started < least || started > most {
                    let outcome = OUTCOMES[(ended >> 32) as usize].0;
                    self.mismatch(format!(
                        "the task in slot {slot}, which ended as '{outcome}', was started {started} times, \
                         not {least} to {most}"
                    ));
                }
            }
        }
    }

    pub(crate) fn look_back_at_all(&self) {
        (0..SLOTS).for_each(|slot| self.look_back(slot));
    }

    pub(crate) fn total_entered(&self) -> u64 {
        self.entered.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub(crate) fn total_settled(&self) -> u64 {
        self.settled
            .iter()
            .flatten()
            .map(|count| count.load(Relaxed))
            .sum()
    }

    pub(crate) fn values(&self) -> u64 {
        let values = self
            .settled
            .iter()
            .map(|outcomes| &outcomes[Outcome::Value as usize]);
        values.map(|count| count.load(Relaxed)).sum()
    }

    /// Ways of submitting down, ways of ending across.
    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:20}{:>11}", "", "submitted");
        let used: Vec<usize> = (0..OUTCOMES.len())
            .filter(|&outcome| self.settled.iter().any(|class| class[outcome].load(Relaxed) > 0))
            .collect();
        for &outcome in &used {
            table += &format!("{:>10}", OUTCOMES[outcome].0);
        }
        for (class, name) in CLASSES.iter().enumerate() {
            table += &format!("\n{name:20}{:>11}", self.entered[class].load(Relaxed));
            for &outcome in &used {
                table += &format!("{:>10}", self.settled[class][outcome].load(Relaxed));
            }
        }
        table += &format!("\n{:20}{:>11}", "all", self.total_entered());
        for &outcome in &used {
            let sum: u64 = self
                .settled
                .iter()
                .map(|class| class[outcome].load(Relaxed))
                .sum();
            table += &format!("{sum:>10}");
        }
        table
    }
}
