//! Panics of tasks, caught with all that is known of them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::RemotePanic;
use crate::wire::codec::{panic_message, truncate};

/// What is kept of a backtrace, in bytes.
const LONGEST_BACKTRACE: usize = 512 * 1024;

thread_local! {
    /// Where the last panic on this thread began, for the payload alone does not say.
    static LAST: RefCell<Option<(Place, Option<String>)>> = const { RefCell::new(None) };
    /// Whether there is one. Looked at for every element of a chunk, so it is apart from what must be freed.
    static IS_NOTED: Cell<bool> = const { Cell::new(false) };
}

/// A panic's location, kept beyond the hook.
#[derive(Clone, Debug)]
struct Place {
    file: String,
    line: u32,
    column: u32,
}

/// Notes every panic's place and backtrace on its way through the hook. What the hook did before it still does: the
/// message goes to standard error as well.
pub(super) fn install_hook() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    // A copy of a template has it already.
    if INSTALLED.swap(true, Ordering::Relaxed) {
        return;
    }
    let before = take_hook();
    set_hook(Box::new(move |info| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| {
            let mut text = backtrace.to_string();
            truncate(&mut text, LONGEST_BACKTRACE);
            text
        });
        let place = info.location().map(|location| Place {
            file: location.file().to_owned(),
            line: location.line(),
            column: location.column(),
        });
        // A panic while the thread's locals are torn down is nobody's task.
        let noted = LAST.try_with(|last| {
            if let Ok(mut last) = last.try_borrow_mut() {
                *last = place.map(|place| (place, backtrace));
                IS_NOTED.set(true);
            }
        });
        noted.ok();
        before(info);
    }));
}

/// Runs a task's code.
pub(super) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, RemotePanic> {
    forget();
    catch_unwind(AssertUnwindSafe(run)).map_err(describe)
}

/// Before a task's code runs: an earlier panic, which such code caught itself, is not the one that is caught here.
#[inline]
pub(super) fn forget() {
    if IS_NOTED.replace(false) {
        LAST.take();
    }
}

/// What is known of a panic that this thread has just caught.
pub(super) fn describe(payload: Box<dyn std::any::Any + Send>) -> RemotePanic {
    let last = LAST.take();
    let mut panic = RemotePanic::new(panic_message(payload), None, None);
    if let Some((place, backtrace)) = last {
        panic.file = place.file;
        panic.line = place.line;
        panic.column = place.column;
        panic.backtrace = backtrace;
    }
    panic
}
