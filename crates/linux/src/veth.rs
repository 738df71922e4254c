//! The pair of interfaces between a node and one of its pods: made whole, looked at, removed.
//!
//! Both ends are made by one message, the pod's end right in its namespace: moving a link between namespaces
//! waits for a grace period of the kernel, which is longer than all the rest. Neighbours are set for good on
//! both ends, so the first packet does not wait for ARP or neighbour discovery, and nobody can answer in the
//! other's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use plan::network::ROUTE_PROTOCOL;

use crate::error::{HostError, Subject};
use crate::exchange::Exchange;
use crate::netns::NetworkNamespace;
use crate::sysctl;

/// The gateway that every pod has for IPv4. Nobody has the address: the pod's neighbour entry leads to the
/// node's end of the pair.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How long the two ends may take to notice each other.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A pair to be made.
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
}

/// The end of a pair as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Number of the link.
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

/// Makes a pair and everything that packets between the node and the pod need. Fails if the node's end exists
/// already. What was made when a later step fails is left for [`detach`].
pub fn attach(pair: &Pair<'_>, netns: &NetworkNamespace) -> Result<(), HostError> {
    let subject = Subject::Veth(pair.host_link.to_owned());
    let mut host = Exchange::open()?;
    host.perform("make", &subject, pair_message(pair, netns), NLM_F_CREATE | NLM_F_EXCL)?;
    netns.run(|| inside(pair, &subject))??;
    let index = number_of(pair.host_link, &subject)?;
    if pair.addresses.iter().any(IpAddr::is_ipv4) {
        sysctl::write(&format!("net/ipv4/conf/{}/rp_filter", pair.host_link), "1")?;
    }
    let accept_ra = format!("net/ipv6/conf/{}/accept_ra", pair.host_link);
    if sysctl::read(&accept_ra)?.is_some() {
        // Where hosts take router advertisements although they forward, a pod could announce itself as the
        // node's default router.
        sysctl::write(&accept_ra, "0")?;
    }
    for address in pair.addresses {
        host.perform("set a neighbour of", &subject, neighbour(index, *address, pair.pod_mac), SET)?;
        host.perform("set a route of", &subject, route_to_pod(index, *address), SET)?;
    }
    wait_until_it_sends(&mut host, pair.host_link, &subject)
}

/// Waits until the node's end takes packets. It was set up while the pod's end was down; the kernel notices that this
/// has changed in a worker of its own (`linkwatch_do_dev` in `net/core/link_watch.c`) and drops what is sent until then,
/// without a word. On a busy node that takes longer than all the rest. An end that stays silent is no error: the pod can
/// do without its first packets.
fn wait_until_it_sends(host: &mut Exchange, host_link: &str, subject: &Subject) -> Result<(), HostError> {
    let give_up = Instant::now() + CARRIER_PATIENCE;
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

/// Removes a pair by the node's end, with its routes and neighbours; says whether there was one.
pub fn detach(host_link: &str) -> Result<bool, HostError> {
    let subject = Subject::Veth(host_link.to_owned());
    if index_of(host_link, &subject)?.is_none() {
        return Ok(false);
    }
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(host_link.to_owned()));
    match Exchange::open()?.perform("remove", &subject, RouteNetlinkMessage::DelLink(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Looks at one end, in the network namespace of the calling thread. `None` if there is no such link.
pub fn inspect(link: &str) -> Result<Option<End>, HostError> {
    let subject = Subject::Veth(link.to_owned());
    let mut exchange = Exchange::open()?;
    let Some(message) = find_link(&mut exchange, link, &subject)? else { return Ok(None) };
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
        exchange.dump("list", &subject, &RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    end.addresses = addresses.iter().filter_map(|message| address_on(message, end.index)).collect();
    let routes = exchange.dump("list", &subject, &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    end.routes = routes.iter().filter_map(|message| route_by(message, end.index)).collect();
    Ok(Some(end))
}

/// Names of all pods' interfaces on the node.
pub fn host_links() -> Result<Vec<String>, HostError> {
    let found = Exchange::open()?.dump(
        "list",
        &Subject::Links,
        &RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    let names = found.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(message) => crate::link::name_of(message),
        _ => None,
    });
    Ok(names.filter(|name| name.starts_with(crate::POD_LINK_PREFIX)).map(ToOwned::to_owned).collect())
}

/// The number of a link. `None` if there is no such link. This way of asking does not wait for the kernel's one
/// lock for changes of links, which others hold for tens of milliseconds while links go away.
fn index_of(link: &str, subject: &Subject) -> Result<Option<u32>, HostError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    match socket.and_then(|socket| name_to_index(socket, link)) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(errno) => Err(HostError::netlink("look at", subject.clone(), errno.into())),
    }
}

/// Made if it is missing, replaced if it is there.
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// What is done in the pod's namespace.
fn inside(pair: &Pair<'_>, subject: &Subject) -> Result<(), HostError> {
    if pair.addresses.iter().any(IpAddr::is_ipv6) {
        // Some runtimes turn IPv6 off in new namespaces; the pod gets an address, so it needs it. Where it is
        // on, it is not written: a writer tries for the kernel's lock again and again.
        let disabled = format!("net/ipv6/conf/{}/disable_ipv6", pair.pod_link);
        if sysctl::read(&disabled)?.as_deref() != Some("0") {
            sysctl::write(&disabled, "0")?;
        }
    }
    let mut pod = Exchange::open()?;
    let lo = number_of("lo", subject)?;
    pod.perform("set up the loopback of", subject, up(lo), 0)?;
    let index = number_of(pair.pod_link, subject)?;
    pod.perform("set up the pod's end of", subject, up(index), 0)?;
    for address in pair.addresses {
        pod.perform("set an address of", subject, own_address(index, *address), SET)?;
        pod.perform("set the gateway of", subject, neighbour(index, gateway(*address), pair.host_mac), SET)?;
        pod.perform("set the default route of", subject, default_route(index, *address), SET)?;
    }
    Ok(())
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
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::Address(mac.to_vec()),
        ];
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
    exchange: &mut Exchange,
    name: &str,
    subject: &Subject,
) -> Result<Option<LinkMessage>, HostError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match exchange.find("look at", subject, RouteNetlinkMessage::GetLink(message))? {
        Some(RouteNetlinkMessage::NewLink(message)) => Ok(Some(message)),
        _ => Ok(None),
    }
}

fn number_of(name: &str, subject: &Subject) -> Result<u32, HostError> {
    let missing = || HostError::netlink("look at", subject.clone(), rustix::io::Errno::NODEV.into());
    index_of(name, subject)?.ok_or_else(missing)
}

fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

fn own_address(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full_length(address);
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    if address.is_ipv6() {
        // The other end knows who has the address; waiting for a duplicate would delay the pod's start.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    RouteNetlinkMessage::NewAddress(message)
}

fn neighbour(index: u32, address: IpAddr, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

/// The route to the pod. It has no preferred source: the kernel removes routes whose source goes away, and a
/// node's address may.
fn route_to_pod(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = route(index, address, RouteProtocol::Other(ROUTE_PROTOCOL));
    message.header.scope = if address.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.destination_prefix_length = full_length(address);
    message.attributes.push(RouteAttribute::Destination(address.into()));
    RouteNetlinkMessage::NewRoute(message)
}

fn default_route(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = route(index, address, RouteProtocol::Static);
    // The gateway lies in no prefix of the pod's: it is on the link because we say so.
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(gateway(address).into()));
    RouteNetlinkMessage::NewRoute(message)
}

fn route(index: u32, address: IpAddr, protocol: RouteProtocol) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn address_on(message: &RouteNetlinkMessage, index: u32) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.index != index || message.header.scope == AddressScope::Link {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

fn route_by(message: &RouteNetlinkMessage, index: u32) -> Option<IpNetwork> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let by_link = message.attributes.contains(&RouteAttribute::Oif(index));
    let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
    let unicast = message.header.kind == RouteType::Unicast;
    if !(by_link && main && unicast) {
        return None;
    }
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let everywhere = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNetwork::new(destination.unwrap_or(everywhere), message.header.destination_prefix_length).ok()
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
