//! Dots in rows, one row for each case, over a logarithmic scale.

use std::fmt::Write as _;

use super::{Axis, Point, Scale, Unit, WIDTH, escape, foot, head};

const LEFT: f64 = 320.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 66.0;
const ROW: f64 = 19.0;
const BOTTOM: f64 = 46.0;

/// A case, with what was measured of it in the order of the legend.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) dots: Vec<Option<Point>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) title: String,
    /// What stands small under the plot: the machine, the number of runs.
    pub(crate) note: String,
    pub(crate) unit: Unit,
    /// What the dots are.
    pub(crate) dots: Vec<&'static str>,
    pub(crate) rows: Vec<Row>,
}

impl Rows {
    /// The plot as a file of its own.
    pub(crate) fn svg(&self) -> String {
        let bottom = TOP + self.rows.len() as f64 * ROW;
        let height = bottom + BOTTOM;
        let axis = Axis {
            label: "",
            unit: self.unit,
            logarithmic: true,
        };
        let points = self.rows.iter().flat_map(|row| row.dots.iter().flatten());
        let values = points.flat_map(|point| [point.least, point.y, point.most]);
        let scale = Scale::new(axis, values, (LEFT, WIDTH - RIGHT), true);

        let mut svg = String::new();
        // Writing to a string does not fail.
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(svg, "{text}").unwrap_or_default();
        line(format_args!("{}", head(height, &self.title, self.dots.len())));
        for (index, name) in self.dots.iter().enumerate() {
            let at = LEFT + index as f64 * 130.0;
            line(format_args!(
                r#"<circle class="d{index}" cx="{at}" cy="46" r="4"/><text class="ink" x="{}" y="50">{}</text>"#,
                at + 10.0,
                escape(name)
            ));
        }
        for tick in scale.ticks() {
            let at = scale.place(tick);
            line(format_args!(
                r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/><text class="faint" x="{at:.1}" y="{}" text-anchor="middle">{}</text>"#,
                bottom + 16.0,
                self.unit.show(tick)
            ));
        }
        for (index, row) in self.rows.iter().enumerate() {
            let up = TOP + (index as f64 + 0.5) * ROW;
            line(format_args!(
                r#"<text class="ink" x="{}" y="{}" text-anchor="end">{}</text>"#,
                LEFT - 10.0,
                up + 4.0,
                escape(&row.name)
            ));
            let dots = row.dots.iter().enumerate();
            for (index, dot) in dots.filter_map(|(index, dot)| Some((index, (*dot)?))) {
                // Nothing has no place on such a scale.
                if dot.y <= 0.0 {
                    continue;
                }
                line(format_args!(
                    r#"<line class="s{index} spread" x1="{:.1}" x2="{:.1}" y1="{up}" y2="{up}"/><circle class="d{index}" cx="{:.1}" cy="{up}" r="4"/>"#,
                    scale.place(dot.least),
                    scale.place(dot.most),
                    scale.place(dot.y)
                ));
            }
        }
        line(format_args!("{}", foot(height, &self.note)));
        svg
    }
}
