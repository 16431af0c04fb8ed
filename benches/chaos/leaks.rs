//! What a process holds, and what it has left behind.

use std::collections::BTreeMap;
use std::fs;

use crate::staff::{MARK, mark};

/// Descriptors and threads, by what they are, with their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) files: BTreeMap<String, usize>,
    pub(crate) threads: BTreeMap<String, usize>,
}

impl Held {
    pub(crate) fn now() -> Self {
        let mut held = Self::default();
        for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                let target = target.to_string_lossy().into_owned();
                // Sockets and pipes have numbers that are of no account.
                let kind = target.split(":[").next().unwrap_or_default();
                // The directory that is being read.
                if !kind.ends_with("/fd") {
                    *held.files.entry(kind.to_owned()).or_default() += 1;
                }
            }
        }
        for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            if let Ok(name) = fs::read_to_string(entry.path().join("comm")) {
                *held.threads.entry(name.trim().to_owned()).or_default() += 1;
            }
        }
        held
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.files.values().sum(), self.threads.values().sum())
    }

    /// What there is more of than there was.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        let mut beyond = Vec::new();
        for (what, now, before) in [
            ("descriptor", &self.files, &before.files),
            ("thread", &self.threads, &before.threads),
        ] {
            for (name, &count) in now {
                let was = before.get(name).copied().unwrap_or(0);
                if count > was {
                    beyond.push(format!("{count} {what}s '{name}' where {was} were"));
                }
            }
        }
        beyond
    }
}

/// Children of this process, zombies too, and whatever carries its mark, with what they are.
pub(crate) fn processes() -> Vec<String> {
    let mark = format!("{MARK}={}", mark());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let is_child = parent_of(pid) == Some(std::process::id());
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_marked = environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == mark.as_bytes());
        if is_child || is_marked {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            found.push(stat.split(' ').take(5).collect::<Vec<_>>().join(" "));
        }
    }
    found
}

pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; state and parent follow it.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Resident memory of this process, in MiB.
pub(crate) fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    (pages * rustix::param::page_size() as u64) >> 20
}
