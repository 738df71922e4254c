//! What the devices say that they did not say a moment ago. A turn is taken for what only a turn can answer; what merely
//! counts on concerns single peers.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use keyring::PublicKey;
use wireguard::{DeviceState, PeerState};

/// The difference between two states of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Peers whose counters, handshake or endpoint are others.
    pub peers: BTreeSet<PublicKey>,
    /// Whether the device or one of its peers is configured otherwise, or a peer has its first session or none any more.
    pub otherwise: bool,
    /// Whether more datagrams did not authenticate.
    pub forged: bool,
}

/// Compares two states of a device. `aimed` is the endpoint that this node has set for a peer in between, and whether the
/// peer is followed since.
pub fn moved(
    before: Option<&DeviceState>,
    now: Option<&DeviceState>,
    aimed: impl Fn(&PublicKey) -> Option<(SocketAddr, bool)>,
) -> Moved {
    let (before, now) = match (before, now) {
        (None, None) => return Moved::default(),
        (Some(before), Some(now)) => (before, now),
        _ => return Moved { otherwise: true, ..Moved::default() },
    };
    let head = |state: &DeviceState| (state.key, state.port, state.fwmark, state.peers.len());
    let mut moved = Moved { otherwise: head(before) != head(now), ..Moved::default() };
    for ((known, former), (key, peer)) in before.peers.iter().zip(&now.peers) {
        moved.otherwise |= known != key || !is_configured_alike(former, peer, || aimed(key));
        moved.otherwise |= former.since_handshake.is_some() != peer.since_handshake.is_some();
        moved.forged |= former.forged != peer.forged;
        if activity(former) != activity(peer) {
            moved.peers.insert(*key);
        }
    }
    moved
}

/// What changes while packets pass. Of a handshake the moment, since its age always changes.
fn activity(peer: &PeerState) -> impl PartialEq {
    (peer.received, peer.sent, peer.endpoint_drifts, peer.last_handshake, peer.config.endpoint)
}

fn is_configured_alike(
    former: &PeerState,
    peer: &PeerState,
    aimed: impl Fn() -> Option<(SocketAddr, bool)>,
) -> bool {
    if former.config == peer.config {
        return true;
    }
    let Some((endpoint, follow)) = aimed() else { return false };
    let mut expected = former.config.clone();
    expected.endpoint = Some(endpoint);
    // Where the backend always follows, a device says so whatever was set.
    let roams = |roaming| roaming == former.config.roaming || roaming == follow;
    expected.roaming = peer.config.roaming;
    expected == peer.config && roams(peer.config.roaming)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::{Duration, SystemTime};

    use wireguard::Peer;

    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes(&[number; 32]).unwrap()
    }

    fn endpoint(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn device() -> DeviceState {
        let peer = PeerState {
            config: Peer { endpoint: Some(endpoint(1)), ..Peer::default() },
            last_handshake: Some(SystemTime::UNIX_EPOCH),
            since_handshake: Some(Duration::from_secs(1)),
            ..PeerState::default()
        };
        DeviceState {
            key: Some(key(1)),
            port: 51840,
            fwmark: 0,
            peers: [key(2), key(3), key(4)].map(|key| (key, peer.clone())).into(),
        }
    }

    fn after(change: impl FnOnce(&mut DeviceState)) -> Moved {
        let (before, mut now) = (device(), device());
        change(&mut now);
        moved(Some(&before), Some(&now), |_| None)
    }

    fn peer(state: &mut DeviceState) -> &mut PeerState {
        state.peers.get_mut(&key(3)).unwrap()
    }

    #[test]
    fn an_older_handshake_is_no_change_and_a_counter_concerns_its_peer() {
        let older = after(|state| peer(state).since_handshake = Some(Duration::from_secs(9)));
        assert_eq!(older, Moved::default());
        let changes: [fn(&mut PeerState); 4] = [
            |peer| peer.received += 1,
            |peer| peer.sent += 1,
            |peer| peer.endpoint_drifts += 1,
            |peer| peer.last_handshake = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)),
        ];
        for change in changes {
            let expected = Moved { peers: [key(3)].into(), ..Moved::default() };
            assert_eq!(after(|state| change(peer(state))), expected);
        }
        assert!(after(|state| peer(state).forged += 1).forged);
    }

    #[test]
    fn every_other_change_wants_a_turn() {
        let changes: [fn(&mut DeviceState); 12] = [
            |state| state.key = Some(key(9)),
            |state| state.port += 1,
            |state| state.fwmark += 1,
            |state| drop(state.peers.remove(&key(2))),
            |state| drop(state.peers.remove(&key(4))),
            |state| drop(state.peers.insert(key(5), PeerState::default())),
            |state| {
                state.peers.remove(&key(2));
                state.peers.insert(key(5), PeerState::default());
            },
            |state| peer(state).config.endpoint = Some(endpoint(2)),
            |state| peer(state).config.roaming = true,
            |state| peer(state).config.keepalive = Some(25),
            |state| {
                peer(state).config.allowed_ips.insert("10.0.0.0/8".parse().unwrap());
            },
            |state| peer(state).since_handshake = None,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(after(change).otherwise, "{number}");
        }
        assert!(moved(Some(&device()), None, |_| None).otherwise);
        assert!(moved(None, Some(&device()), |_| None).otherwise);
        assert_eq!(moved(None, None, |_| None), Moved::default());
    }

    #[test]
    fn an_endpoint_that_this_node_has_set_is_no_foreign_change() {
        let (before, mut now) = (device(), device());
        peer(&mut now).config.endpoint = Some(endpoint(2));
        peer(&mut now).config.roaming = true;
        let after = |now: &DeviceState, to, follow| {
            moved(Some(&before), Some(now), |peer| (*peer == key(3)).then_some((endpoint(to), follow)))
        };
        let only_moved = Moved { peers: [key(3)].into(), ..Moved::default() };
        assert_eq!(after(&now, 2, true), only_moved);
        assert!(after(&now, 3, true).otherwise, "elsewhere");
        assert!(after(&now, 2, false).otherwise, "followed although it is not to be");
        peer(&mut now).config.keepalive = Some(25);
        assert!(after(&now, 2, true).otherwise, "something else as well");
    }
}
