//! The figures of a curve over all runs, and what can be read from them.

use std::collections::HashMap;

use crate::curve::{Curve, Extent, Keeps, Knee, Metric};
use crate::figures::{Figures, median};
use crate::plot::Point;

/// Where it is worse than at the next smaller point by less than this, it may be noise, whatever the spread.
const NOISE: f64 = 1.15;

/// By series, point and metric, one figure of each run.
#[derive(Default)]
pub(crate) struct Samples(HashMap<(&'static str, u64, String), Vec<f64>>);

impl Samples {
    pub(crate) fn add(&mut self, series: &'static str, x: f64, figures: &Figures) {
        for (key, figure) in figures.iter() {
            let key = (series, x.to_bits(), key.to_owned());
            self.0.entry(key).or_default().push(figure);
        }
    }
}

pub(crate) struct Outcome<'a> {
    pub(crate) curve: &'static Curve,
    pub(crate) extent: Extent,
    pub(crate) runs: usize,
    pub(crate) samples: &'a Samples,
}

/// A knee that was found, and why it is there, if anybody knows.
pub(crate) struct Found {
    pub(crate) text: String,
    pub(crate) why: Option<&'static str>,
}

impl Outcome<'_> {
    fn figures(&self, series: &str, x: f64, metric: &str) -> Option<&Vec<f64>> {
        let (series, _) = self.curve.series.iter().find(|(key, _)| *key == series)?;
        self.samples.0.get(&(*series, x.to_bits(), metric.to_owned()))
    }

    /// Median, least and most of a point.
    pub(crate) fn point(&self, series: &str, x: f64, metric: &str) -> Option<Point> {
        let figures = self.figures(series, x, metric)?;
        let point = Point {
            x,
            y: median(figures.clone()),
            least: figures.iter().copied().fold(f64::INFINITY, f64::min),
            most: figures.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        };
        point.y.is_finite().then_some(point)
    }

    /// All points of a series that have figures.
    pub(crate) fn line(&self, series: &str, metric: &str) -> Vec<Point> {
        let points = self.curve.points(self.extent).into_iter();
        points
            .filter_map(|(x, _)| self.point(series, x, metric))
            .collect()
    }

    /// A median as it is written.
    pub(crate) fn show(&self, series: &str, x: f64, metric: &str) -> Option<String> {
        let unit = self.curve.metric(metric)?.unit;
        Some(unit.show(self.point(series, x, metric)?.y))
    }

    pub(crate) fn show_x(&self, x: f64) -> String {
        self.curve.x.unit.show(x)
    }

    /// How often a point was measured, when that is less often than others.
    pub(crate) fn fewer_runs(&self, series: &str, x: f64, metric: &str) -> Option<usize> {
        let runs = self.figures(series, x, metric)?.len();
        (runs < self.runs).then_some(runs)
    }

    /// The point with the highest median.
    pub(crate) fn best(&self, series: &str, metric: &str) -> Option<Point> {
        let line = self.line(series, metric).into_iter();
        line.max_by(|a, b| a.y.total_cmp(&b.y))
    }

    /// The smallest and the largest median.
    pub(crate) fn range(&self, series: &str, metric: &str) -> Option<(f64, f64)> {
        let line = self.line(series, metric);
        let least = line.iter().map(|point| point.y).reduce(f64::min)?;
        let most = line.iter().map(|point| point.y).reduce(f64::max)?;
        Some((least, most))
    }

    /// The last point's median over that of the best.
    pub(crate) fn last_over_best(&self, series: &str, metric: &str) -> Option<f64> {
        let last = *self.line(series, metric).last()?;
        Some(last.y / self.best(series, metric)?.y)
    }

    /// From which x on a series stays at or above so many times another.
    pub(crate) fn overtakes(&self, series: &str, times: f64, other: &str, metric: &str) -> Option<f64> {
        let mut from = None;
        for point in self.line(series, metric) {
            let other = self.point(other, point.x, metric)?.y;
            if point.y < times * other {
                from = None;
            } else {
                from = from.or(Some(point.x));
            }
        }
        from
    }

    /// Knees, each with why it is there.
    pub(crate) fn knees(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for metric in self.curve.metrics {
            let Some(keeps) = metric.keeps else { continue };
            for (series, name) in self.curve.series {
                for pair in self.line(series, metric.key).windows(2) {
                    if let [before, after] = pair
                        && is_worse(keeps, before, after)
                    {
                        found.push(self.found(metric, (series, name), before, after));
                    }
                }
            }
        }
        found
    }

    fn found(&self, metric: &Metric, (series, name): (&str, &str), before: &Point, after: &Point) -> Found {
        let explains = |knee: &&Knee| {
            let is_of_series = knee.series.is_empty() || knee.series.contains(&series);
            knee.metric == metric.key && is_of_series && after.x > knee.above && after.x <= knee.up_to
        };
        let name = if self.curve.series.len() == 1 {
            metric.label.to_owned()
        } else {
            format!("{name}, {}", metric.label)
        };
        Found {
            text: format!(
                "{name}: {} at {}, {} at {} (× {:.2})",
                metric.unit.show(before.y),
                self.show_x(before.x),
                metric.unit.show(after.y),
                self.show_x(after.x),
                after.y / before.y,
            ),
            why: self.curve.knees.iter().find(explains).map(|knee| knee.why),
        }
    }
}

/// Whether even the best of a point is worse than the worst of the one before it, and by more than noise.
fn is_worse(keeps: Keeps, before: &Point, after: &Point) -> bool {
    match keeps {
        Keeps::Up => after.most < before.least && after.y * NOISE < before.y,
        Keeps::Down => after.least > before.most && after.y > before.y * NOISE,
    }
}
