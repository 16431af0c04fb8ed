//! The feature `auto-init` in a crate whose tests have no line for it.

use libtest_mimic::Trial;

use crate::fixture::cargo;

pub(crate) fn trials() -> Vec<Trial> {
    let has_nextest = cargo(&["nextest", "--version"]).success;
    vec![
        crate::trial("auto_init::unit_integration_and_doc_tests_have_pools", cargo_test),
        crate::trial("auto_init::tests_under_nextest_have_pools", nextest).with_ignored_flag(!has_nextest),
    ]
}

fn cargo_test() {
    let ran = cargo(&["test", "-p", "fixture-auto-init"]).expect_success();
    for line in [
        "test tests::a_unit_test_has_a_pool ... ok",
        "test tests::and_another_the_global_one ... ok",
        "test an_integration_test_has_a_pool ... ok",
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        "src/lib.rs - doubled (line 5) ... ok",
        "src/lib.rs - halved (line 19) ... ok",
    ] {
        assert!(ran.stdout.contains(line), "{line}\n{}", ran.stdout);
    }
}

fn nextest() {
    let ran = cargo(&[
        "nextest",
        "run",
        "-p",
        "fixture-auto-init",
        "--no-fail-fast",
        "--color=never",
    ])
    .expect_success();
    assert!(ran.stderr.contains("3 tests run: 3 passed"), "{}", ran.stderr);
}
