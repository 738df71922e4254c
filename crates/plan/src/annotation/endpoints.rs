//! The annotation `meshd.dev/endpoints`: ways to reach a node. None of them grants the node anything.

use std::net::{IpAddr, SocketAddr};

use keyring::{PerSlot, Slot};
use serde::{Deserialize, Serialize};

use super::{AnnotationError, VERSION, parse_versioned};
use crate::admission::Endpoint;
use crate::prefix;

/// Most addresses on a node's own links that it publishes. Version 0.1 published up to 16, which are still read.
pub const MAX_ENDPOINTS: usize = 16;
/// Most addresses that lead to a node although they are on none of its links.
pub const MAX_EXTERNAL: usize = 4;
/// Most mapped addresses of one slot.
pub const MAX_OBSERVED: usize = 2;

/// The annotation `meshd.dev/endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Addresses on the node's own links, the best first; the ports are in the state annotation.
    pub addresses: Vec<IpAddr>,
    /// Addresses that lead to the node although they are on none of its links, with the same ports.
    pub external: Vec<IpAddr>,
    /// Where peers see the node's datagrams come from, by slot, if that is not an address of its own.
    pub observed: PerSlot<Vec<SocketAddr>>,
    /// How the NAT in front of the node maps addresses.
    pub mapping: Mapping,
    /// Whether the node is behind NAT, so that it must be followed to wherever it sends from.
    pub nat: bool,
    /// Grows with every change: of two lists from the same node the one with the higher number is the later one.
    pub sequence: u64,
}

/// How the NAT in front of a node maps its address and port (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// Not known: too few peers have reported.
    #[default]
    Unknown,
    /// There is no NAT: peers see the node's own address and port.
    None,
    /// The same for every destination.
    Easy,
    /// Another one for each destination, so that nobody can know it in advance.
    Hard,
}

impl Mapping {
    /// The name in status, metrics and annotations.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::Easy => "easy",
            Self::Hard => "hard",
        }
    }

    /// Whether there is a NAT.
    pub const fn is_mapped(self) -> bool {
        matches!(self, Self::Easy | Self::Hard)
    }
}

impl Endpoints {
    /// The first endpoint, with the ports that the node publishes.
    pub fn first(&self) -> Option<Endpoint> {
        let address = self.addresses.iter().chain(&self.external).next()?;
        Some(Endpoint { address: *address, port: None })
    }

    /// Writes the canonical text.
    pub fn render(&self) -> String {
        let observed = self.observed.iter().any(|(_, sockets)| !sockets.is_empty());
        let wire = WireEndpoints {
            v: VERSION,
            addresses: self.addresses.clone(),
            nat: self.nat,
            n: self.sequence,
            ext: self.external.clone(),
            seen: observed.then(|| WireObserved { a: self.observed.a.clone(), b: self.observed.b.clone() }),
            map: self.mapping,
        };
        // Addresses, numbers and names always serialize.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Reads an annotation.
    pub fn parse(text: &str) -> Result<Self, AnnotationError> {
        let wire: WireEndpoints = parse_versioned(text)?;
        let seen = wire.seen.unwrap_or_default();
        let read = Self {
            addresses: wire.addresses,
            external: wire.ext,
            observed: PerSlot { a: seen.a, b: seen.b },
            mapping: wire.map,
            nat: wire.nat,
            sequence: wire.n,
        };
        read.check()?;
        Ok(read)
    }

    /// Whether it is something that a node may publish.
    pub fn check(&self) -> Result<(), AnnotationError> {
        let observed = |slot: Slot| (self.observed.get(slot).len(), MAX_OBSERVED);
        let counts = [
            (self.addresses.len(), MAX_ENDPOINTS),
            (self.external.len(), MAX_EXTERNAL),
            observed(Slot::A),
            observed(Slot::B),
        ];
        if let Some((found, most)) = counts.into_iter().find(|(found, most)| found > most) {
            return Err(AnnotationError::TooManyEndpoints { found, most });
        }
        let sockets = || self.observed.a.iter().chain(&self.observed.b);
        if let Some(socket) = sockets().find(|socket| socket.port() == 0) {
            return Err(AnnotationError::EndpointAddress { address: socket.ip() });
        }
        let addresses = self.addresses.iter().chain(&self.external).copied();
        match addresses.chain(sockets().map(SocketAddr::ip)).find(|address| prefix::is_special(*address)) {
            Some(address) => Err(AnnotationError::EndpointAddress { address }),
            None => Ok(()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireEndpoints {
    v: u64,
    addresses: Vec<IpAddr>,
    #[serde(default)]
    nat: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    n: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ext: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<WireObserved>,
    #[serde(default, skip_serializing_if = "is_unknown")]
    map: Mapping,
}

#[derive(Default, Serialize, Deserialize)]
struct WireObserved {
    #[serde(default)]
    a: Vec<SocketAddr>,
    #[serde(default)]
    b: Vec<SocketAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_unknown(mapping: &Mapping) -> bool {
    matches!(mapping, Mapping::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Endpoints {
        let socket = |text: &str| text.parse().unwrap();
        Endpoints {
            addresses: vec!["172.31.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap()],
            external: vec!["203.0.113.9".parse().unwrap()],
            observed: PerSlot {
                a: vec![socket("198.51.100.1:40001"), socket("[2001:db8::5]:51840")],
                b: vec![socket("198.51.100.1:40002")],
            },
            mapping: Mapping::Easy,
            nat: true,
            sequence: 7,
        }
    }

    #[test]
    fn what_is_rendered_is_parsed_again() {
        for endpoints in [Endpoints::default(), whole()] {
            assert_eq!(Endpoints::parse(&endpoints.render()), Ok(endpoints));
        }
    }

    #[test]
    fn what_version_0_1_published_is_read_and_its_reader_is_given_the_same_fields() {
        let former = r#"{"v":1,"addresses":["192.0.2.1"],"nat":true}"#;
        let read = Endpoints::parse(former).unwrap();
        assert_eq!((read.addresses.len(), read.nat, read.mapping), (1, true, Mapping::Unknown));
        assert_eq!(read.render(), former);
    }

    #[test]
    fn the_longest_one_fits_an_annotation() {
        let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, last]);
        let socket = |last| SocketAddr::new(v6(last), 65535);
        let longest = Endpoints {
            addresses: (1..=8).map(|last| v6(0xfff0 + last)).collect(),
            external: (1..=4).map(|last| v6(0xffe0 + last)).collect(),
            observed: PerSlot::from_fn(|_| vec![socket(0xfffe), socket(0xffff)]),
            mapping: Mapping::Unknown,
            nat: true,
            sequence: u64::MAX,
        };
        let longest = Endpoints { mapping: Mapping::Hard, ..longest };
        let text = longest.render();
        assert!(text.len() <= super::super::MAX_LEN, "{} bytes", text.len());
        assert_eq!(Endpoints::parse(&text), Ok(longest));
    }

    #[test]
    fn too_many_or_useless_endpoints_are_refused() {
        let five = vec![IpAddr::from([203, 0, 113, 1]); 5];
        let three = vec![SocketAddr::from(([203, 0, 113, 1], 1)); 3];
        for bad in [
            Endpoints { external: five, ..whole() },
            Endpoints { observed: PerSlot { a: three, b: Vec::new() }, ..whole() },
            Endpoints { external: vec![[127, 0, 0, 1].into()], ..whole() },
            Endpoints {
                observed: PerSlot { a: vec![([203, 0, 113, 1], 0).into()], b: Vec::new() },
                ..whole()
            },
        ] {
            assert!(Endpoints::parse(&bad.render()).is_err(), "{bad:?}");
        }
    }
}
