//! Policies of the chains FORWARD and INPUT of iptables' legacy variant, which netlink does not show.
#![expect(unsafe_code, reason = "its tables are read by socket options alone, which no crate in use wraps")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use plan::host::{DroppingChain, FilterHook};

/// The table that has both chains.
const TABLE: &str = "filter";
/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; those of IPv6 have the same numbers (`linux/netfilter_ipv4/ip_tables.h`).
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Length of a table's name in both structures (`XT_TABLE_MAXNAMELEN`).
const NAME: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, five entry points, five underflows, number of entries, size of all entries.
const INFO: usize = NAME + 4 * (1 + 5 + 5 + 2);
const UNDERFLOWS: usize = NAME + 4 * (1 + 5);
const SIZE: usize = INFO - 4;
/// `struct ipt_get_entries`: name, size, and the entries, aligned to 8 bytes.
const ENTRIES: usize = NAME + 8;
/// A target's header, before the verdict of a standard one (`struct xt_entry_target`).
const TARGET: usize = 32;
/// `NF_DROP` as a standard target has it: `-NF_DROP - 1`.
const DROP: i32 = -1;
/// Largest table that is read.
const LIMIT: u32 = 16 << 20;

struct Variant {
    family: &'static str,
    /// The tables that are in use. Asking for one that is not would set it up.
    tables: &'static str,
    bind: &'static str,
    level: i32,
    /// Where an entry says how far from its beginning the target is (`struct ipt_entry`, `struct ip6t_entry`).
    target_offset: usize,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        family: "ip",
        tables: "/proc/thread-self/net/ip_tables_names",
        bind: "127.0.0.1:0",
        level: libc::IPPROTO_IP,
        target_offset: 88,
    },
    Variant {
        family: "ip6",
        tables: "/proc/thread-self/net/ip6_tables_names",
        bind: "[::1]:0",
        level: libc::IPPROTO_IPV6,
        target_offset: 140,
    },
];

/// The chains whose policy drops, in tables that name none of these links. A table that can't be read counts as not there.
pub(super) fn dropping_chains(links: &[&str]) -> Vec<DroppingChain> {
    let chains = VARIANTS.iter().filter_map(|variant| read(variant, links).ok().flatten());
    chains.flatten().collect()
}

fn read(variant: &Variant, links: &[&str]) -> io::Result<Option<Vec<DroppingChain>>> {
    let tables = std::fs::read_to_string(variant.tables)?;
    if !tables.lines().any(|table| table == TABLE) {
        return Ok(None);
    }
    let socket = UdpSocket::bind(variant.bind)?;
    let mut info = named(INFO);
    option(socket.as_fd(), variant.level, GET_INFO, &mut info)?;
    let number = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let size = number(&info, SIZE).filter(|size| *size <= LIMIT).ok_or(io::ErrorKind::InvalidData)?;
    let mut table = named(ENTRIES + size as usize);
    table[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    option(socket.as_fd(), variant.level, GET_ENTRIES, &mut table)?;
    let entries = &table[ENTRIES..];
    if links.iter().any(|link| entries.windows(link.len()).any(|bytes| bytes == link.as_bytes())) {
        return Ok(None);
    }
    let drops = |hook: usize| {
        let entry = entries.get(number(&info, UNDERFLOWS + 4 * hook)? as usize..)?;
        let target = entry.get(variant.target_offset..variant.target_offset + 2)?;
        let target = usize::from(u16::from_ne_bytes(target.try_into().ok()?));
        Some(number(entry, target + TARGET)?.cast_signed() == DROP)
    };
    // `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
    let hooks = [(1, FilterHook::Input, "INPUT"), (2, FilterHook::Forward, "FORWARD")];
    let dropping = hooks.into_iter().filter(|(hook, ..)| drops(*hook) == Some(true));
    Ok(Some(
        dropping
            .map(|(_, hook, chain)| DroppingChain {
                hook,
                family: variant.family,
                table: TABLE.to_owned(),
                chain: chain.to_owned(),
                legacy: true,
            })
            .collect(),
    ))
}

/// A structure of so many bytes that begins with the table's name.
fn named(len: usize) -> Vec<u8> {
    let mut bytes = TABLE.as_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

/// Reads a socket option into a structure of which some fields are set.
fn option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has as many; both live until the call returns.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
