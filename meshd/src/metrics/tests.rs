use std::collections::{BTreeMap, BTreeSet};

use keyring::{PerSlot, PublicKey};

use super::*;
use crate::status::reach::Reach;
use crate::status::rotation::KeyStatus;
use crate::status::{FindingStatus, OffloadUse, RejectedStatus, SlotStatus};

/// A status in which every metric has a sample.
fn full() -> Status {
    let key = PublicKey::from_bytes(&[7; 32]).unwrap();
    let device = SlotStatus {
        link: "mesh-a".into(),
        key,
        port: 51840,
        mtu: 1420,
        backend: "kernel".into(),
        offload: Some(OffloadUse { udp: true, tun: false, refused: 4 }),
    };
    let slot = PeerSlotStatus {
        key,
        endpoint: None,
        path: None,
        handshake_age: Some(30),
        last_handshake: Some(1_799_999_971),
        received: 5,
        sent: 6,
        endpoint_drifts: 0,
        forged: 0,
        pq: crate::status::pq::PqSlotStatus::default(),
    };
    let peer = PeerStatus {
        node: "n2".into(),
        state: Reach::Idle,
        pod_cidrs: vec![],
        addresses: vec![],
        active: None,
        mtu: Some(1420),
        generation: 1,
        proven: true,
        round_trip_microseconds: Some(1500),
        mtu_source: "route".to_owned(),
        full_size_passes: Some(true),
        pq: crate::status::pq::PairStatus::default(),
        slots: PerSlot { a: Some(slot), b: None },
    };
    let mut status = Status {
        version: "1.2.3".into(),
        taken_at: 1_800_000_000,
        slots: PerSlot { a: Some(device), b: None },
        peers: vec![peer],
        rejected: vec![RejectedStatus {
            node: "n9".into(),
            code: "key-zero".into(),
            reason: String::new(),
            stays: false,
        }],
        findings: vec![FindingStatus {
            code: "competing-route".into(),
            sentence: String::new(),
            fix: String::new(),
        }],
        pods_outside: 2,
        relay: Some(crate::status::RelayStatus {
            dropped: [("unproven".to_owned(), 3)].into(),
            ..crate::status::RelayStatus::default()
        }),
        preshared_refused: [("epoch".to_owned(), 2)].into(),
        tunnel_dropped: [("replay".to_owned(), 3)].into(),
        ..Status::default()
    };
    let slot = keyring::Slot::A;
    let state = String::from("active");
    status.rotation.keys.push(KeyStatus { slot, key, state, generation: 1, age_seconds: 60 });
    status
}

fn rendered(status: Status) -> String {
    let (_sender, receiver) = watch::channel(status);
    render(receiver, Arc::default()).unwrap()
}

#[test]
fn samples_have_labels_and_base_units() {
    let text = rendered(full());
    for line in [
        "meshd_build_info{version=\"1.2.3\"} 1\n",
        "meshd_backend_info{slot=\"a\",backend=\"kernel\"} 1\n",
        "meshd_rejected_nodes{node=\"n9\",reason=\"key-zero\"} 1\n",
        "meshd_offload_in_use{slot=\"a\",offload=\"udp\"} 1\n",
        "meshd_offload_in_use{slot=\"a\",offload=\"tun\"} 0\n",
        "meshd_offload_refused_batches_total{slot=\"a\"} 4\n",
        "meshd_preshared_key_messages_refused_total{reason=\"epoch\"} 2\n",
        "meshd_peers{state=\"up\"} 0\n",
        "meshd_peers{state=\"idle\"} 1\n",
        "meshd_host_findings{code=\"competing-route\"} 1\n",
        "meshd_pods_outside_mesh 2\n",
        "# TYPE meshd_guard_dropped_packets counter\n",
        "meshd_guard_dropped_packets_total{reason=\"unencrypted_in\"} 0\n",
        "# UNIT meshd_peer_round_trip_seconds seconds\n",
        "meshd_peer_round_trip_seconds{peer=\"n2\"} 0.0015\n",
        "meshd_peer_last_handshake_timestamp_seconds{peer=\"n2\",slot=\"a\"} 1799999971\n",
        "meshd_oldest_key_created_timestamp_seconds 1799999940\n",
        "meshd_peer_received_bytes_total{peer=\"n2\",slot=\"a\"} 5\n",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_node_rejected_twice_for_the_same_reason_is_one_series() {
    let rejected = |node: &str, code: &str, reason: &str| RejectedStatus {
        node: node.into(),
        code: code.into(),
        reason: reason.into(),
        stays: true,
    };
    let status = Status {
        rejected: vec![
            rejected("n9", "address", "10.0.0.1"),
            rejected("n9", "address", "10.0.0.2"),
            rejected("n9", "pod-cidr", "10.1.0.0/24"),
            rejected("n8", "address", "10.0.0.1"),
        ],
        ..full()
    };
    let text = rendered(status);
    let series: Vec<&str> = text.lines().filter(|line| line.starts_with("meshd_rejected_nodes{")).collect();
    assert_eq!(
        series,
        [
            "meshd_rejected_nodes{node=\"n8\",reason=\"address\"} 1",
            "meshd_rejected_nodes{node=\"n9\",reason=\"address\"} 1",
            "meshd_rejected_nodes{node=\"n9\",reason=\"pod-cidr\"} 1",
        ]
    );
}

/// The rows that docs/metrics.md must have: name, type, unit, labels, meaning.
fn documentation(text: &str) -> BTreeSet<String> {
    let mut types = BTreeMap::new();
    let (mut helps, mut units) = (BTreeMap::new(), BTreeMap::new());
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", name, kind] => drop(types.insert(name, kind)),
            ["#", "HELP", name, help] => drop(helps.insert(name, help)),
            ["#", "UNIT", name, unit] => drop(units.insert(name, unit)),
            ["#", ..] => {}
            _ => {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = name.strip_suffix("_total").unwrap_or(name);
                let inner = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
                let pairs = inner.map_or("", |(inner, _)| inner).split(',');
                let names = pairs.filter_map(|pair| Some(pair.split_once('=')?.0));
                labels.entry(family).or_default().extend(names);
            }
        }
    }
    assert!(types.len() > 20, "{text}");
    let row = |(name, kind): (&&str, &&str)| {
        let suffix = if *kind == "counter" { "_total" } else { "" };
        let labels: Vec<String> = labels[name].iter().map(|label| format!("`{label}`")).collect();
        let unit = units.get(name).copied().unwrap_or_default();
        format!("| `{name}{suffix}` | {kind} | {unit} | {} | {} |", labels.join(", "), helps[name])
    };
    types.iter().map(row).collect()
}

#[test]
fn the_page_of_metrics_lists_each_metric() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let listed: BTreeSet<String> =
        page.lines().filter(|line| line.starts_with("| `meshd_")).map(ToOwned::to_owned).collect();
    let rendered = documentation(&rendered(full()));
    let missing: Vec<_> = rendered.difference(&listed).collect();
    let outdated: Vec<_> = listed.difference(&rendered).collect();
    assert!(missing.is_empty() && outdated.is_empty(), "missing: {missing:#?}\nnot rendered: {outdated:#?}");
}
