//! Where the time of a task goes: `cargo bench --bench costs`.
//!
//! ```text
//! cargo bench --bench costs                     both tables
//! cargo bench --bench costs -- --time           time, switches and system calls of a task, in parent and workers
//! cargo bench --bench costs -- --instructions   instructions of a task, beside those that are expected
//! cargo bench --bench costs -- --write          what is counted is what is expected from now on
//! cargo bench -- --test, cargo test --benches   a tiny run that shows nothing but that it works
//! ```
//!
//! Instructions are counted by a program that steps through the processes (`steps.c`, which wants a C compiler). They
//! say nothing of the kernel's share, but they are the same, within one in a hundred, on a machine that is busy with
//! other things: a change that makes a path longer shows in them where it drowns in the noise of any clock. The run
//! fails where one is a tenth more than expected. They depend on the compiler, so that those of another one than
//! `expected.txt` was written with are printed beside it and fail nothing.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

mod floor;
mod instructions;
mod load;
mod time;
mod watch;

use std::process::ExitCode;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    procession::init();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("costs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `false` when something costs more than is expected.
fn run() -> Result<bool, Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, key, n, stepped] = &arguments[..]
        && flag == watch::WATCHED
    {
        load::watched(load::find(key)?, n.parse()?, stepped.parse()?)?;
        return Ok(true);
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let known = [
        "--bench",
        "--test",
        "--list",
        "--time",
        "--instructions",
        "--write",
    ];
    if let Some(other) = arguments
        .iter()
        .find(|argument| !known.contains(&argument.as_str()))
    {
        return Err(format!("{other} is no option").into());
    }
    if has("--list") {
        return Ok(true);
    }
    // `cargo bench` says `--bench`, `cargo test` nothing.
    if has("--test") || !has("--bench") {
        for load in load::LOADS {
            watch::Watch::begin(load, 3, false)?.tasks()?;
        }
        return Ok(true);
    }
    if !has("--instructions") && !has("--write") {
        println!("{}", time::table()?);
    }
    if has("--time") {
        return Ok(true);
    }
    instructions::compare(has("--write"))
}
