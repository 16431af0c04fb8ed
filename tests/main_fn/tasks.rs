//! What can be a task, and what the compiler says of the rest.

use std::process::Command;

use crate::fixture::{cargo, program, run};

crate::trials! {
    functions_closures_and_methods_are_tasks
    what_captures_does_not_build
}

/// The words of `assert_no_captures`.
const ADVICE: &str = "this closure captures variables, or is a function pointer, and cannot be sent to another process: \
    pass what it needs as part of the argument, e.g. `pool.apply(|(x, factor)| x * factor, (x, factor))`, and name \
    functions directly instead of through a pointer";

fn functions_closures_and_methods_are_tasks() {
    let ran = run(&mut Command::new(program("tasks"))).expect_success();
    assert_eq!(ran.stdout, "ok, a panic is Panicked\n");
}

fn what_captures_does_not_build() {
    // Without what is refused it does, so that it is nothing else that fails.
    let ran = run(&mut Command::new(program("refused"))).expect_success();
    assert_eq!(ran.stdout, "42\n");
    for refused in ["captures", "pointer", "starmap", "asynchronous", "initializer"] {
        let cfg = format!("refused=\"{refused}\"");
        let built = cargo(&[
            "rustc",
            "-p",
            "fixture-programs",
            "--bin",
            "refused",
            "--",
            "--cfg",
            &cfg,
        ]);
        assert!(!built.success, "{refused} builds");
        assert!(built.stderr.contains(ADVICE), "{refused}:\n{}", built.stderr);
        // A pointer's type says nothing of where it was made; a closure's does.
        let names_its_place = built.stderr.contains("src/bin/refused.rs");
        assert!(
            names_its_place || refused == "pointer",
            "{refused}:\n{}",
            built.stderr
        );
    }
}
