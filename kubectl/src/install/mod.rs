//! `kubectl meshd install`, `upgrade` and `check --pre`: finds the networks of a cluster, and applies the manifests of deploy/.

mod manifests;
mod ranges;

use std::collections::BTreeSet;

use ::status::mesh::{API_VERSION, Verdict, wrapped_text};
use clap::{Arg, ArgAction, ArgMatches, Command};
use ipnetwork::IpNetwork;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;
use serde_json::Value;

use crate::CommandError;
use crate::arguments::flag;
use crate::cluster::Cluster;
use crate::output::{self, Format};
pub(crate) use manifests::ManifestError;
pub(crate) use ranges::RangesError;
use ranges::{Found, Ranges};

/// The first version in whose tokens is the node's name, by which the policies restrict a daemon (deploy/README.md).
const OLDEST: (u32, u32) = (1, 32);
/// The `DaemonSet` (deploy/base/daemonset.yaml).
pub(crate) const DAEMON_SET: &str = "meshd";
/// `DaemonSets` of plugins that assign pod addresses, by a part of their names.
const OTHERS: [&str; 9] = [
    "flannel",
    "calico-node",
    "cilium",
    "weave-net",
    "kindnet",
    "aws-node",
    "antrea-agent",
    "kube-router",
    "ovnkube",
];

/// What a check before an installation found.
#[derive(Debug, Serialize)]
struct Check {
    code: &'static str,
    good: bool,
    what: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    advice: &'static str,
}

/// All of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MeshCheck {
    api_version: &'static str,
    kind: &'static str,
    checks: Vec<Check>,
    sources: Vec<Found>,
}

/// `install`
pub(crate) fn install(command: Command) -> Command {
    networks(command)
        .about("Install meshd, with the networks that the cluster says it has")
        .long_about(
            "Install meshd: find the networks of pods and services, say where each was found, and apply the manifests of deploy/ with \
             them. Refuses if two sources differ. The networks of nodes are all private ones unless they are given.",
        )
        .arg(flag("dry-run", "Print the manifests (-o yaml or json), and change nothing"))
        .arg(image())
        .after_help("Example:\n  kubectl meshd install --dry-run -o yaml > meshd.yaml\n  kubectl meshd install")
}

/// `upgrade`
pub(crate) fn upgrade(command: Command) -> Command {
    command
        .about("Apply the manifests of this version, with the configuration that is there")
        .arg(flag("dry-run", "Print the manifests (-o yaml or json), and change nothing"))
        .arg(image())
        .after_help("Example:\n  kubectl meshd upgrade --dry-run -o yaml\n  kubectl meshd upgrade")
}

/// `check`
pub(crate) fn check(command: Command) -> Command {
    networks(command)
        .about("Check whether meshd can be installed")
        .arg(flag("pre", "Before an installation; status and verify are for afterwards").required(true))
        .after_help("Example:\n  kubectl meshd check --pre")
}

fn networks(command: Command) -> Command {
    let ranges = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("CIDR")
            .value_delimiter(',')
            .value_parser(clap::value_parser!(IpNetwork))
            .action(ArgAction::Append)
            .help(help)
    };
    command
        .arg(ranges("cluster-cidr", "Networks of pods, where the cluster does not say them"))
        .arg(ranges("service-cidr", "Networks of services, where the cluster does not say them"))
        .arg(ranges("node-cidr", "Networks of the nodes; without it all private networks"))
}

fn image() -> Arg {
    Arg::new("image")
        .long("image")
        .value_name("NAME")
        .help("The image; without it the name that `make image` gives")
}

/// What the cluster says of itself.
struct Discovered {
    nodes: Vec<Node>,
    sources: Vec<Found>,
}

async fn discover(cluster: &Cluster) -> Result<Discovered, CommandError> {
    let nodes = cluster.node_objects().await?;
    let mut sources = Vec::new();
    // What can't be read says nothing; if nothing does, that is refused.
    if let Some(config) = cluster.kubeadm_config().await? {
        sources.extend(ranges::kubeadm(&config));
    }
    for pod in cluster.control_plane().await? {
        sources.extend(ranges::arguments(&pod));
    }
    sources.extend(ranges::service_cidrs(cluster.service_cidrs().await?));
    sources.extend(nodes.iter().flat_map(ranges::k3s));
    Ok(Discovered { nodes, sources })
}

fn given(matches: &ArgMatches, name: &str) -> Option<BTreeSet<IpNetwork>> {
    Some(matches.get_many::<IpNetwork>(name)?.copied().collect())
}

/// The networks that sources and flags agree on.
fn decided(found: &Discovered, matches: &ArgMatches) -> Result<Ranges, CommandError> {
    let (pods, services) = (given(matches, "cluster-cidr"), given(matches, "service-cidr"));
    let ranges = ranges::agree(&found.sources, [pods.as_ref(), services.as_ref()], &found.nodes)?;
    let networks = match given(matches, "node-cidr") {
        Some(given) => given.into_iter().collect(),
        None => manifests::private_networks()?,
    };
    ranges::nodes_inside(&found.nodes, &networks)?;
    Ok(ranges)
}

/// Installs.
pub(crate) async fn run_install(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let found = discover(&cluster).await?;
    for source in &found.sources {
        output::progress(&format!("{}: {source}", source.what_text()));
    }
    let ranges = decided(&found, matches)?;
    let config = manifests::config(&ranges, given(matches, "node-cidr").as_ref());
    if !matches.get_flag("dry-run") && daemon_set(&cluster).await?.is_some() {
        return Err(CommandError::Installed);
    }
    apply(&cluster, matches, &config).await
}

/// Upgrades.
pub(crate) async fn run_upgrade(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let daemon_set = daemon_set(&cluster).await?.ok_or(CommandError::NotInstalled)?;
    let volumes = daemon_set.spec.and_then(|spec| spec.template.spec?.volumes).unwrap_or_default();
    let mounted = volumes.into_iter().filter_map(|volume| volume.config_map);
    let name = mounted.map(|config_map| config_map.name).find(|name| name.starts_with(manifests::CONFIG_MAP));
    let config = match name {
        Some(name) => cluster.config(&name, manifests::CONFIG_FILE).await?,
        None => None,
    };
    apply(&cluster, matches, &config.ok_or(CommandError::NotInstalled)?).await
}

async fn daemon_set(cluster: &Cluster) -> Result<Option<DaemonSet>, CommandError> {
    Ok(cluster
        .daemon_sets(false)
        .await?
        .into_iter()
        .find(|set| set.metadata.name.as_deref() == Some(DAEMON_SET)))
}

/// Applies the manifests, or prints them.
async fn apply(cluster: &Cluster, matches: &ArgMatches, config: &str) -> Result<Verdict, CommandError> {
    let objects = manifests::objects(config, matches.get_one::<String>("image").map(String::as_str))?;
    if matches.get_flag("dry-run") {
        let text = match Format::of(matches) {
            Format::Json => Format::Json.render(&list(&objects), String::new)?,
            Format::Table | Format::Yaml => manifests::yaml(&objects)?,
        };
        output::print(&text)?;
        return Ok(Verdict::Good);
    }
    for object in &objects {
        let what = format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"));
        cluster.apply(object).await?;
        output::progress(&format!("applied {what}"));
    }
    let said = "applied; `kubectl meshd status --wait` says when all nodes are ready\n";
    output::print(&Format::of(matches).render(&list(&objects), || said.to_owned())?)?;
    Ok(Verdict::Good)
}

/// Objects as kubectl lists them.
fn list(objects: &[Value]) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects})
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Checks.
pub(crate) async fn run_check(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let version = cluster.version().await?;
    let found = discover(&cluster).await?;
    let sets = cluster.daemon_sets(true).await?;
    let names: Vec<String> = sets.into_iter().filter_map(|set| set.metadata.name).collect();
    let checks = checks((&version.0, &version.1), &found.nodes, &names, &decided(&found, matches));
    let check = MeshCheck { api_version: API_VERSION, kind: "MeshCheck", checks, sources: found.sources };
    output::print(&Format::of(matches).render(&check, || check.text())?)?;
    Ok(if check.checks.iter().all(|check| check.good) { Verdict::Good } else { Verdict::Failed })
}

/// Each check, from what was found: version of the API server, Nodes, names of `DaemonSets`, networks.
fn checks(
    (major, minor): (&str, &str),
    nodes: &[Node],
    sets: &[String],
    decided: &Result<Ranges, CommandError>,
) -> Vec<Check> {
    // Some add a plus sign.
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().unwrap_or_default();
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    let without: Vec<String> = nodes
        .iter()
        .filter(|node| node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref()).is_none_or(Vec::is_empty))
        .map(name)
        .collect();
    let other = sets.iter().find(|set| OTHERS.iter().any(|other| set.contains(other)));
    let ranges = match decided {
        Ok(ranges) => {
            format!("pods {}, services {}", ranges::list(&ranges.pods), ranges::list(&ranges.services))
        }
        Err(error) => error.to_string(),
    };
    vec![
        Check {
            code: "version",
            good: (number(major), number(minor)) >= OLDEST,
            what: format!("Kubernetes {major}.{minor}"),
            advice: "From 1.32 on tokens have their node's name, by which policies restrict a daemon; before, see \
                     deploy/overlays/without-policies.",
        },
        Check {
            code: "pod-cidrs",
            good: without.is_empty() && !nodes.is_empty(),
            what: match without.as_slice() {
                [] => format!("{} nodes, each with a podCIDR", nodes.len()),
                some => format!("without a podCIDR: {}", some.join(", ")),
            },
            advice: "Start the controller manager with --allocate-node-cidrs.",
        },
        Check {
            code: "networks",
            good: decided.is_ok(),
            what: ranges,
            advice: "--cluster-cidr, --service-cidr and --node-cidr decide.",
        },
        Check {
            code: "other-plugin",
            good: other.is_none(),
            what: other.map_or_else(
                || "no other plugin that assigns pod addresses".to_owned(),
                |other| format!("DaemonSet {other} assigns pod addresses"),
            ),
            advice: "docs/distributions.md says how to switch off the plugin of a distribution.",
        },
    ]
}

impl MeshCheck {
    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = if check.good { "ok  " } else { "FAIL" };
            text.push_str(&wrapped_text(&format!("{mark} {}: ", check.code), &check.what));
            if !check.good {
                text.push_str(&wrapped_text("     do: ", check.advice));
            }
        }
        for source in &self.sources {
            text.push_str(&wrapped_text("     ", &format!("{}: {source}", source.what_text())));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(pod_cidrs: &[&str]) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1"}, "spec": {"podCIDRs": pod_cidrs},
        }))
        .unwrap()
    }

    #[test]
    fn what_an_installation_would_stumble_over_is_named() {
        let ranges = || -> Result<Ranges, CommandError> {
            let range = |text: &str| BTreeSet::from([text.parse().unwrap()]);
            Ok(Ranges { pods: range("10.1.0.0/16"), services: range("10.2.0.0/16") })
        };
        let failed =
            |version: (&str, &str), nodes: &[Node], sets: &[&str], ranges: Result<Ranges, CommandError>| {
                let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
                let checks = checks(version, nodes, &sets, &ranges);
                let text =
                    MeshCheck { api_version: API_VERSION, kind: "MeshCheck", checks, sources: Vec::new() };
                assert!(text.text().lines().all(|line| line.chars().count() <= 80), "{}", text.text());
                let failed = text.checks.iter().filter(|check| !check.good).map(|check| check.code);
                failed.collect::<Vec<_>>()
            };
        let well = [node(&["10.1.1.0/24"])];
        assert_eq!(failed(("1", "33"), &well, &["kube-proxy"], ranges()), [""; 0]);
        assert_eq!(failed(("1", "31+"), &well, &[], ranges()), ["version"]);
        assert_eq!(failed(("1", "32"), &[node(&[])], &[], ranges()), ["pod-cidrs"]);
        assert_eq!(failed(("1", "32"), &[], &[], ranges()), ["pod-cidrs"]);
        assert_eq!(failed(("2", "0"), &well, &["kube-flannel-ds"], ranges()), ["other-plugin"]);
        let unknown = Err(RangesError::Unknown(ranges::What::Pods).into());
        assert_eq!(failed(("1", "32"), &well, &[], unknown), ["networks"]);
    }
}
