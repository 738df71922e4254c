//! The cross-platform configuration protocol of WireGuard, which `wg` uses for userspace interfaces
//! (<https://www.wireguard.com/xplatform/>).

mod apply;
mod parse;
mod render;
mod server;

pub(crate) use self::server::Server;

/// Why a request was refused; the reply carries it as a negative number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) nix::errno::Errno);

/// The longest request in bytes: about 100,000 peers.
pub(crate) const LONGEST_REQUEST: usize = 16 << 20;
/// The longest line in bytes: the longest legitimate one is a key of 64 hexadecimal digits with its name.
pub(crate) const LONGEST_LINE: usize = 256;

/// Parses `bytes` as a request, for the fuzz target: whatever they are, the result is a value or a refusal.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check(bytes: &[u8]) {
    let _ = parse::parse(bytes);
}
