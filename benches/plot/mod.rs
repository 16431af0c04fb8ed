//! Line plots as SVG, with axes that are linear or logarithmic, readable on light and on dark pages.

mod rows;

use std::fmt::Write as _;

pub(crate) use rows::{Row, Rows};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 178.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
/// Between two lines of the legend.
const LINE: f64 = 20.0;
/// Colours of series on a light page and on a dark one. The first six stay apart for the colour-blind.
const COLOURS: [(&str, &str); 8] = [
    ("#0b62b8", "#58a6ff"),
    ("#c4501b", "#ff9b5e"),
    ("#17804d", "#4fd08a"),
    ("#8a3fa8", "#d2a8ff"),
    ("#946200", "#e3b341"),
    ("#4b5563", "#a3adba"),
    ("#b3215f", "#ff7bb0"),
    ("#00767a", "#4fd3d8"),
];

/// How the numbers along an axis are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// 1,500 is `1.5k`.
    Count,
    /// 2,048 is `2 KiB`; ticks are at powers of two.
    Bytes,
    /// Given in microseconds: 1,500 is `1.5 ms`.
    Microseconds,
}

impl Unit {
    /// A number with its unit, in as few digits as tell it from its neighbours.
    pub(crate) fn show(self, value: f64) -> String {
        let (step, names): (f64, &[&str]) = match self {
            Self::Count => (1000.0, &["", "k", "M", "G"]),
            Self::Bytes => (1024.0, &[" B", " KiB", " MiB", " GiB"]),
            Self::Microseconds if value.abs() < 0.9995 && value != 0.0 => {
                return format!("{} ns", short(value * 1000.0));
            }
            Self::Microseconds => (1000.0, &[" µs", " ms", " s"]),
        };
        let mut value = value;
        let mut power = 0;
        // What would be rounded up to the next unit is shown in it.
        while value.abs() >= step * 0.9995 && power + 1 < names.len() {
            value /= step;
            power += 1;
        }
        short(value) + names[power]
    }
}

fn short(value: f64) -> String {
    let digits = match value.abs() {
        a if a >= 99.95 || a == 0.0 => 0,
        a if a >= 9.995 => 1,
        a if a >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// One of the two axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) label: &'static str,
    pub(crate) unit: Unit,
    /// Otherwise it is linear and begins at zero.
    pub(crate) logarithmic: bool,
}

/// A value and between which values its measurements lay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    /// What stands small under the plot: the machine, the number of runs.
    pub(crate) note: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// An axis with its range and where it lies on the page.
struct Scale {
    axis: Axis,
    least: f64,
    most: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn new(axis: Axis, values: impl Iterator<Item = f64>, (start, end): (f64, f64), margin: bool) -> Self {
        let usable = values.filter(|value| value.is_finite() && (*value > 0.0 || !axis.logarithmic));
        let (mut least, mut most) = usable
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
                (least.min(value), most.max(value))
            });
        if least > most {
            (least, most) = (1.0, 10.0);
        }
        if axis.logarithmic {
            if margin {
                (least, most) = (least / 1.3, most * 1.3);
            }
            if most / least < 4.0 {
                (least, most) = (least / 1.5, most * 1.5);
            }
        } else {
            (least, most) = (least.min(0.0), if most > 0.0 { most * 1.05 } else { 1.0 });
        }
        Self {
            axis,
            least,
            most,
            start,
            end,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = if self.axis.logarithmic {
            (value.max(self.least) / self.least).ln() / (self.most / self.least).ln()
        } else {
            (value - self.least) / (self.most - self.least)
        };
        self.start + share * (self.end - self.start)
    }

    fn ticks(&self) -> Vec<f64> {
        let candidates: Vec<f64> = if !self.axis.logarithmic {
            let step = round_step((self.most - self.least) / 5.0);
            let first = (self.least / step).ceil() as i64;
            (first..first + 12).map(|n| n as f64 * step).collect()
        } else if self.axis.unit == Unit::Bytes {
            let powers = (self.most / self.least).log2();
            let every = ((powers / 8.0).ceil() as usize).max(1);
            (0..64)
                .step_by(every)
                .map(|power| (power as f64).exp2())
                .collect()
        } else {
            let decades = (self.most / self.least).log10();
            let between: &[f64] = if decades < 2.0 {
                &[1.0, 2.0, 5.0]
            } else if decades < 3.0 {
                &[1.0, 3.0]
            } else {
                &[1.0]
            };
            let powers = -6..16;
            powers
                .flat_map(|power| between.iter().map(move |digit| digit * 10_f64.powi(power)))
                .collect()
        };
        let inside = |tick: &f64| *tick >= self.least * 0.999 && *tick <= self.most * 1.001;
        candidates.into_iter().filter(inside).collect()
    }
}

/// A step of 1, 2 or 5 times a power of ten that is not less than `step`.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|digit| digit * power >= step * 0.999);
    digit.unwrap_or(10.0) * power
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Plot {
    /// The plot as a file of its own.
    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let right = WIDTH - RIGHT;
        let bottom = HEIGHT - BOTTOM;
        let x = Scale::new(self.x, points().map(|point| point.x), (LEFT, right), false);
        let heights = points().flat_map(|point| [point.least, point.y, point.most]);
        let y = Scale::new(self.y, heights, (bottom, TOP), true);

        let mut svg = String::new();
        // Writing to a string does not fail.
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(svg, "{text}").unwrap_or_default();
        line(format_args!("{}", head(HEIGHT, &self.title, self.series.len())));
        for tick in y.ticks() {
            let at = y.place(tick);
            line(format_args!(
                r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text class="faint" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                at + 4.0,
                self.y.unit.show(tick)
            ));
        }
        for tick in x.ticks() {
            let at = x.place(tick);
            line(format_args!(
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/><text class="faint" x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                bottom + 17.0,
                self.x.unit.show(tick)
            ));
        }
        line(format_args!(
            r#"<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>"#
        ));
        line(format_args!(
            r#"<text class="ink" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            f64::midpoint(LEFT, right),
            HEIGHT - 18.0,
            escape(self.x.label)
        ));
        line(format_args!(
            r#"<text class="ink" transform="translate(16 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
            f64::midpoint(TOP, bottom),
            escape(self.y.label)
        ));
        for (index, series) in self.series.iter().enumerate() {
            let shown = |point: &&Point| point.y.is_finite() && (point.y > 0.0 || !self.y.logarithmic);
            let points: Vec<&Point> = series.points.iter().filter(shown).collect();
            let mut path = String::new();
            for point in &points {
                let (across, up) = (x.place(point.x), y.place(point.y));
                path += &format!("{}{across:.1} {up:.1}", if path.is_empty() { "M" } else { "L" });
                line(format_args!(
                    r#"<line class="s{index} spread" x1="{across:.1}" x2="{across:.1}" y1="{:.1}" y2="{:.1}"/><circle class="d{index}" cx="{across:.1}" cy="{up:.1}" r="2.6"/>"#,
                    y.place(point.least),
                    y.place(point.most)
                ));
            }
            line(format_args!(r#"<path class="s{index}" d="{path}"/>"#));
            let at = TOP + 8.0 + index as f64 * LINE;
            let legend = right + 14.0;
            line(format_args!(
                r#"<path class="s{index}" d="M{legend} {at}h18"/><text class="ink" x="{}" y="{}">{}</text>"#,
                legend + 24.0,
                at + 4.0,
                escape(&series.name)
            ));
        }
        line(format_args!("{}", foot(HEIGHT, &self.note)));
        svg
    }
}

/// The beginning of a file: the page and its title.
fn head(height: f64, title: &str, series: usize) -> String {
    let title = escape(title);
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="12">
<title>{title}</title>
{}
<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>
<text class="ink" x="{LEFT}" y="24" font-size="15" font-weight="600">{title}</text>"#,
        style(series)
    )
}

/// The end of a file.
fn foot(height: f64, note: &str) -> String {
    format!(
        r#"<text class="faint" x="{}" y="{}" font-size="10" text-anchor="end">{}</text>
</svg>"#,
        WIDTH - 10.0,
        height - 5.0,
        escape(note)
    )
}

fn style(series: usize) -> String {
    let mut light = ".page{fill:#fff}.ink{fill:#1f2328}.faint{fill:#59636e}.grid{stroke:#e3e6ea}\
        .axis{stroke:#59636e;fill:none}.spread{stroke-width:1;opacity:.45}"
        .to_owned();
    let mut dark = ".page{fill:#0d1117}.ink{fill:#e6edf3}.faint{fill:#9198a1}.grid{stroke:#262c36}\
        .axis{stroke:#9198a1}"
        .to_owned();
    for (index, (on_light, on_dark)) in COLOURS.iter().cycle().take(series).enumerate() {
        light += &format!(
            ".s{index}{{stroke:{on_light};fill:none;stroke-width:2;stroke-linejoin:round}}.d{index}{{fill:{on_light}}}"
        );
        dark += &format!(".s{index}{{stroke:{on_dark}}}.d{index}{{fill:{on_dark}}}");
    }
    // Behind the others, for it is as specific as they are.
    light += ".spread{stroke-width:1}";
    format!("<style>{light}@media (prefers-color-scheme:dark){{{dark}}}</style>")
}
