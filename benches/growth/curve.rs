//! What a curve is, and which there are.

use crate::Error;
use crate::curves::{callers, depth, fairness, idle, lengths, looking, payloads, pools, workers};
use crate::figures::Figures;
use crate::outcome::Outcome;
use crate::plot::{Axis, Unit};

pub(crate) const CURVES: &[&Curve] = &[
    &workers::CURVE,
    &lengths::CURVE,
    &payloads::CURVE,
    &depth::CURVE,
    &callers::CURVE,
    &pools::CURVE,
    &idle::CURVE,
    &looking::CURVE,
    &fairness::CURVE,
];

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Full,
    /// Fewer points.
    Quick,
    /// The first point, as short as it can be.
    Test,
}

impl Extent {
    pub(crate) fn parse(key: &str) -> Result<Self, Error> {
        [Self::Full, Self::Quick, Self::Test]
            .into_iter()
            .find(|extent| extent.key() == key)
            .ok_or_else(|| "no such extent".into())
    }

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Quick => "quick",
            Self::Test => "test",
        }
    }

    /// `n`, or very few for a test.
    pub(crate) fn at_most(self, n: usize, test: usize) -> usize {
        if self == Self::Test { n.min(test) } else { n }
    }
}

/// The values along the x axis.
pub(crate) enum Points {
    /// Those of a full run; a quick one takes every third and the last.
    Numbers(&'static [f64]),
    /// Cases by name, which have no order.
    Cases(&'static [&'static str]),
}

/// What is measured in each point.
#[derive(Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    pub(crate) unit: Unit,
    pub(crate) plot: Option<Drawn>,
    pub(crate) keeps: Option<Keeps>,
}

/// A plot of a metric. That of cases has all that are drawn, under the title of the first.
#[derive(Clone, Copy)]
pub(crate) struct Drawn {
    pub(crate) title: &'static str,
    pub(crate) logarithmic: bool,
}

/// How a metric goes on from point to point when nothing stands in its way. Where it does not is a knee.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// It does not fall.
    Up,
    /// It does not rise.
    Down,
}

impl Metric {
    pub(crate) const fn new(key: &'static str, label: &'static str, unit: Unit) -> Self {
        Self {
            key,
            label,
            unit,
            plot: None,
            keeps: None,
        }
    }

    pub(crate) const fn drawn(mut self, title: &'static str, logarithmic: bool) -> Self {
        self.plot = Some(Drawn { title, logarithmic });
        self
    }

    pub(crate) const fn keeps(mut self, keeps: Keeps) -> Self {
        self.keeps = Some(keeps);
        self
    }
}

/// Why a metric has a knee between two values of x.
pub(crate) struct Knee {
    pub(crate) metric: &'static str,
    /// None in particular when it is empty.
    pub(crate) series: &'static [&'static str],
    pub(crate) above: f64,
    pub(crate) up_to: f64,
    pub(crate) why: &'static str,
}

/// Series of measurements over one thing that there can be more of.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// What is measured, for whoever reads the table.
    pub(crate) about: &'static str,
    pub(crate) x: Axis,
    pub(crate) points: Points,
    /// Their keys, and their names in legends.
    pub(crate) series: &'static [(&'static str, &'static str)],
    pub(crate) metrics: &'static [Metric],
    pub(crate) measure: fn(series: &'static str, x: f64, extent: Extent) -> Result<Figures, Error>,
    /// How often a point is measured at most; those that take long not as often as the others.
    pub(crate) most_runs: fn(x: f64) -> usize,
    /// Sentences with what the figures say, as far as those that it takes are there.
    pub(crate) says: fn(&Outcome<'_>) -> Vec<Option<String>>,
    /// Knees that there may be.
    pub(crate) knees: &'static [Knee],
}

/// As often as any other.
pub(crate) fn every_run(_: f64) -> usize {
    usize::MAX
}

impl Curve {
    /// The points that are measured, and how they are shown.
    pub(crate) fn points(&self, extent: Extent) -> Vec<(f64, String)> {
        let all: Vec<(f64, String)> = match self.points {
            Points::Numbers(numbers) => numbers.iter().map(|n| (*n, self.x.unit.show(*n))).collect(),
            Points::Cases(cases) => (0..)
                .map(f64::from)
                .zip(cases.iter().map(|&case| case.to_owned()))
                .collect(),
        };
        let last = all.len() - 1;
        let is_wanted = |index: usize| match (extent, &self.points) {
            (Extent::Test, _) => index == 0,
            (Extent::Quick, Points::Numbers(_)) => index.is_multiple_of(3) || index == last,
            _ => true,
        };
        let all = all.into_iter().enumerate();
        all.filter(|(index, _)| is_wanted(*index))
            .map(|(_, point)| point)
            .collect()
    }

    pub(crate) fn metric(&self, key: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.key == key)
    }
}

pub(crate) fn find(name: &str) -> Result<&'static Curve, Error> {
    let curve = CURVES.iter().find(|curve| curve.name == name);
    curve.copied().ok_or_else(|| {
        let names: Vec<&str> = CURVES.iter().map(|curve| curve.name).collect();
        format!("there is no curve {name}, but {}", names.join(", ")).into()
    })
}
