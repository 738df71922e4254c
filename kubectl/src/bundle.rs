//! `kubectl meshd bundle`: what a bug report needs, in one file, without keys, and without addresses and names unless they are wanted.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ::status::mesh::{API_VERSION, Mesh, Verdict};
use ::status::redact::{Kind, Redactor};
use clap::{Arg, ArgMatches, Command, value_parser};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use kube::api::DynamicObject;
use serde::Serialize;
use serde_json::Value;

use crate::CommandError;
use crate::arguments::flag;
use crate::ask::{Peers, answers, each};
use crate::cluster::{Cluster, ClusterError};
use crate::output::{self, Format};

/// How many lines of each log are taken.
const LINES: i64 = 5000;
/// How long a document of a daemon may take.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// What each daemon is asked for, and the name of the file.
const DOCUMENTS: [(&str, &[&str]); 3] = [
    ("status.json", &["status", "-o", "json"]),
    ("plan.json", &["plan", "-o", "json"]),
    ("keys.json", &["keys", "-o", "json"]),
];
/// Names of objects that are taken, where others of the kind are not meshd's.
const OURS: &str = "meshd";

/// The files of a bundle by their names, and what could not be had.
#[derive(Debug, Default)]
struct Collected {
    files: BTreeMap<String, String>,
    missing: Vec<String>,
}

/// What was written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MeshBundle {
    api_version: &'static str,
    kind: &'static str,
    file: PathBuf,
    files: Vec<String>,
    missing: Vec<String>,
}

/// The subcommand.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Write a file for bug reports: status, logs, Events, manifests; never a key")
        .long_about(
            "Write a file for bug reports: what each daemon says of itself, its plan and its log, Events, Nodes and meshd's own \
             manifests. Whatever could be a key is replaced, digests too. Addresses and names of nodes, zones and endpoints are \
             replaced as well, the same by the same, unless --plain is given: look at what logs say before you send it. Needs \
             permission to read logs and the objects of meshd's namespace; exits with 2 if something could not be had.",
        )
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("The file, which must not exist; without it meshd-bundle-TIME.tar.gz here"),
        )
        .arg(flag("plain", "Leave addresses and names as they are"))
        .after_help("Example:\n  kubectl meshd bundle\n  kubectl meshd bundle report.tar.gz --plain")
}

/// Collects, and writes the file.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = matches
        .get_one::<PathBuf>("file")
        .cloned()
        .unwrap_or_else(|| PathBuf::from(format!("meshd-bundle-{began}.tar.gz")));
    let failed = |source: io::Error| CommandError::File { path: path.clone(), source };
    // Before anything is asked: there may be no room, or no right to write.
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let cluster = Cluster::connect(matches).await?;
    let nodes = cluster.node_objects().await?;
    let collected = collect(&cluster, &nodes).await?;
    let mut redactor = if matches.get_flag("plain") {
        Redactor::plain()
    } else {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| failed(io::Error::other(error.to_string())))?;
        Redactor::anonymous(seed, names(&nodes, &collected))
    };
    let redacted = redacted(collected, &mut redactor);
    write(&redacted, began, file).map_err(failed)?;
    let verdict = if redacted.missing.is_empty() { Verdict::Good } else { Verdict::Unknown };
    let bundle = MeshBundle {
        api_version: API_VERSION,
        kind: "MeshBundle",
        file: path,
        files: redacted.files.into_keys().collect(),
        missing: redacted.missing,
    };
    output::print(&Format::of(matches).render(&bundle, || bundle.text())?)?;
    Ok(verdict)
}

impl MeshBundle {
    fn text(&self) -> String {
        let mut lines: Vec<String> = self.missing.iter().map(|what| format!("not in it: {what}")).collect();
        lines.push(format!("{}: {} files\n", self.file.display(), self.files.len()));
        lines.join("\n")
    }
}

impl Collected {
    fn add(&mut self, name: String, found: Result<String, String>) {
        match found {
            Ok(text) => drop(self.files.insert(name, text)),
            Err(why) => self.missing.push(format!("{name}: {why}")),
        }
    }

    fn objects(&mut self, name: &str, found: Result<Vec<DynamicObject>, ClusterError>, ours: bool) {
        let found = found.map_err(|error| error.to_string());
        self.add(name.to_owned(), found.and_then(|objects| rendered(objects, ours)));
    }
}

/// Objects as YAML, without what only the API server needs; those with meshd's name alone where others are not its.
fn rendered(objects: Vec<DynamicObject>, ours: bool) -> Result<String, String> {
    let mut text = String::new();
    for mut object in objects {
        let name = object.metadata.name.clone().unwrap_or_default();
        if ours && !name.starts_with(OURS) {
            continue;
        }
        object.metadata.managed_fields = None;
        if let Some(annotations) = &mut object.metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&object).map_err(|error| error.to_string())?);
    }
    Ok(text)
}

async fn collect(cluster: &Cluster, nodes: &[Node]) -> Result<Collected, CommandError> {
    let listed = cluster.nodes().await?;
    let mut made = Collected::default();
    let mesh = Mesh::new(&answers(cluster, listed.clone(), Peers::Unwell).await);
    made.add("mesh.json".to_owned(), serde_json::to_string_pretty(&mesh).map_err(|error| error.to_string()));
    made.add(
        "nodes.json".to_owned(),
        serde_json::to_string_pretty(&facts(nodes)).map_err(|error| error.to_string()),
    );
    made.add("version.txt".to_owned(), Ok(format!("kubectl-meshd {}\n", env!("CARGO_PKG_VERSION"))));
    made.objects("manifests/daemonsets.yaml", cluster.objects::<DaemonSet>(true, "DaemonSets").await, false);
    made.objects("manifests/configmaps.yaml", cluster.objects::<ConfigMap>(true, "ConfigMaps").await, false);
    made.objects("manifests/pods.yaml", cluster.objects::<Pod>(true, "Pods").await, false);
    made.objects("events/namespace.yaml", cluster.objects::<Event>(true, "Events").await, false);
    let policies = cluster.objects::<ValidatingAdmissionPolicy>(false, "ValidatingAdmissionPolicies").await;
    made.objects("manifests/policies.yaml", policies, true);
    let bindings =
        cluster.objects::<ValidatingAdmissionPolicyBinding>(false, "ValidatingAdmissionPolicyBindings").await;
    made.objects("manifests/policy-bindings.yaml", bindings, true);
    let of_nodes = each(listed, async |_, pod| {
        let mut found = Vec::new();
        for (name, arguments) in DOCUMENTS {
            found.push((name, cluster.ask_within(DOCUMENT_TIMEOUT, &pod, arguments, &[]).await));
        }
        found.push(("log.txt", cluster.log(&pod, LINES, false).await));
        // Most have none, which the kubelet says by an error.
        if let Ok(log) = cluster.log(&pod, LINES, true).await {
            found.push(("log-before.txt", Ok(log)));
        }
        Ok(found)
    })
    .await;
    for (node, found) in of_nodes {
        match found {
            Ok(found) => {
                for (name, text) in found {
                    made.add(format!("nodes/{node}/{name}"), text.map_err(|error| error.to_string()));
                }
            }
            Err(why) => made.missing.push(format!("nodes/{node}: {}", why.words())),
        }
    }
    Ok(made)
}

/// What of Nodes matters here; labels and annotations of others may say anything.
fn facts(nodes: &[Node]) -> Vec<Value> {
    let fact = |node: &Node| {
        let ours = |name: &str| name.contains("meshd.dev/") || name.starts_with("topology.kubernetes.io/");
        let chosen = |all: &Option<BTreeMap<String, String>>| -> BTreeMap<String, String> {
            let all = all.iter().flatten().filter(|(name, _)| ours(name));
            all.map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let status = node.status.as_ref();
        serde_json::json!({
            "name": node.metadata.name,
            "labels": chosen(&node.metadata.labels),
            "annotations": chosen(&node.metadata.annotations),
            "podCIDRs": node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()),
            "taints": node.spec.as_ref().and_then(|spec| spec.taints.clone()),
            "addresses": status.and_then(|status| status.addresses.clone()),
            "conditions": status.and_then(|status| status.conditions.clone()),
            "nodeInfo": status.and_then(|status| status.node_info.clone()),
        })
    };
    nodes.iter().map(fact).collect()
}

/// The names that are replaced: those of Nodes and of what they list, and those that stand for endpoints.
fn names(nodes: &[Node], collected: &Collected) -> Vec<(String, Kind)> {
    let mut names = Vec::new();
    for node in nodes {
        names.extend(node.metadata.name.clone().map(|name| (name, Kind::Node)));
        for (label, value) in node.metadata.labels.iter().flatten() {
            let kind = match label.as_str() {
                "topology.kubernetes.io/zone" | "topology.kubernetes.io/region" => Kind::Zone,
                "kubernetes.io/hostname" => Kind::Host,
                _ => continue,
            };
            names.push((value.clone(), kind));
        }
        let listed = node.status.iter().filter_map(|status| status.addresses.as_ref()).flatten();
        let hosts = listed.filter(|address| address.address.parse::<std::net::IpAddr>().is_err());
        names.extend(hosts.map(|address| (address.address.clone(), Kind::Host)));
        for (name, value) in node.metadata.annotations.iter().flatten() {
            match name.as_str() {
                plan::annotation::names::CONFIG_LOCATION => names.push((value.clone(), Kind::Zone)),
                plan::annotation::names::CONFIG_ENDPOINT => {
                    let host = value.rsplit_once(':').map_or(value.as_str(), |(host, _)| host);
                    if host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('[') {
                        names.push((host.to_owned(), Kind::Host));
                    }
                }
                _ => {}
            }
        }
    }
    let statuses = collected.files.iter().filter(|(name, _)| name.ends_with("/status.json"));
    for status in statuses.filter_map(|(_, text)| serde_json::from_str::<::status::Status>(text).ok()) {
        names.extend(status.names.into_iter().map(|name| (name.name, Kind::Host)));
    }
    names
}

/// The same without secrets, with names of files that say no more than their contents.
fn redacted(collected: Collected, redactor: &mut Redactor) -> Collected {
    let files = collected
        .files
        .into_iter()
        .map(|(name, text)| (redactor.text(&name), redactor.text(&text)))
        .collect();
    let missing = collected.missing.iter().map(|what| redactor.text(what)).collect();
    Collected { files, missing }
}

/// Writes an archive.
fn write(collected: &Collected, time: u64, into: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(into, flate2::Compression::default()));
    let missing = ("missing.txt".to_owned(), collected.missing.join("\n"));
    for (name, text) in collected.files.iter().chain([(&missing.0, &missing.1)]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(time);
        archive.append_data(&mut header, format!("meshd-bundle/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::Read as _;

    use super::*;

    fn node() -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "worker-7",
                "labels": {"topology.kubernetes.io/zone": "attic", "team": "secret-project"},
                "annotations": {"config.meshd.dev/endpoint": "seven.example:51840", "note": "private note"},
            },
            "spec": {"podCIDRs": ["10.244.7.0/24"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.77"}, {"type": "Hostname", "address": "worker-7.lan"},
            ]},
        }))
        .unwrap()
    }

    /// Everything in the archive, names too.
    fn unpacked(archive: &[u8]) -> String {
        let mut text = String::new();
        for entry in tar::Archive::new(flate2::read::GzDecoder::new(archive)).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mode().unwrap(), 0o600);
            writeln!(text, "== {}", entry.path().unwrap().display()).unwrap();
            entry.read_to_string(&mut text).unwrap();
        }
        text
    }

    fn bundle(mut redactor: Redactor) -> String {
        let key: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 37 % 256).unwrap() ^ 0xa5);
        let hex = key.map(|byte| format!("{byte:02x}")).concat();
        let base64 = "nW5aJT8BMd7g1sK0kqz3tYqPp4zq9kz7bq0n3m2v1xE=";
        let mut collected = Collected::default();
        let raw = String::from_utf8_lossy(&key);
        let log = format!(
            "psk {base64}\nprivate_key={hex}\nraw {raw}\n worker-7 at 192.0.2.77:51840 (worker-7.lan, seven.example)"
        );
        collected.add("nodes/worker-7/log.txt".to_owned(), Ok(log));
        let nodes = [node()];
        collected.add("nodes.json".to_owned(), Ok(serde_json::to_string(&facts(&nodes)).unwrap()));
        collected.add("nodes/worker-7/plan.json".to_owned(), Err(format!("worker-7: {base64}")));
        let mut archive = Vec::new();
        write(&redacted(collected, &mut redactor), 1, &mut archive).unwrap();
        let text = unpacked(&archive);
        for needle in [&hex, base64.trim_end_matches('='), "secret-project", "private note", "\u{fffd}"] {
            assert!(!text.contains(needle), "{needle} in\n{text}");
        }
        text
    }

    #[test]
    fn no_key_is_in_a_bundle_and_names_and_addresses_only_in_a_plain_one() {
        let collected = Collected::default();
        let anonymous = bundle(Redactor::anonymous([3; 32], names(&[node()], &collected)));
        let plain = bundle(Redactor::plain());
        for needle in ["worker-7", "192.0.2.77", "attic", "seven.example", "worker-7.lan", "10.244.7"] {
            assert!(!anonymous.contains(needle), "{needle} in\n{anonymous}");
            assert!(plain.contains(needle), "{needle} in\n{plain}");
        }
        assert!(anonymous.contains("== meshd-bundle/nodes/node-1/log.txt"), "{anonymous}");
        assert!(anonymous.contains("nodes/node-1/plan.json: node-1: key-"), "{anonymous}");
    }
}
