//! One rotation over time as an SVG: which slot carries the traffic, and that what is sent arrives.

use std::fmt::Write as _;
use std::time::Duration;

/// What was seen at one moment.
pub(crate) struct Sample {
    /// Since the picture's left edge.
    pub(crate) at: Duration,
    /// Where the rotation was.
    pub(crate) step: String,
    /// The slot that was drained.
    pub(crate) slot: Option<String>,
    /// Bytes that the rotating node had received on slots a and b. A slot that got a new key counts from zero again.
    pub(crate) received: [u64; 2],
    /// Packets of all streams.
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const PLOT: f64 = WIDTH - LEFT - 24.0;
const STEP_COLOURS: [(&str, &str); 5] = [
    ("steady", "#f2f2f2"),
    ("draining", "#fde8c4"),
    ("verifying", "#cfe3f7"),
    ("between", "#dff0d8"),
    ("restoring", "#f7cfcf"),
];

/// Draws the samples.
pub(crate) fn draw(samples: &[Sample]) -> String {
    let end = samples.last().map_or(1.0, |sample| sample.at.as_secs_f64()).max(0.1);
    let x = |at: f64| LEFT + PLOT * at / end;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 420\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"420\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">One rotation of one node's two keys, under traffic with three others</text>\n"
    );
    // Writing into a String can't fail.
    for (name, from, to) in steps(samples) {
        let colour = STEP_COLOURS
            .iter()
            .find(|(step, _)| name.starts_with(step))
            .map_or("white", |(_, colour)| colour);
        let (left, width) = (x(from), x(to) - x(from));
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"34\" width=\"{width:.1}\" height=\"330\" fill=\"{colour}\"/>"
        );
        if width > 52.0 {
            let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"48\">{name}</text>", left + 4.0);
        }
    }
    let rates = |value: &dyn Fn(&Sample) -> u64| rates(samples, value);
    let [a, b] = [0, 1].map(|slot: usize| rates(&|sample| sample.received[slot]));
    let most = a.iter().chain(&b).map(|(_, rate)| *rate).fold(1.0, f64::max);
    panel(&mut svg, 60.0, "received, kB/s", most / 1000.0);
    curve(&mut svg, 60.0, &a, most, x, "#1f77b4", "slot a");
    curve(&mut svg, 60.0, &b, most, x, "#d62728", "slot b");
    let (sent, arrived) = (rates(&|sample| sample.sent), rates(&|sample| sample.arrived));
    let most = sent.iter().chain(&arrived).map(|(_, rate)| *rate).fold(1.0, f64::max);
    panel(&mut svg, 220.0, "packets/s", most);
    curve(&mut svg, 220.0, &sent, most, x, "#999999", "sent, all pairs");
    curve(&mut svg, 220.0, &arrived, most, x, "#2ca02c", "arrived, all pairs");
    let mut second = 0.0;
    while second <= end {
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"380\" text-anchor=\"middle\">{second} s</text>", x(second));
        second += if end > 20.0 { 5.0 } else { 1.0 };
    }
    for (place, (step, colour)) in (0_u8..).zip(STEP_COLOURS) {
        let left = LEFT + PLOT - 5.0 * 92.0 + f64::from(place) * 92.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"392\" width=\"12\" height=\"12\" fill=\"{colour}\" stroke=\"#888\"/>\
             <text x=\"{:.1}\" y=\"402\">{step}</text>",
            left + 17.0
        );
    }
    let lost = samples.last().map_or(0, |last| last.sent.saturating_sub(last.arrived));
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"402\">in flight at the last sample: {lost} packets</text>\n</svg>"
    );
    svg
}

/// Spans of time with the same step.
fn steps(samples: &[Sample]) -> Vec<(String, f64, f64)> {
    let mut spans: Vec<(String, f64, f64)> = Vec::new();
    for sample in samples {
        let at = sample.at.as_secs_f64();
        let name = sample
            .slot
            .as_ref()
            .map_or_else(|| sample.step.clone(), |slot| format!("{} {slot}", sample.step));
        match spans.last_mut() {
            Some((last, _, to)) if *last == name => *to = at,
            _ => {
                if let Some((_, _, to)) = spans.last_mut() {
                    *to = at;
                }
                spans.push((name, at, at));
            }
        }
    }
    spans
}

/// Shortest time over which a rate is computed: over less it shows when the samples were taken and not what happened.
const SPAN: Duration = Duration::from_millis(80);

/// How fast a count grew between samples. One that fell was reset.
fn rates(samples: &[Sample], value: &dyn Fn(&Sample) -> u64) -> Vec<(f64, f64)> {
    let mut spaced: Vec<&Sample> = Vec::new();
    for sample in samples {
        if spaced.last().is_none_or(|last| sample.at.saturating_sub(last.at) >= SPAN) {
            spaced.push(sample);
        }
    }
    let rate = |pair: &[&Sample]| {
        let [before, after] = pair else { return None };
        let seconds = after.at.saturating_sub(before.at).as_secs_f64();
        // Counts of seconds are far below what a float holds.
        #[expect(clippy::cast_precision_loss, reason = "a picture")]
        let grown = value(after).saturating_sub(value(before)) as f64;
        (seconds > 0.0).then(|| (after.at.as_secs_f64(), grown / seconds))
    };
    spaced.windows(2).filter_map(rate).collect()
}

fn panel(svg: &mut String, top: f64, label: &str, most: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" stroke=\"#888\"/>\n\
         <text x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{most:.0}</text>\n<text x=\"{2}\" y=\"{0}\" text-anchor=\"end\">0</text>\n\
         <text x=\"14\" y=\"{4}\" transform=\"rotate(-90 14 {4})\" text-anchor=\"middle\">{label}</text>",
        top + 130.0,
        LEFT + PLOT,
        LEFT - 6.0,
        top + 14.0,
        top + 66.0,
    );
}

fn curve(
    svg: &mut String,
    top: f64,
    points: &[(f64, f64)],
    most: f64,
    x: impl Fn(f64) -> f64,
    colour: &str,
    label: &str,
) {
    let y = |rate: f64| top + 130.0 - 120.0 * rate / most;
    let path: Vec<String> =
        points.iter().map(|(at, rate)| format!("{:.1},{:.1}", x(*at), y(*rate))).collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
        path.join(" ")
    );
    // One left and one right, so that they don't cover each other.
    let part = if matches!(label, "slot b" | "arrived, all pairs") { 2 } else { 12 };
    if let Some((at, rate)) = points.get(points.len() / part) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{label}</text>",
            x(*at) + 3.0,
            y(*rate) - 4.0
        );
    }
}
