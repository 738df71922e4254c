//! The pair of interfaces between a node and one of its pods: created, inspected, removed.
//!
//! Both ends are created by one message, the pod's end directly in its namespace: moving a link between namespaces
//! waits for a grace period of the kernel, which is longer than all the rest. Neighbour entries are permanent on
//! both ends, so the first packet does not wait for ARP or neighbour discovery, and no other host can answer in
//! the other's name. A guest behind a bridge in the pod has no such entry: the node's end answers it for the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use plan::network::ROUTE_PROTOCOL;
use rustix::io::Errno;

use crate::error::{HostError, Subject};
use crate::netns::NetworkNamespace;
use crate::socket::RouteSocket;
use crate::{message, sysctl};

/// The gateway that every pod has for IPv4. No interface has the address: the pod's neighbour entry leads to the
/// node's end of the pair, which answers ARP requests for it as long as the node forwards and has a default route
/// (`arp_process` in `net/ipv4/arp.c`).
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6: a link-local address, which the node's end of each pair has.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How long the node's end may take to get its carrier.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the pod's end may take to accept packets for its IPv6 address, and how often it is asked.
const OWN_ROUTE_TIMEOUT: Duration = Duration::from_secs(2);
const OWN_ROUTE_POLL: Duration = Duration::from_micros(100);

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A pair to be created.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Name of the node's end.
    pub host_link: &'a str,
    /// Ethernet address of the node's end.
    pub host_mac: Mac,
    /// Name of the pod's end.
    pub pod_link: &'a str,
    /// Ethernet address of the pod's end.
    pub pod_mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The pod's addresses, at most one of each family.
    pub addresses: &'a [IpAddr],
    /// The address that the node itself prefers towards the pod over IPv6. Left out while the node does not have it.
    pub source: Option<Ipv6Addr>,
}

/// The end of a pair as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Interface index.
    pub index: u32,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// Destinations of the routes that lead out of it.
    pub routes: Vec<IpNetwork>,
}

/// Creates a pair and everything that packets between the node and the pod need. Fails if the node's end exists
/// already. If a later step fails, what was created is left for [`detach`].
pub fn attach(pair: &Pair<'_>, netns: &NetworkNamespace) -> Result<(), HostError> {
    let subject = Subject::Veth(pair.host_link.to_owned());
    let mut host = RouteSocket::open()?;
    host.perform("create", &subject, &pair_message(pair, netns), NLM_F_CREATE | NLM_F_EXCL)?;
    netns.run(|| inside(pair, &subject))??;
    let index = required_index_of(pair.host_link, &subject)?;
    if pair.addresses.iter().any(IpAddr::is_ipv4) {
        sysctl::write(&format!("net/ipv4/conf/{}/rp_filter", pair.host_link), "1")?;
        // Answers in another's name are put off by up to 0.8 s, so that their owner's come first; here there is none.
        sysctl::write(&format!("net/ipv4/neigh/{}/proxy_delay", pair.host_link), "0")?;
    }
    if pair.addresses.iter().any(IpAddr::is_ipv6) {
        enable_ipv6(pair.host_link)?;
    }
    let accept_ra = format!("net/ipv6/conf/{}/accept_ra", pair.host_link);
    if sysctl::read(&accept_ra)?.is_some() {
        // Where hosts take router advertisements although they forward, a pod could announce itself as the
        // node's default router.
        sysctl::write(&accept_ra, "0")?;
    }
    set_towards_pod(&mut host, &subject, index, Some(pair.pod_mac), pair.addresses, pair.source)?;
    wait_for_carrier(&mut host, pair.host_link, &subject)
}

/// Sets what the node has to reach a pod, and to answer it.
fn set_towards_pod(
    socket: &mut RouteSocket,
    subject: &Subject,
    index: u32,
    pod_mac: Option<Mac>,
    addresses: &[IpAddr],
    source: Option<Ipv6Addr>,
) -> Result<(), HostError> {
    let requests = |source| {
        addresses.iter().flat_map(move |address| {
            [
                pod_mac.map(|mac| neighbour(index, *address, mac)),
                Some(route_to_pod(index, *address, source)),
                Some(answer_for_gateway(index, *address)),
            ]
            .into_iter()
            .flatten()
        })
    };
    match socket.perform_all(SET_TOWARDS_POD, subject, requests(source), SET) {
        // The answer for a source that the node does not have, or not yet.
        Err(error) if source.is_some() && error.errno() == Some(Errno::INVAL.raw_os_error()) => {
            socket.perform_all(SET_TOWARDS_POD, subject, requests(None), SET)
        }
        done => done,
    }
}

/// A pod as the node's end of its pair leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Name of the node's end.
    pub host_link: String,
    /// Ethernet address of the pod's end, if it is known.
    pub pod_mac: Option<Mac>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// As in [`Pair`].
    pub source: Option<Ipv6Addr>,
}

/// Addresses of pods to which no route leads although the pod's link is there, or one without the source that it should have
/// and could. Most of the time the kernel is only asked for each address; all routes are read if an answer is not as expected.
pub fn unrouted(pods: &[Attached]) -> Result<BTreeSet<IpAddr>, HostError> {
    let mut socket = RouteSocket::open()?;
    let mut suspects = BTreeMap::new();
    let sources: BTreeSet<Ipv6Addr> = pods.iter().filter_map(|pod| pod.source).collect();
    let mut usable = BTreeSet::new();
    for source in sources {
        if is_own(&mut socket, source.into(), &Subject::Routes)? {
            usable.insert(source);
        }
    }
    for pod in pods {
        let subject = Subject::Veth(pod.host_link.clone());
        let Some(index) = index_of(&pod.host_link, &subject)? else { continue };
        for address in &pod.addresses {
            let request = RouteNetlinkMessage::GetRoute(message::host_route(*address, RouteProtocol::Unspec));
            let found = match socket.find("read a route of", &subject, &request) {
                // The answer for an address that is unreachable.
                Err(error) if error.errno().is_none() => return Err(error),
                found => found.ok().flatten(),
            };
            let source = preferred(*address, pod.source.filter(|source| usable.contains(source)));
            let leads_there = |message| {
                matches!(message, RouteNetlinkMessage::NewRoute(route)
                if message::link_of(&route) == Some(index) && has_source(&route, source))
            };
            if !found.is_some_and(leads_there) {
                suspects.insert(*address, (index, source));
            }
        }
    }
    if !suspects.is_empty() {
        // A policy rule of another program may have answered.
        let all =
            socket.dump("list", &Subject::Routes, &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        suspects.retain(|address, (index, source)| {
            let leads_there = |message: &RouteNetlinkMessage| {
                route_by(message, *index) == Some(IpNetwork::from(*address))
                    && matches!(message, RouteNetlinkMessage::NewRoute(route) if has_source(route, *source))
            };
            !all.iter().any(leads_there)
        });
    }
    Ok(suspects.into_keys().collect())
}

/// Sets again what leads to a pod; returns whether it could be. Not for a link that is gone or down: the kernel takes no
/// routes for it.
pub fn restore(pod: &Attached) -> Result<bool, HostError> {
    let subject = Subject::Veth(pod.host_link.clone());
    let mut socket = RouteSocket::open()?;
    let Some(link) = find_link(&mut socket, &pod.host_link, &subject)? else { return Ok(false) };
    if !link.header.flags.contains(LinkFlags::Up) {
        return Ok(false);
    }
    let index = link.header.index;
    match set_towards_pod(&mut socket, &subject, index, pod.pod_mac, &pod.addresses, pod.source) {
        Ok(()) => Ok(true),
        // It went meanwhile.
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until the node's end transmits. It was set up while the pod's end was down; the kernel notices that this has
/// changed in a worker of its own (`linkwatch_do_dev` in `net/core/link_watch.c`) and until then silently drops what is
/// sent. On a busy node that takes longer than all the rest. A missing carrier is no error: the pod can do without its
/// first packets.
fn wait_for_carrier(host: &mut RouteSocket, host_link: &str, subject: &Subject) -> Result<(), HostError> {
    let give_up = Instant::now() + CARRIER_TIMEOUT;
    while Instant::now() < give_up {
        let found = find_link(host, host_link, subject)?;
        let is_up = |message: &LinkMessage| message.attributes.contains(&LinkAttribute::OperState(State::Up));
        if found.is_none_or(|message| is_up(&message)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Removes a pair by the node's end, with its routes and neighbour entries; returns whether there was one.
pub fn detach(host_link: &str) -> Result<bool, HostError> {
    let subject = Subject::Veth(host_link.to_owned());
    if index_of(host_link, &subject)?.is_none() {
        return Ok(false);
    }
    let message = message::link_named(host_link);
    match RouteSocket::open()?.perform("remove", &subject, &RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets `lo` up or down, in the network namespace of the calling thread.
pub fn set_loopback(up: bool) -> Result<(), HostError> {
    let subject = Subject::Veth("lo".to_owned());
    let index = required_index_of("lo", &subject)?;
    let (operation, message) =
        if up { ("set up", message::link_up(index)) } else { ("set down", message::link_down(index)) };
    RouteSocket::open()?.perform(operation, &subject, &RouteNetlinkMessage::SetLink(message), 0)
}

/// Reads one end, in the network namespace of the calling thread. `None` if there is no such link.
pub fn inspect(link: &str) -> Result<Option<End>, HostError> {
    let subject = Subject::Veth(link.to_owned());
    let mut socket = RouteSocket::open()?;
    let Some(message) = find_link(&mut socket, link, &subject)? else { return Ok(None) };
    let mut end = End {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..End::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => end.mtu = *mtu,
            LinkAttribute::Address(bytes) => end.mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let addresses =
        socket.dump("list", &subject, &RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    end.addresses = addresses.iter().filter_map(|message| address_on(message, end.index)).collect();
    let routes = socket.dump("list", &subject, &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    end.routes = routes.iter().filter_map(|message| route_by(message, end.index)).collect();
    Ok(Some(end))
}

/// Names of all pods' interfaces on the node.
pub fn host_links() -> Result<Vec<String>, HostError> {
    let found = RouteSocket::open()?.dump(
        "list",
        &Subject::Links,
        &RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    let names = found.iter().filter_map(|found| match found {
        RouteNetlinkMessage::NewLink(link) => message::name_of(link),
        _ => None,
    });
    Ok(names.filter(|name| name.starts_with(crate::POD_LINK_PREFIX)).map(ToOwned::to_owned).collect())
}

/// The interface index of a link. `None` if there is no such link. This query does not wait for the RTNL lock, which
/// others hold for tens of milliseconds while links are removed.
fn index_of(link: &str, subject: &Subject) -> Result<Option<u32>, HostError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    match socket.and_then(|socket| name_to_index(socket, link)) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(HostError::netlink("read", subject.clone(), io::Error::from(errno))),
    }
}

/// What is done for the node's end.
const SET_TOWARDS_POD: &str = "set neighbours and routes of";
/// Creates what is missing and replaces what is there.
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// What is done in the pod's namespace.
fn inside(pair: &Pair<'_>, subject: &Subject) -> Result<(), HostError> {
    if pair.addresses.iter().any(IpAddr::is_ipv6) {
        enable_ipv6(pair.pod_link)?;
    }
    let mut pod = RouteSocket::open()?;
    let lo = required_index_of("lo", subject)?;
    pod.perform("set up the loopback of", subject, &up(lo), 0)?;
    let index = required_index_of(pair.pod_link, subject)?;
    pod.perform("set up the pod's end of", subject, &up(index), 0)?;
    for address in pair.addresses {
        pod.perform("set an address of", subject, &own_address(index, *address), SET)?;
        pod.perform("set the gateway of", subject, &neighbour(index, gateway(*address), pair.host_mac), SET)?;
        pod.perform("set the default route of", subject, &default_route(index, *address), SET)?;
    }
    pair.addresses
        .iter()
        .filter(|address| address.is_ipv6())
        .try_for_each(|address| wait_for_own_route(&mut pod, *address, subject))
}

/// Waits until packets for the pod's IPv6 address are its own: the kernel makes that route in a worker (`addrconf_dad_work`
/// in `net/ipv6/addrconf.c`), and until then drops them. A pod can do without its first packets, so this gives up.
fn wait_for_own_route(pod: &mut RouteSocket, address: IpAddr, subject: &Subject) -> Result<(), HostError> {
    let give_up = Instant::now() + OWN_ROUTE_TIMEOUT;
    while Instant::now() < give_up && !is_own(pod, address, subject)? {
        std::thread::sleep(OWN_ROUTE_POLL);
    }
    Ok(())
}

/// Whether packets for an address are for the host itself.
fn is_own(socket: &mut RouteSocket, address: IpAddr, subject: &Subject) -> Result<bool, HostError> {
    let request = RouteNetlinkMessage::GetRoute(message::host_route(address, RouteProtocol::Unspec));
    match socket.find("read a route of", subject, &request) {
        Ok(found) => Ok(
            matches!(&found, Some(RouteNetlinkMessage::NewRoute(route)) if route.header.kind == RouteType::Local),
        ),
        // The answer for an address that is unreachable.
        Err(error) if error.errno().is_some() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Turns IPv6 on for a link: some runtimes turn it off in new namespaces, and some administrators on the node, but the pod
/// gets an address, so both ends need it. Where it is on, it is not written: a writer retries for the RTNL lock again and
/// again.
fn enable_ipv6(link: &str) -> Result<(), HostError> {
    let disabled = format!("net/ipv6/conf/{link}/disable_ipv6");
    if sysctl::read(&disabled)?.as_deref() == Some("0") { Ok(()) } else { sysctl::write(&disabled, "0") }
}

/// The gateway of the same family.
pub const fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY_V4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY_V6),
    }
}

fn pair_message(pair: &Pair<'_>, netns: &NetworkNamespace) -> RouteNetlinkMessage {
    let end = |name: &str, mac: Mac| {
        let mut message = message::link_named(name);
        message.attributes.extend([LinkAttribute::Mtu(pair.mtu), LinkAttribute::Address(mac.to_vec())]);
        message
    };
    let mut peer = end(pair.pod_link, pair.pod_mac);
    peer.attributes.push(LinkAttribute::NetNsFd(netns.descriptor().as_raw_fd()));
    let mut message = end(pair.host_link, pair.host_mac);
    // The pod's end can't be set up here: it is configured before the two are connected (`veth_newlink` in
    // `drivers/net/veth.c`).
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(message)
}

fn find_link(
    socket: &mut RouteSocket,
    name: &str,
    subject: &Subject,
) -> Result<Option<LinkMessage>, HostError> {
    let message = message::link_named(name);
    match socket.find("read", subject, &RouteNetlinkMessage::GetLink(message))? {
        Some(RouteNetlinkMessage::NewLink(message)) => Ok(Some(message)),
        _ => Ok(None),
    }
}

fn required_index_of(name: &str, subject: &Subject) -> Result<u32, HostError> {
    let missing = || HostError::netlink("read", subject.clone(), io::Error::from(Errno::NODEV));
    index_of(name, subject)?.ok_or_else(missing)
}

fn up(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::SetLink(message::link_up(index))
}

fn own_address(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(message::address(index, address.into()))
}

fn neighbour(index: u32, address: IpAddr, mac: Mac) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewNeighbour(message::neighbour(index, address, mac))
}

/// Lets the node's end answer for the gateway of the address's family, whoever asks. An IPv4 address on the link would be
/// the node's, and be answered for on every other link as well; a link-local one of IPv6 is not.
fn answer_for_gateway(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    match address {
        IpAddr::V4(_) => RouteNetlinkMessage::NewNeighbour(message::proxy_neighbour(index, GATEWAY_V4)),
        IpAddr::V6(_) => own_address(index, GATEWAY_V6.into()),
    }
}

/// The route to the pod.
fn route_to_pod(index: u32, address: IpAddr, source: Option<Ipv6Addr>) -> RouteNetlinkMessage {
    let message = message::host_route(address, RouteProtocol::Other(ROUTE_PROTOCOL));
    let mut message = message::on_link(message, index);
    message
        .attributes
        .extend(preferred(address, source).map(|source| RouteAttribute::PrefSource(source.into())));
    RouteNetlinkMessage::NewRoute(message)
}

/// The preferred source of the route to a pod's address. IPv6 needs one: the kernel would choose the node's address in the
/// podCIDR, which has the longest prefix in common with the pod's (RFC 6724, section 5, rule 8), also for the answer of a
/// server that was asked at another address and is bound to none. IPv4 has none: there the kernel chooses the first address
/// of the node's first link, and it removes routes whose source is removed, as a node's address may be. Of a route of IPv6
/// it then removes the source alone (`fib6_remove_prefsrc` in `net/ipv6/route.c`).
fn preferred(address: IpAddr, source: Option<Ipv6Addr>) -> Option<IpAddr> {
    source.filter(|_| address.is_ipv6()).map(IpAddr::from)
}

/// Whether a route has a preferred source, if one is wanted.
fn has_source(route: &RouteMessage, source: Option<IpAddr>) -> bool {
    source.is_none_or(|source| message::source_of(route) == Some(source))
}

fn default_route(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = match address {
        IpAddr::V4(_) => message::route(Ipv4Addr::UNSPECIFIED.into(), 0, RouteProtocol::Static),
        IpAddr::V6(_) => message::route(Ipv6Addr::UNSPECIFIED.into(), 0, RouteProtocol::Static),
    };
    // The gateway is in no prefix of the pod's: it is on the link because we say so.
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.push(RouteAttribute::Gateway(gateway(address).into()));
    RouteNetlinkMessage::NewRoute(message)
}

fn address_on(message: &RouteNetlinkMessage, index: u32) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.index != index || message.header.scope == AddressScope::Link {
        return None;
    }
    message::address_of(message).map(|network| network.ip())
}

fn route_by(message: &RouteNetlinkMessage, index: u32) -> Option<IpNetwork> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let by_link = message.attributes.contains(&RouteAttribute::Oif(index));
    let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
    let unicast = message.header.kind == RouteType::Unicast;
    if !(by_link && main && unicast) {
        return None;
    }
    message::destination_of(message)
}
