//! ADD: everything is checked first; if a later step fails, what was done is rolled back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use linux::guard;
use linux::host_ports::{Mapping, conntrack};
use linux::netns::NetworkNamespace;
use linux::veth::{self, Pair};

use super::gc::reclaim;
use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::node_file::NodeFile;
use crate::ports::{PortRequest, mappings, requests};
use crate::result::{Attached, render};
use crate::store::{AttachLock, Store, Stored};
use crate::{host_ports, ipam};

pub(super) fn run(
    conf: &Conf,
    attachment: &Attachment,
    netns_path: &Path,
    plugin_dirs: &[PathBuf],
) -> Result<String, CniError> {
    let node = ready(conf)?;
    let netns = NetworkNamespace::open(netns_path)
        .map_err(|source| CniError::NoNamespace { path: netns_path.to_owned(), source })?;
    if netns.is_own()? {
        return Err(CniError::OwnNamespace { path: netns_path.to_owned() });
    }
    let ports = requests(conf.port_mappings.as_ref())?;
    refuse_own(&ports, &node)?;
    let mtu = conf.mtu.unwrap_or(node.mtu);
    let host_link = attachment.host_link();
    let (host_mac, pod_mac) = (attachment.mac("host"), attachment.mac("pod"));

    let reserve = || Reservation::new(conf, attachment, netns_path, &node, &ports);
    let reservation = match reserve() {
        // Pods that died without a DEL may have what is missing.
        Err(CniError::Exhausted { .. } | CniError::PortTaken { .. }) if reclaim(conf, plugin_dirs)? > 0 => {
            reserve()?
        }
        reserved => reserved?,
    };
    let addresses = reservation.stored.addresses.clone();
    let pod_link = attachment.interface.as_str();
    let pair = Pair {
        host_link: &host_link,
        host_mac,
        pod_link,
        pod_mac,
        mtu,
        addresses: &addresses,
        source: node.source,
    };
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

/// Addresses, host ports and, from some point on, a link. Dropping it releases all, unless it was committed.
struct Reservation<'a> {
    conf: &'a Conf,
    node: &'a NodeFile,
    stored: Stored,
    committed: bool,
    _lock: AttachLock,
}

impl<'a> Reservation<'a> {
    /// Reserves one address of each family that the node has. What a killed ADD for the same attachment may
    /// have left is removed first.
    fn new(
        conf: &'a Conf,
        attachment: &Attachment,
        netns: &Path,
        node: &'a NodeFile,
        ports: &[PortRequest],
    ) -> Result<Self, CniError> {
        let lock = AttachLock::shared(&conf.state_dir)?;
        // Before the store is locked: removing a link may take a while.
        veth::detach(&attachment.host_link())?;
        let store = Store::open(&conf.state_dir)?;
        let mut had_ports = false;
        for stored in store.find(attachment)? {
            had_ports |= stored.has_ports;
            store.release(&stored)?;
        }
        let addresses = choose(&store, node)?;
        let mapped = mappings(ports, &addresses)?;
        if !mapped.is_empty() {
            refuse_taken(&store, &mapped)?;
        }
        let stored = store.reserve(attachment, netns, &addresses, ports)?;
        let reservation = Self { conf, node, stored, committed: false, _lock: lock };
        if had_ports || !mapped.is_empty() {
            // Under the lock: the table is always as the store has it.
            let outcome = store.mappings().and_then(|all| host_ports::set(all, node));
            // Its own drop needs the lock.
            drop(store);
            outcome?;
            // What stays would delay a client that sent before there was a pod, no more.
            let _ = conntrack::forget_untranslated(&mapped);
        }
        Ok(reservation)
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
            && store.release(&self.stored).is_ok()
            && self.stored.has_ports
        {
            let _ = store.mappings().and_then(|all| host_ports::set(all, self.node));
        }
    }
}

/// Fails if the node itself listens on one of the ports: its tunnels would end in the pod.
fn refuse_own(ports: &[PortRequest], node: &NodeFile) -> Result<(), CniError> {
    let is_own = |request: &&PortRequest| {
        node.own_ports.iter().any(|own| own.contains(request.protocol(), request.host_port()))
    };
    match ports.iter().find(is_own) {
        Some(request) => {
            Err(CniError::PortOfNode { port: request.host_port(), protocol: request.protocol() })
        }
        None => Ok(()),
    }
}

/// Fails if another pod has one of the ports.
fn refuse_taken(store: &Store, wanted: &BTreeSet<Mapping>) -> Result<(), CniError> {
    for stored in store.all()? {
        for mapping in stored.mappings() {
            if let Some(taken) = wanted.iter().find(|wanted| wanted.conflicts_with(&mapping)) {
                let container = stored.contents().map(|contents| contents.container).unwrap_or_default();
                let (port, protocol) = (taken.host_port, taken.protocol);
                return Err(CniError::PortTaken { port, protocol, container });
            }
        }
    }
    Ok(())
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
