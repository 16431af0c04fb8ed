//! Ctrl-C and SIGTERM: the first drains pools, the second kills them, the third ends the program.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::pool::dispatch::{End, Shared};
use crate::pool::handle::Pool;
use crate::runtime;
use crate::shared::dispositions::{Disposition, disposition, suffer};

/// A request to end: from a terminal, or from who supervises the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interrupt {
    /// SIGINT, which is Ctrl-C on a terminal.
    Interrupt,
    /// SIGTERM, which is what supervisors of services and `kill` send.
    Terminate,
}

impl Interrupt {
    const ALL: [Self; 2] = [Self::Interrupt, Self::Terminate];

    fn signal(self) -> Signal {
        match self {
            Self::Interrupt => Signal::INT,
            Self::Terminate => Signal::TERM,
        }
    }

    /// The signal's number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.signal().as_raw()
    }

    /// The exit code by which shells know that a program was ended so: 130 for SIGINT, 143 for SIGTERM.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }

    /// Ends this process as if it had never heard of signals.
    fn end_process(self) -> ! {
        suffer(self.signal());
        // Process 1 of a container does not die of a signal that it does not handle.
        std::process::exit(self.exit_code().into())
    }
}

/// The signal's name.
impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// How pools ended after an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// The first signal.
    pub interrupt: Interrupt,
    /// Whether every task that had been accepted ended by itself. `false` after a second signal, and where a pool was
    /// terminated for another reason; a task that ended with an error has ended.
    pub all_done: bool,
}

impl Pool {
    /// On the first SIGINT, which is Ctrl-C on a terminal, or SIGTERM, [closes](Self::close) the pool, so that tasks that
    /// were accepted are done; on the second, [terminates](Self::terminate) it; the third ends the program.
    ///
    /// The program goes on, and decides what follows: it asks the [`Interrupts`] that this gives. They must be held:
    /// when they are dropped, signals do again what they did. See [`signals`](crate::signals) for what is installed,
    /// and [`Interrupts::builder`] for several pools.
    ///
    /// # Errors
    ///
    /// The library's runtime cannot be started, or a handler not be installed.
    pub fn drain_on_interrupt(&self) -> io::Result<Interrupts> {
        Interrupts::builder().drain(self).listen()
    }
}

/// What listens for SIGINT and SIGTERM, and passes them on to pools.
///
/// A handle: clones share it, and so do the futures that it gives. It does not keep pools alive. It listens on the
/// library's own thread, so that a runtime that blocks, or none, makes no difference.
///
/// When the last clone is dropped, a signal does again what it did before the first of these was made: if that was to
/// end the program, it does; if there was a handler, that alone is called, as it has been all the time.
///
/// # Examples
///
/// A service that answers the requests it has on the first signal, and not on the second:
///
/// ```no_run
/// use procession::Pool;
/// use procession::signals::Interrupts;
///
/// # async fn serve(stop: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> { Ok(()) }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::new().await?;
/// // Requests that have come may still have tasks: the pool is closed when they have been answered.
/// let interrupts = Interrupts::builder().terminate(&pool).listen()?;
/// let first = interrupts.first();
/// serve(async { drop(first.await) }).await?;
/// pool.close();
/// let drained = interrupts.finished().await;
/// println!("{}, all done: {}", drained.interrupt, drained.all_done);
/// # Ok(()) }
/// ```
///
/// It goes on counting as long as it is held, also when its pools have ended: drop it then, or its next signal ends the
/// program, whatever other pools are about.
#[derive(Clone, Debug)]
#[must_use = "signals are passed on to pools as long as this is held"]
pub struct Interrupts {
    inner: Arc<Inner>,
}

impl Interrupts {
    /// For several pools, and for pools that the program closes itself.
    pub fn builder() -> InterruptsBuilder {
        InterruptsBuilder::default()
    }

    /// The first signal, if one has come.
    #[must_use]
    pub fn received(&self) -> Option<Interrupt> {
        self.inner.heard.borrow().first
    }

    /// Waits for the first signal. Pools have been closed then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. The future shares in the handle, and may be polled on any runtime or none.
    pub fn first(&self) -> impl Future<Output = Interrupt> + Send + Sync + use<> {
        let inner = Arc::clone(&self.inner);
        async move { inner.first().await }
    }

    /// Waits for the second signal. Pools have been told to end then.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. The future shares in the handle, and may be polled on any runtime or none.
    pub fn second(&self) -> impl Future<Output = Interrupt> + Send + Sync + use<> {
        let inner = Arc::clone(&self.inner);
        async move { inner.second().await }
    }

    /// Waits for the first signal and then for the end of all pools: that their workers have been reaped and their
    /// callbacks have run, but for those that block. A pool that the signal does not close must be closed by somebody.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. The future shares in the handle, and may be polled on any runtime or none.
    pub fn finished(&self) -> impl Future<Output = Drained> + Send + use<> {
        let inner = Arc::clone(&self.inner);
        async move {
            let interrupt = inner.first().await;
            let mut all_done = true;
            for shared in inner.drains.iter().chain(&inner.terminates) {
                shared.all_gone().await;
                all_done &= shared.lock().end.is_none();
                shared.callbacks.settled().await;
            }
            Drained { interrupt, all_done }
        }
    }
}

/// Which pools listen to signals, and how.
#[derive(Clone, Debug, Default)]
#[must_use = "it does nothing until `listen`"]
pub struct InterruptsBuilder {
    drains: Vec<Arc<Shared>>,
    terminates: Vec<Arc<Shared>>,
}

impl InterruptsBuilder {
    /// Closes `pool` on the first signal and terminates it on the second.
    pub fn drain(mut self, pool: &Pool) -> Self {
        self.drains.push(Arc::clone(pool.shared()));
        self
    }

    /// Terminates `pool` on the second signal. On the first it stays open, until the program closes it: a service has
    /// requests to answer that have not submitted their tasks yet.
    pub fn terminate(mut self, pool: &Pool) -> Self {
        self.terminates.push(Arc::clone(pool.shared()));
        self
    }

    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// The library's runtime cannot be started, or a handler not be installed.
    pub fn listen(self) -> io::Result<Interrupts> {
        let Self { drains, terminates } = self;
        let inner = Arc::new(Inner {
            drains,
            terminates,
            heard: watch::channel(Heard::default()).0,
        });
        listen(&inner)?;
        Ok(Interrupts { inner })
    }
}

#[derive(Debug)]
struct Inner {
    drains: Vec<Arc<Shared>>,
    terminates: Vec<Arc<Shared>>,
    heard: watch::Sender<Heard>,
}

/// The signals that have come.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    first: Option<Interrupt>,
    second: Option<Interrupt>,
}

impl Inner {
    /// Passes a signal on. `true` when there is nothing left that it could do.
    fn hear(&self, interrupt: Interrupt) -> bool {
        let before = *self.heard.borrow();
        if before.second.is_some() {
            return true;
        }
        // Pools first: whoever waits for the signal may look at them.
        if before.first.is_none() {
            self.drains.iter().for_each(|pool| pool.close());
        } else {
            let pools = self.drains.iter().chain(&self.terminates);
            pools.for_each(|pool| pool.end(End::Terminated));
        }
        self.heard.send_modify(|heard| match heard.first {
            None => heard.first = Some(interrupt),
            Some(_) => heard.second = Some(interrupt),
        });
        false
    }

    async fn first(&self) -> Interrupt {
        wait(&self.heard, |heard| heard.first).await
    }

    async fn second(&self) -> Interrupt {
        wait(&self.heard, |heard| heard.second).await
    }
}

async fn wait(heard: &watch::Sender<Heard>, which: fn(&Heard) -> Option<Interrupt>) -> Interrupt {
    let mut changes = heard.subscribe();
    loop {
        if let Some(interrupt) = which(&changes.borrow_and_update()) {
            return interrupt;
        }
        // The sender is borrowed here, and so there is one.
        changes.changed().await.ok();
    }
}

/// What the whole process listens with.
struct Listener {
    /// Signals that are listened for. This is never taken back, for tokio does not uninstall its handler.
    interrupts: Vec<Interrupt>,
    listening: Vec<Weak<Inner>>,
}

static LISTENER: Mutex<Listener> = Mutex::new(Listener {
    interrupts: Vec::new(),
    listening: Vec::new(),
});

/// Has `inner` told of signals.
fn listen(inner: &Arc<Inner>) -> io::Result<()> {
    let own = runtime::handle()?;
    let mut listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    for interrupt in Interrupt::ALL {
        let before = disposition(interrupt.signal());
        if listener.interrupts.contains(&interrupt) || before == Disposition::Ignored {
            continue;
        }
        let entered = own.enter();
        let mut signals = signal(SignalKind::from_raw(interrupt.number()))?;
        drop(entered);
        own.spawn(async move {
            while signals.recv().await.is_some() {
                pass_on(interrupt, before);
            }
        });
        listener.interrupts.push(interrupt);
    }
    listener.listening.retain(|inner| inner.strong_count() > 0);
    listener.listening.push(Arc::downgrade(inner));
    Ok(())
}

/// A signal has come, which would have done what `before` says.
fn pass_on(interrupt: Interrupt, before: Disposition) {
    let listening: Vec<Arc<Inner>> = {
        let listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
        listener.listening.iter().filter_map(Weak::upgrade).collect()
    };
    let nobody = listening.is_empty() && before == Disposition::Default;
    // Every one of them is told, whatever another has to say.
    let enough = listening.iter().filter(|inner| inner.hear(interrupt)).count();
    if nobody || enough > 0 {
        interrupt.end_process();
    }
}
