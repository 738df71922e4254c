//! Links of other programs to other network namespaces.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use plan::host::ForeignVeth;
use plan::network::LinkName;

use crate::{POD_LINK_PREFIX, message};

/// Names of links by their indices.
pub(super) fn names(links: &[LinkMessage]) -> BTreeMap<u32, String> {
    let named = links.iter().filter_map(|link| Some((link.header.index, message::name_of(link)?.to_owned())));
    named.collect()
}

/// Links that lead to another network namespace, without those of the mesh and of its pods.
pub(super) fn foreign_veths(links: &[LinkMessage], mesh_links: [&LinkName; 2]) -> BTreeSet<ForeignVeth> {
    let names = names(links);
    let veths = links.iter().filter(|link| leads_to_another_namespace(link)).filter_map(|link| {
        let name = message::name_of(link)?;
        let is_ours =
            name.starts_with(POD_LINK_PREFIX) || mesh_links.iter().any(|mesh| mesh.as_str() == name);
        let bridge = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => names.get(index).cloned(),
            _ => None,
        });
        (!is_ours).then(|| ForeignVeth { link: name.to_owned(), bridge })
    });
    veths.collect()
}

/// A veth or netkit device whose peer is elsewhere: the kernel then says where (`rtnl_fill_link_netnsid` in
/// `net/core/rtnetlink.c`).
fn leads_to_another_namespace(link: &LinkMessage) -> bool {
    let (mut is_pair, mut elsewhere) = (false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                let is_of_pair = |info| matches!(info, &LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit));
                is_pair = infos.iter().any(is_of_pair);
            }
            _ => {}
        }
    }
    is_pair && elsewhere
}
