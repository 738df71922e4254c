//! What each program of a cluster is told: arguments and configuration files, from the cluster's settings. Pure.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::programs::Version;
use crate::address::{self, Family, IpVersion};

/// Where a host of a cluster has the files that its programs read; on its own tmpfs.
pub(super) const DIRECTORY: &str = "/run/lab/cluster";

/// Name of the pause image, in which a pod's namespaces are kept.
pub(super) const PAUSE_IMAGE: &str = "localhost/pause:1";

/// How kube-proxy leads packets to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// By rules of iptables; the default of every version.
    Iptables,
    /// By rules of nftables, from 1.29 on.
    Nftables,
    /// By the kernel's IPVS, up to 1.35 and later.
    Ipvs,
}

/// What is the same for all programs of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) version: Version,
    pub(super) family: Family,
    pub(super) proxy_mode: ProxyMode,
}

impl ProxyMode {
    /// As kube-proxy's configuration has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

impl Shape {
    /// Ranges of all IP versions of the cluster, with commas.
    fn ranges(self, range: impl Fn(IpVersion) -> ipnetwork::IpNetwork) -> String {
        let ranges = self.family.versions().iter().map(|&version| range(version).to_string());
        ranges.collect::<Vec<_>>().join(",")
    }

    pub(super) fn pod_ranges(self) -> String {
        self.ranges(address::cluster_range)
    }

    pub(super) fn service_ranges(self) -> String {
        self.ranges(address::service_range)
    }

    /// Dual stack needs a feature gate before 1.21, which does not exist any more from 1.25 on.
    fn gates(self) -> Vec<&'static str> {
        let needed = self.family == Family::Dual && !self.version.is_at_least(21);
        if needed { vec!["IPv6DualStack"] } else { Vec::new() }
    }

    fn gate_arguments(self) -> Vec<String> {
        self.gates().iter().map(|gate| format!("--feature-gates={gate}=true")).collect()
    }

    fn gate_object(self) -> Value {
        self.gates()
            .iter()
            .map(|gate| ((*gate).to_owned(), json!(true)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Arguments of kube-apiserver besides those of every server of a lab.
    pub(super) fn api_server(self) -> Vec<String> {
        let mut arguments = vec![
            format!("--service-cluster-ip-range={}", self.service_ranges()),
            // Names of nodes are in no DNS.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        arguments.extend(self.gate_arguments());
        arguments
    }

    /// Arguments of kube-controller-manager. `certificates` is the API server's directory.
    pub(super) fn controller_manager(self, certificates: &str) -> Vec<String> {
        let mut arguments = vec![
            format!("--kubeconfig={DIRECTORY}/kube-controller-manager.kubeconfig"),
            "--leader-elect=false".to_owned(),
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={}", self.pod_ranges()),
            format!("--service-cluster-ip-range={}", self.service_ranges()),
            "--use-service-account-credentials".to_owned(),
            format!("--service-account-private-key-file={certificates}/apiserver.key"),
            format!("--root-ca-file={certificates}/apiserver.crt"),
            // Created at start, by default below /usr.
            format!("--flex-volume-plugin-dir={DIRECTORY}/volume-plugins"),
        ];
        // A dual stack has one size for each IP version.
        if self.family == Family::Dual {
            arguments.push("--node-cidr-mask-size-ipv4=24".to_owned());
            arguments.push("--node-cidr-mask-size-ipv6=64".to_owned());
        }
        arguments.extend(self.gate_arguments());
        arguments
    }

    /// Arguments of kube-scheduler.
    pub(super) fn scheduler(self) -> Vec<String> {
        let mut arguments = vec![
            format!("--kubeconfig={DIRECTORY}/kube-scheduler.kubeconfig"),
            "--leader-elect=false".to_owned(),
        ];
        arguments.extend(self.gate_arguments());
        arguments
    }

    /// Arguments of a kubelet.
    pub(super) fn kubelet(self, node: &str, addresses: &[IpAddr]) -> Vec<String> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let mut arguments = vec![
            format!("--config={DIRECTORY}/kubelet.json"),
            format!("--kubeconfig={DIRECTORY}/kubelet.kubeconfig"),
            format!("--hostname-override={node}"),
            format!("--node-ip={}", addresses.join(",")),
            "--cert-dir=/var/lib/kubelet/pki".to_owned(),
        ];
        if !self.version.is_at_least(27) {
            arguments.push("--container-runtime=remote".to_owned());
            arguments.push("--container-runtime-endpoint=unix:///run/containerd/containerd.sock".to_owned());
        }
        arguments
    }

    /// A kubelet's configuration file. It leaves the machine's own cgroups, disk and memory to the machine.
    pub(super) fn kubelet_config(self) -> Value {
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // The host's network is the lab's own, and nobody else is in it.
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            // All nodes see the whole machine: none may evict pods because of what is not theirs.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "clusterDomain": "cluster.local",
            "featureGates": self.gate_object(),
        });
        if self.version.is_at_least(27) {
            config["containerRuntimeEndpoint"] = json!("unix:///run/containerd/containerd.sock");
        }
        // Where cgroups are those of version 1, which this field allows.
        if self.version.is_at_least(31) {
            config["failCgroupV1"] = json!(false);
        }
        config
    }

    /// kube-proxy's configuration file.
    pub(super) fn proxy_config(self, node: &str) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": format!("{DIRECTORY}/kube-proxy.kubeconfig")},
            "hostnameOverride": node,
            "mode": self.proxy_mode.as_str(),
            "clusterCIDR": self.pod_ranges(),
            "bindAddress": if self.family == Family::V6 { "::" } else { "0.0.0.0" },
            // The table's size is the whole machine's.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
            "featureGates": self.gate_object(),
        })
    }

    /// The options of meshd for this cluster, as `config.yaml` of an overlay. The nodes' networks are the lab's underlay.
    pub(super) fn meshd_config(self) -> Value {
        let list = |ranges: String| ranges.split(',').map(str::to_owned).collect::<Vec<_>>();
        json!({
            "cluster-cidr": list(self.pod_ranges()),
            "service-cidr": list(self.service_ranges()),
            "node-cidr": list(self.ranges(|version| address::underlay(0, version))),
            "log-format": "json",
        })
    }
}

/// containerd's configuration file: everything in directories that the node has for itself.
pub(super) fn containerd(snapshotter: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE nothing may lower its score, and a container that asks for it does not start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(minor: u32, family: Family) -> Shape {
        Shape { version: Version { major: 1, minor }, family, proxy_mode: ProxyMode::Iptables }
    }

    #[test]
    fn dual_stack_has_a_feature_gate_only_where_it_needs_one() {
        let gate = "--feature-gates=IPv6DualStack=true".to_owned();
        let all = |shape: Shape| [shape.api_server(), shape.controller_manager("/c"), shape.scheduler()];
        assert!(all(shape(20, Family::Dual)).iter().all(|arguments| arguments.contains(&gate)));
        assert_eq!(shape(20, Family::Dual).kubelet_config()["featureGates"], json!({"IPv6DualStack": true}));
        for other in [shape(20, Family::V4), shape(20, Family::V6), shape(25, Family::Dual)] {
            assert!(all(other).iter().flatten().all(|argument| !argument.contains("feature-gates")));
            assert_eq!(other.proxy_config("n1")["featureGates"], json!({}));
        }
    }

    #[test]
    fn a_kubelet_finds_containerd_where_its_version_looks_for_it() {
        let by_argument = |minor| {
            let arguments = shape(minor, Family::V4).kubelet("n1", &[IpAddr::from([198, 18, 0, 1])]);
            arguments.iter().any(|argument| argument.starts_with("--container-runtime-endpoint"))
        };
        let by_file =
            |minor| shape(minor, Family::V4).kubelet_config()["containerRuntimeEndpoint"].is_string();
        assert_eq!((by_argument(20), by_file(20)), (true, false));
        assert_eq!((by_argument(36), by_file(36)), (false, true));
    }

    #[test]
    fn nodes_of_a_dual_stack_have_ranges_and_addresses_of_both_versions() {
        let shape = shape(36, Family::Dual);
        assert_eq!(shape.pod_ranges(), "10.244.0.0/16,fd00:10:244::/48");
        let config = shape.meshd_config();
        assert_eq!(config["cluster-cidr"].as_array().map(Vec::len), Some(2));
        // Whatever the number of a node, its address is in these.
        let node: Vec<ipnetwork::IpNetwork> = config["node-cidr"]
            .as_array()
            .unwrap()
            .iter()
            .map(|range| range.as_str().unwrap().parse().unwrap())
            .collect();
        let underlay = |version| address::underlay(7, version).ip();
        assert!(node[0].contains(underlay(IpVersion::V4)) && node[1].contains(underlay(IpVersion::V6)));
    }
}
