//! Matches and statements of nftables as netlink expressions.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use super::found_rules::COUNTER;

/// One expression of a rule.
pub(super) type Expression = ListAttribute<ExpressionAttribute>;

/// `NF_DROP` and `NF_ACCEPT` (`include/uapi/linux/netfilter.h`).
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, the same file.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `NFT_PAYLOAD_NETWORK_HEADER` (`include/uapi/linux/netfilter/nf_tables.h`, as all constants below).
const NETWORK_HEADER: u32 = 1;
/// Attributes and values of the `fib` expression.
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_OIF: u32 = 1;
const NFTA_FIB_F_SADDR: u32 = 1 << 0;
const NFTA_FIB_F_IIF: u32 = 1 << 3;
/// Attribute and value of the `masq` expression.
const NFTA_MASQ_FLAGS: u16 = 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
/// Length of an interface name in a register (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;

/// An address of a packet.
#[derive(Clone, Copy)]
pub(super) enum Side {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// Which interface of a packet.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// The interface it was received on.
    In,
    /// The interface it is sent on.
    Out,
}

/// The interface has exactly this name.
pub(super) fn link_is(direction: Direction, name: &str) -> Vec<Expression> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(IFNAMSIZ, 0);
    vec![load_link(direction), equals(padded)]
}

/// The interface's name begins like this.
pub(super) fn link_begins(direction: Direction, prefix: &str) -> Vec<Expression> {
    vec![load_link(direction), equals(prefix.as_bytes().to_vec())]
}

/// The packet is of this family and its address lies in this prefix.
pub(super) fn address_in(side: Side, prefix: IpNetwork) -> Vec<Expression> {
    let mut expressions = load_address(side, prefix.is_ipv4());
    let (network, mask) = match prefix {
        IpNetwork::V4(net) => (net.network().octets().to_vec(), net.mask().octets().to_vec()),
        IpNetwork::V6(net) => (net.network().octets().to_vec(), net.mask().octets().to_vec()),
    };
    if mask.iter().any(|byte| *byte != u8::MAX) {
        expressions.push(masked(mask));
    }
    expressions.push(equals(network));
    expressions
}

/// The packet is of this family and its address is in the named set.
pub(super) fn address_in_set(side: Side, ipv4: bool, set: &str) -> Vec<Expression> {
    let mut expressions = load_address(side, ipv4);
    let lookup = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)];
    expressions.push(Expressions::Lookup(lookup).into());
    expressions
}

/// No route to the packet's source leads out of the interface that it was received on (reverse path filter).
pub(super) fn source_not_routed_back() -> Vec<Expression> {
    let fib = Expressions::Other {
        expression_type: "fib".to_owned(),
        attributes: vec![
            number(NFTA_FIB_DREG, u32::from(Register::Reg1)),
            number(NFTA_FIB_RESULT, NFT_FIB_RESULT_OIF),
            number(NFTA_FIB_FLAGS, NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF),
        ],
    };
    vec![fib.into(), equals(0_u32.to_ne_bytes().to_vec())]
}

/// Counts the packet.
pub(super) fn count() -> Expression {
    Expressions::Other { expression_type: COUNTER.to_owned(), attributes: Vec::new() }.into()
}

/// Ends this chain for the packet; other chains still see it.
pub(super) fn accept() -> Expression {
    verdict(NF_ACCEPT)
}

/// Drops the packet.
pub(super) fn discard() -> Expression {
    verdict(NF_DROP)
}

/// Masquerades the packet.
pub(super) fn masquerade() -> Expression {
    let flags = number(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
    Expressions::Other { expression_type: "masq".to_owned(), attributes: vec![flags] }.into()
}

/// The bytes of an address as a set holds it.
pub(super) fn key(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn load_link(direction: Direction) -> Expression {
    let key = match direction {
        Direction::In => MetaKey::Iifname,
        Direction::Out => MetaKey::Oifname,
    };
    load_meta(key)
}

fn load_meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into()
}

/// Checks the family, then loads the address.
fn load_address(side: Side, ipv4: bool) -> Vec<Expression> {
    let (family, len) = if ipv4 { (NFPROTO_IPV4, 4) } else { (NFPROTO_IPV6, 16) };
    vec![load_meta(MetaKey::Nfproto), equals(vec![family]), load_address_bytes(side, ipv4, len)]
}

/// Loads the first bytes of an address of a packet whose family is known, from its place in the header (RFC 791 section
/// 3.1, RFC 8200 section 3).
pub(super) fn load_address_bytes(side: Side, ipv4: bool, len: usize) -> Expression {
    let offset = match (side, ipv4) {
        (Side::Source, true) => 12,
        (Side::Destination, true) => 16,
        (Side::Source, false) => 8,
        (Side::Destination, false) => 24,
    };
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NETWORK_HEADER),
        Payload::Offset(offset),
        Payload::Len(u32::try_from(len).unwrap_or_default()),
    ])
    .into()
}

/// The register has this value.
pub(super) fn equals(value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

/// The register, masked.
pub(super) fn masked(mask: Vec<u8>) -> Expression {
    let len = mask.len();
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(u32::try_from(len).unwrap_or_default()),
        Bitwise::Mask(DataAttribute::Value(mask)),
        Bitwise::Xor(DataAttribute::Value(vec![0; len])),
    ])
    .into()
}

fn verdict(code: u32) -> Expression {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(code))])),
    ])
    .into()
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}
