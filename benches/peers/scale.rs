//! How much of everything.

use crate::Error;

/// Workers, processes or threads, of every pool.
pub(crate) const WORKERS: usize = 2;
/// Calls that do not count, before those that do.
pub(crate) const WARM_UP: usize = 100;
/// Metrics whose keys begin so are tries with chunks of a size, of which each peer is given its best.
pub(crate) const CHUNK: &str = "chunk ";

/// What is `slow_` is for peers that would take minutes otherwise; figures are by the task or by the second, so that
/// they can be compared.
pub(crate) struct Scale {
    pub(crate) key: &'static str,
    pub(crate) about: &'static str,
    /// W1.
    pub(crate) calls: usize,
    pub(crate) slow_calls: usize,
    /// W2.
    pub(crate) tasks: usize,
    pub(crate) slow_tasks: usize,
    /// W3; the last for whom takes every item for a task unless told otherwise.
    pub(crate) items: usize,
    pub(crate) slow_items: usize,
    pub(crate) single_items: usize,
    pub(crate) chunks: &'static [usize],
    /// W4, in bytes and echoes, and the most bytes of the ladder of sizes.
    pub(crate) small: (usize, usize),
    pub(crate) large: (usize, usize),
    pub(crate) ladder: usize,
    /// W5: pools and processes after the first.
    pub(crate) starts: usize,
    /// W6.
    pub(crate) queued: usize,
    pub(crate) slow_queued: usize,
    /// W7.
    pub(crate) computations: usize,
    /// Tasks of most other cases.
    pub(crate) cases: usize,
}

impl Scale {
    /// Sizes of the ladder of W4, each double the one before, with the number of echoes.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (usize, usize)> {
        let sizes = std::iter::successors(Some(1 << 10), |size| Some(2 * size));
        sizes
            .take_while(|&size| size <= self.ladder)
            .map(|size| (size, ((128 << 20) / size).clamp(3, 1_000)))
    }
}

const FULL: Scale = Scale {
    key: "full",
    about: "full size",
    calls: 20_000,
    slow_calls: 3_000,
    tasks: 100_000,
    slow_tasks: 20_000,
    items: 1_000_000,
    slow_items: 200_000,
    single_items: 10_000,
    chunks: &[1_000, 10_000, 50_000, 125_000, 500_000],
    small: (1 << 20, 64),
    large: (64 << 20, 4),
    ladder: 256 << 20,
    starts: 9,
    queued: 100_000,
    slow_queued: 20_000,
    computations: 64,
    cases: 4_000,
};

const QUICK: Scale = Scale {
    key: "quick",
    about: "small, for a look only",
    calls: 2_000,
    slow_calls: 300,
    tasks: 10_000,
    slow_tasks: 2_000,
    items: 100_000,
    slow_items: 20_000,
    single_items: 1_000,
    chunks: &[2_500, 12_500],
    small: (1 << 20, 16),
    large: (64 << 20, 2),
    ladder: 16 << 20,
    starts: 3,
    queued: 10_000,
    slow_queued: 2_000,
    computations: 16,
    cases: 800,
};

const TEST: Scale = Scale {
    key: "test",
    about: "tiny: the figures mean nothing",
    calls: 5,
    slow_calls: 5,
    tasks: 20,
    slow_tasks: 20,
    items: 1_000,
    slow_items: 1_000,
    single_items: 50,
    chunks: &[250],
    small: (1 << 10, 1),
    large: (1 << 20, 1),
    ladder: 1 << 13,
    starts: 1,
    queued: 100,
    slow_queued: 100,
    computations: 2,
    cases: 16,
};

/// One of `full`, `quick` and `test`.
pub(crate) fn scale(key: &str) -> Result<&'static Scale, Error> {
    [&FULL, &QUICK, &TEST]
        .into_iter()
        .find(|scale| scale.key == key)
        .ok_or_else(|| format!("no scale is called {key}").into())
}
