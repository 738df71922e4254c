//! What the engines dropped, and what was given up because of a quota.

use std::collections::BTreeMap;

use super::{Metric, Sample, sample};
use status::Status;

/// Among what the engines dropped, what is no packet: a quota of its own.
pub(super) const FORGOTTEN: &str = "forgotten_timestamps";

/// Quotas whose excess is no packet and in no other metric.
pub(super) fn quotas(status: &Status) -> Metric<'_> {
    let always = [
        ("kubernetes_events", status.counters.events_dropped),
        ("waiting_messages", status.control.unsent),
        ("address_reports", status.counters.reports_displaced),
    ];
    let of_engine = status.tunnel_dropped.get(FORGOTTEN).map(|count| ("removed_peers", *count));
    let of_relay = status.relay.as_ref().map(|relay| ("relay_leases", relay.refused_leases));
    let samples = always.into_iter().chain(of_engine).chain(of_relay);
    Metric::counters(
        "quota_exceeded",
        "What was given up because of a quota: Events for the API server, messages to peers that waited for a session, memories of removed peers' handshakes, leases of a relay, reports of where this node's datagrams come from (usual with more than 32 peers).",
        samples.map(|(quota, count)| sample(vec![("quota", quota)], count)).collect(),
    )
}

/// Drops of the engines by kind: the page has to stay short.
pub(super) fn of_tunnel(by_reason: &BTreeMap<String, u64>) -> Vec<Sample<'static>> {
    let mut kinds: BTreeMap<&'static str, u64> = BTreeMap::new();
    let packets = by_reason.iter().filter(|(reason, _)| *reason != FORGOTTEN);
    for (reason, count) in packets {
        let kind = match reason.as_str() {
            "forged" | "invalid_mac" | "invalid_handshake" => "forged",
            "replay" => "replay",
            "source_mismatch" => "source_mismatch",
            "no_session" | "no_peer" | "no_endpoint" | "no_private_key" | "unknown_index"
            | "unknown_peer" => "no_session",
            "handshake_rate_limited"
            | "peer_handshake_rate_limited"
            | "staged_packets_limited"
            | "message_limit" => "limit",
            "tun_write" | "udp_send" => "not_sent",
            _ => "malformed",
        };
        *kinds.entry(kind).or_default() += count;
    }
    kinds.into_iter().map(|(kind, count)| sample(vec![("reason", kind)], count)).collect()
}
