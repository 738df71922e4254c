//! Which networks a cluster has, by what the cluster says of itself. Pure.
//!
//! The ranges of Nodes' podCIDRs together are never taken: nodes that join later would be outside the guard.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A node of k3s has these where its arguments name no others (docs.k3s.io/cli/server).
const K3S: [&str; 2] = ["10.42.0.0/16", "10.43.0.0/16"];
/// Annotation of k3s' servers and agents with their arguments.
const K3S_ARGUMENTS: &str = "k3s.io/node-args";

/// What a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// Pods.
    Pods,
    /// Services.
    Services,
}

/// Ranges, and where they were found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Found {
    /// What they are for.
    pub(crate) what: What,
    /// The ranges.
    pub(crate) ranges: BTreeSet<IpNetwork>,
    /// Where they were found.
    pub(crate) at: String,
    /// Whether this source may have more than the others: `ServiceCIDRs` are added while the cluster runs.
    #[serde(skip)]
    pub(crate) grows: bool,
}

/// The networks of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Of pods.
    pub(crate) pods: BTreeSet<IpNetwork>,
    /// Of services.
    pub(crate) services: BTreeSet<IpNetwork>,
}

/// Why no networks are taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RangesError {
    /// Nothing says it.
    #[error("the range of {} is nowhere to be found: give it with {}; it is {} of the cluster", .0.word(), .0.flag(), .0.option())]
    Unknown(What),
    /// Two sources contradict each other.
    #[error("the range of {} is {one} and {other}: two sources differ; find out which is right, and give it with {}", .what.word(), .what.flag())]
    Differ {
        /// What the range is for.
        what: What,
        /// The first source.
        one: Box<Found>,
        /// Another one.
        other: Box<Found>,
    },
    /// A Node has pods outside.
    #[error(
        "node {node} has the podCIDR {range}, outside of {ranges}: pods there would get no mesh; give all ranges with --cluster-cidr"
    )]
    Outside {
        /// The Node.
        node: String,
        /// Its podCIDR.
        range: IpNetwork,
        /// What was found.
        ranges: String,
    },
    /// A Node has an address that the daemon would not believe.
    #[error(
        "node {node} has the address {address}, outside of all private networks: give the networks of the nodes with --node-cidr"
    )]
    NodeOutside {
        /// The Node.
        node: String,
        /// Its address.
        address: IpAddr,
    },
}

impl What {
    const fn word(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
        }
    }

    const fn flag(self) -> &'static str {
        match self {
            Self::Pods => "--cluster-cidr",
            Self::Services => "--service-cidr",
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Self::Pods => "--cluster-cidr of the controller manager",
            Self::Services => "--service-cluster-ip-range of the API server",
        }
    }
}

impl Found {
    /// What they are for, in a word.
    pub(crate) const fn what_text(&self) -> &'static str {
        self.what.word()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", list(&self.ranges), self.at)
    }
}

/// Ranges as options have them.
pub(crate) fn list(ranges: &BTreeSet<IpNetwork>) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Reads ranges; none if one is none.
fn read(text: &str) -> Option<BTreeSet<IpNetwork>> {
    let each: Option<BTreeSet<IpNetwork>> = text.split(',').map(|range| network(range.trim())).collect();
    each.filter(|ranges| !ranges.is_empty())
}

fn network(text: &str) -> Option<IpNetwork> {
    let range: IpNetwork = text.parse().ok()?;
    IpNetwork::new(range.network(), range.prefix()).ok()
}

fn found(what: What, text: &str, at: impl Into<String>) -> Option<Found> {
    Some(Found { what, ranges: read(text)?, at: at.into(), grows: false })
}

/// What kubeadm has written down.
pub(crate) fn kubeadm(config: &ConfigMap) -> Vec<Found> {
    let at = "ConfigMap kube-system/kubeadm-config";
    let text = config.data.as_ref().and_then(|data| data.get("ClusterConfiguration"));
    let parsed: Value = text.and_then(|text| serde_saphyr::from_str(text).ok()).unwrap_or_default();
    let of = |what, name: &str| found(what, parsed.pointer(&format!("/networking/{name}"))?.as_str()?, at);
    [of(What::Pods, "podSubnet"), of(What::Services, "serviceSubnet")].into_iter().flatten().collect()
}

/// What the control plane was started with, where its pods can be seen.
pub(crate) fn arguments(pod: &Pod) -> Vec<Found> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let words: Vec<String> = containers
        .flat_map(|container| container.command.iter().chain(&container.args).flatten().cloned())
        .collect();
    let at = format!("arguments of pod kube-system/{name}");
    let of = |what, flag| found(what, &value(&words, flag)?, at.clone());
    let flags = [(What::Pods, "--cluster-cidr"), (What::Services, "--service-cluster-ip-range")];
    flags.into_iter().filter_map(|(what, flag)| of(what, flag)).collect()
}

/// The value of a flag, after it or beside it.
fn value(words: &[String], flag: &str) -> Option<String> {
    let beside = |word: &String| Some(word.strip_prefix(flag)?.strip_prefix('=')?.to_owned());
    let after = || words.iter().skip_while(|word| *word != flag).nth(1).cloned();
    words.iter().find_map(beside).or_else(after)
}

/// The `ServiceCIDRs` of a cluster, which are one source together.
pub(crate) fn service_cidrs(ranges: impl IntoIterator<Item = String>) -> Option<Found> {
    let ranges: Option<BTreeSet<IpNetwork>> = ranges.into_iter().map(|range| network(&range)).collect();
    let ranges = ranges.filter(|ranges| !ranges.is_empty())?;
    Some(Found { what: What::Services, ranges, at: "ServiceCIDRs".to_owned(), grows: true })
}

/// What k3s' servers were started with.
pub(crate) fn k3s(node: &Node) -> Vec<Found> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let text = node.metadata.annotations.as_ref().and_then(|all| all.get(K3S_ARGUMENTS));
    let words: Vec<String> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    if words.first().is_none_or(|first| first != "server") {
        return Vec::new();
    }
    let of = |what, flag: &str, default: &str| match value(&words, flag) {
        Some(text) => found(what, &text, format!("annotation {K3S_ARGUMENTS} of node {name}")),
        None => found(what, default, format!("default of k3s, on node {name}")),
    };
    let [pods, services] = K3S;
    [of(What::Pods, "--cluster-cidr", pods), of(What::Services, "--service-cidr", services)]
        .into_iter()
        .flatten()
        .collect()
}

/// The networks that all sources agree on; those that are `given` decide.
pub(crate) fn agree(
    found: &[Found],
    given: [Option<&BTreeSet<IpNetwork>>; 2],
    nodes: &[Node],
) -> Result<Ranges, RangesError> {
    let [pods, services] = given;
    let pods = pods.cloned().map_or_else(|| agreed(found, What::Pods), Ok)?;
    let services = services.cloned().map_or_else(|| agreed(found, What::Services), Ok)?;
    for node in nodes {
        for range in node.spec.iter().filter_map(|spec| spec.pod_cidrs.as_ref()).flatten() {
            let Some(range) = network(range) else { continue };
            let inside = |whole: &IpNetwork| whole.contains(range.ip()) && whole.prefix() <= range.prefix();
            if !pods.iter().any(inside) {
                let node = node.metadata.name.clone().unwrap_or_default();
                return Err(RangesError::Outside { node, range, ranges: list(&pods) });
            }
        }
    }
    Ok(Ranges { pods, services })
}

fn agreed(found: &[Found], what: What) -> Result<BTreeSet<IpNetwork>, RangesError> {
    let mut sources = found.iter().filter(|found| found.what == what);
    let mut best = sources.next().ok_or(RangesError::Unknown(what))?;
    for source in sources {
        if source.ranges == best.ranges {
            continue;
        }
        let (less, more) =
            if source.ranges.len() < best.ranges.len() { (source, best) } else { (best, source) };
        if !(more.grows && less.ranges.is_subset(&more.ranges)) {
            let (one, other) = (Box::new(best.clone()), Box::new(source.clone()));
            return Err(RangesError::Differ { what, one, other });
        }
        best = more;
    }
    Ok(best.ranges.clone())
}

/// Refuses if a Node's address is outside of these networks.
pub(crate) fn nodes_inside(nodes: &[Node], networks: &[IpNetwork]) -> Result<(), RangesError> {
    for node in nodes {
        let listed = node.status.iter().filter_map(|status| status.addresses.as_ref()).flatten();
        let internal = listed.filter(|address| address.type_ == "InternalIP");
        for address in internal.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
            if !networks.iter().any(|network| network.contains(address)) {
                let node = node.metadata.name.clone().unwrap_or_default();
                return Err(RangesError::NodeOutside { node, address });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn kubeadm_config(pods: &str, services: &str) -> ConfigMap {
        let text = format!(
            "apiVersion: kubeadm.k8s.io/v1beta4\nnetworking:\n  podSubnet: {pods}\n  serviceSubnet: {services}\n"
        );
        object(serde_json::json!({"data": {"ClusterConfiguration": text}}))
    }

    fn control_plane(command: &[&str]) -> Pod {
        object(serde_json::json!({
            "metadata": {"name": "kube-controller-manager-n1"},
            "spec": {"containers": [{"name": "c", "command": command}]},
        }))
    }

    fn node(pod_cidr: &str, arguments: Option<&str>, address: &str) -> Node {
        let annotations = arguments.map(|text| serde_json::json!({K3S_ARGUMENTS: text}));
        object(serde_json::json!({
            "metadata": {"name": "n1", "annotations": annotations},
            "spec": {"podCIDRs": [pod_cidr]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": "n1"}]},
        }))
    }

    fn ranges(text: &str) -> BTreeSet<IpNetwork> {
        read(text).unwrap()
    }

    fn both(found: &[Found], nodes: &[Node]) -> Result<(String, String), RangesError> {
        agree(found, [None, None], nodes).map(|ranges| (list(&ranges.pods), list(&ranges.services)))
    }

    fn pair(pods: &str, services: &str) -> (String, String) {
        (pods.to_owned(), services.to_owned())
    }

    #[test]
    fn each_source_says_what_it_has_and_where() {
        let found = kubeadm(&kubeadm_config("10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/12"));
        assert_eq!(both(&found, &[]), Ok(pair("10.244.0.0/16,fd00:10:244::/56", "10.96.0.0/12")));
        assert!(found[0].to_string().contains("(ConfigMap kube-system/kubeadm-config)"), "{}", found[0]);
        let manager = control_plane(&[
            "kube-controller-manager",
            "--cluster-cidr=10.1.0.0/16",
            "--x",
            "--service-cluster-ip-range",
            "10.2.0.0/16",
        ]);
        assert_eq!(both(&arguments(&manager), &[]), Ok(pair("10.1.0.0/16", "10.2.0.0/16")));
        let server = node("10.7.1.0/24", Some(r#"["server","--cluster-cidr","10.7.0.0/16"]"#), "192.0.2.1");
        assert_eq!(both(&k3s(&server), &[]), Ok(pair("10.7.0.0/16", "10.43.0.0/16")));
        assert_eq!(k3s(&node("10.7.1.0/24", Some(r#"["agent"]"#), "192.0.2.1")), []);
        assert_eq!(kubeadm(&kubeadm_config("nonsense", "10.96.0.0/33")), []);
    }

    #[test]
    fn sources_that_differ_and_missing_ones_are_refused_with_what_to_do() {
        let mut all = kubeadm(&kubeadm_config("10.244.0.0/16", "10.96.0.0/12"));
        all.extend(arguments(&control_plane(&["x", "--cluster-cidr=10.245.0.0/16"])));
        let error = both(&all, &[]).unwrap_err().to_string();
        for part in ["pods is 10.244.0.0/16 (ConfigMap", "10.245.0.0/16 (arguments of pod", "--cluster-cidr"]
        {
            assert!(error.contains(part), "{part:?} in {error}");
        }
        let given = ranges("10.244.0.0/15");
        let decided = agree(&all, [Some(&given), None], &[]).unwrap();
        assert_eq!(list(&decided.pods), "10.244.0.0/15", "what is given decides");
        let error = both(&[], &[node("10.244.1.0/24", None, "192.0.2.1")]).unwrap_err();
        assert_eq!(error, RangesError::Unknown(What::Pods), "podCIDRs are no range of pods");
    }

    #[test]
    fn service_cidrs_may_have_grown_beyond_the_arguments_but_not_differ() {
        let mut all = kubeadm(&kubeadm_config("10.244.0.0/16", "10.96.0.0/16"));
        all.extend(service_cidrs(["10.96.0.0/16", "10.97.0.0/16"].map(str::to_owned)));
        all.extend(arguments(&control_plane(&["x", "--service-cluster-ip-range=10.96.0.0/16"])));
        assert_eq!(both(&all, &[]), Ok(pair("10.244.0.0/16", "10.96.0.0/16,10.97.0.0/16")));
        all.extend(arguments(&control_plane(&["x", "--service-cluster-ip-range=10.98.0.0/16"])));
        assert!(matches!(both(&all, &[]), Err(RangesError::Differ { what: What::Services, .. })));
    }

    #[test]
    fn nodes_with_pods_or_addresses_outside_are_named() {
        let all = kubeadm(&kubeadm_config("10.244.0.0/16", "10.96.0.0/12"));
        let inside = node("10.244.9.0/24", None, "192.168.1.1");
        assert!(both(&all, std::slice::from_ref(&inside)).is_ok());
        for outside in ["10.245.0.0/24", "10.0.0.0/8", "fd00::/64"] {
            let error = both(&all, &[node(outside, None, "192.168.1.1")]).unwrap_err().to_string();
            assert!(error.contains("node n1") && error.contains(outside), "{error}");
        }
        let private: Vec<IpNetwork> = ["192.168.0.0/16".parse().unwrap()].into();
        assert_eq!(nodes_inside(&[inside], &private), Ok(()));
        let error = nodes_inside(&[node("10.244.9.0/24", None, "203.0.113.7")], &private).unwrap_err();
        assert!(
            error.to_string().contains("203.0.113.7") && error.to_string().contains("--node-cidr"),
            "{error}"
        );
    }
}
