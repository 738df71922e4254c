//! Notices that something changed in the kernel; what it was is read by the receiver.

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
    /// Notices of changes of links, addresses, routes, rules and nft tables, from now until the receiver is
    /// dropped. Any number of changes that were not received yet is one notice.
    pub fn monitor(&self) -> Result<mpsc::Receiver<Notice>, HostError> {
        let (sender, receiver) = mpsc::channel(1);
        let routing: Vec<u32> = ROUTING.iter().map(|group| *group as u32).collect();
        tokio::spawn(listen(open(NETLINK_ROUTE, &routing)?, sender.clone()));
        tokio::spawn(listen(open(NETLINK_NETFILTER, &[NFTABLES])?, sender));
        Ok(receiver)
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
            return;
        }
        // A full queue holds a notice that was not received yet; a closed one ends the loop in its next round.
        let _ = sender.try_send(Notice);
    }
}
