//! The backbone, what is connected to it, and what can happen to paths across it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network};
use serde_json::Value;

use super::router::Router;
use super::rules::Mapping;
use super::{BACKBONE, Nat, Site, next, nth, public, six};
use crate::address::mac_text;
use crate::error::Error;
use crate::host::Host;
use crate::mounts::OUTER_PROC;
use crate::plain;
use crate::space::Space;
use crate::underlay::{wait_forwarding, wait_up};

/// MTU in bytes of every link unless it was narrowed.
const MTU: u32 = 1500;

/// The sites of a lab, and the router between them.
#[derive(Debug)]
pub struct Backbone {
    routers: Vec<Router>,
    core: Host,
    /// Whether any site has IPv6.
    has_v6: bool,
}

impl Backbone {
    /// Creates the backbone and the sites' routers, without nodes.
    pub(crate) fn create(sites: &[Site], logs: &Path) -> Result<Self, Error> {
        let has_v6 = sites.iter().any(|site| site.six.is_some());
        let core = router_host("backbone", BACKBONE, has_v6, logs)?;
        core.ip(&format!("addr add {BACKBONE}/32 dev lo\n"))?;
        let mut backbone = Self { core, routers: Vec::new(), has_v6 };
        for (site, number) in sites.iter().zip(1..) {
            backbone.add_site(site, number, logs)?;
        }
        let rules = core_rules(&backbone.core_links());
        backbone.core.command("nft").args(["-f", "-"]).input(rules).run()?;
        Ok(backbone)
    }

    /// The routers of all sites, in the order of the sites.
    pub fn routers(&self) -> &[Router] {
        &self.routers
    }

    /// The router of a site.
    pub fn router(&self, site: &str) -> Result<&Router, Error> {
        self.routers.iter().find(|router| router.site().name() == site).ok_or_else(|| no_site(site))
    }

    /// The router of the site that a node is in.
    pub fn router_of(&self, node: &Host) -> Result<&Router, Error> {
        self.router_for(node.number())
    }

    /// Gives a site's router another address outside, as a provider does after a new dial-in. All mappings are lost.
    pub fn renumber(&self, site: &str) -> Result<(), Error> {
        let router = self.router(site)?;
        let (former, new) = router.renumber()?;
        router.set_addresses(vec![IpNetwork::from(std::net::IpAddr::from(new))]);
        self.reroute(router, Some(former), new)
    }

    /// Gives a node behind 1:1 NAT another public address. What its Node object says is not changed.
    pub fn renumber_public(&self, node: &Host) -> Result<(), Error> {
        let router = self.router_of(node)?;
        let (Some(std::net::IpAddr::V4(former)), Some(internal)) = (router.external_of(node), node.own_v4())
        else {
            return Err(no_site(node.name()));
        };
        let external = next(former, 20);
        router.map(Mapping { number: node.number(), internal, external })?;
        node.set_external(vec![external.into()]);
        self.reroute(router, Some(former), external)
    }

    /// Gives a node another address in its LAN, as a DHCP server does. What its Node object says is not changed.
    pub fn renumber_node(&self, node: &Host) -> Result<(), Error> {
        let router = self.router_of(node)?;
        let former = node.own_v4().ok_or_else(|| no_site(node.name()))?;
        let internal = next(former, 40);
        let (lan, gateway) = ipv4_of(router)?;
        let bits = lan.prefix();
        node.ip(&format!(
            "addr del {former}/{bits} dev eth0\naddr add {internal}/{bits} dev eth0\n\
             route replace default via {gateway} dev eth0\n"
        ))?;
        node.set_addresses(vec![in_lan(internal, lan)]);
        match router.external_of(node) {
            Some(std::net::IpAddr::V4(external)) => {
                router.map(Mapping { number: node.number(), internal, external })
            }
            _ => Ok(()),
        }
    }

    /// Lets no packet of more than `mtu` bytes pass between a site and the backbone, in either direction, and swallows the
    /// ICMP messages that would say so. Fragments don't pass either: senders would not notice a path that is fragmented.
    pub fn narrow(&self, site: &str, mtu: u32) -> Result<(), Error> {
        let router = self.router(site)?;
        for (host, link) in [(self.upper_of(router), router.link()), (&**router, "wan")] {
            host.ip(&format!("link set {link} mtu {mtu}\n"))?;
            let rules = format!(
                "table ip narrow\ndelete table ip narrow\ntable ip narrow {{\n\
                 chain arriving {{ type filter hook prerouting priority -450; policy accept;\n\
                 iifname \"{link}\" ip frag-off & 0x3fff != 0 drop\n}}\n\
                 chain said {{ type filter hook output priority raw; policy accept;\n\
                 icmp type destination-unreachable drop\n}}\n}}\n"
            );
            host.command("nft").args(["-f", "-"]).input(rules).run()?;
        }
        Ok(())
    }

    /// Undoes [`narrow`](Self::narrow).
    pub fn widen(&self, site: &str) -> Result<(), Error> {
        let router = self.router(site)?;
        for (host, link) in [(self.upper_of(router), router.link()), (&**router, "wan")] {
            host.command("nft").args(["delete", "table", "ip", "narrow"]).run()?;
            host.ip(&format!("link set {link} mtu {MTU}\n"))?;
        }
        Ok(())
    }

    /// Drops all UDP between two sites on the backbone, or lets it pass again.
    pub fn set_blocked(&self, one: &str, other: &str, blocked: bool) -> Result<(), Error> {
        let (one, other) = (self.core_link(self.router(one)?), self.core_link(self.router(other)?));
        let verb = if blocked { "add" } else { "delete" };
        let pairs = format!("{{ \"{one}\" . \"{other}\", \"{other}\" . \"{one}\" }}");
        let line = format!("{verb} element ip backbone blocked {pairs}\n");
        self.core.command("nft").args(["-f", "-"]).input(line).run().map(drop)
    }

    /// How many UDP packets went from one site to another over the backbone so far.
    pub fn forwarded(&self, from: &str, to: &str) -> Result<u64, Error> {
        let name = pair(self.core_link(self.router(from)?), self.core_link(self.router(to)?));
        let list = ["-j", "list", "counter", "ip", "backbone", &name];
        let listed = self.core.command("nft").args(list).run()?;
        let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
        let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
        Ok(objects.iter().find_map(|object| object["counter"]["packets"].as_u64()).unwrap_or_default())
    }

    /// Creates a node in the site that has its number.
    pub(crate) fn plug_node(&self, name: &str, number: u8, mtu: u32, logs: &Path) -> Result<Host, Error> {
        let router = self.router_for(number)?;
        let site = router.site();
        let own = site.lan.map(|lan| (lan, nth(lan, 10 + u32::from(number))));
        let host = Host::new(number, Space::create(name)?, Vec::new(), logs);
        if site.six.is_some() {
            six::enable(&host, true)?;
        }
        router.ip(&format!(
            "link add port{number} mtu {mtu} type veth peer name eth0 mtu {mtu} address {} netns {OUTER_PROC}/{}/ns/net\n\
             link set port{number} master lan\nlink set port{number} up\n",
            mac_text(host.mac()),
            host.pid()
        ))?;
        host.ip("link set eth0 up\n")?;
        let mut addresses = Vec::new();
        if let (Some((lan, internal)), Some(gateway)) = (own, router.gateway()) {
            host.ip(&format!(
                "addr add {internal}/{} dev eth0\nroute add default via {gateway}\n",
                lan.prefix()
            ))?;
            addresses.push(in_lan(internal, lan));
        }
        if let Some(range) = site.six {
            addresses.push(six::connect_node(&host, range)?);
        }
        host.set_addresses(addresses);
        wait_forwarding(router.space(), &format!("port{number}"), &host)?;
        if let (Nat::OneToOne(_), Some((_, internal))) = (site.nat(), own) {
            let external = public::node(number);
            router.map(Mapping { number, internal, external })?;
            self.reroute(router, None, external)?;
            host.set_external(vec![external.into()]);
        }
        Ok(host)
    }

    /// Creates a host with a public address of its own.
    pub(crate) fn plug_public(&self, name: &str, number: u8, logs: &Path) -> Result<Host, Error> {
        let address = public::host(number);
        let host = Host::new(
            number,
            Space::create(name)?,
            vec![IpNetwork::from(std::net::IpAddr::from(address))],
            logs,
        );
        let port = format!("port{number}");
        connect(&self.core, &port, BACKBONE, &host, "eth0", address)?;
        if self.has_v6 {
            six::enable(&host, true)?;
            let six = six::connect_public(&self.core, &port, &host)?;
            host.set_addresses(vec![IpNetwork::from(std::net::IpAddr::from(address)), six]);
        }
        Ok(host)
    }

    /// Routes a further address to a public host.
    pub(crate) fn route_to(&self, host: &Host, address: Ipv4Addr) -> Result<(), Error> {
        self.core.ip(&format!("route add {address}/32 dev port{}\n", host.number()))
    }

    /// Where a host's link ends, and that end's name.
    pub(crate) fn port(&self, host: &Host) -> (&Host, String) {
        let port = format!("port{}", host.number());
        let above = self.router_for(host.number()).map_or(&self.core, |router| &**router);
        (above, port)
    }

    fn add_site(&mut self, site: &Site, number: u8, logs: &Path) -> Result<(), Error> {
        let upper = site.behind.as_ref().map(|behind| {
            self.routers
                .iter()
                .position(|router| router.site().name() == behind)
                .ok_or_else(|| no_site(behind))
        });
        let upper = upper.transpose()?;
        let (external, gateway) = match upper.and_then(|at| self.routers.get(at)) {
            Some(carrier) => {
                let (lan, gateway) = ipv4_of(carrier)?;
                (nth(lan, u32::from(number) * 10), gateway)
            }
            None => (public::router(number), BACKBONE),
        };
        let host = router_host(site.name(), external, site.six.is_some(), logs)?;
        let link = format!("site{number}");
        let above = upper.and_then(|at| self.routers.get(at)).map_or(&self.core, |carrier| &**carrier);
        connect(above, &link, gateway, &host, "wan", external)?;
        let router = Router::new(host, site.clone(), upper, link, external);
        if site.nodes().is_empty() {
            // A carrier's: sites behind it reach it by this address on links of their own.
            router.ip(&format!("addr add {}/32 dev lo\n", ipv4_of(&router)?.1))?;
        } else {
            router.ip("link add lan type bridge mcast_snooping 0\nlink set lan up\n")?;
            if let Ok((lan, own)) = ipv4_of(&router) {
                router.ip(&format!("addr add {own}/{} dev lan\n", lan.prefix()))?;
            }
            if let Some(range) = site.six {
                six::connect_router(above, router.link(), &router, range)?;
            }
        }
        router.flush()?;
        self.routers.push(router);
        Ok(())
    }

    /// Routes an address of a router to it, from where the router is connected.
    fn reroute(&self, router: &Router, former: Option<Ipv4Addr>, new: Ipv4Addr) -> Result<(), Error> {
        let link = router.link();
        let mut lines = format!("route add {new}/32 dev {link}\n");
        if let Some(former) = former {
            let _infallible = writeln!(lines, "route del {former}/32 dev {link}");
        }
        self.upper_of(router).ip(&lines)
    }

    fn upper_of(&self, router: &Router) -> &Host {
        router.upper().and_then(|at| self.routers.get(at)).map_or(&self.core, |carrier| &**carrier)
    }

    /// The backbone's link over which a site is reached.
    fn core_link<'a>(&'a self, router: &'a Router) -> &'a str {
        match router.upper().and_then(|at| self.routers.get(at)) {
            Some(carrier) => self.core_link(carrier),
            None => router.link(),
        }
    }

    fn core_links(&self) -> Vec<&str> {
        self.routers.iter().filter(|router| router.upper().is_none()).map(Router::link).collect()
    }

    fn router_for(&self, number: u8) -> Result<&Router, Error> {
        let has = |router: &&Router| router.site().nodes().contains(&number);
        self.routers.iter().find(has).ok_or_else(|| no_site(&format!("with node {number}")))
    }
}

/// Connects a host to a router by a link of their own, over which all its packets go.
fn connect(
    above: &Host,
    port: &str,
    gateway: Ipv4Addr,
    host: &Host,
    link: &str,
    address: Ipv4Addr,
) -> Result<(), Error> {
    above.ip(&format!(
        "link add {port} mtu {MTU} type veth peer name {link} mtu {MTU} address {} netns {OUTER_PROC}/{}/ns/net\n\
         link set {port} up\n",
        mac_text(host.mac()),
        host.pid()
    ))?;
    host.ip(&format!(
        "link set {link} up\naddr add {address}/32 dev {link}\nroute add {gateway}/32 dev {link}\n\
         route add default via {gateway} dev {link}\n"
    ))?;
    above.ip(&format!("route add {address}/32 dev {port}\n"))?;
    wait_up(above.space(), port)?;
    wait_up(host.space(), link)
}

/// A host that forwards, with or without IPv6.
fn router_host(name: &str, address: Ipv4Addr, has_v6: bool, logs: &Path) -> Result<Host, Error> {
    let host =
        Host::new(0, Space::create(name)?, vec![IpNetwork::from(std::net::IpAddr::from(address))], logs);
    six::enable(&host, has_v6)?;
    plain::enable_forwarding(&host)?;
    Ok(host)
}

/// Counts UDP from each site to each other, and drops it between those that are blocked.
fn core_rules(links: &[&str]) -> String {
    let mut counters = String::new();
    let mut counting = String::new();
    for from in links {
        for to in links.iter().filter(|to| *to != from) {
            let name = pair(from, to);
            let _infallible = writeln!(counters, "counter {name} {{ }}");
            let _infallible = writeln!(
                counting,
                "iifname \"{from}\" oifname \"{to}\" meta l4proto udp counter name {name}"
            );
        }
    }
    format!(
        "table ip backbone {{\n{counters}set blocked {{ type ifname . ifname; }}\n\
         chain forward {{ type filter hook forward priority filter; policy accept;\n\
         iifname . oifname @blocked meta l4proto udp drop\n{counting}}}\n}}\n"
    )
}

fn pair(from: &str, to: &str) -> String {
    format!("{from}_{to}")
}

fn in_lan(address: Ipv4Addr, lan: Ipv4Network) -> IpNetwork {
    // The prefix length is that of a valid range.
    IpNetwork::new(address.into(), lan.prefix()).unwrap_or(IpNetwork::V4(lan))
}

/// The LAN of a router's site, and the router's address there.
fn ipv4_of(router: &Router) -> Result<(Ipv4Network, Ipv4Addr), Error> {
    router.site().lan.zip(router.gateway()).ok_or_else(|| no_site(router.site().name()))
}

fn no_site(name: &str) -> Error {
    Error::NoSite(name.to_owned())
}
