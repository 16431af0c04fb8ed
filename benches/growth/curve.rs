//! What a curve is, and which there are.

use crate::Error;
use crate::curves::{callers, depth, fairness, idle, lengths, looking, payloads, pools, workers};
use crate::measure::Figures;
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
    /// Cases by name, which nothing is drawn of.
    Cases(&'static [&'static str]),
}

/// What is measured in each point.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    pub(crate) unit: Unit,
    pub(crate) plot: Option<Drawn>,
}

/// A plot of a metric.
pub(crate) struct Drawn {
    pub(crate) title: &'static str,
    pub(crate) logarithmic: bool,
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
}

pub(crate) fn find(name: &str) -> Result<&'static Curve, Error> {
    let curve = CURVES.iter().find(|curve| curve.name == name);
    curve.copied().ok_or_else(|| {
        let names: Vec<&str> = CURVES.iter().map(|curve| curve.name).collect();
        format!("there is no curve {name}, but {}", names.join(", ")).into()
    })
}
