//! Notices that something changed in the kernel; what it was is read by the receiver.

use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tracing::warn;

use crate::Handle;
use crate::error::{HostError, Subject};

/// Something changed. It does not say what: a message can get lost when many come at once, so the state must be
/// read anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice;

/// Notices of two kinds. Of each, any number of changes that were not received yet is one notice.
#[derive(Debug)]
pub struct Notices {
    /// Links, addresses, routes and rules.
    pub routing: mpsc::Receiver<Notice>,
    /// Tables of nft, which other programs change all the time.
    pub filters: mpsc::Receiver<Notice>,
}

/// How often a change is assumed once changes are no longer noticed.
const BLIND_PERIOD: Duration = Duration::from_secs(1);

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
        tokio::spawn(listen(open(NETLINK_ROUTE, &groups)?, of_routing));
        tokio::spawn(listen(open(NETLINK_NETFILTER, &[NFTABLES])?, of_filters));
        Ok(Notices { routing, filters })
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

async fn listen(socket: TokioSocket, sender: mpsc::Sender<Notice>) {
    // The contents are not read, so a short buffer does: the rest of a message is cut off.
    let mut buffer = Vec::with_capacity(64);
    loop {
        buffer.clear();
        let received = tokio::select! {
            () = sender.closed() => return,
            received = socket.recv(&mut buffer) => received,
        };
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
