//! Sites with NATs, and the datagrams between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use plan::annotation::Mapping;

/// What is between a node and the rest of the world (RFC 4787).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// A public address on its own link.
    None,
    /// A cloud's NAT: a public address that all datagrams of the node come from and arrive at.
    OneToOne,
    /// Endpoint-independent mapping, filtering by address and port.
    Home,
    /// Another mapping for each destination, filtering by address and port.
    Symmetric,
}

impl Nat {
    /// Whether two nodes behind these NATs can reach each other without help, once they know of each other.
    pub(crate) fn reaches(self, other: Self) -> bool {
        let is_open = |nat| matches!(nat, Self::None | Self::OneToOne);
        is_open(self) || is_open(other) || (self == Self::Home && other == Self::Home)
    }

    pub(crate) fn mapping(self) -> Mapping {
        match self {
            Self::None | Self::OneToOne => Mapping::None,
            Self::Home => Mapping::Easy,
            Self::Symmetric => Mapping::Hard,
        }
    }
}

/// One node's access to the network.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) nat: Nat,
    /// The node's own address.
    pub(crate) own: IpAddr,
    /// The address that others see.
    pub(crate) public: IpAddr,
    /// Mappings from own sockets, for symmetric NATs together with the destination.
    mappings: BTreeMap<(SocketAddr, Option<SocketAddr>), u16>,
    /// Which destinations a mapped port has sent to.
    opened: BTreeSet<(u16, SocketAddr)>,
    next_port: u16,
    /// Nothing passes while it is set.
    pub(crate) down: bool,
}

impl Site {
    pub(crate) fn new(number: u8, nat: Nat) -> Self {
        let public = IpAddr::from([198, 51, 100, number]);
        let own = if nat == Nat::None { public } else { IpAddr::from([10, number, 0, 5]) };
        Self {
            nat,
            own,
            public,
            mappings: BTreeMap::new(),
            opened: BTreeSet::new(),
            next_port: 20_000 + 1_000 * u16::from(number),
            down: false,
        }
    }

    /// The NAT forgets everything.
    pub(crate) fn flush(&mut self) {
        self.mappings.clear();
        self.opened.clear();
    }

    /// The node gets other addresses, behind another NAT's address.
    pub(crate) fn renumber(&mut self, number: u8) {
        let fresh = Self::new(number, self.nat);
        *self = Self { next_port: fresh.next_port, ..fresh };
    }

    /// What a datagram's source becomes on its way out; none if it is lost.
    pub(crate) fn leave(&mut self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.down || from.ip() != self.own {
            return None;
        }
        match self.nat {
            Nat::None | Nat::OneToOne => Some(SocketAddr::new(self.public, from.port())),
            Nat::Home | Nat::Symmetric => {
                let key = (from, (self.nat == Nat::Symmetric).then_some(to));
                let next = &mut self.next_port;
                let port = *self.mappings.entry(key).or_insert_with(|| {
                    *next += 1;
                    *next
                });
                self.opened.insert((port, to));
                Some(SocketAddr::new(self.public, port))
            }
        }
    }

    /// The node's own socket that a datagram arrives at; none if it is filtered.
    pub(crate) fn enter(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.down || to.ip() != self.public {
            return None;
        }
        match self.nat {
            Nat::None | Nat::OneToOne => Some(SocketAddr::new(self.own, to.port())),
            Nat::Home | Nat::Symmetric => {
                let port = to.port();
                let mapping = self.mappings.iter().find(|(_, mapped)| **mapped == port);
                mapping.map(|((socket, _), _)| *socket).filter(|_| self.opened.contains(&(port, from)))
            }
        }
    }

    /// What a socket is mapped to for everybody, if there is such a mapping.
    pub(crate) fn observed(&self, socket: SocketAddr) -> Option<SocketAddr> {
        let port = self.mappings.get(&(socket, None))?;
        Some(SocketAddr::new(self.public, *port))
    }
}
