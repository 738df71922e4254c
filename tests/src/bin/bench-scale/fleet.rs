//! The played nodes as a cluster knows them: names, addresses, keys, and Node objects of the size that kubelets write. Pure
//! but for the randomness of keys.

use std::net::Ipv4Addr;

use keyring::{KeyError, NOISE, PerSlot, PrivateKey, Proof};
use plan::annotation::{Endpoints, Phase, SlotState, State, names};
use plan::node::NodeUid;
use serde_json::{Value, json};

use keyring::Slot;

/// UDP ports of both slots: the defaults.
pub(crate) const PORTS: PerSlot<u16> = PerSlot { a: 51840, b: 51841 };
/// The pod ranges of the played nodes: a shared address space (RFC 6598), which no lab uses otherwise.
pub(crate) const PODS: &str = "100.64.0.0/10";
/// The underlay addresses of the played nodes, all routed to one host.
pub(crate) const UNDERLAY: &str = "172.16.0.0/12";
const FIRST_POD: u32 = u32::from_be_bytes([100, 64, 0, 0]);
const FIRST_NODE: u32 = u32::from_be_bytes([172, 16, 0, 1]);
/// The distance of a node's second address: half of the range.
const SECOND: u32 = 1 << 19;
/// The most nodes: as many as there are /24s in [`PODS`].
pub(crate) const MOST: usize = 1 << 14;
/// Images in a Node's status: a kubelet lists up to 50 (`nodeStatusMaxImages`); with 26 an object has about 9 kB.
const IMAGES: u32 = 26;

/// The name of a played node.
pub(crate) fn name(index: usize) -> String {
    format!("worker-{index:05}.example.internal")
}

/// The underlay address of a played node; with `moved` the one that it has after a change.
pub(crate) fn address(index: usize, moved: bool) -> Ipv4Addr {
    let offset = u32::try_from(index).unwrap_or(u32::MAX) + if moved { SECOND } else { 0 };
    Ipv4Addr::from(FIRST_NODE.saturating_add(offset))
}

/// The node with an underlay address, and whether that is its second one.
pub(crate) fn at(address: Ipv4Addr) -> Option<(usize, bool)> {
    let offset = u32::from(address).checked_sub(FIRST_NODE)?;
    let (index, moved) = if offset >= SECOND { (offset - SECOND, true) } else { (offset, false) };
    Some((usize::try_from(index).ok()?, moved))
}

/// The pod range of a played node.
pub(crate) fn pod_range(index: usize) -> String {
    format!("{}/24", Ipv4Addr::from(first_pod(index)))
}

/// Its mesh address: the first usable one of its pod range.
pub(crate) fn mesh_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(first_pod(index) + 1)
}

fn first_pod(index: usize) -> u32 {
    FIRST_POD.saturating_add(u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(256))
}

/// The keys of a played node, and what it announces.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) index: usize,
    pub(crate) uid: NodeUid,
    pub(crate) keys: PerSlot<PrivateKey>,
    pub(crate) generation: u64,
    pub(crate) moved: bool,
    /// Number of the list of endpoints.
    pub(crate) sequence: u64,
}

impl Identity {
    /// Fresh keys for the node whose Node has this UID.
    pub(crate) fn new(index: usize, uid: &str) -> Result<Self, KeyError> {
        let keys = PerSlot::try_from_fn(|_| PrivateKey::generate())?;
        Ok(Self { index, uid: NodeUid::new(uid), keys, generation: 1, moved: false, sequence: 1 })
    }

    /// Both annotations as a merge patch of the Node, with valid proofs.
    pub(crate) fn annotations(&self) -> Value {
        let state = State {
            uid: self.uid.clone(),
            generation: self.generation,
            slots: PerSlot::from_fn(|slot| SlotState {
                key: self.keys.get(slot).public(),
                generation: self.generation,
                port: *PORTS.get(slot),
            }),
            prefer: Slot::A,
            drain: None,
            phase: Phase::Steady,
            proofs: None,
        };
        // The noise guards a key's owner against faults of the hardware; these keys guard nothing.
        let sign = |slot, statement: &[u8]| Some(Proof::sign(self.keys.get(slot), statement, &[0x5c; NOISE]));
        let state = state.prove(sign).unwrap_or(state);
        let endpoints = Endpoints {
            addresses: vec![address(self.index, self.moved).into()],
            mapping: plan::annotation::Mapping::None,
            sequence: self.sequence,
            ..Endpoints::default()
        };
        json!({"metadata": {"annotations": {
            names::STATE: state.render(),
            names::ENDPOINTS: endpoints.render(),
        }}})
    }
}

/// The Node as a kubelet registers it, with all that its status has later. `now` is a time in RFC 3339.
pub(crate) fn object(index: usize, now: &str) -> Value {
    let name = name(index);
    let range = pod_range(index);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels(&name, index), "annotations": {
            "node.alpha.kubernetes.io/ttl": "0",
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            "csi.volume.kubernetes.io/nodeid": format!("{{\"csi.example.com\":\"i-{index:017x}\"}}"),
        }},
        "spec": {
            "podCIDR": range, "podCIDRs": [range],
            "providerID": format!("example:///eu-central-1a/i-{index:017x}"),
        },
        "status": {
            "addresses": addresses(index, false)["status"]["addresses"],
            "capacity": resources("8", "32611484Ki"),
            "allocatable": resources("7910m", "31584412Ki"),
            "conditions": conditions(now),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "kernelVersion": "6.1.0-28-cloud-amd64", "containerRuntimeVersion": "containerd://1.7.24",
                "kubeletVersion": "v1.33.1", "kubeProxyVersion": "",
                "bootID": format!("1f0c38e4-7a7e-4d0f-b5f3-{index:012x}"),
                "machineID": format!("{index:032x}"),
                "systemUUID": format!("ec2b1d53-7e62-4c5a-8a3b-{index:012x}"),
            },
        },
    })
}

/// The addresses in a Node's status, as a merge patch.
pub(crate) fn addresses(index: usize, moved: bool) -> Value {
    json!({"status": {"addresses": [
        {"type": "InternalIP", "address": address(index, moved).to_string()},
        {"type": "Hostname", "address": name(index)},
    ]}})
}

/// What a kubelet writes every five minutes although nothing has changed.
pub(crate) fn refresh(now: &str) -> Value {
    json!({"status": {"conditions": conditions(now)}})
}

fn labels(name: &str, index: usize) -> Value {
    json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/instance-type": "m6i.2xlarge", "node.kubernetes.io/instance-type": "m6i.2xlarge",
        "topology.kubernetes.io/region": "eu-central-1",
        "topology.kubernetes.io/zone": format!("eu-central-1{}", ["a", "b", "c"][index % 3]),
        "topology.csi.example.com/zone": format!("eu-central-1{}", ["a", "b", "c"][index % 3]),
        "example.com/pool": format!("general-{}", index % 7), "example.com/lifecycle": "on-demand",
    })
}

fn resources(cpu: &str, memory: &str) -> Value {
    json!({
        "cpu": cpu, "memory": memory, "ephemeral-storage": "103079844Ki", "hugepages-1Gi": "0",
        "hugepages-2Mi": "0", "pods": "110",
    })
}

fn conditions(now: &str) -> Value {
    let since = "2026-01-01T00:00:00Z";
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since,
        })
    };
    json!([
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ])
}

fn image(number: u32) -> Value {
    let repository = format!("registry.example.com/platform/services/component-{number:02}");
    let digest = format!("{:064x}", u128::from(number) * 0x9e37_79b9_7f4a_7c15);
    json!({
        "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.{number}.0")],
        "sizeBytes": 20_000_000 + u64::from(number) * 7_654_321,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_size_of_a_real_one_and_proofs_that_hold() {
        let size = object(4711, "2026-01-01T00:00:00Z").to_string().len();
        assert!((7_000..10_000).contains(&size), "{size} bytes");
        let identity = Identity::new(7, "u7").unwrap();
        let patch = identity.annotations();
        let text = patch["metadata"]["annotations"][names::STATE].as_str().unwrap();
        let state = State::parse(text).unwrap();
        assert!(state.proofs.is_some() && state.invalid_proof().is_none());
    }

    #[test]
    fn every_address_leads_back_to_its_node() {
        for (index, moved) in [(0, false), (1, true), (4_999, false), (MOST - 1, true)] {
            assert_eq!(at(address(index, moved)), Some((index, moved)));
            let pods: ipnetwork::IpNetwork = PODS.parse().unwrap();
            let nodes: ipnetwork::IpNetwork = UNDERLAY.parse().unwrap();
            assert!(
                pods.contains(mesh_address(index).into()) && nodes.contains(address(index, moved).into())
            );
        }
    }
}
