//! Large pages for what a template loads.
//!
//! To fork a process, the system copies an entry for each of its pages, and takes each back at the copy's end: for 200
//! MiB in pages of 4 KiB that takes far longer than all else together. In pages of 2 MiB it is nothing, they are quicker
//! to fill and to read, and a copy that writes to one still gets 4 KiB of its own. glibc asks for them where it is told
//! to in the environment of a program that starts, and nowhere later.

use super::spawn::Environment;
use crate::shared::environment;

/// What glibc reads.
const VARIABLE: &str = "GLIBC_TUNABLES";
const OPTION: &str = "glibc.malloc.hugetlb";
/// As nobody else writes it.
const ASKED: &str = "glibc.malloc.hugetlb=0x1";

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

/// Has the environment be what it would have been, for what is started here.
pub(crate) fn forget() {
    let Ok(value) = std::env::var(VARIABLE) else {
        return;
    };
    if let Some(before) = value.strip_suffix(ASKED) {
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
}
