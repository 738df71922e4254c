//! What all scenarios share: the running mesh, its echoes, what the daemons say about their paths, and the results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{self, Mesh};
use lab::{Capture, Pod};
use serde_json::{Value, json};

use crate::network::{self, Settings};
use crate::probes::Probes;
use crate::{Failure, say};

/// Pause between two questions whether what is waited for has come.
const PAUSE: Duration = Duration::from_millis(250);
/// No pair is said to be up earlier after an event: what was sent before it counts until then.
const BLIND: Duration = Duration::from_millis(3500);

/// An ordered pair of nodes.
pub(crate) type Pair = (String, String);

/// One result.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) goal: String,
    pub(crate) measured: String,
    pub(crate) met: bool,
    pub(crate) details: Value,
}

/// The paths of all pairs, as their daemons said, and when each changed.
#[derive(Default)]
pub(crate) struct Paths {
    pub(crate) last: BTreeMap<Pair, String>,
    pub(crate) changes: Vec<(Duration, Pair, String)>,
}

/// The main lab while scenarios run in it.
pub(crate) struct Run<'a> {
    pub(crate) settings: &'a Settings,
    // Before the mesh: they use its pods and links.
    pub(crate) probes: Probes,
    pub(crate) capture: Capture,
    pub(crate) mesh: Mesh,
    pub(crate) paths: Paths,
    pub(crate) rows: Vec<Row>,
    /// What was done, and when since the start.
    pub(crate) events: Vec<(Duration, String)>,
    /// When all daemons were asked last.
    looked: Option<Instant>,
    /// Packets with pods' addresses that were seen during each scenario.
    pub(crate) leaks: BTreeMap<String, u64>,
}

impl<'a> Run<'a> {
    /// Starts all daemons of a mesh at once.
    pub(crate) fn start(mut mesh: Mesh, settings: &'a Settings) -> Result<Self, Failure> {
        let capture = mesh.capture()?;
        let probes = Probes::new(Instant::now(), settings.period());
        for node in mesh.node_names() {
            network::start(&mut mesh, &node, settings)?;
        }
        let (paths, rows, events, leaks) = (Paths::default(), Vec::new(), Vec::new(), BTreeMap::new());
        Ok(Self { settings, probes, capture, mesh, paths, rows, events, looked: None, leaks })
    }

    /// All ordered pairs of nodes.
    pub(crate) fn pairs(&self) -> Vec<Pair> {
        let names = self.mesh.node_names();
        let with = |from: &String| {
            let others: Vec<_> = names.iter().filter(|to| *to != from).cloned().collect();
            others.into_iter().map(|to| (from.clone(), to)).collect::<Vec<_>>()
        };
        names.iter().flat_map(with).collect()
    }

    /// The pairs of one node, in both directions.
    pub(crate) fn pairs_of(&self, node: &str) -> Vec<Pair> {
        self.pairs().into_iter().filter(|(from, to)| from == node || to == node).collect()
    }

    /// What a node's network is, for people.
    pub(crate) fn site_of(&self, node: &str) -> String {
        let router = self.mesh.node(node).and_then(|node| self.mesh.backbone().router_of(node));
        router.map(|router| network::describe(router.site())).unwrap_or_default()
    }

    /// The pod on a node.
    pub(crate) fn pod(&self, node: &str) -> Result<Pod<'_>, Failure> {
        Ok(self.mesh.node(node)?.pod("a")?)
    }

    /// Creates the pods of nodes that have become ready. A pod that can't be created is tried again.
    pub(crate) fn add_pods(&mut self) -> Result<(), Failure> {
        let known = self.probes.nodes();
        for node in self.mesh.nodes().iter().filter(|node| !known.iter().any(|name| name == node.name())) {
            if node.wait_network(Duration::ZERO).is_ok()
                && let Ok(pod) = node.pod("a")
            {
                self.probes.add(&pod)?;
            }
        }
        Ok(())
    }

    /// Polls until a condition holds, and looks at all paths meanwhile; says whether it did.
    pub(crate) fn wait(&mut self, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let (since, within) = (Instant::now(), self.settings.patience(within));
        loop {
            self.look();
            if holds(self) {
                return true;
            }
            if since.elapsed() > within {
                return false;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Waits, and looks at all paths meanwhile.
    pub(crate) fn pass(&mut self, time: Duration) {
        let since = Instant::now();
        self.wait(time, |_| since.elapsed() > time);
    }

    pub(crate) fn are_up(&self, pairs: &[Pair]) -> bool {
        pairs.iter().all(|(from, to)| self.probes.is_up(from, to))
    }

    /// What both daemons say about the path between them; nothing unless both say something.
    pub(crate) fn path(&self, from: &str, to: &str) -> Option<[&str; 2]> {
        let said = |from: &str, to: &str| self.paths.last.get(&(from.to_owned(), to.to_owned()));
        Some([said(from, to)?, said(to, from)?].map(String::as_str))
    }

    /// Whether every node has proven its preshared keys with all others and rests.
    pub(crate) fn is_steady(&self) -> bool {
        self.mesh.node_names().iter().filter_map(|node| self.mesh.status(node)).all(|status| {
            mesh::is_proven(&status)
                && status["rotation"]["step"] == "steady"
                && status["rotation"]["busy"] == false
        })
    }

    /// Measures how long pairs are down after an event; a row says the longest.
    pub(crate) fn recovery(
        &mut self,
        what: &str,
        goal: Duration,
        pairs: &[Pair],
        event: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.wait(Duration::from_secs(20), |run| run.are_up(pairs));
        let up: Vec<_> = pairs.iter().filter(|(from, to)| self.probes.is_up(from, to)).cloned().collect();
        let before = pairs.len() - up.len();
        if up.is_empty() {
            let measured = format!("none of {} pairs was up before", pairs.len());
            self.row(what, format!("{} s", goal.as_secs()), measured, false, Value::Null);
            return Ok(());
        }
        let at = self.mark(what.strip_prefix("recovery: ").unwrap_or(what));
        event(self)?;
        self.pass(BLIND);
        self.wait(2 * goal + Duration::from_secs(15), |run| run.are_up(&up));
        let outages: BTreeMap<_, _> =
            up.iter().map(|(from, to)| (format!("{from}-{to}"), self.probes.outage(from, to, at))).collect();
        let down = outages.values().filter(|outage| outage.is_none()).count();
        let longest = outages.values().flatten().max().copied().unwrap_or_default();
        let waited = self.probes.now().saturating_sub(at);
        let mut measured = match down {
            0 => seconds(longest),
            down => format!("{down} of {} pairs down after {:.0} s", up.len(), waited.as_secs_f64()),
        };
        if before > 0 {
            let _infallible = write!(measured, " ({before} pairs were down before)");
        }
        let met = down == 0 && before == 0 && self.settings.in_time(longest, goal);
        let outages: BTreeMap<_, _> =
            outages.into_iter().map(|(pair, outage)| (pair, outage.map(|time| time.as_secs_f64()))).collect();
        self.row(what, format!("{} s", goal.as_secs()), measured, met, json!(outages));
        Ok(())
    }

    /// Notes that something happens now.
    pub(crate) fn mark(&mut self, what: &str) -> Duration {
        let at = self.probes.now();
        self.events.push((at, what.to_owned()));
        at
    }

    /// Adds a result, and prints it as progress.
    pub(crate) fn row(
        &mut self,
        what: &str,
        goal: impl Into<String>,
        measured: impl Into<String>,
        met: bool,
        details: Value,
    ) {
        let row = Row { what: what.into(), goal: goal.into(), measured: measured.into(), met, details };
        let verdict = if met { "met" } else { "missed" };
        say(&format!(
            "[{:6.1} s] {}: {} ({verdict}, goal {})",
            self.probes.now().as_secs_f64(),
            row.what,
            row.measured,
            row.goal
        ));
        self.rows.push(row);
    }

    /// A scenario that could not be run is a missed goal, not the end of the program.
    pub(crate) fn scenario(&mut self, what: &str, run: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        let before = self.capture.report().pod_addresses();
        if let Err(error) = run(self) {
            self.row(what, "to be run", lab::chain(&*error), false, Value::Null);
        }
        let leaked = self.capture.report().pod_addresses() - before;
        if leaked > 0 {
            say(&format!("{what}: {leaked} packets with pods' addresses were seen"));
        }
        self.leaks.insert(what.to_owned(), leaked);
    }

    /// Asks all daemons for their paths, unless it has done so just now: where they are emulated, that takes them long.
    fn look(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < self.settings.look_period()) {
            return;
        }
        self.looked = Some(Instant::now());
        let now = self.probes.now();
        let names = self.mesh.node_names();
        for from in &names {
            let Some(status) = self.mesh.status(from) else { continue };
            for to in names.iter().filter(|to| *to != from) {
                let Some(path) = network::path(&status, to) else { continue };
                let pair = (from.clone(), to.clone());
                if self.paths.last.get(&pair) != Some(&path) {
                    self.paths.last.insert(pair.clone(), path.clone());
                    self.paths.changes.push((now, pair, path));
                }
            }
        }
    }
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
