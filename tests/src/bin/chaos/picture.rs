//! The faults of a run over time as an SVG.

use std::fmt::Write as _;

use crate::report::Run;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 290.0;
const PLOT: f64 = WIDTH - LEFT - 20.0;
const TOP: f64 = 50.0;
const STRIP: f64 = 15.0;

/// Draws a run: a strip for each fault, from its begin to its end.
pub(crate) fn draw(run: &Run) -> String {
    let faults: Vec<_> = run.faults.iter().filter(|fault| fault.made).collect();
    let last = faults.iter().map(|fault| fault.to).fold(1.0, f64::max);
    let end = last + run.converged.unwrap_or(30.0);
    let x = |at: f64| LEFT + PLOT * at / end;
    let mut body = String::new();
    let mut top = TOP;
    // Writing into a String can't fail.
    for fault in &faults {
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{}: {}</text>\n\
             <rect x=\"{:.1}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"{}\" fill=\"#ff9f1c\"/>",
            LEFT - 8.0,
            top + 10.0,
            fault.kind,
            fault.place,
            x(fault.from),
            (x(fault.to) - x(fault.from)).max(3.0),
            STRIP - 4.0
        );
        top += STRIP;
    }
    let (colour, verdict) = match run.converged {
        Some(time) => ("#2ca02c", format!("all is well {time:.1} s after the last fault")),
        None => ("#d62728", "not well in time".to_owned()),
    };
    let _ = writeln!(
        body,
        "<rect x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\" opacity=\"0.3\"/>",
        x(last),
        x(end) - x(last),
        top - TOP
    );
    for tick in (0..).map(|count| f64::from(count) * 20.0).take_while(|at| *at <= end) {
        let _ = writeln!(
            body,
            "<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{top:.0}\" stroke=\"#cccccc\"/>\n\
             <text x=\"{0:.1}\" y=\"{1:.0}\" text-anchor=\"middle\">{tick:.0} s</text>",
            x(tick),
            top + 14.0
        );
    }
    let height = top + 30.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"{WIDTH}\" height=\"{height:.0}\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"22\" font-size=\"15\">Seed {}: {} leaks, {} of {} packets lost</text>\n\
         <text x=\"20\" y=\"40\">{verdict}</text>\n{body}</svg>\n",
        run.seed, run.leaks, run.traffic.lost, run.traffic.sent
    )
}
