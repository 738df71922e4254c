//! Tables of our own in nftables, as values: put in place in one transaction, and compared with what the kernel has.
//!
//! A table is set as a whole, so there is no moment with half of it. Whether it is in place is read from the kernel: the
//! chains, all rules in their order with comment and expressions, and the members of sets and maps must be the wanted
//! ones.

pub(crate) mod compare;
pub(crate) mod expression;
pub(crate) mod found_rules;
pub(crate) mod generation;
pub(crate) mod members;
#[cfg(test)]
pub(crate) mod test_namespace;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use netlink_packet_core::Emitable as _;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, InetHookNumber, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage,
    SetFlags, SetMessage, TableAttribute, TableFlags, TableMessage,
};
use sha2::{Digest as _, Sha256};

use crate::error::{HostError, Subject};
use expression::Expression;
use found_rules::FoundRule;
use members::Members;
use wire::Change;

/// `NF_ACCEPT` as a chain's policy.
const ACCEPT: u32 = 1;
/// Members in one message: an attribute holds at most 64 KiB, a member takes at most 64 bytes.
const MEMBERS: usize = 1000;

/// Types of keys and data, for people who list them with `nft` (`include/datatype.h` of nftables).
pub(crate) const TYPE_IPV4: u32 = 7;
pub(crate) const TYPE_IPV6: u32 = 8;
pub(crate) const TYPE_PROTOCOL: u32 = 12;
pub(crate) const TYPE_PORT: u32 = 13;

/// Priority of destination NAT, ours and that of most others (`enum nf_ip_hook_priorities` in
/// `include/uapi/linux/netfilter_ipv4.h`).
pub(crate) const DESTINATION_NAT: i32 = -100;
/// Priority of source NAT, the same file.
pub(crate) const SOURCE_NAT: i32 = 100;

/// A table of ours; its family is `inet`.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: &'static str,
    /// The same in errors.
    pub(crate) subject: Subject,
}

/// What the kernel says of a table itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableHead {
    pub(crate) flags: TableFlags,
    /// Port ID of the netlink socket that alone may change it.
    pub(crate) owner: Option<u32>,
}

/// A set, or a map.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: DataType,
    /// What a map leads to.
    pub(crate) data: Option<DataType>,
    pub(crate) members: Members,
}

/// Type and length of a key or of what a map leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataType {
    pub(crate) number: u32,
    /// In bytes; each part of a concatenation takes a multiple of four.
    pub(crate) len: u32,
}

impl DataType {
    /// The types of parts one after the other, as `nft` numbers them (`concat_subtype_add`).
    pub(crate) fn concatenated(parts: &[Self]) -> Self {
        let number = parts.iter().fold(0, |number, part| number << 6 | part.number);
        Self { number, len: parts.iter().map(|part| part.len.next_multiple_of(4)).sum() }
    }
}

/// A base chain; its policy accepts what no rule drops.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) hook: InetHookNumber,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    /// What the rule is for; rules that drop are counted under it.
    pub(crate) purpose: &'static str,
    pub(crate) expressions: Vec<Expression>,
}

impl Rule {
    pub(crate) fn new(purpose: &'static str, parts: impl IntoIterator<Item = Vec<Expression>>) -> Self {
        Self { purpose, expressions: parts.into_iter().flatten().collect() }
    }

    /// A comment that only this rule has, for people who list the table and for counting. It is no proof:
    /// someone who edits a listing and loads it again keeps it.
    pub(crate) fn comment(&self) -> String {
        let mut bytes = vec![0; self.expressions.as_slice().buffer_len()];
        self.expressions.as_slice().emit(&mut bytes);
        let mut text = format!("meshd {} ", self.purpose);
        for byte in &Sha256::digest(&bytes)[..12] {
            // Writing into a String can't fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl Table {
    /// Puts the table in place and replaces what was there.
    pub(crate) fn set(&self, sets: &[Set], chains: &[Chain]) -> Result<(), HostError> {
        wire::transact("put in place", self, self.replacement(TableFlags::empty(), sets, chains))
    }

    /// The changes that replace the table, or create it, with these flags.
    pub(crate) fn replacement(&self, flags: TableFlags, sets: &[Set], chains: &[Chain]) -> Vec<Change> {
        // Adding first makes the removal work where there was no table; without flags, since a table that is there has
        // its own.
        let mut changes = vec![self.creation(None), self.removal(), self.creation(Some(flags))];
        for (id, set) in (1..).zip(sets) {
            changes.extend(self.set_messages(id, set));
        }
        for chain in chains {
            changes.push(Change::Add(self.chain_message(chain)));
            changes.extend(chain.rules.iter().map(|rule| Change::Add(self.rule_message(chain.name, rule))));
        }
        changes
    }

    /// Creates the table, or gives one that is there these flags.
    pub(crate) fn creation(&self, flags: Option<TableFlags>) -> Change {
        let name = TableAttribute::Name(self.name.to_owned());
        let attributes = [name].into_iter().chain(flags.map(TableAttribute::Flags)).collect();
        Change::Add(NfTablesMessage::NewTable(TableMessage { attributes }))
    }

    /// Removes the table; returns whether there was one.
    pub(crate) fn remove(&self) -> Result<bool, HostError> {
        if self.flags()?.is_none() {
            return Ok(false);
        }
        wire::transact("remove", self, vec![self.removal()])?;
        Ok(true)
    }

    /// Whether there is a table of this name whose chains see packets. One that is dormant has all its rules, and does
    /// nothing.
    pub(crate) fn is_active(&self) -> Result<bool, HostError> {
        Ok(self.flags()?.is_some_and(|flags| !flags.contains(TableFlags::Dormant)))
    }

    /// Whether the table is there with exactly these sets and chains.
    pub(crate) fn is_in_place(&self, sets: &[Set], chains: &[Chain]) -> Result<bool, HostError> {
        if !self.is_active()? {
            return Ok(false);
        }
        let wanted: BTreeMap<String, ChainShape> =
            chains.iter().map(|chain| (chain.name.to_owned(), ChainShape::wanted(chain))).collect();
        if self.found_chains()? != wanted {
            return Ok(false);
        }
        let found = found_rules::found_rules(self)?;
        if !chains.iter().all(|chain| agreement(chain, &found) == Agreement::Same) {
            return Ok(false);
        }
        for set in sets {
            if members::members(self, set.name)?.is_none_or(|found| found != set.members) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The table's flags; `None` if there is no such table.
    pub(crate) fn flags(&self) -> Result<Option<TableFlags>, HostError> {
        Ok(self.head()?.map(|head| head.flags))
    }

    /// The table itself, without what is in it; `None` if there is no such table.
    pub(crate) fn head(&self) -> Result<Option<TableHead>, HostError> {
        let attributes = vec![TableAttribute::Name(self.name.to_owned())];
        let found = wire::get("read", self, NfTablesMessage::GetTable(TableMessage { attributes }))?;
        let Some(NfTablesMessage::NewTable(TableMessage { attributes })) = found else { return Ok(None) };
        let mut head = TableHead { flags: TableFlags::empty(), owner: None };
        for attribute in attributes {
            match attribute {
                TableAttribute::Flags(flags) => head.flags = flags,
                TableAttribute::Owner(port) => head.owner = Some(port),
                _ => {}
            }
        }
        Ok(Some(head))
    }

    /// One chain. A dump lists the chains of all tables; kube-proxy may have thousands.
    pub(crate) fn found_chain(&self, name: &str) -> Result<Option<ChainShape>, HostError> {
        let attributes =
            vec![ChainAttribute::Table(self.name.to_owned()), ChainAttribute::Name(name.to_owned())];
        let request = NfTablesMessage::GetChain(ChainMessage { attributes });
        Ok(match wire::get("read a chain of", self, request)? {
            Some(NfTablesMessage::NewChain(ChainMessage { attributes })) => {
                Some(ChainShape::read(attributes).1)
            }
            _ => None,
        })
    }

    fn found_chains(&self) -> Result<BTreeMap<String, ChainShape>, HostError> {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let mut chains = BTreeMap::new();
        for message in wire::dump("list the chains of", self, request)?.unwrap_or_default() {
            let NfTablesMessage::NewChain(ChainMessage { attributes }) = message else { continue };
            let ours = attributes
                .iter()
                .any(|attribute| matches!(attribute, ChainAttribute::Table(table) if table == self.name));
            if ours {
                let (name, shape) = ChainShape::read(attributes);
                chains.insert(name, shape);
            }
        }
        Ok(chains)
    }

    fn removal(&self) -> Change {
        let attributes = vec![TableAttribute::Name(self.name.to_owned())];
        Change::Remove(NfTablesMessage::DeleteTable(TableMessage { attributes }))
    }

    fn set_messages(&self, id: u32, set: &Set) -> Vec<Change> {
        let mut attributes = vec![
            SetAttribute::Table(self.name.to_owned()),
            SetAttribute::Name(set.name.to_owned()),
            SetAttribute::KeyType(set.key.number),
            SetAttribute::KeyLen(set.key.len),
            SetAttribute::Id(id),
        ];
        if let Some(data) = set.data {
            attributes.extend([
                SetAttribute::Flags(SetFlags::Map),
                SetAttribute::DataType(data.number),
                SetAttribute::DataLen(data.len),
            ]);
        }
        let mut changes = vec![Change::Add(NfTablesMessage::NewSet(SetMessage { attributes }))];
        let members: Vec<(&Vec<u8>, &Vec<u8>)> = set.members.iter().collect();
        for part in members.chunks(MEMBERS) {
            let element = |(key, data): &(&Vec<u8>, &Vec<u8>)| {
                let value = |bytes: &[u8]| DataAttribute::Value(bytes.to_vec());
                let mut parts = vec![SetElementAttribute::Key(value(key))];
                if set.data.is_some() {
                    parts.push(SetElementAttribute::Data(value(data)));
                }
                ListAttribute::Element(parts)
            };
            let attributes = vec![
                SetElementList::Table(self.name.to_owned()),
                SetElementList::Set(set.name.to_owned()),
                SetElementList::Elements(part.iter().map(element).collect()),
            ];
            changes.push(Change::Add(NfTablesMessage::NewSetElement(SetElementMessage { attributes })));
        }
        changes
    }

    fn chain_message(&self, chain: &Chain) -> NfTablesMessage {
        let attributes = vec![
            ChainAttribute::Table(self.name.to_owned()),
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

    fn rule_message(&self, chain: &str, rule: &Rule) -> NfTablesMessage {
        let attributes = vec![
            RuleAttribute::Table(self.name.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(rule.expressions.clone()),
            RuleAttribute::UserData(comment_data(&rule.comment())),
        ];
        NfTablesMessage::NewRule(RuleMessage { attributes })
    }
}

/// A comment as `nft` reads and writes it: type 0, length, text with its NUL.
pub(crate) fn comment_data(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, len], text.as_bytes(), &[0]].concat()
}

/// How the rules of a chain agree with those that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    Same,
    /// They are followed by others.
    More,
    Other,
}

/// How the rules that were found in a chain agree with those that it should have.
pub(crate) fn agreement(chain: &Chain, found: &[FoundRule]) -> Agreement {
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

/// What makes a chain work: its hook and its policy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainShape {
    kind: String,
    hook: Vec<String>,
    policy: Option<u32>,
}

impl ChainShape {
    pub(crate) fn wanted(chain: &Chain) -> Self {
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
