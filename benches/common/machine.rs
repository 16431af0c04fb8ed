//! What figures were measured on.

use std::fs;
use std::time::Duration;

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

/// Waits until nobody else runs, for two seconds at most: the kernel may still take back the memory of what has ended.
pub(crate) fn settle() {
    let mut quiet = 0;
    for _ in 0..200 {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let running = load.split(' ').nth(3).and_then(|tasks| tasks.split('/').next());
        quiet = if running == Some("1") { quiet + 1 } else { 0 };
        if quiet == 3 {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
