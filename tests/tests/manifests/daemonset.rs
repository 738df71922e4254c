//! The `DaemonSet`: its arguments, environment variables, ports and directories are the daemon's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use meshd::config::{Config, OPTIONS, Sources, from_sources};
use plan::annotation::names;
use serde_json::{Value, json};

use super::kustomization::{config_map, rendered};
use super::{at, list, object, read, string};

#[test]
fn arguments_and_variables_are_options_of_the_daemon() {
    let container = container();
    assert_eq!(container["args"], json!(["run", "--config=/etc/meshd/config.yaml"]));
    assert_eq!(container.get("command"), None, "the image's entry point is the program");
    let known: BTreeSet<String> = OPTIONS.iter().map(|option| option.environment()).collect();
    for variable in list(&container, "/env") {
        let name = string(variable, "/name");
        assert!(known.contains(name), "{name} is not an option of the daemon");
    }
    let name = variable(&container, "MESHD_NODE_NAME");
    assert_eq!(name["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
}

#[test]
fn the_daemon_starts_with_this_configuration() {
    let config = effective();
    assert_eq!(config.node_name, "n1");
    assert!(!config.cluster_cidrs.is_empty() && !config.service_cidrs.is_empty());
    assert!(config.log_json);
}

/// The networks of RFC 1918, RFC 6598 and RFC 4193. An address outside them, such as a public resolver's, can't be claimed.
#[test]
fn only_addresses_in_private_networks_are_believed_by_default() {
    let ranges: Vec<String> = effective().node_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]);
}

#[test]
fn the_configuration_is_mounted_where_the_daemon_reads_it() {
    let config_map = config_map();
    let volume = volume("/etc/meshd");
    assert_eq!(volume["configMap"]["name"], config_map["metadata"]["name"]);
    assert_eq!(config_map["metadata"]["namespace"], object("daemonset.yaml")["metadata"]["namespace"]);
    assert!(config_map["data"]["config.yaml"].is_string());
}

#[test]
fn every_directory_of_the_daemon_is_mounted_from_the_same_path_of_the_host() {
    let config = effective();
    let directories = [
        &config.key_dir,
        &config.state_dir,
        &config.run_dir,
        &config.wireguard_dir,
        &config.cni_conf_dir,
        &config.cni_bin_dir,
    ];
    let options = OPTIONS.iter().filter(|option| option.value == "DIRECTORY").count();
    assert_eq!(
        options,
        directories.len() + 1,
        "this test does not know a directory; sysctl-dir is checked below"
    );
    for directory in directories {
        let host = host_path(directory);
        assert_eq!(
            host.as_deref(),
            Some(directory.as_path()),
            "{}: the CNI plugin and `wg` use this path on the host",
            directory.display()
        );
    }
    // The runtime mounts nothing below /proc, so this one has another path in the container.
    assert!(!config.sysctl_dir.starts_with("/proc"));
    let settings = host_path(&config.sysctl_dir.join("net/ipv4/ip_forward"));
    assert_eq!(settings.as_deref(), Some(Path::new("/proc/sys/net/ipv4/ip_forward")));
}

#[test]
fn no_other_part_of_the_host_is_mounted() {
    let paths: BTreeSet<String> = list(&pod(), "/volumes")
        .iter()
        .filter_map(|volume| Some(volume.get("hostPath")?["path"].as_str()?.to_owned()))
        .collect();
    let expected = [
        "/dev/net/tun",
        "/etc/cni/net.d",
        "/opt/cni/bin",
        "/proc/sys/net",
        "/run/meshd",
        "/var/lib/cni/meshd",
        "/var/lib/meshd",
        "/var/run/wireguard",
    ];
    assert_eq!(paths, expected.map(str::to_owned).into());
}

#[test]
fn ports_and_probes_are_the_daemons() {
    let config = effective();
    let container = container();
    let ports: BTreeMap<&str, (u64, &str)> = list(&container, "/ports")
        .iter()
        .map(|port| {
            (string(port, "/name"), (at(port, "/containerPort").as_u64().unwrap(), string(port, "/protocol")))
        })
        .collect();
    let expected = [
        ("wireguard-a", (u64::from(config.ports.a), "UDP")),
        ("wireguard-b", (u64::from(config.ports.b), "UDP")),
        ("health", (u64::from(config.listen.port()), "TCP")),
    ];
    assert_eq!(ports, expected.into());
    let http = include_str!("../../../meshd/src/http.rs");
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["host"], config.listen.ip().to_string());
        assert_eq!(get["port"], config.listen.port());
        assert_eq!(get["path"], path);
        assert!(http.contains(&format!(".route(\"{path}\", ")), "{path} is not served");
    }
}

#[test]
fn operators_are_told_the_daemons_ports_and_settings() {
    let config = effective();
    let page = read("docs/install.md");
    let ports = page.split("\n## Ports\n").nth(1).unwrap().split("\n## ").next().unwrap();
    for row in [
        format!("| UDP {} and {} |", config.ports.a, config.ports.b),
        format!("| UDP {} |", config.control_port),
        format!("| TCP {} |", config.listen.port()),
    ] {
        assert!(ports.contains(&row), "{row}");
    }
    let page = read("docs/operate.md");
    for annotation in [names::CONFIG_ENDPOINT, names::CONFIG_KEEPALIVE] {
        assert!(page.contains(&format!("| `{annotation}` |")), "{annotation}");
    }
}

#[test]
fn privileges_are_exactly_these() {
    assert_eq!(
        container()["securityContext"],
        json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "IPC_LOCK"]},
        })
    );
    let pod = pod();
    assert_eq!(pod["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!(pod["hostNetwork"], true);
    for never in ["hostPID", "hostIPC", "shareProcessNamespace", "initContainers", "ephemeralContainers"] {
        assert_eq!(pod.get(never), None, "{never}");
    }
    assert_eq!(list(&pod, "/containers").len(), 1);
}

#[test]
fn the_token_is_short_lived_and_bound() {
    assert_eq!(pod()["automountServiceAccountToken"], false);
    let volume = volume("/var/run/secrets/kubernetes.io/serviceaccount");
    let sources = list(&volume, "/projected/sources");
    let token = sources.iter().find_map(|source| source.get("serviceAccountToken")).unwrap();
    // Without an audience the token has that of the API server: no other service accepts it.
    assert_eq!(token, &json!({"path": "token", "expirationSeconds": 3600}));
    let files: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| {
            let one = source.pointer("/serviceAccountToken/path").and_then(Value::as_str);
            let items =
                ["/configMap/items", "/downwardAPI/items"].iter().filter_map(|items| source.pointer(items));
            one.into_iter()
                .chain(items.filter_map(Value::as_array).flatten().map(|item| string(item, "/path")))
        })
        .collect();
    // The client reads these three in a pod.
    assert_eq!(files, ["ca.crt", "namespace", "token"].into());
}

#[test]
fn it_runs_on_every_linux_node_with_priority_and_is_replaced_one_by_one() {
    let pod = pod();
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod.get("affinity"), None);
    let strategy = &object("daemonset.yaml")["spec"]["updateStrategy"];
    assert_eq!(strategy, &json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}));
}

#[test]
fn every_volume_is_mounted_and_every_mount_has_a_volume() {
    let volumes: BTreeSet<String> =
        list(&pod(), "/volumes").iter().map(|volume| string(volume, "/name").to_owned()).collect();
    let mounts =
        list(&container(), "/volumeMounts").iter().map(|mount| string(mount, "/name").to_owned()).collect();
    assert_eq!(volumes, mounts);
}

/// The configuration of the daemon on node n1, as the quickstart makes it.
fn effective() -> Config {
    configuration(&rendered())
}

/// The configuration that an overlay's objects give to the daemon on node n1.
pub(super) fn configuration(objects: &[Value]) -> Config {
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let container = at(of_kind("DaemonSet"), "/spec/template/spec/containers/0");
    let environment = OPTIONS
        .iter()
        .filter_map(|option| {
            let entry = list(container, "/env").iter().find(|entry| entry["name"] == option.environment())?;
            let value = entry.get("value").and_then(Value::as_str).unwrap_or("n1");
            Some((option.name.to_owned(), value.to_owned()))
        })
        .collect();
    let text = string(&of_kind("ConfigMap")["data"], "/config.yaml").to_owned();
    let file = Some(("/etc/meshd/config.yaml".into(), text));
    from_sources(&Sources { environment, file, ..Sources::default() }).unwrap()
}

/// The host path of a path in the container, if it is mounted from the host.
fn host_path(path: &Path) -> Option<PathBuf> {
    let container = container();
    let mounts = list(&container, "/volumeMounts").iter().map(|mount| string(mount, "/mountPath"));
    let longest = mounts.filter(|mount| path.starts_with(mount)).max_by_key(|mount| mount.len())?;
    let host = volume(longest).pointer("/hostPath/path")?.as_str()?.to_owned();
    let rest = path.strip_prefix(longest).unwrap();
    Some(if rest.as_os_str().is_empty() { host.into() } else { Path::new(&host).join(rest) })
}

/// The volume that is mounted at a path.
fn volume(mount_path: &str) -> Value {
    let container = container();
    let mount = list(&container, "/volumeMounts").iter().find(|mount| mount["mountPath"] == mount_path);
    let name =
        string(mount.unwrap_or_else(|| panic!("nothing is mounted at {mount_path}")), "/name").to_owned();
    list(&pod(), "/volumes").iter().find(|volume| volume["name"] == name).unwrap().clone()
}

fn variable(container: &Value, name: &str) -> Value {
    list(container, "/env").iter().find(|variable| variable["name"] == name).unwrap().clone()
}

fn container() -> Value {
    at(&pod(), "/containers/0").clone()
}

fn pod() -> Value {
    at(&object("daemonset.yaml"), "/spec/template/spec").clone()
}
