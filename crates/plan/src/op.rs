//! The steps of a plan: each is one change, and nothing is left to decide when it is performed.

use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};
use serde::Serialize;
use wireguard::PeerChange;

use crate::network::{Accepts, Guard, LinkName, Peer, Route, Rule};

/// One step. Performing it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// Puts the whole guard table in place in one transaction, whatever was there.
    SetGuard(Guard),
    /// Puts the rules that accept pods' packets into those chains of iptables that would drop them.
    SetAccepts(Accepts),
    /// Writes a kernel setting.
    SetSysctl {
        /// Name below `/proc/sys`.
        name: String,
        /// New value.
        value: String,
    },
    /// Makes the WireGuard device of a slot, down and without key, port or peers.
    CreateDevice {
        /// The slot.
        slot: Slot,
        /// Name of its interface.
        link: LinkName,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Removes the device of a slot, its link and all that hangs on it.
    RemoveDevice {
        /// The slot.
        slot: Slot,
        /// Name of its interface.
        link: LinkName,
    },
    /// Gives a device the private key that belongs to this public key.
    SetKey {
        /// The slot.
        slot: Slot,
        /// The public half.
        key: PublicKey,
    },
    /// Moves a device to another UDP port.
    SetPort {
        /// The slot.
        slot: Slot,
        /// The port.
        port: u16,
    },
    /// Sets a link's MTU.
    SetMtu {
        /// The link.
        link: LinkName,
        /// MTU in bytes.
        mtu: u32,
    },
    /// Puts an address on a link.
    AddAddress {
        /// The link.
        link: LinkName,
        /// The address with its prefix length.
        address: IpNetwork,
    },
    /// Takes an address off a link.
    RemoveAddress {
        /// The link.
        link: LinkName,
        /// The address with its prefix length.
        address: IpNetwork,
    },
    /// Sets a link up.
    SetUp {
        /// The link.
        link: LinkName,
    },
    /// Adds a peer to a device.
    AddPeer {
        /// The slot.
        slot: Slot,
        /// The peer's public key.
        key: PublicKey,
        /// All of its settings.
        peer: Peer,
    },
    /// Changes what differs at an existing peer, and nothing else: its session goes on.
    UpdatePeer {
        /// The slot.
        slot: Slot,
        /// The peer's public key.
        key: PublicKey,
        /// The difference.
        change: PeerChange,
    },
    /// Removes a peer, its session and its allowed IPs.
    RemovePeer {
        /// The slot.
        slot: Slot,
        /// The peer's public key.
        key: PublicKey,
    },
    /// Puts a route in place; replaces the one with the same table, destination and metric atomically.
    SetRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
    /// Adds a policy rule.
    AddRule(Rule),
    /// Removes a policy rule.
    RemoveRule(Rule),
}
