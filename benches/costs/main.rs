//! Where the time of a task goes: `cargo bench --bench costs`.
//!
//! ```text
//! cargo bench --bench costs                     both tables
//! cargo bench --bench costs -- --time           time, switches and system calls of a task, in parent and workers
//! cargo bench --bench costs -- --instructions   instructions of a task, beside those that are expected
//! cargo bench --bench costs -- --write          the tables go into benches/costs/README.md as well, and what is
//!                                               counted is what is expected from now on
//! cargo bench -- --test, cargo test --benches   a tiny run that shows nothing but that it works
//! ```
//!
//! Instructions are counted by a program that steps through the processes (`steps.c`, which wants a C compiler). They
//! say nothing of the kernel's share, but they are the same, within one in a hundred, on a machine that is busy with
//! other things: a change that makes a path longer shows in them where it drowns in the noise of any clock. The run
//! fails where one is a tenth more than expected. They depend on the compiler, so that those of another one than
//! `expected.txt` was written with are printed beside it and fail nothing.

#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

#[path = "../common/figures.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod figures;
mod floor;
mod instructions;
mod load;
#[path = "../common/machine.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod machine;
#[path = "../common/marked.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod marked;
#[path = "../common/program.rs"]
mod program;
#[path = "../common/tasks.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod tasks;
mod time;
#[path = "../common/usage.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod usage;
mod watch;

use std::path::Path;
use std::process::ExitCode;

const HEAD: &str = "\
# Where the time of a task goes

Written by `cargo bench --bench costs -- --write`, with `--time` or `--instructions` only one of the tables.
";

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    procession::init();
    program::exit("costs", run())
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
    let (is_all, write) = (has("--time") == has("--instructions"), has("--write"));
    let mut well = true;
    if is_all || has("--time") {
        let table = time::table()?;
        println!("{table}");
        if write {
            write_section("time", &format!("## Time\n\n{table}"))?;
        }
    }
    if is_all || has("--instructions") {
        let compared = instructions::compare(write)?;
        println!("{}", compared.text);
        well = compared.well;
        if write {
            write_section("instructions", &format!("## Instructions\n\n{}", compared.text))?;
        }
    }
    Ok(well)
}

fn write_section(name: &str, section: &str) -> Result<(), Error> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/costs/README.md");
    marked::write_section(&page, HEAD, ["time", "instructions"], (name, section))
}
