//! Performs the steps of a plan one by one. A step that fails does not stop the others.

use std::collections::BTreeMap;
use std::time::SystemTime;

use keyring::{PerSlot, PublicKey, Slot};
use linux::guard::{self, GuardOwner};
use linux::sysctl::Sysctls;
use linux::{Handle, HostError};
use plan::op::Op;
use tracing::warn;

use super::devices::{Devices, SlotError};
use super::keys::Keys;
use crate::chain::Chain;
use crate::device::Former;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// The kernel's side.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The WireGuard device's side.
    #[error(transparent)]
    Device(#[from] SlotError),
}

/// The peers to initiate a handshake with when a plan has been performed: all that are new on a device. Such a peer may
/// have initiated one before it was known here, or still have a session with a daemon that ran here before; its packets
/// are dropped silently, and it notices only after five seconds and more (`REKEY_TIMEOUT`, `KEEPALIVE_TIMEOUT`: section 6
/// of the WireGuard paper).
pub(super) fn to_handshake_with(ops: &[Op]) -> impl Iterator<Item = (Slot, &PublicKey)> {
    ops.iter().filter_map(|op| match op {
        Op::AddPeer { slot, key, .. } => Some((*slot, key)),
        _ => None,
    })
}

/// What this node has and knows beside the plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) keys: &'a Keys,
    pub(super) ports: PerSlot<u16>,
    /// The clocks of peers that are added, by each of their keys, as far as they have told.
    pub(super) clocks: &'a BTreeMap<PublicKey, SystemTime>,
}

impl Known<'_> {
    fn former(&self, slot: Slot, peer: &PublicKey) -> Option<Former<'_>> {
        let until = *self.clocks.get(peer)?;
        let own = self.keys.private(self.keys.public().get(slot))?;
        Some(Former { own, port: *self.ports.get(slot), until })
    }
}

/// Performs one step.
pub(super) async fn perform(
    op: &Op,
    (host, guard_owner): (&Handle, &mut GuardOwner),
    sysctls: &Sysctls,
    devices: &mut Devices,
    known: Known<'_>,
) -> Result<(), StepError> {
    match op {
        Op::SetGuard(wanted) => guard_owner.set(wanted)?,
        Op::SetAccepts(wanted) => guard::iptables::set(wanted)?,
        Op::SetSysctl { name, value } => match sysctls.write(name, value) {
            // Of a link that is gone since the host was read.
            Err(error) if error.is_missing() && name.ends_with("/accept_ra") => {}
            written => written?,
        },
        Op::CreateDevice { slot, link, mtu } => {
            // A link of the other backend, left by an earlier daemon or replaced together with its slot's key; or a TUN
            // device that does not belong to root.
            if let Some(found) = host.link(link).await?
                && !devices.fits(&found)
            {
                devices.remove(*slot)?;
                host.delete_link(link).await?;
            }
            match devices.create(*slot, link, *mtu) {
                Err(error) if error.is_taken() => {
                    warn!(event = "DeviceTakenBack", %slot, %link, error = %Chain(&error), "link replaced");
                    host.delete_link(link).await?;
                    devices.create(*slot, link, *mtu)?;
                }
                created => created?,
            }
            host.set_mtu(link, *mtu).await?;
        }
        Op::RemoveDevice { slot, link } => {
            devices.remove(*slot)?;
            host.delete_link(link).await?;
        }
        Op::SetKey { slot, key } => {
            let private = known.keys.private(key).ok_or(SlotError::ForeignKey { slot: *slot, key: *key })?;
            devices.set_key(*slot, private)?;
        }
        Op::SetPort { slot, port } => devices.set_port(*slot, *port)?,
        Op::SetMtu { link, mtu } => {
            host.set_mtu(link, *mtu).await?;
            devices.set_mtu(link, *mtu)?;
        }
        Op::AddAddress { link, address } => host.add_address(link, *address).await?,
        Op::RemoveAddress { link, address } => host.remove_address(link, *address).await?,
        Op::SetUp { link } => host.set_up(link).await?,
        Op::AddPeer { slot, key, peer } => {
            let preshared = peer.preshared.and_then(|id| known.keys.ring().preshared(&id));
            devices.add_peer(*slot, (*key, peer), preshared, known.former(*slot, key))?;
        }
        Op::UpdatePeer { slot, key, change } => devices.update_peer(*slot, *key, change)?,
        Op::RemovePeer { slot, key } => devices.remove_peer(*slot, *key)?,
        Op::SetRoute(route) => host.set_route(route).await?,
        Op::RemoveRoute(route) => host.remove_route(route).await?,
        Op::AddRule(rule) => host.add_rule(rule).await?,
        Op::RemoveRule(rule) => host.remove_rule(rule).await?,
    }
    Ok(())
}
