//! Refuses datagrams that any router has passed on, in the kernel, before they reach this process.

use std::io;

use socket2::{SockFilter, Socket};

/// The hops that a datagram starts with and must still have.
pub(super) const MAX_HOPS: u8 = 255;

// Classic BPF (`include/uapi/linux/bpf_common.h`): load a byte, jump if equal, return.
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Offsets are counted from the IP header (`SKF_NET_OFF` in `include/uapi/linux/filter.h`).
const IP_HEADER: u32 = (-0x10_0000_i32).cast_unsigned();
/// Offsets of TTL and hop limit: RFC 791 section 3.1 and RFC 8200 section 3.
const TTL: u32 = 8;
const HOP_LIMIT: u32 = 7;

/// Lets a socket receive only datagrams whose TTL or hop limit is 255 (RFC 5082 section 3). A filter, because the kernel
/// applies `IP_MINTTL` to TCP only.
pub(super) fn require_max_hops(socket: &Socket, ipv4: bool) -> io::Result<()> {
    let offset = IP_HEADER.wrapping_add(if ipv4 { TTL } else { HOP_LIMIT });
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, offset),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, u32::from(MAX_HOPS)),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ])
}
