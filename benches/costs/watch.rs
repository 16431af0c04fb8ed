//! A process that runs tasks and is looked at from outside.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::Error;
use crate::load::Load;

/// The argument that makes this program run tasks to be watched.
pub(crate) const WATCHED: &str = "--watched";

/// Has the C library copy without instructions that repeat themselves, each time of which would be a step.
const NO_REPEATS: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

/// The process and its workers, which are ready to run the tasks. Ended when it is dropped.
pub(crate) struct Watch {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(crate) workers: Vec<u32>,
}

impl Watch {
    pub(crate) fn begin(load: &Load, n: usize, is_stepped: bool) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        if is_stepped {
            command.env("GLIBC_TUNABLES", NO_REPEATS);
        }
        let mut child = command
            .args([WATCHED, load.key, &n.to_string(), &is_stepped.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut watch = Self {
            child,
            input,
            output,
            workers: Vec::new(),
        };
        let line = watch.line()?;
        watch.workers = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(watch)
    }

    pub(crate) fn parent(&self) -> u32 {
        self.child.id()
    }

    /// Has the tasks run, and returns the nanoseconds that they took when they have. The processes are still there.
    pub(crate) fn tasks(&mut self) -> Result<f64, Error> {
        writeln!(self.input)?;
        Ok(self.line()?.parse()?)
    }

    fn line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the process that runs the tasks has ended".into());
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Its workers end with it.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}
