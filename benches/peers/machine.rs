//! What the figures were measured on, and of which versions.

use std::fs;
use std::path::Path;

use crate::python::Python;
use crate::rust_peers::RustPeers;

/// The machine in a line.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    format!(
        "{cores} cores of {}, Linux {}",
        processor(),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The load before the measurements.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Names and versions of all that is measured.
pub(crate) fn versions(rust: Option<&RustPeers>, python: Option<&Python>) -> Vec<(String, String)> {
    let build = if cfg!(debug_assertions) {
        " (debug build)"
    } else {
        ""
    };
    let own = format!("{}{build}", env!("CARGO_PKG_VERSION"));
    let mut versions = vec![("procession".to_owned(), own)];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut add = |folder: &Path, packages: &[&str]| {
        let lock = fs::read_to_string(folder.join("Cargo.lock")).unwrap_or_default();
        for package in packages {
            let version = locked(&lock, package).unwrap_or("?");
            versions.push(((*package).to_owned(), version.to_owned()));
        }
    };
    add(root, &["tokio", "rayon", "postcard"]);
    if let Some(rust) = rust {
        add(rust.package(), &["procspawn", "tarnish", "zng-task"]);
    }
    if let Some(python) = python {
        versions.push(("Python".to_owned(), python.version.clone()));
        versions.extend(python.packages.iter().cloned());
    }
    versions
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("an unknown processor", |name| {
        name.trim_start_matches([' ', '\t', ':'])
    });
    name.to_owned()
}

/// The version of a package in a lock file.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}
