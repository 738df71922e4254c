//! The status as Prometheus metrics, rendered on request. docs/metrics.md lists them; a test checks that it does.

mod drops;
mod peers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use linux::guard::Drops;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::http::ClosedConnections;
use status::totals::RoundTrips;
use status::{Fence, Status};

/// Renders all metrics in the text format of `OpenMetrics` 1.0. Without series of single peers the page is short: then it has
/// neither help texts nor units, which are optional and would be a third of it. docs/metrics.md has both.
pub(crate) fn render(
    status: watch::Receiver<Status>,
    drops: Drops,
    closed: Arc<ClosedConnections>,
) -> Result<String, fmt::Error> {
    let is_short = status.borrow().peers.is_empty();
    let mut registry = Registry::with_prefix("meshd");
    registry.register_collector(Box::new(View { status, drops, closed }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    if !is_short {
        return Ok(text);
    }
    let is_optional = |line: &str| line.starts_with("# HELP ") || line.starts_with("# UNIT ");
    Ok(text.split_inclusive('\n').filter(|line| !is_optional(line)).collect())
}

#[derive(Debug)]
struct View {
    status: watch::Receiver<Status>,
    drops: Drops,
    closed: Arc<ClosedConnections>,
}

/// One metric with its samples. The unit is appended to its name.
struct Metric<'a> {
    name: &'static str,
    kind: MetricType,
    unit: Option<Unit>,
    help: &'static str,
    samples: Vec<Sample<'a>>,
}

struct Sample<'a> {
    labels: Vec<(&'static str, &'a str)>,
    value: Value,
}

#[derive(Clone, Copy)]
enum Value {
    Integer(u64),
    Float(f64),
    RoundTrips(RoundTrips),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Integer(flag.into())
    }
}

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self::Float(duration.as_secs_f64())
    }
}

impl<'a> Metric<'a> {
    fn gauge(name: &'static str, help: &'static str, value: impl Into<Value>) -> Self {
        Self::gauges(name, help, vec![sample(vec![], value)])
    }

    fn gauges(name: &'static str, help: &'static str, samples: Vec<Sample<'a>>) -> Self {
        Self { name, kind: MetricType::Gauge, unit: None, help, samples }
    }

    fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::counters(name, help, vec![sample(vec![], value)])
    }

    fn counters(name: &'static str, help: &'static str, samples: Vec<Sample<'a>>) -> Self {
        Self { name, kind: MetricType::Counter, unit: None, help, samples }
    }

    fn unit(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }
}

fn sample<'a>(labels: Vec<(&'static str, &'a str)>, value: impl Into<Value>) -> Sample<'a> {
    Sample { labels, value: value.into() }
}

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.status.borrow();
        let groups = [
            node(&status, self.drops),
            messages(&status),
            mesh(&status),
            peers::all(&status),
            rotation(&status),
            loop_counters(&status),
            peers::each(&status),
            offload(&status),
            relay(&status),
            vec![http(&self.closed), drops::quotas(&status)],
        ];
        for Metric { name, kind, unit, help, samples } in groups.into_iter().flatten() {
            // A page without anything to say about relays, findings or single peers does not name them.
            if samples.is_empty() {
                continue;
            }
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for Sample { labels, value } in samples {
                let labels = labels.as_slice();
                if labels.is_empty() {
                    encode(&mut metric, kind, value)?;
                } else {
                    encode(&mut metric.encode_family(&labels)?, kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: Value) -> Result<(), fmt::Error> {
    match (kind, value) {
        (MetricType::Counter, Value::Integer(value)) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        (MetricType::Counter, Value::Float(value)) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        (_, Value::Integer(value)) => encoder.encode_gauge(&value),
        (_, Value::Float(value)) => encoder.encode_gauge(&value),
        (_, Value::RoundTrips(trips)) => {
            let bounds = RoundTrips::BOUNDS.map(|bound| f64::from(bound) / 1000.0);
            let bounds = bounds.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(trips.counts).collect();
            let sum = Duration::from_micros(trips.sum_microseconds).as_secs_f64();
            encoder.encode_histogram::<NoLabelSet>(sum, trips.counts.iter().sum(), &buckets, None)
        }
    }
}

fn node(status: &Status, drops: Drops) -> Vec<Metric<'_>> {
    let backends = status.slots.iter().filter_map(|(slot, device)| {
        let backend = device.as_ref()?.backend.as_str();
        Some(sample(vec![("slot", slot.as_str()), ("backend", backend)], 1))
    });
    let drops = [
        ("unencrypted_out", drops.outgoing),
        ("unencrypted_in", drops.incoming),
        ("spoofed_source", drops.spoofed),
        ("closed_node", drops.closed),
    ];
    vec![
        Metric::gauges(
            "build_info",
            "Version of the daemon; always 1.",
            vec![sample(vec![("version", status.version.as_str())], 1)],
        ),
        Metric::gauges(
            "backend_info",
            "WireGuard implementation of a slot's device, kernel or userspace; always 1.",
            backends.collect(),
        ),
        Metric::gauge(
            "ready",
            "Whether pods can be attached; meshd_peers says whether they reach others.",
            status.ready,
        ),
        Metric::gauge(
            "guard_in_place",
            "Whether the guard's nftables table is in place and unchanged.",
            status.guard.in_place,
        ),
        Metric::gauge(
            "closed_addresses",
            "Addresses of Nodes that are closed to pods, because no member of the mesh holds them.",
            status.guard.closed_addresses as u64,
        ),
        Metric::counters(
            "guard_dropped_packets",
            "Packets dropped by the guard: with a pod address outside the tunnel, leaving or arriving, from a pod with a source address that is not its own, or from a pod to a Node that is not in the mesh.",
            drops.map(|(reason, count)| sample(vec![("reason", reason)], count)).into(),
        ),
        Metric::counters(
            "tunnel_dropped_packets",
            "Packets and datagrams that the userspace engines of both slots dropped; meshd status -o json has more reasons.",
            drops::of_tunnel(&status.tunnel_dropped),
        ),
        Metric::gauge(
            "memory_protections_missing",
            "Protections of the daemon's memory that could not be set up; the log names them.",
            status.missing_protections.len() as u64,
        ),
        findings(status),
        pods_outside(status),
        Metric::gauge(
            "damaged_files",
            "Files that were found damaged when the daemon started; they are kept, and the log names them.",
            status.damaged_files.len() as u64,
        ),
    ]
}

fn messages(status: &Status) -> Vec<Metric<'_>> {
    let control = [
        ("accepted", status.control.received),
        ("session", status.control.session_messages),
        ("unknown_sender", status.control.unknown_senders),
    ];
    let refused = status.control.refused.iter().map(|(why, count)| (why.as_str(), *count));
    vec![
        Metric::counters(
            "control_messages",
            "Datagrams received on the control channel: accepted messages, those that open a session, and those that were dropped, by reason.",
            control
                .into_iter()
                .chain(refused)
                .map(|(result, count)| sample(vec![("result", result)], count))
                .collect(),
        ),
        Metric::counters(
            "preshared_key_messages_refused",
            "Messages of peers about preshared keys that this node refused, by reason.",
            status
                .preshared_refused
                .iter()
                .map(|(reason, count)| sample(vec![("reason", reason.as_str())], *count))
                .collect(),
        ),
    ]
}

fn pods_outside(status: &Status) -> Metric<'_> {
    Metric::gauge(
        "pods_outside_mesh",
        "Pods on this node that another network plugin attached: their packets are not encrypted.",
        status.pods_outside as u64,
    )
}

fn findings(status: &Status) -> Metric<'_> {
    let codes: BTreeSet<&str> = status.findings.iter().map(|found| found.code.as_str()).collect();
    Metric::gauges(
        "host_findings",
        "Findings about the host, by their code; always 1.",
        codes.into_iter().map(|code| sample(vec![("code", code)], 1)).collect(),
    )
}

fn offload(status: &Status) -> Vec<Metric<'_>> {
    let slots = || status.slots.iter().filter_map(|(slot, device)| Some((slot, device.as_ref()?.offload?)));
    let used = slots().flat_map(|(slot, offload)| {
        [("udp", offload.udp), ("tun", offload.tun)]
            .map(|(name, used)| sample(vec![("slot", slot.as_str()), ("offload", name)], used))
    });
    let refused = slots().map(|(slot, offload)| sample(vec![("slot", slot.as_str())], offload.refused));
    vec![
        Metric::gauges(
            "offload_in_use",
            "Whether the userspace engine of a slot leaves it to the kernel to cut and join batches of packets.",
            used.collect(),
        ),
        Metric::counters(
            "offload_refused_batches",
            "Batches that the kernel refused, and whose packets the engine then sent one by one.",
            refused.collect(),
        ),
    ]
}

/// Only of a node that is a relay.
fn relay(status: &Status) -> Vec<Metric<'_>> {
    let Some(relay) = &status.relay else { return Vec::new() };
    let leases = [("both", relay.leases as u64), ("one", relay.waiting as u64)];
    let dropped = relay.dropped.iter().map(|(why, count)| sample(vec![("reason", why.as_str())], *count));
    vec![
        Metric::gauges(
            "relay_leases",
            "Leases of this node as a relay, one for each pair of nodes and slot: those that both ends have asked for, and those that one has.",
            leases.map(|(ends, count)| sample(vec![("ends", ends)], count)).into(),
        ),
        Metric::counter(
            "relay_forwarded_datagrams",
            "Datagrams that this node has forwarded as a relay.",
            relay.datagrams,
        ),
        Metric::counter(
            "relay_forwarded",
            "Bytes that this node has forwarded as a relay, without UDP and IP headers.",
            relay.bytes,
        )
        .unit(Unit::Bytes),
        Metric::counters(
            "relay_dropped_datagrams",
            "Datagrams that arrived at leased ports and were not forwarded.",
            dropped.collect(),
        ),
        Metric::gauge(
            "relay_closed_ports",
            "Leased ports that could not be opened; the log names them.",
            relay.closed_ports.len() as u64,
        ),
    ]
}

fn http(closed: &ClosedConnections) -> Metric<'static> {
    Metric::counters(
        "http_connections_closed",
        "Connections for health and metrics that were closed before they had their answer: beyond the limit of open ones, or too slow.",
        closed.counts().map(|(reason, count)| sample(vec![("reason", reason)], count)).into(),
    )
}

fn mesh(status: &Status) -> Vec<Metric<'_>> {
    let reach = status.summary.reach;
    // A node may have been rejected twice for the same reason, such as two of its addresses.
    let rejected: BTreeSet<_> =
        status.rejected.iter().map(|rejected| (rejected.code.as_str(), rejected.node.as_str())).collect();
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for (code, _) in rejected {
        *reasons.entry(code).or_default() += 1;
    }
    vec![
        Metric::gauges(
            "peers",
            "Other nodes in the mesh: with a session, without one but answering, or not reached.",
            [("up", reach.up), ("idle", reach.idle), ("down", reach.down)]
                .map(|(state, count)| sample(vec![("state", state)], count))
                .into(),
        ),
        Metric::gauge(
            "pending_nodes",
            "Nodes that have not published keys yet.",
            status.pending.len() as u64,
        ),
        Metric::gauge(
            "kept_nodes",
            "Nodes that the API server no longer lists but that are kept for now.",
            status.kept.len() as u64,
        ),
        Metric::gauges(
            "rejected_nodes",
            "Nodes that were rejected, as a whole or in part, by reason; meshd status and the log name them.",
            reasons.into_iter().map(|(code, count)| sample(vec![("reason", code)], count)).collect(),
        ),
        Metric::gauge(
            "api_server_connected",
            "Whether Nodes are being watched.",
            status.api.listed && status.api.error.is_none(),
        ),
        Metric::gauge(
            "annotations_published",
            "Whether this node's annotations are published and up to date.",
            status.api.published,
        ),
        Metric::gauge(
            "trust_policy_missing",
            "Whether the API server would let this daemon modify another Node.",
            status.api.trust_policy == Fence::Missing,
        ),
    ]
}

fn rotation(status: &Status) -> Vec<Metric<'_>> {
    let rotation = &status.rotation;
    let oldest = rotation.keys.iter().map(|key| key.age_seconds).max();
    let rotations = [("completed", rotation.finished), ("rolled_back", rotation.rolled_back)];
    vec![
        Metric::gauge("key_generation", "Generation of this node's keys.", status.generation),
        Metric::gauges(
            "oldest_key_created_timestamp",
            "Unix time at which the older of this node's keys was created.",
            oldest.map(|age| sample(vec![], timestamp(status, age))).into_iter().collect(),
        )
        .unit(Unit::Seconds),
        Metric::gauge(
            "rotation_in_progress",
            "Whether a rotation of this node's keys is in progress or requested.",
            rotation.busy,
        ),
        Metric::gauge(
            "rotation_blocking_peers",
            "Peers that were alive but did not follow, so that the last rotation was rolled back.",
            rotation.blocked_by.len() as u64,
        ),
        Metric::counters(
            "rotations",
            "Rotations of this node's keys that ended.",
            rotations.map(|(result, count)| sample(vec![("result", result)], count)).into(),
        ),
    ]
}

fn loop_counters(status: &Status) -> Vec<Metric<'_>> {
    let counters = &status.counters;
    let missing = [("quota", counters.audit_omitted), ("not_written", counters.audit_lost)];
    let steps = [("success", counters.steps), ("failure", counters.failed_steps)];
    let lookups = [("success", counters.names_resolved), ("failure", counters.names_failed)];
    vec![
        Metric::counter("reconciliations", "Reconciliations of the node's network.", counters.reconciles),
        Metric::counter(
            "full_reconciliations",
            "Reconciliations that compared the whole network, because something had changed or it was time.",
            counters.full_reconciles,
        ),
        Metric::counters(
            "reconcile_steps",
            "Changes made to the node's network; failed ones are retried.",
            steps.map(|(result, count)| sample(vec![("result", result)], count)).into(),
        ),
        Metric::counter(
            "reconcile_retries",
            "Changes that were tried again after a failure, with backoff.",
            counters.retried_steps,
        ),
        Metric::counter(
            "missed_changes",
            "Changes of the node's network that no notice told of, found by a periodic reconciliation, and peers about which it decided otherwise.",
            counters.missed_changes,
        ),
        Metric::counter(
            "device_recreations",
            "WireGuard devices that disappeared and were recreated.",
            counters.device_restarts,
        ),
        Metric::counter(
            "brake_activations",
            "Times that the brake held a mass removal of peers.",
            counters.brakes,
        ),
        Metric::counters(
            "name_lookups",
            "Lookups of names that stand for endpoints.",
            lookups.map(|(result, count)| sample(vec![("result", result)], count)).into(),
        ),
        Metric::counters(
            "audit_lines_missing",
            "Lines that are not in the audit trail: beyond a quota, or because the trail could not be written.",
            missing.map(|(reason, count)| sample(vec![("reason", reason)], count)).into(),
        ),
    ]
}

/// The Unix time of something that had this age when the status was taken.
fn timestamp(status: &Status, age_seconds: u64) -> u64 {
    status.taken_at.saturating_sub(age_seconds)
}

#[cfg(test)]
mod tests;
