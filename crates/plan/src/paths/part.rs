//! Steps with some peers only: those about which the devices say something new, and those for which a step is due.

use std::collections::BTreeSet;
use std::time::Duration;

use keyring::Slot;

use super::slot::SlotPath;
use super::{Kind, Outlook, Paths, Step, Surroundings};
use crate::admission::Member;
use crate::node::NodeUid;

/// What steps with some peers have led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What to do.
    pub steps: Vec<Step>,
    /// Whether a path was found, lost, tried or searched for in vain: where packets go may have to be decided anew.
    pub changed: bool,
}

impl Paths {
    /// This node's place as of the last step with all peers.
    pub const fn surroundings(&self) -> &Surroundings {
        &self.own
    }

    /// Peers with which a step is due even if the devices say nothing new about them. Those that are reached by a relay are
    /// always among them: trials of direct paths are due by time.
    pub fn due_peers(&self, now: Duration) -> BTreeSet<&NodeUid> {
        let waits = |path: &SlotPath| {
            path.due().is_some_and(|due| due <= now) || path.up().is_some_and(|kind| !kind.is_direct())
        };
        let due =
            self.pairs.iter().filter(|(_, pair)| Slot::ALL.iter().any(|slot| waits(pair.slots.get(*slot))));
        due.map(|(uid, _)| uid).collect()
    }

    /// Takes a step with these members, in their order, some of which may be new or others than at their last step; forgets
    /// peers that are gone. This node's place is as at the last step with all.
    pub fn step_changed<'a>(
        &mut self,
        now: Duration,
        own_uid: Option<&NodeUid>,
        gone: impl Iterator<Item = &'a NodeUid>,
        members: impl Iterator<Item = &'a Member>,
        outlook: &impl Outlook,
    ) -> Vec<Step> {
        for uid in gone {
            self.pairs.remove(uid);
        }
        let mut steps = Vec::new();
        for member in members {
            let pair = self.pairs.remove(&member.uid);
            steps.extend(self.step_member(now, (pair, member), own_uid, (false, false), outlook));
        }
        steps
    }

    /// Takes a step with these members, in their order. They, and this node's place, are as at the last step with all.
    pub fn step_some<'a>(
        &mut self,
        now: Duration,
        own_uid: Option<&NodeUid>,
        members: impl Iterator<Item = &'a Member>,
        outlook: &impl Outlook,
    ) -> Part {
        let mut part = Part::default();
        for member in members {
            let Some(pair) = self.pairs.get_mut(&member.uid) else { continue };
            for slot in Slot::ALL {
                let before = standing(pair.slots.get(slot));
                let leads = own_uid < Some(&member.uid);
                let (actions, event) = pair.step(now, (member, leads), slot, outlook, self.next_nonce);
                self.next_nonce = self.next_nonce.wrapping_add(1);
                part.changed |= before != standing(pair.slots.get(slot));
                if !actions.is_empty() || event.is_some() {
                    part.steps.push(Step { uid: member.uid.clone(), slot, actions, event });
                }
            }
        }
        part
    }
}

/// What the choice of the slot for packets depends on, and whether a relay is needed.
const fn standing(path: &SlotPath) -> (Option<Kind>, bool, bool) {
    (path.up(), path.is_trying(), path.has_failed())
}

#[cfg(test)]
mod tests;
