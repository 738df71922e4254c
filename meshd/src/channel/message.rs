//! Control messages: one byte of version, then the message; a probe is filled up with zeros.

use keyring::Slot;
use keyring::audit::Head;
use serde::{Deserialize, Serialize};

/// The version that this code writes and reads.
const VERSION: u8 = 1;
/// Longest message in bytes: what fits the smallest mesh MTU with IPv6 and UDP (1280 - 40 - 8).
pub(crate) const LONGEST: usize = 1232;
/// Longest probe in bytes: what fits the MTU of the largest usual frames.
pub(crate) const LONGEST_PROBE: usize = 9000;

/// What nodes say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// "Which of my announcements do you heed?"
    Ask {
        /// Number of the question.
        nonce: u64,
    },
    /// The answer.
    Answer {
        /// Number of the question.
        nonce: u64,
        /// The asker's generation that this node heeds: its peers, routes and memory are as it asks.
        seen: u64,
        /// The slot that this node sends to the asker on.
        tx: Slot,
    },
    /// "Did this arrive?" The only message that is as long as somebody wants it.
    Probe {
        /// Number of the probe.
        nonce: u64,
        /// Length of the whole message in bytes, if it is longer than it has to be.
        len: u16,
    },
    /// "It did."
    Echo {
        /// Number of the probe.
        nonce: u64,
    },
    /// "My audit trail ends here; remember it."
    Head(Head),
    /// Something about the preshared keys of the two, in that protocol's own bytes.
    Pair(Vec<u8>),
}

impl Message {
    /// Writes a message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers, a hash and an enumeration always serialize.
        let mut bytes = postcard::to_extend(self, vec![VERSION]).unwrap_or_default();
        if let Self::Probe { len, .. } = self {
            bytes.resize(bytes.len().max(usize::from(*len).min(LONGEST_PROBE)), 0);
        }
        bytes
    }

    /// Reads a message. Nothing that is not one exactly is taken for one.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > LONGEST_PROBE {
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
            Ok(_) if bytes.len() > LONGEST => Err(MessageError::Length { found: bytes.len() }),
            Ok((message, [])) => Ok(message),
            _ => Err(MessageError::Content),
        }
    }
}

/// Why a datagram is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// Empty, or longer than any message.
    #[error("control message of {found} bytes: expected 1 to {LONGEST}, a probe at most {LONGEST_PROBE}")]
    Length {
        /// Its length.
        found: usize,
    },
    /// From another version.
    #[error("control message of version {found}: this version reads {VERSION}")]
    Version {
        /// The version.
        found: u8,
    },
    /// Not one message and nothing else.
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
    fn what_was_written_is_read() {
        for message in messages() {
            let bytes = message.encode();
            assert!(bytes.len() <= LONGEST);
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
    }

    #[test]
    fn what_is_cut_off_longer_or_of_another_version_is_refused() {
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
    fn a_probe_is_as_long_as_it_says_and_padded_with_zeros() {
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
