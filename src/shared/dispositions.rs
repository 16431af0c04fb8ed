//! What signals do to this process: the few calls of the C library that nothing safe offers.

#![expect(
    unsafe_code,
    reason = "what a signal does can be asked and set through the C library only"
)]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::Signal;

/// The C library's `struct sigaction`, and room to spare. It is copied from there and back as a whole, or all zeros
/// but for the handler, which comes first in glibc and in musl, and perhaps the flags; zeros are an empty mask.
#[repr(C, align(16))]
struct Action([usize; 64]);

/// `sigset_t`: signal `n` is bit `n - 1` of the first word.
#[repr(C)]
struct Mask([u64; 16]);

const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
/// Where the flags are among the words of an [`Action`]: behind the handler and a mask of 1024 bits. They are the low
/// half of a word, for the machine is little endian.
const FLAGS: usize = 17;
const SA_SIGINFO: usize = 4;
/// The code of a signal that the kernel sends by itself.
const SI_KERNEL: c_int = 0x80;
const SIG_UNBLOCK: c_int = 1;
const SIG_SETMASK: c_int = 2;
/// The last of the real-time signals.
const LAST: c_int = 64;

unsafe extern "C" {
    fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int;
    fn pthread_sigmask(how: c_int, new: *const Mask, old: *mut Mask) -> c_int;
    fn raise(signal: c_int) -> c_int;
}

/// What a signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    Default,
    Ignored,
    Handled,
}

/// What `signal` does now.
pub(crate) fn disposition(signal: Signal) -> Disposition {
    action(signal.as_raw()).map_or(Disposition::Default, |action| action.disposition())
}

impl Action {
    fn new(handler: usize) -> Self {
        let mut words = [0; 64];
        words[0] = handler;
        Self(words)
    }

    fn disposition(&self) -> Disposition {
        match self.0[0] {
            SIG_DFL => Disposition::Default,
            SIG_IGN => Disposition::Ignored,
            _ => Disposition::Handled,
        }
    }
}

/// The action for a signal; `None` for one that the C library keeps to itself.
fn action(signal: c_int) -> Option<Action> {
    let mut action = Action::new(SIG_DFL);
    // SAFETY: nothing is set, and what is written fits, for an `Action` is larger than the C library's.
    let result = unsafe { sigaction(signal, ptr::null(), &raw mut action) };
    (result == 0).then_some(action)
}

/// Sets what a signal does. `action` is the default, to ignore it, or what was there before.
fn set(signal: c_int, action: &Action) {
    // SAFETY: an `Action` is as large as the C library's at least, and `action` names no code that was not installed
    // for this signal before. It can fail for signals only that the C library keeps to itself, which changes nothing.
    unsafe { sigaction(signal, ptr::from_ref(action), ptr::null_mut()) };
}

/// Gives a worker the dispositions that tasks count on, whatever its parent was started with, and blocks nothing.
///
/// What the parent ignores is inherited through exec, as is what the thread blocks that starts the worker. A worker
/// that ignores SIGTERM cannot be asked to end, and one that ignores SIGCHLD loses the exit statuses of what its tasks
/// start. SIGPIPE is left, which Rust ignores for itself; and so is what has a handler, which somebody installed on
/// purpose.
///
/// A worker is in the background of the terminal, if there is one. There the terminal would stop it for reading, and
/// after `stty tostop` for writing, and nobody would see why it hangs. Ignored, the one is an error and the other
/// goes through, as it does for the program in the foreground that it is a part of.
pub(crate) fn reset_for_worker() {
    let nothing = Mask([0; 16]);
    // SAFETY: it is as large as the C library's `sigset_t`.
    unsafe { pthread_sigmask(SIG_SETMASK, &raw const nothing, ptr::null_mut()) };
    let terminal = [Signal::TTIN.as_raw(), Signal::TTOU.as_raw()];
    for signal in 1..=LAST {
        let Some(disposition) = action(signal).map(|action| action.disposition()) else {
            continue;
        };
        if terminal.contains(&signal) {
            if disposition == Disposition::Default {
                set(signal, &Action::new(SIG_IGN));
            }
        } else if disposition == Disposition::Ignored && signal != Signal::PIPE.as_raw() {
            set(signal, &Action::new(SIG_DFL));
        }
    }
}

/// The parent of this worker, before anything happened to it.
static PARENT: AtomicI32 = AtomicI32::new(0);

/// Lets this process outlive the moment of its parent's end. Where one of its group is stopped then, the kernel sends
/// the group a SIGHUP: a worker must not die of it before it has seen to what left the group, and a process of its own
/// must not die of it at all. A SIGHUP that somebody sends does what it always does, then and later.
pub(crate) fn outlive_parent() {
    let hangup = Signal::HUP.as_raw();
    if action(hangup).is_none_or(|action| action.disposition() != Disposition::Default) {
        return;
    }
    PARENT.store(parent(), Ordering::Relaxed);
    let handler: extern "C" fn(c_int, *const [c_int; 3], *mut c_void) = hang_up;
    let mut action = Action::new(handler as usize);
    action.0[FLAGS] = SA_SIGINFO;
    // SAFETY: an `Action` is as large as the C library's; the handler has the type that one with this flag has, and
    // calls nothing but what may be called in one.
    unsafe { sigaction(hangup, &raw const action, ptr::null_mut()) };
}

extern "C" fn hang_up(_: c_int, info: *const [c_int; 3], _: *mut c_void) {
    // SAFETY: what the kernel gives begins with the signal, an error and a code.
    let [_, _, code] = unsafe { info.read() };
    let is_of_parents_end = code == SI_KERNEL && parent() != PARENT.load(Ordering::Relaxed);
    if !is_of_parents_end {
        suffer(Signal::HUP);
    }
}

fn parent() -> i32 {
    rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid)
}

/// Lets `signal` do to this process what it does to one that never heard of it, and returns if that is nothing, or
/// when the process goes on.
pub(crate) fn suffer(signal: Signal) {
    let signal = signal.as_raw();
    let Some(before) = action(signal) else { return };
    set(signal, &Action::new(SIG_DFL));
    let mut mask = Mask([0; 16]);
    mask.0[0] = 1 << (signal - 1);
    let mut blocked = Mask([0; 16]);
    // SAFETY: both are as large as the C library's `sigset_t`.
    unsafe { pthread_sigmask(SIG_UNBLOCK, &raw const mask, &raw mut blocked) };
    // To this thread, so that it is over when the call returns.
    // SAFETY: the default actions call nothing of this program.
    unsafe { raise(signal) };
    // SAFETY: as above; this is what the C library has given.
    unsafe { pthread_sigmask(SIG_SETMASK, &raw const blocked, ptr::null_mut()) };
    set(signal, &before);
}
