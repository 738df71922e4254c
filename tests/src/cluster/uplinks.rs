//! The capture on the nodes' uplinks, from before the first daemon on, and controls that show that it sees what it should.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Cluster;
use super::verb::Verb;
use crate::capture::{Capture, Rules, Violation};
use crate::error::Error;
use crate::frame::{self, Link, MARKER};
use crate::node::Node;

/// A frame that was sent is seen by a capture within so long, also on a busy machine.
pub(super) const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// A packet that is not dropped is with the pod after so long.
pub(super) const DELIVERED_WITHIN: Duration = Duration::from_millis(500);
/// The discard port: no pod answers.
pub(super) const PORT: u16 = 9;
/// The link of each node that leads to the others.
const UPLINK: &str = "eth0";
/// What the frames of controls carry that a capture has to show: the lab's marker, and that they are controls.
pub(super) const CONTROL: &[u8] = b"MESHDLAB control";

/// What a client asks, one line of JSON.
#[derive(Debug, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
enum Question {
    /// What was seen since the cluster began, without the frames of controls.
    Counts,
    /// To run the controls between two pods of different nodes, which both have addresses of one IP version.
    Controls { from: Place, to: Place },
    /// To send from one pod's node to the other pod, through the tunnel, a packet with its own source and one with this.
    Spoof { from: Place, to: Place, source: IpAddr },
    /// To do something to the cluster.
    Act(Verb),
}

/// A pod.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    pub(super) node: String,
    pub(super) pod: IpAddr,
}

/// What a control showed.
#[derive(Debug, Serialize)]
pub(super) struct Control {
    /// What was sent, and from where.
    pub(super) sent: String,
    /// Whether the capture showed it if, and only if, it was on an uplink.
    pub(super) seen: bool,
    /// Whether it was dropped.
    pub(super) dropped: bool,
}

/// The capture.
#[derive(Debug)]
pub(super) struct Uplinks {
    capture: Capture,
    rules: Rules,
}

impl Uplinks {
    pub(super) fn start(lab: &crate::Lab) -> Result<Self, Error> {
        Ok(Self { capture: lab.capture()?, rules: Rules::new(lab.cluster_ranges()) })
    }

    /// Captures a node that was not there before, or that was started again, too.
    pub(super) fn add(&mut self, node: &Node) -> Result<(), Error> {
        self.capture.add(node, UPLINK, &self.rules)
    }

    /// Frames in the clear that hosts sent and received.
    fn clear(&self) -> (u64, u64) {
        let report = self.capture.report();
        (report.leaked, report.arrived)
    }

    /// Whether so many more frames than before are seen, and not one more.
    fn grows_by(&self, before: (u64, u64), sent: u64, received: u64) -> bool {
        let since = Instant::now();
        let wanted = (before.0 + sent, before.1 + received);
        while self.clear() != wanted {
            if since.elapsed() >= SEEN_WITHIN {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Cluster {
    /// Answers a question about the capture on the nodes' uplinks, or does what it says to the cluster: one line of JSON by
    /// another. `excused` are the frames of controls up to now, which are not counted.
    pub fn answer(&mut self, question: &str, excused: &mut u64) -> String {
        let answer = match serde_json::from_str(question) {
            Ok(Question::Counts) => Ok(self.counts(*excused)),
            Ok(Question::Controls { from, to }) => {
                self.controls(&from, &to, excused).map(|controls| json!({ "controls": controls }))
            }
            Ok(Question::Spoof { from, to, source }) => {
                self.spoof(&from, &to, source).map(|controls| json!({ "controls": controls }))
            }
            Ok(Question::Act(verb)) => {
                return match self.act(&verb) {
                    Ok(()) => json!({}),
                    Err(error) => json!({ "error": crate::chain(&error) }),
                }
                .to_string();
            }
            Err(error) => Ok(json!({ "error": format!("read the question: {error}") })),
        };
        answer.unwrap_or_else(|error| json!({ "error": crate::chain(&error) })).to_string()
    }

    fn counts(&self, excused: u64) -> Value {
        let report = self.uplinks.capture.report();
        json!({
            "clear": report.pod_addresses().saturating_sub(excused),
            "tunnel": report.wireguard(),
            "other": report.other,
            "missed": report.dropped,
            "found": found(&report.violations, excused),
        })
    }

    fn controls(&self, from: &Place, to: &Place, excused: &mut u64) -> Result<Vec<Control>, Error> {
        let (sender, receiver) = (self.lab.node(&from.node)?, self.lab.node(&to.node)?);
        // Only frames that were seen are in the counts.
        let mut excuse = |control: &Control, frames: u64| {
            if control.seen {
                *excused += frames;
            }
        };
        let inbound = self.inbound(receiver, to.pod)?;
        excuse(&inbound, 1);
        let raw = self.raw(sender, receiver, from.pod, to.pod)?;
        excuse(&raw, 2);
        let ordinary = self.ordinary(sender, to.pod)?;
        Ok(vec![inbound, raw, ordinary])
    }

    /// A packet in the clear from the host outside to a pod.
    fn inbound(&self, node: &Node, pod: IpAddr) -> Result<Control, Error> {
        let outside = self.lab.outside();
        let source = outside.address(crate::IpVersion::of(pod))?;
        let link = device_to(node, pod)?;
        let at_pod = Capture::start(&[&**node], &link, &Rules::new(self.lab.cluster_ranges()))?;
        let before = self.uplinks.clear();
        let link = Link { from: outside.mac(), to: node.mac() };
        outside.inject(&frame::udp(link, (source, PORT), (pod, PORT), CONTROL))?;
        let seen = self.uplinks.grows_by(before, 0, 1);
        thread::sleep(DELIVERED_WITHIN);
        let delivered = at_pod
            .report()
            .violations
            .iter()
            .any(|violation| violation.matched.source == source && violation.matched.destination == pod);
        let sent = format!("in the clear by the host outside to {pod} on {}", node.name());
        Ok(Control { sent, seen, dropped: !delivered })
    }

    /// A frame in the clear from a node's packet socket to another node, past every filter of the sender.
    fn raw(&self, node: &Node, other: &Node, from: IpAddr, to: IpAddr) -> Result<Control, Error> {
        let before = self.uplinks.clear();
        let link = Link { from: node.mac(), to: other.mac() };
        node.inject(&frame::udp(link, (from, PORT), (to, PORT), CONTROL))?;
        let seen = self.uplinks.grows_by(before, 1, 1);
        let sent = format!("by a packet socket on {} from {from} to {to}", node.name());
        // What the receiver does with it is what the inbound control is about.
        Ok(Control { sent, seen, dropped: true })
    }

    /// A packet to a pod of another node that a route leads to the uplink.
    fn ordinary(&self, node: &Node, pod: IpAddr) -> Result<Control, Error> {
        let gateway = self.lab.outside().address(crate::IpVersion::of(pod))?;
        let before = self.uplinks.clear();
        node.ip(&format!("route add {pod} via {gateway} dev eth0\n"))?;
        let ordinary = || {
            let any: IpAddr = match pod {
                IpAddr::V4(_) => [0; 4].into(),
                IpAddr::V6(_) => [0; 16].into(),
            };
            UdpSocket::bind((any, 0))?.send_to(MARKER, (pod, PORT))
        };
        let outcome = node.net().run(ordinary);
        node.ip(&format!("route del {pod} via {gateway} dev eth0\n"))?;
        // What a filter drops on its way out, the kernel refuses the sender.
        let refused = matches!(outcome?, Err(error) if error.raw_os_error() == Some(libc::EPERM));
        thread::sleep(DELIVERED_WITHIN);
        let silent = self.uplinks.clear() == before;
        let sent = format!("by a socket on {} to {pod}, by a route to the uplink", node.name());
        Ok(Control { sent, seen: silent || !refused, dropped: refused && silent })
    }
}

/// The frames in the clear that were kept, without those of controls: as many as are excused, if they carry what controls do.
fn found(violations: &[Violation], mut excused: u64) -> Vec<Value> {
    let mut found = Vec::new();
    for violation in violations {
        let control = violation.frame.windows(CONTROL.len()).any(|window| window == CONTROL);
        if control && excused > 0 {
            excused -= 1;
            continue;
        }
        let verb = if violation.outgoing { "sent" } else { "received" };
        let at = violation.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        found.push(json!({
            "at": u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
            "host": violation.host,
            "what": format!("{} {verb} {}", violation.host, violation.matched),
            "frame": BASE64_STANDARD.encode(&violation.frame),
        }));
    }
    found
}

/// The link that a route to a pod leads to: the node's end of its pod's link, or a tunnel.
pub(super) fn device_to(node: &Node, pod: IpAddr) -> Result<String, Error> {
    let said = node.command("ip").args(["-j", "route", "get", &pod.to_string()]).output()?;
    let routes: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
    let link = routes.pointer("/0/dev").and_then(Value::as_str).map(str::to_owned);
    link.ok_or_else(|| Error::Socket {
        action: "find the link of a pod",
        host: node.name().to_owned(),
        source: io::Error::other(format!("no route to {pod}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::AddressMatch;

    #[test]
    fn frames_in_the_clear_are_told_without_those_of_controls() {
        let address = IpAddr::from([10, 244, 0, 2]);
        let matched =
            AddressMatch { place: "ipv4", source: address, destination: address, protocol: Some(17) };
        let violation = |payload: &[u8]| {
            let link = Link { from: [0; 6], to: [0; 6] };
            let frame = frame::udp(link, (address, PORT), (address, PORT), payload);
            let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(5);
            Violation { at, host: "n1".into(), outgoing: true, matched, frame }
        };
        let all = [violation(CONTROL), violation(MARKER), violation(CONTROL)];
        let told = |excused| found(&all, excused);
        assert_eq!(told(2).len(), 1);
        // One of them was not sent by a control.
        assert_eq!(told(1).len(), 2);
        let one = &told(2)[0];
        assert_eq!((&one["at"], &one["host"]), (&json!(5), &json!("n1")));
        assert_eq!(one["what"], "n1 sent ipv4 10.244.0.2 > 10.244.0.2 protocol 17");
        assert_eq!(BASE64_STANDARD.decode(one["frame"].as_str().unwrap()).unwrap(), all[1].frame);
    }
}
