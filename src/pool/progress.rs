//! How far a call over many elements has come.

/// Hears how many elements of a call are done.
///
/// Implemented for closures `FnMut(done, total)`, and with the feature `progress` for `indicatif::ProgressBar`.
pub trait Progress: Send + 'static {
    /// `done` elements have a result, of `total`, if the input says exactly how many it has. Called with `done` 0 first, then
    /// with growing numbers, by whoever polls the call.
    fn update(&mut self, done: u64, total: Option<u64>);
}

impl<F: FnMut(u64, Option<u64>) + Send + 'static> Progress for F {
    fn update(&mut self, done: u64, total: Option<u64>) {
        self(done, total);
    }
}

#[cfg(feature = "progress")]
impl Progress for indicatif::ProgressBar {
    fn update(&mut self, done: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.set_length(total);
        }
        self.set_position(done);
    }
}
