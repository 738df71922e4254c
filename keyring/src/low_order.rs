//! The points of low order on Curve25519, which no peer's public key may be.
//!
//! With such a point the shared secret is zero whatever the other side's key is (RFC 7748 section 6.1). A
//! multiplication would find them as well, but it costs a thousand times more, and every key of every node is parsed
//! on every turn of the reconcile loop.

use crate::secret::LEN;

/// Every encoding of a u-coordinate of order 1, 2, 4 or 8, on the curve or its twist, with the top bit cleared.
///
/// The list is that of <https://cr.yp.to/ecdh.html#validate>, without the entries from 2^255 on: X25519 ignores the top
/// bit and reads those as other numbers, which are not of low order. Only u < 19 has a second encoding, u + p, below
/// 2^255, so 0 and 1 are the only ones that appear twice.
const LOW_ORDER: [[u8; LEN]; 7] = [
    // 0
    [0; LEN],
    // 1
    [
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ],
    // 325606250916557431795983626356110631294008115727848805560023387167927233504
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    // 39382357235489614581723060781553021112529911719440698176882885853963445705823
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    // p - 1
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    // p, which is 0
    [
        0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
    // p + 1, which is 1
    [
        0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

/// Whether these bytes encode a point of low order. X25519 ignores the top bit (RFC 7748 section 5), so this does too.
///
/// Not in constant time: the argument is a public key.
pub(crate) fn is_low_order(bytes: &[u8; LEN]) -> bool {
    let mut masked = *bytes;
    masked[LEN - 1] &= 0x7f;
    LOW_ORDER.contains(&masked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use x25519_dalek::{PublicKey, StaticSecret};

    use super::*;

    /// The definition: a clamped scalar is a multiple of the cofactor 8, so it maps the points of low order, and no
    /// others, to zero.
    fn multiplies_to_zero(bytes: &[u8; LEN]) -> bool {
        !StaticSecret::from([1; LEN]).diffie_hellman(&PublicKey::from(*bytes)).was_contributory()
    }

    fn agree(bytes: &[u8; LEN]) {
        assert_eq!(is_low_order(bytes), multiplies_to_zero(bytes), "{bytes:02x?}");
    }

    /// Adds to a little-endian number, modulo 2^256.
    fn plus(bytes: &[u8; LEN], addend: i16) -> [u8; LEN] {
        let mut sum = *bytes;
        let mut carry = addend;
        for byte in &mut sum {
            carry += i16::from(*byte);
            *byte = u8::try_from(carry.rem_euclid(256)).unwrap();
            carry = carry.div_euclid(256);
        }
        sum
    }

    #[test]
    fn every_entry_multiplies_to_zero_with_either_top_bit() {
        for entry in LOW_ORDER {
            let mut with_top_bit = entry;
            with_top_bit[LEN - 1] |= 0x80;
            for bytes in [entry, with_top_bit] {
                assert!(is_low_order(&bytes) && multiplies_to_zero(&bytes), "{bytes:02x?}");
            }
        }
    }

    #[test]
    fn neighbours_of_the_entries_agree_with_the_multiplication() {
        for entry in LOW_ORDER {
            for distance in -40..=40 {
                let mut bytes = plus(&entry, distance);
                agree(&bytes);
                bytes[LEN - 1] ^= 0x80;
                agree(&bytes);
            }
        }
    }

    #[test]
    fn bit_flips_of_the_entries_agree_with_the_multiplication() {
        for entry in LOW_ORDER {
            for bit in 0..8 * LEN {
                let mut flipped = entry;
                flipped[bit / 8] ^= 1 << (bit % 8);
                agree(&flipped);
            }
        }
    }

    #[test]
    fn non_canonical_encodings_agree_with_the_multiplication() {
        // p to 2^255 - 1, and the same with the top bit set.
        let p = LOW_ORDER[5];
        for distance in 0..19 {
            let mut bytes = plus(&p, distance);
            assert_eq!(bytes[LEN - 1], 0x7f);
            agree(&bytes);
            bytes[LEN - 1] |= 0x80;
            agree(&bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn random_bytes_agree_with_the_multiplication(bytes: [u8; LEN]) {
            agree(&bytes);
        }

        #[test]
        fn damaged_entries_agree_with_the_multiplication(
            entry in 0..LOW_ORDER.len(),
            damage in proptest::collection::vec((0..LEN, any::<u8>()), 1..4),
        ) {
            let mut bytes = LOW_ORDER[entry];
            for (at, value) in damage {
                bytes[at] = value;
            }
            agree(&bytes);
        }
    }
}
