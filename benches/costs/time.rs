//! Time, switches and system calls of a task, in the parent and in workers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::load::{CALL, LARGE, Load, MAP, SINGLE, SMALL};
use crate::watch::Watch;
use crate::{Error, floor};

/// Each with how many tasks are timed, how many are traced, and the bytes that go each way for one of them.
const ROWS: [(&Load, usize, usize, usize); 5] = [
    (&CALL, 20_000, 2000, 20),
    (&SINGLE, 400_000, 40_000, 0),
    (&MAP, 4_000_000, 400_000, 0),
    (&SMALL, 1000, 100, 1 << 20),
    (&LARGE, 10, 5, 64 << 20),
];
/// Of the times the median is taken.
const ROUNDS: usize = 5;

/// What the threads of some processes have used.
#[derive(Clone, Copy, Default)]
struct Usage {
    nanoseconds: f64,
    switches: f64,
}

impl Usage {
    fn of(pids: &[u32]) -> Result<Self, Error> {
        let mut sum = Self::default();
        for pid in pids {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let thread = thread?.path();
                // One that has just ended has no files any more.
                let schedule = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
                let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
                sum.nanoseconds += schedule
                    .split(' ')
                    .next()
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0.0);
                let switches = status
                    .lines()
                    .filter_map(|line| line.split_once("ctxt_switches:"));
                sum.switches += switches
                    .filter_map(|(_, n)| n.trim().parse::<f64>().ok())
                    .sum::<f64>();
            }
        }
        Ok(sum)
    }
}

/// Wall time of a task, and what each side used for it.
struct Timed {
    wall: f64,
    parent: Usage,
    workers: Usage,
}

fn timed(load: &Load, n: usize) -> Result<Timed, Error> {
    let mut watch = Watch::begin(load, n, false)?;
    let (parent, workers) = ([watch.parent()], watch.workers.clone());
    let before = (Usage::of(&parent)?, Usage::of(&workers)?);
    let wall = watch.tasks()?;
    let each = |before: Usage, after: Usage| Usage {
        nanoseconds: (after.nanoseconds - before.nanoseconds) / n as f64,
        switches: (after.switches - before.switches) / n as f64,
    };
    Ok(Timed {
        wall: wall / n as f64,
        parent: each(before.0, Usage::of(&parent)?),
        workers: each(before.1, Usage::of(&workers)?),
    })
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

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The table, as Markdown.
pub(crate) fn table() -> Result<String, Error> {
    let codec = floor::codec()?;
    let mut table =
        "| a task | time | CPU in the parent | CPU in workers | needed | switches: parent | workers \
        | system calls: parent | workers |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    let mut is_traced = true;
    for (load, n, few, bytes) in ROWS {
        let runs = (0..ROUNDS)
            .map(|_| timed(load, n))
            .collect::<Result<Vec<_>, _>>()?;
        let of = |figure: fn(&Timed) -> f64| median(runs.iter().map(figure));
        // Argument and result are each encoded once and decoded once.
        let needed = if bytes == 0 {
            0.0
        } else {
            2.0 * floor::one_way(bytes)?
        } + 2.0 * codec;
        let calls = traced(load, few)?;
        is_traced &= calls.is_some();
        let calls = calls.map_or(["–".to_owned(), "–".to_owned()], |sides| {
            sides.map(|(all, most)| format!("{}: {most}", number(all)))
        });
        table += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            load.about,
            time(of(|run| run.wall)),
            time(of(|run| run.parent.nanoseconds)),
            time(of(|run| run.workers.nanoseconds)),
            time(needed),
            number(of(|run| run.parent.switches)),
            number(of(|run| run.workers.switches)),
            calls[0],
            calls[1],
        );
    }
    table += "\n\"Needed\" is what the same bytes take through a socket and back in one thread that never waits, and to \
        encode and decode; where many tasks share a frame, the socket's part is next to nothing.\n";
    if is_traced {
        table += "System calls are as `strace` sees them, which slows them: what waits is then longer, and shared by more.\n";
    } else {
        table +=
            "Skipped: `strace` is not installed or may not trace, so that system calls are not counted.\n";
    }
    Ok(table)
}
