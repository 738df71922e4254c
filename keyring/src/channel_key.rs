//! The keys of the control channel: each direction of each slot of a pair of nodes has one, derived from both
//! static keys of that slot. So a rotation renews them, and nobody but the two nodes has them.

use std::fmt;

use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::secret::{LEN, Secret};
use crate::{KeyError, PrivateKey, PublicKey, Slot};

/// Separates these keys from any other use of the same shared secret.
const LABEL: &[u8] = b"meshd control channel key v2";

/// Length of a MAC in bytes: half of an HMAC-SHA256, the least that RFC 2104 section 5 allows.
pub const MAC_LEN: usize = 16;

/// A message authentication code.
pub type ChannelMac = [u8; MAC_LEN];

/// A key of one direction. Wiped on drop; it can't be printed.
pub struct ChannelKey(Secret);

/// The keys of both directions of one slot.
#[derive(Debug)]
pub struct ChannelKeys {
    /// For messages to the peer.
    pub send: ChannelKey,
    /// For messages from the peer.
    pub receive: ChannelKey,
}

impl ChannelKeys {
    /// Derives the keys (HKDF-SHA256, RFC 5869, without a salt) from this node's key and the peer's key of a slot.
    pub fn derive(own: &PrivateKey, peer: &PublicKey, slot: Slot) -> Result<Self, KeyError> {
        let public = own.public();
        let secret = StaticSecret::from(*own.expose());
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(*peer.as_bytes()));
        // Public keys of low order are refused when they are parsed; this holds whatever else is.
        if !shared.was_contributory() {
            return Err(KeyError::LowOrder);
        }
        let hkdf = Hkdf::<Sha256>::new(None, shared.as_bytes());
        let derive = |sender: &PublicKey, receiver: &PublicKey| {
            let mut key = Zeroizing::new([0; LEN]);
            // All parts have a fixed length. 32 bytes are well below the maximum of 8,160 (RFC 5869 section 2.3).
            let info: [&[u8]; 4] = [LABEL, slot.as_str().as_bytes(), sender.as_bytes(), receiver.as_bytes()];
            hkdf.expand_multi_info(&info, key.as_mut_slice()).map_err(|_| KeyError::Zero)?;
            Secret::take(&key).map(ChannelKey)
        };
        Ok(Self { send: derive(&public, peer)?, receive: derive(peer, &public)? })
    }
}

impl ChannelKey {
    /// The MAC of a message that consists of these parts; at most one of them may vary in length.
    pub fn mac(&self, parts: &[&[u8]]) -> ChannelMac {
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&self.hmac(parts).finalize().into_bytes()[..MAC_LEN]);
        mac
    }

    /// Whether that is the MAC of these parts. Compares in constant time.
    pub fn verify(&self, parts: &[&[u8]], mac: &ChannelMac) -> bool {
        self.hmac(parts).verify_truncated_left(mac).is_ok()
    }

    fn hmac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // Not `new_from_slice`, which returns a result: a key of the hash's block size is always accepted.
        let mut key = Zeroizing::new([0; 64]);
        key[..LEN].copy_from_slice(self.0.expose());
        let mut hmac = Hmac::<Sha256>::new((&*key).into());
        for part in parts {
            hmac.update(part);
        }
        hmac
    }
}

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn keys(own: u8, peer: u8, slot: Slot) -> ChannelKeys {
        ChannelKeys::derive(&private(own), &private(peer).public(), slot).unwrap()
    }

    #[test]
    fn both_ends_derive_the_same_and_each_direction_slot_and_pair_another() {
        let (here, there) = (keys(1, 2, Slot::A), keys(2, 1, Slot::A));
        let parts: [&[u8]; 2] = [b"header", b"message"];
        assert_eq!(here.send.mac(&parts), there.receive.mac(&parts));
        assert_eq!(here.receive.mac(&parts), there.send.mac(&parts));
        let mac = here.send.mac(&parts);
        assert!(there.receive.verify(&parts, &mac));
        assert!(!there.receive.verify(&[b"header", b"Message"], &mac));
        for other in
            [&here.receive, &keys(1, 2, Slot::B).send, &keys(1, 3, Slot::A).send, &keys(3, 2, Slot::A).send]
        {
            assert!(!other.verify(&parts, &mac));
        }
    }

    #[test]
    fn every_changed_bit_of_a_mac_is_noticed() {
        let key = keys(1, 2, Slot::A).send;
        let mac = key.mac(&[b"message"]);
        for bit in 0..8 * MAC_LEN {
            let mut changed = mac;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verify(&[b"message"], &changed), "bit {bit}");
        }
    }

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        // Test case 2: a short key, which HMAC pads with zeros, as it does with ours.
        let mut padded = [0; 32];
        padded[..4].copy_from_slice(b"Jefe");
        let key = ChannelKey(Secret::take(&padded).unwrap());
        let expected =
            [0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7];
        assert_eq!(key.mac(&[b"what do ya want ", b"for nothing?"]), expected);
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?}", keys(1, 2, Slot::A));
        assert_eq!(text, "ChannelKeys { send: ChannelKey(..), receive: ChannelKey(..) }");
    }
}
