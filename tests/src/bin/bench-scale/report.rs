//! Goals, what was measured, and the report: a table, JSON, and whether all goals were met.

use serde_json::{Value, json};

use crate::simulator::Lateness;

/// The goals of a mesh of up to 50, 1,000 and 5,000 nodes: what, and at most how much. Another size has the goals of the next
/// larger one.
const GOALS: [(&str, [f64; 3]); 13] = [
    ("idle, millicores", [5.0, 12.0, 30.0]),
    ("idle, API writes", [0.0, 0.0, 0.0]),
    ("change without meaning, CPU ms", [1.0, 1.5, 3.0]),
    ("change of an endpoint, CPU ms", [1.0, 1.5, 3.0]),
    ("change of a key, CPU ms", [1.0, 1.5, 3.0]),
    ("change of an endpoint, p99 ms", [300.0, 300.0, 300.0]),
    ("change of a key, p99 ms", [300.0, 300.0, 300.0]),
    ("RSS, MiB", [16.0, 25.0, 50.0]),
    ("cold start until ready, s", [1.0, 1.5, 5.0]),
    ("join: all known after the last, s", [5.0, 5.0, 10.0]),
    ("join: sessions with traffic, s", [30.0, 30.0, 30.0]),
    ("scrape, lines", [150.0, 150.0, 150.0]),
    ("scrape, ms", [10.0, 10.0, 10.0]),
];
/// Goals of any size.
const GOALS_OF_ALL: [(&str, f64); 3] = [
    ("rotation of one node, messages a peer", 16.0),
    ("hand-made change repaired, s", 2.0),
    ("storm of handshakes over, s", 10.0),
];
/// What the issue asks for and this program does not measure yet.
pub(crate) const NOT_BUILT: [&str; 5] = [
    "packets lost during a rotation",
    "rotate_fleet (a fleet in virtual time)",
    "micro benchmarks beside bench-plan",
    "20,000 nodes (pod ranges end at 16,384)",
    "hand-made changes under churn",
];
/// A run in which the simulator answers later than this in 1 of 100 cases says little about the daemon.
const LATE: std::time::Duration = std::time::Duration::from_millis(50);

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) size: usize,
    pub(crate) what: String,
    /// None if it could not be measured; the details say why.
    pub(crate) measured: Option<f64>,
    pub(crate) details: Value,
}

/// The simulator's delays during a scenario.
#[derive(Clone, Debug)]
pub(crate) struct Delays {
    pub(crate) size: usize,
    pub(crate) scenario: &'static str,
    pub(crate) lateness: Lateness,
}

impl Row {
    pub(crate) fn goal(&self) -> Option<f64> {
        let of_all = GOALS_OF_ALL.iter().find(|(what, _)| *what == self.what).map(|(_, goal)| *goal);
        of_all.or_else(|| {
            let (_, goals) = GOALS.iter().find(|(what, _)| *what == self.what)?;
            Some(goals[if self.size <= 50 { 0 } else { usize::from(self.size > 1_000) + 1 }])
        })
    }

    /// Whether the goal is met; none if there is none.
    pub(crate) fn met(&self) -> Option<bool> {
        self.goal().map(|goal| self.measured.is_some_and(|measured| measured <= goal))
    }
}

impl Delays {
    /// Whether the simulator was late itself.
    pub(crate) fn is_void(&self) -> bool {
        self.lateness.p99 > LATE
    }
}

/// Everything as JSON.
pub(crate) fn json(rows: &[Row], delays: &[Delays], about: &Value) -> Value {
    let rows = rows.iter().map(|row| {
        json!({
            "size": row.size, "what": row.what, "goal": row.goal(), "measured": row.measured, "met": row.met(),
            "details": row.details,
        })
    });
    let delays = delays.iter().map(|delays| {
        let Lateness { count, median, p99, longest, not_sent } = delays.lateness;
        json!({
            "size": delays.size, "scenario": delays.scenario, "void": delays.is_void(), "count": count,
            "median_ms": median.as_secs_f64() * 1e3, "p99_ms": p99.as_secs_f64() * 1e3,
            "longest_ms": longest.as_secs_f64() * 1e3, "not_sent": not_sent,
        })
    });
    json!({
        "about": about, "rows": rows.collect::<Vec<_>>(), "simulator": delays.collect::<Vec<_>>(),
        "not_built": NOT_BUILT,
    })
}

/// The table, one line a measurement.
pub(crate) fn table(rows: &[Row], delays: &[Delays]) -> String {
    let wide = rows.iter().map(|row| row.what.len()).max().unwrap_or_default();
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
    let mut lines = vec![format!("{:>6}  {:wide$}  {:>9}  {:>9}", "peers", "", "goal", "measured")];
    for row in rows {
        let verdict = if row.met() == Some(false) { "  MISSED" } else { "" };
        let (goal, measured) = (number(row.goal()), number(row.measured));
        lines.push(format!("{:>6}  {:wide$}  {goal:>9}  {measured:>9}{verdict}", row.size, row.what));
    }
    for delays in delays.iter().filter(|delays| delays.is_void()) {
        let Delays { size, scenario, lateness } = delays;
        lines.push(format!(
            "{size:>6}  {scenario}: VOID, the simulator was late itself: p99 {:.0} ms, {:.0} ms at most",
            lateness.p99.as_secs_f64() * 1e3,
            lateness.longest.as_secs_f64() * 1e3
        ));
    }
    lines.push(format!("not built: {}", NOT_BUILT.join("; ")));
    lines.join("\n")
}

/// A number with as many digits as say something.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(size: usize, what: &str, measured: Option<f64>) -> Row {
        Row { size, what: what.to_owned(), measured, details: Value::Null }
    }

    #[test]
    fn each_size_has_the_goal_of_the_next_larger_one() {
        let goal = |size| row(size, "idle, millicores", None).goal();
        assert_eq!([50, 51, 1_000, 1_001, 5_000].map(goal), [5.0, 12.0, 12.0, 30.0, 30.0].map(Some));
        assert_eq!(row(500, "hand-made change repaired, s", None).goal(), Some(2.0));
    }

    #[test]
    fn what_could_not_be_measured_is_missed() {
        assert_eq!(row(50, "RSS, MiB", None).met(), Some(false));
        assert_eq!(row(50, "RSS, MiB", Some(16.0)).met(), Some(true));
        assert_eq!(row(50, "RSS, MiB", Some(16.1)).met(), Some(false));
        assert_eq!(row(50, "settled, s", Some(9.0)).met(), None);
    }
}
