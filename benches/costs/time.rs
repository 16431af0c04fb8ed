//! Time, switches and system calls of a task, in the parent and in workers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::figures::median;
use crate::load::{CALL, LARGE, Load, MAP, SINGLE, SMALL};
use crate::usage::{Usage, Used};
use crate::watch::Watch;
use crate::{Error, floor, machine};

struct Row {
    load: &'static Load,
    /// How many tasks are timed.
    timed: usize,
    /// How many are traced.
    traced: usize,
    /// Bytes that go each way for one of them; none where so many share a frame that they do not count.
    bytes: usize,
    /// System calls that each side needs for one of them in principle.
    calls: &'static str,
}

const ROWS: [Row; 5] = [
    Row {
        load: &CALL,
        timed: 20_000,
        traced: 2000,
        bytes: 20,
        calls: "2: 1 to send, 1 to receive",
    },
    Row {
        load: &SINGLE,
        timed: 400_000,
        traced: 40_000,
        bytes: 0,
        calls: "0.0006: thousands of tasks in 64 KiB",
    },
    Row {
        load: &MAP,
        timed: 4_000_000,
        traced: 400_000,
        bytes: 0,
        calls: "0.0001: thousands of elements in 64 KiB",
    },
    Row {
        load: &SMALL,
        timed: 1000,
        traced: 100,
        bytes: 1 << 20,
        calls: "4: 2 for the message, 2 to copy",
    },
    Row {
        load: &LARGE,
        timed: 10,
        traced: 5,
        bytes: 64 << 20,
        calls: "4: 2 for the message, 2 to copy",
    },
];
/// Of the times the median is taken.
const ROUNDS: usize = 5;

/// What one side used for a task.
struct Side {
    nanoseconds: f64,
    switches: f64,
    /// Ticks of the system's clock for all tasks, and how many of them were spent in the kernel.
    ticks: f64,
    in_kernel: f64,
}

/// A look at the processes of a side.
struct Look {
    usage: Usage,
    user: f64,
    kernel: f64,
}

impl Look {
    fn at(pids: &[u32]) -> Result<Self, Error> {
        let mut look = Self {
            usage: Usage::of(pids)?,
            user: 0.0,
            kernel: 0.0,
        };
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // Behind the name, which may have anything in it: the state, ten numbers, user time, kernel time.
            let (_, behind) = stat.rsplit_once(')').ok_or("a stat without a name")?;
            let mut times = behind.split_whitespace().skip(11);
            let mut time = || {
                times
                    .next()
                    .ok_or("a short stat")?
                    .parse::<f64>()
                    .map_err(Error::from)
            };
            look.user += time()?;
            look.kernel += time()?;
        }
        Ok(look)
    }

    fn since(&self, before: &Self, n: usize) -> Side {
        let Used {
            switches,
            nanoseconds,
        } = self.usage.since(&before.usage);
        Side {
            nanoseconds: nanoseconds as f64 / n as f64,
            switches: switches as f64 / n as f64,
            ticks: self.user + self.kernel - before.user - before.kernel,
            in_kernel: self.kernel - before.kernel,
        }
    }
}

/// Wall time of a task, and what each side used for it.
struct Timed {
    wall: f64,
    parent: Side,
    workers: Side,
}

fn timed(load: &Load, n: usize) -> Result<Timed, Error> {
    let mut watch = Watch::begin(load, n, false)?;
    let (parent, workers) = ([watch.parent()], watch.workers.clone());
    let before = (Look::at(&parent)?, Look::at(&workers)?);
    let wall = watch.tasks()?;
    Ok(Timed {
        wall: wall / n as f64,
        parent: Look::at(&parent)?.since(&before.0, n),
        workers: Look::at(&workers)?.since(&before.1, n),
    })
}

/// CPU time of a side, and which share of it the kernel had.
fn cpu(runs: &[Timed], side: fn(&Timed) -> &Side) -> String {
    let nanoseconds = median(runs.iter().map(|run| side(run).nanoseconds).collect());
    let sum = |figure: fn(&Side) -> f64| runs.iter().map(|run| figure(side(run))).sum::<f64>();
    let share = sum(|side| side.in_kernel) / sum(|side| side.ticks);
    if share.is_finite() {
        format!("{}, {:.0} % in the kernel", time(nanoseconds), share * 100.0)
    } else {
        time(nanoseconds)
    }
}

/// `strace -c` on processes that run already.
struct Trace {
    process: Child,
    file: String,
}

impl Trace {
    /// Returns when it sees them; `None` where there is no `strace`, or it may not.
    fn begin(pids: &[u32], name: &str) -> Result<Option<Self>, Error> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/costs-{name}"));
        let file = file.to_string_lossy().into_owned();
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-o", &file]).stderr(Stdio::piped());
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let Ok(mut process) = command.spawn() else {
            return Ok(None);
        };
        let mut said = BufReader::new(process.stderr.take().ok_or("no standard error")?).lines();
        for _ in pids {
            match said.next().transpose()? {
                Some(line) if line.contains(" attached") => {}
                _ => {
                    process.kill()?;
                    process.wait()?;
                    return Ok(None);
                }
            }
        }
        // What it says of threads that start must not fill a pipe.
        std::thread::spawn(move || said.for_each(drop));
        Ok(Some(Self { process, file }))
    }

    /// The most frequent system calls, by how many there were of each for one task, and all of them.
    fn end(mut self, n: usize) -> Result<(f64, String), Error> {
        let pid = Pid::from_raw(self.process.id().try_into()?).ok_or("no process id")?;
        kill_process(pid, Signal::INT)?;
        self.process.wait()?;
        let mut calls: Vec<(f64, String)> = Vec::new();
        for line in fs::read_to_string(&self.file)?.lines() {
            // Share, seconds, microseconds a call, calls, at times errors, name.
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, count, .., name] = words[..]
                && let Ok(count) = count.parse::<f64>()
                && name != "total"
            {
                calls.push((count / n as f64, name.to_owned()));
            }
        }
        fs::remove_file(&self.file)?;
        calls.sort_by(|a, b| b.0.total_cmp(&a.0));
        let all = calls.iter().map(|(count, _)| count).sum();
        let most: Vec<String> = calls
            .iter()
            .take(4)
            .map(|(count, name)| format!("{} {name}", number(*count)))
            .collect();
        Ok((all, most.join(", ")))
    }
}

/// System calls of parent and workers.
fn traced(load: &Load, n: usize) -> Result<Option<[(f64, String); 2]>, Error> {
    let mut watch = Watch::begin(load, n, false)?;
    let Some(parent) = Trace::begin(&[watch.parent()], "parent")? else {
        return Ok(None);
    };
    let Some(workers) = Trace::begin(&watch.workers, "workers")? else {
        return Ok(None);
    };
    watch.tasks()?;
    Ok(Some([parent.end(n)?, workers.end(n)?]))
}

fn number(n: f64) -> String {
    match n {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n if n >= 0.01 => format!("{n:.2}"),
        n => format!("{n:.4}"),
    }
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n >= 10e6 => format!("{:.1} ms", n / 1e6),
        n if n >= 10e3 => format!("{:.1} µs", n / 1e3),
        n => format!("{n:.0} ns"),
    }
}

/// The table, as Markdown.
pub(crate) fn table() -> Result<String, Error> {
    let codec = floor::codec()?;
    let mut rows = Vec::new();
    // Round by round, so that a machine that slows down slows all of them.
    for row in &ROWS {
        rows.push((row, Vec::with_capacity(ROUNDS)));
    }
    for _ in 0..ROUNDS {
        for (row, runs) in &mut rows {
            runs.push(timed(row.load, row.timed)?);
        }
    }
    let mut table = format!(
        "procession {}, {}; medians of {ROUNDS} interleaved rounds, two workers, not pinned to cores.\n\n| a task | \
         time | needed | CPU in the parent | CPU in workers | switches: parent | workers | system calls needed on each \
         side | parent | workers |\n|{}\n",
        machine::version(),
        machine::machine(),
        " --- |".repeat(10),
    );
    let mut is_traced = true;
    for (row, runs) in &rows {
        let of = |figure: fn(&Timed) -> f64| median(runs.iter().map(figure).collect());
        // Argument and result are each encoded once and decoded once.
        let needed = if row.bytes == 0 {
            0.0
        } else {
            2.0 * floor::one_way(row.bytes)?
        } + 2.0 * codec;
        let calls = traced(row.load, row.traced)?;
        is_traced &= calls.is_some();
        let calls = calls.map_or(["–".to_owned(), "–".to_owned()], |sides| {
            sides.map(|(all, most)| format!("{}: {most}", number(all)))
        });
        let wall: Vec<f64> = runs.iter().map(|run| run.wall).collect();
        table += &format!(
            "| {} | {} [{}–{}] | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.load.about,
            time(of(|run| run.wall)),
            time(wall.iter().copied().fold(f64::INFINITY, f64::min)),
            time(wall.iter().copied().fold(0.0, f64::max)),
            time(needed),
            cpu(runs, |run| &run.parent),
            cpu(runs, |run| &run.workers),
            number(of(|run| run.parent.switches)),
            number(of(|run| run.workers.switches)),
            row.calls,
            calls[0],
            calls[1],
        );
    }
    table += "\n\"Needed\" is what the same bytes take from one process to another and back in one thread that never \
              waits, and to encode and decode them: through a socket, or copied in and out of memory that is shared and \
              warm, whichever is faster. Where many tasks share a frame, the way is next to nothing.\n";
    if is_traced {
        table += "System calls are as `strace -c -f` counts them, which slows them: what waits is then longer, and shared \
                  by more.\n";
    } else {
        table +=
            "Skipped: `strace` is not installed or may not trace, so that system calls are not counted.\n";
    }
    Ok(table)
}
