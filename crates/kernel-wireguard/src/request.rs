//! From a change to messages, each below the size limit; pure, so that it is tested without a kernel.

use ipnetwork::IpNetwork;
use keyring::{PrivateKey, PublicKey};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use zeroize::Zeroize as _;

use wireguard::{PeerChange, PresharedKeyChange};

/// Allowed IPs in one message. Each takes at most 44 bytes (nest 4, family 8, address 20, length 8, rounding), and a
/// nested attribute has 16 bits for its length; 500 of them are 22 kB, well below.
pub(crate) const PREFIXES: usize = 500;

/// A request that wipes the keys in it when it is dropped.
pub(crate) struct Request(GenlMessage<WireguardMessage>);

impl Request {
    fn new(cmd: WireguardCmd, attributes: Vec<WireguardAttribute>) -> Self {
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.finalize();
        Self(message)
    }

    fn set(link: &str, attributes: impl IntoIterator<Item = WireguardAttribute>) -> Self {
        let mut all = vec![WireguardAttribute::IfName(link.to_owned())];
        all.extend(attributes);
        Self::new(WireguardCmd::SetDevice, all)
    }

    fn peers(link: &str, peers: Vec<WireguardPeer>) -> Self {
        Self::set(link, [WireguardAttribute::Peers(peers)])
    }

    /// The request for WireGuard's family under the number that the kernel gave it.
    pub(crate) fn addressed_to(mut self, family: u16) -> Self {
        self.0.set_resolved_family_id(family);
        self
    }

    /// The message as the socket sends it.
    pub(crate) const fn message(&self) -> &GenlMessage<WireguardMessage> {
        &self.0
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        wipe(&mut self.0.payload);
    }
}

fn wipe(message: &mut WireguardMessage) {
    for attribute in &mut message.attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) => key.zeroize(),
            WireguardAttribute::Peers(peers) => {
                for attribute in peers.iter_mut().flat_map(|peer| &mut peer.0) {
                    if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                        key.zeroize();
                    }
                }
            }
            _ => {}
        }
    }
}

/// Dumps an interface.
pub(crate) fn read(link: &str) -> Request {
    let attributes = vec![WireguardAttribute::IfName(link.to_owned())];
    Request::new(WireguardCmd::GetDevice, attributes)
}

/// Sets the private key, or removes it.
pub(crate) fn private_key(link: &str, key: Option<&PrivateKey>) -> Request {
    let bytes = key.map_or([0; 32], |key| *key.expose());
    Request::set(link, [WireguardAttribute::PrivateKey(bytes)])
}

/// Binds to a UDP port.
pub(crate) fn listen_port(link: &str, port: u16) -> Request {
    Request::set(link, [WireguardAttribute::ListenPort(port)])
}

/// Applies settings to a peer: its own first, then its prefixes in as many messages as they take. With `update_only` a
/// missing peer is not created.
pub(crate) fn peer(
    link: &str,
    key: &PublicKey,
    update_only: bool,
    change: &PeerChange,
    preshared_key: Option<&PresharedKeyChange>,
) -> Vec<Request> {
    let allow: Vec<IpNetwork> = change.allow.iter().copied().collect();
    let mut chunks = allow.chunks(PREFIXES);
    let mut first = named(key, update_only);
    match preshared_key {
        Some(PresharedKeyChange::Set(key)) => {
            first.push(WireguardPeerAttribute::PresharedKey(*key.expose()));
        }
        // Zeros mean none (`NOISE_SYMMETRIC_KEY` in the protocol, "all zeros" in `wireguard.h`).
        Some(PresharedKeyChange::Clear) => first.push(WireguardPeerAttribute::PresharedKey([0; 32])),
        None => {}
    }
    first.extend(change.endpoint.map(WireguardPeerAttribute::Endpoint));
    let keepalive = change.keepalive.map(Option::unwrap_or_default);
    first.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    first.extend(chunks.next().map(allowed_ips));
    let mut messages = vec![Request::peers(link, vec![WireguardPeer(first)])];
    messages.extend(chunks.map(|chunk| {
        let mut more = named(key, true);
        more.push(allowed_ips(chunk));
        Request::peers(link, vec![WireguardPeer(more)])
    }));
    messages
}

/// Removes prefixes from the peer that has them and leaves the rest of it alone: a temporary peer takes them over and is
/// removed in the same message. Before Linux 6.16 the only alternative is to replace all prefixes of the peer, which
/// drops its packets for a moment.
pub(crate) fn take(link: &str, temporary: &PublicKey, prefixes: &[IpNetwork]) -> Vec<Request> {
    let chunks = prefixes.chunks(PREFIXES);
    let taken = chunks.map(|chunk| {
        let mut taker = named(temporary, false);
        taker.push(allowed_ips(chunk));
        Request::peers(link, vec![WireguardPeer(taker), removed(temporary)])
    });
    taken.collect()
}

/// Removes a peer.
pub(crate) fn remove(link: &str, key: &PublicKey) -> Request {
    Request::peers(link, vec![removed(key)])
}

/// Has the kernel send a keepalive at once, which initiates a handshake if there is no session: it does when the
/// interval is raised from zero (`set_peer` in `drivers/net/wireguard/netlink.c`). `interval` is the final value.
pub(crate) fn initiate_handshake(link: &str, key: &PublicKey, interval: u16) -> Request {
    let step = |interval| {
        let mut step = named(key, true);
        step.push(WireguardPeerAttribute::PersistentKeepalive(interval));
        WireguardPeer(step)
    };
    // Zero is raised and reset; any other value is reset and raised.
    let steps = if interval == 0 { vec![step(u16::MAX), step(0)] } else { vec![step(0), step(interval)] };
    Request::peers(link, steps)
}

/// With capacity for all attributes of a peer: if it grew, a copy of a key would be left behind.
fn named(key: &PublicKey, update_only: bool) -> Vec<WireguardPeerAttribute> {
    let mut attributes = Vec::with_capacity(8);
    attributes.push(WireguardPeerAttribute::PublicKey(*key.as_bytes()));
    if update_only {
        attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly));
    }
    attributes
}

fn removed(key: &PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

fn allowed_ips(prefixes: &[IpNetwork]) -> WireguardPeerAttribute {
    WireguardPeerAttribute::AllowedIps(prefixes.iter().map(allowed_ip).collect())
}

fn allowed_ip(prefix: &IpNetwork) -> WireguardAllowedIp {
    let family = if prefix.is_ipv4() { WireguardAddressFamily::Ipv4 } else { WireguardAddressFamily::Ipv6 };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(prefix.network()),
        WireguardAllowedIpAttr::Cidr(prefix.prefix()),
    ])
}
