//! The daemon's routes, and the kernel's route to an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::TryStreamExt as _;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use plan::network::{LinkName, ROUTE_PROTOCOL, Route, Via};
use rustix::io::Errno;

use crate::error::{HostError, Subject};
use crate::{Handle, POD_LINK_PREFIX, message};

/// Interface index of `lo` in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK: u32 = 1;
/// The kernel's errors for an address that it would not send to: the route is of kind unreachable, blackhole or
/// prohibit, there is none, or the address is invalid.
const NO_ROUTE: [Errno; 5] =
    [Errno::HOSTUNREACH, Errno::INVAL, Errno::ACCESS, Errno::NETUNREACH, Errno::NETDOWN];

/// What the underlay offers towards an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Bytes of the largest packet that this route takes.
    pub mtu: u32,
    /// The address that the node would send from.
    pub source: Option<IpAddr>,
}

impl Handle {
    /// The daemon's routes in all tables, without those that the CNI plugin created for pods.
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
    /// that no packet in between finds none. (In IPv4 the kernel has an exception of some nanoseconds, if no other route has
    /// the former one's next hop: `fib_table_lookup` in `net/ipv4/fib_trie.c` passes over dead ones.)
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
            // Removal ignores a route's kind (`ip6_route_del` in `net/ipv6/route.c`), so without the
            // link a unicast route would match as well. Unreachable ones are on the loopback.
            message.attributes.push(RouteAttribute::Oif(LOOPBACK));
        }
        let subject = || Subject::Route(Box::new(route.clone()));
        let removed = self.rtnetlink.route().del(message).execute().await;
        match removed.map_err(|error| HostError::rtnetlink("remove", subject(), &error)) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// The route that a packet of the node's own would take to an address. `None` if there is none.
    pub async fn underlay(&self, address: IpAddr) -> Result<Option<Underlay>, HostError> {
        let message = message::host_route(address, RouteProtocol::Unspec);
        let found = match self.rtnetlink.route().get(message).execute().try_next().await {
            Ok(found) => found,
            Err(error) => {
                let error = HostError::rtnetlink("look up", Subject::RouteTo(address), &error);
                let refused = NO_ROUTE.iter().any(|errno| error.errno() == Some(errno.raw_os_error()));
                return if refused || error.is_missing() { Ok(None) } else { Err(error) };
            }
        };
        let Some(message) = found else { return Ok(None) };
        let mtu = match (message::route_mtu_of(&message), message::link_of(&message)) {
            (Some(mtu), _) => mtu,
            (None, Some(index)) => self.link_mtu(index).await?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Underlay { mtu, source: message::source_of(&message) }))
    }

    /// MTU of the link that one of these addresses is on. `None` if none of them is on a link.
    pub async fn mtu_at(&self, addresses: &[IpAddr]) -> Result<Option<u32>, HostError> {
        match self.index_at(addresses).await? {
            Some(index) => Ok(Some(self.link_mtu(index).await?)),
            None => Ok(None),
        }
    }

    async fn link_mtu(&self, index: u32) -> Result<u32, HostError> {
        let failed = |error| HostError::rtnetlink("read", Subject::Links, &error);
        let found =
            self.rtnetlink.link().get().match_index(index).execute().try_next().await.map_err(failed)?;
        let mtu = found.as_ref().and_then(message::mtu_of);
        Ok(mtu.unwrap_or(plan::desired::MIN_MTU))
    }

    pub(crate) async fn route_messages(&self) -> Result<Vec<RouteMessage>, HostError> {
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
        let mut message = message::route(
            route.destination.network(),
            route.destination.prefix(),
            RouteProtocol::Other(ROUTE_PROTOCOL),
        );
        message.header.table = u8::try_from(route.table).unwrap_or_default();
        message.attributes.push(RouteAttribute::Table(route.table));
        message.attributes.push(RouteAttribute::Priority(route.metric));
        match &route.via {
            Via::Unreachable => message.header.kind = RouteType::Unreachable,
            Via::Link { link, source, mtu } => {
                message = message::on_link(message, self.index(operation, link).await?);
                message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
                let metrics = mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
                message.attributes.extend(metrics);
            }
        }
        Ok(message)
    }
}

/// Reads a route of ours; none for other daemons' and for those towards pods.
pub(crate) fn read(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
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
    let via = if message.header.kind == RouteType::Unreachable {
        Via::Unreachable
    } else {
        let name =
            names.get(&message::link_of(message)?).filter(|name| !name.starts_with(POD_LINK_PREFIX))?;
        let link: LinkName = name.parse().ok()?;
        Via::Link { link, source: message::source_of(message), mtu: message::route_mtu_of(message) }
    };
    Some(Route {
        table: table.unwrap_or_else(|| u32::from(message.header.table)),
        destination: message::destination_of(message)?,
        metric: metric.unwrap_or_default(),
        via,
    })
}
