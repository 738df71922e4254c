//! Notices that something changed in the kernel. Of the daemon's own routes they say what; everything else is read by the receiver.

use std::collections::BTreeMap;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use plan::network::Route;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tracing::warn;

use crate::Handle;
use crate::error::{HostError, Subject};
use crate::{message, route};

/// Something changed. It does not say what: a message can get lost when many come at once, so the state must be
/// read anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice;

/// One of the daemon's routes is another one, whoever has changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteNotice {
    /// It is there now.
    Set(Route),
    /// It is gone.
    Removed(Route),
}

/// Notices of three kinds. Of those that don't say what, any number of changes that were not received yet is one notice.
#[derive(Debug)]
pub struct Notices {
    /// Links, addresses, rules, and routes that are not the daemon's; anything if messages were lost.
    pub routing: mpsc::Receiver<Notice>,
    /// The daemon's routes.
    pub routes: mpsc::Receiver<RouteNotice>,
    /// Tables of nft, which other programs change all the time.
    pub filters: mpsc::Receiver<Notice>,
}

/// How often a change is assumed once changes are no longer noticed.
const BLIND_PERIOD: Duration = Duration::from_secs(1);

/// Changes of routes that may be queued. More are a notice that does not say what.
const ROUTES: usize = 4096;
/// More bytes than a message about a link, an address, a route or a rule has, and enough to see that there is a message.
const LENGTHS: (usize, usize) = (32 << 10, 64);

/// `NFNLGRP_NFTABLES` (`include/uapi/linux/netfilter/nfnetlink.h`).
const NFTABLES: u32 = 7;
const ROUTING: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

impl Handle {
    /// Notices of changes of links, addresses, routes, rules and nft tables, from now until the receivers are
    /// dropped.
    pub fn monitor(&self) -> Result<Notices, HostError> {
        let groups: Vec<u32> = ROUTING.iter().map(|group| *group as u32).collect();
        let (of_routing, routing) = mpsc::channel(1);
        let (of_filters, filters) = mpsc::channel(1);
        let (of_routes, routes) = mpsc::channel(ROUTES);
        let socket = open(NETLINK_ROUTE, &groups)?;
        let handle = self.clone();
        tokio::spawn(async move {
            // What changes meanwhile is in the socket. Of a link without a name nothing is known about its routes.
            let names = handle.link_names().await.unwrap_or_default();
            drop(handle);
            let mut reader = Reader { names, routes: of_routes };
            listen(socket, of_routing, LENGTHS.0, |datagram| reader.tells_of_more(datagram)).await;
        });
        // The contents are not read, so a short buffer does: the rest of a message is cut off.
        tokio::spawn(listen(open(NETLINK_NETFILTER, &[NFTABLES])?, of_filters, LENGTHS.1, |_| true));
        Ok(Notices { routing, routes, filters })
    }
}

/// Passes on what is said about the daemon's routes.
struct Reader {
    /// Of links, by index.
    names: BTreeMap<u32, String>,
    routes: mpsc::Sender<RouteNotice>,
}

impl Reader {
    /// Reads a datagram; returns whether it tells of anything that was not passed on.
    fn tells_of_more(&mut self, datagram: &[u8]) -> bool {
        let (mut rest, mut more) = (datagram, false);
        while !rest.is_empty() {
            let Ok(NetlinkMessage { header, payload, .. }) = NetlinkMessage::deserialize(rest) else {
                return true;
            };
            let length = usize::try_from(header.length).unwrap_or(usize::MAX).max(1);
            rest = length.checked_next_multiple_of(4).and_then(|next| rest.get(next..)).unwrap_or_default();
            let NetlinkPayload::InnerMessage(message) = payload else { return true };
            more |= !self.passes_on(&message);
        }
        more
    }

    fn passes_on(&mut self, message: &RouteNetlinkMessage) -> bool {
        let notice = match message {
            RouteNetlinkMessage::NewRoute(found) => route::read(found, &self.names).map(RouteNotice::Set),
            RouteNetlinkMessage::DelRoute(found) => route::read(found, &self.names).map(RouteNotice::Removed),
            RouteNetlinkMessage::NewLink(link) => {
                let name = message::name_of(link).map(ToOwned::to_owned);
                self.names.extend(name.map(|name| (link.header.index, name)));
                None
            }
            RouteNetlinkMessage::DelLink(link) => {
                self.names.remove(&link.header.index);
                None
            }
            _ => None,
        };
        notice.is_some_and(|notice| self.routes.try_send(notice).is_ok())
    }
}

fn open(protocol: isize, groups: &[u32]) -> Result<TokioSocket, HostError> {
    let failed = |source| HostError::netlink("watch", Subject::Changes, source);
    let mut socket = TokioSocket::new(protocol).map_err(failed)?;
    let inner = socket.socket_mut();
    inner.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
    for group in groups {
        inner.add_membership(*group).map_err(failed)?;
    }
    Ok(socket)
}

/// Sends a notice for each message of which `is_notice` says so.
async fn listen(
    socket: TokioSocket,
    sender: mpsc::Sender<Notice>,
    length: usize,
    mut is_notice: impl FnMut(&[u8]) -> bool,
) {
    let mut buffer = Vec::with_capacity(length);
    loop {
        buffer.clear();
        let received = tokio::select! {
            () = sender.closed() => return,
            received = socket.recv(&mut buffer) => received,
        };
        if received.is_ok() && !is_notice(&buffer) {
            continue;
        }
        if let Err(error) = received
            // ENOBUFS: more changes than the socket could hold; that is a notice as well.
            && error.raw_os_error() != Some(rustix::io::Errno::NOBUFS.raw_os_error())
        {
            warn!(event = "KernelNoticesLost", %error, "changes in the kernel are no longer noticed at once");
            return assume_changes(&sender).await;
        }
        // A full queue holds a notice that was not received yet; a closed one ends the loop in its next round.
        let _ = sender.try_send(Notice);
    }
}

/// Without notices everything has to be read all the time.
async fn assume_changes(sender: &mpsc::Sender<Notice>) {
    while !sender.is_closed() {
        let _ = sender.try_send(Notice);
        tokio::time::sleep(BLIND_PERIOD).await;
    }
}
