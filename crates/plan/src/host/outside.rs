//! Pods outside the mesh: attached by another network plugin, as before meshd was installed or while its configuration came
//! first. They stay so until they are recreated.

use super::facts::{Facts, ForeignRoute, ForeignVeth};
use super::findings::{Code, Expected, Finding};
use crate::prefix;

/// Beginnings of the names that other plugins give to the node's ends of pods' links: Calico and canal, Cilium, the VPC
/// plugin of AWS, those of Azure and of GKE, Weave.
const PODS_LINKS: [&str; 6] = ["cali", "lxc", "eni", "azv", "gke", "vethwe"];
/// Bridges that other plugins connect pods to: flannel and the plugin `bridge`, kubenet, Weave, kube-router. Not those of
/// Docker, Podman or LXC: containers there are no pods.
const PODS_BRIDGES: [&str; 4] = ["cni0", "cbr0", "weave", "kube-bridge"];
/// How many links a finding names.
const LINKS_NAMED: usize = 3;

/// The links of pods that another plugin attached: by their names, by their bridge, or because a route to pods' addresses
/// leads there. What shares a link of the node (ipvlan, macvlan) or is a port of Open vSwitch is not seen.
pub fn pods_outside(facts: &Facts) -> Vec<&str> {
    facts.veths.iter().filter(|veth| is_pods(veth, facts)).map(|veth| veth.link.as_str()).collect()
}

/// A node that is a container itself has such a link as its uplink.
fn is_pods(veth: &ForeignVeth, facts: &Facts) -> bool {
    let by_bridge =
        |bridge: &String| PODS_BRIDGES.contains(&&**bridge) || routes_to(bridge, facts).next().is_some();
    !facts.default_links.contains(&veth.link)
        && (PODS_LINKS.iter().any(|begins| veth.link.starts_with(begins))
            || routes_to(&veth.link, facts).any(|route| prefix::is_host(route.destination))
            || veth.bridge.as_ref().is_some_and(by_bridge))
}

fn routes_to<'a>(link: &'a str, facts: &'a Facts) -> impl Iterator<Item = &'a ForeignRoute> {
    facts.routes.iter().filter(move |route| route.link.as_deref() == Some(link))
}

/// Whether a route is that to one such pod.
pub(super) fn leads_to_pod(route: &ForeignRoute, facts: &Facts) -> bool {
    let is_link = |veth: &&ForeignVeth| Some(&veth.link) == route.link.as_ref();
    prefix::is_host(route.destination) && facts.veths.iter().filter(is_link).any(|veth| is_pods(veth, facts))
}

/// One finding for all of them.
pub(super) fn finding(facts: &Facts, expected: &Expected) -> Option<Finding> {
    let links = pods_outside(facts);
    let (pods, are) = match links.len() {
        0 => return None,
        1 => ("1 pod".to_owned(), "was attached by another network plugin and is"),
        more => (format!("{more} pods"), "were attached by another network plugin and are"),
    };
    let named: Vec<&str> = links.iter().copied().take(LINKS_NAMED).collect();
    let more = if links.len() > LINKS_NAMED { " and others" } else { "" };
    Some(Finding {
        code: Code::PodsOutsideMesh,
        sentence: format!(
            "{pods} on this node {are} outside the mesh (by {}{more}): what goes to and from other nodes is not encrypted, and \
             is dropped where it has an address in cluster-cidr",
            named.join(", ")
        ),
        // Not `--field-selector spec.hostNetwork=false`, which older API servers refuse (seen with 1.20).
        fix: format!(
            "kubectl get pods --all-namespaces --field-selector spec.nodeName={} -o go-template='{}' | xargs -rn3 kubectl delete pod",
            expected.node,
            "{{range .items}}{{if not .spec.hostNetwork}}-n {{.metadata.namespace}} {{.metadata.name}} {{end}}{{end}}",
        ),
    })
}
