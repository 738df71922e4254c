//! The rules of a table of ours, as the kernel has them.
//!
//! They are read here, byte by byte, because the general decoder formats a text for each attribute that could be wrong: two
//! milliseconds for the guard's rules, and the CNI plugin reads them for each pod.

use std::collections::BTreeMap;

use netlink_packet_core::{DecodeError, NLA_F_NESTED, NLA_TYPE_MASK, NlasIterator};
use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage};

use super::{Table, wire};
use crate::error::HostError;

/// Length of `nfgenmsg`, which precedes the attributes.
const HEADER: usize = 4;
/// Attributes down to those of an expression (`include/uapi/linux/netfilter/nf_tables.h`).
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
/// What a counter has counted.
const NFTA_COUNTER_PACKETS: u16 = 2;

/// The expression that counts packets.
pub(crate) const COUNTER: &str = "counter";

/// One rule.
#[derive(Debug, Default)]
pub(crate) struct FoundRule {
    pub(crate) chain: String,
    /// By which it is removed, and others are put before it.
    pub(crate) handle: u64,
    pub(crate) comment: Option<String>,
    pub(crate) expressions: Vec<FoundExpression>,
}

/// One expression of a rule: its name, and its attributes by their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FoundExpression {
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<u16, Vec<u8>>,
}

impl FoundRule {
    /// Packets that its counters have counted.
    pub(crate) fn counted(&self) -> u64 {
        let counters = self.expressions.iter().filter(|expression| expression.name == COUNTER);
        let packets = counters.filter_map(|counter| counter.attributes.get(&NFTA_COUNTER_PACKETS));
        packets.filter_map(|bytes| Some(u64::from_be_bytes(bytes.as_slice().try_into().ok()?))).sum()
    }
}

/// The rules of a table, in their order.
pub(crate) fn found_rules(table: &Table) -> Result<Vec<FoundRule>, HostError> {
    let attributes = vec![RuleAttribute::Table(table.name.to_owned())];
    let request = NfTablesMessage::GetRule(RuleMessage { attributes });
    let read = |message: netlink::Message<'_>| Ok(rule(message.body, table.name)?);
    let rules = wire::dump_with("list the rules of", table, request, read)?;
    Ok(rules.unwrap_or_default())
}

/// The rule in one message; `None` if it is of another table.
pub(crate) fn rule(body: &[u8], table: &str) -> Result<Option<FoundRule>, DecodeError> {
    let (mut found, mut ours) = (FoundRule::default(), false);
    for attribute in NlasIterator::new(body.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() & NLA_TYPE_MASK {
            NFTA_RULE_TABLE => ours = text(attribute.value()) == table,
            NFTA_RULE_CHAIN => found.chain = text(attribute.value()),
            NFTA_RULE_HANDLE => found.handle = number(attribute.value()),
            NFTA_RULE_USERDATA => found.comment = comment_of(attribute.value()),
            NFTA_RULE_EXPRESSIONS => found.expressions = expressions(attribute.value())?,
            _ => {}
        }
    }
    Ok(ours.then_some(found))
}

fn expressions(list: &[u8]) -> Result<Vec<FoundExpression>, DecodeError> {
    let mut found = Vec::new();
    for element in NlasIterator::new(list) {
        let element = element?;
        let mut expression = FoundExpression::default();
        let mut is_known = element.kind() & NLA_TYPE_MASK == NFTA_LIST_ELEM;
        for part in NlasIterator::new(element.value()) {
            let part = part?;
            match part.kind() & NLA_TYPE_MASK {
                NFTA_EXPR_NAME => expression.name = text(part.value()),
                NFTA_EXPR_DATA => expression.attributes = attributes(part.value())?,
                _ => is_known = false,
            }
        }
        // One of another shape has no name, and so is none of ours.
        found.push(if is_known { expression } else { FoundExpression::default() });
    }
    Ok(found)
}

/// Attributes by their number, with the bytes of their values in the form in which they are compared.
pub(crate) fn attributes(data: &[u8]) -> Result<BTreeMap<u16, Vec<u8>>, DecodeError> {
    let mut found = BTreeMap::new();
    for attribute in NlasIterator::new(data) {
        let attribute = attribute?;
        let mut value = attribute.value().to_vec();
        without_nested_flags(&mut value);
        found.insert(attribute.kind() & NLA_TYPE_MASK, value);
    }
    Ok(found)
}

/// Clears the flag by which an attribute says that it has others in it (`NLA_F_NESTED`): whoever writes them may set it or
/// not. What is no attribute has none, and is the same in both forms.
fn without_nested_flags(mut bytes: &mut [u8]) {
    while let Some(header) = bytes.first_chunk::<4>() {
        let (len, kind) =
            (u16::from_ne_bytes([header[0], header[1]]), u16::from_ne_bytes([header[2], header[3]]));
        let len = usize::from(len);
        if len < 4 || len > bytes.len() {
            return;
        }
        let (attribute, rest) = std::mem::take(&mut bytes).split_at_mut(len);
        if kind & NLA_F_NESTED != 0 {
            attribute[2..4].copy_from_slice(&(kind & !NLA_F_NESTED).to_ne_bytes());
            without_nested_flags(&mut attribute[4..]);
        }
        let padding = len.next_multiple_of(4) - len;
        bytes = rest.get_mut(padding..).unwrap_or_default();
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_be_bytes).unwrap_or_default()
}

/// A text with its NUL, as the kernel writes names.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// The comment in a rule's user data, as `nft` writes it: type 0, length, text with its NUL.
fn comment_of(data: &[u8]) -> Option<String> {
    let text = data.strip_prefix(&[0])?.get(1..)?.strip_suffix(&[0])?;
    String::from_utf8(text.to_vec()).ok()
}
