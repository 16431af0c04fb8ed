//! What the figures are to reach, and whether they do.

use crate::plan::{ASLEEP, LIMIT, OURS, PYTHON_POOL, SHARED_BYTES, SPAWN_BLOCKING, peer};
use crate::results::{Results, Series};

/// By how much a size of W4 may be slower than the next smaller one, which is noise.
const NOISE: f64 = 0.9;

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// For comparison only.
    None,
}

pub(crate) struct Target {
    pub(crate) workload: &'static str,
    pub(crate) what: String,
    pub(crate) bound: Bound,
    pub(crate) decimals: usize,
    /// `None` when something that it needs was not measured.
    pub(crate) outcome: Option<Outcome>,
}

pub(crate) struct Outcome {
    pub(crate) figure: f64,
    /// The least and the most of a round.
    pub(crate) spread: (f64, f64),
}

impl Target {
    pub(crate) fn is_reached(&self) -> Option<bool> {
        let figure = self.outcome.as_ref()?.figure;
        match self.bound {
            Bound::AtLeast(bound) => Some(figure >= bound),
            Bound::AtMost(bound) => Some(figure <= bound),
            Bound::None => None,
        }
    }
}

/// A figure of ours by itself.
fn plain(series: &Series) -> Outcome {
    Outcome {
        figure: series.median(),
        spread: (series.least(), series.most()),
    }
}

/// The ratio of two medians, with the spread of the ratios of rounds.
fn ratio(over: &Series, under: &Series) -> Outcome {
    let rounds = over.over(under);
    Outcome {
        figure: over.median() / under.median(),
        spread: (rounds.least(), rounds.most()),
    }
}

struct Targets<'a> {
    results: &'a Results,
    targets: Vec<Target>,
}

impl<'a> Targets<'a> {
    fn add(
        &mut self,
        workload: &'static str,
        what: impl Into<String>,
        bound: Bound,
        outcome: Option<Outcome>,
    ) {
        let decimals = match outcome.as_ref().map_or(0.0, |outcome| outcome.figure) {
            figure if figure < 20.0 => 2,
            figure if figure < 1_000.0 => 1,
            _ => 0,
        };
        self.targets.push(Target {
            workload,
            what: what.into(),
            bound,
            decimals,
            outcome,
        });
    }

    fn ours(&self, workload: &'static str, metric: &str) -> Option<&'a Series> {
        self.results.get(workload, OURS, metric)
    }

    /// Ours over that of a peer.
    fn over(&self, workload: &'static str, metric: &str, peer: &'static str) -> Option<Outcome> {
        let theirs = self.results.figure(workload, peer, metric)?;
        Some(ratio(self.ours(workload, metric)?, theirs))
    }

    fn over_best(&self, workload: &'static str, metric: &str, rust: bool) -> (String, Option<Outcome>) {
        let best = self.results.best_processes(workload, metric, true, rust);
        let name = best.map_or("none measured", |(peer, _)| peer.name);
        let outcome = best.and_then(|(_, theirs)| Some(ratio(self.ours(workload, metric)?, theirs)));
        (name.to_owned(), outcome)
    }
}

pub(crate) fn targets(results: &Results) -> Vec<Target> {
    use Bound::{AtLeast, AtMost};
    let mut all = Targets {
        results,
        targets: Vec::new(),
    };
    let threads = all.over("W1", "p50", SPAWN_BLOCKING);
    all.add("W1", "p50, ours / spawn_blocking's", AtMost(1.0), threads);
    let threads = all.over("W1", "p99", SPAWN_BLOCKING);
    all.add("W1", "p99, ours / spawn_blocking's", AtMost(1.0 / 3.0), threads);
    let best = results.best_processes("W1", "p50", false, false);
    let name = best.map_or("none measured", |(peer, _)| peer.name);
    let outcome = best.and_then(|(_, theirs)| Some(ratio(theirs, all.ours("W1", "p50")?)));
    let what = format!("p50, best process peer's ({name}) / ours");
    all.add("W1", what, AtLeast(8.0), outcome);
    let asleep = results.get("W1", ASLEEP, "p50");
    let outcome = asleep.and_then(|ours| Some(ratio(ours, results.get("W1", LIMIT, "p50")?)));
    let what = "p50, looking switched off, ours / bare socketpair ping-pong";
    all.add("W1", what, AtMost(1.15), outcome);

    all.add("W2", "tasks/s", AtLeast(1.5e6), all.ours("W2", "rate").map(plain));
    let python = all.over("W2", "rate", PYTHON_POOL);
    all.add("W2", "ours / multiprocessing.Pool", AtLeast(75.0), python);
    let (name, best) = all.over_best("W2", "rate", false);
    all.add(
        "W2",
        format!("ours / best process peer ({name})"),
        AtLeast(15.0),
        best,
    );
    let threads = all.over("W2", "rate", SPAWN_BLOCKING);
    all.add("W2", "ours / spawn_blocking", AtLeast(1.0), threads);

    all.add(
        "W3",
        "items/s, default chunks",
        AtLeast(50e6),
        all.ours("W3", "default").map(plain),
    );
    let python = all.over("W3", "default", PYTHON_POOL);
    all.add(
        "W3",
        "ours / multiprocessing.Pool at its best",
        AtLeast(9.0),
        python,
    );
    let (name, best) = all.over_best("W3", "default", true);
    let what = format!("ours / best Rust process peer chunked by hand ({name})");
    all.add("W3", what, AtLeast(1.0), best);

    for (metric, size, rate, times) in [
        ("small", "1 MiB", 3_400.0, 2.0),
        ("large", "64 MiB", 2_000.0, 4.5),
    ] {
        let ours = all.ours("W4", metric).map(plain);
        all.add("W4", format!("{size}, MB/s"), AtLeast(rate), ours);
        let (name, best) = all.over_best("W4", metric, false);
        let what = format!("{size}, ours / best process peer ({name})");
        all.add("W4", what, AtLeast(times), best);
        let what = format!("{size}, ours / {}", name_of(SHARED_BYTES));
        let shared = all.over("W4", metric, SHARED_BYTES);
        all.add("W4", what, Bound::None, shared);
        let machine = all.over("W4", metric, LIMIT);
        all.add("W4", format!("{size}, ours / memfd echo"), Bound::None, machine);
    }
    let (what, outcome) = steepest_fall(results, OURS);
    all.add(
        "W4",
        format!("sizes: least size / next smaller one{what}"),
        AtLeast(NOISE),
        outcome,
    );
    let (what, outcome) = steepest_fall(results, LIMIT);
    all.add(
        "W4",
        format!("sizes: the same of memfd echo{what}"),
        Bound::None,
        outcome,
    );

    for (metric, when) in [("first", "in a fresh process"), ("again", "again")] {
        let spawns = all.over("W5", metric, LIMIT);
        let what = format!("pool of two {when}, ours / two posix_spawns side by side");
        all.add("W5", what, AtMost(1.5), spawns);
    }
    let spawn = all.over("W5", "join", LIMIT);
    all.add(
        "W5",
        "one process started and joined, ours / one posix_spawn",
        AtMost(1.2),
        spawn,
    );

    for (metric, what, bound) in [
        ("private", "idle worker, private MiB", 0.5),
        ("resident", "idle worker, resident MiB", 4.0),
        ("queued", "bytes in the parent per queued tiny task", 250.0),
    ] {
        all.add("W6", what, AtMost(bound), all.ours("W6", metric).map(plain));
    }

    let bare = all.over("W7", "scaling", LIMIT);
    all.add("W7", "T1/(2×T2), ours / bare processes", AtLeast(0.99), bare);
    all.targets
}

/// The size that falls the most below the next smaller one, both of the same round.
fn steepest_fall(results: &Results, peer: &str) -> (String, Option<Outcome>) {
    let ladder = results.ladder(peer);
    let falls = ladder.windows(2).map(|pair| {
        let rounds = pair[1].1.over(pair[0].1);
        let outcome = Outcome {
            figure: rounds.median(),
            spread: (rounds.least(), rounds.most()),
        };
        (pair[1].0, outcome)
    });
    match falls.min_by(|(_, a), (_, b)| a.figure.total_cmp(&b.figure)) {
        Some((bytes, outcome)) => (format!(", at {}", size(bytes)), Some(outcome)),
        None => (String::new(), None),
    }
}

pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

fn name_of(key: &str) -> &str {
    peer(key).map_or(key, |peer| peer.name)
}

/// Where the plot draws the target of a metric: the figure that reaches it, with what it is made of.
pub(crate) fn line(results: &Results, workload: &str, metric: &str) -> Option<(f64, &'static str)> {
    let times = |peer: &str, factor: f64| Some(results.get(workload, peer, metric)?.median() * factor);
    match (workload, metric) {
        ("W1", "p50") => Some((times(SPAWN_BLOCKING, 1.0)?, "spawn_blocking’s")),
        ("W1", "p99") => Some((times(SPAWN_BLOCKING, 1.0 / 3.0)?, "⅓ of spawn_blocking’s")),
        ("W2", _) => Some((1.5e6, "1.5 M")),
        ("W3", _) => Some((50e6, "50 M")),
        ("W4", "small") => Some((3_400.0, "3,400")),
        ("W4", "large") => Some((2_000.0, "2,000")),
        ("W5", "first" | "again") => Some((times(LIMIT, 1.5)?, "1.5 × two spawns")),
        ("W6", "private") => Some((0.5, "0.5")),
        ("W6", "resident") => Some((4.0, "4")),
        ("W6", "queued") => Some((250.0, "250")),
        ("W7", _) => Some((times(LIMIT, 0.99)?, "0.99 × bare processes")),
        _ => None,
    }
}
