//! A peer's configuration, and what differs between two configurations of it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use keyring::PresharedId;
use serde::{Deserialize, Serialize};

/// The configuration of one peer of a device, without any secret in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Where datagrams for the peer go; `None` until one has been received from it.
    pub endpoint: Option<SocketAddr>,
    /// Whether the endpoint follows the source address of authenticated datagrams. Set for peers behind NAT only;
    /// for all others the endpoint is kept.
    pub roaming: bool,
    /// Prefixes that are routed to this peer and accepted from it.
    pub allowed_ips: BTreeSet<IpNetwork>,
    /// Seconds between persistent keepalives; `None` sends none.
    pub keepalive: Option<u16>,
    /// Identifier of the preshared key with this peer; `None` if there is none.
    pub preshared: Option<PresharedId>,
}

/// The difference between two configurations of one peer, except for its preshared key; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerChange {
    /// New endpoint, if it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// New keepalive interval in seconds, if it changes; `Some(None)` turns it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Option<u16>>,
    /// Whether the endpoint roams, if that changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roaming: Option<bool>,
    /// Prefixes to add to the allowed IPs. A prefix that another peer has moves to this one.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<IpNetwork>,
    /// Prefixes to remove from the allowed IPs, before [`PeerChange::allow`] is applied. Those of other peers are left
    /// alone.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub disallow: BTreeSet<IpNetwork>,
}

impl PeerChange {
    /// The change that configures a new peer as `peer`, except for its preshared key.
    pub fn of_new(peer: &Peer) -> Self {
        Self {
            endpoint: peer.endpoint,
            keepalive: Some(peer.keepalive),
            roaming: Some(peer.roaming),
            allow: peer.allowed_ips.clone(),
            disallow: BTreeSet::new(),
        }
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = self.endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        match self.keepalive {
            None => {}
            Some(None) => f.write_str(" no keepalive")?,
            Some(Some(seconds)) => write!(f, " keepalive {seconds} s")?,
        }
        match self.roaming {
            None => {}
            Some(true) => f.write_str(" roaming")?,
            Some(false) => f.write_str(" not roaming")?,
        }
        self.disallow.iter().try_for_each(|prefix| write!(f, " -{prefix}"))?;
        self.allow.iter().try_for_each(|prefix| write!(f, " +{prefix}"))
    }
}
