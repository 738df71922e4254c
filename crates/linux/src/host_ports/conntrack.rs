//! Connections that began before a change of host ports and would not follow it.
//!
//! Translation is decided by the first packet of a connection. UDP has no other end of one than silence (30 s to 2
//! minutes: `nf_conntrack_udp_timeout`), so a client that goes on sending from one port would never reach a new pod.
//! Connections of TCP and SCTP end with their pod.

use std::collections::BTreeSet;

use netlink::{Message, NetlinkError, Socket};
use netlink_packet_core::{DecodeError, DefaultNla, NLA_TYPE_MASK, NlasIterator};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::{Mapping, Protocol};
use crate::error::{HostError, Subject};
use crate::nft::expression::key;
use crate::nft::wire::Netfilter;

/// Length of `nfgenmsg`, which precedes the attributes.
const HEADER: usize = 4;
/// Attributes down to ports (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Ends UDP connections that were led to a pod by these mappings, which are no more.
pub fn forget(mappings: &BTreeSet<Mapping>) -> Result<(), HostError> {
    forget_where(mappings, |mapping, there, back| {
        there.to.port == mapping.host_port
            && back.from.address == key(mapping.pod_address)
            && back.from.port == mapping.pod_port
    })
}

/// Ends UDP connections that were led nowhere, which these mappings lead to a pod from now on.
pub fn forget_untranslated(mappings: &BTreeSet<Mapping>) -> Result<(), HostError> {
    forget_where(mappings, |mapping, there, back| {
        there.to.port == mapping.host_port
            && there.to.address.len() == key(mapping.pod_address).len()
            && mapping.host_address.is_none_or(|address| key(address) == there.to.address)
            && back.from == there.to
            && back.to == there.from
    })
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Tuple {
    protocol: u8,
    from: End,
    to: End,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    address: Vec<u8>,
    port: u16,
}

fn forget_where(
    mappings: &BTreeSet<Mapping>,
    stale: impl Fn(&Mapping, &Tuple, &Tuple) -> bool,
) -> Result<(), HostError> {
    let mapped: Vec<&Mapping> = mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp).collect();
    if mapped.is_empty() {
        return Ok(());
    }
    let failed = |operation| move |source| HostError::netlink(operation, Subject::Connections, source);
    let mut socket = Socket::<Netfilter>::open().map_err(failed("open netlink"))?;
    let take = |found: &mut Vec<(NetfilterProtoFamily, Vec<u8>)>, message: Message<'_>| {
        let Some((original, there, back)) = read(message.body)? else { return Ok(()) };
        let is_udp = there.protocol == Protocol::Udp.number();
        if is_udp && mapped.iter().any(|mapping| stale(mapping, &there, &back)) {
            let ipv4 = there.to.address.len() == 4;
            let family = if ipv4 { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
            found.push((family, original));
        }
        Ok::<_, NetlinkError>(())
    };
    let all = request(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(Vec::new()));
    let found = socket.dump(&all, Vec::new, take).map_err(failed("list"))?;
    for (family, original) in found {
        let tuple = ConntrackAttribute::Other(DefaultNla::new(CTA_TUPLE_ORIG, original));
        let removed = socket.request(&request(family, ConntrackMessage::Delete(vec![tuple])), 0);
        match removed.map_err(failed("remove")) {
            Err(error) if error.is_missing() => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn request(family: NetfilterProtoFamily, message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

/// The tuple of the first packets as it is in the message, and both read. They are read here, byte by byte: a node may
/// have some hundred thousand connections.
fn read(body: &[u8]) -> Result<Option<(Vec<u8>, Tuple, Tuple)>, DecodeError> {
    let (mut there, mut back) = (None, None);
    for attribute in NlasIterator::new(body.get(HEADER..).unwrap_or_default()) {
        let attribute = attribute?;
        match attribute.kind() & NLA_TYPE_MASK {
            CTA_TUPLE_ORIG => there = Some((attribute.value().to_vec(), tuple(attribute.value())?)),
            CTA_TUPLE_REPLY => back = Some(tuple(attribute.value())?),
            _ => {}
        }
    }
    Ok(there.zip(back).map(|((original, there), back)| (original, there, back)))
}

fn tuple(nested: &[u8]) -> Result<Tuple, DecodeError> {
    let mut tuple = Tuple::default();
    for part in NlasIterator::new(nested) {
        let part = part?;
        for field in NlasIterator::new(part.value()) {
            let field = field?;
            let value = field.value();
            let number = || value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)).unwrap_or_default();
            match (part.kind() & NLA_TYPE_MASK, field.kind() & NLA_TYPE_MASK) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => tuple.from.address = value.to_vec(),
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => tuple.to.address = value.to_vec(),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => {
                    tuple.protocol = value.first().copied().unwrap_or_default();
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => tuple.from.port = number(),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => tuple.to.port = number(),
                _ => {}
            }
        }
    }
    Ok(tuple)
}
