//! Netlink messages as bytes: written, split, errors and acknowledgements decoded.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN, NetlinkSerializable, NlasIterator,
};

use crate::error::NetlinkError;

/// Bytes of a netlink header (RFC 3549 section 2.3.2).
pub const HEADER_LEN: usize = 16;
/// Bytes of the error number at the beginning of an error or of the end of a dump.
const CODE_LEN: usize = 4;
/// `NLMSGERR_ATTR_MSG` (`include/uapi/linux/netlink.h`).
const ATTR_MESSAGE: u16 = 1;

/// One message of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type, which only the protocol can interpret.
    pub kind: u16,
    /// Flags of its header.
    pub flags: u16,
    /// Sequence number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
    /// The message with its header.
    pub bytes: &'a [u8],
}

/// What a message means for the exchange that it belongs to.
pub(crate) enum MessageKind {
    /// Part of the answer.
    Data,
    /// The request is done.
    Done,
    /// Nothing.
    Ignore,
}

impl<'a> Message<'a> {
    /// The first message of a datagram, and what follows it.
    pub(crate) fn split(datagram: &'a [u8]) -> Result<(Self, &'a [u8]), NetlinkError> {
        let malformed = |problem| move || NetlinkError::Malformed { problem };
        let (header, _) =
            datagram.split_first_chunk::<HEADER_LEN>().ok_or_else(malformed("a header is cut off"))?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let bytes = datagram.get(..length).ok_or_else(malformed("a message is cut off"))?;
        let body = bytes.get(HEADER_LEN..).ok_or_else(malformed("a message is shorter than its header"))?;
        // Messages are aligned to four bytes (`NLMSG_ALIGN`); the last one may lack its padding.
        let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        let message = Self {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
            bytes,
        };
        Ok((message, rest))
    }

    /// Whether something changed while the dump that this belongs to was read.
    pub(crate) const fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// Distinguishes data from the end of an answer. Fails if the kernel refused the request.
    pub(crate) fn classify(&self) -> Result<MessageKind, NetlinkError> {
        match self.kind {
            NLMSG_NOOP => Ok(MessageKind::Ignore),
            NLMSG_OVERRUN => Err(NetlinkError::Malformed { problem: "data was lost" }),
            // The end of a dump may have no code.
            NLMSG_DONE if self.body.is_empty() => Ok(MessageKind::Done),
            NLMSG_ERROR | NLMSG_DONE => {
                let code = self.body.first_chunk::<CODE_LEN>();
                let code = code.ok_or(NetlinkError::Malformed { problem: "an error code is cut off" })?;
                let code = i32::from_ne_bytes(*code);
                if code >= 0 {
                    return Ok(MessageKind::Done);
                }
                // The most negative number has no opposite and is no error of the kernel's.
                let errno = code.checked_neg().unwrap_or(i32::MAX);
                Err(NetlinkError::Refused {
                    error: io::Error::from_raw_os_error(errno),
                    message: self.text(),
                })
            }
            _ => Ok(MessageKind::Data),
        }
    }

    /// The kernel's text about an error.
    fn text(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let mut attributes = self.body.get(CODE_LEN..)?;
        if self.kind == NLMSG_ERROR {
            // The request is repeated before the attributes: all of it, or its header only.
            let length = u32::from_ne_bytes(*attributes.first_chunk()?);
            let capped = self.flags & NLM_F_CAPPED != 0;
            let repeated = if capped { HEADER_LEN } else { usize::try_from(length).ok()? };
            attributes = attributes.get(repeated.next_multiple_of(4)..)?;
        }
        let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
        let text = attributes.find(|attribute| attribute.kind() == ATTR_MESSAGE)?;
        // It ends with a NUL.
        let text = String::from_utf8_lossy(text.value());
        Some(text.trim_end_matches('\0').to_owned())
    }
}

/// A request as bytes, with the flags that it needs in addition to `NLM_F_REQUEST`. Keys in it are in these bytes too.
pub fn encode<M: NetlinkSerializable>(request: &M, flags: u16, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(encoded_len(request));
    append(&mut bytes, request, flags, sequence);
    bytes
}

/// Bytes that a request takes in a datagram, with its padding.
pub(crate) fn encoded_len<M: NetlinkSerializable>(request: &M) -> usize {
    (HEADER_LEN + request.buffer_len()).next_multiple_of(4)
}

/// Appends a request to a datagram.
pub(crate) fn append<M: NetlinkSerializable>(bytes: &mut Vec<u8>, request: &M, flags: u16, sequence: u32) {
    let start = bytes.len();
    let length = HEADER_LEN + request.buffer_len();
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(request.message_type().to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The sender's port: the kernel fills in its own.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.resize(start + encoded_len(request), 0);
    if let Some(body) = bytes.get_mut(start + HEADER_LEN..start + length) {
        request.serialize(body);
    }
}
