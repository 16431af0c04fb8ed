//! How much memory this worker takes after each task, for a parent that wants to know.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::shared::ledger::Ledger;

/// Measures, or does nothing.
#[derive(Debug)]
pub(super) struct Memory {
    /// Open all the time, for opening it costs more than reading.
    statm: Option<File>,
}

impl Memory {
    pub(super) fn new(measures: bool) -> Self {
        // Without /proc nothing is measured, and the worker is never found to be too large.
        let statm = measures.then(|| File::open("/proc/self/statm").ok()).flatten();
        Self { statm }
    }

    /// Notes the resident size.
    pub(super) fn measure(&mut self, ledger: &Ledger) {
        let Some(statm) = &self.statm else { return };
        let mut buffer = [0; 128];
        let Ok(length) = statm.read_at(&mut buffer, 0) else {
            return;
        };
        let mut fields = buffer[..length].split(|&byte| byte == b' ');
        let pages = fields
            .nth(1)
            .and_then(|field| std::str::from_utf8(field).ok())
            .and_then(|field| field.parse::<u64>().ok());
        if let Some(pages) = pages {
            ledger.set_resident(pages * rustix::param::page_size() as u64);
        }
    }
}
