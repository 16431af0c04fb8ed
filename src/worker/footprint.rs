//! How much memory this worker keeps after each task, for a parent that wants to know.

use super::memory::Statm;
use crate::shared::ledger::Ledger;

/// Measures, or does nothing.
#[derive(Debug)]
pub(super) struct Footprint {
    /// Open all the time, for opening it costs more than reading.
    statm: Option<Statm>,
}

impl Footprint {
    pub(super) fn new(measures: bool) -> Self {
        // Where the kernel does not tell, nothing is measured, and the worker is never found to be too large.
        let statm = measures.then(|| Statm::open().ok()).flatten();
        Self { statm }
    }

    /// Notes the resident size.
    pub(super) fn measure(&self, ledger: &Ledger) {
        if let Some(resident) = self.statm.as_ref().and_then(Statm::resident) {
            ledger.set_resident(resident);
        }
    }
}
