//! Members of the sets and maps of a table of ours, as the kernel has them.
//!
//! They are read here, byte by byte, because the general decoder takes time that grows with the square of their
//! number: half a second for a thousand nodes, on every check.

use std::collections::BTreeMap;

use netlink_packet_core::{DecodeError, NlasIterator};
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetElementList, SetElementMessage};

use super::{Table, wire};
use crate::error::HostError;

/// Length of `nfgenmsg`, which precedes the attributes.
const HEADER: usize = 4;
/// Attributes down to a member's key and data (`include/uapi/linux/netfilter/nf_tables.h`).
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// Keys, each with what a map has for it; nothing in a set.
pub(crate) type Members = BTreeMap<Vec<u8>, Vec<u8>>;
/// One of them.
type Member = (Vec<u8>, Vec<u8>);

/// The members of a set or map. `None` if there is none of this name, or if it has a member that is more than a key and
/// data, such as one that expires or the catch-all element.
pub(crate) fn members(table: &Table, set: &str) -> Result<Option<Members>, HostError> {
    let attributes = vec![SetElementList::Table(table.name.to_owned()), SetElementList::Set(set.to_owned())];
    let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
    let found = wire::dump_with("list the sets of", table, request, |message| Ok(Some(read(message.body)?)))?;
    Ok(found.and_then(|parts| parts.into_iter().flatten().collect()))
}

/// The members in one message; `None` in place of each that is more than a key and data.
fn read(body: &[u8]) -> Result<Vec<Option<Member>>, DecodeError> {
    let mut members = Vec::new();
    for list in NlasIterator::new(body.get(HEADER..).unwrap_or_default()) {
        let list = list?;
        if list.kind() != NFTA_SET_ELEM_LIST_ELEMENTS {
            continue;
        }
        for element in NlasIterator::new(list.value()) {
            let element = element?;
            if element.kind() == NFTA_LIST_ELEM {
                members.push(member(element.value())?);
            }
        }
    }
    Ok(members)
}

fn member(element: &[u8]) -> Result<Option<Member>, DecodeError> {
    let (mut key, mut data) = (None, None);
    for attribute in NlasIterator::new(element) {
        let attribute = attribute?;
        match attribute.kind() {
            NFTA_SET_ELEM_KEY => key = value(attribute.value())?,
            NFTA_SET_ELEM_DATA => data = value(attribute.value())?,
            _ => return Ok(None),
        }
    }
    Ok(key.map(|key| (key, data.unwrap_or_default())))
}

fn value(nested: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    for attribute in NlasIterator::new(nested) {
        let attribute = attribute?;
        if attribute.kind() == NFTA_DATA_VALUE {
            return Ok(Some(attribute.value().to_vec()));
        }
    }
    Ok(None)
}
