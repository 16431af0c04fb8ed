//! How often tasks have been started, counted where no worker's death can undo it: in a file without a name that the
//! parent holds, one byte for each task, used again in turn.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;

use crate::Error;

/// Tasks whose starts are remembered at a time.
pub(crate) const SLOTS: u64 = 1 << 20;

/// The lowest number of the file's descriptor in a worker.
const PRIVATE: i32 = 100;

/// Where workers find the file.
pub(crate) const VARIABLE: &str = "CHAOS_STARTS";

pub(crate) fn slot(id: u64) -> u64 {
    id % SLOTS
}

/// The parent's side.
#[derive(Debug)]
pub(crate) struct Starts {
    file: File,
}

impl Starts {
    pub(crate) fn new() -> Result<Self, Error> {
        let file = File::from(memfd_create("chaos-starts", MemfdFlags::CLOEXEC)?);
        file.set_len(SLOTS)?;
        Ok(Self { file })
    }

    /// What workers open.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn read(&self, slot: u64) -> u8 {
        let mut count = [0];
        match self.file.read_exact_at(&mut count, slot) {
            Ok(()) => count[0],
            Err(_) => u8::MAX,
        }
    }

    pub(crate) fn clear(&self, slot: u64) -> bool {
        self.file.write_all_at(&[0], slot).is_ok()
    }
}

static FILE: Mutex<Option<File>> = Mutex::new(None);

/// In a worker: the task has been started, once more.
pub(crate) fn record(id: u64) {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() {
        *file = std::env::var(VARIABLE)
            .ok()
            .and_then(|path| OpenOptions::new().read(true).write(true).open(path).ok())
            // Out of the way: in the place of a standard stream that a task has closed, it would be printed to.
            .and_then(|file| fcntl_dupfd_cloexec(file, PRIVATE).ok())
            .map(File::from);
    }
    let mut count = [0];
    if let Some(file) = &*file
        && file.read_exact_at(&mut count, slot(id)).is_ok()
    {
        // Two at once do not happen, for a second start comes after the first one's worker has died.
        file.write_all_at(&[count[0].saturating_add(1)], slot(id))
            .unwrap_or_default();
    }
}

/// In a worker: somebody closes the file's descriptor, whatever its number.
pub(crate) fn let_go() {
    if let Some(file) = FILE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _number = file.into_raw_fd();
    }
}
