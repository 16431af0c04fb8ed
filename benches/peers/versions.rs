//! Of which versions the figures are.

use std::fs;
use std::path::Path;

use crate::machine;
use crate::python::Python;
use crate::rust_peers::RustPeers;

/// Names and versions of all that is measured.
pub(crate) fn versions(rust: Option<&RustPeers>, python: Option<&Python>) -> Vec<(String, String)> {
    let mut versions = vec![("procession".to_owned(), machine::version())];
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

/// The version of a package in a lock file.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')
}
