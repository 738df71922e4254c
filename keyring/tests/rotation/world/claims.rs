//! Invariants: what must hold at every moment, and at rest.

use keyring::rotation::{PeerProgress, Step};
use keyring::{PerSlot, PublicKey};

use super::World;

impl World {
    /// Every pair of running nodes has a slot on which packets arrive, in each direction.
    pub(super) fn check(&mut self) {
        for one in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                let pair = (one.min(other), one.max(other));
                if one == other || self.excused.contains(&pair) {
                    continue;
                }
                if let Some(broken) = self.broken(one, other) {
                    panic!("{one} to {other}: {broken}");
                }
            }
        }
        self.forgive();
    }

    fn broken(&self, from: usize, to: usize) -> Option<String> {
        let sender = self.nodes[from].life.as_ref().filter(|life| life.up)?;
        let receiver = self.nodes[to].life.as_ref().filter(|life| life.up)?;
        let slot = *sender.routes.get(&to)?;
        let there = *receiver.device.get(slot) == *sender.peers[&to].get(slot);
        let back = *sender.device.get(slot) == *receiver.peers.get(&from)?.get(slot);
        (!there || !back).then(|| {
            let [one, other] = [sender, receiver].map(|life| life.machine.journal());
            format!(
                "slot {slot}: receiver's key known {there}, sender's key known {back}\n{one:?}\n{other:?}"
            )
        })
    }

    pub(super) fn check_unneeded(&self, owner: usize, key: &PublicKey) {
        for (index, node) in self.nodes.iter().enumerate() {
            let pair = (index.min(owner), index.max(owner));
            let Some(life) = node.life.as_ref().filter(|life| life.up && index != owner) else { continue };
            let Some(slot) = life.routes.get(&owner) else { continue };
            let needed = life.peers[&owner].get(*slot) == key && self.nodes[owner].life.is_some();
            let owner_up = self.nodes[owner].life.as_ref().is_some_and(|life| life.up);
            assert!(
                !needed || !owner_up || self.excused.contains(&pair),
                "{index} still sends to a destroyed key"
            );
        }
    }

    /// A pair in which one end took the other for dead counts again once both ends know and apply each
    /// other's current keys.
    fn forgive(&mut self) {
        let settled = |index: usize, peer: usize| {
            let Some(life) = self.nodes[index].life.as_ref() else { return false };
            let waited_for = life.machine.progress().all(|(id, progress)| {
                *id != self.nodes[peer].id || matches!(progress, PeerProgress::Waiting | PeerProgress::Done)
            });
            life.up
                && waited_for
                && life.applied.get(&peer) == Some(&self.nodes[peer].disk.generation)
                && !life.applying
        };
        let mended: Vec<_> = self
            .excused
            .iter()
            .copied()
            .filter(|(one, other)| settled(*one, *other) && settled(*other, *one))
            .filter(|(one, other)| self.broken(*one, *other).is_none() && self.broken(*other, *one).is_none())
            .collect();
        for pair in mended {
            self.excused.remove(&pair);
        }
    }

    pub(super) fn at_rest(&self) -> bool {
        self.nodes.iter().enumerate().all(|(index, node)| {
            let life = node.life.as_ref().unwrap();
            matches!(node.disk.step, Step::Steady) && !life.machine.busy() && self.api[&index] == node.disk
        })
    }

    pub(super) fn check_rest(&self) {
        assert!(self.excused.is_empty(), "{:?} never found each other again", self.excused);
        for (index, node) in self.nodes.iter().enumerate() {
            let life = node.life.as_ref().unwrap();
            for (peer, keys) in &life.peers {
                let theirs = PerSlot::from_fn(|slot| self.nodes[*peer].disk.slots.get(slot).key);
                assert_eq!(*keys, theirs, "{index} has other keys for {peer}");
            }
        }
    }
}
