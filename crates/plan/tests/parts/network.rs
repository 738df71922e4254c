//! What is desired and observed, and what of it may differ, while the world and the node change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::{PerSlot, PresharedId, Slot};
use plan::admission::{Admission, AdmissionPart};
use plan::check::{check, check_part};
use plan::desired::{Path, Setup, Underlay};
use plan::network::{LinkName, Network, Peer, Route, Via};
use plan::part::{Inputs, Pending, changed_shares};
use plan::{desired, diff};
use proptest::prelude::*;

use crate::Follower;
use crate::world::{Draft, Event, address, policy, private};

/// What is known of one peer otherwise than of all others, and the width of one path, by a number.
pub(crate) fn know_otherwise(number: u8, admission: &Admission, setup: &mut Setup, underlay: &mut Underlay) {
    let mut members = admission.world.peers.values().cycle();
    let Some(member) = members.nth(usize::from(number / 8)) else { return };
    let place = (member.uid.clone(), if number.is_multiple_of(2) { Slot::A } else { Slot::B });
    match number % 8 {
        0 => drop(setup.steer.insert(member.uid.clone(), Slot::B)),
        1 | 2 => {
            let endpoint = Some(([192, 0, 2, number % 24], 7).into());
            setup.paths.insert(place, Path { endpoint, follow: number.is_multiple_of(3) });
        }
        3 => drop(setup.preshared.insert(place, PresharedId::from_bytes([number; 8]))),
        4 => {
            if !setup.barred.remove(&place) {
                setup.barred.insert(place);
            }
        }
        5 => drop(underlay.passes.insert(place, 1300)),
        6 => drop(underlay.mtu_to.insert(address(number / 8), 1400)),
        _ => setup.nat = number / 8 == 1,
    }
}

/// Some peers have preshared keys, some slots of some are barred.
pub(crate) fn setup(admission: &Admission) -> Setup {
    let policy = policy(0);
    let keys = PerSlot { a: private(40).public(), b: private(41).public() };
    let mut setup = crate::setup::setup(&policy.cluster_cidrs, &policy.service_cidrs, keys);
    for member in admission.world.peers.values() {
        let draw =
            member.uid.as_str().bytes().fold(0, |sum: u8, byte| sum.wrapping_mul(7).wrapping_add(byte));
        for (slot, bit) in [(Slot::A, 1), (Slot::B, 2)] {
            let place = (member.uid.clone(), slot);
            if draw & bit != 0 {
                setup.preshared.insert(place.clone(), PresharedId::from_bytes([draw; 8]));
            }
            if draw & (bit << 2) != 0 {
                setup.barred.insert(place);
            }
        }
    }
    setup
}

/// Paths of different widths.
pub(crate) fn underlay() -> Underlay {
    let mtu_to = (0..24).map(|number| (address(number), 1450 + 50 * u32::from(number % 3)));
    Underlay { mtu: 1450, mtu_to: mtu_to.collect(), passes: BTreeMap::new() }
}

/// What another program or a fault does to the network.
pub(crate) fn disturb(network: &mut Network, how: u8) {
    let pick = usize::from(how / 10);
    let stranger = private(50).public();
    match how % 10 {
        0 => network.guard = None,
        1 => drop(network.devices.remove(&if pick % 2 == 0 { Slot::A } else { Slot::B })),
        2 => network.routes = network.routes.iter().skip(pick % 4).cloned().collect(),
        3 => network.rules.clear(),
        4 => drop(network.routes.insert(Route {
            table: 254,
            destination: "10.99.0.0/16".parse().unwrap(),
            metric: u32::from(how % 3),
            via: Via::Unreachable,
        })),
        5 => {
            for device in network.devices.values_mut() {
                device.peers = device.peers.clone().into_iter().skip(pick % 3).collect();
            }
        }
        6 => {
            for device in network.devices.values_mut() {
                // The stranger takes all that another one has.
                let taken =
                    device.peers.values_mut().nth(pick).map(|peer| std::mem::take(&mut peer.allowed_ips));
                let allowed_ips = taken.unwrap_or_default();
                device.peers.insert(stranger, Peer { allowed_ips, ..Peer::default() });
            }
        }
        7 => {
            for peer in network.devices.values_mut().flat_map(|device| device.peers.values_mut().skip(pick)) {
                peer.keepalive = Some(7);
                peer.endpoint = Some(([192, 0, 2, 99], 9).into());
            }
        }
        8 => {
            for device in network.devices.values_mut() {
                device.up = pick % 2 == 0;
                device.mtu = 1300;
                if pick % 3 == 0 {
                    device.key = Some(stranger);
                }
            }
        }
        _ => {}
    }
    // A route leads nowhere without its link.
    let links: BTreeSet<LinkName> = network.devices.values().map(|device| device.link.clone()).collect();
    network.routes.retain(|route| match &route.via {
        Via::Link { link, .. } => links.contains(link),
        Via::Unreachable => true,
    });
}

/// A node that keeps track of what may differ from what is desired.
struct Tracker {
    /// What the desired network was computed from.
    inputs: (Setup, Underlay),
    desired: Network,
    observed: Network,
    pending: Pending,
    /// How often the desired network was not computed as a whole.
    shares: usize,
}

impl Tracker {
    /// Takes a change of the world, and of what the node knows. `spliced` is what was decided about some Nodes before and now.
    fn follows(&mut self, now: &Admission, spliced: Option<&(AdmissionPart, AdmissionPart)>, knows: u8) {
        let (mut setup, mut underlay) = (setup(now), underlay());
        know_otherwise(knows, now, &mut setup, &mut underlay);
        let all = desired(&now.world, &setup, &underlay);
        let shares = spliced.and_then(|(before, part)| {
            let former = Inputs { setup: &self.inputs.0, underlay: &self.inputs.1, part: before };
            changed_shares(&now.world, former, Inputs { setup: &setup, underlay: &underlay, part })
        });
        let replaced = shares.as_ref().and_then(|of| self.desired.replace_share(&of.before, &of.after));
        if let Some(shares) = shares.filter(|_| replaced.is_some()) {
            self.shares += 1;
            assert_eq!(check_part(&self.desired, &shares).is_empty(), check(&all, &now.world).is_empty());
        }
        let pending = replaced.unwrap_or_else(|| {
            let changed = Pending::between(&self.desired, &all);
            self.desired.clone_from(&all);
            changed
        });
        self.inputs = (setup, underlay);
        self.pending.extend(pending);
        assert_eq!(self.desired, all);
    }

    /// The node is changed; all of that is noticed.
    fn is_changed(&mut self, change: impl FnOnce(&mut Network)) {
        let before = self.observed.clone();
        change(&mut self.observed);
        self.pending.extend(Pending::between(&before, &self.observed));
    }

    /// Performs the steps, but the `failing`th of each three.
    fn repair(&mut self, failing: Option<usize>) {
        for (number, step) in self.pending.steps(&self.desired, &self.observed).iter().enumerate() {
            if failing != Some(number % 3) {
                // What follows from a step that failed fails as well.
                self.is_changed(|network| drop(network.apply(step)));
            }
        }
        self.pending.retain_pending(&self.desired, &self.observed);
    }

    fn agrees(&self) -> Result<(), TestCaseError> {
        let all = diff(&self.desired, &self.observed);
        let steps = self.pending.steps(&self.desired, &self.observed);
        prop_assert_eq!(steps.is_empty(), all.is_empty(), "{:?} {:?}", steps, all);
        Ok(())
    }
}

/// Runs a history with changes by hand and failing steps; returns how often shares were enough.
pub(crate) fn track(first: &[Draft], events: &[(Event, u8, u8)]) -> Result<usize, TestCaseError> {
    let mut cluster = Follower::new();
    let inputs = (setup(&cluster.admission), underlay());
    let mut tracker = Tracker {
        desired: desired(&cluster.admission.world, &inputs.0, &inputs.1),
        inputs,
        observed: Network::default(),
        pending: Pending { rest: true, ..Pending::default() },
        shares: 0,
    };
    let start = (Event::Listed(first.to_vec()), 9, 0);
    for (second, (event, hand, failing)) in std::iter::once(&start).chain(events).enumerate() {
        cluster.happens(Duration::from_secs(second as u64), event);
        if !cluster.admit_part(&policy(1)) {
            break;
        }
        tracker.follows(
            &cluster.admission,
            cluster.spliced.as_ref(),
            hand.wrapping_mul(5).wrapping_add(*failing),
        );
        tracker.agrees()?;
        tracker.is_changed(|network| disturb(network, *hand));
        tracker.agrees()?;
        tracker.repair(Some(usize::from(failing % 4)));
        tracker.agrees()?;
    }
    for _ in 0..2 {
        tracker.repair(None);
    }
    tracker.agrees()?;
    prop_assert!(tracker.pending.is_empty());
    prop_assert_eq!(diff(&tracker.desired, &tracker.observed), vec![]);
    Ok(tracker.shares)
}
