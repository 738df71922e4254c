//! Members of the guard's sets, as the kernel has them.
//!
//! They are read here, byte by byte, because the general decoder takes time that grows with the square of their
//! number: half a second for a thousand nodes, on every check.

use std::collections::BTreeSet;

use netlink_packet_core::{DecodeError, NlasIterator};
use netlink_packet_netfilter::nftables::{NfTablesMessage, SetElementList, SetElementMessage};

use super::{TABLE, wire};
use crate::error::HostError;

/// Length of `nfgenmsg`, which precedes the attributes.
const HEADER: usize = 4;
/// Attributes down to a member's key (`include/uapi/linux/netfilter/nf_tables.h`).
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;

/// The keys of a set's members. `None` if there is no such set, or if it has a member that is more than a key, such
/// as one that expires or the catch-all element.
pub(super) fn members(set: &str) -> Result<Option<BTreeSet<Vec<u8>>>, HostError> {
    let attributes = vec![SetElementList::Table(TABLE.to_owned()), SetElementList::Set(set.to_owned())];
    let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
    let found = wire::dump_with("list the guard's sets", request, |message| Ok(Some(read(message.body)?)))?;
    Ok(found.and_then(|parts| parts.into_iter().flatten().collect()))
}

/// The keys in one message; `None` in place of each member that is more than a key.
fn read(body: &[u8]) -> Result<Vec<Option<Vec<u8>>>, DecodeError> {
    let mut keys = Vec::new();
    for list in NlasIterator::new(body.get(HEADER..).unwrap_or_default()) {
        let list = list?;
        if list.kind() != NFTA_SET_ELEM_LIST_ELEMENTS {
            continue;
        }
        for member in NlasIterator::new(list.value()) {
            let member = member?;
            if member.kind() == NFTA_LIST_ELEM {
                keys.push(key(member.value())?);
            }
        }
    }
    Ok(keys)
}

fn key(member: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut key = None;
    for attribute in NlasIterator::new(member) {
        let attribute = attribute?;
        if attribute.kind() != NFTA_SET_ELEM_KEY {
            return Ok(None);
        }
        for data in NlasIterator::new(attribute.value()) {
            let data = data?;
            if data.kind() == NFTA_DATA_VALUE {
                key = Some(data.value().to_vec());
            }
        }
    }
    Ok(key)
}
