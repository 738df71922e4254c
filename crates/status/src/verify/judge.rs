//! What evidence proves: of one node by itself, and of pairs by what both ends say. Pure.

use std::collections::BTreeMap;

use keyring::pq::Protection;
use keyring::{PublicKey, Slot};

use super::Gathered;
use super::evidence::{Control, Evidence, LARGEST_PROBED, PeerEvidence, SlotEvidence};
use super::finding::{Code, Finding, Weight};
use crate::rotation::age;

/// Age at which a session ends: `REJECT_AFTER_TIME` (the WireGuard paper, section 6.1).
const SESSION_SECONDS: u64 = 180;
/// For how many seconds after the guard was put back nothing is claimed of the node: what left meanwhile is not known, and that
/// it does not happen again has to be seen.
const GUARD_AWAY_SECONDS: u64 = 600;

/// What one node's evidence says against the mesh.
pub(super) fn of_node(evidence: &Evidence, findings: &mut Vec<Finding>) {
    clear(evidence, findings);
    fence(evidence, findings);
    trail(evidence, findings);
    for (slot, key) in evidence.keys.iter() {
        if key.announced.is_none() || key.announced != key.held {
            let what = format!(
                "slot {slot} has the key {}, and its Node announces {}",
                print(key.held),
                print(key.announced)
            );
            let finding = Finding::of_node(Code::OwnKeyDiffers, &evidence.node, what);
            findings.push(unless_rotating(finding, evidence.rotating));
        }
    }
    for peer in &evidence.peers {
        for (slot, found) in peer.slots.iter() {
            of_slot(evidence, peer, slot, found, findings);
        }
    }
}

/// While keys are replaced, two nodes may not agree on them, and slots have no session: what fails is not known to be wrong.
pub(super) fn suspend(finding: &mut Finding) {
    if finding.weight == Weight::Failed {
        finding.weight = Weight::Unknown;
        finding.what.push_str("; keys are being replaced, so verify again");
    }
}

fn unless_rotating(mut finding: Finding, rotating: bool) -> Finding {
    if rotating {
        suspend(&mut finding);
    }
    finding
}

/// The guard, and what left or arrived unencrypted.
fn clear(evidence: &Evidence, findings: &mut Vec<Finding>) {
    let guard = &evidence.guard;
    let mut add = |code, what: String| findings.push(Finding::of_node(code, &evidence.node, what));
    if guard.escaped > 0 {
        let what = format!("{} packets with pod addresses left the node outside the mesh", guard.escaped);
        add(Code::SentInTheClear, what);
    }
    match (guard.in_place, &guard.error) {
        (Some(true), _) => {}
        (Some(false), _) => {
            add(Code::GuardChanged, "the guard is missing, or its rules are not those it should have".into());
        }
        (None, error) => {
            let cause = error.as_deref().unwrap_or("nothing is known of it");
            add(Code::GuardChanged, format!("the guard can't be read: {cause}"));
        }
    }
    if let Some(ago) = guard.repaired_seconds_ago.filter(|ago| *ago < GUARD_AWAY_SECONDS) {
        let what = format!("the guard was missing or changed {} ago, and was put back", age(ago));
        add(Code::GuardWasAway, what);
    }
    for control in &guard.controls {
        if let Some((code, what)) = of_control(control) {
            add(code, what);
        }
    }
    if guard.controls.is_empty() {
        add(Code::ControlNotSent, "no packet was sent to see whether the guard catches it".into());
    }
    if guard.arrived > 0 {
        let what = format!(
            "{} packets with pod addresses arrived outside the mesh, and were dropped",
            guard.arrived
        );
        add(Code::ArrivedInTheClear, what);
    }
}

fn of_control(control: &Control) -> Option<(Code, String)> {
    let Control { range, link, sent, seen, dropped, error } = control;
    if *sent == 0 {
        let cause = error.as_deref().unwrap_or("no packet was sent");
        return Some((Code::ControlNotSent, format!("from {range} out of {link}: {cause}")));
    }
    (seen < sent || dropped < sent).then(|| {
        let what = format!(
            "of {sent} packets from {range} sent out of {link} on purpose {seen} were seen and {dropped} dropped"
        );
        (Code::ControlNotCaught, what)
    })
}

fn fence(evidence: &Evidence, findings: &mut Vec<Finding>) {
    let Some(other) = &evidence.fence.other else { return };
    if evidence.fence.forgeries.is_empty() {
        let what = format!("the API server was not asked whether this node may change Node {other}");
        findings.push(Finding::of_node(Code::ForgeryUntested, &evidence.node, what));
    }
    for forgery in &evidence.fence.forgeries {
        let what = forgery.what.as_str();
        let (code, what) = match forgery.refused {
            Some(true) => continue,
            Some(false) => {
                (Code::ForgeryAccepted, format!("this node's token may change the {what} of Node {other}"))
            }
            None => (
                Code::ForgeryUntested,
                format!("whether it may change the {what} of Node {other}: {}", forgery.words),
            ),
        };
        findings.push(Finding::of_node(code, &evidence.node, what));
    }
}

fn trail(evidence: &Evidence, findings: &mut Vec<Finding>) {
    let trail = &evidence.trail;
    for problem in &trail.problems {
        findings.push(Finding::of_node(Code::TrailChanged, &evidence.node, problem.as_str()));
    }
    if let Some(error) = &trail.error {
        findings.push(Finding::of_node(Code::TrailUnread, &evidence.node, error.as_str()));
    }
}

fn of_slot(
    evidence: &Evidence,
    peer: &PeerEvidence,
    slot: Slot,
    found: &SlotEvidence,
    findings: &mut Vec<Finding>,
) {
    let mut add = |code, what: String| {
        let finding = Finding::of_pair(code, &evidence.node, &peer.node, slot, what);
        findings.push(unless_rotating(finding, evidence.rotating));
    };
    if found.held.is_none() || found.held != found.announced {
        let what = format!("the device has {}, announced is {}", print(found.held), print(found.announced));
        add(Code::KeyNotHeld, what);
    }
    preshared(peer, slot, found, &mut add);
    let Some(_) = found.echo_microseconds else {
        add(Code::NoEcho, format!("none of {} probes was answered", found.tries));
        return;
    };
    if found.echo_from.is_none() || found.echo_from != peer.address {
        let from = |address: Option<std::net::IpAddr>| {
            address.map_or_else(|| "nowhere".into(), |found| found.to_string())
        };
        add(
            Code::WrongSource,
            format!("the answer came from {}, not from {}", from(found.echo_from), from(peer.address)),
        );
    }
    match found.handshake_age {
        Some(seconds) if seconds <= SESSION_SECONDS => {}
        Some(seconds) => add(Code::NoSession, format!("the last handshake was {} ago", age(seconds))),
        None => add(Code::NoSession, "there was no handshake".into()),
    }
    if found.full_size_passes != Some(true) {
        add(Code::FullSizeLost, format!("packets of {} bytes were not answered", peer.mtu));
    }
    if found.larger_refused != Some(true) && peer.mtu < LARGEST_PROBED {
        let larger = peer.mtu.saturating_add(1);
        add(Code::SizeNotLimited, format!("the kernel did not refuse a packet of {larger} bytes"));
    }
    let counted = |bytes: Option<u64>| bytes.map_or_else(|| "none".to_owned(), |bytes| bytes.to_string());
    if found.sent.is_none_or(|sent| sent < found.probed)
        || found.received.is_none_or(|received| received == 0)
    {
        let what = format!(
            "{} bytes were probes; the device counted {} sent and {} received",
            found.probed,
            counted(found.sent),
            counted(found.received)
        );
        add(Code::BytesMissing, what);
    }
}

fn preshared(peer: &PeerEvidence, slot: Slot, found: &SlotEvidence, add: &mut impl FnMut(Code, String)) {
    let carries = peer.active == Some(slot);
    if peer.pq.blocked && carries {
        add(Code::PresharedMissing, format!("pods' packets are dropped: {}", peer.pq.reason()));
    } else if let Some(seconds) = peer.pq.stripped_seconds.filter(|_| carries) {
        add(Code::PresharedMissing, format!("for {} packets have had no preshared key", age(seconds)));
    } else if peer.pq.enabled == Some(true) && found.pq.protection != Protection::Proven {
        add(Code::PresharedUnproven, format!("preshared key: {}", found.pq.text()));
    }
}

/// What the ends of all pairs say of each other.
pub(super) fn of_pairs(gathered: &BTreeMap<String, Gathered>, findings: &mut Vec<Finding>) {
    for (node, one) in gathered {
        let Gathered::Evidence(one) = one else { continue };
        for (name, other) in gathered.iter().filter(|(name, _)| *name != node) {
            // What a node that gave no evidence means is not known.
            let Gathered::Evidence(other) = other else { continue };
            let rotating = one.rotating || other.rotating;
            let Some(peer) = one.peers.iter().find(|peer| peer.node == *name) else {
                let what = format!("{node} does not have {name} as a peer");
                let finding =
                    Finding { peer: Some(name.clone()), ..Finding::of_node(Code::NotAPeer, node, what) };
                findings.push(finding);
                continue;
            };
            for (slot, found) in peer.slots.iter() {
                let own = other.keys.get(slot).held;
                if found.held != own {
                    let what = format!(
                        "{node} has {} for {name}, and {name} itself has {}",
                        print(found.held),
                        print(own)
                    );
                    let finding = Finding::of_pair(Code::KeysDisagree, node, name, slot, what);
                    findings.push(unless_rotating(finding, rotating));
                }
            }
            witnessed(one, other, findings);
        }
    }
}

/// Whether a node's trail is what a witness has recorded of it.
fn witnessed(node: &Evidence, witness: &Evidence, findings: &mut Vec<Finding>) {
    let trail = &node.trail;
    let Some(seen) = witness.trail.witnessed.get(&node.uid) else { return };
    let what = match trail.lines.get(&seen.line) {
        Some(hash) if *hash == seen.hash => return,
        Some(_) => {
            format!("{} has recorded another line {}: the trail was rewritten", witness.node, seen.line)
        }
        None if seen.line > trail.last => format!(
            "{} has recorded line {}, and the trail ends at line {}: its end is missing",
            witness.node, seen.line, trail.last
        ),
        // Older than the lines that evidence has.
        None => return,
    };
    let finding = Finding::of_node(Code::TrailDisagrees, &node.node, what);
    findings.push(Finding { peer: Some(witness.node.clone()), ..finding });
}

/// How many witnesses have recorded a line that is in the node's trail.
pub(super) fn agreeing_witnesses(gathered: &BTreeMap<String, Gathered>, node: &Evidence) -> u64 {
    let agrees = |witness: &Evidence| {
        let seen = witness.trail.witnessed.get(&node.uid);
        seen.is_some_and(|seen| node.trail.lines.get(&seen.line) == Some(&seen.hash))
    };
    gathered.values().filter(|other| matches!(other, Gathered::Evidence(other) if agrees(other))).count()
        as u64
}

fn print(key: Option<PublicKey>) -> String {
    key.map_or_else(|| "none".to_owned(), |key| key.fingerprint().to_string())
}
