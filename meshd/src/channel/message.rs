//! Control messages: a version byte, then the message. Probes are padded with zeros.

use keyring::Slot;
use keyring::audit::Head;
use serde::{Deserialize, Serialize};

/// The version that this code sends and accepts.
const VERSION: u8 = 1;
/// Longest message in bytes: what fits the smallest mesh MTU with IPv6 and UDP headers of 40 and 8 bytes.
pub(crate) const MAX_LEN: usize = wireguard::MIN_MTU as usize - 40 - 8;
/// Longest probe in bytes: what fits common jumbo frames.
pub(crate) const MAX_PROBE_LEN: usize = 9000;

/// Messages between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// "Which of my generations have you applied?"
    Ask {
        /// Identifies the question.
        nonce: u64,
    },
    /// The answer.
    Answer {
        /// Identifies the question.
        nonce: u64,
        /// The asker's generation that this node has applied: its peers, routes and stored state match it.
        seen: u64,
        /// The slot on which this node sends to the asker.
        tx: Slot,
    },
    /// "Did this arrive?" The only message of variable length.
    Probe {
        /// Identifies the probe.
        nonce: u64,
        /// Length of the whole message in bytes, including padding.
        len: u16,
    },
    /// "It did."
    Echo {
        /// Identifies the probe.
        nonce: u64,
    },
    /// "My audit trail ends here; remember it."
    Head(Head),
    /// A message of the preshared key exchange, in its own encoding.
    Pair(Vec<u8>),
}

impl Message {
    /// Encodes a message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers, a hash and an enumeration always serialize.
        let mut bytes = postcard::to_extend(self, vec![VERSION]).unwrap_or_default();
        if let Self::Probe { len, .. } = self {
            bytes.resize(bytes.len().max(usize::from(*len).min(MAX_PROBE_LEN)), 0);
        }
        bytes
    }

    /// Decodes a datagram that holds exactly one message.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MAX_PROBE_LEN {
            return Err(MessageError::Length { found: bytes.len() });
        }
        let (version, rest) = bytes.split_first().ok_or(MessageError::Length { found: 0 })?;
        if *version != VERSION {
            return Err(MessageError::Version { found: *version });
        }
        match postcard::take_from_bytes(rest) {
            Ok((Self::Probe { nonce, len }, rest)) => {
                let whole = rest.is_empty() || bytes.len() == usize::from(len);
                let padded = rest.iter().all(|byte| *byte == 0);
                if whole && padded { Ok(Self::Probe { nonce, len }) } else { Err(MessageError::Content) }
            }
            Ok(_) if bytes.len() > MAX_LEN => Err(MessageError::Length { found: bytes.len() }),
            Ok((message, [])) => Ok(message),
            _ => Err(MessageError::Content),
        }
    }
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// Empty, or longer than any message.
    #[error("control message of {found} bytes: expected 1 to {MAX_LEN}, a probe at most {MAX_PROBE_LEN}")]
    Length {
        /// Its length.
        found: usize,
    },
    /// Another version.
    #[error("control message version {found}: expected {VERSION}")]
    Version {
        /// The version.
        found: u8,
    },
    /// Not exactly one message.
    #[error("control message: expected exactly one message")]
    Content,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> [Message; 6] {
        [
            Message::Probe { nonce: 7, len: 0 },
            Message::Echo { nonce: u64::MAX },
            Message::Ask { nonce: u64::MAX },
            Message::Answer { nonce: 1, seen: 1 << 53, tx: Slot::B },
            Message::Head(Head { seq: 77, hash: [0xa5; 32] }),
            Message::Pair(vec![1; keyring::pq::MAX_MESSAGE_LEN]),
        ]
    }

    #[test]
    fn decoding_returns_what_was_encoded() {
        for message in messages() {
            let bytes = message.encode();
            assert!(bytes.len() <= MAX_LEN);
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
    }

    #[test]
    fn truncated_longer_and_other_versions_are_refused() {
        for message in messages() {
            let whole = message.encode();
            for len in 0..whole.len() {
                assert!(Message::decode(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
            }
            let longer = [whole.as_slice(), &[0]].concat();
            assert_eq!(Message::decode(&longer), Err(MessageError::Content));
            let mut newer = whole;
            newer[0] = 2;
            assert_eq!(Message::decode(&newer), Err(MessageError::Version { found: 2 }));
        }
        assert_eq!(Message::decode(&[1; 9001]), Err(MessageError::Length { found: 9001 }));
        let long = [Message::Ask { nonce: 1 }.encode().as_slice(), &[0; 1300]].concat();
        assert_eq!(Message::decode(&long), Err(MessageError::Length { found: long.len() }));
    }

    #[test]
    fn a_probe_has_the_stated_length_and_is_padded_with_zeros() {
        for len in [100, 1392, 9000] {
            let probe = Message::Probe { nonce: 7, len };
            let bytes = probe.encode();
            assert_eq!(bytes.len(), usize::from(len));
            assert_eq!(Message::decode(&bytes), Ok(probe));
            assert_eq!(Message::decode(&bytes[..bytes.len() - 1]), Err(MessageError::Content));
            let mut filled = bytes;
            *filled.last_mut().unwrap() = 1;
            assert_eq!(Message::decode(&filled), Err(MessageError::Content));
        }
    }
}
