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
pub(crate) type Expression = ListAttribute<ExpressionAttribute>;

/// `NF_DROP` and `NF_ACCEPT` (`include/uapi/linux/netfilter.h`).
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, the same file.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `NFT_PAYLOAD_NETWORK_HEADER` (`include/uapi/linux/netfilter/nf_tables.h`, as all constants below).
const NETWORK_HEADER: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT_HEADER: u32 = 2;
/// `IPPROTO_ICMP` and `IPPROTO_ICMPV6` (`include/uapi/linux/in.h`, `in6.h`).
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// What is before the packet that an error message quotes, in bytes (RFC 792, RFC 4443 section 3).
const ICMP_HEADER: u32 = 8;
/// Attributes and values of the `fib` expression.
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_OIF: u32 = 1;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1 << 0;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const NFTA_FIB_F_IIF: u32 = 1 << 3;
/// Attribute and value of the `masq` expression.
const NFTA_MASQ_FLAGS: u16 = 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
/// Attributes and values of the `nat` expression.
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
const NFTA_NAT_FLAGS: u16 = 7;
const NFT_NAT_DNAT: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED` (`include/uapi/linux/netfilter/nf_nat.h`).
const NF_NAT_RANGE_ADDRESS_AND_PORT: u32 = 1 << 0 | 1 << 1;
/// `RTN_LOCAL` (`include/uapi/linux/rtnetlink.h`).
const RTN_LOCAL: u32 = 2;
/// Length of an interface name in a register (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;

/// An address of a packet.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// Which interface of a packet.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    /// The interface it was received on.
    In,
    /// The interface it is sent on.
    Out,
}

/// The interface has exactly this name.
pub(crate) fn link_is(direction: Direction, name: &str) -> Vec<Expression> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(IFNAMSIZ, 0);
    vec![load_link(direction), equals(padded)]
}

/// The interface's name begins like this.
pub(crate) fn link_begins(direction: Direction, prefix: &str) -> Vec<Expression> {
    vec![load_link(direction), equals(prefix.as_bytes().to_vec())]
}

/// The packet is of this family and its address lies in this prefix.
pub(crate) fn address_in(side: Side, prefix: IpNetwork) -> Vec<Expression> {
    let mut expressions = load_address(side, prefix.is_ipv4());
    expressions.extend(lies_in(prefix));
    expressions
}

/// The packet is an error message of ICMP about another one, of this family, whose address lies in this prefix: it has that one's
/// header and data in it. Each of these is one way to be such a message.
pub(crate) fn quoted_address_in(side: Side, prefix: IpNetwork) -> Vec<Vec<Expression>> {
    let ipv4 = prefix.is_ipv4();
    // Types of RFC 792, and of RFC 4443 section 2.1.
    let (family, protocol, types): (_, _, &[(u8, u8)]) =
        if ipv4 { (NFPROTO_IPV4, ICMP, &[(3, 5), (11, 12)]) } else { (NFPROTO_IPV6, ICMPV6, &[(1, 4)]) };
    let from_transport_header = |offset, len| load(TRANSPORT_HEADER, offset, len, Register::Reg1);
    let one_of = |(first, last): &(u8, u8)| {
        let mut expressions = vec![load_meta(MetaKey::Nfproto), equals(vec![family])];
        expressions.extend(protocol_is(protocol));
        expressions.extend([
            from_transport_header(0, 1),
            compare(Operator::GreatherThanEqual, vec![*first]),
            compare(Operator::LessThanEqual, vec![*last]),
            from_transport_header(ICMP_HEADER + address_offset(side, ipv4), if ipv4 { 4 } else { 16 }),
        ]);
        expressions.extend(lies_in(prefix));
        expressions
    };
    types.iter().map(one_of).collect()
}

/// The address in the register lies in this prefix.
fn lies_in(prefix: IpNetwork) -> Vec<Expression> {
    let mut expressions = Vec::new();
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
pub(crate) fn address_in_set(side: Side, ipv4: bool, set: &str) -> Vec<Expression> {
    let mut expressions = load_address(side, ipv4);
    let lookup = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)];
    expressions.push(Expressions::Lookup(lookup).into());
    expressions
}

/// No route to the packet's source leads out of the interface that it was received on (reverse path filter).
pub(crate) fn source_not_routed_back() -> Vec<Expression> {
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

/// The packet's destination is no address of the node.
pub(crate) fn destination_not_local() -> Vec<Expression> {
    let fib = Expressions::Other {
        expression_type: "fib".to_owned(),
        attributes: vec![
            number(NFTA_FIB_DREG, u32::from(Register::Reg1)),
            number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
            number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR),
        ],
    };
    vec![fib.into(), compare(Operator::NotEqual, RTN_LOCAL.to_ne_bytes().to_vec())]
}

/// Source and destination of the packet, which is of this family, are one pair in the named set.
pub(crate) fn pair_in_set(ipv4: bool, set: &str) -> Vec<Expression> {
    let after_address = if ipv4 { Register::Reg32_01 } else { Register::Reg2 };
    let mut expressions = load_address(Side::Source, ipv4);
    expressions.extend([
        load_header_address(Side::Destination, ipv4, after_address),
        Expressions::Lookup(vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)]).into(),
    ]);
    expressions
}

/// Translates the destination of a packet of this family to the address and port that a map has for its protocol and
/// destination port, after its destination address if `with_address`. A packet that the map has nothing for goes on to
/// the next rule.
pub(crate) fn destination_nat_by_map(ipv4: bool, with_address: bool, map: &str) -> Vec<Expression> {
    let family = if ipv4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
    // A register by its number of four bytes; whole ones of 16 bytes have names of their own, by which the kernel lists
    // them.
    let (protocol, port) = match (with_address, ipv4) {
        (false, _) => (Register::Reg1, Register::Reg32_01),
        (true, true) => (Register::Reg32_01, Register::Reg32_02),
        (true, false) => (Register::Reg2, Register::Reg32_05),
    };
    let mut expressions = vec![load_meta(MetaKey::Nfproto), equals(vec![family])];
    if with_address {
        expressions.push(load_header_address(Side::Destination, ipv4, Register::Reg1));
    }
    let load_protocol = vec![Meta::Key(MetaKey::L4Proto), Meta::DestinationRegister(protocol)];
    let lookup = vec![
        Lookup::Set(map.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::DestinationRegister(Register::Reg1),
    ];
    let mapped_port = u32::from(if ipv4 { Register::Reg32_01 } else { Register::Reg2 });
    let mapped_address = u32::from(Register::Reg1);
    let nat = Expressions::Other {
        expression_type: "nat".to_owned(),
        attributes: vec![
            number(NFTA_NAT_TYPE, NFT_NAT_DNAT),
            number(NFTA_NAT_FAMILY, family.into()),
            number(NFTA_NAT_REG_ADDR_MIN, mapped_address),
            number(NFTA_NAT_REG_ADDR_MAX, mapped_address),
            number(NFTA_NAT_REG_PROTO_MIN, mapped_port),
            number(NFTA_NAT_REG_PROTO_MAX, mapped_port),
            number(NFTA_NAT_FLAGS, NF_NAT_RANGE_ADDRESS_AND_PORT),
        ],
    };
    expressions.extend([
        Expressions::Meta(load_protocol).into(),
        load_destination_port(port),
        Expressions::Lookup(lookup).into(),
        nat.into(),
    ]);
    expressions
}

/// The packet is of this transport protocol.
pub(crate) fn protocol_is(protocol: u8) -> Vec<Expression> {
    vec![load_meta(MetaKey::L4Proto), equals(vec![protocol])]
}

/// The packet is of this transport protocol, and its destination port is between these two, both included.
pub(crate) fn destination_port_in(protocol: u8, first: u16, last: u16) -> Vec<Expression> {
    let bytes = |port: u16| port.to_be_bytes().to_vec();
    let mut expressions = protocol_is(protocol);
    expressions.push(load_destination_port(Register::Reg1));
    if first == last {
        expressions.push(equals(bytes(first)));
    } else {
        expressions.push(compare(Operator::GreatherThanEqual, bytes(first)));
        expressions.push(compare(Operator::LessThanEqual, bytes(last)));
    }
    expressions
}

/// Loads the destination port. TCP, UDP and SCTP have it in one place (RFC 9293 section 3.1, RFC 768, RFC 9260 section 3.1).
fn load_destination_port(register: Register) -> Expression {
    load(TRANSPORT_HEADER, 2, 2, register)
}

/// Counts the packet.
pub(crate) fn count() -> Expression {
    Expressions::Other { expression_type: COUNTER.to_owned(), attributes: Vec::new() }.into()
}

/// Ends this chain for the packet; other chains still see it.
pub(crate) fn accept() -> Expression {
    verdict(NF_ACCEPT)
}

/// Drops the packet.
pub(crate) fn discard() -> Expression {
    verdict(NF_DROP)
}

/// Masquerades the packet.
pub(crate) fn masquerade() -> Expression {
    let flags = number(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
    Expressions::Other { expression_type: "masq".to_owned(), attributes: vec![flags] }.into()
}

/// The bytes of an address as a set holds it.
pub(crate) fn key(address: IpAddr) -> Vec<u8> {
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
    let family = if ipv4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
    vec![load_meta(MetaKey::Nfproto), equals(vec![family]), load_header_address(side, ipv4, Register::Reg1)]
}

/// Loads the address from its place in the header (RFC 791 section 3.1, RFC 8200 section 3).
fn load_header_address(side: Side, ipv4: bool, register: Register) -> Expression {
    load_from_header(side, ipv4, if ipv4 { 4 } else { 16 }, register)
}

/// Loads the first bytes of an address of a packet whose family is known.
pub(crate) fn load_address_bytes(side: Side, ipv4: bool, len: usize) -> Expression {
    load_from_header(side, ipv4, u32::try_from(len).unwrap_or_default(), Register::Reg1)
}

fn load_from_header(side: Side, ipv4: bool, len: u32, register: Register) -> Expression {
    load(NETWORK_HEADER, address_offset(side, ipv4), len, register)
}

/// Loads bytes of the packet, from a place after the beginning of one of its headers.
fn load(header: u32, offset: u32, len: u32, register: Register) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(header),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
    .into()
}

/// Where an address is in the header of a packet, in bytes.
const fn address_offset(side: Side, ipv4: bool) -> u32 {
    match (side, ipv4) {
        (Side::Source, true) => 12,
        (Side::Destination, true) => 16,
        (Side::Source, false) => 8,
        (Side::Destination, false) => 24,
    }
}

/// The register has this value.
pub(crate) fn equals(value: Vec<u8>) -> Expression {
    compare(Operator::Equal, value)
}

fn compare(operator: Operator, value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

/// The register, masked.
pub(crate) fn masked(mask: Vec<u8>) -> Expression {
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
