//! Observes the node: everything that the plan speaks of, as it is now.

use std::collections::{BTreeMap, BTreeSet};

use keyring::Slot;
use linux::guard::GuardOwner;
use linux::{Handle, HostError, sysctl};
use plan::network::{LinkName, MeshLink, Network};
use plan::turn::{Known, Observed};
use wireguard::DeviceError;

use super::devices::Devices;
use super::filters::Filters;

/// Why the node could not be observed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ObserveError {
    /// The kernel's routing side, its filter or its settings.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A WireGuard device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Observes the node. Of the kernel's settings only those that are desired are read; the guard and what
/// iptables accepts count only if they are exactly as desired; routes are read where they have to be. `changed` says whether the kernel has reported a change since the last turn.
pub(super) async fn observe(
    host: &Handle,
    (guard_owner, filters): (&mut GuardOwner, &mut Filters),
    devices: &mut Devices,
    known: &Known,
    changed: bool,
) -> Result<Observed, ObserveError> {
    let desired = known.desired();
    let guard = match &desired.guard {
        Some(wanted) => guard_owner.stays_in_place(filters.state, wanted)?.then(|| wanted.clone()),
        None => None,
    };
    let accepts = match &desired.accepts {
        Some(wanted) => filters.accepts_stand(wanted)?.then(|| wanted.clone()),
        None => None,
    };
    let mut sysctls = BTreeMap::new();
    for name in desired.sysctls.keys() {
        if let Some(value) = sysctl::read(name)? {
            sysctls.insert(name.clone(), value);
        }
    }
    let mut found = BTreeMap::new();
    for slot in Slot::ALL {
        if let Some(device) = device(host, devices, slot, desired.devices.get(&slot)).await? {
            found.insert(slot, device);
        }
    }
    let outdated: BTreeSet<Slot> = Slot::ALL.into_iter().filter(|slot| devices.is_outdated(*slot)).collect();
    let rules = host.rules().await?;
    let mut network = Network { guard, accepts, sysctls, devices: found, routes: BTreeSet::new(), rules };
    if known.needs_routes(&network) {
        network.routes = host.routes().await?;
    }
    Ok(Observed { network, other_peers: None, outdated, changed })
}

/// A device is there if it runs and its link is there. A link without an engine is created once more, which attaches to it;
/// a device without a link is replaced.
async fn device(
    host: &Handle,
    devices: &mut Devices,
    slot: Slot,
    wanted: Option<&MeshLink>,
) -> Result<Option<MeshLink>, ObserveError> {
    let Some((link, state)) = devices.observe(slot)? else { return Ok(None) };
    let link: LinkName = link.clone();
    let Some(found) = host.link(&link).await? else { return Ok(None) };
    Ok(Some(MeshLink {
        mtu: found.mtu,
        up: found.up,
        addresses: found.addresses,
        key: state.key,
        port: state.port,
        peers: devices.peers(slot, &state, wanted),
        link,
    }))
}
