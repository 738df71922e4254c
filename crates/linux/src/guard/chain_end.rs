//! How a chain of any table ends the way of packets that none of its rules singles out.

use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage};

use crate::error::{HostError, Subject};
use crate::nft::found_rules::{self, FoundExpression, FoundRule, attributes, text};
use crate::nft::wire::{self, Family};

/// A chain's policy that drops (`NF_DROP` in `include/uapi/linux/netfilter.h`).
pub(super) const DROPS: u32 = 0;
/// Chains that are followed from one that a packet passes in any case. A chain can't jump to itself, and the kernel allows
/// as many (`NFT_JUMP_STACK_SIZE` in `include/net/netfilter/nf_tables.h`).
const MAX_DEPTH: u32 = 16;
/// `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_GOTO` and `NFT_RETURN` as verdicts (`include/uapi/linux/netfilter.h`,
/// `include/uapi/linux/netfilter/nf_tables.h`).
const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;
/// Attributes of expressions (`include/uapi/linux/netfilter/nf_tables.h`, `nf_tables_compat.h`).
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_XT_NAME: u16 = 1;
const NFTA_XT_INFO: u16 = 3;

/// The rules of a chain, in their order.
pub(super) fn chain_rules(family: Family, table: &str, chain: &str) -> Result<Vec<FoundRule>, HostError> {
    let attributes = vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    let request = NfTablesMessage::GetRule(RuleMessage { attributes });
    let read = |message: netlink::Message<'_>| {
        let rule = found_rules::rule(message.body, table)?.filter(|rule| rule.chain == chain);
        Ok(rule.map(with_comment))
    };
    Ok(wire::dump_in("read", Subject::Filters, family, request, read)?.unwrap_or_default())
}

/// A comment that iptables wrote is an expression; taken out, the rule is as the daemon writes it.
fn with_comment(mut rule: FoundRule) -> FoundRule {
    if let Some(position) = rule.expressions.iter().position(is_comment) {
        let expression = rule.expressions.remove(position);
        let info = expression.attributes.get(&NFTA_XT_INFO).map(Vec::as_slice).unwrap_or_default();
        let comment = info.split(|byte| *byte == 0).next().unwrap_or_default();
        rule.comment = Some(String::from_utf8_lossy(comment).into_owned());
    }
    rule
}

fn is_comment(expression: &FoundExpression) -> bool {
    expression.name == "match"
        && expression.attributes.get(&NFTA_XT_NAME).is_some_and(|name| text(name) == "comment")
}

/// How a rule ends the way of every packet that comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is accepted.
    Accept,
    /// It is dropped.
    Drop,
    /// It goes back to where the chain was called from, or to the policy.
    Return,
}

/// `None` if it may let a packet go on.
pub(super) fn end(
    family: Family,
    table: &str,
    rule: &FoundRule,
    depth: u32,
) -> Result<Option<End>, HostError> {
    for expression in &rule.expressions {
        match expression.name.as_str() {
            "counter" | "log" => {}
            "reject" => return Ok(Some(End::Drop)),
            "target" => {
                let name = expression.attributes.get(&NFTA_XT_NAME).map(|name| text(name));
                match name.as_deref() {
                    Some("REJECT") => return Ok(Some(End::Drop)),
                    Some("LOG" | "NFLOG") => {}
                    _ => return Ok(None),
                }
            }
            "immediate" => return verdict(family, table, expression, depth),
            // A condition, or something unknown.
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn verdict(
    family: Family,
    table: &str,
    expression: &FoundExpression,
    depth: u32,
) -> Result<Option<End>, HostError> {
    let Some((code, chain)) = expression.attributes.get(&NFTA_IMMEDIATE_DATA).and_then(|data| target(data))
    else {
        return Ok(None);
    };
    Ok(match code {
        DROP => Some(End::Drop),
        ACCEPT => Some(End::Accept),
        RETURN => Some(End::Return),
        JUMP | GOTO if depth < MAX_DEPTH => {
            for rule in chain_rules(family, table, &chain)? {
                match end(family, table, &rule, depth + 1)? {
                    Some(End::Return) => break,
                    Some(end) => return Ok(Some(end)),
                    None => {}
                }
            }
            // Back from another chain, the packet goes on; from one that it was sent to for good, it does not.
            (code == GOTO).then_some(End::Return)
        }
        _ => None,
    })
}

/// The code of a verdict, and the chain that it names.
fn target(data: &[u8]) -> Option<(i32, String)> {
    let data = attributes(data).ok()?;
    let verdict = attributes(data.get(&NFTA_DATA_VERDICT)?).ok()?;
    let code = verdict.get(&NFTA_VERDICT_CODE)?.as_slice().try_into().ok()?;
    let chain = verdict.get(&NFTA_VERDICT_CHAIN).map(|name| text(name)).unwrap_or_default();
    Some((i32::from_be_bytes(code), chain))
}
