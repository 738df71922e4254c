//! Metrics of peers: of all together, and of each where that is wanted.

use std::time::Duration;

use keyring::pq::Protection;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Metric, Value, sample};
use status::summary::{Summary, Trouble};
use status::{PeerSlotStatus, PeerStatus, Status};

/// What all peers are and do: as many series at any number of peers.
pub(super) fn all(status: &Status) -> Vec<Metric<'_>> {
    let Summary { preshared_keys, troubles, smallest_mtu, worst, .. } = &status.summary;
    let troubled = [
        (Trouble::Blocked, troubles.blocked),
        (Trouble::Stripped, troubles.stripped),
        (Trouble::TooSmall, troubles.too_small),
    ];
    let keys = [
        ("none", preshared_keys.none),
        ("offered", preshared_keys.offered),
        ("set", preshared_keys.set),
        ("proven", preshared_keys.proven),
    ];
    vec![
        Metric::gauges(
            "troubled_peers",
            "Peers to which no pods' packets pass because none of the required preshared keys is proven, to which they have passed for more than 30 seconds without a preshared key although both nodes want one, or on the path to which packets of the smallest allowed MTU are lost.",
            troubled.map(|(trouble, count)| sample(vec![("reason", trouble.as_str())], count)).into(),
        ),
        Metric::gauges(
            "worst_peers",
            "The 10 peers in the worst state, with the worst that is wrong; always 1.",
            worst
                .iter()
                .map(|peer| sample(vec![("peer", peer.node.as_str()), ("reason", peer.trouble.as_str())], 1))
                .collect(),
        ),
        Metric::gauges(
            "preshared_keys",
            "Slots of peers by the state of their preshared key.",
            keys.map(|(state, count)| sample(vec![("state", state)], count)).into(),
        ),
        Metric::gauges(
            "smallest_peer_mtu",
            "The smallest MTU of the routes to a peer.",
            smallest_mtu.map(|mtu| sample(vec![], u64::from(mtu))).into_iter().collect(),
        )
        .unit(Unit::Bytes),
        Metric {
            kind: MetricType::Histogram,
            ..Metric::gauge(
                "probe_round_trip",
                "Round-trip times inside the tunnel, of all answered probes.",
                Value::RoundTrips(status.round_trips),
            )
        }
        .unit(Unit::Seconds),
        Metric::counter(
            "received",
            "Bytes received from all peers, since the slots' devices have had their keys.",
            status.totals.received,
        )
        .unit(Unit::Bytes),
        Metric::counter(
            "sent",
            "Bytes sent to all peers, since the slots' devices have had their keys.",
            status.totals.sent,
        )
        .unit(Unit::Bytes),
        Metric::counter(
            "forged_datagrams",
            "Datagrams from peers' endpoints that did not authenticate: damaged by a host or on the path, or forged; counted by the userspace engine.",
            status.totals.forged,
        ),
        Metric::counter(
            "endpoint_drifts",
            "Authenticated packets from another address than the endpoint, from peers that are not followed.",
            status.totals.endpoint_drifts,
        ),
    ]
}

/// The same for each peer, where the option is on: without peers in the status there is none.
pub(super) fn each(status: &Status) -> Vec<Metric<'_>> {
    let of_peers = |value: fn(&PeerStatus) -> Option<Value>| -> Vec<_> {
        let peers = status.peers.iter();
        peers.filter_map(|peer| Some(sample(vec![("peer", peer.node.as_str())], value(peer)?))).collect()
    };
    let of_slots = |value: &dyn Fn(&PeerSlotStatus) -> Option<Value>| -> Vec<_> {
        let slots = status.peers.iter().flat_map(|peer| peer.slots.iter().map(move |slot| (peer, slot)));
        slots
            .filter_map(|(peer, (slot, state))| {
                let labels = vec![("peer", peer.node.as_str()), ("slot", slot.as_str())];
                Some(sample(labels, value(state.as_ref()?)?))
            })
            .collect()
    };
    vec![
        Metric::gauges(
            "peer_round_trip",
            "Round-trip time inside the tunnel; absent if the last probe was not answered.",
            of_peers(|peer| peer.round_trip_microseconds.map(Duration::from_micros).map(Value::from)),
        )
        .unit(Unit::Seconds),
        Metric::gauges(
            "peer_mtu",
            "MTU of the routes to the peer: at most that of the route to its endpoint, less the overhead, and what passes.",
            of_peers(|peer| peer.mtu.map(u64::from).map(Value::from)),
        )
        .unit(Unit::Bytes),
        Metric::gauges(
            "peer_full_size_packets_lost",
            "Whether packets of the smallest allowed MTU are lost on the path while smaller ones arrive; absent while unknown.",
            of_peers(|peer| peer.full_size_passes.map(|passes| Value::from(!passes))),
        ),
        Metric::gauges(
            "peer_last_handshake_timestamp",
            "Unix time of the last completed handshake; absent before the first one.",
            of_slots(&|slot| slot.last_handshake.map(Value::from)),
        )
        .unit(Unit::Seconds),
        Metric::counters(
            "peer_received",
            "Bytes received from the peer, since the slot's device has had its key.",
            of_slots(&|slot| Some(slot.received.into())),
        )
        .unit(Unit::Bytes),
        Metric::counters(
            "peer_sent",
            "Bytes sent to the peer, since the slot's device has had its key.",
            of_slots(&|slot| Some(slot.sent.into())),
        )
        .unit(Unit::Bytes),
        Metric::gauges(
            "peer_preshared_key_proven",
            "Whether a handshake with the slot's current preshared key has been seen.",
            of_slots(&|slot| Some((slot.pq.protection == Protection::Proven).into())),
        ),
        Metric::gauges(
            "peer_preshared_key_stripped",
            "Whether pods' packets have passed for more than 30 seconds without a preshared key although both nodes want one.",
            of_peers(|peer| Some(peer.pq.stripped_seconds.is_some().into())),
        ),
        Metric::counters(
            "peer_forged_datagrams",
            "Datagrams from the peer's endpoint that did not authenticate: damaged by its host or on the path, or forged; counted by the userspace engine.",
            of_slots(&|slot| Some(slot.forged.into())),
        ),
        Metric::counters(
            "peer_endpoint_drifts",
            "Authenticated packets from another address than the endpoint, while the peer is not followed.",
            of_slots(&|slot| Some(slot.endpoint_drifts.into())),
        ),
    ]
}
