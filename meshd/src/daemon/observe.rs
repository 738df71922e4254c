//! Looks at the node: everything that the plan speaks of, as it is now.

use std::collections::BTreeMap;

use keyring::Slot;
use linux::{Handle, HostError, guard, sysctl};
use plan::network::{Device, LinkName, Network};

use super::devices::{self, Devices};
use crate::device::DeviceError;

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

/// Observes the node. Of the kernel's settings only those that are desired are read; the guard counts only
/// if it stands as desired.
pub(super) async fn observe(
    host: &Handle,
    devices: &mut Devices,
    desired: &Network,
) -> Result<Network, ObserveError> {
    let stands = match &desired.guard {
        Some(wanted) => guard::is_in_place(wanted)?.then(|| wanted.clone()),
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
    Ok(Network {
        guard: stands,
        sysctls,
        devices: found,
        routes: host.routes().await?,
        rules: host.rules().await?,
    })
}

/// A device is there when it runs and its link is there: a link without an engine is made anew, which attaches to it; a
/// device without a link is replaced. One of another backend than new ones counts as long as it keeps its key: when the
/// key is replaced nobody sends on the slot anymore, and that is the moment to replace the device as well.
async fn device(
    host: &Handle,
    devices: &mut Devices,
    slot: Slot,
    wanted: Option<&Device>,
) -> Result<Option<Device>, ObserveError> {
    let outdated = devices.is_outdated(slot);
    let Some((link, state)) = devices.observe(slot)? else { return Ok(None) };
    let link: LinkName = link.clone();
    if outdated && wanted.is_some_and(|wanted| wanted.key != state.key) {
        return Ok(None);
    }
    let Some(found) = host.link(&link).await? else { return Ok(None) };
    Ok(Some(Device {
        mtu: found.mtu,
        up: found.up,
        addresses: found.addresses,
        key: state.key,
        port: state.port,
        peers: devices::peers(&state, wanted),
        link,
    }))
}
