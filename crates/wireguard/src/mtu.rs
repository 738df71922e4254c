//! Bounds of the MTU of a WireGuard link.

use std::ops::RangeInclusive;

/// The smallest MTU in bytes: what IPv6 requires (RFC 8200 section 5). Over a smaller underlay the outer datagrams are
/// fragmented.
pub const MIN_MTU: u32 = 1280;
/// Valid MTUs in bytes; the upper bound is that of a packet's length field.
pub const MTU_RANGE: RangeInclusive<u32> = MIN_MTU..=65_535;
/// [`MTU_RANGE`] in words, for messages that say what was expected.
pub const MTU_EXPECTED: &str = "an MTU from 1280 to 65535 bytes";
/// Bytes that WireGuard adds to a packet at most: 40 of IPv6, 8 of UDP, 32 of its own. The same for IPv4 endpoints, so
/// that a peer's MTU does not depend on the address family of its endpoint.
pub const OVERHEAD: u32 = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_say_what_the_range_is() {
        let (first, last) = (MTU_RANGE.start(), MTU_RANGE.end());
        assert_eq!(MTU_EXPECTED, format!("an MTU from {first} to {last} bytes"));
    }
}
