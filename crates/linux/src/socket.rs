//! rtnetlink without a runtime, for programs that live for milliseconds.

use netlink::{Message, NetlinkError, Protocol, Socket, Step};
use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::{HostError, Subject};

#[derive(Debug)]
enum Route {}

impl Protocol for Route {
    const NUMBER: isize = NETLINK_ROUTE;
    type Request = RouteNetlinkMessage;
}

/// A blocking rtnetlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct RouteSocket(Socket<Route>);

impl RouteSocket {
    /// Opens the socket.
    pub(crate) fn open() -> Result<Self, HostError> {
        let opened = Socket::open().map(Self);
        opened.map_err(|source| HostError::netlink("open netlink", Subject::Links, source))
    }

    /// Performs one request and waits until the kernel has done it.
    pub(crate) fn perform(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), HostError> {
        let done = self.0.request(request, flags);
        done.map_err(|source| HostError::netlink(operation, subject.clone(), source))
    }

    /// Performs requests in one exchange, and waits until the kernel has done all.
    pub(crate) fn perform_all(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        requests: impl IntoIterator<Item = RouteNetlinkMessage>,
        flags: u16,
    ) -> Result<(), HostError> {
        let steps: Vec<_> = requests.into_iter().map(|request| Step { request, flags }).collect();
        self.0.requests(&steps).map_err(|source| HostError::netlink(operation, subject.clone(), source))
    }

    /// Asks for everything of one kind.
    pub(crate) fn dump(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        let take = |found: &mut Vec<_>, message: Message<'_>| {
            found.push(decode(message)?);
            Ok::<_, NetlinkError>(())
        };
        let dumped = self.0.dump(request, Vec::new, take);
        dumped.map_err(|source| HostError::netlink(operation, subject.clone(), source))
    }

    /// Asks for one thing. `None` if there is no such thing.
    pub(crate) fn find(
        &mut self,
        operation: &'static str,
        subject: &Subject,
        request: &RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, HostError> {
        let mut found = None;
        let got = self.0.get(request, |message| {
            found = Some(decode(message)?);
            Ok::<_, NetlinkError>(())
        });
        match got.map_err(|source| HostError::netlink(operation, subject.clone(), source)) {
            Ok(()) => Ok(found),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn decode(message: Message<'_>) -> Result<RouteNetlinkMessage, NetlinkError> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    Ok(RouteNetlinkMessage::deserialize(&header, message.body)?)
}
