//! Accept rules in the chains FORWARD and INPUT that iptables (its nft variant) keeps, where these would drop pods' packets:
//! by their policy, or by a rule that drops everything.
//!
//! The rules have the form in which iptables itself writes them, so `iptables-save` and `iptables-restore` read them. They
//! come after other rules, so that what drops particular packets, such as network policies, still does. A chain is never
//! created.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};
use plan::network::{Accepts, MeshInput};

use super::chain_end::{DROPS, End, chain_rules, end};
use crate::POD_LINK_PREFIX;
use crate::error::{HostError, Subject};
use crate::nft::expression::{self, Direction, Expression, Side};
use crate::nft::found_rules::FoundRule;
use crate::nft::wire::{self, Change, Family};
use crate::nft::{comment_data, compare};

/// The table in which iptables keeps both chains.
const TABLE: &str = "filter";
/// The comment by which the rules are found again.
const COMMENT: &str = "meshd accept";

/// Protocol numbers (IANA, "Protocol Numbers").
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// One of the chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Forward,
    Input,
}

impl Hook {
    const fn chain(self) -> &'static str {
        match self {
            Self::Forward => "FORWARD",
            Self::Input => "INPUT",
        }
    }
}

/// The chain of one family.
#[derive(Clone, Copy, Debug)]
struct Place {
    family: Family,
    hook: Hook,
}

const PLACES: [Place; 4] = [
    Place { family: Family::IPv4, hook: Hook::Forward },
    Place { family: Family::IPv4, hook: Hook::Input },
    Place { family: Family::IPv6, hook: Hook::Forward },
    Place { family: Family::IPv6, hook: Hook::Input },
];

/// What there is of a chain.
struct Found {
    /// The daemon's rules, each with its position.
    ours: Vec<(usize, FoundRule)>,
    /// The rule of others that drops everything that comes to it.
    barrier: Option<(usize, u64)>,
    /// Whether everything ends at the barrier or the policy that drops.
    drops: bool,
}

/// Whether every chain that drops packets accepts these.
pub fn stand(accepts: &Accepts) -> Result<bool, HostError> {
    for place in PLACES {
        let Some(found) = read(place)? else { continue };
        if found.drops && !is_in_place(&found, &rules(place, accepts)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts the rules into every chain that drops packets, in one transaction.
pub fn set(accepts: &Accepts) -> Result<(), HostError> {
    let mut changes = Vec::new();
    for place in PLACES {
        let Some(found) = read(place)? else { continue };
        let wanted = rules(place, accepts);
        if !found.drops || is_in_place(&found, &wanted) {
            continue;
        }
        changes.extend(removals(place, &found));
        changes.extend(wanted.into_iter().map(|expressions| {
            let attributes = vec![
                RuleAttribute::Table(TABLE.to_owned()),
                RuleAttribute::Chain(place.hook.chain().to_owned()),
                RuleAttribute::Expressions(expressions),
                RuleAttribute::UserData(comment_data(COMMENT)),
            ];
            let position = found.barrier.map(|(_, handle)| RuleAttribute::Position(handle));
            let insert = position.is_some();
            let attributes = attributes.into_iter().chain(position).collect();
            let message = NfTablesMessage::NewRule(RuleMessage { attributes });
            (place.family, if insert { Change::Insert(message) } else { Change::Add(message) })
        }));
    }
    if changes.is_empty() {
        return Ok(());
    }
    wire::transact_in("accept pods' packets in", Subject::Filters, changes)
}

/// Removes the rules; returns whether there were any.
pub fn remove() -> Result<bool, HostError> {
    let mut changes = Vec::new();
    for place in PLACES {
        if let Some(found) = read(place)? {
            changes.extend(removals(place, &found));
        }
    }
    if changes.is_empty() {
        return Ok(false);
    }
    wire::transact_in("remove accept rules from", Subject::Filters, changes)?;
    Ok(true)
}

fn removals(place: Place, found: &Found) -> Vec<(Family, Change)> {
    let removal = |(_, rule): &(usize, FoundRule)| {
        let attributes = vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(place.hook.chain().to_owned()),
            RuleAttribute::Handle(rule.handle),
        ];
        (place.family, Change::Remove(NfTablesMessage::DeleteRule(RuleMessage { attributes })))
    };
    found.ours.iter().map(removal).collect()
}

/// In the right order, all before the barrier, and nothing else.
fn is_in_place(found: &Found, wanted: &[Vec<Expression>]) -> bool {
    found.ours.len() == wanted.len()
        && found.ours.iter().zip(wanted).all(|((position, rule), wanted)| {
            compare::same(wanted, &rule.expressions)
                && found.barrier.is_none_or(|(barrier, _)| *position < barrier)
        })
}

/// The rules of a chain. What comes from a pod or goes to one is accepted whatever the other end is, what enters the mesh
/// because the peer accepts only what its node may send, and what comes out of it if it is from a pod: anything else that a
/// peer sends to be forwarded is not the mesh's.
fn rules(place: Place, accepts: &Accepts) -> Vec<Vec<Expression>> {
    let ipv4 = place.family == Family::IPv4;
    let ranges: Vec<IpNetwork> =
        accepts.cluster.iter().copied().filter(|range| range.is_ipv4() == ipv4).collect();
    if ranges.is_empty() {
        return Vec::new();
    }
    let rule = |parts: Vec<Vec<Expression>>| -> Vec<Expression> {
        let end = [expression::count(), expression::accept()];
        parts.into_iter().flatten().chain(end).collect()
    };
    let mesh_links = || accepts.mesh_links.iter();
    if place.hook == Hook::Input {
        let accepted = |link| input(accepts.input, ipv4).into_iter().map(move |what| (link, what));
        let rules = mesh_links().flat_map(accepted);
        return rules.map(|(link, what)| rule(vec![link_is(Direction::In, link.as_str()), what])).collect();
    }
    let mut rules: Vec<_> = [Direction::In, Direction::Out]
        .map(|direction| rule(vec![expression::link_begins(direction, POD_LINK_PREFIX)]))
        .into();
    for link in mesh_links() {
        rules.push(rule(vec![link_is(Direction::Out, link.as_str())]));
        for range in &ranges {
            rules.push(rule(vec![link_is(Direction::In, link.as_str()), from(*range)]));
        }
    }
    rules
}

/// What is accepted for the node itself: the conditions of one rule each. ICMP has no ports to listen on, and path MTU
/// discovery and neighbour discovery need it (RFC 4890 section 4.4).
fn input(accepted: MeshInput, ipv4: bool) -> Vec<Vec<Expression>> {
    match accepted {
        MeshInput::Everything => vec![Vec::new()],
        MeshInput::Control(port) => vec![
            expression::destination_port_in(UDP, port, port),
            expression::protocol_is(if ipv4 { ICMP } else { ICMPV6 }),
        ],
    }
}

/// The name with its NUL, as iptables compares it.
fn link_is(direction: Direction, name: &str) -> Vec<Expression> {
    expression::link_begins(direction, &format!("{name}\0"))
}

/// The source is in this prefix. As iptables has it: without the family, which the table has, and comparing whole bytes
/// where that is enough.
fn from(prefix: IpNetwork) -> Vec<Expression> {
    let bytes = match prefix.network() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mask = match prefix.mask() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    if prefix.prefix() == 0 {
        return Vec::new();
    }
    let is_whole = prefix.prefix().is_multiple_of(8);
    let len = if is_whole { usize::from(prefix.prefix() / 8) } else { bytes.len() };
    let mut expressions = vec![expression::load_address_bytes(Side::Source, prefix.is_ipv4(), len)];
    if !is_whole {
        expressions.push(expression::masked(mask));
    }
    expressions.push(expression::equals(bytes.into_iter().take(len).collect()));
    expressions
}

/// Reads a chain. `None` if it is not there, or not one that sees packets.
fn read(place: Place) -> Result<Option<Found>, HostError> {
    let Some(policy) = policy(place)? else { return Ok(None) };
    let drops_by_policy = policy == DROPS;
    let (mut ours, mut barrier, mut accepted) = (Vec::new(), None, false);
    for (position, rule) in chain_rules(place.family, TABLE, place.hook.chain())?.into_iter().enumerate() {
        if rule.comment.as_deref() == Some(COMMENT) {
            ours.push((position, rule));
        } else if barrier.is_none() && !accepted {
            match end(place.family, TABLE, &rule, 0)? {
                Some(End::Drop) => barrier = Some((position, rule.handle)),
                // A base chain returns to its policy.
                Some(End::Return) if drops_by_policy => barrier = Some((position, rule.handle)),
                Some(End::Accept | End::Return) => accepted = true,
                None => {}
            }
        }
    }
    let drops = barrier.is_some() || (!accepted && drops_by_policy);
    Ok(Some(Found { ours, barrier, drops }))
}

fn policy(place: Place) -> Result<Option<u32>, HostError> {
    let attributes =
        vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(place.hook.chain().to_owned())];
    let request = NfTablesMessage::GetChain(ChainMessage { attributes });
    let found = wire::get_in("read", Subject::Filters, place.family, request)?;
    let Some(NfTablesMessage::NewChain(ChainMessage { attributes })) = found else { return Ok(None) };
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        ChainAttribute::Policy(policy) => Some(policy),
        _ => None,
    }))
}
