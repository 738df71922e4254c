//! Policy rules of the mesh.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use plan::network::{ROUTE_PROTOCOL, Rule};
use plan::prefix;

use crate::Handle;
use crate::error::{HostError, Subject};

impl Handle {
    /// The rules that are marked as the daemon's.
    pub async fn rules(&self) -> Result<BTreeSet<Rule>, HostError> {
        Ok(self.rule_messages().await?.into_iter().map(|(rule, _)| rule).collect())
    }

    /// Adds a rule. One that is there already is no error.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), HostError> {
        let mut request = self.rtnetlink.rule().add();
        *request.message_mut() = message(rule);
        match request
            .execute()
            .await
            .map_err(|error| HostError::rtnetlink("add", Subject::Rule(rule.clone()), &error))
        {
            Err(error) if !error.is_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a rule. One that is not there is no error.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), HostError> {
        for (found, message) in self.rule_messages().await? {
            if found == *rule {
                let removed = self.rtnetlink.rule().del(message).execute().await;
                let removed = removed
                    .map_err(|error| HostError::rtnetlink("remove", Subject::Rule(rule.clone()), &error));
                if let Err(error) = removed
                    && !error.is_missing()
                {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn rule_messages(&self) -> Result<Vec<(Rule, RuleMessage)>, HostError> {
        Ok(self.all_rules().await?.into_iter().filter_map(|rule| Some((read(&rule)?, rule))).collect())
    }

    /// All rules, of whichever program.
    pub(crate) async fn all_rules(&self) -> Result<Vec<RuleMessage>, HostError> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let found = self.dump("list", &Subject::Rules, &RouteNetlinkMessage::GetRule(request)).await?;
            rules.extend(found.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => Some(rule),
                _ => None,
            }));
        }
        Ok(rules)
    }
}

fn message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.src_len = rule.from.prefix();
    message.header.dst_len = rule.to.prefix();
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or_default();
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    // The kernel refuses an address without a length, and leaves both out of what it lists.
    if rule.from.prefix() > 0 {
        message.attributes.push(RuleAttribute::Source(rule.from.network()));
    }
    if rule.to.prefix() > 0 {
        message.attributes.push(RuleAttribute::Destination(rule.to.network()));
    }
    message
}

/// Reads one of the daemon's rules; `None` for any other.
fn read(message: &RuleMessage) -> Option<Rule> {
    let any = prefix::any(message.header.family == AddressFamily::Inet).ip();
    let (mut ours, mut table, mut priority) = (false, u32::from(message.header.table), 0);
    let (mut source, mut destination) = (any, any);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Other(ROUTE_PROTOCOL),
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::Priority(found) => priority = *found,
            RuleAttribute::Source(found) => source = *found,
            RuleAttribute::Destination(found) => destination = *found,
            _ => {}
        }
    }
    let from = IpNetwork::new(source, message.header.src_len).ok()?;
    let to = IpNetwork::new(destination, message.header.dst_len).ok()?;
    ours.then_some(Rule { priority, from, to, table })
}
