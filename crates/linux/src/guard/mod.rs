//! The guard: the nft table `inet meshd`, which drops every packet with a pod address outside WireGuard.
//!
//! It is put in place in one transaction, so there is no moment without it, and it outlives the process.
//! Whether it still is in place is read from the kernel: the chains, all rules in their order with comment and
//! expressions, and the members of the sets must be those that `rules` computes.

mod chain_end;
mod compare;
mod expression;
mod found_rules;
pub mod iptables;
mod members;
mod others;
mod rules;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, ListAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage,
    TableAttribute, TableFlags, TableMessage,
};
use plan::network::{Guard, LinkName};

use crate::error::HostError;
use found_rules::{FoundRule, found_rules};
pub(crate) use others::dropping_chains;
use rules::{Chain, NamedSet, Purpose, Rule};
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
    /// From a pod to a closed Node address.
    pub closed: u64,
}

/// Puts the guard in place and replaces what was there. Blocks for one exchange with the kernel.
pub fn set(guard: &Guard) -> Result<(), HostError> {
    if guard.cluster.is_empty() {
        return Err(HostError::EmptyGuard);
    }
    // Adding first makes the removal work where there was no table.
    let table = || Change::Add(NfTablesMessage::NewTable(table()));
    let mut changes = vec![table(), table_removal(), table()];
    for (id, set) in (1..).zip(rules::sets(guard)) {
        changes.extend(set_messages(id, &set));
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
    Ok(found_table()?.is_some())
}

/// Whether exactly this guard is in place.
pub fn is_in_place(guard: &Guard) -> Result<bool, HostError> {
    if !is_active()? {
        return Ok(false);
    }
    let chains = rules::chains(guard);
    let wanted: BTreeMap<String, ChainShape> =
        chains.iter().map(|chain| (chain.name.to_owned(), ChainShape::wanted(chain))).collect();
    if found_chains()? != wanted {
        return Ok(false);
    }
    let found = found_rules()?;
    if !chains.iter().all(|chain| agreeing(chain, &found) == Agreement::Same) {
        return Ok(false);
    }
    for set in rules::sets(guard) {
        if members::members(set.name)?.is_none_or(|found| found != keys(&set.members)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether everything that drops packets with an address in these ranges is in place: the chains at their hooks, with
/// exactly these rules. What decides which of pods' packets are masqueraded, and the members of the sets, are not looked
/// at. It takes five exchanges, however large other tables and this one's sets are: the CNI plugin asks for each pod.
pub fn filters_stand(
    cluster: &BTreeSet<IpNetwork>,
    mesh_links: &BTreeSet<LinkName>,
) -> Result<bool, HostError> {
    let guard = Guard { cluster: cluster.clone(), mesh_links: mesh_links.clone(), ..Guard::default() };
    chains_stand(&guard, &rules::filters(&guard))
}

/// Whether every rule of this guard stands, in its place. The guard in the kernel may know more: the members of its sets,
/// and which pods of this node are masqueraded, which are the last rules of their chain.
pub fn stands(guard: &Guard) -> Result<bool, HostError> {
    chains_stand(guard, &rules::chains(guard))
}

fn chains_stand(guard: &Guard, chains: &[Chain]) -> Result<bool, HostError> {
    if guard.cluster.is_empty() || !is_active()? {
        return Ok(false);
    }
    let found = found_rules()?;
    for chain in chains {
        let agreement = agreeing(chain, &found);
        let agrees = agreement == Agreement::Same
            || (agreement == Agreement::More && chain.name == rules::MASQUERADING);
        if !agrees || found_chain(chain.name)? != Some(ChainShape::wanted(chain)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How the rules of a chain agree with those that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agreement {
    Same,
    /// They are followed by others.
    More,
    Other,
}

fn agreeing(chain: &Chain, found: &[FoundRule]) -> Agreement {
    let found: Vec<&FoundRule> = found.iter().filter(|rule| rule.chain == chain.name).collect();
    let begins = chain.rules.len() <= found.len()
        && chain.rules.iter().zip(&found).all(|(wanted, found)| is(found, wanted));
    match (begins, chain.rules.len() == found.len()) {
        (true, true) => Agreement::Same,
        (true, false) => Agreement::More,
        (false, _) => Agreement::Other,
    }
}

fn is(found: &FoundRule, wanted: &Rule) -> bool {
    found.comment.as_deref() == Some(wanted.comment().as_str())
        && compare::same(&wanted.expressions, &found.expressions)
}

/// What the guard dropped.
pub fn drops() -> Result<Drops, HostError> {
    let rules = found_rules()?;
    let sum = |purpose: Purpose| {
        let mark = format!("meshd {} ", purpose.as_str());
        let counted =
            rules.iter().filter(|rule| rule.comment.as_ref().is_some_and(|text| text.starts_with(&mark)));
        counted.map(FoundRule::counted).sum()
    };
    Ok(Drops {
        incoming: sum(Purpose::In),
        outgoing: sum(Purpose::Out),
        spoofed: sum(Purpose::Spoof),
        closed: sum(Purpose::Closed),
    })
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

fn set_messages(id: u32, set: &NamedSet) -> Vec<Change> {
    let (key_type, len) = if set.ipv4 { (TYPE_IPV4, 4) } else { (TYPE_IPV6, 16) };
    let attributes = vec![
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(set.name.to_owned()),
        SetAttribute::KeyType(key_type),
        SetAttribute::KeyLen(len),
        SetAttribute::Id(id),
    ];
    let mut changes = vec![Change::Add(NfTablesMessage::NewSet(SetMessage { attributes }))];
    let members: Vec<IpAddr> = set.members.iter().copied().collect();
    for part in members.chunks(MEMBERS) {
        let element = |address: &IpAddr| {
            let key = SetElementAttribute::Key(DataAttribute::Value(expression::key(*address)));
            ListAttribute::Element(vec![key])
        };
        let attributes = vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.name.to_owned()),
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

/// Flags of our table; `None` if there is none.
fn found_table() -> Result<Option<TableFlags>, HostError> {
    let attributes = vec![TableAttribute::Name(TABLE.to_owned())];
    let found = wire::get("read the guard's table", NfTablesMessage::GetTable(TableMessage { attributes }))?;
    let Some(NfTablesMessage::NewTable(TableMessage { attributes })) = found else { return Ok(None) };
    let flags = attributes.into_iter().find_map(|attribute| match attribute {
        TableAttribute::Flags(flags) => Some(flags),
        _ => None,
    });
    Ok(Some(flags.unwrap_or(TableFlags::empty())))
}

/// Whether there is a table of ours whose chains see packets. One that is dormant has all its rules, and does nothing.
fn is_active() -> Result<bool, HostError> {
    Ok(found_table()?.is_some_and(|flags| flags.is_empty()))
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

    /// The name of a chain, and its shape.
    fn read(attributes: Vec<ChainAttribute>) -> (String, Self) {
        let (mut name, mut shape) = (String::new(), Self::default());
        for attribute in attributes {
            match attribute {
                ChainAttribute::Name(found) => name = found,
                ChainAttribute::Type(kind) => shape.kind = kind,
                ChainAttribute::Hook(hooks) => shape.hook = hook_text(&hooks),
                ChainAttribute::Policy(policy) => shape.policy = Some(policy),
                _ => {}
            }
        }
        (name, shape)
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
        let ours = attributes
            .iter()
            .any(|attribute| matches!(attribute, ChainAttribute::Table(table) if table == TABLE));
        if ours {
            let (name, shape) = ChainShape::read(attributes);
            chains.insert(name, shape);
        }
    }
    Ok(chains)
}

/// One chain of our table. A dump lists the chains of all tables; kube-proxy may have thousands.
fn found_chain(name: &str) -> Result<Option<ChainShape>, HostError> {
    let attributes = vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(name.to_owned())];
    let found =
        wire::get("read a chain of the guard", NfTablesMessage::GetChain(ChainMessage { attributes }))?;
    Ok(match found {
        Some(NfTablesMessage::NewChain(ChainMessage { attributes })) => Some(ChainShape::read(attributes).1),
        _ => None,
    })
}

fn keys(addresses: &BTreeSet<IpAddr>) -> BTreeSet<Vec<u8>> {
    addresses.iter().map(|address| expression::key(*address)).collect()
}

#[cfg(test)]
mod tests;
