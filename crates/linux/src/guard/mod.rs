//! The guard: the nft table `inet meshd`, which drops every packet with a pod address outside WireGuard.
//!
//! It is put in place in one transaction, so there is no moment without it, and it outlives the process.
//! Whether it still is in place is read from the kernel: the chains, all rules in their order with comment and
//! expressions, and the members of the sets must be those that `rules` computes.

mod compare;
mod expression;
mod members;
mod rules;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, ListAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage,
    TableAttribute, TableFlags, TableMessage,
};
use plan::network::Guard;

use crate::error::HostError;
use expression::Expression;
use rules::{Chain, NODES_V4, NODES_V6, Purpose, Rule};
use wire::Change;

/// Name of the table; its family is `inet`.
pub const TABLE: &str = "meshd";
/// `NF_ACCEPT` as a chain's policy.
const ACCEPT: u32 = 1;
/// Types of set keys, for people who list them with `nft` (`include/datatype.h` of nftables).
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
/// Members in one message: an attribute holds at most 64 KiB, a member takes at most 28 bytes.
const MEMBERS: usize = 1000;

/// Packets that the guard dropped since its table was last put in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// With a pod address, from outside the mesh.
    pub incoming: u64,
    /// With a pod address, leaving unencrypted.
    pub outgoing: u64,
    /// From a pod, under an address that is not its own.
    pub spoofed: u64,
}

/// Puts the guard in place and replaces what was there. Blocks for one exchange with the kernel.
pub fn set(guard: &Guard) -> Result<(), HostError> {
    if guard.cluster.is_empty() {
        return Err(HostError::EmptyGuard);
    }
    // Adding first makes the removal work where there was no table.
    let table = || Change::Add(NfTablesMessage::NewTable(table()));
    let mut changes = vec![table(), table_removal(), table()];
    for (name, ipv4) in [(NODES_V4, true), (NODES_V6, false)] {
        changes.extend(set_of(name, ipv4, &rules::nodes(guard, ipv4)));
    }
    for chain in rules::chains(guard) {
        changes.push(Change::Add(chain_message(&chain)));
        changes.extend(chain.rules.iter().map(|rule| Change::Add(rule_message(chain.name, rule))));
    }
    wire::transact("put the guard in place", changes)
}

/// Removes the guard; returns whether there was one.
pub fn remove() -> Result<bool, HostError> {
    if !exists()? {
        return Ok(false);
    }
    wire::transact("remove the guard", vec![table_removal()])?;
    Ok(true)
}

/// Whether there is a table of ours at all.
pub fn exists() -> Result<bool, HostError> {
    Ok(tables()?.iter().any(|table| table.name == TABLE))
}

/// Whether exactly this guard is in place.
pub fn is_in_place(guard: &Guard) -> Result<bool, HostError> {
    let Some(table) = tables()?.into_iter().find(|table| table.name == TABLE) else { return Ok(false) };
    if table.dormant {
        return Ok(false);
    }
    let chains = rules::chains(guard);
    let wanted: BTreeMap<String, ChainShape> =
        chains.iter().map(|chain| (chain.name.to_owned(), ChainShape::wanted(chain))).collect();
    if found_chains()? != wanted {
        return Ok(false);
    }
    let found = found_rules()?;
    let rules_agree = chains.iter().all(|chain| {
        let found: Vec<&FoundRule> = found.iter().filter(|rule| rule.chain == chain.name).collect();
        found.len() == chain.rules.len()
            && chain.rules.iter().zip(found).all(|(wanted, found)| found.is(wanted))
    });
    Ok(rules_agree
        && members::members(NODES_V4)?.is_some_and(|found| found == keys(&rules::nodes(guard, true)))
        && members::members(NODES_V6)?.is_some_and(|found| found == keys(&rules::nodes(guard, false))))
}

/// What the guard dropped.
pub fn drops() -> Result<Drops, HostError> {
    let rules = found_rules()?;
    let sum = |purpose: Purpose| {
        let mark = format!("meshd {} ", purpose.as_str());
        let counted =
            rules.iter().filter(|rule| rule.comment.as_ref().is_some_and(|text| text.starts_with(&mark)));
        counted.map(|rule| expression::counted(&rule.expressions)).sum()
    };
    Ok(Drops { incoming: sum(Purpose::In), outgoing: sum(Purpose::Out), spoofed: sum(Purpose::Spoof) })
}

fn table() -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned()), TableAttribute::Flags(TableFlags::empty())],
    }
}

fn table_removal() -> Change {
    Change::Remove(NfTablesMessage::DeleteTable(TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    }))
}

fn set_of(name: &str, ipv4: bool, members: &BTreeSet<IpAddr>) -> Vec<Change> {
    let (key_type, len) = if ipv4 { (TYPE_IPV4, 4) } else { (TYPE_IPV6, 16) };
    let attributes = vec![
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::KeyType(key_type),
        SetAttribute::KeyLen(len),
        SetAttribute::Id(if ipv4 { 1 } else { 2 }),
    ];
    let mut changes = vec![Change::Add(NfTablesMessage::NewSet(SetMessage { attributes }))];
    let members: Vec<IpAddr> = members.iter().copied().collect();
    for part in members.chunks(MEMBERS) {
        let element = |address: &IpAddr| {
            let key = SetElementAttribute::Key(DataAttribute::Value(expression::key(*address)));
            ListAttribute::Element(vec![key])
        };
        let attributes = vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(name.to_owned()),
            SetElementList::Elements(part.iter().map(element).collect()),
        ];
        changes.push(Change::Add(NfTablesMessage::NewSetElement(SetElementMessage { attributes })));
    }
    changes
}

fn chain_message(chain: &Chain) -> NfTablesMessage {
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
        ChainAttribute::Policy(ACCEPT),
        ChainAttribute::Type(chain.kind.to_owned()),
        ChainAttribute::Hook(vec![
            Hook::Number(chain.hook.into()),
            Hook::Priority(chain.priority.cast_unsigned()),
        ]),
    ];
    NfTablesMessage::NewChain(ChainMessage { attributes })
}

fn rule_message(chain: &str, rule: &Rule) -> NfTablesMessage {
    let attributes = vec![
        RuleAttribute::Table(TABLE.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(rule.expressions.clone()),
        RuleAttribute::UserData(comment_data(&rule.comment())),
    ];
    NfTablesMessage::NewRule(RuleMessage { attributes })
}

/// A comment as `nft` reads and writes it: type 0, length, text with its NUL.
fn comment_data(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, len], text.as_bytes(), &[0]].concat()
}

fn comment_of(data: &[u8]) -> Option<String> {
    let text = data.strip_prefix(&[0])?.get(1..)?.strip_suffix(&[0])?;
    String::from_utf8(text.to_vec()).ok()
}

struct FoundTable {
    name: String,
    dormant: bool,
}

fn tables() -> Result<Vec<FoundTable>, HostError> {
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let found = wire::dump("list nft tables", request)?.unwrap_or_default();
    let tables = found.into_iter().filter_map(|message| match message {
        NfTablesMessage::NewTable(TableMessage { attributes }) => Some(attributes),
        _ => None,
    });
    let read = |attributes: Vec<TableAttribute>| {
        let mut table = FoundTable { name: String::new(), dormant: false };
        for attribute in attributes {
            match attribute {
                TableAttribute::Name(name) => table.name = name,
                TableAttribute::Flags(flags) => table.dormant = !flags.is_empty(),
                _ => {}
            }
        }
        table
    };
    Ok(tables.map(read).collect())
}

/// What makes a chain work: its hook and its policy.
#[derive(Debug, Default, PartialEq, Eq)]
struct ChainShape {
    kind: String,
    hook: Vec<String>,
    policy: Option<u32>,
}

impl ChainShape {
    fn wanted(chain: &Chain) -> Self {
        Self {
            kind: chain.kind.to_owned(),
            hook: hook_text(&[
                Hook::Number(chain.hook.into()),
                Hook::Priority(chain.priority.cast_unsigned()),
            ]),
            policy: Some(ACCEPT),
        }
    }
}

/// Hooks in a form that can be compared: the kernel gives the number without saying for which family.
fn hook_text(hooks: &[Hook]) -> Vec<String> {
    let mut texts: Vec<String> = hooks
        .iter()
        .filter_map(|hook| match hook {
            Hook::Number(number) => Some(format!("hook {}", u32::from(*number))),
            Hook::Priority(priority) => Some(format!("priority {priority}")),
            _ => None,
        })
        .collect();
    texts.sort();
    texts
}

fn found_chains() -> Result<BTreeMap<String, ChainShape>, HostError> {
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let mut chains = BTreeMap::new();
    for message in wire::dump("list nft chains", request)?.unwrap_or_default() {
        let NfTablesMessage::NewChain(ChainMessage { attributes }) = message else { continue };
        let (mut name, mut ours, mut shape) = (String::new(), false, ChainShape::default());
        for attribute in attributes {
            match attribute {
                ChainAttribute::Table(table) => ours = table == TABLE,
                ChainAttribute::Name(found) => name = found,
                ChainAttribute::Type(kind) => shape.kind = kind,
                ChainAttribute::Hook(hooks) => shape.hook = hook_text(&hooks),
                ChainAttribute::Policy(policy) => shape.policy = Some(policy),
                _ => {}
            }
        }
        if ours {
            chains.insert(name, shape);
        }
    }
    Ok(chains)
}

struct FoundRule {
    chain: String,
    comment: Option<String>,
    expressions: Vec<Expression>,
}

impl FoundRule {
    fn is(&self, wanted: &Rule) -> bool {
        self.comment.as_deref() == Some(wanted.comment().as_str())
            && compare::same(&wanted.expressions, &self.expressions)
    }
}

fn found_rules() -> Result<Vec<FoundRule>, HostError> {
    let attributes = vec![RuleAttribute::Table(TABLE.to_owned())];
    let request = NfTablesMessage::GetRule(RuleMessage { attributes });
    let mut rules = Vec::new();
    for message in wire::dump("list the guard's rules", request)?.unwrap_or_default() {
        let NfTablesMessage::NewRule(RuleMessage { attributes }) = message else { continue };
        let (mut rule, mut ours) =
            (FoundRule { chain: String::new(), comment: None, expressions: Vec::new() }, false);
        for attribute in attributes {
            match attribute {
                RuleAttribute::Table(table) => ours = table == TABLE,
                RuleAttribute::Chain(chain) => rule.chain = chain,
                RuleAttribute::UserData(data) => rule.comment = comment_of(&data),
                RuleAttribute::Expressions(expressions) => rule.expressions = expressions,
                _ => {}
            }
        }
        if ours {
            rules.push(rule);
        }
    }
    Ok(rules)
}

fn keys(addresses: &BTreeSet<IpAddr>) -> BTreeSet<Vec<u8>> {
    addresses.iter().map(|address| expression::key(*address)).collect()
}

#[cfg(test)]
mod tests;
