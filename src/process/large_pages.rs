//! Large pages for what a template loads.
//!
//! To fork a process, the system copies an entry for each of its pages, and takes each back at the copy's end: for 200
//! MiB in pages of 4 KiB that takes far longer than all else together. In pages of 2 MiB it is nothing, they are quicker
//! to fill and to read, and a copy that writes to one still gets 4 KiB of its own. glibc asks for them where it is told
//! to in the environment of a program that starts, and nowhere later.
//!
//! Up to version 2.36 at least, it then compares what the system's file says together with a byte behind it that nobody
//! has set, and every other program is none the wiser. Such a one is executed again.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::spawn::Environment;
use crate::shared::environment;

/// What glibc reads.
const VARIABLE: &str = "GLIBC_TUNABLES";
const OPTION: &str = "glibc.malloc.hugetlb";
/// As nobody else writes it. Each further try has one more 0 in front of the 1.
const ASKED: &str = "glibc.malloc.hugetlb=0x1";
const TRIES: usize = 10;
/// How a program is executed that may be gone from where it was.
const SELF: &str = "/proc/self/exe";

/// Asks for large pages, where the user has not said whether there shall be any.
pub(super) fn ask_for(environment: &mut Environment) {
    let value = match environment.get(VARIABLE) {
        None => ASKED.to_owned(),
        Some(before) => match before.to_str() {
            Some(before) if !before.contains(OPTION) => format!("{before}:{ASKED}"),
            _ => return,
        },
    };
    environment.set(VARIABLE, value);
}

/// Whether the first use of free memory is slow, because a hypervisor has taken it back meanwhile: large pages are made
/// of what has been free for long, small ones of what was just given back.
pub(super) fn come_late() -> bool {
    /// Free page reporting, by the Virtual I/O Device specification, 5.5.3.
    const REPORTING: usize = 5;
    let devices = fs::read_dir("/sys/bus/virtio/drivers/virtio_balloon");
    devices.into_iter().flatten().flatten().any(|device| {
        let features = fs::read(device.path().join("features"));
        features.is_ok_and(|features| features.get(REPORTING) == Some(&b'1'))
    })
}

/// What stands before the wish in the variable's value, and how many tries there were; `None` where nobody has asked.
fn asked(value: &str) -> Option<(&str, usize)> {
    let (before, number) = value.rsplit_once(OPTION)?;
    let zeros = number.strip_prefix("=0x")?.strip_suffix('1')?;
    zeros
        .bytes()
        .all(|byte| byte == b'0')
        .then_some((before, zeros.len()))
}

/// Executes this program again where it was asked for large pages and glibc has not understood. For the first thing that
/// a template does: whatever else it has done is lost.
pub(crate) fn insist() {
    let Ok(value) = std::env::var(VARIABLE) else {
        return;
    };
    if !matches!(asked(&value), Some((_, tries)) if tries < TRIES) || !is_deaf() {
        return;
    }
    let Some(next) = value.strip_suffix('1') else {
        return;
    };
    // As the system has them: a program that the dynamic loader was called with sees its own alone.
    let Ok(line) = fs::read("/proc/self/cmdline") else {
        return;
    };
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let mut arguments = line.split(|&byte| byte == 0).map(OsStr::from_bytes);
    let mut command = Command::new(SELF);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // It only returns when it has failed, and then small pages it is.
    drop(command.args(arguments).env(VARIABLE, format!("{next}01")).exec());
}

/// Whether glibc would have to ask the system for large pages and does not. It begins with its heap.
fn is_deaf() -> bool {
    let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    cfg!(target_env = "gnu")
        && mode.is_ok_and(|mode| mode.contains("[madvise]"))
        && fs::read_to_string("/proc/self/smaps").is_ok_and(|maps| has_plain_heap(&maps))
}

/// Whether there is a heap and no part of it is advised to be in large pages.
fn has_plain_heap(maps: &str) -> bool {
    let mut heaps = maps.split("[heap]\n").skip(1).peekable();
    let is_advised = |heap: &str| {
        let flags = heap.lines().find_map(|line| line.strip_prefix("VmFlags:"));
        flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hg"))
    };
    heaps.peek().is_some() && !heaps.any(is_advised)
}

/// Has the environment be what it would have been, for what is started here.
pub(crate) fn forget() {
    let Ok(value) = std::env::var(VARIABLE) else {
        return;
    };
    if let Some((before, _)) = asked(&value) {
        // Without a single thread it stays, which harms nobody.
        environment::set(VARIABLE, before.strip_suffix(':'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_says_is_kept() {
        for (before, after) in [
            (None, "glibc.malloc.hugetlb=0x1"),
            (
                Some("glibc.malloc.arena_max=1"),
                "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=0x1",
            ),
            (Some("glibc.malloc.hugetlb=0"), "glibc.malloc.hugetlb=0"),
        ] {
            let mut environment = Environment::default();
            environment.clear();
            if let Some(before) = before {
                environment.set(VARIABLE, before);
            }
            ask_for(&mut environment);
            assert_eq!(environment.get(VARIABLE).unwrap(), after);
        }
    }

    #[test]
    fn a_wish_is_known_from_others_and_its_tries_are_counted() {
        for (value, expected) in [
            ("glibc.malloc.hugetlb=0x1", Some(("", 0))),
            (
                "glibc.malloc.perturb=1:glibc.malloc.hugetlb=0x001",
                Some(("glibc.malloc.perturb=1:", 2)),
            ),
            ("glibc.malloc.hugetlb=1", None),
            ("glibc.malloc.hugetlb=0x2", None),
            ("glibc.malloc.hugetlb=0x1:glibc.malloc.perturb=1", None),
            ("", None),
        ] {
            assert_eq!(asked(value), expected, "{value}");
        }
    }

    #[test]
    fn a_heap_that_is_not_advised_is_plain() {
        let part = |flags| {
            format!("55d0-55d1 rw-p 00000000 00:00 0    [heap]\nSize: 132 kB\nVmFlags: rd wr {flags}\n")
        };
        let other = "7f00-7f01 rw-p 00000000 00:00 0\nSize: 4 kB\nVmFlags: rd hg\n";
        assert!(has_plain_heap(&(part("mr") + other)));
        assert!(!has_plain_heap(&(part("hg sd") + other)));
        assert!(!has_plain_heap(&(part("hg") + &part("mr"))));
        // Another allocator's memory is not glibc's to speak for.
        assert!(!has_plain_heap(other));
    }
}
