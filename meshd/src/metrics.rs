//! The status as Prometheus metrics, made when somebody asks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::api::fence::Fence;
use crate::status::Status;

/// Renders all metrics in the text format of `OpenMetrics` 1.0.
pub(crate) fn render(status: watch::Receiver<Status>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("meshd");
    registry.register_collector(Box::new(View(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct View(watch::Receiver<Status>);

/// One metric: name, help, type, and its samples with labels.
type Row<'a> = (&'static str, &'static str, MetricType, Vec<(Vec<(&'static str, &'a str)>, u64)>);

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.0.borrow();
        for (name, help, kind, samples) in node_rows(&status).into_iter().chain(peer_rows(&status)) {
            let counter = matches!(kind, MetricType::Counter);
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in samples {
                let labels = labels.as_slice();
                let mut sample = metric.encode_family(&labels)?;
                if counter {
                    sample.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                } else {
                    sample.encode_gauge(&value)?;
                }
            }
        }
        Ok(())
    }
}

fn node_rows(status: &Status) -> Vec<Row<'_>> {
    let gauge = |name, help, value| (name, help, MetricType::Gauge, vec![(vec![], value)]);
    let counter = |name, help, value| (name, help, MetricType::Counter, vec![(vec![], value)]);
    let drops = [
        ("out", status.guard.dropped_out),
        ("in", status.guard.dropped_in),
        ("spoofed", status.guard.dropped_spoofed),
    ];
    let drops = drops.into_iter().map(|(direction, count)| (vec![("direction", direction)], count)).collect();
    let rejected = status
        .rejected
        .iter()
        .map(|rejected| (vec![("node", rejected.node.as_str()), ("reason", rejected.code.as_str())], 1))
        .collect();
    let backends = status.slots.iter().filter_map(|(slot, device)| {
        Some((vec![("slot", slot.as_str()), ("backend", device.as_ref()?.backend.as_str())], 1))
    });
    vec![
        ("backend", "Which WireGuard carries a slot's packets.", MetricType::Gauge, backends.collect()),
        gauge("ready", "Whether pods can be attached and reach the mesh.", u64::from(status.ready)),
        gauge(
            "guard_stands",
            "Whether the guard's table stands unchanged.",
            u64::from(status.guard.in_place),
        ),
        (
            "guard_dropped_packets",
            "Packets with a pod address that the guard dropped.",
            MetricType::Counter,
            drops,
        ),
        gauge("generation", "Generation of this node's keys.", status.generation),
        gauge(
            "oldest_key_age_seconds",
            "Seconds since the older of this node's keys was made.",
            status.rotation.keys.iter().map(|key| key.age_seconds).max().unwrap_or_default(),
        ),
        gauge(
            "rotation_busy",
            "Whether keys are being replaced or are about to be.",
            u64::from(status.rotation.busy),
        ),
        gauge(
            "rotation_blocking_peers",
            "Peers that are alive and made the last rotation be given up.",
            status.rotation.blocked_by.len() as u64,
        ),
        counter("rotations", "Rotations that went through.", status.rotation.finished),
        counter("rotations_rolled_back", "Rotations that were given up.", status.rotation.rolled_back),
        gauge("peers", "Other nodes in the mesh.", status.peers.len() as u64),
        gauge("pending_nodes", "Nodes that have not published anything yet.", status.pending.len() as u64),
        gauge("kept_nodes", "Nodes no longer listed that are kept for now.", status.kept.len() as u64),
        ("rejected", "Nodes, or parts of what they publish, that were refused.", MetricType::Gauge, rejected),
        gauge(
            "api_connected",
            "Whether Nodes are being watched.",
            u64::from(status.api.listed && status.api.error.is_none()),
        ),
        gauge(
            "published",
            "Whether this node's annotations are as they should be.",
            u64::from(status.api.published),
        ),
        gauge(
            "trust_policy_missing",
            "Whether the API server would let this daemon change another Node.",
            u64::from(status.api.trust_policy == Fence::Missing),
        ),
        counter("reconciles", "Reconciliations.", status.counters.reconciles),
        counter("steps", "Steps performed to repair or change the node's network.", status.counters.steps),
        counter("failed_steps", "Steps that failed and are tried again.", status.counters.failed_steps),
        counter(
            "device_restarts",
            "Devices that were gone and were made anew.",
            status.counters.device_restarts,
        ),
        counter("brakes", "Times that a mass removal of peers was braked.", status.counters.brakes),
    ]
}

fn peer_rows(status: &Status) -> Vec<Row<'_>> {
    let samples = |value: fn(&crate::status::PeerSlotStatus) -> Option<u64>| -> Vec<_> {
        let slots = status
            .peers
            .iter()
            .flat_map(|peer| peer.slots.iter().map(move |(slot, state)| (peer, slot, state)));
        slots
            .filter_map(|(peer, slot, state)| {
                Some((vec![("peer", peer.node.as_str()), ("slot", slot.as_str())], value(state.as_ref()?)?))
            })
            .collect()
    };
    let of_peers = |value: fn(&crate::status::PeerStatus) -> Option<u64>| -> Vec<_> {
        let peers = status.peers.iter();
        peers.filter_map(|peer| Some((vec![("peer", peer.node.as_str())], value(peer)?))).collect()
    };
    vec![
        (
            "peer_round_trip_microseconds",
            "From a question inside the tunnel to its answer; absent while there is none.",
            MetricType::Gauge,
            of_peers(|peer| peer.round_trip_microseconds),
        ),
        (
            "peer_full_size_lost",
            "Whether packets of the size of the MTU are lost on the way while smaller ones arrive.",
            MetricType::Gauge,
            of_peers(|peer| peer.full_size_passes.map(|passes| u64::from(!passes))),
        ),
        (
            "peer_handshake_age_seconds",
            "Seconds since the last completed handshake; absent before the first one.",
            MetricType::Gauge,
            samples(|slot| slot.handshake_age),
        ),
        (
            "peer_received_bytes",
            "Bytes received from the peer.",
            MetricType::Counter,
            samples(|slot| Some(slot.received)),
        ),
        ("peer_sent_bytes", "Bytes sent to the peer.", MetricType::Counter, samples(|slot| Some(slot.sent))),
        (
            "peer_preshared_key_proven",
            "Whether a handshake with the slot's preshared key has been seen.",
            MetricType::Gauge,
            samples(|slot| Some(u64::from(slot.pq.protection == keyring::pq::Protection::Proven))),
        ),
        (
            "peer_endpoint_drifts",
            "Authenticated packets that came from another address than the published endpoint.",
            MetricType::Counter,
            samples(|slot| Some(slot.endpoint_drifts)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_help_and_rejections_carry_their_reason() {
        let mut status = Status::default();
        status.rejected.push(crate::status::RejectedStatus {
            node: "n9".to_owned(),
            code: "key-zero".to_owned(),
            reason: String::new(),
            stays: false,
        });
        let (_sender, receiver) = watch::channel(status);
        let text = render(receiver).unwrap();
        assert!(text.contains("meshd_rejected{node=\"n9\",reason=\"key-zero\"} 1"), "{text}");
        assert!(text.contains("# TYPE meshd_guard_dropped_packets counter"), "{text}");
        assert!(text.contains("meshd_guard_dropped_packets_total{direction=\"in\"} 0"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
