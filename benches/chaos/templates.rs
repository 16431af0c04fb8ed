//! Which processes are templates: each enters itself into a file without a name that the parent holds.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::random::Random;
use crate::{Error, leaks};

/// Bytes of a process's number in the file.
const ENTRY: u64 = 4;
/// Older ones are hardly there any more.
const LATEST: u64 = 16;

/// The parent's side.
#[derive(Debug)]
pub(crate) struct Templates {
    file: File,
}

impl Templates {
    pub(crate) fn new() -> Result<Self, Error> {
        let file = File::from(memfd_create("chaos-templates", MemfdFlags::CLOEXEC)?);
        Ok(Self { file })
    }

    /// What a template's initializer is given.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Kills one of those that were started last, if it is there still.
    pub(crate) fn kill_one(&self, random: &mut Random) -> bool {
        let entries = self.file.metadata().map_or(0, |file| file.len()) / ENTRY;
        if entries == 0 {
            return false;
        }
        let entry = random.within(entries.saturating_sub(LATEST)..entries);
        let mut number = [0; ENTRY as usize];
        if self.file.read_exact_at(&mut number, entry * ENTRY).is_err() {
            return false;
        }
        let template = Pid::from_raw(i32::from_le_bytes(number));
        let Some(Ok(process)) = template.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
            return false;
        };
        // Looked at when the descriptor is open: the number may be another's by now.
        let pid = u32::from_le_bytes(number);
        let is_template = leaks::parent_of(pid) == Some(std::process::id())
            && std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.ends_with("template\n"));
        is_template && pidfd_send_signal(process, Signal::KILL).is_ok()
    }
}

/// Initializer of a template.
pub(crate) fn enter(path: String) -> Result<(), String> {
    let file = OpenOptions::new().append(true).open(path);
    let entered = file.and_then(|mut file| file.write_all(&std::process::id().to_le_bytes()));
    entered.map_err(|error| error.to_string())
}
