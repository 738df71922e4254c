//! The result of ADD in the shape of each version of the specification.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use linux::veth::{Mac, gateway};
use serde_json::{Value, json};

use crate::version::SpecVersion;

/// A pod that was attached.
#[derive(Clone, Debug)]
pub(crate) struct Attached<'a> {
    /// Name and Ethernet address of the node's end.
    pub(crate) host: (&'a str, Mac),
    /// Name and Ethernet address of the pod's end.
    pub(crate) pod: (&'a str, Mac),
    /// Path of the pod's namespace.
    pub(crate) netns: &'a Path,
    /// The pod's addresses.
    pub(crate) addresses: &'a [IpAddr],
    /// MTU in bytes.
    pub(crate) mtu: u32,
}

/// Writes the result.
pub(crate) fn render(attached: &Attached<'_>, version: SpecVersion) -> String {
    let interfaces = [
        interface(attached.host, None, attached.mtu, version),
        interface(attached.pod, Some(attached.netns), attached.mtu, version),
    ];
    let ips: Vec<Value> = attached.addresses.iter().map(|address| ip(*address, version)).collect();
    let routes: Vec<Value> = attached.addresses.iter().map(|address| route(*address)).collect();
    let document = json!({
        "cniVersion": version.as_str(),
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": {},
    });
    format!("{document:#}\n")
}

/// An Ethernet address as text.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn interface((name, mac): (&str, Mac), netns: Option<&Path>, mtu: u32, version: SpecVersion) -> Value {
    let mut interface = json!({"name": name, "mac": mac_text(mac)});
    if let Some(netns) = netns {
        interface["sandbox"] = json!(netns);
    }
    if version >= SpecVersion::V1_1_0 {
        interface["mtu"] = json!(mtu);
    }
    interface
}

fn ip(address: IpAddr, version: SpecVersion) -> Value {
    let mut ip = json!({"address": IpNetwork::from(address), "gateway": gateway(address), "interface": 1});
    if version == SpecVersion::V0_4_0 {
        ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
    }
    ip
}

/// Routes have no MTU of their own: that of the interface holds.
fn route(address: IpAddr) -> Value {
    let everywhere = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    json!({"dst": everywhere, "gw": gateway(address)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_fields() {
        let attached = Attached {
            host: ("mveth0", [2, 0, 0, 0, 0, 1]),
            pod: ("eth0", [2, 0, 0, 0, 0, 2]),
            netns: Path::new("/run/netns/x"),
            addresses: &["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            mtu: 1420,
        };
        for version in SpecVersion::ALL {
            let result: Value = serde_json::from_str(&render(&attached, version)).unwrap();
            assert_eq!(result["cniVersion"], version.as_str());
            assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
            assert_eq!(result["ips"][1]["address"], "fd00::2/128");
            assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
            assert_eq!(result["ips"][1]["gateway"], "fe80::1");
            assert_eq!(result["ips"][1]["interface"], 1);
            assert_eq!(result["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
            assert_eq!(result["routes"][1], json!({"dst": "::/0", "gw": "fe80::1"}));
            assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:01");
            assert!(result["interfaces"][0].get("sandbox").is_none());
            assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/x");
            let family = (version == SpecVersion::V0_4_0).then(|| json!("6"));
            assert_eq!(result["ips"][1].get("version"), family.as_ref());
            assert_eq!(result["interfaces"][0]["mtu"] == 1420, version == SpecVersion::V1_1_0);
        }
    }
}
