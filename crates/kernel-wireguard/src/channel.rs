//! One netlink socket to the kernel's WireGuard; what passes through it is wiped.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily as _, GenlMessage};
use netlink_packet_wireguard::WireguardMessage;
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use zeroize::Zeroizing;

use crate::reading::{Attributes, number, word};
use crate::request::{HEADER, Message, encode};

/// Largest datagram that is read at once; the kernel fills at most 32 KiB (`netlink_dump` in
/// `net/netlink/af_netlink.c`).
const ANSWER: usize = 1 << 16;
/// Bytes of a generic netlink header.
const GENERIC: usize = 4;
/// `CTRL_ATTR_FAMILY_ID` in `include/uapi/linux/genetlink.h`.
const FAMILY_ID: u16 = 1;

/// How an exchange went wrong.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The socket failed or the kernel refused.
    Io(io::Error),
    /// The answer makes no sense.
    Answer(crate::ReadingError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<crate::ReadingError> for Fault {
    fn from(error: crate::ReadingError) -> Self {
        Self::Answer(error)
    }
}

/// A connection in the network namespace of the thread that opened it.
pub(crate) struct Channel {
    socket: Socket,
    family: u16,
    sequence: u32,
    answer: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The last answer has keys in it.
        f.debug_struct("Channel").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Channel {
    /// Opens the connection. Asking for the family has the kernel load its module.
    pub(crate) fn open() -> Result<Self, Fault> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let answer = Zeroizing::new(vec![0; ANSWER]);
        let mut channel = Self { socket, family: 0, sequence: 0, answer };
        channel.family = channel.resolve()?;
        Ok(channel)
    }

    /// The number that the kernel gave WireGuard's family when its module was loaded.
    fn resolve(&mut self) -> Result<u16, Fault> {
        let request = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(WireguardMessage::family_name().to_owned())],
        });
        let mut found = None;
        self.sequence += 1;
        let (bytes, _) = encode(request, 0, NLM_F_ACK, self.sequence);
        self.exchange(&bytes, |body| {
            for attribute in Attributes::new(body) {
                let (kind, value) = attribute?;
                if kind == FAMILY_ID {
                    found = Some(number(kind, value)?);
                }
            }
            Ok(())
        })?;
        found.ok_or(Fault::Answer(crate::ReadingError::Foreign))
    }

    /// Changes something and waits until the kernel has done it.
    pub(crate) fn set(&mut self, message: Message) -> Result<(), Fault> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.encode(self.family, NLM_F_ACK, self.sequence);
        self.exchange(&bytes, |_| Ok(())).map(drop)
    }

    /// Reads everything about an interface: `take` gets the attributes of each message. Says whether nothing changed
    /// while it was read.
    pub(crate) fn dump(
        &mut self,
        message: Message,
        take: impl FnMut(&[u8]) -> Result<(), crate::ReadingError>,
    ) -> Result<bool, Fault> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.encode(self.family, NLM_F_DUMP, self.sequence);
        self.exchange(&bytes, take)
    }

    /// Sends a request and reads until the kernel says that it is done.
    fn exchange(
        &mut self,
        request: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), crate::ReadingError>,
    ) -> Result<bool, Fault> {
        self.socket.send(request, 0)?;
        let mut whole = true;
        loop {
            let length = self.socket.recv(&mut &mut self.answer[..], 0)?;
            let mut rest = self.answer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (header, body, after) = split(rest)?;
                rest = after;
                // The rest of an answer that was given up before.
                if header.sequence != self.sequence {
                    continue;
                }
                whole &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = i32::from_ne_bytes(word(body)?);
                        return if code < 0 {
                            Err(io::Error::from_raw_os_error(-code).into())
                        } else {
                            Ok(whole)
                        };
                    }
                    _ => take(body.get(GENERIC..).ok_or(crate::ReadingError::CutOff)?)?,
                }
            }
        }
    }
}

/// The parts of a netlink header that matter here.
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message of a datagram: its header, its body, and what comes after it.
fn split(bytes: &[u8]) -> Result<(Header, &[u8], &[u8]), crate::ReadingError> {
    let cut = crate::ReadingError::CutOff;
    let (header, _) = bytes.split_first_chunk::<HEADER>().ok_or(cut)?;
    let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).map_err(|_| cut)?;
    let body = bytes.get(HEADER..length).ok_or(cut)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let header = Header {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
    };
    Ok((header, body, after))
}
