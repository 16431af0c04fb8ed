//! What the figures were measured on.

use std::fs;
use std::path::Path;

use crate::python::Python;

/// Some lines of facts.
pub(crate) fn facts(python: Option<&Python>) -> String {
    let mut facts = String::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let line = |text: &str| text.lines().next().unwrap_or("").trim().to_owned();
    let read = |path: &str| line(&fs::read_to_string(path).unwrap_or_default());
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    facts += &format!(
        "{cores} cores of {}, Linux {}, load {}\n",
        processor(),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg")
            .split(' ')
            .take(3)
            .collect::<Vec<_>>()
            .join(" "),
    );
    facts += &format!("procession {} ({build} build)", env!("CARGO_PKG_VERSION"));
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = fs::read_to_string(lock).unwrap_or_default();
    for package in ["procspawn", "tokio", "rayon"] {
        facts += &format!(", {package} {}", locked(&lock, package).unwrap_or("?"));
    }
    if let Some(python) = python {
        facts += &format!(", Python {}", python.version);
    }
    facts.push('\n');
    facts
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
