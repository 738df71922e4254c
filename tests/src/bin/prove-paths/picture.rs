//! All pairs over time as an SVG: one strip for each, coloured by whether its echoes came back, and over which path.

use std::fmt::Write as _;
use std::time::Duration;

use crate::network::is_direct;
use crate::probes::Track;
use crate::run::{Pair, Run};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 70.0;
const PLOT: f64 = WIDTH - LEFT - 20.0;
const TOP: f64 = 150.0;
const STRIP: f64 = 12.0;
/// Least distance of two labels.
const LABEL: f64 = 24.0;
const COLOURS: [(&str, &str); 6] = [
    ("direct", "#2ca02c"),
    ("punched", "#1f77b4"),
    ("relayed", "#ff9f1c"),
    ("answered", "#8fbf8f"),
    ("lost", "#d62728"),
    ("not asked", "#eeeeee"),
];
/// Time that one piece of a strip stands for.
const PIECE: Duration = Duration::from_millis(500);

/// Draws a run.
pub(crate) fn draw(run: &Run<'_>) -> String {
    let end = run.probes.now();
    let x = |at: Duration| LEFT + PLOT * at.as_secs_f64() / end.as_secs_f64().max(0.1);
    let pairs = run.pairs();
    let mut body = String::new();
    let mut top = TOP;
    // Writing into a String can't fail.
    for pair in &pairs {
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{} - {}</text>",
            LEFT - 6.0,
            top + 9.0,
            pair.0,
            pair.1
        );
        for (from, to, kind) in pieces(run, pair, end) {
            let colour = COLOURS.iter().find(|(name, _)| *name == kind).map_or("white", |(_, colour)| colour);
            let _ = writeln!(
                body,
                "<rect x=\"{:.1}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                x(from),
                x(to) - x(from),
                STRIP - 2.0
            );
        }
        top += STRIP;
    }
    // Labels of events that follow each other closely stand side by side, each with a line to its moment.
    let mut beside = f64::MIN;
    for (at, what) in &run.events {
        let label = x(*at).max(beside + LABEL);
        beside = label;
        let _ = writeln!(
            body,
            "<polyline points=\"{label:.1},{2} {0:.1},{1} {0:.1},{top:.0}\" fill=\"none\" stroke=\"black\" \
             stroke-width=\"0.6\"/>\n\
             <text x=\"{label:.1}\" y=\"{2}\" transform=\"rotate(-28 {label:.1} {2})\">{what}</text>",
            x(*at),
            TOP,
            TOP - 14.0
        );
    }
    let mut second = 0;
    while Duration::from_secs(second) <= end {
        let at = x(Duration::from_secs(second));
        let _ = writeln!(
            body,
            "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{second} s</text>",
            top + 16.0
        );
        second += if end > Duration::from_mins(2) { 30 } else { 10 };
    }
    for (place, (name, colour)) in (0_u8..).zip(COLOURS) {
        let left = LEFT + f64::from(place) * 110.0;
        let _ = writeln!(
            body,
            "<rect x=\"{left:.0}\" y=\"{:.0}\" width=\"12\" height=\"12\" fill=\"{colour}\" stroke=\"#888\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\">{name}</text>",
            top + 28.0,
            left + 17.0,
            top + 38.0
        );
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {0:.0}\" font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"{WIDTH}\" height=\"{0:.0}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">Echoes between the pods of seven nodes on five networks</text>\n{body}</svg>\n",
        top + 54.0
    )
}

/// The pieces of a pair's strip, joined while they are of one kind.
fn pieces(run: &Run<'_>, pair: &Pair, end: Duration) -> Vec<(Duration, Duration, &'static str)> {
    let track = run.probes.track(&pair.0, &pair.1, Duration::ZERO);
    let echoes = track.as_ref().map(Track::echoes).unwrap_or_default();
    let mut pieces: Vec<(Duration, Duration, &'static str)> = Vec::new();
    let mut from = Duration::ZERO;
    while from < end {
        let to = from + PIECE;
        let first = echoes.partition_point(|echo| echo.sent < from);
        let last = echoes.partition_point(|echo| echo.sent < to);
        let within = echoes.get(first..last).unwrap_or_default();
        let kind = if within.is_empty() {
            "not asked"
        } else if within.iter().any(|echo| echo.is_lost(end)) {
            "lost"
        } else {
            kind_of(path_at(run, pair, from))
        };
        match pieces.last_mut() {
            Some((_, until, known)) if *known == kind => *until = to.min(end),
            _ => pieces.push((from, to.min(end), kind)),
        }
        from = to;
    }
    pieces
}

fn path_at<'a>(run: &'a Run<'_>, pair: &Pair, at: Duration) -> Option<&'a str> {
    let mut changes = run.paths.changes.iter().filter(|(when, of, _)| of == pair && *when <= at + PIECE);
    changes.next_back().map(|(_, _, path)| path.as_str())
}

fn kind_of(path: Option<&str>) -> &'static str {
    match path {
        Some("punched") => "punched",
        Some(path) if is_direct(path) => "direct",
        Some(path) if path.starts_with("relayed") => "relayed",
        _ => "answered",
    }
}
