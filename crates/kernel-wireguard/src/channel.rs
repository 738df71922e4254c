//! One netlink socket to the kernel's WireGuard; what passes through it is wiped.

use netlink::{Message, NetlinkError, Protocol, Socket};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily as _, GenlMessage};
use netlink_packet_wireguard::WireguardMessage;
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::error::ReadingError;
use crate::reading::{Attributes, number};
use crate::request::Request;

/// Bytes of a generic netlink header.
const GENERIC: usize = 4;
/// `CTRL_ATTR_FAMILY_ID` in `include/uapi/linux/genetlink.h`.
const FAMILY_ID: u16 = 1;

/// Generic netlink's own family, which names the others.
#[derive(Debug)]
enum Control {}

impl Protocol for Control {
    const NUMBER: isize = NETLINK_GENERIC;
    type Request = GenlMessage<GenlCtrl>;
}

/// WireGuard's family.
#[derive(Debug)]
enum Wireguard {}

impl Protocol for Wireguard {
    const NUMBER: isize = NETLINK_GENERIC;
    const SECRET: bool = true;
    type Request = GenlMessage<WireguardMessage>;
}

/// How an exchange went wrong.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The socket failed or the kernel refused.
    Netlink(NetlinkError),
    /// The answer cannot be parsed.
    Answer(ReadingError),
}

impl From<NetlinkError> for Fault {
    fn from(error: NetlinkError) -> Self {
        Self::Netlink(error)
    }
}

impl From<ReadingError> for Fault {
    fn from(error: ReadingError) -> Self {
        Self::Answer(error)
    }
}

/// A connection in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: Socket<Wireguard>,
    family: u16,
}

impl Channel {
    /// Opens the connection. Asking for the family has the kernel load its module.
    pub(crate) fn open() -> Result<Self, Fault> {
        let family = resolve()?;
        Ok(Self { socket: Socket::open()?, family })
    }

    /// Changes something and waits until the kernel has done it.
    pub(crate) fn set(&mut self, request: Request) -> Result<(), Fault> {
        Ok(self.socket.request(request.addressed_to(self.family).message(), 0)?)
    }

    /// Reads everything about an interface: `take` adds the attributes of each message to what `start` begins with.
    pub(crate) fn dump<S>(
        &mut self,
        request: Request,
        start: impl Fn() -> S,
        mut take: impl FnMut(&mut S, &[u8]) -> Result<(), ReadingError>,
    ) -> Result<S, Fault> {
        let request = request.addressed_to(self.family);
        let take = |state: &mut S, message: Message<'_>| Ok(take(state, attributes(message)?)?);
        self.socket.dump(request.message(), start, take)
    }
}

/// The number that the kernel gave WireGuard's family when its module was loaded.
fn resolve() -> Result<u16, Fault> {
    let mut request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(WireguardMessage::family_name().to_owned())],
    });
    request.finalize();
    let mut found = None;
    Socket::<Control>::open()?.get(&request, |message| {
        for attribute in Attributes::new(attributes(message)?) {
            let (kind, value) = attribute?;
            if kind == FAMILY_ID {
                found = Some(number(kind, value)?);
            }
        }
        Ok::<_, Fault>(())
    })?;
    found.ok_or(Fault::Answer(ReadingError::Foreign))
}

fn attributes(message: Message<'_>) -> Result<&[u8], ReadingError> {
    message.body.get(GENERIC..).ok_or(ReadingError::CutOff)
}
