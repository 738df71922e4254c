//! The result of ADD in the shape of each version of the specification.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use linux::veth::{Mac, gateway};
use serde_json::{Value, json};

use crate::conf::SpecVersion;

/// A pod that was attached.
#[derive(Clone, Debug)]
pub struct Attached<'a> {
    /// Name and Ethernet address of the node's end.
    pub host: (&'a str, Mac),
    /// Name and Ethernet address of the pod's end.
    pub pod: (&'a str, Mac),
    /// Path of the pod's namespace.
    pub netns: &'a Path,
    /// The pod's addresses.
    pub addresses: &'a [IpAddr],
    /// MTU in bytes.
    pub mtu: u32,
}

/// Writes the result.
pub fn render(attached: &Attached<'_>, version: SpecVersion) -> String {
    let interfaces = [
        interface(attached.host, None, attached.mtu, version),
        interface(attached.pod, Some(attached.netns), attached.mtu, version),
    ];
    let ips: Vec<Value> = attached.addresses.iter().map(|address| ip(*address, version)).collect();
    let routes: Vec<Value> =
        attached.addresses.iter().map(|address| route(*address, attached.mtu, version)).collect();
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
pub fn mac_text(mac: Mac) -> String {
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

fn route(address: IpAddr, mtu: u32, version: SpecVersion) -> Value {
    let everywhere = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let mut route = json!({"dst": everywhere, "gw": gateway(address)});
    if version >= SpecVersion::V1_1_0 {
        route["mtu"] = json!(mtu);
    }
    route
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
            assert_eq!(result["ips"][1]["gateway"], "fe80::1");
            assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/x");
            assert_eq!(result["ips"][1]["version"] == "6", version == SpecVersion::V0_4_0);
            assert_eq!(result["interfaces"][0]["mtu"] == 1420, version == SpecVersion::V1_1_0);
        }
    }
}
