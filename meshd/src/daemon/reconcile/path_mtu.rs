//! The MTU of the routes to each peer: what the route to its endpoint allows, and of that what passes.

use std::collections::BTreeMap;

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use linux::HostError;
use plan::admission::Admission;
use plan::desired::{Setup, Underlay, mtu_limits, peer_mtu};
use plan::node::NodeUid;
use plan::path_mtu::search::Source;
use plan::turn::Turn;
use tracing::{info, warn};
use wireguard::DeviceState;

use super::Reconciler;
use crate::daemon::devices::peer_state;
use crate::daemon::probes::Way;

/// MTU where the kernel names none: Ethernet's.
const USUAL_MTU: u32 = 1500;

impl Reconciler {
    /// The path MTU to each endpoint, by the route that its datagrams really take.
    pub(super) async fn underlay(
        &mut self,
        admission: &Admission,
        setup: &Setup,
    ) -> Result<Underlay, HostError> {
        let fixed = self.config.mtu.map(|mtu| mtu + plan::desired::OVERHEAD);
        let slots = |member| Slot::ALL.map(|slot| setup.path(member, slot).endpoint);
        let endpoints = admission.world.peers.values().flat_map(slots).flatten();
        let endpoints = endpoints.map(|endpoint| endpoint.ip()).collect();
        for address in self.path_mtus.to_ask(self.started.elapsed(), &endpoints) {
            let path = self.host.underlay(address).await?;
            self.path_mtus.learn(address, path.map(|path| fixed.unwrap_or(path.mtu)));
        }
        let mtu_to = self.path_mtus.mtus();
        let own = admission.world.own.as_ref().map(|own| own.addresses.as_slice()).unwrap_or_default();
        let mtu = match fixed {
            Some(mtu) => mtu,
            None => {
                self.host.mtu_at(own).await?.or_else(|| mtu_to.values().copied().max()).unwrap_or(USUAL_MTU)
            }
        };
        let mut underlay = Underlay { mtu, mtu_to, passes: BTreeMap::new() };
        self.watch_ways(admission, setup, &underlay);
        underlay.passes = self.peer_channel.passes();
        Ok(underlay)
    }

    /// Takes how much was sent to and received from each peer.
    pub(super) fn note_traffic(&mut self, admission: &Admission, states: &PerSlot<Option<DeviceState>>) {
        self.traffic.clear();
        for member in admission.world.peers.values() {
            for slot in Slot::ALL {
                if let Some(peer) = peer_state(states, member, slot) {
                    self.traffic.insert((member.uid.clone(), slot), (peer.sent, peer.received));
                }
            }
        }
    }

    /// Tells the probes which paths there are.
    fn watch_ways(&mut self, admission: &Admission, setup: &Setup, underlay: &Underlay) {
        let mut ways = BTreeMap::new();
        for member in admission.world.peers.values() {
            let way = |slot| Way {
                endpoint: setup.path(member, slot).endpoint,
                up: self.paths.up(&member.uid, slot).is_some(),
                limits: mtu_limits(member, setup, underlay, slot),
                traffic: self.traffic.get(&(member.uid.clone(), slot)).copied().unwrap_or_default(),
            };
            ways.insert(member.uid.peer_id(), PerSlot::from_fn(way));
        }
        self.peer_channel.set_ways(ways);
    }

    /// Logs the MTUs that have changed because of what passes. Some peers are `gone`.
    pub(super) fn report_mtus(&mut self, turn: &Turn, gone: &[PeerId]) {
        for peer in gone {
            self.peer_mtus.remove(&NodeUid::new(peer.as_str()));
        }
        let mut mtus = BTreeMap::new();
        for (node, member) in turn.peers() {
            let mtu = peer_mtu(member, &turn.setup, &turn.underlay);
            let stats = self.peer_channel.path(&member.uid);
            let former = self.peer_mtus.get(&member.uid).copied();
            let found = |source| matches!(source, Source::Probed | Source::Floor);
            if let Some((before, source)) = former
                && before != mtu
                && (found(source) || found(stats.source))
            {
                let (from, lost) = (stats.source.as_str(), stats.full_size == Some(false));
                if lost {
                    warn!(
                        event = "PathMtuChanged", %node, peer_uid = %member.uid, mtu, before, source = from, reason = "too-small",
                        "packets of the smallest size are lost, and only smaller ones arrive"
                    );
                } else {
                    info!(
                        event = "PathMtuChanged", %node, peer_uid = %member.uid, mtu, before, source = from,
                        "the MTU of the routes to a peer follows what passes"
                    );
                }
            }
            mtus.insert(member.uid.clone(), (mtu, stats.source));
        }
        if turn.is_part() {
            self.peer_mtus.extend(mtus);
        } else {
            self.peer_mtus = mtus;
        }
    }
}
