//! Messages about preshared keys, and their encoding.
//!
//! A message is a kind, a slot where there is one, numbers in network byte order, and material preceded by
//! its length. It is sent in a datagram of the control channel, which adds a version of its own.

use super::agreement::{ContextDigest, Tag};
use crate::{PerSlot, PresharedId, Slot};

/// Longest material of an offer in bytes: an ML-KEM-768 encapsulation key (FIPS 203, table 3).
pub const MAX_OFFER_LEN: usize = 1184;
/// Longest material of an answer in bytes: an ML-KEM-768 ciphertext (FIPS 203, table 3).
pub const MAX_ANSWER_LEN: usize = 1088;
/// Longest message in bytes. With the channel's own bytes it fits a datagram of 1,232 bytes, the payload that
/// the smallest mesh MTU leaves (1280 - 40 - 8).
pub const MAX_MESSAGE_LEN: usize = 1 + 1 + 8 + 4 + 16 + 2 + MAX_OFFER_LEN;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The sender's state.
    Hello(Hello),
    /// An offer to agree on a key for a slot, from the node with the lower UID.
    Offer(Offer),
    /// The answer to an offer, with a proof that the sender has the key.
    Accept(Accept),
    /// The initiator has the key and uses it, with a proof.
    Confirm {
        /// The slot.
        slot: Slot,
        /// The epoch that was agreed on.
        epoch: u64,
        /// Key confirmation.
        tag: Tag,
    },
    /// An offer or a confirmation is refused.
    Refuse {
        /// The slot.
        slot: Slot,
        /// The epoch that is refused.
        epoch: u64,
        /// Why.
        why: Refusal,
    },
    /// An offer is cancelled: its key is not used and won't be.
    Cancel {
        /// The slot.
        slot: Slot,
        /// The epoch of the offer.
        epoch: u64,
    },
}

/// A node's state towards a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Number of the hello; the upper half is chosen at random when the sender starts.
    pub number: u64,
    /// The number of the peer's hello that this one answers.
    pub answers: Option<u64>,
    /// Whether the sender uses preshared keys.
    pub willing: bool,
    /// The preshared key on each slot that the sender uses or is about to use.
    pub held: PerSlot<Option<PresharedId>>,
}

/// An offer to agree on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The slot that it is for. The sender does not send on it, and uses the key only once the peer does not
    /// either.
    pub slot: Slot,
    /// The epoch of the key between the two nodes; the initiator chooses it.
    pub epoch: u64,
    /// How often this offer was sent; the answer repeats it.
    pub attempt: u32,
    /// Digest of the context that the key is bound to, as the sender knows it.
    pub context: ContextDigest,
    /// The provider's offer.
    pub material: Vec<u8>,
}

/// The answer to an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The slot of the offer. The sender does not send on it.
    pub slot: Slot,
    /// The epoch of the offer.
    pub epoch: u64,
    /// The attempt that this answers.
    pub attempt: u32,
    /// The provider's answer.
    pub material: Vec<u8>,
    /// Key confirmation over both halves.
    pub tag: Tag,
}

/// Why a node refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It uses no preshared keys, by configuration.
    Off,
    /// Not now: the other slot is being drained.
    Busy,
    /// It knows other static keys for this slot: one of the two has not learnt of a change yet.
    Keys,
    /// The epoch is not a little later than its last one.
    Stale {
        /// Its last epoch.
        epoch: u64,
    },
    /// It knows of no such exchange: it has restarted since.
    Unknown,
    /// The proof or the material is invalid: something was changed in transit.
    Changed,
}

impl Refusal {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Busy => "busy",
            Self::Keys => "keys",
            Self::Stale { .. } => "epoch",
            Self::Unknown => "unknown",
            Self::Changed => "changed",
        }
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Truncated, or too long.
    #[error("message of {found} bytes about preshared keys: wrong length for its kind")]
    Length {
        /// Its length.
        found: usize,
    },
    /// A kind, slot, flag or reason that this version does not know.
    #[error("message about preshared keys: unknown value {found} at byte {at}")]
    Value {
        /// The value.
        found: u8,
        /// Its offset.
        at: usize,
    },
    /// Material that is empty or too long.
    #[error("message about preshared keys: material of {found} bytes, expected 1 to {most}")]
    Material {
        /// Its length.
        found: usize,
        /// The most that there may be.
        most: usize,
    },
}

const HELLO: u8 = 1;
const OFFER: u8 = 2;
const ACCEPT: u8 = 3;
const CONFIRM: u8 = 4;
const REFUSE: u8 = 5;
const CANCEL: u8 = 6;

const ANSWERS: u8 = 1;
const WILLING: u8 = 2;
const HELD_A: u8 = 4;
const HELD_B: u8 = 8;

impl Message {
    /// Encodes a message: at most [`MAX_MESSAGE_LEN`] bytes, if its material is within limits.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_MESSAGE_LEN);
        match self {
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Offer(offer) => {
                head(&mut out, OFFER, offer.slot, offer.epoch);
                out.extend(offer.attempt.to_be_bytes());
                out.extend(offer.context);
                material(&mut out, &offer.material);
            }
            Self::Accept(accept) => {
                head(&mut out, ACCEPT, accept.slot, accept.epoch);
                out.extend(accept.attempt.to_be_bytes());
                out.extend(accept.tag);
                material(&mut out, &accept.material);
            }
            Self::Confirm { slot, epoch, tag } => {
                head(&mut out, CONFIRM, *slot, *epoch);
                out.extend(tag);
            }
            Self::Refuse { slot, epoch, why } => {
                head(&mut out, REFUSE, *slot, *epoch);
                match why {
                    Refusal::Off => out.push(1),
                    Refusal::Busy => out.push(2),
                    Refusal::Keys => out.push(3),
                    Refusal::Stale { epoch } => {
                        out.push(4);
                        out.extend(epoch.to_be_bytes());
                    }
                    Refusal::Unknown => out.push(5),
                    Refusal::Changed => out.push(6),
                }
            }
            Self::Cancel { slot, epoch } => head(&mut out, CANCEL, *slot, *epoch),
        }
        out
    }

    /// Decodes a message. Anything that is not exactly one message is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader { bytes, at: 0 };
        let message = match reader.byte()? {
            HELLO => Self::Hello(Hello::decode(&mut reader)?),
            OFFER => Self::Offer(Offer {
                slot: reader.slot()?,
                epoch: u64::from_be_bytes(reader.array()?),
                attempt: u32::from_be_bytes(reader.array()?),
                context: reader.array()?,
                material: reader.material(MAX_OFFER_LEN)?,
            }),
            ACCEPT => Self::Accept(Accept {
                slot: reader.slot()?,
                epoch: u64::from_be_bytes(reader.array()?),
                attempt: u32::from_be_bytes(reader.array()?),
                tag: reader.array()?,
                material: reader.material(MAX_ANSWER_LEN)?,
            }),
            CONFIRM => Self::Confirm {
                slot: reader.slot()?,
                epoch: u64::from_be_bytes(reader.array()?),
                tag: reader.array()?,
            },
            REFUSE => Self::Refuse {
                slot: reader.slot()?,
                epoch: u64::from_be_bytes(reader.array()?),
                why: match reader.byte()? {
                    1 => Refusal::Off,
                    2 => Refusal::Busy,
                    3 => Refusal::Keys,
                    4 => Refusal::Stale { epoch: u64::from_be_bytes(reader.array()?) },
                    5 => Refusal::Unknown,
                    6 => Refusal::Changed,
                    _ => return Err(reader.unknown()),
                },
            },
            CANCEL => Self::Cancel { slot: reader.slot()?, epoch: u64::from_be_bytes(reader.array()?) },
            _ => return Err(reader.unknown()),
        };
        if reader.at == bytes.len() { Ok(message) } else { Err(MessageError::Length { found: bytes.len() }) }
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.answers.is_some(), ANSWERS)
            | flag(self.willing, WILLING)
            | flag(self.held.a.is_some(), HELD_A)
            | flag(self.held.b.is_some(), HELD_B);
        out.extend([HELLO, flags]);
        out.extend(self.number.to_be_bytes());
        out.extend(self.answers.iter().flat_map(|answers| answers.to_be_bytes()));
        out.extend(self.held.iter().filter_map(|(_, held)| *held).flat_map(|held| *held.as_bytes()));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let flags = reader.byte()?;
        if flags & !(ANSWERS | WILLING | HELD_A | HELD_B) != 0 {
            return Err(reader.unknown());
        }
        let number = u64::from_be_bytes(reader.array()?);
        let answers = match flags & ANSWERS {
            0 => None,
            _ => Some(u64::from_be_bytes(reader.array()?)),
        };
        let held = PerSlot::try_from_fn(|slot| {
            let flag = if slot == Slot::A { HELD_A } else { HELD_B };
            (flags & flag != 0).then(|| reader.array().map(PresharedId::from_bytes)).transpose()
        })?;
        Ok(Self { number, answers, willing: flags & WILLING != 0, held })
    }
}

fn head(out: &mut Vec<u8>, kind: u8, slot: Slot, epoch: u64) {
    out.extend([kind, u8::from(slot == Slot::B)]);
    out.extend(epoch.to_be_bytes());
}

fn material(out: &mut Vec<u8>, material: &[u8]) {
    // Providers give at most `MAX_OFFER_LEN` bytes; a longer one would be refused by the receiver.
    out.extend(u16::try_from(material.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(material);
}

/// Reads from the front and never beyond the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], MessageError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let taken = taken.ok_or(MessageError::Length { found: self.bytes.len() })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], MessageError> {
        let mut array = [0; LEN];
        array.copy_from_slice(self.take(LEN)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, MessageError> {
        self.array().map(|[byte]| byte)
    }

    fn slot(&mut self) -> Result<Slot, MessageError> {
        match self.byte()? {
            0 => Ok(Slot::A),
            1 => Ok(Slot::B),
            _ => Err(self.unknown()),
        }
    }

    fn material(&mut self, most: usize) -> Result<Vec<u8>, MessageError> {
        let found = usize::from(u16::from_be_bytes(self.array()?));
        if !(1..=most).contains(&found) {
            return Err(MessageError::Material { found, most });
        }
        self.take(found).map(<[u8]>::to_vec)
    }

    /// The last byte read is not a known value.
    fn unknown(&self) -> MessageError {
        let at = self.at.saturating_sub(1);
        MessageError::Value { found: self.bytes.get(at).copied().unwrap_or_default(), at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<Message> {
        let id = |byte| Some(PresharedId::from_bytes([byte; 8]));
        let hello = |answers, held| {
            Message::Hello(Hello { number: u64::MAX, answers, willing: answers.is_none(), held })
        };
        let offer = Offer {
            slot: Slot::B,
            epoch: 1 << 60,
            attempt: 77,
            context: [0xa5; 16],
            material: vec![3; MAX_OFFER_LEN],
        };
        let accept = Accept {
            slot: Slot::A,
            epoch: 9,
            attempt: 1,
            material: vec![4; MAX_ANSWER_LEN],
            tag: [0x5a; 32],
        };
        let refuse = |why| Message::Refuse { slot: Slot::A, epoch: 2, why };
        vec![
            hello(None, PerSlot { a: None, b: None }),
            hello(Some(1), PerSlot { a: id(1), b: None }),
            hello(None, PerSlot { a: None, b: id(2) }),
            hello(Some(u64::MAX), PerSlot { a: id(1), b: id(2) }),
            Message::Offer(offer.clone()),
            Message::Offer(Offer { material: vec![1], ..offer }),
            Message::Accept(accept),
            Message::Confirm { slot: Slot::B, epoch: 3, tag: [7; 32] },
            refuse(Refusal::Off),
            refuse(Refusal::Busy),
            refuse(Refusal::Keys),
            refuse(Refusal::Stale { epoch: u64::MAX }),
            refuse(Refusal::Unknown),
            refuse(Refusal::Changed),
            Message::Cancel { slot: Slot::A, epoch: 0 },
        ]
    }

    #[test]
    fn what_was_written_is_read() {
        let longest = messages().iter().map(|message| message.encode().len()).max();
        assert_eq!(longest, Some(MAX_MESSAGE_LEN));
        for message in messages() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn what_is_cut_off_or_longer_is_refused() {
        for message in messages() {
            let whole = message.encode();
            for len in 0..whole.len() {
                assert!(Message::decode(&whole[..len]).is_err(), "{len} of {message:?}");
            }
            let longer = [whole.as_slice(), &[0]].concat();
            assert_eq!(Message::decode(&longer), Err(MessageError::Length { found: longer.len() }));
        }
    }

    #[test]
    fn unknown_values_are_refused() {
        for (bytes, at) in [(&[0][..], 0), (&[7], 0), (&[HELLO, 16], 1), (&[CANCEL, 2], 1)] {
            assert_eq!(Message::decode(bytes), Err(MessageError::Value { found: bytes[at], at }));
        }
        let mut refuse = Message::Refuse { slot: Slot::A, epoch: 0, why: Refusal::Off }.encode();
        refuse[10] = 0;
        assert_eq!(Message::decode(&refuse), Err(MessageError::Value { found: 0, at: 10 }));
    }

    #[test]
    fn material_that_is_empty_or_too_long_is_refused() {
        let accept = |len| {
            Message::Accept(Accept {
                slot: Slot::A,
                epoch: 1,
                attempt: 1,
                material: vec![0; len],
                tag: [0; 32],
            })
        };
        for found in [0, MAX_ANSWER_LEN + 1, 70_000] {
            let refused = Message::decode(&accept(found).encode());
            let found = found.min(usize::from(u16::MAX));
            assert_eq!(refused, Err(MessageError::Material { found, most: MAX_ANSWER_LEN }));
        }
    }
}
