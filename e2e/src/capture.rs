//! Row E1: what a capture on the nodes' uplinks shows, asked over the socket of a cluster that has one.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cases::{Family, Inventory, Pod};
use crate::report::{Frames, Verdict};
use crate::services::ENDPOINTS;

/// Controls wait for several frames; more than so long and nobody answers.
const ANSWERED_WITHIN: Duration = Duration::from_mins(1);

/// So many packets in the clear are told; all that were kept are in the files.
const TOLD: usize = 10;

/// The capture does not answer.
#[derive(Debug, thiserror::Error)]
#[error("ask the capture at {}", path.display())]
pub struct CaptureError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What was seen on the uplinks of all nodes since the cluster began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Packets with a pod's address in the clear.
    pub clear: u64,
    /// Packets of tunnels.
    pub tunnel: u64,
    /// Everything else.
    pub other: u64,
    /// Packets that the capture missed.
    pub missed: u64,
    /// The first packets in the clear on each uplink, without those of controls.
    pub found: Vec<Found>,
}

/// A packet in the clear that was on an uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Found {
    /// When, in nanoseconds since 1970.
    pub at: u64,
    /// The host whose uplink it was on.
    pub host: String,
    /// In words.
    pub what: String,
    /// Its Ethernet frame, in base64; the capture may have kept the beginning alone.
    pub frame: String,
}

/// A packet that was sent to see what capture and guard do with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Which, and from where.
    pub sent: String,
    /// Whether the capture showed it if, and only if, it was on an uplink.
    pub seen: bool,
    /// Whether it was dropped.
    pub dropped: bool,
}

#[derive(Deserialize)]
struct Answer {
    controls: Vec<Control>,
}

impl Counts {
    /// What the report has of it for each cell.
    pub fn frames(&self) -> Frames {
        Frames { clear: self.clear, tunnel: self.tunnel }
    }
}

/// The capture of a cluster.
#[derive(Clone, Debug)]
pub struct Capture(PathBuf);

impl Capture {
    /// That which answers at a socket.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// What was seen up to now.
    pub fn counts(&self) -> Result<Counts, CaptureError> {
        self.ask(&json!({"ask": "counts"}))
    }

    /// Runs the controls for each IP version; none if the cluster has a single node.
    pub fn controls(&self, inventory: &Inventory) -> Result<Vec<Control>, CaptureError> {
        let mut controls = Vec::new();
        for family in inventory.families() {
            let mut ends = ends(inventory, family);
            if let (Some(from), Some(to)) = (ends.next(), ends.next()) {
                let answer: Answer = self.ask(&json!({"ask": "controls", "from": from, "to": to}))?;
                controls.extend(answer.controls);
            }
        }
        Ok(controls)
    }

    /// Has packets sent through the tunnel for each IP version, one with a source that is the sender's, and one with another.
    pub fn spoof(&self, inventory: &Inventory) -> Result<Vec<Control>, CaptureError> {
        let mut controls = Vec::new();
        for family in inventory.families() {
            let ends: Vec<Value> = ends(inventory, family).collect();
            if let [from, to, rest @ ..] = ends.as_slice() {
                // With two nodes it is the receiver's own.
                let source = &rest.first().unwrap_or(to)["pod"];
                let question = json!({"ask": "spoof", "from": from, "to": to, "source": source});
                let answer: Answer = self.ask(&question)?;
                controls.extend(answer.controls);
            }
        }
        Ok(controls)
    }

    fn ask<T: DeserializeOwned>(&self, question: &Value) -> Result<T, CaptureError> {
        exchange(&self.0, question, ANSWERED_WITHIN)
            .map_err(|source| CaptureError { path: self.0.clone(), source })
    }
}

/// Sends one line of JSON, and reads another one.
pub(crate) fn exchange<T: DeserializeOwned>(
    path: &Path,
    question: &Value,
    within: Duration,
) -> io::Result<T> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(within))?;
    writeln!(stream, "{question}")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line)?;
    match answer["error"].as_str() {
        Some(error) => Err(io::Error::other(error.to_owned())),
        None => Ok(serde_json::from_value(answer)?),
    }
}

/// A pod of each node, as questions name them.
fn ends(inventory: &Inventory, family: Family) -> impl Iterator<Item = Value> {
    let address = |pod: &Pod| pod.addresses.iter().copied().find(|&address| family.has(address));
    let mut of_nodes = BTreeMap::new();
    // Pods that no policy guards: it is not what is to drop packets here.
    for pod in inventory.pods.iter().filter(|pod| pod.set == ENDPOINTS) {
        if let Some(address) = address(pod) {
            of_nodes.entry(&pod.node).or_insert_with(|| json!({"node": pod.node, "pod": address}));
        }
    }
    of_nodes.into_values()
}

/// What packets that were sent through the tunnel show: nothing, unless those with the sender's own source arrived.
pub fn judge_spoofed(controls: &[Control]) -> (Verdict, String) {
    let told = |control: &Control| {
        let what = match (control.seen, control.dropped) {
            (false, _) => "did not arrive, as it had to",
            (true, false) => "arrived",
            (true, true) => "as it has to be",
        };
        format!("{}: {what}", control.sent)
    };
    let verdict = if controls.iter().any(|control| !control.dropped) {
        Verdict::Fail
    } else if controls.is_empty() || controls.iter().any(|control| !control.seen) {
        Verdict::NotDetermined
    } else {
        Verdict::Pass
    };
    (verdict, controls.iter().map(told).collect::<Vec<_>>().join("; "))
}

/// What the capture shows: nothing, unless each control was seen as it had to be and no packet was missed. One packet in
/// the clear is a failure whatever else is not known.
pub fn judge(controls: &[Control], before: &Counts, after: &Counts) -> (Verdict, String) {
    let wrong: Vec<&str> =
        controls.iter().filter(|control| !control.seen).map(|control| control.sent.as_str()).collect();
    let passed: Vec<&str> =
        controls.iter().filter(|control| !control.dropped).map(|control| control.sent.as_str()).collect();
    let tunnel = after.tunnel.saturating_sub(before.tunnel);
    let mut said = format!(
        "in the clear {} since the cluster began, {} in this run; tunnel {tunnel}, missed {}, controls {}",
        after.clear,
        after.clear.saturating_sub(before.clear),
        after.missed,
        controls.len()
    );
    let mut add = |what: &str, of: &[&str]| {
        if !of.is_empty() {
            said = format!("{said}; {what}: {}", of.join(", "));
        }
    };
    add("not seen as it had to be", &wrong);
    add("not dropped", &passed);
    let verdict = if after.clear > 0 || !passed.is_empty() {
        let found: Vec<&str> = after.found.iter().map(|found| &*found.what).take(TOLD).collect();
        add("seen", &found);
        Verdict::Fail
    } else if !wrong.is_empty() || controls.is_empty() || after.missed > 0 || tunnel == 0 {
        Verdict::NotDetermined
    } else {
        Verdict::Pass
    };
    (verdict, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_sent_between_pods_that_no_policy_guards() {
        let pod = |set: &str, node: &str, last: u8| Pod {
            name: format!("{set}-{node}"),
            set: set.to_owned(),
            node: node.to_owned(),
            addresses: vec![[10, 244, 0, last].into()],
            port: 8080,
            host_network: false,
        };
        let pods = vec![
            pod("guarded", "n1", 2),
            pod(ENDPOINTS, "n1", 3),
            pod("guarded", "n2", 4),
            pod(ENDPOINTS, "n2", 5),
        ];
        let inventory = Inventory { pods, ..Inventory::default() };
        let ends: Vec<Value> = ends(&inventory, Family::V4).collect();
        assert_eq!(
            ends,
            [json!({"node": "n1", "pod": "10.244.0.3"}), json!({"node": "n2", "pod": "10.244.0.5"})]
        );
    }

    #[test]
    fn a_foreign_source_is_dropped_only_if_the_own_one_arrives() {
        let control = |seen, dropped| Control { sent: "to n2".into(), seen, dropped };
        let judge = |own, foreign| judge_spoofed(&[own, foreign]).0;
        assert_eq!(judge(control(true, true), control(true, true)), Verdict::Pass);
        assert_eq!(judge(control(false, true), control(true, true)), Verdict::NotDetermined);
        assert_eq!(judge(control(true, true), control(true, false)), Verdict::Fail);
        assert_eq!(judge_spoofed(&[]).0, Verdict::NotDetermined);
    }

    #[test]
    fn without_controls_or_with_missed_packets_nothing_is_shown() {
        let control = |seen, dropped| Control { sent: "by n1".into(), seen, dropped };
        let counts = |clear, tunnel, missed| Counts { clear, tunnel, missed, ..Counts::default() };
        let good = [control(true, true)];
        let judge = |controls: &[Control], after: Counts| judge(controls, &counts(0, 5, 0), &after).0;
        assert_eq!(judge(&good, counts(0, 9, 0)), Verdict::Pass);
        assert_eq!(judge(&[], counts(0, 9, 0)), Verdict::NotDetermined);
        assert_eq!(judge(&[control(false, true)], counts(0, 9, 0)), Verdict::NotDetermined);
        assert_eq!(judge(&good, counts(0, 9, 1)), Verdict::NotDetermined);
        // No tunnel was seen at all.
        assert_eq!(judge(&good, counts(0, 5, 0)), Verdict::NotDetermined);
        assert_eq!(judge(&good, counts(1, 9, 0)), Verdict::Fail);
        assert_eq!(judge(&[control(false, true)], counts(1, 5, 1)), Verdict::Fail);
        assert_eq!(judge(&[control(true, false)], counts(0, 9, 0)), Verdict::Fail);
    }
}
