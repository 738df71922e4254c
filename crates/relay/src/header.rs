//! The clear fields of WireGuard's messages (WireGuard paper, section 5.4; `drivers/net/wireguard/messages.h`).

/// What a datagram says of itself in the clear. Nothing of it is authenticated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// First message of a handshake.
    Initiation {
        /// The index that its sender announces for the new session.
        sender: u32,
    },
    /// Second message of a handshake.
    Response {
        /// The index that its sender announces.
        sender: u32,
        /// The index that the other end announced.
        receiver: u32,
    },
    /// The answer to a handshake message under load.
    Cookie {
        /// The index that the other end announced.
        receiver: u32,
    },
    /// Transport data, which a keepalive is too.
    Data {
        /// The index that the other end announced.
        receiver: u32,
        /// Number of the message in its session and direction.
        counter: u64,
    },
}

/// Lengths of the messages of fixed size, in bytes.
const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE: usize = 64;
/// The shortest transport message: header and authentication tag around nothing.
const DATA_MIN: usize = 32;

impl Header {
    /// Reads the header of a datagram; none if no message of WireGuard has this type and length.
    pub(crate) fn read(datagram: &[u8]) -> Option<Self> {
        let len = datagram.len();
        let (kind, rest) = datagram.split_first_chunk::<4>()?;
        let (first, rest) = rest.split_first_chunk::<4>()?;
        let (second, _) = rest.split_first_chunk::<8>()?;
        let first = u32::from_le_bytes(*first);
        let counter = u64::from_le_bytes(*second);
        match (kind, len) {
            ([1, 0, 0, 0], INITIATION) => Some(Self::Initiation { sender: first }),
            ([2, 0, 0, 0], RESPONSE) => {
                let [a, b, c, d, ..] = *second;
                Some(Self::Response { sender: first, receiver: u32::from_le_bytes([a, b, c, d]) })
            }
            ([3, 0, 0, 0], COOKIE) => Some(Self::Cookie { receiver: first }),
            ([4, 0, 0, 0], DATA_MIN..) => Some(Self::Data { receiver: first, counter }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, byte) in [(0, kind), (4, 1), (8, 2), (12, 3)] {
            bytes[at] = byte;
        }
        bytes
    }

    #[test]
    fn each_message_is_known_by_type_and_length() {
        let counter = 2 | 3 << 32;
        for (kind, len, header) in [
            (1, 148, Header::Initiation { sender: 1 }),
            (2, 92, Header::Response { sender: 1, receiver: 2 }),
            (3, 64, Header::Cookie { receiver: 1 }),
            (4, 32, Header::Data { receiver: 1, counter }),
            (4, 1452, Header::Data { receiver: 1, counter }),
        ] {
            let whole = message(kind, len);
            assert_eq!(Header::read(&whole), Some(header));
            assert_eq!(Header::read(&whole[..31]), None, "cut");
            let mut reserved = whole.clone();
            reserved[2] = 1;
            assert_eq!(Header::read(&reserved), None, "reserved bytes are zero");
        }
        for (kind, len) in [(0, 148), (1, 147), (1, 149), (2, 93), (3, 65), (5, 148)] {
            assert_eq!(Header::read(&message(kind, len)), None);
        }
    }
}
