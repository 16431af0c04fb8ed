//! Control groups: where this process's are, a leaf for one worker, and how often the kernel killed for memory.
//!
//! Formats: `proc_pid_mountinfo(5)`, `cgroups(7)`, the kernel's `cgroup-v2.rst`, and `memory.rst` of version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the names of leaves begin with; the process that made one and a number follow.
const LEAF: &str = "procession-";

/// Which of the hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hierarchy {
    /// Version 2.
    Unified,
    /// The memory controller of version 1.
    Memory,
}

/// What tells where the hierarchies are mounted, and where this process is in each.
fn maps() -> Option<(String, String)> {
    let read = |path| String::from_utf8(super::descendants::read(path).ok()?).ok();
    Some((read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?))
}

/// The directory of this process in a hierarchy, if that is mounted here.
fn directory(mounts: &str, cgroups: &str, hierarchy: Hierarchy) -> Option<PathBuf> {
    let own = cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match hierarchy {
            Hierarchy::Unified => controllers.is_empty(),
            Hierarchy::Memory => controllers.split(',').any(|name| name == "memory"),
        };
        found.then_some(Path::new(path))
    })?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let found = match (kind.next()?, hierarchy) {
            ("cgroup2", Hierarchy::Unified) => true,
            ("cgroup", Hierarchy::Memory) => kind.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        if !found {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // What is mounted may be a part of the hierarchy, that of a container say, with this process in it.
        Some(Path::new(point).join(own.strip_prefix(root).ok()?))
    })
}

/// Where leaves for workers may be made.
pub(super) fn delegated() -> Option<PathBuf> {
    let (mounts, cgroups) = maps()?;
    delegated_at(&directory(&mounts, &cgroups, Hierarchy::Unified)?, is_ours)
}

/// The cgroup at `own` if it hands the memory controller down, which only one without processes of its own or the root
/// does, else the one above it. That one must have been given away: a privileged process could write to any.
fn delegated_at(own: &Path, is_ours: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let hands_down = |directory: &&Path| {
        fs::read_to_string(directory.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"))
    };
    // A worker that is in a leaf itself and has a pool: its workers belong there too, under the same limit.
    let is_leaf = own
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(LEAF));
    let above = || {
        own.parent()
            .filter(|above| !is_leaf && is_ours(above))
            .filter(hands_down)
    };
    Some(own).filter(hands_down).or_else(above).map(Path::to_owned)
}

/// Whether a cgroup was given to this user: marked so by the service manager, or owned by one who is not root.
fn is_ours(directory: &Path) -> bool {
    let marked = ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        matches!(rustix::fs::getxattr(directory, *name, &mut value[..]), Ok(1)) && value == *b"1"
    });
    let user = rustix::process::geteuid();
    marked
        || (!user.is_root() && rustix::fs::stat(directory).is_ok_and(|status| status.st_uid == user.as_raw()))
}

/// A cgroup for one worker. Dropped, it kills what is left in it and goes, if that ends at once.
#[derive(Debug)]
pub(super) struct Leaf {
    directory: PathBuf,
}

impl Leaf {
    /// Makes a leaf in `parent`, with a limit on its memory.
    pub(super) fn create(parent: &Path, bytes: u64) -> io::Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| sweep(parent));
        Self::create_with(parent, bytes, |_| Ok(()))
    }

    /// `populate` puts those files into the new directory that the kernel has put there already.
    fn create_with(
        parent: &Path,
        bytes: u64,
        populate: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let directory = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let directory = parent.join(format!("{LEAF}{}-{number}", std::process::id()));
            match fs::create_dir(&directory) {
                // An earlier process of the same number left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => break made.map(|()| directory)?,
            }
        };
        let leaf = Self { directory };
        populate(&leaf.directory)?;
        write(&leaf.directory.join("memory.max"), &bytes.to_string())?;
        // Both are missing where the kernel has no swap, or is older: then there is nothing to be said.
        for (file, value) in [("memory.swap.max", "0"), ("memory.oom.group", "1")] {
            match write(&leaf.directory.join(file), value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(leaf)
    }

    #[cfg(test)]
    pub(super) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// How often the kernel killed here because the limit was reached, and because there was no memory elsewhere.
    pub(super) fn kills(&self) -> LeafKills {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        let killed = field(&events, "oom_kill").unwrap_or(0) > 0;
        match (killed, field(&events, "oom").unwrap_or(0) > 0) {
            (false, _) => LeafKills::None,
            (true, true) => LeafKills::AtLimit,
            (true, false) => LeafKills::Elsewhere,
        }
    }

    /// The most memory that was in use, where the kernel tells.
    pub(super) fn peak(&self) -> Option<u64> {
        let peak = fs::read_to_string(self.directory.join("memory.peak")).ok()?;
        peak.trim().parse().ok()
    }

    /// Kills what is left and removes the cgroup; `false` while something in it still dies.
    pub(super) fn remove(&self) -> bool {
        kill(&self.directory);
        match fs::remove_dir(&self.directory) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What the kernel has killed in a [`Leaf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeafKills {
    None,
    /// The limit was reached.
    AtLimit,
    /// A cgroup above it or the machine was out of memory.
    Elsewhere,
}

/// Removes the leaves of processes that were killed and could not: most are empty, for workers do not outlive their
/// parent. One that is in use, by a process that does, cannot be removed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(LEAF)?.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_dir(entry.path()).ok();
        }
    }
}

/// Kills every process in the cgroup at `directory`.
pub(crate) fn kill(directory: &Path) {
    // A kernel without that file leaves what has escaped the worker's process group.
    write(&directory.join("cgroup.kill"), "1").ok();
}

/// Moves this process into the cgroup at `directory`.
pub(crate) fn enter(directory: &Path) -> io::Result<()> {
    write(&directory.join("cgroup.procs"), "0")
}

/// How often the kernel has killed a process for want of memory in the cgroup of this one; `None` where it does not
/// tell.
pub(super) fn own_kills() -> Option<u64> {
    let (mounts, cgroups) = maps()?;
    let own = |hierarchy| directory(&mounts, &cgroups, hierarchy);
    let unified = || kills_at(&own(Hierarchy::Unified)?);
    let memory = || {
        let control = fs::read_to_string(own(Hierarchy::Memory)?.join("memory.oom_control"));
        field(&control.ok()?, "oom_kill")
    };
    unified().or_else(memory)
}

/// The kills of the nearest cgroup from `own` upwards that counts memory: its own ones, not those of leaves.
fn kills_at(own: &Path) -> Option<u64> {
    own.ancestors()
        .take_while(|directory| directory.join("cgroup.procs").exists())
        .find_map(|directory| {
            ["memory.events.local", "memory.events"]
                .iter()
                .find_map(|file| fs::read_to_string(directory.join(file)).ok())
        })
        .and_then(|events| field(&events, "oom_kill"))
}

/// The number behind `name` in a file of lines like `name number`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Writes to a file of the kernel's, which is there or is not.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

#[cfg(test)]
mod tests;
