//! ADD: everything is checked first; if a later step fails, what was done is rolled back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use linux::guard;
use linux::netns::NetworkNamespace;
use linux::veth::{self, Mac, Pair};

use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::ipam;
use crate::node_file::NodeFile;
use crate::result::{Attached, render};
use crate::store::{AttachLock, Store, Stored};

pub(super) fn run(conf: &Conf, attachment: &Attachment, netns_path: &Path) -> Result<String, CniError> {
    let node = ready(conf)?;
    let netns = NetworkNamespace::open(netns_path)
        .map_err(|source| CniError::NoNamespace { path: netns_path.to_owned(), source })?;
    if netns.is_own()? {
        return Err(CniError::OwnNamespace { path: netns_path.to_owned() });
    }
    let mtu = conf.mtu.unwrap_or(node.mtu);
    let host_link = attachment.host_link();
    let (host_mac, pod_mac) = (mac(attachment, "host"), mac(attachment, "pod"));

    let reservation = Reservation::new(conf, attachment, netns_path, &node)?;
    let addresses = reservation.stored.addresses.clone();
    let pod_link = attachment.interface.as_str();
    let pair = Pair { host_link: &host_link, host_mac, pod_link, pod_mac, mtu, addresses: &addresses };
    veth::attach(&pair, &netns)?;
    let attached = Attached {
        host: (&host_link, host_mac),
        pod: (pod_link, pod_mac),
        netns: netns_path,
        addresses: &addresses,
        mtu,
    };
    let text = render(&attached, conf.version);
    reservation.commit();
    Ok(text)
}

/// The node file, if pods can be attached according to it, and according to the kernel: the daemon that wrote the file
/// may be gone, and the guard with it.
pub(super) fn ready(conf: &Conf) -> Result<NodeFile, CniError> {
    let node = NodeFile::read(&conf.node_file)?;
    if !node.ready || !node.guard || node.pod_cidrs.is_empty() {
        let reason = node.reason.unwrap_or_else(|| "the daemon gives no reason".to_owned());
        return Err(CniError::NotReady { reason, guard: node.guard });
    }
    if !guard::filters_stand(&node.cluster_cidrs, &node.mesh_links)? {
        return Err(CniError::NoGuard);
    }
    Ok(node)
}

/// Addresses and, from some point on, a link. Dropping it releases both, unless it was committed.
struct Reservation<'a> {
    conf: &'a Conf,
    stored: Stored,
    committed: bool,
    _lock: AttachLock,
}

impl<'a> Reservation<'a> {
    /// Reserves one address of each family that the node has. What a killed ADD for the same attachment may
    /// have left is removed first.
    fn new(conf: &'a Conf, attachment: &Attachment, netns: &Path, node: &NodeFile) -> Result<Self, CniError> {
        let lock = AttachLock::shared(&conf.state_dir)?;
        // Before the store is locked: removing a link may take a while.
        veth::detach(&attachment.host_link())?;
        let store = Store::open(&conf.state_dir)?;
        for stored in store.find(attachment)? {
            store.release(&stored)?;
        }
        let addresses = choose(&store, node)?;
        let stored = store.reserve(attachment, netns, &addresses)?;
        Ok(Self { conf, stored, committed: false, _lock: lock })
    }

    fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // The error that led here is the one to report. If the rollback fails as well, DEL or GC will do it; as long
        // as the link exists its addresses stay reserved.
        if veth::detach(&self.stored.host_link).is_ok()
            && let Ok(store) = Store::open(&self.conf.state_dir)
        {
            let _ = store.release(&self.stored);
        }
    }
}

fn choose(store: &Store, node: &NodeFile) -> Result<Vec<IpAddr>, CniError> {
    let mut taken: BTreeSet<IpAddr> = store.taken()?;
    taken.extend(&node.mesh_addresses);
    let mut chosen = Vec::new();
    for ipv4 in [true, false] {
        let ranges: Vec<IpNetwork> =
            node.pod_cidrs.iter().copied().filter(|range| range.is_ipv4() == ipv4).collect();
        if ranges.is_empty() {
            continue;
        }
        let exhausted = || {
            let ranges = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            CniError::Exhausted { ranges }
        };
        chosen.push(ipam::next_free(&ranges, &taken, store.last(ipv4)).ok_or_else(exhausted)?);
    }
    Ok(chosen)
}

/// An Ethernet address of the attachment's own: locally administered, unicast (IEEE 802, section 8.2).
fn mac(attachment: &Attachment, end: &str) -> Mac {
    let [first, second, third, fourth, fifth, sixth, ..] = attachment.digest(end);
    [first & 0b1111_1100 | 0b0000_0010, second, third, fourth, fifth, sixth]
}
