//! Control messages. Probes are padded with zeros. Those of version 1 follow a version byte and nothing else; the others
//! are the body of an authenticated datagram (see [`super::session`]).

use std::net::SocketAddr;

use keyring::Slot;
use keyring::audit::Head;
use keyring::rotation::PeerId;
use plan::leases::{Answer, Question};
use serde::{Deserialize, Serialize};

/// The version without authentication: the first byte of its datagrams.
pub(super) const UNAUTHENTICATED: u8 = 1;
/// Longest message in bytes: one about preshared keys, with the version, its kind and its length. Where it does not fit
/// the mesh MTU, together with what authenticates it, the kernel splits the datagram in front of the tunnel.
pub(crate) const MAX_LEN: usize = keyring::pq::MAX_MESSAGE_LEN + 1 + 1 + 2;
/// Longest datagram in bytes, a probe: what fits common jumbo frames.
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
    /// "This is where your datagrams come from." On the slot that it arrives on.
    Seen(SocketAddr),
    /// "I send to your mapped address of this slot now; send to mine."
    Invite(Slot),
    /// "So many of your datagrams did not authenticate here."
    Forged {
        /// The slot on which they arrived.
        slot: Slot,
        /// How many within the last seconds.
        count: u64,
    },
    /// "Let me reach this peer over you."
    ToRelay {
        /// The other end.
        peer: PeerId,
        /// The slot of the tunnel with it.
        slot: Slot,
        /// What is asked.
        question: Question,
    },
    /// The answer of a relay, or its word that the other end has asked.
    FromRelay {
        /// The other end.
        peer: PeerId,
        /// The slot of the tunnel with it.
        slot: Slot,
        /// What it says.
        answer: Answer,
    },
    /// "This is where I am now": the list of endpoints that this node will publish, as it would be in the annotation.
    Here(String),
    /// "I have no path to this peer. Tell it where I am, and me where it is."
    Locate {
        /// The peer.
        peer: PeerId,
        /// The list of the one that asks.
        list: String,
    },
    /// "This peer looks for you, and this is where it says that it is."
    Meet {
        /// The peer.
        peer: PeerId,
        /// Its list, as it told the neighbour; empty if it has told none.
        list: String,
    },
    /// "This is my time": handshakes of this node from before are not to be accepted once the peer's device has another
    /// preshared key.
    Clock {
        /// Milliseconds since 1970 by this node's wall clock, which its handshakes' timestamps are from.
        millis: u64,
    },
}

impl Message {
    /// Encodes a message after `head`. The length of a probe includes the head.
    pub(super) fn encode(&self, head: &[u8]) -> Vec<u8> {
        // Numbers, a hash and an enumeration always serialize.
        let mut bytes = postcard::to_extend(self, head.to_vec()).unwrap_or_default();
        if let Self::Probe { len, .. } = self {
            bytes.resize(bytes.len().max(usize::from(*len).min(MAX_PROBE_LEN)), 0);
        }
        bytes
    }

    /// Decodes exactly one message after `head` bytes.
    pub(super) fn decode(bytes: &[u8], head: usize) -> Result<Self, MessageError> {
        if bytes.len() > MAX_PROBE_LEN {
            return Err(MessageError::Length { found: bytes.len() });
        }
        let rest = bytes.get(head..).ok_or(MessageError::Length { found: bytes.len() })?;
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
    /// Not exactly one message.
    #[error("control message: expected exactly one message")]
    Content,
}

#[cfg(test)]
mod tests {
    use super::super::session::tests::Dice;
    use super::*;

    fn messages() -> [Message; 18] {
        let peer = PeerId::new("d5e0ae7b-7d5e-4f0c-9b1a-0f1e2d3c4b5a");
        let to = |question| Message::ToRelay { peer: peer.clone(), slot: Slot::A, question };
        let from = |answer| Message::FromRelay { peer: peer.clone(), slot: Slot::B, answer };
        let distance = Some(std::time::Duration::MAX);
        [
            Message::Probe { nonce: 7, len: 0 },
            Message::Echo { nonce: u64::MAX },
            Message::Ask { nonce: u64::MAX },
            Message::Answer { nonce: 1, seen: 1 << 53, tx: Slot::B },
            Message::Head(Head { seq: 77, hash: [0xa5; 32] }),
            Message::Pair(vec![1; keyring::pq::MAX_MESSAGE_LEN]),
            Message::Invite(Slot::B),
            Message::Seen("[2001:db8::1]:51840".parse().unwrap()),
            Message::Forged { slot: Slot::B, count: 77 },
            to(Question::Lease { wanted: true }),
            to(Question::Distance),
            from(Answer::Leased { port: u16::MAX, both: true, distance }),
            from(Answer::Refused(plan::leases::Refusal::NotAMember)),
            from(Answer::Offered { wanted: false }),
            Message::Here("x".repeat(plan::annotation::MAX_LEN)),
            Message::Locate { peer: peer.clone(), list: "x".repeat(plan::annotation::MAX_LEN) },
            Message::Meet { peer: peer.clone(), list: String::new() },
            Message::Clock { millis: u64::MAX },
        ]
    }

    #[test]
    fn decoding_returns_what_was_encoded() {
        for message in messages() {
            for head in [&[][..], &[UNAUTHENTICATED]] {
                let bytes = message.encode(head);
                assert!(bytes.len() <= MAX_LEN && bytes.starts_with(head));
                assert_eq!(Message::decode(&bytes, head.len()), Ok(message.clone()));
            }
        }
    }

    #[test]
    fn truncated_and_longer_ones_are_refused() {
        for message in messages() {
            let whole = message.encode(&[UNAUTHENTICATED]);
            for len in 0..whole.len() {
                assert!(Message::decode(&whole[..len], 1).is_err(), "{len} of {} bytes", whole.len());
            }
            let longer = [whole.as_slice(), &[0]].concat();
            assert!(Message::decode(&longer, 1).is_err(), "{message:?}");
        }
        assert_eq!(Message::decode(&[1; 9001], 0), Err(MessageError::Length { found: 9001 }));
        let long = [Message::Ask { nonce: 1 }.encode(&[]).as_slice(), &[0; 1300]].concat();
        assert_eq!(Message::decode(&long, 0), Err(MessageError::Length { found: long.len() }));
    }

    /// What a member of the mesh may send: its MAC is right.
    #[test]
    fn damaged_messages_are_refused_or_are_others() {
        let messages = messages();
        let mut dice = Dice(11);
        let mut below = |most| dice.below(most);
        let mut read = 0;
        for round in 0..140_000 {
            let mut bytes = messages[round % messages.len()].encode(&[]);
            for _ in 0..=below(3) {
                let at = below(bytes.len().clamp(1, 64));
                bytes.resize(bytes.len().max(1), 0);
                match below(4) {
                    0 => bytes[at] ^= 1 << below(8),
                    1 => bytes[at] = 0xff,
                    2 => bytes.insert(at, u8::try_from(below(256)).unwrap_or_default()),
                    _ => drop(bytes.drain(at..bytes.len().min(at + 1 + below(8)))),
                }
                bytes.push(0);
                bytes.pop_if(|_| below(8) > 0);
            }
            if let Ok(message) = Message::decode(&bytes, 0) {
                read += 1;
                assert!(bytes.len() <= MAX_LEN || matches!(message, Message::Probe { .. }), "{message:?}");
                // A probe that states more than a datagram can have is answered, and never encoded.
                if !matches!(message, Message::Probe { len, .. } if usize::from(len) > MAX_PROBE_LEN) {
                    assert_eq!(Message::decode(&message.encode(&[]), 0), Ok(message));
                }
            }
        }
        assert!(read > 10_000, "only {read} were read");
    }

    #[test]
    fn a_probe_has_the_stated_length_and_is_padded_with_zeros() {
        for len in [100, 1392, 9000] {
            let probe = Message::Probe { nonce: 7, len };
            for head in [&[][..], &[UNAUTHENTICATED]] {
                let bytes = probe.encode(head);
                assert_eq!(bytes.len(), usize::from(len));
                assert_eq!(Message::decode(&bytes, head.len()), Ok(probe.clone()));
                let short = &bytes[..bytes.len() - 1];
                assert_eq!(Message::decode(short, head.len()), Err(MessageError::Content));
                let mut filled = bytes;
                *filled.last_mut().unwrap() = 1;
                assert_eq!(Message::decode(&filled, head.len()), Err(MessageError::Content));
            }
        }
    }
}
