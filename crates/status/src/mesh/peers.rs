//! The mesh pair by pair: what each node says of each of its peers, as data and as a table of 80 columns. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use keyring::Slot;
use keyring::pq::Protection;
use serde::{Deserialize, Serialize};

use super::silent::{Silent, said};
use super::text::WIDTH;
use super::{Answer, Verdict};
use crate::reach::Reach;
use crate::table::{bytes, round_trip_text};
use crate::{PeerSlotStatus, PeerStatus, rotation};

/// Which pairs are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those that are not reached.
    pub down: bool,
    /// Those whose round trip takes longer.
    pub slower_than: Option<Duration>,
}

impl Filter {
    /// A pair is wanted if it is down or slow, where that was asked for.
    fn wants(&self, peer: &PeerStatus) -> bool {
        let took = peer.round_trip_microseconds.map(Duration::from_micros);
        let slow = self.slower_than.is_some_and(|bound| took.is_some_and(|took| took > bound));
        (!self.down && self.slower_than.is_none()) || (self.down && peer.state == Reach::Down) || slow
    }
}

/// What nodes say of their peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshPeers {
    /// [`super::API_VERSION`].
    pub api_version: String,
    /// `MeshPeers`.
    pub kind: String,
    /// The pairs, by the name of the node and of its peer.
    pub pairs: Vec<Pair>,
    /// Pairs that were left out because nothing is wrong with them, or because others were asked for.
    pub hidden: u64,
    /// Nodes that did not answer, and why.
    pub silent: Silent,
}

/// What one node says of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pair {
    /// The node that says it.
    pub node: String,
    /// The other one.
    pub peer: String,
    /// Whether it is reached.
    pub state: Reach,
    /// The slot that packets take.
    pub active: Option<Slot>,
    /// Round trip in the tunnel in microseconds; none if the last probe was not answered.
    pub round_trip_microseconds: Option<u64>,
    /// MTU of the routes to it, in bytes.
    pub mtu: Option<u32>,
    /// Whether packets of that size arrive; none while unknown.
    pub full_size_passes: Option<bool>,
    /// Its slots.
    pub slots: Vec<PairSlot>,
}

/// One slot of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairSlot {
    /// The slot.
    pub slot: Slot,
    /// Where its datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// What kind of endpoint that is, and the relay as in `relayed via n1`; none while it is searched for.
    pub path: Option<String>,
    /// Seconds since the last completed handshake.
    pub handshake_age_seconds: Option<u64>,
    /// State of its preshared key.
    pub preshared_key: Protection,
    /// Bytes received from the peer.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

impl Pair {
    fn new(node: &str, peer: &PeerStatus) -> Self {
        let slots = peer.slots.iter().filter_map(|(slot, state)| Some(PairSlot::new(slot, state.as_ref()?)));
        Self {
            node: node.to_owned(),
            peer: peer.node.clone(),
            state: peer.state,
            active: peer.active,
            round_trip_microseconds: peer.round_trip_microseconds,
            mtu: peer.mtu,
            full_size_passes: peer.full_size_passes,
            slots: slots.collect(),
        }
    }

    /// The slot that packets take, else the first one.
    fn used(&self) -> Option<&PairSlot> {
        self.slots.iter().find(|slot| Some(slot.slot) == self.active).or_else(|| self.slots.first())
    }

    fn mtu_text(&self) -> String {
        let lost = if self.full_size_passes == Some(false) { " LOST" } else { "" };
        self.mtu.map_or_else(|| "-".to_owned(), |mtu| format!("{mtu}{lost}"))
    }

    fn round_trip_text(&self) -> String {
        self.round_trip_microseconds.map_or_else(|| "-".to_owned(), round_trip_text)
    }
}

impl PairSlot {
    fn new(slot: Slot, state: &PeerSlotStatus) -> Self {
        Self {
            slot,
            endpoint: state.endpoint,
            path: state.path.clone(),
            handshake_age_seconds: state.handshake_age,
            preshared_key: state.pq.protection,
            received: state.received,
            sent: state.sent,
        }
    }

    fn endpoint_text(&self) -> String {
        self.endpoint.map_or_else(|| "unknown".to_owned(), |endpoint| endpoint.to_string())
    }

    fn path_text(&self) -> String {
        self.path.clone().unwrap_or_else(|| "searching".to_owned())
    }

    fn handshake_text(&self) -> String {
        self.handshake_age_seconds.map_or_else(|| "never".to_owned(), rotation::age)
    }

    fn preshared_text(&self) -> String {
        crate::pq::text(self.preshared_key).to_owned()
    }
}

impl MeshPeers {
    /// Makes it of what each node says.
    pub fn new(answers: &BTreeMap<String, Answer>, filter: &Filter) -> Self {
        let (said, silent) = said(answers);
        let (mut pairs, mut all) = (Vec::new(), 0);
        for (node, status) in said {
            let wanted = status.peers.iter().filter(|peer| filter.wants(peer));
            pairs.extend(wanted.map(|peer| Pair::new(node, peer)));
            // The daemon may have left out some itself.
            all += status.summary.reach.all().max(status.peers.len() as u64);
        }
        let hidden = all.saturating_sub(pairs.len() as u64);
        Self {
            api_version: super::API_VERSION.to_owned(),
            kind: "MeshPeers".to_owned(),
            pairs,
            hidden,
            silent,
        }
    }

    /// Failed if a pair is down; unknown if a node did not answer.
    pub fn verdict(&self) -> Verdict {
        if self.pairs.iter().any(|pair| pair.state == Reach::Down) {
            Verdict::Failed
        } else if self.silent.is_empty() {
            Verdict::Good
        } else {
            Verdict::Unknown
        }
    }

    /// As a table for each node; `wide` has a row for each slot, with bytes.
    pub fn text(&self, wide: bool) -> String {
        let mut text = String::new();
        for pairs in self.pairs.chunk_by(|one, other| one.node == other.node) {
            let Some(first) = pairs.first() else { continue };
            let gap = if text.is_empty() { "" } else { "\n" };
            let table = if wide { wide_table(pairs) } else { table(pairs) };
            // Writing into a String can't fail.
            let _ = writeln!(text, "{gap}from {}\n{}", first.node, table.trim_fmt());
        }
        if self.pairs.is_empty() {
            text.push_str("no pair to show\n");
        }
        if self.hidden > 0 {
            let _ = writeln!(text, "\n{} more pairs are not shown", self.hidden);
        }
        let _ = self.silent.write(&mut text);
        text
    }
}

fn table(pairs: &[Pair]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(WIDTH).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["PEER", "STATE", "PATH", "ENDPOINT", "RTT", "SHAKE", "MTU", "PQ", "BYTES"]);
    for pair in pairs {
        let Some(used) = pair.used() else { continue };
        table.add_row([
            pair.peer.clone(),
            pair.state.as_str().to_owned(),
            used.path_text(),
            used.endpoint_text(),
            pair.round_trip_text(),
            used.handshake_text(),
            pair.mtu_text(),
            used.preshared_text(),
            bytes(pair.slots.iter().map(|slot| slot.received.saturating_add(slot.sent)).sum()),
        ]);
    }
    table
}

fn wide_table(pairs: &[Pair]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "PEER",
        "STATE",
        "SLOT",
        "PATH",
        "ENDPOINT",
        "RTT",
        "HANDSHAKE",
        "MTU",
        "PQ",
        "RECEIVED",
        "SENT",
    ]);
    for pair in pairs {
        for slot in &pair.slots {
            let is_used = pair.active == Some(slot.slot);
            // What holds for the pair stands beside the slot that packets take.
            let of_pair = |text: String| if is_used { text } else { String::new() };
            table.add_row([
                pair.peer.clone(),
                pair.state.as_str().to_owned(),
                format!("{}{}", if is_used { "*" } else { " " }, slot.slot),
                slot.path_text(),
                slot.endpoint_text(),
                of_pair(pair.round_trip_text()),
                slot.handshake_text(),
                of_pair(pair.mtu_text()),
                slot.preshared_text(),
                bytes(slot.received),
                bytes(slot.sent),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use keyring::PerSlot;
    use keyring::PublicKey;

    use super::super::tests::{mesh, node};
    use super::*;

    const THREE: [&str; 3] = ["n1", "n2", "n3"];

    fn slot(endpoint: &str, path: &str, sent: u64) -> PeerSlotStatus {
        PeerSlotStatus {
            key: PublicKey::from_bytes(&[9; 32]).unwrap(),
            endpoint: Some(endpoint.parse().unwrap()),
            path: Some(path.to_owned()),
            handshake_age: Some(42),
            last_handshake: None,
            received: 1 << 30,
            sent,
            endpoint_drifts: 0,
            forged: 0,
            pq: crate::pq::PqSlotStatus { protection: Protection::Proven, ..Default::default() },
        }
    }

    /// n1 reaches n2 in 250 ms over a relay and slot b, and not n3; n2 and n3 say nothing of slots.
    fn answers() -> BTreeMap<String, Answer> {
        let mut n1 = node("n1", &THREE, &["n3"]);
        for peer in &mut n1.peers {
            let endpoint = |port: u16| format!("[2001:db8:1234:5678::a1]:{port}");
            peer.slots = PerSlot {
                a: Some(slot(&endpoint(51840), "direct", 5)),
                b: Some(slot(&endpoint(51841), "relayed via gateway", 1 << 20)),
            };
            peer.active = Some(Slot::B);
        }
        n1.peers[0].round_trip_microseconds = Some(250_400);
        let mut answers = mesh(vec![n1, node("n2", &THREE, &[])]);
        answers.insert("n3".to_owned(), Answer::Silent("no answer within 8 s".to_owned()));
        answers
    }

    fn shown(peers: &MeshPeers) -> Vec<(&str, &str)> {
        peers.pairs.iter().map(|pair| (pair.node.as_str(), pair.peer.as_str())).collect()
    }

    #[test]
    fn all_pairs_are_listed_by_their_used_slot_within_80_columns() {
        let peers = MeshPeers::new(&answers(), &Filter::default());
        assert_eq!(shown(&peers), [("n1", "n2"), ("n1", "n3"), ("n2", "n1"), ("n2", "n3")]);
        assert_eq!(peers.verdict(), Verdict::Failed);
        let text = peers.text(false);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in ["from n1\n", "250.4 ms", "relayed", "42 s", "1280", "proven", "2.0 GiB", "down"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(text.contains("n3 did not answer: no answer within 8 s\n"), "{text}");
        let wide = peers.text(true);
        for part in ["[2001:db8:1234:5678::a1]:51840", "*b", "relayed via gateway", "1.0 MiB"] {
            assert!(wide.contains(part), "{part:?} in\n{wide}");
        }
    }

    #[test]
    fn pairs_that_are_down_or_slow_are_chosen_and_the_others_counted() {
        let chosen = |filter: Filter| MeshPeers::new(&answers(), &filter);
        let down = chosen(Filter { down: true, ..Filter::default() });
        assert_eq!((shown(&down), down.hidden), (vec![("n1", "n3")], 3));
        let bound = Some(Duration::from_millis(250));
        let slow = chosen(Filter { slower_than: bound, ..Filter::default() });
        assert_eq!((shown(&slow), slow.hidden), (vec![("n1", "n2")], 3));
        assert_eq!(slow.verdict(), Verdict::Unknown, "n3 was not asked");
        let both = chosen(Filter { down: true, slower_than: bound });
        assert_eq!((shown(&both), both.hidden), (vec![("n1", "n2"), ("n1", "n3")], 2));
        let well = mesh(vec![node("n2", &THREE, &[])]);
        let none = MeshPeers::new(&well, &Filter { down: true, ..Filter::default() });
        assert_eq!(none.verdict(), Verdict::Good);
        assert!(none.text(false).starts_with("no pair to show\n\n2 more pairs"), "{}", none.text(false));
    }
}
