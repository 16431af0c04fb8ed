//! What is measured, and of whom.

use crate::Error;
use crate::scale::CHUNK;

/// What somebody is in the comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// A pool of processes whose arguments are values.
    Processes,
    /// The same, with a type of its own for shared bytes.
    SharedBytes,
    Threads,
    /// What the machine gives to a program that does nothing else.
    Limit,
}

/// Who measures it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    ThisProgram,
    RustPeers,
    Python,
}

/// Somebody whose figures are in the tables.
pub(crate) struct Peer {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) by: By,
}

const fn of(key: &'static str, name: &'static str, kind: Kind, by: By) -> Peer {
    Peer { key, name, kind, by }
}

pub(crate) const OURS: &str = "procession";
/// Ours with looking again switched off.
pub(crate) const ASLEEP: &str = "asleep";
pub(crate) const LIMIT: &str = "limit";
pub(crate) const PYTHON_POOL: &str = "pool";
pub(crate) const SPAWN_BLOCKING: &str = "spawn_blocking";
/// The workload of cases that are none of the seven.
pub(crate) const CASES: &str = "others";
pub(crate) const SHARED_BYTES: &str = "zng-bytes";

pub(crate) const PEERS: [Peer; 15] = [
    of(OURS, "procession", Kind::Ours, By::ThisProgram),
    of(ASLEEP, "procession, spin(0)", Kind::Ours, By::ThisProgram),
    of("procspawn", "procspawn Pool", Kind::Processes, By::RustPeers),
    of("tarnish", "tarnish ProcessPool", Kind::Processes, By::RustPeers),
    of("zng-task", "zng-task, 2 workers", Kind::Processes, By::RustPeers),
    of(
        SHARED_BYTES,
        "zng-task, IpcBytes",
        Kind::SharedBytes,
        By::RustPeers,
    ),
    of(PYTHON_POOL, "multiprocessing.Pool", Kind::Processes, By::Python),
    of(
        "pool-spawn",
        "multiprocessing.Pool (spawn)",
        Kind::Processes,
        By::Python,
    ),
    of("executor", "ProcessPoolExecutor", Kind::Processes, By::Python),
    of("loky", "loky", Kind::Processes, By::Python),
    of("mpire", "mpire", Kind::Processes, By::Python),
    of("pebble", "pebble", Kind::Processes, By::Python),
    of(
        SPAWN_BLOCKING,
        "tokio spawn_blocking",
        Kind::Threads,
        By::ThisProgram,
    ),
    of("rayon", "rayon + oneshot", Kind::Threads, By::ThisProgram),
    of(LIMIT, "the machine", Kind::Limit, By::ThisProgram),
];

/// A figure that a workload gives.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
    /// Whether a higher figure is a better one.
    pub(crate) more_is_better: bool,
}

const fn less(key: &'static str, name: &'static str, decimals: usize) -> Metric {
    Metric {
        key,
        name,
        decimals,
        more_is_better: false,
    }
}

const fn more(key: &'static str, name: &'static str, decimals: usize) -> Metric {
    Metric {
        key,
        name,
        decimals,
        more_is_better: true,
    }
}

pub(crate) struct Workload {
    pub(crate) key: &'static str,
    pub(crate) about: &'static str,
    pub(crate) metrics: &'static [Metric],
    /// Keys of those who take part, and of more of them.
    peers: &'static [&'static str],
    also: &'static [&'static str],
}

impl Workload {
    pub(crate) fn has(&self, peer: &Peer) -> bool {
        self.peers.contains(&peer.key) || self.also.contains(&peer.key)
    }

    /// Whether its metrics are rows of its table, and peers columns.
    pub(crate) fn is_by_case(&self) -> bool {
        self.key == CASES
    }

    /// Whether its keys are sizes in bytes, which are rows of its table and not columns.
    pub(crate) fn is_ladder(&self) -> bool {
        self.metrics.is_empty()
    }
}

/// How many callers at once.
pub(crate) const CALLERS: [usize; 4] = [1, 2, 8, 64];
/// What awaits the calls.
pub(crate) const RUNTIMES: [&str; 4] = [
    "current_thread block_on",
    "current_thread spawned",
    "multi_thread block_on",
    "multi_thread spawned",
];

/// The pools that can do most of it.
const POOLS: &[&str] = &[
    OURS,
    "procspawn",
    "tarnish",
    "zng-task",
    PYTHON_POOL,
    "executor",
    "loky",
    "mpire",
    "pebble",
    SPAWN_BLOCKING,
    "rayon",
];

pub(crate) const WORKLOADS: [Workload; 11] = [
    Workload {
        key: "W1",
        about: "one tiny call (n + 1) at a time, awaited in a spawned task; the machine: 20 bytes over a socketpair to \
                another process and back, tokio on this side",
        metrics: &[less("p50", "p50 µs", 2), less("p99", "p99 µs", 1)],
        peers: POOLS,
        also: &[ASLEEP, LIMIT],
    },
    Workload {
        key: "W1-callers",
        about: "several tasks that each await one tiny call after the other",
        metrics: &[
            more("1 rate", "1 caller, calls/s", 0),
            less("1 p99", "p99 µs", 1),
            more("2 rate", "2 callers, calls/s", 0),
            less("2 p99", "p99 µs", 1),
            more("8 rate", "8 callers, calls/s", 0),
            less("8 p99", "p99 µs", 1),
            more("64 rate", "64 callers, calls/s", 0),
            less("64 p99", "p99 µs", 1),
        ],
        peers: &[OURS, SPAWN_BLOCKING],
        also: &[],
    },
    Workload {
        key: "W1-runtimes",
        about: "one tiny call at a time, by what awaits it",
        metrics: &[
            less(
                "current_thread block_on p50",
                "current_thread, block_on: p50 µs",
                2,
            ),
            less("current_thread block_on p99", "p99 µs", 1),
            less("current_thread spawned p50", "current_thread, spawned: p50 µs", 2),
            less("current_thread spawned p99", "p99 µs", 1),
            less("multi_thread block_on p50", "multi_thread, block_on: p50 µs", 2),
            less("multi_thread block_on p99", "p99 µs", 1),
            less("multi_thread spawned p50", "multi_thread, spawned: p50 µs", 2),
            less("multi_thread spawned p99", "p99 µs", 1),
        ],
        peers: &[OURS, SPAWN_BLOCKING],
        also: &[],
    },
    Workload {
        key: "W2",
        about: "tiny calls submitted singly, all results collected (procspawn: as many at once as it has descriptors \
                for; tarnish: one at a time, as it can)",
        metrics: &[more("rate", "tasks/s", 0)],
        peers: POOLS,
        also: &[],
    },
    Workload {
        key: "W3",
        about: "map of tiny items, by default last, when all is warm; the machine: an item encoded and decoded by \
                postcard as argument and as result, on one core",
        metrics: &[
            more("default", "default items/s", 0),
            more(CHUNK, "best items/s (chunk)", 0),
        ],
        peers: POOLS,
        also: &[LIMIT],
    },
    Workload {
        key: "W4",
        about: "echo of bytes, one at a time, counting them both ways; the machine: through a memfd with warm pages, \
                copied in and out on both sides",
        metrics: &[more("small", "1 MiB, MB/s", 0), more("large", "64 MiB, MB/s", 0)],
        peers: &[
            OURS,
            "procspawn",
            "zng-task",
            SHARED_BYTES,
            PYTHON_POOL,
            "executor",
            "loky",
            "mpire",
            "pebble",
            LIMIT,
        ],
        also: &[],
    },
    Workload {
        key: "W4-sizes",
        about: "echo of bytes by size, each beside the next smaller size in the same round",
        metrics: &[],
        peers: &[OURS, LIMIT],
        also: &[],
    },
    Workload {
        key: "W5",
        about: "from constructing a pool to the first result of each worker, in a fresh process and again; one worker \
                started, used and joined; the machine: two posix_spawns side by side, one joined, of this program",
        metrics: &[
            less("first", "first ms", 2),
            less("again", "again ms", 2),
            less("join", "spawn + join ms", 2),
        ],
        peers: POOLS,
        also: &["pool-spawn", LIMIT],
    },
    Workload {
        key: "W6",
        about: "memory of an idle worker; of the parent per queued tiny task",
        metrics: &[
            less("resident", "resident MiB", 2),
            less("private", "private MiB", 2),
            less("queued", "bytes per queued task", 0),
        ],
        peers: POOLS,
        also: &["pool-spawn"],
    },
    Workload {
        key: "W7",
        about: "tasks of 10 ms of pure computation: T1 / (2 × T2); the machine: bare processes",
        metrics: &[more("scaling", "T1/(2×T2)", 3)],
        peers: POOLS,
        also: &[LIMIT],
    },
    Workload {
        key: CASES,
        about: "what the seven leave out, beside procspawn, whose workers take any function too, and beside threads, \
                which encode and copy nothing",
        metrics: &[
            more("text", "`String` of 100 bytes there and back, singly: tasks/s", 0),
            more(
                "record",
                "a struct of strings and numbers there and back, singly: tasks/s",
                0,
            ),
            more("table", "a number there, 1,000 back, singly: tasks/s", 0),
            more("sum", "1,000 numbers there, one back, singly: tasks/s", 0),
            more("make", "a number there, 1 MiB of `Bytes` back: MB/s", 0),
            more(
                "mixed",
                "`Bytes` from 16 B to 1 MiB mixed, there and back: MB/s",
                0,
            ),
            more("10", "tasks of 10 µs: seconds of them in a second", 2),
            more("100", "tasks of 100 µs: seconds of them in a second", 2),
            more("1000", "tasks of 1 ms: seconds of them in a second", 2),
            more("callers", "8 callers, `String` of 100 bytes: calls/s", 0),
        ],
        peers: &[OURS, "procspawn", SPAWN_BLOCKING],
        also: &[],
    },
];

pub(crate) fn peer(key: &str) -> Result<&'static Peer, Error> {
    let named = PEERS.iter().find(|peer| peer.key == key);
    named.ok_or_else(|| {
        let keys: Vec<&str> = PEERS.iter().map(|peer| peer.key).collect();
        format!("no peer is called {key}; there are {}", keys.join(", ")).into()
    })
}

pub(crate) fn workload(key: &str) -> Result<&'static Workload, Error> {
    let named = WORKLOADS.iter().find(|workload| workload.key == key);
    named.ok_or_else(|| format!("no workload is called {key}").into())
}

/// The workload of that name, with its details: `W1-callers` belongs to `W1`.
pub(crate) fn workloads(name: &str) -> Result<Vec<&'static Workload>, Error> {
    let belongs = |key: &str| {
        key.get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name))
            && matches!(key.as_bytes().get(name.len()), None | Some(b'-'))
    };
    let named: Vec<_> = WORKLOADS
        .iter()
        .filter(|workload| belongs(workload.key))
        .collect();
    if named.is_empty() {
        return Err(format!("no workload is called {name}; there are W1 to W7 and {CASES}").into());
    }
    Ok(named)
}
