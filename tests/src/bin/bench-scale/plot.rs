//! Measurements against the number of peers as an SVG, both on a logarithmic scale, with the goals beside them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::Row;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 40.0;
const PLOT: (f64, f64) = (WIDTH - LEFT - 30.0, HEIGHT - TOP - 40.0);

/// Draws one quantity; none if it was not measured.
pub(crate) fn draw(rows: &[Row], what: &str) -> Option<String> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.what == what && row.measured.is_some()).collect();
    let points = |value: &dyn Fn(&Row) -> Option<f64>| -> BTreeMap<usize, f64> {
        rows.iter().filter_map(|row| Some((row.size, value(row)?))).collect()
    };
    let (measured, goals) = (points(&|row| row.measured), points(&Row::goal));
    let positive = || measured.values().chain(goals.values()).copied().filter(|value| *value > 0.0);
    let (least, most) = (positive().fold(f64::MAX, f64::min), positive().fold(0.0, f64::max));
    let (smallest, largest) = (*measured.keys().next()?, *measured.keys().last()?);
    let scale = |value: f64, from: f64, to: f64| {
        if to > from { (value.max(from) / from).ln() / (to / from).ln() } else { 0.5 }
    };
    let x = |size: usize| LEFT + PLOT.0 * scale(number(size), number(smallest), number(largest));
    let y = |value: f64| TOP + PLOT.1 * (1.0 - scale(value, least, most));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{what}</text>\n\
         <text x=\"{LEFT}\" y=\"{:.0}\">peers; grey: the goal</text>\n",
        HEIGHT - 6.0
    );
    for (points, colour) in [(&goals, "#999999"), (&measured, "#1f77b4")] {
        let path: Vec<String> =
            points.iter().map(|(size, value)| format!("{:.1},{:.1}", x(*size), y(*value))).collect();
        // Writing into a String can't fail.
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            path.join(" ")
        );
        for (size, value) in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{0:.1}\" cy=\"{1:.1}\" r=\"3\" fill=\"{colour}\"/>\
                 <text x=\"{0:.1}\" y=\"{2:.1}\" fill=\"{colour}\" text-anchor=\"middle\">{value:.1}</text>",
                x(*size),
                y(*value),
                y(*value) - 7.0
            );
        }
    }
    for size in measured.keys() {
        let (at, bottom) = (x(*size), HEIGHT - 22.0);
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{bottom:.0}\" text-anchor=\"middle\">{size}</text>");
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

#[expect(clippy::cast_precision_loss, reason = "a picture")]
const fn number(size: usize) -> f64 {
    size as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_is_drawn_once_and_nothing_without_a_measurement() {
        let row = |size, measured| {
            let what = "RSS, MiB".to_owned();
            Row { size, what, measured, details: serde_json::Value::Null }
        };
        let rows = [row(50, Some(15.0)), row(500, Some(30.0)), row(5_000, None)];
        let svg = draw(&rows, "RSS, MiB").unwrap();
        assert_eq!((svg.matches("<circle").count(), svg.contains("NaN")), (4, false), "{svg}");
        assert!(svg.contains(">500<") && !svg.contains(">5000<"));
        assert_eq!(draw(&rows, "idle, millicores"), None);
    }
}
