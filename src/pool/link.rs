//! The parent's side of one worker's connection.
//!
//! Whoever has something to send sends it, without waiting for anybody: a submitter writes to an idle worker itself.
//! One writes at a time, the rest leave their frames in the outbox. What the socket does not take at once, and what
//! comes back, is the business of one future per worker ([`drive`]).

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;

use super::call::Frame;
use super::dispatch::Shared;
use super::keeper::Watch;
use crate::error::TimeLimit;
use crate::look::Looks;
use crate::process::child::Killer;
use crate::process::memory::WorkerMemory;
use crate::shared::ledger::Ledger;
use crate::shared::watched::{Watched, watch};
use crate::wire::codec::{drop_quietly, message_bytes};
use crate::wire::frame::{Message, Outgoing};
use crate::wire::message::{Control, kind};
use crate::wire::transport::{Carry, Outbox, Received, Receiver, is_disconnect};

/// Frames for a busy worker leave when they add up to this, or when the driving future runs next.
const BATCH: usize = 16 * 1024;
/// Reads in a row before other futures get their turn.
const READS: usize = 16;
/// What is taken from the socket at once by who waits for an answer.
const LISTENS: u64 = 4 << 20;
/// A worker that lived longer than this did not die of its start.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// What is said of a worker that writes nonsense into its ledger.
const LEDGER: &str = "it wrote garbage into its ledger";

/// What goes to a worker.
#[derive(Debug)]
enum Parcel {
    Task(Arc<Outgoing>),
    Message(Outgoing),
}

impl Carry for Parcel {
    fn outgoing(&self) -> &Outgoing {
        match self {
            Self::Task(frame) => frame,
            Self::Message(message) => message,
        }
    }
}

/// What the outbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Nothing waited there before: the driving future must know.
    First,
    More,
    /// Enough to be sent by who is here.
    Much,
}

/// How much of what waited has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    All,
    UntilFull,
    /// So much that others should get their turn before the rest.
    Much,
}

/// A worker's connection, and what belongs to it.
pub(crate) struct Link {
    /// Its index in the state, which another has when this one is gone.
    pub(crate) place: usize,
    pub(crate) number: usize,
    pub(crate) pid: u32,
    /// Which of the pool's processes this is.
    pub(crate) process: u64,
    pub(crate) ledger: Ledger,
    pub(crate) killer: Arc<Killer>,
    pub(crate) memory: WorkerMemory,
    connection: Arc<OwnedFd>,
    control: OwnedFd,
    out: Mutex<Out>,
    reader: Mutex<Reader>,
    /// The driving future did not wait for the reader.
    was_missed: AtomicBool,
    driver: AtomicWaker,
    /// The outbox holds something that nobody has begun to send.
    is_waiting: AtomicBool,
    /// The driving future has nothing left to do.
    closed: AtomicBool,
    /// The worker broke the protocol or its connection.
    fault: Mutex<Option<String>>,
    /// Told when the connection is of no more use.
    pub(crate) broken: Notify,
    /// Told when the worker was asked to end.
    pub(crate) ending: Notify,
    /// Told when the worker was sent a SIGTERM.
    pub(crate) stopping: Notify,
    had_tasks: AtomicBool,
    has_answered: AtomicBool,
    is_worn: AtomicBool,
    began: Instant,
    watch: Mutex<Watch>,
    /// Chunks whose element ran out of time.
    overdue: Mutex<HashMap<u64, TimeLimit>>,
}

/// What a link is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) place: usize,
    pub(crate) number: usize,
    pub(crate) pid: u32,
    pub(crate) process: u64,
    pub(crate) connection: Arc<OwnedFd>,
    pub(crate) control: OwnedFd,
    pub(crate) receiver: Receiver,
    pub(crate) ledger: Ledger,
    pub(crate) killer: Arc<Killer>,
    pub(crate) memory: WorkerMemory,
    /// How long an answer is looked for at most.
    pub(crate) spin: Duration,
}

#[derive(Debug, Default)]
struct Out {
    outbox: Outbox<Parcel>,
    /// Somebody is sending.
    writing: bool,
    /// The socket is full, or the rest is much: only the driving future sends.
    blocked: bool,
}

struct Reader {
    receiver: Receiver,
    looks: Looks,
    /// What was taken from the ledger last.
    taken: Vec<u8>,
    ended: bool,
    /// The bytes so far make no sense, and those behind them cannot.
    garbled: bool,
    /// The position up to which the ledger has been taken, where the turn was kept.
    held: Option<u64>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("number", &self.number)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            place,
            number,
            pid,
            process,
            connection,
            control,
            receiver,
            ledger,
            killer,
            memory,
            spin,
        } = parts;
        Self {
            place,
            number,
            pid,
            process,
            ledger,
            killer,
            memory,
            connection,
            control,
            out: Mutex::default(),
            reader: Mutex::new(Reader {
                receiver,
                looks: Looks::new(spin),
                taken: Vec::new(),
                ended: false,
                garbled: false,
                held: None,
            }),
            was_missed: AtomicBool::new(false),
            driver: AtomicWaker::new(),
            is_waiting: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            fault: Mutex::new(None),
            broken: Notify::new(),
            ending: Notify::new(),
            stopping: Notify::new(),
            had_tasks: AtomicBool::new(false),
            has_answered: AtomicBool::new(false),
            is_worn: AtomicBool::new(false),
            began: Instant::now(),
            watch: Mutex::default(),
            overdue: Mutex::default(),
        }
    }

    /// Whether the worker was ever sent a task.
    pub(crate) fn had_tasks(&self) -> bool {
        self.had_tasks.load(Ordering::Relaxed)
    }

    /// Whether the worker has ever answered a task.
    pub(crate) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    pub(crate) fn set_answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }

    /// Whether it has been up for so long that its end is no sign of trouble with its start.
    pub(crate) fn is_old(&self) -> bool {
        self.began.elapsed() > LONG_LIFE
    }

    /// Marks the worker as one that shall be replaced; `true` when it was already.
    pub(crate) fn set_worn(&self) -> bool {
        self.is_worn.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn lock_watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which time was up of a chunk that was stopped for it, once: what is left of it may come back to this worker under the same number.
    pub(crate) fn take_overdue(&self, id: u64) -> Option<TimeLimit> {
        let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        overdue.remove(&id)
    }

    pub(crate) fn set_overdue(&self, id: u64, limit: TimeLimit) {
        let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        overdue.insert(id, limit);
    }

    /// Puts a task into the outbox.
    pub(crate) fn push_task(&self, frame: Frame, id: u64) -> Waiting {
        self.had_tasks.store(true, Ordering::Relaxed);
        self.push(|outbox| match frame {
            Frame::Short(body) => outbox.push_short(kind::TASK, &body, id),
            Frame::Whole(frame) => outbox.push(Parcel::Task(frame), id),
        })
    }

    /// Puts something else into the outbox.
    pub(crate) fn push_message(&self, message: Outgoing, id: u64) -> Waiting {
        self.push(|outbox| outbox.push(Parcel::Message(message), id))
    }

    fn push(&self, push: impl FnOnce(&mut Outbox<Parcel>)) -> Waiting {
        let mut out = self.lock_out();
        let was_empty = out.outbox.is_empty();
        push(&mut out.outbox);
        if was_empty {
            self.is_waiting.store(true, Ordering::SeqCst);
        }
        if out.outbox.waiting() >= BATCH {
            Waiting::Much
        } else if was_empty {
            Waiting::First
        } else {
            Waiting::More
        }
    }

    /// Has the outbox sent soon.
    pub(crate) fn wake(&self) {
        self.driver.wake();
    }

    /// Whether something waits that nobody has begun to send.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::SeqCst)
    }

    /// Sends what waits, as far as the socket takes it. Returns at once if somebody else is at it.
    pub(crate) fn flush(&self) {
        self.write(false);
    }

    fn write(&self, is_driver: bool) -> Sent {
        let mut out = self.lock_out();
        loop {
            if out.writing || (out.blocked && !is_driver) {
                return if out.blocked { Sent::UntilFull } else { Sent::All };
            }
            out.blocked = false;
            if out.outbox.is_empty() {
                return Sent::All;
            }
            // Taken out, so that nobody who has something to add waits for the system call.
            let mut batch = std::mem::take(&mut out.outbox);
            self.is_waiting.store(false, Ordering::Relaxed);
            out.writing = true;
            drop(out);
            let result = batch.write_some(self.connection.as_fd(), SendFlags::DONTWAIT);
            out = self.lock_out();
            out.writing = false;
            self.ledger.ring();
            let sent = match result {
                Ok(true) => {
                    out.outbox.reuse(batch);
                    continue;
                }
                Ok(false) => Sent::Much,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::UntilFull,
                Err(error) => {
                    // What was to be sent is known to the state as sent, and is found there when the worker is
                    // declared lost. A worker that hung up may still have answers on the way.
                    drop(out);
                    if !is_disconnect(&error) {
                        self.set_fault(format!("its connection failed: {error}"));
                        self.broken.notify_one();
                    }
                    return Sent::All;
                }
            };
            batch.append(std::mem::take(&mut out.outbox));
            out.outbox = batch;
            out.blocked = true;
            drop(out);
            if !is_driver {
                self.driver.wake();
            }
            return sent;
        }
    }

    /// Tells the worker something that it hears while it runs a task.
    pub(crate) fn control(&self, message: Control) {
        let mut bytes = Vec::new();
        message_bytes(&message, &mut bytes);
        let slices = [io::IoSlice::new(&bytes)];
        // A worker that does not listen is dealt with by who waits for its answer; one that is gone, by its
        // supervisor.
        crate::wire::transport::send(self.control.as_fd(), &slices, &[], SendFlags::DONTWAIT).ok();
    }

    /// Does something with the reader when nobody else does.
    fn with_reader<T>(&self, act: impl FnOnce(&mut Reader) -> T) -> T {
        let result = act(&mut self.reader.lock().unwrap_or_else(PoisonError::into_inner));
        self.left_reader();
        result
    }

    /// Does something with the reader if nobody else does. `None` where somebody does: then the driving future is woken
    /// when that is over.
    fn try_with_reader<T>(&self, act: impl FnOnce(&mut Reader) -> T) -> Option<T> {
        let try_lock = || match self.reader.try_lock() {
            Ok(reader) => Some(reader),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let reader = try_lock().or_else(|| {
            // Both sides change this word, so that one of them sees what the other did first.
            self.was_missed.swap(true, Ordering::AcqRel);
            try_lock()
        });
        let result = act(&mut *reader?);
        self.left_reader();
        Some(result)
    }

    /// Called without the lock.
    fn left_reader(&self) {
        if self.was_missed.swap(false, Ordering::AcqRel) {
            self.driver.wake();
        }
    }

    /// Handles all that has come by now, for who cannot wait for the driving future.
    pub(crate) fn read_all(&self, shared: &Shared) {
        let read = |reader: &mut Reader| {
            while reader.read(self, shared)? == Some(true) {}
            reader.look(self, shared, || true)
        };
        if let Err(fault) = self.with_reader(read) {
            self.give_up(fault);
        }
    }

    /// Looks for answers where the worker leaves them, until `is_over` or for as long as it has been worth it lately.
    pub(crate) fn look(&self, shared: &Shared, is_over: impl Fn() -> bool) {
        let look = |reader: &mut Reader| match reader.looks.begin() {
            true => reader.look(self, shared, is_over),
            false => Ok(()),
        };
        // Whoever has the lock handles what comes.
        if let Some(Err(fault)) = self.try_with_reader(look) {
            self.give_up(fault);
        }
    }

    /// Sends what waits for several workers and looks for the answers of all of them, until one has left some, `is_over`,
    /// or for as long as it has been worth it lately. `false` when nothing has come; otherwise somebody should look
    /// again soon, for whom the workers leave more.
    pub(crate) fn look_at_all(
        links: &[Arc<Self>],
        shared: &Shared,
        looks: &mut Looks,
        is_over: impl Fn() -> bool,
    ) -> bool {
        let mut watched = Vec::with_capacity(links.len());
        for link in links {
            link.flush();
            // Whoever has the lock handles what comes.
            let mut reader = match link.reader.try_lock() {
                Ok(reader) => reader,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            let begun = reader.begin(link, shared);
            if let Ok(Some(position)) = begun {
                watched.push((link, reader, position));
                continue;
            }
            drop(reader);
            link.left_reader();
            if let Err(fault) = begun {
                link.give_up(fault);
            }
        }
        let glance = || {
            for (link, _, position) in &watched {
                if link.ledger.delivery().see(*position) != Some(*position) {
                    return Some(());
                }
                if link.is_waiting() {
                    link.flush();
                }
            }
            None
        };
        let found = is_over() || (!watched.is_empty() && looks.look(glance).is_some());
        for (link, mut reader, position) in watched {
            let ended = reader.end(link, shared, position, found);
            drop(reader);
            link.left_reader();
            if let Err(fault) = ended {
                link.give_up(fault);
            }
        }
        found
    }

    /// Takes what somebody who looked has left to the driving future, unless somebody looks again.
    fn take_held(&self, shared: &Shared) -> Option<Result<(), String>> {
        self.try_with_reader(|reader| match reader.held {
            Some(_) if !shared.callers.has_lookout() => reader.look(self, shared, || true),
            _ => Ok(()),
        })
    }

    fn give_up(&self, fault: String) {
        self.set_fault(fault);
        self.broken.notify_one();
    }

    /// Takes everything that a dead worker left: in the socket, then in the ledger. Nothing is read after it.
    pub(crate) fn drain(&self, shared: &Shared) {
        let drained = self.with_reader(|reader| {
            let mut messages = Vec::new();
            // Behind garbage nothing can be told from more of it.
            let result = if reader.garbled {
                Ok(())
            } else {
                reader.receive_rest(self, &mut messages)
            };
            reader.ended = true;
            result.and(shared.handle(self, messages))
        });
        if let Err(fault) = drained {
            self.set_fault(fault);
        }
    }

    /// Ends the driving future.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.driver.wake();
    }

    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_fault(&self, fault: String) {
        self.fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(fault);
    }

    fn lock_out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Reads once and handles what came. `Ok(None)` when the socket is empty, `Ok(Some(more))` otherwise.
    fn read(&mut self, link: &Link, shared: &Shared) -> Result<Option<bool>, String> {
        if self.ended {
            return Ok(None);
        }
        let mut messages = Vec::new();
        let received = self.receive(link, &mut messages);
        // Handled under the reader's lock, so that messages keep their order whoever reads.
        self.handled(shared.handle(link, messages))?;
        self.handled(received)
    }

    fn receive(&mut self, link: &Link, messages: &mut Vec<Message>) -> Result<Option<bool>, String> {
        // The handshake may have left some.
        self.take_messages(messages)?;
        let more = match self
            .receiver
            .receive(link.connection.as_fd(), RecvFlags::DONTWAIT)
        {
            Ok(Received::Bytes { more }) => more,
            Ok(Received::WouldBlock) => return Ok(None),
            Ok(Received::End) => {
                self.ended = true;
                return Ok(None);
            }
            Err(error) if is_disconnect(&error) => {
                self.ended = true;
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(format!("it sent garbage ({error})"));
            }
            Err(error) => return Err(format!("its connection failed: {error}")),
        };
        self.take_messages(messages)?;
        Ok(Some(more))
    }

    /// Has the worker leave its answers in the ledger, and takes them from there until `is_over`, or nothing comes for
    /// a while.
    fn look(&mut self, link: &Link, shared: &Shared, is_over: impl Fn() -> bool) -> Result<(), String> {
        if self.ended || self.garbled {
            return Ok(());
        }
        let Some(mut position) = self.begin(link, shared)? else {
            return self.listen(link, shared, is_over);
        };
        let delivery = link.ledger.delivery();
        // Who waits for long does not take the answers of all others for as long.
        for _ in 0..READS {
            if is_over() {
                break;
            }
            let glance = || match delivery.see(position) {
                Some(end) if end == position => None,
                seen => Some(seen),
            };
            match self.looks.look(glance) {
                Some(Some(end)) if self.take(link, shared, position, end)? => position = end,
                Some(_) => return self.listen(link, shared, is_over),
                None => break,
            }
        }
        self.end(link, shared, position, false)
    }

    /// Has the worker leave its answers in the ledger from the position on that this gives.
    fn begin(&mut self, link: &Link, shared: &Shared) -> Result<Option<u64>, String> {
        if self.ended || self.garbled {
            return Ok(None);
        }
        let delivery = link.ledger.delivery();
        // The worker may have taken the turn that was held.
        let held = self
            .held
            .take()
            .filter(|&position| delivery.see(position).is_some());
        let Some(position) = held.or_else(|| delivery.look()) else {
            return Ok(None);
        };
        // Everything in front of it was sent, and comes first. What comes with it the worker has sent since.
        while self.receiver.total() < position {
            let mut messages = Vec::new();
            let received = self.receive(link, &mut messages);
            self.handled(shared.handle(link, messages))?;
            if self.handled(received)?.is_none() {
                return if self.ended {
                    Ok(None)
                } else {
                    self.handled(Err(LEDGER.to_owned()))
                };
            }
        }
        Ok(Some(position))
    }

    /// Takes what is there, and has the worker send what comes later, unless somebody `returns` for it soon.
    fn end(&mut self, link: &Link, shared: &Shared, mut position: u64, returns: bool) -> Result<(), String> {
        let delivery = link.ledger.delivery();
        for _ in 0..READS {
            match delivery.see(position) {
                Some(end) if end > position => {
                    if !self.take(link, shared, position, end)? {
                        return Ok(());
                    }
                    position = end;
                }
                Some(_) if returns => {
                    self.held = Some(position);
                    return Ok(());
                }
                Some(_) if delivery.leave(position) => return Ok(()),
                Some(_) => {}
                None => return Ok(()),
            }
        }
        // Answers come as fast as they are handled: that is the driving future's business, bit by bit.
        self.held = Some(position);
        link.driver.wake();
        Ok(())
    }

    /// Takes what the worker sends, which is quicker than to have the driving future woken for it, unless it is much.
    fn listen(&mut self, link: &Link, shared: &Shared, is_over: impl Fn() -> bool) -> Result<(), String> {
        let delivery = link.ledger.delivery();
        let most = self.receiver.total() + LISTENS;
        let mut looks = std::mem::take(&mut self.looks);
        let result = loop {
            if is_over() || self.ended || self.receiver.total() >= most {
                break Ok(());
            }
            let mut messages = Vec::new();
            let glance = || match self.receive(link, &mut messages) {
                Ok(None) if !self.ended && delivery.is_sending(self.receiver.total()) => None,
                received => Some(received),
            };
            let found = looks.look(glance);
            let handled = self.handled(shared.handle(link, messages));
            match found.map_or(Ok(None), |received| self.handled(received)) {
                Ok(Some(_)) if handled.is_ok() => {}
                received => break handled.and(received.map(drop)),
            }
        };
        self.looks = looks;
        result
    }

    /// Takes answers from the ledger; `false` when the worker is about to send them.
    fn take(&mut self, link: &Link, shared: &Shared, position: u64, end: u64) -> Result<bool, String> {
        self.taken.clear();
        if !link.ledger.copy(position, end, &mut self.taken) {
            // Unless the worker has sent them meanwhile, and used their place again.
            return match link.ledger.delivery().see(position) {
                Some(_) => self.handled(Err(LEDGER.to_owned())),
                None => Ok(false),
            };
        }
        if !link.ledger.delivery().take(position, end) {
            return Ok(false);
        }
        let mut messages = Vec::new();
        let decoded = self
            .receiver
            .inject(&self.taken, &mut messages)
            .map_err(|error| format!("it sent garbage ({error})"));
        self.handled(shared.handle(link, messages))?;
        self.handled(decoded)?;
        Ok(true)
    }

    /// Remembers what makes all further bytes worthless.
    fn handled<T>(&mut self, result: Result<T, String>) -> Result<T, String> {
        self.garbled |= result.is_err();
        result
    }

    /// All that the socket holds, then what the worker had not sent.
    fn receive_rest(&mut self, link: &Link, messages: &mut Vec<Message>) -> Result<(), String> {
        while self.receive(link, messages)?.is_some() {}
        let received = self.receiver.total();
        let unsent = link.ledger.unsent(received);
        self.receiver
            .inject(&unsent, messages)
            .map_err(|error| format!("it sent garbage ({error})"))
    }

    fn take_messages(&mut self, messages: &mut Vec<Message>) -> Result<(), String> {
        while let Some(message) = self
            .receiver
            .next()
            .map_err(|error| format!("it sent garbage ({error})"))?
        {
            messages.push(message);
        }
        Ok(())
    }
}

/// The connection as a reactor watches it. Only while the socket is full is it told when there is room: each frame that
/// the worker takes out would wake the driving future otherwise.
#[derive(Debug)]
pub(crate) struct Watching {
    watched: Watched,
    for_room: bool,
}

/// Has `runtime` watch the connection, or `fallback` where that runtime was built without I/O.
pub(crate) fn watch_on<'a>(
    link: &Link,
    runtime: &'a Handle,
    fallback: &'a Handle,
) -> io::Result<(Watching, &'a Handle)> {
    // Tokio has no other way to ask than to panic.
    let watching = catch_unwind(AssertUnwindSafe(|| {
        let _entered = runtime.enter();
        Watching::new(link)
    }));
    match watching {
        Ok(watching) => Ok((watching?, runtime)),
        Err(payload) => {
            drop_quietly(payload);
            let _entered = fallback.enter();
            Ok((Watching::new(link)?, fallback))
        }
    }
}

impl Watching {
    fn new(link: &Link) -> io::Result<Self> {
        Ok(Self {
            watched: watch(&link.connection, Interest::READABLE)?,
            for_room: false,
        })
    }

    /// Has the reactor tell of room or not. It tells at once of what is there already.
    fn for_room(mut self, link: &Link, for_room: bool) -> io::Result<Self> {
        if self.for_room != for_room {
            let interest = if for_room {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            // A descriptor is watched once at a time.
            drop(self.watched);
            self.watched = watch(&link.connection, interest)?;
            self.for_room = for_room;
        }
        Ok(self)
    }
}

/// Sends what the socket did not take at once and handles what comes, until the connection ends.
pub(crate) async fn drive(watching: Watching, link: Arc<Link>, shared: Arc<Shared>) {
    let mut watching = Some(watching);
    let result = poll_fn(|context| poll_link(&mut watching, &link, &shared, context)).await;
    if let Err(fault) = result {
        link.set_fault(fault);
    }
    link.broken.notify_one();
}

fn poll_link(
    watching: &mut Option<Watching>,
    link: &Link,
    shared: &Shared,
    context: &mut Context<'_>,
) -> Poll<Result<(), String>> {
    let failed = |error: io::Error| Poll::Ready(Err(format!("its connection failed: {error}")));
    // Registered before anything is looked at, so that no sign is missed.
    link.driver.register(context.waker());
    if link.closed.load(Ordering::Acquire) {
        return Poll::Ready(Ok(()));
    }
    loop {
        let sent = link.write(true);
        let is_full = sent == Sent::UntilFull;
        if sent == Sent::Much {
            let_others(context);
        }
        let Some(before) = watching.take() else {
            return Poll::Ready(Ok(()));
        };
        match before.for_room(link, is_full) {
            Ok(now) => *watching = Some(now),
            Err(error) => return failed(error),
        }
        let Some(Watching { watched, .. }) = watching.as_ref().filter(|_| is_full) else {
            break;
        };
        match watched.poll_write_ready(context) {
            Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
            Poll::Ready(Err(error)) => return failed(error),
            Poll::Pending => break,
        }
    }
    let Some(Watching { watched, .. }) = watching else {
        return Poll::Ready(Ok(()));
    };
    match link.take_held(shared) {
        Some(Ok(())) => {}
        Some(Err(fault)) => return Poll::Ready(Err(fault)),
        None => return Poll::Pending,
    }
    for _ in 0..READS {
        let mut guard = match watched.poll_read_ready(context) {
            Poll::Ready(Ok(guard)) => guard,
            Poll::Ready(Err(error)) => return failed(error),
            Poll::Pending => return Poll::Pending,
        };
        let read = link.try_with_reader(|reader| Ok((reader.read(link, shared)?, reader.ended)));
        match read {
            // Whoever reads has this woken.
            None => return Poll::Pending,
            Some(Ok((_, true))) => return Poll::Ready(Ok(())),
            // Less than there was room for: the socket is empty, or will tell.
            Some(Ok((Some(false) | None, _))) => guard.clear_ready(),
            Some(Ok((Some(true), _))) => {}
            Some(Err(fault)) => return Poll::Ready(Err(fault)),
        }
    }
    let_others(context);
    Poll::Pending
}

/// Has this future polled again when others have had their turn. A runtime of one thread looks at its sockets only rarely
/// while somebody is awake, but always for one that yields; where there are more threads, one of them waits for sockets.
fn let_others(context: &mut Context<'_>) {
    if Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread) {
        let yielded = pin!(tokio::task::yield_now()).poll(context);
        debug_assert!(yielded.is_pending());
    } else {
        context.waker().wake_by_ref();
    }
}
