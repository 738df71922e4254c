//! CHECK: whether the kernel still has what ADD created.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use linux::host_ports;
use linux::netns::NetworkNamespace;
use linux::veth::{self, End};

use crate::attachment::Attachment;
use crate::conf::{Conf, Previous};
use crate::error::CniError;
use crate::host_ports::table;
use crate::node_file::NodeFile;
use crate::ports::{mappings, requests};
use crate::result::mac_text;
use crate::store::{Store, Stored};

pub(super) fn run(conf: &Conf, attachment: &Attachment, netns: &Path) -> Result<(), CniError> {
    let previous = conf.previous.as_ref().ok_or(CniError::NoPrevious)?;
    let addresses: BTreeSet<IpAddr> = previous.ips.iter().map(|ip| ip.address.ip()).collect();
    // The lock is held for this line only: the rest may take a while.
    let stored = Store::open_existing(&conf.state_dir)?.map(|store| store.find(attachment)).transpose()?;
    let files = stored.unwrap_or_default();
    check_ports(conf, &files)?;
    let stored: BTreeSet<IpAddr> = files.into_iter().flat_map(|stored| stored.addresses).collect();
    if stored.is_empty() {
        let Attachment { container, interface } = attachment.clone();
        return Err(CniError::NotAttached { container, interface });
    }
    // Chained plugins may have added addresses of their own to the result; ours must be among them.
    if !stored.is_subset(&addresses) {
        return mismatch("the reserved addresses", &addresses);
    }
    let host_name = attachment.host_link();
    let host = veth::inspect(&host_name)?;
    let host = end("the node's end", &host_name, host, previous)?;
    for address in &stored {
        if !host.routes.contains(&IpNetwork::from(*address)) {
            return mismatch("the node's routes to the pod", &stored);
        }
    }
    let pod_name = attachment.interface.as_str();
    let pod = NetworkNamespace::open(netns)
        .map_err(|source| CniError::NoNamespace { path: netns.to_owned(), source })?;
    let pod = pod.run(|| veth::inspect(pod_name))??;
    let pod = end("the pod's end", pod_name, pod, previous)?;
    let found: BTreeSet<IpAddr> = pod.addresses.iter().copied().collect();
    if !stored.is_subset(&found) {
        return mismatch("the pod's addresses", &stored);
    }
    let default_route = |ipv4| pod.routes.iter().any(|route| route.prefix() == 0 && route.is_ipv4() == ipv4);
    if stored.iter().any(|address| !default_route(address.is_ipv4())) {
        return mismatch("the pod's default routes", &stored);
    }
    Ok(())
}

/// The ports that the runtime asks for must be those that ADD was asked for, and the node's table must lead them here.
fn check_ports(conf: &Conf, files: &[Stored]) -> Result<(), CniError> {
    let wrong = |what, expected: &str| Err(CniError::Mismatch { what, expected: expected.to_owned() });
    for stored in files {
        // Another plugin has the ports of a pod that an earlier version attached.
        if stored.contents().is_none_or(|contents| contents.ports.is_none()) {
            continue;
        }
        if mappings(&requests(conf.port_mappings.as_ref())?, &stored.addresses)? != stored.mappings() {
            return wrong("the host ports", "those of ADD in runtimeConfig.portMappings");
        }
        if stored.has_ports {
            let node = NodeFile::read(&conf.node_file)?;
            // Under the lock, so that no other call is between changing the store and setting the table.
            let Some(store) = Store::open_existing(&conf.state_dir)? else { continue };
            let ports = table(store.mappings()?, &node);
            if !host_ports::is_in_place(&ports)? {
                return wrong(
                    "nft table inet meshd-ports",
                    "the host ports of all pods in it; meshd restores them",
                );
            }
        }
    }
    Ok(())
}

/// An end that must be there, up, with the Ethernet address that ADD gave it.
fn end(what: &'static str, name: &str, found: Option<End>, previous: &Previous) -> Result<End, CniError> {
    let wrong = |expected: String| CniError::Mismatch { what, expected };
    let found = found.ok_or_else(|| wrong(format!("an interface {name}")))?;
    if !found.up {
        return Err(wrong(format!("{name} to be up")));
    }
    let promised = previous.interfaces.iter().find(|interface| interface.name == name);
    let mac = promised.and_then(|interface| interface.mac.as_ref());
    match mac {
        Some(mac) if found.mac.map(mac_text).as_ref() != Some(mac) => {
            Err(wrong(format!("{name} to have {mac}")))
        }
        _ => Ok(found),
    }
}

fn mismatch(what: &'static str, addresses: &BTreeSet<IpAddr>) -> Result<(), CniError> {
    let expected = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(CniError::Mismatch { what, expected })
}
