//! Looks at the node: everything that the plan speaks of, as it is now.

use std::collections::BTreeMap;

use keyring::Slot;
use linux::{Handle, HostError, guard, sysctl};
use plan::network::{Device, LinkName, Network};

use super::devices::{self, Devices};

/// Observes the node. Of the kernel's settings only those that are desired are read; the guard counts only
/// if it stands as desired.
pub(super) async fn observe(
    host: &Handle,
    devices: &mut Devices,
    desired: &Network,
) -> Result<Network, HostError> {
    let stands = match &desired.guard {
        Some(wanted) => guard::stands(wanted)?.then(|| wanted.clone()),
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
        if let Some(device) = device(host, devices, slot).await? {
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

/// A device is there when its engine runs and its link is there: a link without an engine is made anew, which
/// attaches to it; an engine without a link is replaced.
async fn device(host: &Handle, devices: &mut Devices, slot: Slot) -> Result<Option<Device>, HostError> {
    let Some((link, state)) = devices.state(slot) else { return Ok(None) };
    let link: LinkName = link.clone();
    let Some(found) = host.link(&link).await? else { return Ok(None) };
    Ok(Some(Device {
        mtu: found.mtu,
        up: found.up,
        addresses: found.addresses,
        key: state.public_key,
        port: state.listen_port,
        peers: devices::peers(&state),
        link,
    }))
}
