use std::collections::{BTreeMap, BTreeSet};

use keyring::{PerSlot, PublicKey};

use super::*;
use status::reach::{Reach, ReachCounts};
use status::rotation::KeyStatus;
use status::summary::{Facts, Summary, Trouble, TroubleCounts, TroubledPeer};
use status::totals::PeerTotals;
use status::{Counters, FindingStatus, OffloadUse, PeerSlotStatus, PeerStatus, RejectedStatus, SlotStatus};

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
        pq: status::pq::PqSlotStatus::default(),
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
        pq: status::pq::PairStatus::default(),
        slots: PerSlot { a: Some(slot), b: None },
    };
    let mut status = Status {
        version: "1.2.3".into(),
        taken_at: 1_800_000_000,
        slots: PerSlot { a: Some(device), b: None },
        peers: vec![peer],
        summary: Summary {
            reach: ReachCounts { up: 0, idle: 1, down: 0 },
            troubles: TroubleCounts { stripped: 1, ..TroubleCounts::default() },
            smallest_mtu: Some(1420),
            worst: vec![TroubledPeer { trouble: Trouble::Stripped, node: "n2".into() }],
            ..Summary::default()
        },
        totals: PeerTotals { received: 7, sent: 8, endpoint_drifts: 0, forged: 9 },
        round_trips: RoundTrips { counts: [1, 2, 0, 0, 0, 1], sum_microseconds: 500_000 },
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
        relay: Some(status::RelayStatus {
            dropped: [("unproven".to_owned(), 3)].into(),
            refused_leases: 7,
            ..status::RelayStatus::default()
        }),
        preshared_refused: [("epoch".to_owned(), 2)].into(),
        tunnel_dropped: [("replay".to_owned(), 3), ("forgotten_timestamps".to_owned(), 4)].into(),
        control: status::ControlStatus { unsent: 5, ..status::ControlStatus::default() },
        counters: Counters { events_dropped: 6, reports_displaced: 8, ..Counters::default() },
        ..Status::default()
    };
    let slot = keyring::Slot::A;
    let state = String::from("active");
    status.rotation.keys.push(KeyStatus { slot, key, state, generation: 1, age_seconds: 60 });
    status
}

fn rendered(status: Status) -> String {
    let (_sender, receiver) = watch::channel(status);
    let drops = Drops { outgoing: 3, ..Drops::default() };
    render(receiver, drops, Arc::default()).unwrap()
}

#[test]
fn samples_have_labels_and_base_units() {
    let text = rendered(full());
    for line in [
        "meshd_build_info{version=\"1.2.3\"} 1\n",
        "meshd_backend_info{slot=\"a\",backend=\"kernel\"} 1\n",
        "meshd_rejected_nodes{reason=\"key-zero\"} 1\n",
        "meshd_guard_dropped_packets_total{reason=\"unencrypted_out\"} 3\n",
        "meshd_troubled_peers{reason=\"stripped\"} 1\n",
        "meshd_worst_peers{peer=\"n2\",reason=\"stripped\"} 1\n",
        "meshd_smallest_peer_mtu_bytes 1420\n",
        "meshd_received_bytes_total 7\n",
        "meshd_forged_datagrams_total 9\n",
        "meshd_probe_round_trip_seconds_bucket{le=\"0.001\"} 1\n",
        "meshd_probe_round_trip_seconds_bucket{le=\"0.32\"} 3\n",
        "meshd_probe_round_trip_seconds_bucket{le=\"+Inf\"} 4\n",
        "meshd_probe_round_trip_seconds_sum 0.5\n",
        "meshd_probe_round_trip_seconds_count 4\n",
        "meshd_offload_in_use{slot=\"a\",offload=\"udp\"} 1\n",
        "meshd_offload_in_use{slot=\"a\",offload=\"tun\"} 0\n",
        "meshd_offload_refused_batches_total{slot=\"a\"} 4\n",
        "meshd_preshared_key_messages_refused_total{reason=\"epoch\"} 2\n",
        "meshd_quota_exceeded_total{quota=\"removed_peers\"} 4\n",
        "meshd_quota_exceeded_total{quota=\"waiting_messages\"} 5\n",
        "meshd_quota_exceeded_total{quota=\"kubernetes_events\"} 6\n",
        "meshd_quota_exceeded_total{quota=\"relay_leases\"} 7\n",
        "meshd_quota_exceeded_total{quota=\"address_reports\"} 8\n",
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
fn a_node_rejected_twice_for_the_same_reason_counts_once() {
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
        ["meshd_rejected_nodes{reason=\"address\"} 2", "meshd_rejected_nodes{reason=\"pod-cidr\"} 1",]
    );
}

/// A status in which everything is wrong that can be, of a node with so many peers and as many rejected Nodes.
fn large(peers: usize) -> Status {
    let mut status = Status { peers: Vec::new(), rejected: Vec::new(), ..full() };
    status.summary = Summary::default();
    for number in 0..peers {
        let node = format!("n{number}");
        status.summary.add(&Facts {
            node: &node,
            state: Reach::Down,
            blocked: true,
            stripped: true,
            full_size_passes: Some(false),
            mtu: 1420,
            protection: PerSlot::default(),
        });
        let code = "address".to_owned();
        status.rejected.push(RejectedStatus { node, code, reason: String::new(), stays: true });
    }
    status.slots.b = status.slots.a.clone();
    let reasons = tunnel::DropReason::ALL.map(|reason| (reason.label().to_owned(), 1));
    status.tunnel_dropped = reasons.into_iter().chain([(drops::FORGOTTEN.to_owned(), 1)]).collect();
    let refused = ["malformed", "unauthenticated", "mac", "stale", "replay", "rate", "queue"];
    status.control.refused = refused.map(|why| (why.to_owned(), 1)).into_iter().collect();
    status.relay = None;
    status
}

#[test]
fn a_page_without_series_of_single_peers_is_short_at_any_number_of_them() {
    for peers in [0, 50, 1000, 5000, 20_000] {
        let text = rendered(large(peers));
        let lines = text.lines().count();
        assert!(lines <= 150, "{lines} lines with {peers} peers:\n{text}");
        assert!(!text.contains("meshd_peer_"), "{text}");
        assert!(text.contains("# TYPE meshd_peers gauge\n") && text.ends_with("# EOF\n"), "{text}");
    }
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
                let family =
                    ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let family = family.filter(|family| types.contains_key(family)).unwrap_or(name);
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
