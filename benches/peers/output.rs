//! Where the outcome goes: files below `target`, and on request the tree's own plot and table.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::marked::replaced;

/// The plot in the tree.
pub(crate) const PLOT: &str = "benches/peers.svg";
/// The page with all figures in the tree.
pub(crate) const PAGE: &str = "benches/peers/README.md";

/// `target/peers`, wherever the target folder is: this program lies in its `release/deps`.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3);
    let folder = target
        .ok_or("this program lies in no target folder")?
        .join("peers");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Puts the plot, the page and the README's part into the tree.
pub(crate) fn write_into_tree(plot: &str, report: &str, part: &str) -> Result<(), Error> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = root.join("README.md");
    let text = replaced(&fs::read_to_string(&readme)?, "peers", part)?;
    fs::write(root.join(PLOT), plot)?;
    fs::write(root.join(PAGE), report)?;
    fs::write(readme, text)?;
    Ok(())
}
