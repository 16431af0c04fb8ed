//! What figures were measured on.

use std::fs;

/// The machine in a line.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {}, Linux {}", processor(), release.trim())
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("an unknown processor", |name| {
        name.trim_start_matches([' ', '\t', ':'])
    });
    name.to_owned()
}

/// The version of this crate, and whether it was built to be fast.
pub(crate) fn version() -> String {
    let build = if cfg!(debug_assertions) {
        " (debug build)"
    } else {
        ""
    };
    format!("{}{build}", env!("CARGO_PKG_VERSION"))
}

/// The load of the machine now.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
