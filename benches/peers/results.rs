//! What all rounds gave.

use std::collections::BTreeMap;

use crate::figures::{Figures, median};
use crate::plan::{By, Kind, PEERS, Peer};
use crate::scale::CHUNK;

/// A figure by the round that gave it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(BTreeMap<usize, f64>);

impl Series {
    pub(crate) fn median(&self) -> f64 {
        median(self.0.values().copied().collect())
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.values().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.values().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = f64> {
        self.0.values().copied()
    }

    /// Round by round, so that what a round has in common is not in it.
    pub(crate) fn over(&self, other: &Self) -> Self {
        let both = |(round, figure): (&usize, &f64)| Some((*round, figure / other.0.get(round)?));
        Self(self.0.iter().filter_map(both).collect())
    }
}

type Key = (&'static str, &'static str, String);

/// Figures by workload, peer and metric.
#[derive(Default)]
pub(crate) struct Results {
    series: BTreeMap<Key, Series>,
    failed: BTreeMap<(&'static str, &'static str), usize>,
}

impl Results {
    pub(crate) fn add(
        &mut self,
        workload: &'static str,
        peer: &'static str,
        round: usize,
        figures: &Figures,
    ) {
        for (metric, figure) in figures.iter() {
            let key = (workload, peer, metric.to_owned());
            self.series.entry(key).or_default().0.insert(round, figure);
        }
    }

    pub(crate) fn add_failure(&mut self, workload: &'static str, peer: &'static str) {
        *self.failed.entry((workload, peer)).or_default() += 1;
    }

    pub(crate) fn failures(&self, workload: &'static str, peer: &'static str) -> usize {
        self.failed.get(&(workload, peer)).copied().unwrap_or(0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Series)> {
        self.series.iter()
    }

    /// All metrics of one peer, by their keys.
    pub(crate) fn metrics<'a>(
        &'a self,
        workload: &'a str,
        peer: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Series)> {
        let one = move |((w, p, _), _): &(&Key, &Series)| *w == workload && *p == peer;
        let all = self.series.iter().filter(one);
        all.map(|((_, _, metric), series)| (metric.as_str(), series))
    }

    pub(crate) fn get(&self, workload: &str, peer: &str, metric: &str) -> Option<&Series> {
        let mut all = self.series.iter();
        let found = all.find(|((w, p, m), _)| *w == workload && *p == peer && m == metric);
        found.map(|(_, series)| series)
    }

    /// W3 with the best size of chunk, or by default when that is better, and the size.
    pub(crate) fn best_map<'a>(&'a self, peer: &'a str) -> Option<(&'a Series, &'a str)> {
        let all = self.metrics("W3", peer);
        let all = all.map(|(key, series)| (series, key.strip_prefix(CHUNK).unwrap_or(key)));
        all.max_by(|(a, _), (b, _)| a.median().total_cmp(&b.median()))
    }

    /// The figure that a peer is compared by: for W3 its best.
    pub(crate) fn figure(&self, workload: &str, peer: &'static str, metric: &str) -> Option<&Series> {
        if workload == "W3" && PEERS[0].key != peer {
            return self.best_map(peer).map(|(series, _)| series);
        }
        self.get(workload, peer, metric)
    }

    /// The best of those whose arguments are values in other processes; with `rust`, of those in Rust.
    pub(crate) fn best_processes(
        &self,
        workload: &str,
        metric: &str,
        more_is_better: bool,
        rust: bool,
    ) -> Option<(&'static Peer, &Series)> {
        let sign = if more_is_better { 1.0 } else { -1.0 };
        PEERS
            .iter()
            .filter(|peer| peer.kind == Kind::Processes && (!rust || peer.by == By::RustPeers))
            .filter_map(|peer| Some((peer, self.figure(workload, peer.key, metric)?)))
            .max_by(|(_, a), (_, b)| (sign * a.median()).total_cmp(&(sign * b.median())))
    }

    /// The ladder of W4: sizes in bytes with their rates, from the smallest.
    pub(crate) fn ladder<'a>(&'a self, peer: &'a str) -> Vec<(usize, &'a Series)> {
        let steps = self.metrics("W4-sizes", peer);
        let mut steps: Vec<_> = steps
            .filter_map(|(key, series)| Some((key.parse().ok()?, series)))
            .collect();
        steps.sort_by_key(|(size, _)| *size);
        steps
    }
}
