//! From the figures of all rounds to Markdown and JSON.

use serde_json::{Map, Value, json};

use crate::output::{PAGE, PLOT};
use crate::plan::{LIMIT, Metric, OURS, PEERS, PYTHON_POOL, Peer, SPAWN_BLOCKING, WORKLOADS, Workload};
use crate::results::{Results, Series};
use crate::scale::CHUNK;
use crate::targets::{Bound, Target, size};

/// What was done, on what.
pub(crate) struct Facts {
    pub(crate) machine: String,
    pub(crate) load: String,
    pub(crate) versions: Vec<(String, String)>,
    pub(crate) rounds: usize,
    pub(crate) scale: &'static str,
}

impl Facts {
    /// How many rounds.
    pub(crate) fn rounds(&self) -> String {
        match self.rounds {
            1 => "1 round".to_owned(),
            rounds => format!("{rounds} interleaved rounds"),
        }
    }

    fn versions(&self) -> String {
        let versions = self.versions.iter();
        let versions: Vec<String> = versions
            .map(|(name, version)| format!("{name} {version}"))
            .collect();
        versions.join(", ")
    }
}

pub(crate) fn markdown(facts: &Facts, targets: &[Target], results: &Results) -> String {
    let mut text = format!(
        "# Speed beside other pools\n\n{}; load before: {}. {}. {}, {}; 2 workers, not pinned to \
         cores. Medians, with the least and the most of a round.\n",
        facts.machine,
        facts.load,
        facts.versions(),
        facts.rounds(),
        facts.scale,
    );
    text += "\n## Targets\n\n| | what | target | figure | |\n| --- | --- | --- | --- | --- |\n";
    for target in targets {
        text += &target_row(target);
    }
    for workload in &WORKLOADS {
        if results.iter().any(|((key, _, _), _)| *key == workload.key) {
            text += &format!("\n## {}: {}\n\n", workload.key, workload.about);
            text += &if workload.is_ladder() {
                ladder(results)
            } else if workload.is_by_case() {
                cases(workload, results)
            } else {
                table(workload, results)
            };
        }
    }
    text
}

fn target_row(target: &Target) -> String {
    let number = |figure: f64| grouped(&format!("{figure:.0$}", target.decimals));
    let bound = match target.bound {
        Bound::AtLeast(bound) => format!("≥ {}", short(bound)),
        Bound::AtMost(bound) => format!("≤ {}", short(bound)),
        Bound::None => "–".to_owned(),
    };
    let figure = target
        .outcome
        .as_ref()
        .map_or("not measured".to_owned(), |outcome| {
            let (least, most) = outcome.spread;
            with_spread(outcome.figure, least, most, number)
        });
    let verdict = match target.is_reached() {
        Some(true) => "reached",
        Some(false) => "**not reached**",
        None => "",
    };
    format!(
        "| {} | {} | {bound} | {figure} | {verdict} |\n",
        target.workload, target.what
    )
}

/// A bound as it is written: without zeros behind the point.
fn short(bound: f64) -> String {
    let text = format!("{bound:.2}");
    grouped(text.trim_end_matches('0').trim_end_matches('.'))
}

fn with_spread(figure: f64, least: f64, most: f64, number: impl Fn(f64) -> String) -> String {
    if least < most {
        format!("{} [{}–{}]", number(figure), number(least), number(most))
    } else {
        number(figure)
    }
}

fn show(series: &Series, decimals: usize) -> String {
    with_spread(series.median(), series.least(), series.most(), |figure| {
        grouped(&format!("{figure:.decimals$}"))
    })
}

/// A row for each peer, a column for each metric, with how many times better ours is.
fn table(workload: &Workload, results: &Results) -> String {
    let mut text = "| |".to_owned();
    for metric in workload.metrics {
        text += &format!(" {} | ours is |", metric.name);
    }
    text += &format!("\n| --- |{}\n", " --- | --- |".repeat(workload.metrics.len()));
    for peer in PEERS.iter().filter(|peer| workload.has(peer)) {
        if results.metrics(workload.key, peer.key).next().is_none()
            && results.failures(workload.key, peer.key) == 0
        {
            continue;
        }
        text += &format!("| {} |", peer.name);
        for metric in workload.metrics {
            text += &cells(workload, peer, metric, results);
        }
        match results.failures(workload.key, peer.key) {
            0 => text.push('\n'),
            failed => text += &format!(" failed {failed} × |\n"),
        }
    }
    text
}

fn cells(workload: &Workload, peer: &Peer, metric: &Metric, results: &Results) -> String {
    let theirs = if metric.key == CHUNK {
        results.best_map(peer.key)
    } else {
        results
            .get(workload.key, peer.key, metric.key)
            .map(|series| (series, ""))
    };
    let ours = if metric.key == CHUNK {
        results.get(workload.key, OURS, "default")
    } else {
        results.get(workload.key, OURS, metric.key)
    };
    let Some((theirs, chunk)) = theirs else {
        return " – | |".to_owned();
    };
    let chunk = match chunk {
        "" => String::new(),
        chunk => format!(" ({})", grouped(chunk)),
    };
    let times = match ours {
        Some(ours) if peer.key != OURS => times_better(ours, theirs, metric.more_is_better),
        _ => String::new(),
    };
    format!(" {}{chunk} | {times} |", show(theirs, metric.decimals))
}

/// How many times better ours is than theirs.
fn times_better(ours: &Series, theirs: &Series, more_is_better: bool) -> String {
    let ratio = if more_is_better {
        ours.median() / theirs.median()
    } else {
        theirs.median() / ours.median()
    };
    match ratio {
        ratio if !ratio.is_finite() => "–".to_owned(),
        ratio if ratio < 10.0 => format!("{ratio:.2} ×"),
        ratio => format!("{} ×", grouped(&format!("{ratio:.0}"))),
    }
}

/// A row for each metric, a column for each peer.
fn cases(workload: &Workload, results: &Results) -> String {
    let peers = || PEERS.iter().filter(|peer| workload.has(peer));
    let mut text = "| |".to_owned();
    for peer in peers() {
        text += &format!(" {} |", peer.name);
        text += if peer.key == OURS { "" } else { " ours is |" };
    }
    text += &format!("\n| --- |{}\n", " --- |".repeat(2 * peers().count() - 1));
    for metric in workload.metrics {
        text += &format!("| {} |", metric.name);
        for peer in peers() {
            let cells = cells(workload, peer, metric, results);
            text += if peer.key == OURS {
                cells.trim_end_matches("  |")
            } else {
                &cells
            };
        }
        text.push('\n');
    }
    for peer in peers() {
        match results.failures(workload.key, peer.key) {
            0 => {}
            failed => text += &format!("\n{} failed {failed} ×.\n", peer.name),
        }
    }
    text
}

/// W4 by size: rates of ours and of the machine, each with its ratio to the next smaller size.
fn ladder(results: &Results) -> String {
    let machine = results.ladder(LIMIT);
    let mut text = "| size | MB/s | / next smaller | memfd echo, MB/s | / next smaller |\n".to_owned();
    text += "| --- | --- | --- | --- | --- |\n";
    let ours = results.ladder(OURS);
    for (index, (bytes, rate)) in ours.iter().enumerate() {
        let step = |ladder: &[(usize, &Series)]| {
            let before = index.checked_sub(1).and_then(|before| ladder.get(before));
            match (before, ladder.get(index)) {
                (Some((_, before)), Some((_, rate))) => show(&rate.over(before), 2),
                _ => String::new(),
            }
        };
        text += &format!(
            "| {} | {} | {} | {} | {} |\n",
            size(*bytes),
            show(rate, 0),
            step(&ours),
            machine
                .get(index)
                .map_or(String::new(), |(_, rate)| show(rate, 0)),
            step(&machine),
        );
    }
    text
}

/// What the README shows: the plot and a table of ratios under it.
pub(crate) fn readme(facts: &Facts, results: &Results) -> String {
    let mut text = format!(
        "![Bars of seven workloads, this crate's beside those of other pools]({PLOT})\n\n{}. {}. {}, \
         2 workers, not pinned to cores, medians; [spreads and all other figures]({PAGE}). How many times better this \
         crate is, below 1 worse:\n\n\
         | | this crate | `multiprocessing.Pool` | best process peer | `spawn_blocking` | the machine |\n\
         | --- | --- | --- | --- | --- | --- |\n",
        facts.machine,
        facts.versions(),
        facts.rounds(),
    );
    for (workload, metric, what) in README_ROWS {
        let Some(metric) = crate::plan::workload(workload)
            .ok()
            .and_then(|workload| workload.metrics.iter().find(|known| known.key == metric))
        else {
            continue;
        };
        let Some(ours) = results.get(workload, OURS, metric.key) else {
            continue;
        };
        let times = |theirs: &Series| times_better(ours, theirs, metric.more_is_better);
        let beside = |peer| {
            results
                .figure(workload, peer, metric.key)
                .map_or("–".to_owned(), times)
        };
        let best = results
            .best_processes(workload, metric.key, metric.more_is_better, false)
            .map_or("–".to_owned(), |(peer, theirs)| {
                format!("{} ({})", times(theirs), peer.name)
            });
        text += &format!(
            "| {what} | {} | {} | {best} | {} | {} |\n",
            grouped(&format!("{:.1$}", ours.median(), metric.decimals)),
            beside(PYTHON_POOL),
            beside(SPAWN_BLOCKING),
            beside(LIMIT),
        );
    }
    text
}

const README_ROWS: [(&str, &str, &str); 11] = [
    ("W1", "p50", "one tiny call, p50, µs"),
    ("W1", "p99", "one tiny call, p99, µs"),
    ("W2", "rate", "single tiny calls, tasks/s"),
    ("W3", "default", "map of tiny items, items/s"),
    ("W4", "small", "echo of 1 MiB, MB/s"),
    ("W4", "large", "echo of 64 MiB, MB/s"),
    ("W5", "first", "a pool of two to its first results, ms"),
    ("W5", "join", "one process started, its value joined, ms"),
    ("W6", "private", "an idle worker's own memory, MiB"),
    ("W6", "queued", "parent's memory per queued task, bytes"),
    ("W7", "scaling", "computation on two cores, T1/(2×T2)"),
];

/// Everything, for programs.
pub(crate) fn json(facts: &Facts, targets: &[Target], results: &Results) -> Value {
    let mut figures = Map::new();
    for ((workload, peer, metric), series) in results.iter() {
        let workload = figures.entry(*workload).or_insert_with(|| json!({}));
        let rounds: Vec<f64> = series.values().collect();
        workload[*peer][metric] = json!({
            "median": series.median(),
            "least": series.least(),
            "most": series.most(),
            "rounds": rounds,
        });
    }
    let targets: Vec<Value> = targets
        .iter()
        .map(|target| {
            let (relation, bound) = match target.bound {
                Bound::AtLeast(bound) => (Some("at least"), Some(bound)),
                Bound::AtMost(bound) => (Some("at most"), Some(bound)),
                Bound::None => (None, None),
            };
            json!({
                "workload": target.workload,
                "what": target.what,
                "relation": relation,
                "bound": bound,
                "figure": target.outcome.as_ref().map(|outcome| outcome.figure),
                "least": target.outcome.as_ref().map(|outcome| outcome.spread.0),
                "most": target.outcome.as_ref().map(|outcome| outcome.spread.1),
                "reached": target.is_reached(),
            })
        })
        .collect();
    let versions: Map<String, Value> = facts
        .versions
        .iter()
        .map(|(name, version)| (name.clone(), json!(version)))
        .collect();
    json!({
        "machine": facts.machine,
        "load": facts.load,
        "versions": versions,
        "rounds": facts.rounds,
        "scale": facts.scale,
        "targets": targets,
        "figures": figures,
    })
}

/// A number with commas between thousands.
pub(crate) fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    if !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.to_owned();
    }
    let mut text = String::new();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}
