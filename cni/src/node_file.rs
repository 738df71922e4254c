//! What the plugin reads from the daemon: one file, replaced atomically on every change.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use ipnetwork::IpNetwork;
use linux::host_ports::OwnPorts;
use plan::network::LinkName;
use serde::{Deserialize, Serialize};

use crate::error::CniError;

pub(crate) use wireguard::{MTU_EXPECTED, MTU_RANGE as MTU};

/// The version that this code writes and reads. Any change of the file's format increments it.
const VERSION: u32 = 5;

/// The state of this node as far as it concerns attaching pods.
///
/// It is on a tmpfs (`/run`), so it is never of an earlier boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFile {
    /// Whether pods can be attached and reach the mesh.
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Whether the guard is in place. Without it no pod is attached: its packets could leave unencrypted.
    pub guard: bool,
    /// The cluster's pod ranges, which the guard must cover.
    pub cluster_cidrs: BTreeSet<IpNetwork>,
    /// The ranges of services, whose addresses host ports are never taken for.
    pub service_cidrs: BTreeSet<IpNetwork>,
    /// Ports that the node itself listens on; none of them is a pod's.
    pub own_ports: BTreeSet<OwnPorts>,
    /// The links that the guard lets pod addresses pass on.
    pub mesh_links: BTreeSet<LinkName>,
    /// The ranges that pods of this node get addresses from.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Addresses in them that are the node's own.
    pub mesh_addresses: Vec<IpAddr>,
    /// The address that the node itself prefers towards its pods over IPv6: its Node's, which may be gone.
    pub source: Option<Ipv6Addr>,
    /// MTU of pods in bytes.
    pub mtu: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    v: u32,
    ready: bool,
    #[serde(default)]
    reason: Option<String>,
    guard: bool,
    cluster_cidrs: BTreeSet<IpNetwork>,
    service_cidrs: BTreeSet<IpNetwork>,
    /// Protocol, first and last port.
    own_ports: Vec<(String, u16, u16)>,
    mesh_links: BTreeSet<LinkName>,
    pod_cidrs: Vec<IpNetwork>,
    mesh_addresses: Vec<IpAddr>,
    #[serde(default)]
    source: Option<Ipv6Addr>,
    mtu: u32,
}

impl NodeFile {
    /// Writes the file's text.
    pub fn render(&self) -> String {
        let wire = Wire {
            v: VERSION,
            ready: self.ready,
            reason: self.reason.clone(),
            guard: self.guard,
            cluster_cidrs: self.cluster_cidrs.clone(),
            service_cidrs: self.service_cidrs.clone(),
            own_ports: self
                .own_ports
                .iter()
                .map(|own| (own.protocol.to_string(), own.first, own.last))
                .collect(),
            mesh_links: self.mesh_links.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            mesh_addresses: self.mesh_addresses.clone(),
            source: self.source,
            mtu: self.mtu,
        };
        // Numbers, strings and lists of them always serialize.
        serde_json::to_string(&wire).unwrap_or_default() + "\n"
    }

    /// Reads the file's text. `None` for another version, an MTU that can't be, or anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let Wire {
            v,
            ready,
            reason,
            guard,
            cluster_cidrs,
            service_cidrs,
            own_ports,
            mesh_links,
            pod_cidrs,
            mesh_addresses,
            source,
            mtu,
        } = serde_json::from_str(text).ok()?;
        let own_ports = own_ports.into_iter().map(|(protocol, first, last)| {
            let protocol = protocol.parse().ok()?;
            (first <= last).then_some(OwnPorts { protocol, first, last })
        });
        let own_ports = own_ports.collect::<Option<_>>()?;
        (v == VERSION && MTU.contains(&mtu)).then_some(Self {
            ready,
            reason,
            guard,
            cluster_cidrs,
            service_cidrs,
            own_ports,
            mesh_links,
            pod_cidrs,
            mesh_addresses,
            source,
            mtu,
        })
    }

    /// Reads the file. If the daemon has not written it yet, the runtime should retry later.
    pub(crate) fn read(path: &Path) -> Result<Self, CniError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CniError::NoDaemon { path: path.to_owned() });
            }
            Err(source) => return Err(CniError::Io { operation: "read", path: path.to_owned(), source }),
        };
        Self::parse(&text).ok_or_else(|| CniError::NodeFile { path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use linux::host_ports::Protocol;

    use super::*;

    #[test]
    fn what_the_daemon_writes_the_plugin_reads() {
        let node = NodeFile {
            ready: false,
            reason: Some("no podCIDR".to_owned()),
            guard: true,
            cluster_cidrs: ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()].into(),
            service_cidrs: ["10.96.0.0/16".parse().unwrap()].into(),
            own_ports: [OwnPorts { protocol: Protocol::Udp, first: 51840, last: 51841 }].into(),
            mesh_links: ["mesh-a".parse().unwrap()].into(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
            mesh_addresses: vec!["10.244.1.1".parse().unwrap()],
            source: Some("2001:db8::1".parse().unwrap()),
            mtu: 1420,
        };
        assert_eq!(NodeFile::parse(&node.render()), Some(node.clone()));
        assert_eq!(NodeFile::parse(&node.render().replace("\"v\":5", "\"v\":4")), None);
        let text = node.render();
        let refused = [
            String::new(),
            text.replace("1420", "1279"),
            text.replace("\"guard\":true,", ""),
            text.replace("\"guard\"", "\"more\":1,\"guard\""),
            text.replace("/24", "/33"),
            text.replace("\"udp\"", "\"icmp\""),
            text.replace("51840,51841", "51841,51840"),
            text[..text.len() / 2].to_owned(),
        ];
        for text in refused {
            assert_eq!(NodeFile::parse(&text), None, "{text}");
        }
    }
}
