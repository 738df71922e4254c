//! The `DaemonSet`: its arguments, variables, ports and folders are those that the daemon has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use meshd::config::{Config, OPTIONS, Sources, from_sources};
use serde_json::{Value, json};

use super::{at, list, object, string, text};

#[test]
fn arguments_and_variables_are_options_of_the_daemon() {
    let container = container();
    assert_eq!(container["args"], json!(["run", "--config=/etc/meshd/config.yaml"]));
    assert_eq!(container.get("command"), None, "the image's entry point is the program");
    let known: BTreeSet<String> = OPTIONS.iter().map(|option| option.environment()).collect();
    for variable in list(&container, "/env") {
        let name = string(variable, "/name");
        assert!(known.contains(name), "{name} is no option of the daemon");
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

#[test]
fn the_configuration_is_mounted_where_the_daemon_reads_it() {
    let kustomization = object("kustomization.yaml");
    let generator = &list(&kustomization, "/configMapGenerator")[0];
    let volume = volume("/etc/meshd");
    assert_eq!(volume["configMap"]["name"], generator["name"]);
    assert_eq!(generator["files"], json!(["config.yaml"]));
    assert_eq!(generator["namespace"], object("daemonset.yaml")["metadata"]["namespace"]);
}

#[test]
fn every_folder_of_the_daemon_is_the_hosts() {
    let config = effective();
    let folders = [
        &config.key_dir,
        &config.state_dir,
        &config.run_dir,
        &config.wireguard_dir,
        &config.cni_conf_dir,
        &config.cni_bin_dir,
    ];
    let options = OPTIONS.iter().filter(|option| option.value == "DIRECTORY").count();
    assert_eq!(options, folders.len() + 1, "a folder that this test does not know; sysctl-dir has its own");
    for folder in folders {
        let host = on_the_host(folder);
        assert_eq!(
            host.as_deref(),
            Some(folder.as_path()),
            "{}: the CNI plugin and `wg` look there",
            folder.display()
        );
    }
    // Below /proc the runtime mounts nothing, so this one is elsewhere in the container.
    assert!(!config.sysctl_dir.starts_with("/proc"));
    let settings = on_the_host(&config.sysctl_dir.join("net/ipv4/ip_forward"));
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
    // Without an audience it is the API server's own: another service can't use the token, nor another's be used here.
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
    // These three the client reads in a pod.
    assert_eq!(files, ["ca.crt", "namespace", "token"].into());
}

#[test]
fn it_runs_on_every_linux_node_before_others_and_is_replaced_one_by_one() {
    let pod = pod();
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod.get("affinity"), None);
    let strategy = &object("daemonset.yaml")["spec"]["updateStrategy"];
    assert_eq!(strategy, &json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}));
}

#[test]
fn mounts_and_volumes_belong_together() {
    let volumes: BTreeSet<String> =
        list(&pod(), "/volumes").iter().map(|volume| string(volume, "/name").to_owned()).collect();
    let mounts =
        list(&container(), "/volumeMounts").iter().map(|mount| string(mount, "/name").to_owned()).collect();
    assert_eq!(volumes, mounts);
}

/// The configuration as the daemon gets it on a node n1.
fn effective() -> Config {
    let container = container();
    let environment = OPTIONS
        .iter()
        .filter_map(|option| {
            let entry =
                list(&container, "/env").iter().find(|entry| entry["name"] == option.environment())?;
            let value = entry.get("value").and_then(Value::as_str).unwrap_or("n1");
            Some((option.name.to_owned(), value.to_owned()))
        })
        .collect();
    let file = Some(("/etc/meshd/config.yaml".into(), text("config.yaml")));
    from_sources(&Sources { environment, file, ..Sources::default() }).unwrap()
}

/// Where on the host a path in the container is, or nothing if it is the container's own.
fn on_the_host(path: &Path) -> Option<PathBuf> {
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
