//! Base chains of other programs that drop what no rule of theirs accepts.

use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage};
use plan::host::{DroppingChain, FilterHook};

use super::TABLE;
use super::chain_end::{DROPS, End, chain_rules, end};
use crate::error::{HostError, Subject};
use crate::nft::found_rules::{attributes, text};
use crate::nft::wire::{self, Family};

/// Length of `nfgenmsg`, which precedes the attributes; its first byte is the family.
const HEADER: usize = 4;
/// Attributes of a chain (`include/uapi/linux/netfilter/nf_tables.h`).
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD` (`include/uapi/linux/netfilter.h`).
const LOCAL_IN: u32 = 1;
const FORWARD: u32 = 2;

/// The chains, without those in which the daemon puts rules itself, and those of tables that name one of these links: they
/// are configured for the mesh.
pub(crate) fn dropping_chains(links: &[&str]) -> Result<Vec<DroppingChain>, HostError> {
    let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
    let read = |message: netlink::Message<'_>| Ok(base_chain(message.body));
    let chains = wire::dump_in("list", Subject::Filters, Family::Unspec, request, read)?.unwrap_or_default();
    let mut found = Vec::new();
    for BaseChain { family, chain, policy } in chains {
        if drops(family, &chain, policy)? && !names_a_link(family, &chain.table, links)? {
            found.push(chain);
        }
    }
    Ok(found)
}

/// A chain at one of the two hooks.
struct BaseChain {
    family: Family,
    chain: DroppingChain,
    policy: u32,
}

/// `None` for any other chain, those of the daemon's table, and those of iptables.
fn base_chain(body: &[u8]) -> Option<BaseChain> {
    let (family, name) = match body.first()? {
        1 => (Family::Inet, "inet"),
        2 => (Family::IPv4, "ip"),
        10 => (Family::IPv6, "ip6"),
        _ => return None,
    };
    let found = attributes(body.get(HEADER..)?).ok()?;
    let hook = attributes(found.get(&NFTA_CHAIN_HOOK)?).ok()?;
    let hook = match number(hook.get(&NFTA_HOOK_HOOKNUM)?)? {
        LOCAL_IN => FilterHook::Input,
        FORWARD => FilterHook::Forward,
        _ => return None,
    };
    let of = |kind: u16| found.get(&kind).map(|value| text(value));
    let (table, chain) = (of(NFTA_CHAIN_TABLE)?, of(NFTA_CHAIN_NAME)?);
    let iptables =
        family != Family::Inet && table == "filter" && ["FORWARD", "INPUT"].contains(&chain.as_str());
    if of(NFTA_CHAIN_TYPE)? != "filter" || iptables || (family == Family::Inet && table == TABLE) {
        return None;
    }
    let policy = number(found.get(&NFTA_CHAIN_POLICY)?)?;
    let chain = DroppingChain { hook, family: name, table, chain, legacy: false };
    Some(BaseChain { family, chain, policy })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn drops(family: Family, chain: &DroppingChain, policy: u32) -> Result<bool, HostError> {
    for rule in chain_rules(family, &chain.table, &chain.chain)? {
        match end(family, &chain.table, &rule, 0)? {
            Some(End::Drop) => return Ok(true),
            Some(End::Accept) => return Ok(false),
            Some(End::Return) => break,
            None => {}
        }
    }
    Ok(policy == DROPS)
}

/// Whether a rule of the table compares with the name of one of the links.
fn names_a_link(family: Family, table: &str, links: &[&str]) -> Result<bool, HostError> {
    let attributes = vec![RuleAttribute::Table(table.to_owned())];
    let request = NfTablesMessage::GetRule(RuleMessage { attributes });
    let names = |message: netlink::Message<'_>| {
        let named =
            links.iter().any(|link| message.body.windows(link.len()).any(|bytes| bytes == link.as_bytes()));
        Ok(named.then_some(()))
    };
    Ok(!wire::dump_in("list", Subject::Filters, family, request, names)?.unwrap_or_default().is_empty())
}
