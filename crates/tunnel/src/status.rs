//! What an interface looks like now, without any secret in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;
use keyring::{PresharedId, PublicKey};

use crate::counters::Counters;

/// The state of an interface as one consistent-enough reading: each peer by itself is consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct InterfaceState {
    /// The public key, if a private key is set.
    pub public_key: Option<PublicKey>,
    /// The UDP port that the interface listens on.
    pub listen_port: u16,
    /// The mark on outgoing datagrams (`SO_MARK`), zero for none.
    pub fwmark: u32,
    /// The MTU of the TUN device in bytes.
    pub mtu: u16,
    /// All peers by public key.
    pub peers: BTreeMap<PublicKey, PeerStatus>,
    /// What was dropped and why.
    pub counters: Counters,
}

/// The state of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Where datagrams to this peer go now.
    pub endpoint: Option<SocketAddr>,
    /// The prefixes that this peer owns.
    pub allowed_ips: BTreeSet<IpNetwork>,
    /// Seconds between persistent keepalives, zero for none.
    pub keepalive: u16,
    /// Whether the endpoint follows the peer.
    pub roaming: bool,
    /// Name of the preshared key, if one is set.
    pub preshared: Option<PresharedId>,
    /// When the last handshake was completed, by the wall clock.
    pub last_handshake: Option<SystemTime>,
    /// How long ago the last handshake was completed, by the monotonic clock.
    pub since_handshake: Option<Duration>,
    /// Bytes of UDP payload received from this peer, handshakes included.
    pub rx_bytes: u64,
    /// Bytes of UDP payload sent to this peer, handshakes included.
    pub tx_bytes: u64,
    /// Authenticated datagrams that came from elsewhere than the configured endpoint while roaming is off.
    pub endpoint_drifts: u64,
}
