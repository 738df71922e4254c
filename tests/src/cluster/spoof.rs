//! Whether a node takes a packet from another node's tunnel whose source is none of that node's pods.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::Cluster;
use super::uplinks::{CONTROL, Control, DELIVERED_WITHIN, PORT, Place, SEEN_WITHIN, device_to};
use crate::capture::{Capture, Rules};
use crate::error::Error;
use crate::frame::{self, Link};
use crate::node::Node;
use crate::packet_socket::PacketSocket;

/// The Ethernet header of a frame, which a tunnel's link does not have.
const HEADER: usize = 14;

impl Cluster {
    /// Has a node send a pod of another node two packets through the tunnel, past its own guard: one from its own pod, which has
    /// to arrive, or nothing is shown; and one from `source`, which has to be dropped.
    pub(super) fn spoof(&self, from: &Place, to: &Place, source: IpAddr) -> Result<Vec<Control>, Error> {
        let (sender, receiver) = (self.lab().node(&from.node)?, self.lab().node(&to.node)?);
        let link = device_to(receiver, to.pod)?;
        let at_pod = Capture::start(&[&**receiver], &link, &Rules::new(self.lab().cluster_ranges()))?;
        let arrived = |source: IpAddr| {
            let seen = at_pod.report().violations;
            seen.iter().any(|seen| seen.matched.source == source && seen.matched.destination == to.pod)
        };
        let path = format!("through the tunnel of {} to {} on {}", sender.name(), to.pod, receiver.name());
        inject(sender, from.pod, to.pod)?;
        let since = Instant::now();
        while !arrived(from.pod) && since.elapsed() < SEEN_WITHIN {
            thread::sleep(Duration::from_millis(20));
        }
        let own =
            Control { sent: format!("{path}, from {}", from.pod), seen: arrived(from.pod), dropped: true };
        inject(sender, source, to.pod)?;
        thread::sleep(DELIVERED_WITHIN);
        let foreign =
            Control { sent: format!("{path}, from {source}"), seen: true, dropped: !arrived(source) };
        Ok(vec![own, foreign])
    }
}

/// Sends a packet on the link that leads to a pod of another node, past every filter of the sender.
fn inject(node: &Node, from: IpAddr, to: IpAddr) -> Result<(), Error> {
    let device = device_to(node, to)?;
    let link = Link { from: node.mac(), to: node.mac() };
    let frame = frame::udp(link, (from, PORT), (to, PORT), CONTROL);
    let packet = frame.get(HEADER..).unwrap_or_default();
    let send = || PacketSocket::open(&device)?.send(packet);
    let failed = |source| Error::Socket { action: "inject a packet", host: node.name().to_owned(), source };
    node.net().run(send)?.map_err(failed)
}
