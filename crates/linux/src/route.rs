//! Routes of the daemon's own, and what the kernel knows of the way to an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use plan::network::{LinkName, ROUTE_PROTOCOL, Route, Via};
use rtnetlink::RouteMessageBuilder;
use rustix::io::Errno;

use crate::error::{HostError, Subject};
use crate::{Handle, POD_LINK_PREFIX};

/// Number of `lo` in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK: u32 = 1;
/// What the kernel answers when it would not send to an address: to a route of kind unreachable, blackhole or
/// prohibit, to one that misses, and to an address that is nobody's.
const NO_WAY: [Errno; 5] =
    [Errno::HOSTUNREACH, Errno::INVAL, Errno::ACCESS, Errno::NETUNREACH, Errno::NETDOWN];

/// What the node's own network offers on the way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Bytes of the largest packet that takes this way.
    pub mtu: u32,
    /// The address that the node would send from.
    pub source: Option<IpAddr>,
}

impl Handle {
    /// The daemon's routes in all tables, without those that the CNI plugin made for pods.
    pub async fn routes(&self) -> Result<BTreeSet<Route>, HostError> {
        let names = self.link_names().await?;
        let mut routes = BTreeSet::new();
        for message in self.route_messages().await? {
            if let Some(route) = read(&message, &names) {
                routes.insert(route);
            }
        }
        Ok(routes)
    }

    /// Puts a route in place. It replaces the one with the same table, destination and metric in one step, so
    /// that no packet in between finds none.
    pub async fn set_route(&self, route: &Route) -> Result<(), HostError> {
        let message = self.message("set", route).await?;
        let subject = || Subject::Route(Box::new(route.clone()));
        let set = self.rtnetlink.route().add(message).replace().execute().await;
        set.map_err(|error| HostError::rtnetlink("set", subject(), &error))
    }

    /// Removes a route. One that is not there is no error.
    pub async fn remove_route(&self, route: &Route) -> Result<(), HostError> {
        let mut message = match self.message("remove", route).await {
            // The link is gone, and its routes with it.
            Err(HostError::NoLink { .. }) => return Ok(()),
            message => message?,
        };
        if route.via == Via::Unreachable && route.destination.is_ipv6() {
            // Removal does not look at a route's kind (`ip6_route_del` in `net/ipv6/route.c`), so without the
            // link one that leads somewhere would match as well. Unreachable ones are on the loopback.
            message.attributes.push(RouteAttribute::Oif(LOOPBACK));
        }
        let subject = || Subject::Route(Box::new(route.clone()));
        let removed = self.rtnetlink.route().del(message).execute().await;
        match removed.map_err(|error| HostError::rtnetlink("remove", subject(), &error)) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// The way to an address, as a packet of the node's own would take it. `None` if there is none.
    pub async fn underlay(&self, address: IpAddr) -> Result<Option<Underlay>, HostError> {
        let message = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let found = match self.rtnetlink.route().get(message).execute().try_next().await {
            Ok(found) => found,
            Err(error) => {
                let error = HostError::rtnetlink("look up", Subject::RouteTo(address), &error);
                let refused = NO_WAY.iter().any(|errno| error.errno() == Some(errno.raw_os_error()));
                return if refused || error.is_missing() { Ok(None) } else { Err(error) };
            }
        };
        let Some(message) = found else { return Ok(None) };
        let mtu = match (mtu(&message), link(&message)) {
            (Some(mtu), _) => mtu,
            (None, Some(index)) => self.link_mtu(index).await?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Underlay { mtu, source: address_of(&message, AddressOf::Source) }))
    }

    /// MTU of the link that one of these addresses is on. `None` if none of them is on a link.
    pub async fn mtu_at(&self, addresses: &[IpAddr]) -> Result<Option<u32>, HostError> {
        match self.index_at(addresses).await? {
            Some(index) => Ok(Some(self.link_mtu(index).await?)),
            None => Ok(None),
        }
    }

    async fn link_mtu(&self, index: u32) -> Result<u32, HostError> {
        let failed = |error| HostError::rtnetlink("look at", Subject::Links, &error);
        let found =
            self.rtnetlink.link().get().match_index(index).execute().try_next().await.map_err(failed)?;
        let mtu =
            found.iter().flat_map(|message| &message.attributes).find_map(|attribute| match attribute {
                netlink_packet_route::link::LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
        Ok(mtu.unwrap_or(plan::desired::MIN_MTU))
    }

    async fn route_messages(&self) -> Result<Vec<RouteMessage>, HostError> {
        let mut messages = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let found = self.dump("list", &Subject::Routes, &RouteNetlinkMessage::GetRoute(request)).await?;
            messages.extend(found.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            }));
        }
        Ok(messages)
    }

    async fn message(&self, operation: &'static str, route: &Route) -> Result<RouteMessage, HostError> {
        let mut message = match route.destination {
            IpNetwork::V4(net) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix()).build()
            }
            IpNetwork::V6(net) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.network(), net.prefix()).build()
            }
        };
        message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        message.header.table = u8::try_from(route.table).unwrap_or_default();
        message.attributes.push(RouteAttribute::Table(route.table));
        message.attributes.push(RouteAttribute::Priority(route.metric));
        match &route.via {
            Via::Unreachable => {
                message.header.kind = RouteType::Unreachable;
                message.header.scope = RouteScope::Universe;
            }
            Via::Link { link, source, mtu } => {
                message.header.kind = RouteType::Unicast;
                // IPv4 wants to be told that there is no gateway; IPv6 knows no scopes of routes.
                let ipv4 = route.destination.is_ipv4();
                message.header.scope = if ipv4 { RouteScope::Link } else { RouteScope::Universe };
                message.attributes.push(RouteAttribute::Oif(self.index(operation, link).await?));
                message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
                let metrics = mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
                message.attributes.extend(metrics);
            }
        }
        Ok(message)
    }
}

/// Reads a route of ours; none for other daemons' and for those towards pods.
fn read(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    if message.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
        return None;
    }
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let everywhere = || match message.header.address_family {
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    let network = address_of(message, AddressOf::Destination).unwrap_or_else(everywhere);
    let via = if message.header.kind == RouteType::Unreachable {
        Via::Unreachable
    } else {
        let name = names.get(&link(message)?).filter(|name| !name.starts_with(POD_LINK_PREFIX))?;
        let link: LinkName = name.parse().ok()?;
        Via::Link { link, source: address_of(message, AddressOf::Source), mtu: mtu(message) }
    };
    Some(Route {
        table: table.unwrap_or_else(|| u32::from(message.header.table)),
        destination: IpNetwork::new(network, message.header.destination_prefix_length).ok()?,
        metric: metric.unwrap_or_default(),
        via,
    })
}

#[derive(Clone, Copy)]
enum AddressOf {
    Destination,
    Source,
}

fn address_of(message: &RouteMessage, wanted: AddressOf) -> Option<IpAddr> {
    let found = message.attributes.iter().find_map(|attribute| match (attribute, &wanted) {
        (RouteAttribute::Destination(address), AddressOf::Destination)
        | (RouteAttribute::PrefSource(address), AddressOf::Source) => Some(address),
        _ => None,
    });
    match found? {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn link(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    metrics?.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}
