//! Host ports that a runtime asks for (`portMappings` of the CNI conventions), and the mappings that they become.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::host_ports::{Mapping, Protocol};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::CniError;

/// Where the requests are in the configuration.
const OPTION: &str = "runtimeConfig.portMappings";

/// A port of the node that is to lead to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortRequest {
    #[serde(with = "protocol_name")]
    protocol: Protocol,
    /// One address of the node, or all of its family if it is the unspecified one; none for all of both.
    #[serde(rename = "hostIP", default, deserialize_with = "stored::host_address")]
    host_address: Option<IpAddr>,
    #[serde(deserialize_with = "stored::port")]
    host_port: u16,
    #[serde(rename = "containerPort", deserialize_with = "stored::port")]
    pod_port: u16,
}

impl PortRequest {
    /// The protocol.
    pub(crate) const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The node's port.
    pub(crate) const fn host_port(&self) -> u16 {
        self.host_port
    }
}

/// A request as runtimes write it. containerd names the fields as its Go structure does (`PortMapping` in `types.go` of
/// github.com/containerd/go-cni, which has no JSON names); plugins in Go don't notice, since their decoder ignores case.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest {
    #[serde(default, alias = "Protocol")]
    protocol: Option<String>,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_address: Option<String>,
    #[serde(alias = "HostPort")]
    host_port: u16,
    #[serde(alias = "ContainerPort")]
    container_port: u16,
}

mod protocol_name {
    use linux::host_ports::Protocol;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(protocol: &Protocol, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(protocol.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Protocol, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Reads what ADD has stored: the file may have been changed since, and only what ADD accepts may be read.
mod stored {
    use std::net::IpAddr;
    use std::num::NonZeroU16;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer};

    pub(super) fn port<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        NonZeroU16::deserialize(from).map(NonZeroU16::get)
    }

    pub(super) fn host_address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
        let address = Option::<IpAddr>::deserialize(from)?;
        if address.is_some_and(|address| address.is_loopback()) {
            return Err(D::Error::custom("a loopback address"));
        }
        Ok(address)
    }
}

/// Reads the requests in a value of `portMappings`. A host port 0 asks for none.
pub(crate) fn requests(value: Option<&Value>) -> Result<Vec<PortRequest>, CniError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let invalid = |expected| CniError::Conf { option: OPTION, expected };
    let raw = Vec::<RawRequest>::deserialize(value)
        .map_err(|_| invalid("a list of objects with hostPort and containerPort, each 0 to 65535"))?;
    let mut requests = Vec::new();
    for RawRequest { protocol, host_address, host_port, container_port } in raw {
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(invalid("containerPort from 1 to 65535"));
        }
        let protocol = match protocol.as_deref() {
            None | Some("") => Protocol::Tcp,
            Some(name) => name.parse().map_err(|_| invalid("protocol tcp, udp or sctp"))?,
        };
        let host_address = match host_address.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(text.parse::<IpAddr>().map_err(|_| invalid("hostIP an address of the node, or none"))?)
            }
        };
        if let Some(address) = host_address.filter(IpAddr::is_loopback) {
            return Err(CniError::Unsupported {
                option: "hostIP",
                value: address.to_string(),
                instead: "give an address of the node's network, or none: pods would reach what listens on the \
                          node's loopback if the kernel led packets to pods from there",
            });
        }
        let request = PortRequest { protocol, host_address, host_port, pod_port: container_port };
        if !requests.contains(&request) {
            requests.push(request);
        }
    }
    Ok(requests)
}

/// The mappings to a pod with these addresses. Fails if a request is for a family that the pod does not have, or if two
/// requests conflict.
pub(crate) fn mappings(requests: &[PortRequest], pod: &[IpAddr]) -> Result<BTreeSet<Mapping>, CniError> {
    let mut all: BTreeSet<Mapping> = BTreeSet::new();
    for request in requests {
        let of_family =
            |pod: &&IpAddr| request.host_address.is_none_or(|address| address.is_ipv4() == pod.is_ipv4());
        let mut mapped = pod.iter().filter(of_family).peekable();
        if mapped.peek().is_none() {
            let expected = "hostIP of a family that the pod has an address of";
            return Err(CniError::Conf { option: OPTION, expected });
        }
        for pod_address in mapped {
            let mapping = Mapping {
                protocol: request.protocol,
                host_address: request.host_address.filter(|address| !address.is_unspecified()),
                host_port: request.host_port,
                pod_address: *pod_address,
                pod_port: request.pod_port,
            };
            // The same once for all addresses and once for one is no conflict: both lead to one place.
            let differs = |other: &&Mapping| other.pod_port != mapping.pod_port;
            if all.iter().filter(differs).any(|other| other.conflicts_with(&mapping)) {
                let expected = "each host port once";
                return Err(CniError::Conf { option: OPTION, expected });
            }
            all.insert(mapping);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapped(value: &Value, pod: &[&str]) -> Result<Vec<Mapping>, CniError> {
        let pod: Vec<IpAddr> = pod.iter().map(|text| text.parse().unwrap()).collect();
        Ok(mappings(&requests(Some(value))?, &pod)?.into_iter().collect())
    }

    const DUAL: [&str; 2] = ["10.244.1.5", "fd00::5"];

    #[test]
    fn a_request_is_read_as_containerd_writes_it() {
        let theirs =
            json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "192.0.2.1"}]);
        let ours = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"}]);
        assert_eq!(requests(Some(&theirs)).unwrap(), requests(Some(&ours)).unwrap());
        assert_eq!(requests(Some(&theirs)).unwrap().len(), 1);
    }

    #[test]
    fn a_port_is_mapped_in_each_family_that_it_is_asked_for() {
        for (host, expected) in [
            (json!(null), &DUAL[..]),
            (json!(""), &DUAL),
            (json!("0.0.0.0"), &DUAL[..1]),
            (json!("::"), &DUAL[1..]),
            (json!("192.0.2.1"), &DUAL[..1]),
            (json!("2001:db8::1"), &DUAL[1..]),
        ] {
            let value = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": host}]);
            let mappings = mapped(&value, &DUAL).unwrap();
            let pods: Vec<String> = mappings.iter().map(|mapping| mapping.pod_address.to_string()).collect();
            assert_eq!(pods, expected, "{host}");
            let one = matches!(host.as_str(), Some("192.0.2.1" | "2001:db8::1"));
            assert!(mappings.iter().all(|mapping| mapping.host_address.is_some() == one), "{host}");
        }
    }

    #[test]
    fn what_asks_for_nothing_gives_nothing() {
        assert_eq!(requests(None).unwrap(), []);
        for value in [json!(null), json!([]), json!([{"hostPort": 0, "containerPort": 80}])] {
            assert_eq!(requests(Some(&value)).unwrap(), [], "{value}");
        }
        let twice = json!([{"hostPort": 1, "containerPort": 2}, {"hostPort": 1, "containerPort": 2, "protocol": "tcp"}]);
        assert_eq!(mapped(&twice, &DUAL[..1]).unwrap().len(), 1);
    }

    #[test]
    fn what_no_add_would_have_stored_is_not_read() {
        let stored = |host: &str, host_port: u32, pod_port: u32| {
            let value =
                json!({"protocol": "tcp", "hostIP": host, "hostPort": host_port, "containerPort": pod_port});
            serde_json::from_value::<PortRequest>(value)
        };
        let asked = requests(Some(&json!([{"hostIP": "192.0.2.1", "hostPort": 8080, "containerPort": 80}])));
        assert_eq!(stored("192.0.2.1", 8080, 80).ok().as_ref(), asked.unwrap().first());
        assert!(stored("192.0.2.1", 0, 80).is_err());
        assert!(stored("192.0.2.1", 8080, 0).is_err());
        assert!(stored("127.0.0.1", 8080, 80).is_err());
        assert!(stored("::1", 8080, 80).is_err());
    }

    #[test]
    fn mistakes_are_refused() {
        for (value, code) in [
            (json!({}), 7),
            (json!([{"containerPort": 80}]), 7),
            (json!([{"hostPort": 70000, "containerPort": 80}]), 7),
            (json!([{"hostPort": 80, "containerPort": 0}]), 7),
            (json!([{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]), 7),
            (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "node"}]), 7),
            (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "2001:db8::1"}]), 7),
            (json!([{"hostPort": 80, "containerPort": 80}, {"hostPort": 80, "containerPort": 81}]), 7),
            (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "127.0.0.1"}]), 2),
            (json!([{"hostPort": 80, "containerPort": 80, "hostIP": "::1"}]), 2),
        ] {
            assert_eq!(mapped(&value, &DUAL[..1]).unwrap_err().code(), code, "{value}");
        }
    }

    #[test]
    fn requests_are_stored_as_they_are_read() {
        let value =
            json!([{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"}]);
        let requests = requests(Some(&value)).unwrap();
        assert_eq!(serde_json::to_value(&requests).unwrap(), value);
        assert_eq!(serde_json::from_value::<Vec<PortRequest>>(value).unwrap(), requests);
    }
}
