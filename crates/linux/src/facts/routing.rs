//! Routes and policy rules of other programs.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use plan::host::{ForeignRoute, ForeignRule};
use plan::network::{LinkName, ROUTE_PROTOCOL};
use plan::prefix;

use super::FactSources;
use crate::error::HostError;
use crate::{Handle, POD_LINK_PREFIX, message};

/// What the main table says.
#[derive(Debug, Default)]
pub(super) struct Routing {
    /// Routes of others to pods' addresses.
    pub(super) routes: Vec<ForeignRoute>,
    /// Links that default routes lead to.
    pub(super) default_links: BTreeSet<String>,
    /// Links with a default route from router advertisements.
    pub(super) router_links: BTreeSet<LinkName>,
}

impl Handle {
    /// `names` are those of the links by their indices.
    pub(super) async fn routing(
        &self,
        sources: FactSources<'_>,
        names: &BTreeMap<u32, String>,
    ) -> Result<Routing, HostError> {
        let mut routing = Routing::default();
        for route in self.route_messages().await? {
            let of_daemon = route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
            if route.header.table != RouteHeader::RT_TABLE_MAIN || of_daemon {
                continue;
            }
            let link = message::link_of(&route).and_then(|index| names.get(&index));
            let Some(destination) = message::destination_of(&route) else { continue };
            if destination.prefix() == 0 {
                routing.default_links.extend(link.cloned());
                if route.header.protocol == RouteProtocol::Ra {
                    routing.router_links.extend(link.and_then(|name| name.parse().ok()));
                }
            }
            let of_mesh = link.is_some_and(|name| {
                name.starts_with(POD_LINK_PREFIX)
                    || sources.mesh_links.iter().any(|mesh| mesh.as_str() == name)
            });
            if of_mesh || !sources.cluster.iter().any(|range| prefix::contains(*range, destination)) {
                continue;
            }
            let metric = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Priority(metric) => Some(*metric),
                _ => None,
            });
            routing.routes.push(ForeignRoute {
                destination,
                metric: metric.unwrap_or_default(),
                protocol: route.header.protocol.into(),
                link: link.cloned(),
            });
        }
        Ok(routing)
    }

    /// Policy rules that are not the daemon's, in the order in which they are matched.
    pub(super) async fn foreign_rules(&self) -> Result<Vec<ForeignRule>, HostError> {
        let mut rules: Vec<ForeignRule> = self.all_rules().await?.iter().filter_map(foreign).collect();
        rules.sort();
        Ok(rules)
    }
}

/// `None` for a rule of the daemon's, and for one that can't be understood.
fn foreign(message: &RuleMessage) -> Option<ForeignRule> {
    let any = prefix::any(message.header.family == AddressFamily::Inet).ip();
    let (mut source, mut destination, mut priority) = (any, any, 0);
    let mut table = u32::from(message.header.table);
    // A goto skips rules, and nop does nothing: whether a packet is lost there is for other rules to say.
    let mut conditional = matches!(message.header.action, RuleAction::Goto | RuleAction::Nop);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)) => return None,
            RuleAttribute::Source(found) => source = *found,
            RuleAttribute::Destination(found) => destination = *found,
            RuleAttribute::Priority(found) => priority = *found,
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::FwMark(0) | RuleAttribute::FwMask(_) | RuleAttribute::L3MDev(false) => {}
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::FwMark(_)
            | RuleAttribute::L3MDev(true)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_) => conditional = true,
            _ => {}
        }
    }
    Some(ForeignRule {
        priority,
        from: ipnetwork::IpNetwork::new(source, message.header.src_len).ok()?,
        to: ipnetwork::IpNetwork::new(destination, message.header.dst_len).ok()?,
        table: (message.header.action == RuleAction::ToTable).then_some(table),
        conditional,
    })
}
