//! From the figures of all rounds to a table.

use std::collections::HashMap;

use crate::measure::Figures;
use crate::plan::{CHUNK, Metric, PEERS, Peer, Workload};

/// What one workload gave, by peer and key, over all rounds.
#[derive(Default)]
pub(crate) struct Samples {
    figures: HashMap<(&'static str, String), Vec<f64>>,
    failed: HashMap<&'static str, usize>,
}

impl Samples {
    /// The figures of one more round; `None` when it failed.
    pub(crate) fn add(&mut self, peer: &'static str, figures: Option<Figures>) {
        let Some(figures) = figures else {
            *self.failed.entry(peer).or_default() += 1;
            return;
        };
        for (key, figure) in figures.iter() {
            self.figures
                .entry((peer, key.to_owned()))
                .or_default()
                .push(figure);
        }
    }

    fn of(&self, peer: &Peer, metric: &Metric) -> Option<Spread> {
        if metric.key != CHUNK {
            return Spread::new(self.figures.get(&(peer.key, metric.key.to_owned()))?, None);
        }
        let chunks = self.figures.iter().filter(|((of, _), _)| *of == peer.key);
        chunks
            .filter_map(|((_, key), figures)| Spread::new(figures, Some(key.strip_prefix(CHUNK)?.to_owned())))
            .max_by(|a, b| a.median.total_cmp(&b.median))
    }
}

/// A figure over all rounds.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
    /// The size of chunk that it was reached with.
    chunk: Option<String>,
}

impl Spread {
    fn new(figures: &[f64], chunk: Option<String>) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Self {
            median,
            least,
            most,
            chunk,
        })
    }

    fn show(&self, decimals: usize) -> String {
        let number = |figure: f64| grouped(&format!("{figure:.decimals$}"));
        let mut text = number(self.median);
        if self.least < self.most {
            text += &format!(" [{}–{}]", number(self.least), number(self.most));
        }
        if let Some(chunk) = &self.chunk {
            text += &format!(" ({})", grouped(chunk));
        }
        text
    }
}

/// The table of one workload: a row for each peer, two columns for each metric.
pub(crate) fn table(workload: &Workload, peers: &[&Peer], samples: &Samples) -> String {
    let mut head = vec!["peer".to_owned()];
    for metric in workload.metrics {
        head.push(metric.name.to_owned());
        head.push("ours/peer".to_owned());
    }
    let mut rows = vec![head];
    for peer in peers.iter().filter(|peer| workload.has(peer)) {
        let mut row = vec![peer.name.to_owned()];
        for metric in workload.metrics {
            let spread = samples.of(peer, metric);
            let ours = samples.of(&PEERS[0], metric);
            row.push(
                spread
                    .as_ref()
                    .map_or("–".to_owned(), |spread| spread.show(metric.decimals)),
            );
            row.push(match (ours, spread) {
                (Some(ours), Some(peer)) => ratio(ours.median / peer.median),
                _ => "–".to_owned(),
            });
        }
        if let Some(failed) = samples.failed.get(peer.key) {
            row.push(format!("{failed} × failed"));
        }
        rows.push(row);
    }
    let better = if workload.more_is_better { "more" } else { "less" };
    format!(
        "{} {}; {better} is better\n{}",
        workload.key,
        workload.about,
        align(&rows)
    )
}

fn ratio(ratio: f64) -> String {
    match ratio {
        r if !r.is_finite() => "–".to_owned(),
        r if r < 0.1 => format!("{r:.3}"),
        r if r < 10.0 => format!("{r:.2}"),
        r => format!("{r:.0}"),
    }
}

/// A number with commas between thousands.
fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut text = String::new();
    for (index, digit) in whole.char_indices() {
        let behind = whole.len() - index;
        if index > 0 && behind % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

/// Columns of the same width, two spaces apart.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.pop();
    text
}
