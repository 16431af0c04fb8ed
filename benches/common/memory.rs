//! What processes hold in memory.

use std::fs;

use crate::Error;
use crate::figures::Figures;

const MIB: f64 = 1024.0;

/// Kilobytes that a process has in memory: all, and what it shares with nobody.
struct Memory {
    resident: f64,
    private: f64,
}

fn memory_of(process: &str) -> Result<Memory, Error> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let field = |name: &str| -> Result<f64, Error> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number
            .ok_or_else(|| format!("smaps_rollup has no {name}"))?
            .parse()?)
    };
    Ok(Memory {
        resident: field("Rss")?,
        private: field("Private_Clean")? + field("Private_Dirty")?,
    })
}

/// The means of several workers, in MiB.
pub(crate) fn workers(pids: &[u32]) -> Result<Figures, Error> {
    let mut sum = Memory {
        resident: 0.0,
        private: 0.0,
    };
    for pid in pids {
        let memory = memory_of(&pid.to_string())?;
        sum.resident += memory.resident;
        sum.private += memory.private;
    }
    let mean = |sum: f64| sum / pids.len() as f64 / MIB;
    Ok(Figures::default()
        .with("resident", mean(sum.resident))
        .with("private", mean(sum.private)))
}

/// How this process grows, while it queues tasks say.
pub(crate) struct Growth {
    before: f64,
}

impl Growth {
    pub(crate) fn begin() -> Result<Self, Error> {
        Ok(Self {
            before: memory_of("self")?.resident,
        })
    }

    /// Bytes for each of `n` things that there are since then.
    pub(crate) fn each(&self, n: usize) -> Result<f64, Error> {
        let grown = memory_of("self")?.resident - self.before;
        Ok(grown * 1024.0 / n as f64)
    }
}
