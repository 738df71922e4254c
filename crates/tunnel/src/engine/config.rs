//! The configuration of an engine: operations are checked as a whole, then applied, then published to the data path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PrivateKey, PublicKey};

use super::allowed_ips::AllowedIps;
use super::clock::ClockReading;
use super::identity::Identity;
use super::newest_timestamps::RemovedPeers;
use super::peer::Peer;
use super::snapshot::Snapshot;
use super::staged_packets::StagedTotal;
use crate::error::ChangeError;
use wireguard::{Peer as PeerConfig, PeerOp, PeerState};

/// How many peers there are for each handshake per second beyond the least limit. One costs about 0.3 ms: a handshake of each
/// peer within five seconds takes 6 % of a core for each thousand.
const PEERS_PER_HANDSHAKE: u64 = 5;

/// The configuration that snapshots are derived from.
#[derive(Default)]
pub(crate) struct Config {
    identity: Option<Arc<Identity>>,
    peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// Each prefix, host bits cleared, with the one peer that owns it.
    allowed_ips: BTreeMap<IpNetwork, PublicKey>,
    removed: RemovedPeers,
    staged: StagedTotal,
}

impl Config {
    /// Sets or clears the private key and returns whether it changed. A peer with our own public key is removed, as the
    /// kernel does.
    pub(super) fn set_private_key(
        &mut self,
        private: Option<PrivateKey>,
        handshakes_per_second: u64,
    ) -> bool {
        let current = self.private_key().map(PrivateKey::expose);
        if current == private.as_ref().map(PrivateKey::expose) {
            return false;
        }
        self.identity = private.map(|key| Arc::new(Identity::new(key, handshakes_per_second)));
        if let Some(own) = self.own_key() {
            self.remove(&own);
        }
        self.limit_handshakes(handshakes_per_second);
        true
    }

    /// Handshakes of a fifth of all peers a second, and at least `at_least`, are worked on without cookies.
    pub(super) fn limit_handshakes(&self, at_least: u64) {
        let Some(identity) = &self.identity else { return };
        let peers = u64::try_from(self.peers.len()).unwrap_or(u64::MAX);
        identity.limiter.set_limit(at_least.max(peers / PEERS_PER_HANDSHAKE));
    }

    /// How many removed peers' timestamps were forgotten because there were too many.
    pub(super) const fn forgotten_timestamps(&self) -> u64 {
        self.removed.forgotten()
    }

    /// Applies `ops` in their order, all or none. Returns the peers that were removed.
    pub(super) fn apply(&mut self, ops: Vec<PeerOp>) -> Result<Vec<Arc<Peer>>, ChangeError> {
        let mut indices = self.check(&ops)?.into_iter();
        let mut removed = Vec::new();
        for op in ops {
            match op {
                PeerOp::Remove { peer } => removed.extend(self.remove(&peer)),
                PeerOp::Add { peer, change, preshared_key }
                | PeerOp::Update { peer, change, preshared_key } => {
                    let entry = self.peers.entry(peer).or_insert_with(|| {
                        // `check` has chosen one index for each peer that is added here.
                        let index = indices.next().unwrap_or_default();
                        let newest = self.removed.take(&peer);
                        let staged = Arc::clone(&self.staged);
                        Arc::new(Peer::new(peer, index, self.identity.as_ref(), newest, staged))
                    });
                    entry.apply(&change, preshared_key);
                    self.assign(&peer, &change.disallow, &change.allow);
                }
            }
        }
        Ok(removed)
    }

    /// The configuration as the data path needs it.
    pub(super) fn snapshot(&self) -> Snapshot {
        let owners = self.allowed_ips.iter().filter_map(|(prefix, owner)| {
            let peer = self.peers.get(owner)?;
            Some((*prefix, Arc::clone(peer)))
        });
        Snapshot {
            identity: self.identity.clone(),
            by_key: self.peers.iter().map(|(key, peer)| (*key, Arc::clone(peer))).collect(),
            by_index: self.peers.values().map(|peer| (peer.path.index, Arc::clone(peer))).collect(),
            routes: AllowedIps::new(owners),
        }
    }

    /// Drops the sessions of all peers, and starts over with the private key as it is.
    pub(super) fn restart(&self) {
        self.peers.values().for_each(|peer| peer.restart(self.identity.as_ref()));
    }

    /// Our private key.
    pub(super) fn private_key(&self) -> Option<&PrivateKey> {
        self.identity.as_ref().map(|identity| &identity.private)
    }

    /// A copy of the preshared key with `peer`.
    pub(super) fn preshared_key(&self, peer: &PublicKey) -> Option<PresharedKey> {
        self.peers.get(peer)?.lock().preshared_key.as_ref().map(PresharedKey::duplicate)
    }

    /// The public keys of all peers.
    pub(crate) fn keys(&self) -> impl Iterator<Item = PublicKey> {
        self.peers.keys().copied()
    }

    /// Our own public key.
    pub(crate) fn own_key(&self) -> Option<PublicKey> {
        self.identity.as_ref().map(|identity| identity.public)
    }

    /// The prefixes that `peer` owns.
    pub(crate) fn allowed_ips(&self, peer: &PublicKey) -> impl Iterator<Item = IpNetwork> {
        self.allowed_ips.iter().filter(move |(_, owner)| *owner == peer).map(|(prefix, _)| *prefix)
    }

    /// Refuses what can't be applied, and chooses a session index for every peer that `ops` add.
    fn check(&self, ops: &[PeerOp]) -> Result<Vec<u32>, ChangeError> {
        let own = self.own_key();
        let mut present: BTreeSet<PublicKey> = self.peers.keys().copied().collect();
        let mut taken: BTreeSet<u32> = self.peers.values().map(|peer| peer.path.index).collect();
        let mut indices = Vec::new();
        for op in ops {
            match op {
                PeerOp::Remove { peer } => {
                    present.remove(peer);
                }
                PeerOp::Update { peer, .. } if !present.contains(peer) => {
                    return Err(ChangeError::UnknownPeer { peer: *peer });
                }
                PeerOp::Update { .. } => {}
                PeerOp::Add { peer, .. } if own == Some(*peer) => {
                    return Err(ChangeError::OwnKey { peer: *peer });
                }
                PeerOp::Add { peer, .. } => {
                    if present.insert(*peer) {
                        indices.push(
                            unused_index(&mut taken)
                                .map_err(|source| ChangeError::Random { peer: *peer, source })?,
                        );
                    }
                }
            }
        }
        Ok(indices)
    }

    fn remove(&mut self, peer: &PublicKey) -> Option<Arc<Peer>> {
        self.allowed_ips.retain(|_, owner| owner != peer);
        let removed = self.peers.remove(peer)?;
        self.removed.keep(*peer, removed.lock().newest_timestamp());
        Some(removed)
    }

    /// Removes `disallow` from `peer` where it has them, then assigns `allow` to it, whichever peer had them.
    fn assign(&mut self, peer: &PublicKey, disallow: &BTreeSet<IpNetwork>, allow: &BTreeSet<IpNetwork>) {
        for prefix in disallow.iter().map(canonical) {
            if self.allowed_ips.get(&prefix) == Some(peer) {
                self.allowed_ips.remove(&prefix);
            }
        }
        self.allowed_ips.extend(allow.iter().map(|prefix| (canonical(prefix), *peer)));
    }

    pub(super) fn state(&self, now: ClockReading) -> BTreeMap<PublicKey, PeerState> {
        let mut all: BTreeMap<PublicKey, PeerState> = self
            .peers
            .iter()
            .map(|(key, peer)| {
                let (location, (received, sent)) = (peer.path.location(), peer.path.bytes());
                let handshake = peer.lock();
                let config = PeerConfig {
                    endpoint: location.endpoint,
                    roaming: location.roaming,
                    allowed_ips: BTreeSet::new(),
                    keepalive: Some(handshake.keepalive).filter(|seconds| *seconds > 0),
                    preshared: handshake.preshared_key.as_ref().map(PresharedKey::id),
                };
                let completed = handshake.completed;
                let state = PeerState {
                    config,
                    last_handshake: completed.map(|at| at.wall),
                    since_handshake: completed.map(|at| now.instant.saturating_duration_since(at.instant)),
                    received,
                    sent,
                    endpoint_drifts: location.drifts,
                    forged: peer.path.forged(),
                };
                (*key, state)
            })
            .collect();
        for (prefix, owner) in &self.allowed_ips {
            if let Some(peer) = all.get_mut(owner) {
                peer.config.allowed_ips.insert(*prefix);
            }
        }
        all
    }
}

/// The prefix with its host bits cleared: `10.0.0.7/8` and `10.0.0.0/8` are one prefix.
fn canonical(prefix: &IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(*prefix)
}

/// A random index of 24 bits that isn't taken yet: the lowest 8 bits distinguish a peer's sessions.
fn unused_index(taken: &mut BTreeSet<u32>) -> Result<u32, getrandom::Error> {
    loop {
        let index = getrandom::u32()? >> 8;
        if taken.insert(index) {
            return Ok(index);
        }
    }
}
