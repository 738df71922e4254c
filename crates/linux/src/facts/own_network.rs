//! The addresses that make the node part of a network: its own, and its default gateways'.

use std::collections::BTreeMap;

use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use plan::host::OwnAddress;
use plan::prefix;

use crate::error::HostError;
use crate::{Handle, message};

impl Handle {
    /// All addresses on the node's links but link-local ones, and the gateways of its default routes, in all tables. Links
    /// of tunnels are left out: a daemon whose links had other names may have left them.
    pub async fn own_network(&self) -> Result<Vec<OwnAddress>, HostError> {
        let names = self.link_names().await?;
        let tunnels = self.link_indices_of(&["tun", "wireguard"]).await?;
        let name = |index: u32| names.get(&index).cloned().unwrap_or_default();
        let mut found = Vec::new();
        for address in self.address_messages(None).await? {
            let index = address.header.index;
            if let Some(network) = message::address_of(&address).filter(|_| !tunnels.contains(&index)) {
                found.push(OwnAddress { link: name(index), network, gateway: false });
            }
        }
        for route in self.route_messages().await? {
            if route.header.destination_prefix_length == 0 {
                found.extend(gateways(&route, &names));
            }
        }
        Ok(found)
    }
}

/// The gateways of a route, one for each next hop.
fn gateways(route: &RouteMessage, names: &BTreeMap<u32, String>) -> Vec<OwnAddress> {
    let gateway = |attributes: &[RouteAttribute], index: Option<u32>| {
        let address = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => message::ip(address),
            _ => None,
        })?;
        let link = index.and_then(|index| names.get(&index)).cloned().unwrap_or_default();
        Some(OwnAddress { link, network: prefix::host(address), gateway: true })
    };
    let mut found: Vec<OwnAddress> =
        gateway(&route.attributes, message::link_of(route)).into_iter().collect();
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(hops.iter().filter_map(|hop| gateway(&hop.attributes, Some(hop.interface_index))));
        }
    }
    found
}
