//! An underlay of several networks: sites behind NAT routers, and a backbone that connects them, as the internet does.
//!
//! ```text
//!            backbone (routes public addresses, no NAT)
//!      ┌─────────┬───────┴───┬────────────┬─────────┐
//!     wan       wan         wan          eth0      eth0
//!  ┌cloud──┐ ┌home───┐  ┌carrier─┐      ┌─api─┐  ┌outside┐
//!  │1:1 NAT│ │NAT    │  │NAT  wan┼─┐    └─────┘  └───────┘
//!  └─lan───┘ └─lan───┘  └────────┘ │
//!   eth0      eth0 eth0        ┌home 2─┐
//!   ┌n1┐      ┌n2┐ ┌n3┐        └─lan───┘
//! ```
//!
//! Routers are hosts of the lab with an nft ruleset. What each kind maps and filters is tested with sockets, in the terms
//! of RFC 4787. A site may have IPv6 beside IPv4, or alone: it is routed and not translated.

mod backbone;
mod conntrack;
mod router;
mod rules;
mod six;

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnetwork::{Ipv4Network, Ipv6Network};

pub use backbone::Backbone;
pub use router::Router;

/// How a router translates addresses and which packets from outside it lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nat {
    /// A cloud's: each node has a public address of its own, which is on none of its links. Ports stay. From outside,
    /// packets to these UDP ports pass, or to all ports if there are none here.
    OneToOne(Vec<RangeInclusive<u16>>),
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    Restricted,
    /// Endpoint-independent mapping, address and port-dependent filtering, no hairpinning: most routers in homes.
    Home,
    /// Address and port-dependent mapping to random ports, and filtering.
    Symmetric,
    /// What `masquerade` does in nft: a port stays if that is possible for this destination, else it is replaced. Filtering is
    /// address and port-dependent.
    Masquerade,
}

/// A network behind a router, with its nodes; or a carrier's, with other sites behind it.
#[derive(Clone, Debug)]
pub struct Site {
    name: String,
    nat: Nat,
    /// None where there is IPv6 alone.
    lan: Option<Ipv4Network>,
    six: Option<Ipv6Network>,
    nodes: Vec<u8>,
    behind: Option<String>,
}

impl Site {
    /// A site whose router is connected to the backbone. Nodes are given by their numbers; the `lan` has the router at its
    /// first address and node N at address 10 + N.
    pub fn new(name: &str, nat: Nat, lan: Ipv4Network, nodes: &[u8]) -> Self {
        Self { name: name.to_owned(), nat, lan: Some(lan), six: None, nodes: nodes.to_vec(), behind: None }
    }

    /// A site without IPv4. Its router lets in what was asked for, and what `nat` has open.
    pub fn only_v6(name: &str, nat: Nat, range: Ipv6Network, nodes: &[u8]) -> Self {
        Self { name: name.to_owned(), nat, lan: None, six: Some(range), nodes: nodes.to_vec(), behind: None }
    }

    /// Gives the site IPv6 as well. Its router has to be connected to the backbone.
    #[must_use]
    pub fn and_v6(mut self, range: Ipv6Network) -> Self {
        self.six = Some(range);
        self
    }

    /// Connects the site's router to another site's instead, which comes before it in the list.
    #[must_use]
    pub fn behind(mut self, site: &str) -> Self {
        self.behind = Some(site.to_owned());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind of its router.
    pub const fn nat(&self) -> &Nat {
        &self.nat
    }

    /// The numbers of its nodes.
    pub fn nodes(&self) -> &[u8] {
        &self.nodes
    }
}

/// The address of the backbone on every link to it.
const BACKBONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// First public addresses of routers, of nodes behind 1:1 NAT, and of hosts without a router, all of RFC 5737.
mod public {
    use super::Ipv4Addr;

    pub(super) const fn router(site: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, site.saturating_mul(10))
    }

    pub(super) const fn node(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, number)
    }

    pub(super) const fn host(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, number)
    }
}

/// The address that replaces another one, `step` further on.
fn next(address: Ipv4Addr, step: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits().wrapping_add(step))
}

/// An address of a range by its number; the range's own address if there is none.
fn nth(range: Ipv4Network, number: u32) -> Ipv4Addr {
    range.nth(number).unwrap_or_else(|| range.network())
}
