//! The entry as the documentation has it: a `main` that calls `init`, here and in programs of their own.
//!
//! No harness stands in front of `main`, so that workers of this binary come to `init` first of all.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failure of the test")]

mod fixture;

mod documented;
mod entry;
mod orphans;
mod lineage;
mod bereft;
mod containers;
mod auto_init;
mod tasks;
mod terminal;

use libtest_mimic::{Arguments, Trial};

fn main() {
    procession::init();
    let trials: Vec<Trial> = [
        documented::trials(),
        entry::trials(),
        orphans::trials(),
        lineage::trials(),
        bereft::trials(),
        containers::trials(),
        auto_init::trials(),
        tasks::trials(),
        terminal::trials_if_possible(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test under the name of its function in this crate.
fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name.trim_start_matches("main_fn::"), || {
        test();
        Ok(())
    })
}

/// The functions of one module as its tests.
macro_rules! trials {
    ($($test:ident)*) => {
        /// This module's tests.
        pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
            vec![$(crate::trial(concat!(module_path!(), "::", stringify!($test)), $test)),*]
        }
    };
}
pub(crate) use trials;
