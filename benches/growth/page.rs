//! The page with all curves, of which a run writes those that it measured.

use std::fs;
use std::path::Path;

use crate::Error;
use crate::curve::CURVES;
use crate::marked::write_section;
use crate::report::FIGURES;

const HEAD: &str = "\
# How cost grows

Written by `cargo bench --bench growth -- --write`; with `--only NAME` a run writes the section of that name and leaves
the others as they are. Every point is measured in a process of its own, after a warm-up, and a run goes over all points
before the next begins. Processes and threads are not pinned to cores. A call is awaited in a spawned task of tokio's
default runtime, as the handlers of a service await theirs, where nothing else is said.
";

/// Puts the section of a curve, and its plots, below a folder.
pub(crate) fn write(
    folder: &Path,
    curve: &str,
    section: &str,
    plots: &[(String, String)],
) -> Result<(), Error> {
    let figures = folder.join(FIGURES);
    fs::create_dir_all(&figures)?;
    for (file, svg) in plots {
        fs::write(figures.join(file), svg)?;
    }
    let names = CURVES.iter().map(|curve| curve.name);
    write_section(&folder.join("README.md"), HEAD, names, (curve, section))
}
