//! File descriptors as parts of values.
//!
//! While a value is encoded, the handles in it leave their descriptors here and write only a number; while it is
//! decoded, they fetch them by that number.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frame::MAX_FDS;

/// No value is encoded.
const NOTHING: usize = usize::MAX;

thread_local! {
    /// Descriptors that the value that is encoded has left so far; [`NOTHING`] while none is encoded. Apart from the
    /// descriptors themselves, and a plain number, for most values have none, and are small.
    static LEFT: Cell<usize> = const { Cell::new(NOTHING) };
    /// Those of values whose encoding is not over, the innermost last.
    static OUTGOING: RefCell<Vec<OwnedFd>> = const { RefCell::new(Vec::new()) };
    static INCOMING: RefCell<Vec<Option<OwnedFd>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `encode` and gives back the descriptors that the handles in the value left.
#[inline]
pub(crate) fn collect<T>(encode: impl FnOnce() -> T) -> (T, Vec<OwnedFd>) {
    let before = LEFT.replace(0);
    let value = encode();
    let fds = match LEFT.replace(before) {
        NOTHING | 0 => Vec::new(),
        left => take(left),
    };
    (value, fds)
}

/// Runs `encode` for a value that must not leave descriptors: `None`, and they are closed, if it does.
#[inline]
pub(crate) fn refuse<T>(encode: impl FnOnce() -> T) -> Option<T> {
    let before = LEFT.replace(0);
    let value = encode();
    match LEFT.replace(before) {
        NOTHING | 0 => Some(value),
        left => {
            drop(take(left));
            None
        }
    }
}

#[cold]
fn take(left: usize) -> Vec<OwnedFd> {
    OUTGOING.with_borrow_mut(|fds| fds.split_off(fds.len().saturating_sub(left)))
}

/// Runs `decode` with descriptors for the handles in the value to take. What is not taken is closed.
pub(crate) fn provide<T>(fds: Vec<OwnedFd>, decode: impl FnOnce() -> T) -> T {
    if fds.is_empty() {
        return decode();
    }
    let before = INCOMING.replace(fds.into_iter().map(Some).collect());
    let value = decode();
    INCOMING.replace(before);
    value
}

/// A file descriptor as an argument or a result: a file, a listening socket, an accepted connection.
///
/// Encoding it duplicates the descriptor into the frame; the other side receives a descriptor of its own for the
/// same open file. It can only be part of a task's argument or result: elsewhere its `Serialize` is an error.
///
/// A value may hold up to 253 of them. In the results of [`map`](crate::Pool::map) and its kin, which may travel
/// together, they are an [`Encode`](crate::TaskErrorKind::Encode) error.
///
/// # Platform
///
/// Works where parent and worker share a machine.
///
/// # Examples
///
/// ```
/// use std::io::Read;
/// use procession::{Fd, Pool};
///
/// fn read_all(file: Fd) -> std::io::Result<usize> {
///     Ok(std::fs::File::from(file.into_inner()).read_to_end(&mut Vec::new())?)
/// }
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::builder().workers(1).build().await?;
/// let file = std::fs::File::open("/proc/self/stat")?;
/// let length = pool.apply(|file: Fd| read_all(file).ok(), Fd::from(file)).await?;
/// assert!(length.is_some_and(|length| length > 0));
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Fd(OwnedFd);

impl Fd {
    /// A second descriptor for the same open file.
    ///
    /// # Errors
    ///
    /// What the system says: that there are too many, say.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Gives up the descriptor.
    #[must_use]
    pub fn into_inner(self) -> OwnedFd {
        self.0
    }
}

impl<T: Into<OwnedFd>> From<T> for Fd {
    fn from(fd: T) -> Self {
        Self(fd.into())
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Fd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let copy = self.0.try_clone().map_err(|error| {
            let number = self.0.as_raw_fd();
            S::Error::custom(format_args!(
                "file descriptor {number} cannot be duplicated: {error}"
            ))
        })?;
        let index = match LEFT.get() {
            NOTHING => Err("a file descriptor can only travel in an argument or a result"),
            left if left >= MAX_FDS => Err("more than 253 file descriptors in one value"),
            left => {
                OUTGOING.with_borrow_mut(|fds| fds.push(copy));
                LEFT.set(left + 1);
                Ok(left as u32)
            }
        };
        index.map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)? as usize;
        INCOMING
            .with_borrow_mut(|fds| fds.get_mut(index).and_then(Option::take))
            .map(Self)
            .ok_or_else(|| {
                D::Error::custom(
                    "a file descriptor did not arrive; is there room for more in this process (ulimit -n)?",
                )
            })
    }
}
