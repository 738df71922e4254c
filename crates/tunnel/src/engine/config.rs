//! Configuring an engine: check all changes, apply them, then let the data path see the result as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PrivateKey, PublicKey};

use super::allowed_ips::AllowedIps;
use super::identity::Identity;
use super::peer::Peer;
use super::{Engine, Moment, Snapshot};
use crate::error::ChangeError;
use wireguard::{Peer as PeerConfig, PeerOp, PeerState};

/// The configuration that snapshots are made from.
#[derive(Default)]
pub(crate) struct Config {
    identity: Option<Arc<Identity>>,
    peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// Each prefix, host bits cleared, with the one peer that owns it.
    allowed_ips: BTreeMap<IpNetwork, PublicKey>,
}

impl Engine {
    /// Sets or clears the private key. Another key ends every session; the same key changes nothing. A peer with
    /// our own public key is removed, as the kernel does.
    pub fn set_private_key(&self, private: Option<PrivateKey>) {
        let mut config = self.config.lock();
        let current = config.identity.as_ref().map(|identity| identity.private.expose());
        if current == private.as_ref().map(PrivateKey::expose) {
            return;
        }
        config.identity = private.map(|key| Arc::new(Identity::new(key, self.handshakes_per_second)));
        if let Some(own) = config.identity.as_ref().map(|identity| identity.public) {
            config.remove(&own);
        }
        let identity = config.identity.clone();
        // Seen first, so that no datagram for the new key is judged by the old one once the sessions are new.
        self.publish(&config);
        config.peers.values().for_each(|peer| peer.restart(identity.as_ref()));
    }

    /// Applies `changes` in their order, all or none: the data path sees them at once. An error names the first
    /// change that is refused, and then nothing has changed.
    pub fn apply(&self, changes: Vec<PeerOp>) -> Result<(), ChangeError> {
        self.configure(|_| changes)
    }

    /// Applies the changes that `plan` derives from the configuration as it is, which nobody changes meanwhile.
    pub(crate) fn configure(&self, plan: impl FnOnce(&Config) -> Vec<PeerOp>) -> Result<(), ChangeError> {
        let mut config = self.config.lock();
        let changes = plan(&config);
        let mut indices = config.check(&changes)?.into_iter();
        let mut removed = Vec::new();
        for change in changes {
            match change {
                PeerOp::Remove { peer } => removed.extend(config.remove(&peer)),
                PeerOp::Add { peer, change, preshared_key }
                | PeerOp::Update { peer, change, preshared_key } => {
                    let identity = config.identity.clone();
                    let entry = config.peers.entry(peer).or_insert_with(|| {
                        // `check` has chosen one index for each peer that is made here.
                        Arc::new(Peer::new(peer, indices.next().unwrap_or_default(), identity.as_ref()))
                    });
                    entry.apply(&change, preshared_key);
                    config.assign(&peer, &change.disallow, &change.allow);
                }
            }
        }
        self.publish(&config);
        // A thread that still holds the last snapshot finds no session anymore.
        for peer in &removed {
            peer.restart(None);
        }
        Ok(())
    }

    /// Runs `reader` on the private key, for the configuration socket that has to show it.
    pub(crate) fn with_private_key<R>(&self, reader: impl FnOnce(Option<&PrivateKey>) -> R) -> R {
        reader(self.config.lock().identity.as_ref().map(|identity| &identity.private))
    }

    /// A copy of the preshared key with `peer`, for the configuration socket that has to show it.
    pub(crate) fn preshared_key(&self, peer: &PublicKey) -> Option<PresharedKey> {
        let config = self.config.lock();
        config.peers.get(peer)?.lock().preshared_key.as_ref().map(PresharedKey::duplicate)
    }

    fn publish(&self, config: &Config) {
        let owners = config.allowed_ips.iter().filter_map(|(prefix, owner)| {
            let peer = config.peers.get(owner)?;
            Some((*prefix, Arc::clone(peer)))
        });
        self.snapshot.store(Arc::new(Snapshot {
            identity: config.identity.clone(),
            by_key: config.peers.iter().map(|(key, peer)| (*key, Arc::clone(peer))).collect(),
            by_index: config.peers.values().map(|peer| (peer.index, Arc::clone(peer))).collect(),
            routes: AllowedIps::new(owners),
        }));
    }
}

impl Config {
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

    /// Refuses what can't be applied, and chooses a session index for every peer that `changes` makes.
    fn check(&self, changes: &[PeerOp]) -> Result<Vec<u32>, ChangeError> {
        let own = self.own_key();
        let mut present: BTreeSet<PublicKey> = self.peers.keys().copied().collect();
        let mut taken: BTreeSet<u32> = self.peers.values().map(|peer| peer.index).collect();
        let mut indices = Vec::new();
        for change in changes {
            match change {
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
        self.peers.remove(peer)
    }

    /// Takes `disallow` from `peer` where it has them, then gives it `allow`, whoever had them.
    fn assign(&mut self, peer: &PublicKey, disallow: &BTreeSet<IpNetwork>, allow: &BTreeSet<IpNetwork>) {
        for prefix in disallow.iter().map(canonical) {
            if self.allowed_ips.get(&prefix) == Some(peer) {
                self.allowed_ips.remove(&prefix);
            }
        }
        self.allowed_ips.extend(allow.iter().map(|prefix| (canonical(prefix), *peer)));
    }

    pub(super) fn state(&self, now: Moment) -> BTreeMap<PublicKey, PeerState> {
        let mut all: BTreeMap<PublicKey, PeerState> = self
            .peers
            .iter()
            .map(|(key, peer)| {
                let (location, (received, sent)) = (peer.location(), peer.bytes());
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

/// A random index of 24 bits that isn't taken yet: the lowest 8 bits tell the sessions of a peer apart.
fn unused_index(taken: &mut BTreeSet<u32>) -> Result<u32, getrandom::Error> {
    loop {
        let index = getrandom::u32()? >> 8;
        if taken.insert(index) {
            return Ok(index);
        }
    }
}
