//! The WireGuard devices of both slots, whichever backend they run on.

use std::collections::{BTreeMap, BTreeSet};

use keyring::{PerSlot, PresharedKey, PrivateKey, PublicKey, Slot};
use linux::LinkState;
use plan::admission::Member;
use tracing::{debug, error, info, warn};
use tunnel::UserspaceOptions;
use wireguard::{
    Backend, Device, DeviceError, DeviceState, LinkName, OffloadStatus, Peer, PeerChange, PeerState,
};

use crate::chain::Chain;
use crate::device::{self, Drifts, Former};

/// Keys of peers removed from a device that are known at most: those that come back are told from new ones.
const REMOVED_LIMIT: usize = 16_384;

/// The devices that this process runs or manages.
#[derive(Debug)]
pub(super) struct Devices {
    /// Of engines that are created.
    engines: UserspaceOptions,
    backend: Backend,
    threaded: bool,
    running: PerSlot<Option<Running>>,
    restarts: u64,
}

#[derive(Debug)]
struct Running {
    link: LinkName,
    device: Box<dyn Device>,
    drifts: Drifts,
    /// Whether threaded NAPI has yet to be turned on.
    unthreaded: bool,
    /// Peers that were on it before, where the backend forgets them.
    removed: BTreeSet<PublicKey>,
}

impl Running {
    fn new(link: &LinkName, device: Box<dyn Device>, threaded: bool) -> Self {
        let unthreaded = threaded && device.backend() == Backend::Kernel;
        let drifts = Drifts::new(device.backend());
        Self { link: link.clone(), device, drifts, unthreaded, removed: BTreeSet::new() }
    }
}

impl Devices {
    /// The devices that an earlier process left running on `links`; others are created for `backend`. With `threaded` the kernel's devices receive in threads of their own.
    pub(super) fn adopt(
        backend: Backend,
        threaded: bool,
        engines: UserspaceOptions,
        links: &PerSlot<LinkName>,
    ) -> Self {
        let adopted = |slot| {
            let link: &LinkName = links.get(slot);
            match device::adopt(link) {
                Ok(found) => {
                    let device = found?;
                    info!(
                        event = "DeviceAdopted", %slot, %link, backend = %device.backend(),
                        "adopted existing WireGuard device"
                    );
                    Some(Running::new(link, device, threaded))
                }
                Err(error) => {
                    warn!(
                        event = "DeviceNotAdopted", %slot, %link, error = %Chain(&error),
                        "existing link cannot be adopted"
                    );
                    None
                }
            }
        };
        Self { engines, backend, threaded, running: PerSlot::from_fn(adopted), restarts: 0 }
    }

    /// The state of a slot's device. One that is gone is dropped here, so that it is missing and gets recreated; the link
    /// of an engine stays, and drops what is routed into it.
    pub(super) fn observe(&mut self, slot: Slot) -> Result<Option<(&LinkName, DeviceState)>, DeviceError> {
        let running = self.running.get_mut(slot);
        let Some(Running { link, device, drifts, unthreaded, .. }) = running else { return Ok(None) };
        match drifts.state(device.as_mut()) {
            Ok(state) => {
                // A thread serves a peer: without one there is nothing to turn on (`modify_napi_threaded` in
                // `net/core/net-sysfs.c`).
                if *unthreaded && !state.peers.is_empty() {
                    *unthreaded = false;
                    thread(link);
                }
                let link = self.running.get(slot).as_ref().map(|running| &running.link);
                Ok(link.map(|link| (link, state)))
            }
            Err(error) if error.is_gone() => {
                error!(
                    event = "DeviceLost", %slot, %link, error = %Chain(&error),
                    "WireGuard device is gone, recreating it"
                );
                *running = None;
                self.restarts += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The configuration of the peers in `state`, as a slot's device reported it, to compare with `wanted`. Where the
    /// backend always roams, whether a peer roams is as wanted, and a wanted endpoint is kept by setting it again.
    pub(super) fn peers(
        &self,
        slot: Slot,
        state: &DeviceState,
        wanted: Option<&plan::network::MeshLink>,
    ) -> BTreeMap<PublicKey, Peer> {
        let always_roams = self.backend(slot).is_some_and(Backend::always_roams);
        let wanted = |key: &PublicKey| wanted.and_then(|device| device.peers.get(key));
        let config = |(key, peer): (&PublicKey, &PeerState)| {
            let mut config = peer.config.clone();
            if always_roams {
                config.roaming = wanted(key).is_some_and(|wanted| wanted.roaming);
            }
            (*key, config)
        };
        state.peers.iter().map(config).collect()
    }

    /// The state of a slot's device; `None` also if it cannot be read.
    pub(super) fn state(&mut self, slot: Slot) -> Option<(&LinkName, DeviceState)> {
        match self.observe(slot) {
            Ok(found) => found,
            Err(error) => {
                // At debug: the observation of all devices fails as well, and reports it once.
                debug!(
                    event = "DeviceUnreadable", %slot, error = %Chain(&error),
                    "WireGuard device cannot be read"
                );
                None
            }
        }
    }

    /// How many devices have gone so far that were not removed here.
    pub(super) const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// What both devices dropped, by reason.
    pub(super) fn dropped(&self) -> BTreeMap<String, u64> {
        let mut dropped = BTreeMap::new();
        for running in self.running.iter().filter_map(|(_, running)| running.as_ref()) {
            for (reason, count) in running.device.dropped() {
                *dropped.entry(reason.to_owned()).or_default() += count;
            }
        }
        dropped
    }

    /// What the kernel does with batches of a slot's engine.
    pub(super) fn offload(&self, slot: Slot) -> Option<OffloadStatus> {
        self.running.get(slot).as_ref().and_then(|running| running.device.offload())
    }

    /// Sends to a peer of a slot one by one from now on. Returns whether that is new.
    pub(super) fn send_singly(&mut self, slot: Slot, peer: PublicKey) -> Result<bool, SlotError> {
        let mut changed = false;
        self.change(slot, |running| running.device.send_singly(peer).map(|new| changed = new))?;
        Ok(changed)
    }

    /// The backend of a slot's device.
    pub(super) fn backend(&self, slot: Slot) -> Option<Backend> {
        self.running.get(slot).as_ref().map(|running| running.device.backend())
    }

    /// Whether a slot's device runs on another backend than new ones: it is kept until its slot gets another key.
    pub(super) fn is_outdated(&self, slot: Slot) -> bool {
        self.backend(slot).is_some_and(|backend| backend != self.backend)
    }

    /// Whether a link can be kept where a device is to be created. A TUN device that others than root could attach to
    /// while no daemon ran may have been changed by them.
    pub(super) fn fits(&self, found: &LinkState) -> bool {
        found.kind.as_deref() == Some(self.backend.link_kind())
            && (self.backend != Backend::Userspace || found.tun_of_root)
    }

    /// Creates the device of a slot, or opens a link that fits.
    pub(super) fn create(&mut self, slot: Slot, link: &LinkName, mtu: u32) -> Result<(), SlotError> {
        // A device on another link, or one whose link was deleted under it.
        *self.running.get_mut(slot) = None;
        let made: Result<Box<dyn Device>, DeviceError> = match self.backend {
            Backend::Userspace => {
                tunnel::Userspace::create(link, mtu, &self.engines).map(|device| Box::new(device) as _)
            }
            Backend::Kernel => kernel_wireguard::Kernel::create(link).map(|device| Box::new(device) as _),
        };
        let device = made.map_err(|source| SlotError::Device { slot, source })?;
        *self.running.get_mut(slot) = Some(Running::new(link, device, self.threaded));
        Ok(())
    }

    /// Stops the device of a slot; its link may stay.
    pub(super) fn remove(&mut self, slot: Slot) -> Result<(), SlotError> {
        match self.running.get_mut(slot).take() {
            Some(running) => running.device.remove().map_err(|source| SlotError::Device { slot, source }),
            None => Ok(()),
        }
    }

    /// Sets the private key of a device.
    pub(super) fn set_key(&mut self, slot: Slot, key: &PrivateKey) -> Result<(), SlotError> {
        self.change(slot, |running| running.device.set_key(key))
    }

    /// Sets the UDP port of a device.
    pub(super) fn set_port(&mut self, slot: Slot, port: u16) -> Result<(), SlotError> {
        self.change(slot, |running| running.device.set_port(port))
    }

    /// Adapts the device on a link to the MTU of the link.
    pub(super) fn set_mtu(&mut self, link: &LinkName, mtu: u32) -> Result<(), SlotError> {
        let of_link =
            |slot: &Slot| self.running.get(*slot).as_ref().is_some_and(|running| running.link == *link);
        let Some(slot) = Slot::ALL.into_iter().find(of_link) else { return Ok(()) };
        self.change(slot, |running| running.device.set_mtu(mtu))
    }

    /// Adds a peer, with the preshared key that the plan names. `former` is what to know if it was on the device before.
    pub(super) fn add_peer(
        &mut self,
        slot: Slot,
        (key, peer): (PublicKey, &Peer),
        preshared: Option<&PresharedKey>,
        former: Option<Former<'_>>,
    ) -> Result<(), SlotError> {
        // Without it the peer would be less protected than the plan says.
        if peer.preshared != preshared.map(PresharedKey::id) {
            return Err(SlotError::ForeignPreshared { slot, key });
        }
        self.change(slot, |running| {
            let device = running.device.as_mut();
            match former.filter(|_| running.removed.remove(&key)) {
                Some(former) => drop(device::add_again(device, (key, peer), preshared, former)?),
                None => device.add_peer_with(key, peer, preshared)?,
            }
            running.drifts.added(key, peer);
            Ok(())
        })
    }

    /// Changes what differs at a peer.
    pub(super) fn update_peer(
        &mut self,
        slot: Slot,
        key: PublicKey,
        change: &PeerChange,
    ) -> Result<(), SlotError> {
        self.change(slot, |running| {
            running.device.update_peer(key, change)?;
            running.drifts.changed(key, change);
            Ok(())
        })
    }

    /// Removes a peer.
    pub(super) fn remove_peer(&mut self, slot: Slot, key: PublicKey) -> Result<(), SlotError> {
        self.change(slot, |running| {
            running.device.remove_peer(key)?;
            running.drifts.removed(&key);
            // The engine remembers a removed peer's handshakes itself.
            if running.device.backend() == Backend::Kernel {
                running.removed.insert(key);
                if running.removed.len() > REMOVED_LIMIT {
                    running.removed.pop_first();
                }
            }
            Ok(())
        })
    }

    /// Initiates a handshake with a peer, unless one is in progress.
    pub(super) fn initiate_handshake(&mut self, slot: Slot, key: &PublicKey) {
        if let Some(running) = self.running.get_mut(slot)
            && let Err(error) = running.device.initiate_handshake(*key)
        {
            // A peer that has been removed needs none, and with any other the first packet initiates one.
            debug!(
                event = "HandshakeNotInitiated", %slot, %key, error = %Chain(&error),
                "no handshake initiated"
            );
        }
    }

    fn change(
        &mut self,
        slot: Slot,
        change: impl FnOnce(&mut Running) -> Result<(), DeviceError>,
    ) -> Result<(), SlotError> {
        let running = self.running.get_mut(slot).as_mut().ok_or(SlotError::Missing { slot })?;
        change(running).map_err(|source| SlotError::Device { slot, source })
    }
}

/// A member's state in a slot's device; none if the device has no such peer.
pub(super) fn peer_state<'a>(
    states: &'a PerSlot<Option<DeviceState>>,
    member: &Member,
    slot: Slot,
) -> Option<&'a PeerState> {
    states.get(slot).as_ref()?.peers.get(&member.state.slots.get(slot).key)
}

/// Turns on the kernel's threads. Packets pass without them too.
fn thread(link: &LinkName) {
    match linux::napi::set_threaded(link) {
        Ok(true) => info!(
            event = "ThreadedNapiEnabled", %link,
            "threaded NAPI enabled"
        ),
        Ok(false) => {}
        Err(error) => warn!(
            event = "ThreadedNapiFailed", %link, error = %Chain(&error),
            "option threaded-napi has no effect"
        ),
    }
}

impl SlotError {
    /// Whether the device can be created once the link that has its name is deleted.
    pub(super) const fn is_taken(&self) -> bool {
        matches!(self, Self::Device { source, .. } if source.is_taken())
    }
}

/// Why the device of a slot could not be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotError {
    /// The device refused.
    #[error("slot {slot}")]
    Device {
        /// The slot.
        slot: Slot,
        /// The cause.
        source: DeviceError,
    },
    /// There is no device: an earlier step of the same plan failed.
    #[error("slot {slot} has no WireGuard device")]
    Missing {
        /// The slot.
        slot: Slot,
    },
    /// The plan asks for a preshared key that is not kept.
    #[error("slot {slot}: the preshared key with {key} is not in the key ring")]
    ForeignPreshared {
        /// The slot.
        slot: Slot,
        /// The peer's public key.
        key: PublicKey,
    },
    /// The plan asks for a key that is not ours.
    #[error("slot {slot}: the private key for {key} is not in the key ring")]
    ForeignKey {
        /// The slot.
        slot: Slot,
        /// The public key.
        key: PublicKey,
    },
}
