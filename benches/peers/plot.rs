//! The plot: a panel for each figure, a bar for each peer on a scale of powers of ten.

use crate::plan::{Kind, PEERS, Peer};
use crate::report::grouped;
use crate::results::{Results, Series};
use crate::targets;

struct Panel {
    workload: &'static str,
    metric: &'static str,
    title: &'static str,
    more_is_better: bool,
}

const fn panel(
    workload: &'static str,
    metric: &'static str,
    title: &'static str,
    more_is_better: bool,
) -> Panel {
    Panel {
        workload,
        metric,
        title,
        more_is_better,
    }
}

const PANELS: [Panel; 10] = [
    panel("W1", "p50", "W1: one tiny call, median, µs", false),
    panel("W1", "p99", "W1: one tiny call, 99th percentile, µs", false),
    panel("W2", "rate", "W2: single tiny calls, tasks/s", true),
    panel("W3", "default", "W3: map of tiny items, items/s", true),
    panel("W4", "small", "W4: echo of 1 MiB, MB/s", true),
    panel("W4", "large", "W4: echo of 64 MiB, MB/s", true),
    panel("W5", "first", "W5: a pool of two to its first results, ms", false),
    panel("W6", "private", "W6: own memory of an idle worker, MiB", false),
    panel(
        "W6",
        "queued",
        "W6: parent’s memory per queued task, bytes",
        false,
    ),
    panel("W7", "scaling", "W7: computation on two cores, T1/(2×T2)", true),
];

const COLUMNS: usize = 2;
const WIDTH: f64 = 460.0;
const GAP: f64 = 24.0;
const ROW: f64 = 17.0;
const HEAD: f64 = 42.0;
/// Below the bars, for the scale and the name of the target.
const FOOT: f64 = 34.0;
/// Where bars begin and end; names are left of them, figures right.
const LEFT: f64 = 176.0;
const RIGHT: f64 = 405.0;
const MARGIN: f64 = 16.0;

/// Colours by the reader's scheme; the plot has a ground of its own, so that it can be read wherever it is shown.
const STYLE: &str = "\
:root { color-scheme: light dark }
text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #24292f;
paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round }
.title { font-weight: 600; font-size: 13px } .ours { font-weight: 700 } .small { font-size: 10px; fill: #57606a }
.ground { fill: #ffffff } .grid { stroke: #d8dee4 } .whisker { stroke: #24292f; fill: none } .target { stroke: #cf222e }
.to { fill: #cf222e; font-size: 10px } .bar-ours { fill: #0969da } .bar-peer { fill: #afb8c1 }
.bar-threads { fill: #d4a72c } .bar-limit { fill: #4ac26b }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; stroke: #0d1117 } .small { fill: #9198a1 } .ground { fill: #0d1117 } .grid { stroke: #2b3138 }
.whisker { stroke: #e6edf3 } .target { stroke: #ff7b72 } .to { fill: #ff7b72 } .bar-ours { fill: #388bfd }
.bar-peer { fill: #57606a } .bar-threads { fill: #9e7513 } .bar-limit { fill: #2f8f46 }
}";

/// The plot of all panels that have figures.
pub(crate) fn svg(results: &Results, caption: &str) -> String {
    let panels: Vec<_> = PANELS
        .iter()
        .map(|panel| (panel, bars(panel, results)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let mut body = String::new();
    let mut y = MARGIN + 44.0;
    for row in panels.chunks(COLUMNS) {
        for (column, (panel, bars)) in row.iter().enumerate() {
            let x = MARGIN + column as f64 * (WIDTH + GAP);
            let target = targets::line(results, panel.workload, panel.metric);
            body += &draw(panel, bars, target, x, y);
        }
        let most = row.iter().map(|(_, bars)| bars.len()).max().unwrap_or(0);
        y += HEAD + most as f64 * ROW + FOOT;
    }
    let width = 2.0 * MARGIN + COLUMNS as f64 * WIDTH + (COLUMNS - 1) as f64 * GAP;
    let height = y + MARGIN - 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n<style>\n{STYLE}\n</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\" \
         rx=\"6\"/>\n{}{body}</svg>\n",
        legend(caption)
    )
}

/// What the colours and signs mean, above the panels.
fn legend(caption: &str) -> String {
    let mut svg = String::new();
    let mut x = MARGIN;
    for (class, name) in [
        ("bar-ours", "procession"),
        ("bar-peer", "processes"),
        ("bar-threads", "threads"),
        ("bar-limit", "the machine, bare"),
    ] {
        svg += &format!("<rect class=\"{class}\" x=\"{x}\" y=\"15\" width=\"12\" height=\"12\" rx=\"2\"/>\n");
        svg += &text("", Anchor::Start, x + 17.0, 25.0, name);
        x += 44.0 + name.len() as f64 * 6.6;
    }
    svg + &target_line(x, 13.0, 29.0)
        + &text("", Anchor::Start, x + 7.0, 25.0, "target")
        + &text("small", Anchor::Start, MARGIN, 44.0, caption)
}

enum Anchor {
    Start,
    Middle,
    End,
}

fn text(class: &str, anchor: Anchor, x: f64, y: f64, content: &str) -> String {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>\n")
}

fn target_line(x: f64, top: f64, bottom: f64) -> String {
    format!(
        "<path class=\"target\" stroke-width=\"1.5\" stroke-dasharray=\"4 2\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/>\n"
    )
}

/// Peers with their figures, the best first.
fn bars<'a>(panel: &Panel, results: &'a Results) -> Vec<(&'static Peer, &'a Series)> {
    let mut bars: Vec<_> = PEERS
        .iter()
        .filter_map(|peer| Some((peer, results.figure(panel.workload, peer.key, panel.metric)?)))
        .filter(|(_, series)| series.least() > 0.0 && series.most().is_finite())
        .collect();
    bars.sort_by(|(_, a), (_, b)| a.median().total_cmp(&b.median()));
    if panel.more_is_better {
        bars.reverse();
    }
    bars
}

fn draw(panel: &Panel, bars: &[(&Peer, &Series)], target: Option<(f64, &str)>, x: f64, y: f64) -> String {
    let ends = |of: fn(&Series) -> f64| bars.iter().map(move |(_, series)| of(series));
    let target_at = target.map(|(figure, _)| figure);
    let least = ends(Series::least).chain(target_at).fold(f64::INFINITY, f64::min);
    let most = ends(Series::most).chain(target_at).fold(0.0, f64::max);
    // A bar that is the least is still seen.
    let from = (least / 1.6).log10();
    let to = most.log10().max(from + 0.1);
    let place = |figure: f64| x + LEFT + (figure.log10() - from) / (to - from) * (RIGHT - LEFT);
    let better = if panel.more_is_better {
        "more is better"
    } else {
        "less is better"
    };
    let top = y + HEAD - 14.0;
    let bottom = top + bars.len() as f64 * ROW;
    let mut svg = text("title", Anchor::Start, x, y + 14.0, panel.title);
    svg += &text("small", Anchor::End, x + WIDTH, y + 14.0, better);
    for (figure, name) in ticks(from, to) {
        let at = place(figure);
        svg += &format!("<path class=\"grid\" d=\"M{at:.1} {top:.1}V{bottom:.1}\"/>\n");
        svg += &text("small", Anchor::Middle, at, bottom + 12.0, &name);
    }
    for (index, (peer, series)) in bars.iter().enumerate() {
        svg += &bar(peer, series, x, top + index as f64 * ROW, &place);
    }
    if let Some((figure, name)) = target {
        let at = place(figure);
        svg += &target_line(at, top - 3.0, bottom + 15.0);
        svg += &text("to", Anchor::Middle, at, bottom + 25.0, name);
    }
    // Over the line, which would cross them.
    for (index, (peer, series)) in bars.iter().enumerate() {
        let class = if peer.kind == Kind::Ours { "ours" } else { "" };
        let behind = place(series.most()) + 5.0;
        let y = top + (index as f64 + 0.5) * ROW + 4.0;
        svg += &text(class, Anchor::End, x + LEFT - 6.0, y, peer.name);
        svg += &text(class, Anchor::Start, behind, y, &brief(series.median()));
    }
    svg
}

fn bar(peer: &Peer, series: &Series, x: f64, y: f64, place: &impl Fn(f64) -> f64) -> String {
    let class = match peer.kind {
        Kind::Ours => "bar-ours",
        Kind::Processes | Kind::SharedBytes => "bar-peer",
        Kind::Threads => "bar-threads",
        Kind::Limit => "bar-limit",
    };
    let mut svg = format!(
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>\n",
        x + LEFT,
        y + 2.0,
        place(series.median()) - x - LEFT,
        ROW - 4.0
    );
    let (least, most) = (place(series.least()), place(series.most()));
    if least < most {
        let middle = y + ROW / 2.0;
        let (up, down) = (middle - 3.0, middle + 3.0);
        svg += &format!(
            "<path class=\"whisker\" d=\"M{least:.1} {middle:.1}H{most:.1}M{least:.1} {up:.1}V{down:.1}M{most:.1} \
             {up:.1}V{down:.1}\"/>\n"
        );
    }
    svg
}

/// Marks of the scale: powers of ten, and where there are few of them what lies between.
fn ticks(from: f64, to: f64) -> Vec<(f64, String)> {
    let steps: &[f64] = match to - from {
        span if span > 2.0 => &[1.0],
        span if span > 1.0 => &[1.0, 3.0],
        _ => &[1.0, 2.0, 4.0, 6.0, 8.0],
    };
    let powers = (from.floor() as i32)..=(to.ceil() as i32);
    powers
        .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
        .filter(|figure| (from..=to).contains(&figure.log10()))
        .map(|figure| (figure, brief(figure)))
        .collect()
}

/// A figure in as few characters as say it.
fn brief(figure: f64) -> String {
    let digits = |figure: f64| match figure {
        figure if figure >= 100.0 => grouped(&format!("{figure:.0}")),
        figure if figure >= 10.0 => format!("{figure:.1}"),
        figure => format!("{figure:.2}"),
    };
    let text = match figure {
        figure if figure >= 1e6 => return trimmed(&digits(figure / 1e6)) + " M",
        figure if figure >= 1e4 => return trimmed(&digits(figure / 1e3)) + " k",
        figure => digits(figure),
    };
    trimmed(&text)
}

fn trimmed(text: &str) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}
