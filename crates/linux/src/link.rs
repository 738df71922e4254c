//! Links and the addresses on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_core::Nla as _;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use plan::network::{LinkAddress, LinkName};

use crate::Handle;
use crate::error::{HostError, Subject};
use crate::message;

/// A link as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Its interface index.
    pub index: u32,
    /// Its kind, such as `veth` or `tun`; none for hardware.
    pub kind: Option<String>,
    /// Whether it is a TUN device to which only root, or who has `CAP_NET_ADMIN`, may attach.
    pub tun_of_root: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Packets received since it was created.
    pub received: u64,
    /// Its addresses, without link-local ones.
    pub addresses: BTreeSet<IpNetwork>,
}

/// Attributes of a TUN device (`include/uapi/linux/if_link.h`).
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
/// Transmit queue length in packets: 400 ms of 5,000 packets a second, for which the engine may not get a core on a
/// busy small node. The default of a TUN device, 500, loses packets then.
const QUEUE: u32 = 2000;

impl Handle {
    /// Reads a link. `None` if there is no such link.
    pub async fn link(&self, link: &LinkName) -> Result<Option<LinkState>, HostError> {
        let Some(message) = self.link_message(link).await? else { return Ok(None) };
        let mut state = read(&message);
        state.addresses = self.addresses(Some(state.index)).await?;
        Ok(Some(state))
    }

    /// The addresses on all links but some, with the kind of the link, without link-local ones.
    pub async fn link_addresses(&self, without: &[&LinkName]) -> Result<Vec<LinkAddress>, HostError> {
        let is_among = |link: &&LinkMessage| {
            message::name_of(link).is_some_and(|name| without.iter().all(|other| other.as_str() != name))
        };
        let links = self.link_messages().await?;
        let links: BTreeMap<u32, LinkState> =
            links.iter().filter(is_among).map(|link| (link.header.index, read(link))).collect();
        let of_link = |message: &AddressMessage| {
            let kind = links.get(&message.header.index)?.kind.clone();
            let address = message::address_of(message).filter(|network| !is_link_local(network.ip()))?;
            Some(LinkAddress { address, kind })
        };
        Ok(self.address_messages(None).await?.iter().filter_map(of_link).collect())
    }

    /// Interface indices of the links of some kinds.
    pub(crate) async fn link_indices_of(&self, kinds: &[&str]) -> Result<BTreeSet<u32>, HostError> {
        let of_kind =
            |link: &&LinkMessage| read(link).kind.is_some_and(|kind| kinds.contains(&kind.as_str()));
        Ok(self.link_messages().await?.iter().filter(of_kind).map(|link| link.header.index).collect())
    }

    /// Sets a link's MTU.
    pub async fn set_mtu(&self, link: &LinkName, mtu: u32) -> Result<(), HostError> {
        self.change_link("set the MTU of", link, |index| message::link_mtu(index, mtu)).await
    }

    /// Sets a link up, with a transmit queue of `QUEUE` packets.
    pub async fn set_up(&self, link: &LinkName) -> Result<(), HostError> {
        self.change_link("set up", link, |index| {
            let mut message = message::link_up(index);
            message.attributes.push(LinkAttribute::TxQueueLen(QUEUE));
            message
        })
        .await
    }

    /// Deletes a link; returns whether there was one.
    pub async fn delete_link(&self, link: &LinkName) -> Result<bool, HostError> {
        let Some(message) = self.link_message(link).await? else { return Ok(false) };
        match self.rtnetlink.link().del(message.header.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) => {
                let error = HostError::rtnetlink("delete", Subject::Link(link.clone()), &error);
                if error.is_missing() { Ok(false) } else { Err(error) }
            }
        }
    }

    /// Adds an address to a link. One that is there already is no error.
    pub async fn add_address(&self, link: &LinkName, address: IpNetwork) -> Result<(), HostError> {
        let index = self.index("add an address", link).await?;
        let mut request = self.rtnetlink.address().add(index, address.ip(), address.prefix()).replace();
        *request.message_mut() = message::address(index, address);
        let subject = || Subject::Address(link.clone(), address);
        request.execute().await.map_err(|error| HostError::rtnetlink("add", subject(), &error))
    }

    /// Removes an address from a link. One that is not there is no error.
    pub async fn remove_address(&self, link: &LinkName, address: IpNetwork) -> Result<(), HostError> {
        let index = self.index("remove an address", link).await?;
        let subject = || Subject::Address(link.clone(), address);
        for message in self.address_messages(Some(index)).await? {
            if message::address_of(&message) == Some(address) {
                let removed = self.rtnetlink.address().del(message).execute().await;
                if let Err(error) = removed.map_err(|error| HostError::rtnetlink("remove", subject(), &error))
                    && !error.is_missing()
                {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The link without its addresses, of which a node has many.
    pub(crate) async fn link_message(&self, link: &LinkName) -> Result<Option<LinkMessage>, HostError> {
        match self.rtnetlink.link().get().match_name(link.as_str()).execute().try_next().await {
            Ok(found) => Ok(found),
            Err(error) => {
                let error = HostError::rtnetlink("read", Subject::Link(link.clone()), &error);
                if error.is_missing() { Ok(None) } else { Err(error) }
            }
        }
    }

    async fn change_link(
        &self,
        operation: &'static str,
        link: &LinkName,
        message: impl FnOnce(u32) -> LinkMessage,
    ) -> Result<(), HostError> {
        let index = self.index(operation, link).await?;
        let changed = self.rtnetlink.link().change(message(index)).execute().await;
        changed.map_err(|error| HostError::rtnetlink(operation, Subject::Link(link.clone()), &error))
    }

    async fn addresses(&self, index: Option<u32>) -> Result<BTreeSet<IpNetwork>, HostError> {
        let messages = self.address_messages(index).await?;
        let networks = messages.iter().filter_map(message::address_of);
        Ok(networks.filter(|network| !is_link_local(network.ip())).collect())
    }

    /// Interface index of the link that one of these addresses is on.
    pub(crate) async fn index_at(&self, addresses: &[IpAddr]) -> Result<Option<u32>, HostError> {
        let messages = self.address_messages(None).await?;
        let holder = messages
            .iter()
            .find(|message| message::address_of(message).is_some_and(|net| addresses.contains(&net.ip())));
        Ok(holder.map(|message| message.header.index))
    }

    /// Name of the link that one of these addresses is on. `None` if none of them is on a link.
    pub async fn link_at(&self, addresses: &[IpAddr]) -> Result<Option<String>, HostError> {
        let Some(index) = self.index_at(addresses).await? else { return Ok(None) };
        Ok(self.link_names().await?.remove(&index))
    }

    pub(crate) async fn address_messages(
        &self,
        index: Option<u32>,
    ) -> Result<Vec<AddressMessage>, HostError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let found = self.dump("list addresses", &Subject::Links, &request).await?;
        let addresses = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        });
        // Filtered here: without strict checking the kernel lists the addresses of all links.
        Ok(addresses.filter(|message| index.is_none_or(|index| message.header.index == index)).collect())
    }
}

fn read(message: &LinkMessage) -> LinkState {
    let mut state = LinkState {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..LinkState::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            LinkAttribute::Stats64(counted) => state.received = counted.rx_packets,
            LinkAttribute::LinkInfo(infos) => {
                state.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind_name(kind)),
                    _ => None,
                });
                state.tun_of_root = infos.iter().any(is_tun_of_root);
            }
            _ => {}
        }
    }
    state
}

/// The kernel leaves out an owner or a group that is not set (`tun_fill_info` in `drivers/net/tun.c`).
fn is_tun_of_root(info: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Tun(attributes)) = info else { return false };
    let is_root = |kind: u16| {
        attributes.iter().any(|attribute| {
            let mut id = [u8::MAX; 4];
            attribute.kind() == kind && attribute.value_len() == id.len() && {
                attribute.emit_value(&mut id);
                u32::from_ne_bytes(id) == 0
            }
        })
    };
    is_root(IFLA_TUN_OWNER) && is_root(IFLA_TUN_GROUP)
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
