//! What is measured, of whom, and how much of it.

use crate::Error;

/// Workers, processes or threads, of every pool.
pub(crate) const WORKERS: usize = 2;

/// Somebody whose figures are in the tables.
pub(crate) struct Peer {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    /// Measured by the script, not by this program.
    pub(crate) python: bool,
}

pub(crate) const PEERS: [Peer; 7] = [
    peer_named("procession", "procession", false),
    peer_named("procspawn", "procspawn Pool", false),
    peer_named("pool", "multiprocessing.Pool (fork)", true),
    peer_named("pool-spawn", "multiprocessing.Pool (spawn)", true),
    peer_named("executor", "ProcessPoolExecutor (fork)", true),
    peer_named("spawn_blocking", "tokio spawn_blocking (threads)", false),
    peer_named("rayon", "rayon + oneshot (threads)", false),
];

const fn peer_named(key: &'static str, name: &'static str, python: bool) -> Peer {
    Peer { key, name, python }
}

/// A figure that a workload gives.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
}

pub(crate) struct Workload {
    pub(crate) key: &'static str,
    pub(crate) about: &'static str,
    /// Whether a higher figure is a better one.
    pub(crate) more_is_better: bool,
    pub(crate) metrics: &'static [Metric],
    /// Peers that do not take part.
    without: &'static [&'static str],
}

impl Workload {
    pub(crate) fn has(&self, peer: &Peer) -> bool {
        !self.without.contains(&peer.key)
    }
}

const fn metric(key: &'static str, name: &'static str, decimals: usize) -> Metric {
    Metric { key, name, decimals }
}

/// The metric that is the best of those whose key begins with it: sizes of chunks, of which each peer is given its own.
pub(crate) const CHUNK: &str = "chunk ";

pub(crate) const WORKLOADS: [Workload; 7] = [
    Workload {
        key: "W1",
        about: "one tiny call (n + 1) at a time",
        more_is_better: false,
        metrics: &[metric("p50", "p50 µs", 2), metric("p99", "p99 µs", 1)],
        without: &["pool-spawn"],
    },
    Workload {
        key: "W2",
        about: "tiny calls submitted singly, all results collected (procspawn: as many at once as it has fds for)",
        more_is_better: true,
        metrics: &[metric("rate", "tasks/s", 0)],
        without: &["pool-spawn"],
    },
    Workload {
        key: "W3",
        about: "map of tiny items",
        more_is_better: true,
        metrics: &[
            metric("default", "default items/s", 0),
            metric(CHUNK, "best items/s (chunk)", 0),
        ],
        without: &["pool-spawn"],
    },
    Workload {
        key: "W4",
        about: "echo of bytes, one at a time, counting them both ways",
        more_is_better: true,
        metrics: &[
            metric("small", "1 MiB, MB/s", 0),
            metric("large", "64 MiB, MB/s", 0),
        ],
        // Threads copy nothing.
        without: &["pool-spawn", "spawn_blocking", "rayon"],
    },
    Workload {
        key: "W5",
        about: "from constructing a pool to the first result of each worker; one worker started, used and joined",
        more_is_better: false,
        metrics: &[
            metric("first", "first ms", 2),
            metric("again", "again ms", 2),
            metric("join", "spawn + join ms", 2),
        ],
        without: &[],
    },
    Workload {
        key: "W6",
        about: "memory of an idle worker; of the parent per 100,000 queued tiny tasks",
        more_is_better: false,
        metrics: &[
            metric("resident", "resident MiB", 2),
            metric("private", "private MiB", 2),
            metric("queued", "queued MiB", 1),
        ],
        without: &[],
    },
    Workload {
        key: "W7",
        about: "tasks of 10 ms of pure computation: T1 / (2 × T2)",
        more_is_better: true,
        metrics: &[metric("scaling", "T1/(2×T2)", 3)],
        without: &["pool-spawn"],
    },
];

/// How much of everything.
pub(crate) struct Scale {
    pub(crate) key: &'static str,
    pub(crate) about: &'static str,
    /// W1.
    pub(crate) calls: usize,
    /// W2.
    pub(crate) tasks: usize,
    /// W3, and for whom takes every item for a task unless told otherwise.
    pub(crate) items: usize,
    pub(crate) single_items: usize,
    pub(crate) chunks: &'static [usize],
    /// W4, in bytes and echoes.
    pub(crate) small: (usize, usize),
    pub(crate) large: (usize, usize),
    /// W6.
    pub(crate) queued: usize,
    /// W7.
    pub(crate) computations: usize,
}

pub(crate) const FULL: Scale = Scale {
    key: "full",
    about: "full size",
    calls: 5_000,
    tasks: 100_000,
    items: 1_000_000,
    single_items: 50_000,
    chunks: &[1_000, 10_000, 50_000, 125_000],
    small: (1 << 20, 64),
    large: (64 << 20, 4),
    queued: 100_000,
    computations: 64,
};

pub(crate) const QUICK: Scale = Scale {
    key: "quick",
    about: "small, for a look only",
    calls: 300,
    tasks: 2_000,
    items: 100_000,
    single_items: 1_000,
    chunks: &[2_500, 12_500],
    small: (1 << 20, 8),
    large: (64 << 20, 1),
    queued: 10_000,
    computations: 8,
};

pub(crate) const TEST: Scale = Scale {
    key: "test",
    about: "tiny: the figures mean nothing",
    calls: 5,
    tasks: 20,
    items: 1_000,
    single_items: 50,
    chunks: &[250],
    small: (1 << 10, 1),
    large: (1 << 20, 1),
    queued: 100,
    computations: 2,
};

pub(crate) fn scale(key: &str) -> Result<&'static Scale, Error> {
    [&FULL, &QUICK, &TEST]
        .into_iter()
        .find(|scale| scale.key == key)
        .ok_or_else(|| format!("no scale is called {key}").into())
}

pub(crate) fn peer(key: &str) -> Result<&'static Peer, Error> {
    let named = PEERS.iter().find(|peer| peer.key == key);
    named.ok_or_else(|| {
        let keys: Vec<&str> = PEERS.iter().map(|peer| peer.key).collect();
        format!("no peer is called {key}; there are {}", keys.join(", ")).into()
    })
}

pub(crate) fn workload(key: &str) -> Result<&'static Workload, Error> {
    let named = WORKLOADS
        .iter()
        .find(|workload| workload.key.eq_ignore_ascii_case(key));
    named.ok_or_else(|| format!("no workload is called {key}; there are W1 to W7").into())
}
