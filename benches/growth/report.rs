//! The section of a curve: plots, what they say, knees, and a table.

use std::path::Path;

use crate::curve::Points;
use crate::machine::{machine, version};
use crate::outcome::{Found, Outcome};
use crate::plot::{Axis, Plot, Row, Rows, Series};

/// Where plots lie, seen from the page.
pub(crate) const FIGURES: &str = "figures";

/// What the figures were measured on.
fn note(outcome: &Outcome<'_>) -> String {
    format!(
        "procession {}, {}; {}",
        version(),
        machine(),
        match outcome.runs {
            1 => "1 run".to_owned(),
            runs => format!("medians of {runs} interleaved runs, with least and most"),
        },
    )
}

/// The section, with the plots of these names.
pub(crate) fn section(outcome: &Outcome<'_>, plots: &[(String, String)]) -> String {
    let curve = outcome.curve;
    let mut text = format!(
        "## {}\n\n{}.\n\n{}.\n\n",
        heading(curve.name),
        curve.about,
        note(outcome)
    );
    for (file, _) in plots {
        let name = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
        text += &format!("![{name}]({FIGURES}/{file})\n");
    }
    if !plots.is_empty() {
        text.push('\n');
    }
    for sentence in (curve.says)(outcome).into_iter().flatten() {
        text += &format!("- {sentence}\n");
    }
    let knees = outcome.knees();
    let keeps = curve.metrics.iter().any(|metric| metric.keeps.is_some());
    if keeps && matches!(curve.points, Points::Numbers(_)) {
        text += "\nKnees, where it is worse than at the point before in every run:";
        text += if knees.is_empty() { " none.\n" } else { "\n\n" };
        for (why, knees) in by_reason(knees) {
            text += &format!(
                "- {}. {}\n",
                knees.join("; "),
                why.unwrap_or("**Not explained.**")
            );
        }
    }
    text + "\n" + &table(outcome)
}

/// What knees have in common is said once.
fn by_reason(knees: Vec<Found>) -> Vec<(Option<&'static str>, Vec<String>)> {
    let mut reasons: Vec<(Option<&'static str>, Vec<String>)> = Vec::new();
    for knee in knees {
        match reasons.iter_mut().find(|(why, _)| *why == knee.why) {
            Some((_, texts)) => texts.push(knee.text),
            None => reasons.push((knee.why, vec![knee.text])),
        }
    }
    reasons
}

fn heading(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// A Markdown table: a row for each point, a column for each series and metric.
fn table(outcome: &Outcome<'_>) -> String {
    let curve = outcome.curve;
    let columns = curve
        .metrics
        .iter()
        .flat_map(|metric| curve.series.iter().map(move |(key, name)| (metric, *key, *name)));
    let filled: Vec<_> = columns
        .filter(|(metric, series, _)| !outcome.line(series, metric.key).is_empty())
        .collect();
    let mut text = format!("| {} |", curve.x.label);
    for (metric, _, name) in &filled {
        let name = if curve.series.len() == 1 {
            ""
        } else {
            &format!("{name}: ")
        };
        text += &format!(" {name}{} |", metric.label);
    }
    text += &format!("\n| --- |{}\n", " --- |".repeat(filled.len()));
    for (x, shown) in curve.points(outcome.extent) {
        text += &format!("| {shown} |");
        for (metric, series, _) in &filled {
            let mut cell = match outcome.point(series, x, metric.key) {
                Some(point) if point.least < point.most => format!(
                    "{} [{}–{}]",
                    metric.unit.show(point.y),
                    metric.unit.show(point.least),
                    metric.unit.show(point.most)
                ),
                Some(point) => metric.unit.show(point.y),
                None => "–".to_owned(),
            };
            if let Some(runs) = outcome.fewer_runs(series, x, metric.key)
                && cell != "–"
            {
                cell += &format!(" ({runs} run{})", if runs == 1 { "" } else { "s" });
            }
            text += &format!(" {cell} |");
        }
        text.push('\n');
    }
    text
}

/// The files with the plots of a curve.
pub(crate) fn plots(outcome: &Outcome<'_>) -> Vec<(String, String)> {
    match outcome.curve.points {
        Points::Numbers(_) => lines(outcome),
        Points::Cases(_) => rows(outcome).into_iter().collect(),
    }
}

/// A plot for each metric that is drawn, with a line for each series.
fn lines(outcome: &Outcome<'_>) -> Vec<(String, String)> {
    let curve = outcome.curve;
    let mut files = Vec::new();
    for metric in curve.metrics {
        let Some(drawn) = &metric.plot else { continue };
        let series = curve.series.iter().map(|(key, name)| Series {
            name: (*name).to_owned(),
            points: outcome.line(key, metric.key),
        });
        let plot = Plot {
            title: drawn.title.to_owned(),
            note: note(outcome),
            x: curve.x,
            y: Axis {
                label: metric.label,
                unit: metric.unit,
                logarithmic: drawn.logarithmic,
            },
            series: series.filter(|series| !series.points.is_empty()).collect(),
        };
        files.push((format!("{}-{}.svg", curve.name, metric.key), plot.svg()));
    }
    files
}

/// One plot of all metrics that are drawn, with a row for each case and series.
fn rows(outcome: &Outcome<'_>) -> Option<(String, String)> {
    let curve = outcome.curve;
    let drawn = || curve.metrics.iter().filter(|metric| metric.plot.is_some());
    let first = drawn().next()?;
    let mut rows = Vec::new();
    for (x, case) in curve.points(outcome.extent) {
        for (key, name) in curve.series {
            let row = Row {
                name: format!("{case}: {name}"),
                dots: drawn().map(|metric| outcome.point(key, x, metric.key)).collect(),
            };
            if row.dots.iter().any(Option::is_some) {
                rows.push(row);
            }
        }
    }
    let plot = Rows {
        title: first.plot.map_or("", |drawn| drawn.title).to_owned(),
        note: note(outcome),
        unit: first.unit,
        dots: drawn().map(|metric| metric.label).collect(),
        rows,
    };
    Some((format!("{}.svg", curve.name), plot.svg()))
}
