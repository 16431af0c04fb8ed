//! Figures over all runs, as a table and as plots.

use std::collections::HashMap;
use std::fs;

use crate::curve::{Curve, Extent, Points};
use crate::measure::Figures;
use crate::plot::{Axis, Plot, Point, Series};

/// The figures of a curve: by series, point and metric, one of each run.
#[derive(Default)]
pub(crate) struct Samples(HashMap<(&'static str, u64, String), Vec<f64>>);

impl Samples {
    pub(crate) fn add(&mut self, series: &'static str, x: f64, figures: &Figures) {
        for (key, figure) in figures.iter() {
            let key = (series, x.to_bits(), key.to_owned());
            self.0.entry(key).or_default().push(figure);
        }
    }

    fn of(&self, series: &'static str, x: f64, metric: &str) -> Option<Point> {
        let figures = self.0.get(&(series, x.to_bits(), metric.to_owned()))?;
        let mut sorted = figures.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let y = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Point { x, y, least, most })
    }
}

/// What the figures were measured on.
fn note(runs: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "procession {}{}, {cores} cores, Linux {}; medians of {runs} run{}, with least and most",
        env!("CARGO_PKG_VERSION"),
        if cfg!(debug_assertions) {
            " (debug build)"
        } else {
            ""
        },
        release.trim(),
        if runs == 1 { "" } else { "s" },
    )
}

/// A Markdown table: a row for each point, a column for each series and metric.
pub(crate) fn table(curve: &Curve, extent: Extent, runs: usize, samples: &Samples) -> String {
    let columns = || {
        let metrics = curve.metrics.iter();
        metrics.flat_map(|metric| curve.series.iter().map(move |(key, name)| (metric, *key, *name)))
    };
    let mut text = format!("### {}: {}\n\n{}.\n\n", curve.name, curve.about, note(runs));
    text += &format!("| {} |", curve.x.label);
    let filled: Vec<_> = columns()
        .filter(|(metric, series, _)| {
            let mut points = curve.points(extent).into_iter();
            points.any(|(x, _)| {
                samples
                    .of(series, x, metric.key)
                    .is_some_and(|point| point.y.is_finite())
            })
        })
        .collect();
    for (metric, _, name) in &filled {
        let name = if curve.series.len() == 1 {
            ""
        } else {
            &format!("{name}: ")
        };
        text += &format!(" {name}{} |", metric.label);
    }
    text += &format!("\n| --- |{}\n", " --- |".repeat(filled.len()));
    for (x, shown) in curve.points(extent) {
        text += &format!("| {shown} |");
        for (metric, series, _) in &filled {
            let cell = match samples
                .of(series, x, metric.key)
                .filter(|point| point.y.is_finite())
            {
                Some(point) if point.least < point.most => format!(
                    "{} [{}–{}]",
                    metric.unit.show(point.y),
                    metric.unit.show(point.least),
                    metric.unit.show(point.most)
                ),
                Some(point) => metric.unit.show(point.y),
                None => "–".to_owned(),
            };
            text += &format!(" {cell} |");
        }
        text.push('\n');
    }
    text
}

/// The files with the plots of a curve.
pub(crate) fn plots(curve: &Curve, extent: Extent, runs: usize, samples: &Samples) -> Vec<(String, String)> {
    if matches!(curve.points, Points::Cases(_)) {
        return Vec::new();
    }
    let mut files = Vec::new();
    for metric in curve.metrics {
        let Some(drawn) = &metric.plot else { continue };
        let series: Vec<Series> = (curve.series.iter())
            .map(|(key, name)| {
                let points = curve.points(extent).into_iter();
                let points = points.filter_map(|(x, _)| samples.of(key, x, metric.key));
                Series {
                    name: (*name).to_owned(),
                    points: points.filter(|point| point.y.is_finite()).collect(),
                }
            })
            .filter(|series| !series.points.is_empty())
            .collect();
        let plot = Plot {
            title: drawn.title.to_owned(),
            note: note(runs),
            x: curve.x,
            y: Axis {
                label: metric.label,
                unit: metric.unit,
                logarithmic: drawn.logarithmic,
            },
            series,
        };
        files.push((format!("{}-{}.svg", curve.name, metric.key), plot.svg()));
    }
    files
}
