//! The endpoints at which a peer may be reached, in the order in which they are tried.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use keyring::{PerSlot, Slot};
use serde::{Deserialize, Serialize};

use crate::admission::{Endpoint, Member};
use crate::annotation::Mapping;
use crate::prefix;

/// What kind of endpoint one is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Prescribed by an operator.
    Prescribed,
    /// Prescribed by an operator, by a name. What it stands for may change any time, so a path that works is kept.
    Named,
    /// An address in a prefix of this node's own links.
    Link,
    /// A private address of a node at the same location, or behind the same NAT.
    Site,
    /// A public address on the peer's own link.
    Global,
    /// An address that leads to the peer although it is on none of its links.
    External,
    /// What a NAT maps the peer's own address and port to. It is reached only if both ends send at about the same time.
    Punched,
    /// Another private address.
    Private,
    /// A port of a relay that forwards to the peer.
    Relayed,
}

impl Kind {
    /// The name in status and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prescribed => "prescribed",
            Self::Named => "named",
            Self::Link => "link",
            Self::Site => "site",
            Self::Global => "global",
            Self::External => "external",
            Self::Punched => "punched",
            Self::Private => "private",
            Self::Relayed => "relayed",
        }
    }

    /// Whether datagrams go to the peer without another node in between.
    pub const fn is_direct(self) -> bool {
        !matches!(self, Self::Relayed)
    }

    /// Whether an operator prescribes it.
    pub const fn is_prescribed(self) -> bool {
        matches!(self, Self::Prescribed | Self::Named)
    }
}

/// An endpoint to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What kind it is.
    pub kind: Kind,
    /// Where datagrams go.
    pub to: SocketAddr,
}

/// What a node knows of its own place in the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The addresses on its links, with their prefixes.
    pub links: Vec<IpNetwork>,
    /// Where it is, as far as the cluster says.
    pub location: Option<String>,
    /// The addresses that its datagrams come from as peers see them.
    pub observed: BTreeSet<IpAddr>,
    /// How the NAT in front of it maps addresses.
    pub mapping: Mapping,
}

impl Surroundings {
    fn has(&self, address: IpAddr) -> bool {
        self.links.iter().any(|link| link.ip() == address)
    }

    fn is_on_link(&self, address: IpAddr) -> bool {
        // A prefix of one address says nothing about the network that it is in.
        self.links.iter().any(|link| !prefix::is_host(*link) && link.contains(address))
    }

    fn is_at_the_same_site(&self, member: &Member) -> bool {
        let same_location = self.location.is_some() && self.location == member.location;
        let observed = Slot::ALL.into_iter().flat_map(|slot| member.reach.observed.get(slot));
        same_location || observed.map(SocketAddr::ip).any(|address| self.observed.contains(&address))
    }
}

/// The endpoints of a peer's slot, the best first.
pub fn candidates(own: &Surroundings, member: &Member, slot: Slot) -> Vec<Candidate> {
    let ports = member.state.slots.map(|slot| slot.port);
    if let Some(prescribed) = &member.prescribed {
        let kind = if member.name.is_some() { Kind::Named } else { Kind::Prescribed };
        let sockets = prescribed.iter().filter_map(|endpoint| socket(*endpoint, &ports, slot));
        return sockets.map(|to| Candidate { kind, to }).collect();
    }
    let port = *ports.get(slot);
    let same_site = own.is_at_the_same_site(member);
    let mut found: Vec<Candidate> = Vec::new();
    let reach = &member.reach;
    let on_link = |address: IpAddr| match address {
        address if own.is_on_link(address) => Kind::Link,
        address if is_public(address) => Kind::Global,
        _ if same_site => Kind::Site,
        _ => Kind::Private,
    };
    found.extend(
        reach
            .addresses
            .iter()
            .map(|address| Candidate { kind: on_link(*address), to: SocketAddr::new(*address, port) }),
    );
    let external = |address: &IpAddr| Candidate { kind: Kind::External, to: (*address, port).into() };
    found.extend(reach.external.iter().map(external));
    // Neither end can know the other's port in advance.
    if !(own.mapping == Mapping::Hard && reach.mapping == Mapping::Hard) {
        let punched = |to: &SocketAddr| Candidate { kind: Kind::Punched, to: *to };
        found.extend(reach.observed.get(slot).iter().map(punched));
    }
    // An address of our own is no way to another node: some clouds and virtual machines give all nodes the same one.
    found.retain(|candidate| !own.has(candidate.to.ip()));
    let mut seen = BTreeSet::new();
    found.sort_by_key(|candidate| candidate.kind);
    found.retain(|candidate| seen.insert(candidate.to));
    interleaved(&found)
}

/// The port of a slot at an endpoint.
pub fn socket(endpoint: Endpoint, ports: &PerSlot<u16>, slot: Slot) -> Option<SocketAddr> {
    let port = match (endpoint.port, slot) {
        (None, slot) => *ports.get(slot),
        (Some(port), Slot::A) => port,
        (Some(port), Slot::B) => port.checked_add(1)?,
    };
    Some(SocketAddr::new(endpoint.address, port))
}

/// Lets the families alternate among endpoints of the same kind (RFC 8305, section 4), beginning with that of the one that
/// the node names first.
fn interleaved(sorted: &[Candidate]) -> Vec<Candidate> {
    let mut ordered = Vec::with_capacity(sorted.len());
    for same in sorted.chunk_by(|one, other| one.kind == other.kind) {
        let first = same.first().is_some_and(|candidate| candidate.to.is_ipv6());
        let (one, other): (Vec<_>, Vec<_>) =
            same.iter().partition(|candidate| candidate.to.is_ipv6() == first);
        let (mut one, mut other) = (one.into_iter(), other.into_iter());
        loop {
            let next: Vec<Candidate> = one.next().into_iter().chain(other.next()).collect();
            if next.is_empty() {
                break;
            }
            ordered.extend(next);
        }
    }
    ordered
}

/// Whether an address is reached from everywhere, as far as its range says: not private (RFC 1918, RFC 4193) and not shared
/// (RFC 6598).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !v4.is_private() && !shared
        }
        IpAddr::V6(v6) => !v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Ledger;
    use crate::admission::tests::{admitted, node};
    use crate::annotation::Endpoints;
    use crate::node::NodeName;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn member(reach: Endpoints) -> Member {
        let admission = admitted(&[node(1), node(2)], &Ledger::default());
        Member { reach, ..admission.world.peers[&NodeName::new("n2")].clone() }
    }

    fn reach(addresses: &[&str], external: &[&str], observed: &[&str]) -> Endpoints {
        let list = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect();
        let sockets: Vec<SocketAddr> = observed.iter().map(|text| text.parse().unwrap()).collect();
        Endpoints {
            addresses: list(addresses),
            external: list(external),
            observed: PerSlot { a: sockets, b: Vec::new() },
            ..Endpoints::default()
        }
    }

    fn home() -> Surroundings {
        Surroundings {
            links: vec!["192.168.1.7/24".parse().unwrap(), "10.0.2.15/24".parse().unwrap()],
            observed: [ip("203.0.113.1")].into(),
            ..Surroundings::default()
        }
    }

    fn found(own: &Surroundings, member: &Member) -> Vec<(Kind, String)> {
        let all = candidates(own, member, Slot::A);
        all.into_iter().map(|candidate| (candidate.kind, candidate.to.to_string())).collect()
    }

    #[test]
    fn a_cloud_vm_is_reached_at_its_external_address_first() {
        let vm = member(reach(&["172.31.0.5"], &["198.51.100.9"], &[]));
        let expected = [
            (Kind::External, "198.51.100.9:51840".to_owned()),
            (Kind::Private, "172.31.0.5:51840".to_owned()),
        ];
        assert_eq!(found(&home(), &vm), expected);
    }

    #[test]
    fn the_private_address_comes_first_on_the_same_link_location_or_nat() {
        let at_home = member(reach(&["192.168.1.8"], &[], &["203.0.113.1:4000"]));
        assert_eq!(found(&home(), &at_home)[0], (Kind::Link, "192.168.1.8:51840".to_owned()));
        let beside = member(reach(&["192.168.7.8"], &[], &["203.0.113.1:4000"]));
        assert_eq!(found(&home(), &beside)[0], (Kind::Site, "192.168.7.8:51840".to_owned()));
        let zone = Some("eu-1".to_owned());
        let vm = member(reach(&["172.31.0.5"], &["198.51.100.9"], &[]));
        let vm = Member { location: zone.clone(), ..vm };
        assert_eq!(found(&home(), &vm)[0].0, Kind::External, "this node has no location");
        let there = Surroundings { location: zone, ..home() };
        assert_eq!(found(&there, &vm)[0], (Kind::Site, "172.31.0.5:51840".to_owned()));
    }

    #[test]
    fn an_address_that_this_node_has_itself_is_not_tried() {
        let vagrant = member(reach(&["10.0.2.15", "192.168.56.12"], &[], &[]));
        assert_eq!(found(&home(), &vagrant), [(Kind::Private, "192.168.56.12:51840".to_owned())]);
    }

    #[test]
    fn mapped_addresses_are_tried_unless_both_nats_map_each_destination_anew() {
        let mut peer = member(reach(&["10.9.9.9"], &[], &["203.0.113.2:4000"]));
        peer.reach.mapping = Mapping::Hard;
        assert_eq!(found(&home(), &peer)[0], (Kind::Punched, "203.0.113.2:4000".to_owned()));
        let hard = Surroundings { mapping: Mapping::Hard, ..home() };
        assert_eq!(found(&hard, &peer).len(), 1);
        assert!(candidates(&home(), &peer, Slot::B).iter().all(|one| one.kind == Kind::Private));
    }

    #[test]
    fn what_an_operator_prescribes_is_tried_alone() {
        let mut peer = member(reach(&["10.9.9.9"], &["198.51.100.9"], &[]));
        peer.prescribed = Some(vec![Endpoint { address: ip("198.51.100.7"), port: Some(7000) }]);
        assert_eq!(found(&home(), &peer), [(Kind::Prescribed, "198.51.100.7:7000".to_owned())]);
        assert_eq!(candidates(&home(), &peer, Slot::B)[0].to.port(), 7001);
    }

    #[test]
    fn without_a_port_an_endpoint_has_that_of_the_slot_itself() {
        // The ports of a node need not follow each other.
        let mut peer = member(reach(&[], &["198.51.100.9"], &[]));
        (peer.state.slots.a.port, peer.state.slots.b.port) = (6000, 4000);
        let ports = |peer: &Member| {
            Slot::ALL.map(|slot| {
                candidates(&home(), peer, slot).into_iter().map(|one| one.to.port()).collect::<Vec<_>>()
            })
        };
        // What the option gives is among a node's external addresses.
        assert_eq!(ports(&peer), [[6000], [4000]]);
        let without = |text: &str| Endpoint { address: ip(text), port: None };
        peer.prescribed = Some(vec![without("198.51.100.7"), without("2001:db8::7")]);
        assert_eq!(ports(&peer), [[6000, 6000], [4000, 4000]]);
        peer.name = Some("n2.example.org".parse().unwrap());
        assert_eq!(found(&home(), &peer)[0], (Kind::Named, "198.51.100.7:6000".to_owned()));
        assert_eq!(ports(&peer), [[6000, 6000], [4000, 4000]], "by name as well");
    }

    #[test]
    fn families_alternate_and_nothing_is_tried_twice() {
        let peer = member(reach(
            &["198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2"],
            &["198.51.100.1"],
            &[],
        ));
        let order: Vec<IpAddr> = candidates(&home(), &peer, Slot::A).iter().map(|one| one.to.ip()).collect();
        assert_eq!(order, ["198.51.100.1", "2001:db8::1", "198.51.100.2", "2001:db8::2"].map(ip));
    }
}
