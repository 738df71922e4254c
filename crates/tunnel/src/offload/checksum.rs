//! The Internet checksum (RFC 1071). Sums are kept in the byte order of the machine, where they are the same sum.

/// The sum over `bytes` as 16-bit words, not folded and not complemented; an odd last byte is padded with zero.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // Halves of 32 bits in 64 never overflow below 16 GiB, and the compiler makes vectors of this loop.
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let (words, rest) = rest.as_chunks::<2>();
    total += words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum::<u64>();
    if let [last] = rest {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The sum over one 16-bit number as it is in a packet.
pub(super) fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// The sum folded to 16 bits, as a number: what a partial checksum field holds.
pub(super) fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Below 65,536 after the loop.
    u16::from_be(u16::try_from(sum).unwrap_or(0))
}

/// The checksum: the complement of the folded sum.
pub(super) fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_the_example_of_rfc_1071() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(finish(sum(&[])), 0xffff);
        assert_eq!(fold(sum(&[0x12])), 0x1200);
        assert_eq!(fold(word(0x1234)), 0x1234);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut plain: u32 = 0;
            for pair in bytes.chunks(2) {
                plain += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                plain = (plain & 0xffff) + (plain >> 16);
            }
            prop_assert_eq!(u32::from(fold(sum(&bytes))), plain);
        }
    }
}
