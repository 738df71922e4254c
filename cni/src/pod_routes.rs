//! The routes to the node's own pods: made by the plugin with each pod, restored by the daemon if somebody removes them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use linux::veth::{self, Attached};

use crate::attachment::Attachment;
use crate::error::CniError;
use crate::store::{Contents, DAEMON_TIMEOUT, Store, Stored};

/// Sets the routes to pods that are missing, with the neighbour entries that go with them; returns the addresses to which
/// they lead. Without a state directory nothing is known, so nothing is changed.
///
/// Those of IPv6 get the preferred source as well, once the node has that address.
///
/// A pod that is being attached has its routes from ADD; a link that is gone or down gets none.
pub fn hold(state_dir: &Path, source: Option<Ipv6Addr>) -> Result<BTreeSet<IpAddr>, CniError> {
    let Some(stored) = Store::all_unlocked(state_dir)? else { return Ok(BTreeSet::new()) };
    let pods: Vec<Attached> = stored.iter().map(|stored| attached(stored, None, source)).collect();
    let missing = veth::unrouted(&pods)?;
    if missing.is_empty() {
        return Ok(missing);
    }
    // Only under the lock it is certain that a link belongs to the pod with these addresses.
    let Some(store) = Store::open_existing_within(state_dir, DAEMON_TIMEOUT)? else {
        return Ok(BTreeSet::new());
    };
    let mut restored = BTreeSet::new();
    for stored in store.all()? {
        let lacking: BTreeSet<IpAddr> =
            stored.addresses.iter().copied().filter(|address| missing.contains(address)).collect();
        if !lacking.is_empty() && veth::restore(&attached(&stored, stored.contents(), source))? {
            restored.extend(lacking);
        }
    }
    Ok(restored)
}

fn attached(stored: &Stored, contents: Option<Contents>, source: Option<Ipv6Addr>) -> Attached {
    let attachment =
        contents.map(|Contents { container, interface, .. }| Attachment { container, interface });
    Attached {
        host_link: stored.host_link.clone(),
        pod_mac: attachment.map(|attachment| attachment.mac("pod")),
        addresses: stored.addresses.clone(),
        source,
    }
}
