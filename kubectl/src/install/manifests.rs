//! The manifests of deploy/, with a configuration for one cluster. Pure.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::ranges::Ranges;

/// The base, in the order of its kustomization: the daemons come after the policies that restrict them.
const BASE: [(&str, &str); 10] = [
    ("namespace.yaml", include_str!("../../../deploy/base/namespace.yaml")),
    ("policy-own-node.yaml", include_str!("../../../deploy/base/policy-own-node.yaml")),
    ("policy-annotations.yaml", include_str!("../../../deploy/base/policy-annotations.yaml")),
    ("policy-pod-cidrs.yaml", include_str!("../../../deploy/base/policy-pod-cidrs.yaml")),
    ("serviceaccount.yaml", include_str!("../../../deploy/base/serviceaccount.yaml")),
    ("clusterrole.yaml", include_str!("../../../deploy/base/clusterrole.yaml")),
    ("clusterrolebinding.yaml", include_str!("../../../deploy/base/clusterrolebinding.yaml")),
    ("role.yaml", include_str!("../../../deploy/base/role.yaml")),
    ("rolebinding.yaml", include_str!("../../../deploy/base/rolebinding.yaml")),
    ("daemonset.yaml", include_str!("../../../deploy/base/daemonset.yaml")),
];
/// The configuration of the quick start: its networks are replaced, the rest is taken.
const CONFIG: &str = include_str!("../../../deploy/overlays/quickstart/config.yaml");
/// The `ConfigMap` that the `DaemonSet` mounts, and the file in it.
pub(super) const CONFIG_MAP: &str = "meshd-config";
pub(super) const CONFIG_FILE: &str = "config.yaml";

/// Objects that can't be made of what is embedded.
#[derive(Debug, thiserror::Error)]
#[error("read the manifests of this program: {0}")]
pub(crate) struct ManifestError(String);

/// The networks of nodes that the quick start allows.
pub(super) fn private_networks() -> Result<Vec<IpNetwork>, ManifestError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Config {
        node_cidr: Vec<IpNetwork>,
    }
    serde_saphyr::from_str::<Config>(CONFIG)
        .map(|config| config.node_cidr)
        .map_err(|error| ManifestError(error.to_string()))
}

/// A configuration: that of the quick start with these networks, without its comments, which are about its own.
pub(super) fn config(ranges: &Ranges, nodes: Option<&BTreeSet<IpNetwork>>) -> String {
    let list = |ranges: &BTreeSet<IpNetwork>| {
        let each: Vec<String> = ranges.iter().map(|range| format!("\"{range}\"")).collect();
        format!("[{}]", each.join(", "))
    };
    let line = |line: &str| {
        let value = match line.split_once(':')?.0 {
            "cluster-cidr" => Some(list(&ranges.pods)),
            "service-cidr" => Some(list(&ranges.services)),
            "node-cidr" => nodes.map(list),
            _ => None,
        };
        let name = line.split_once(':')?.0;
        Some(value.map_or_else(|| format!("{line}\n"), |value| format!("{name}: {value}\n")))
    };
    CONFIG.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect()
}

/// Every object with this configuration, in the order in which they have to be applied.
pub(super) fn objects(config: &str, image: Option<&str>) -> Result<Vec<Value>, ManifestError> {
    let mut made = Vec::new();
    for (file, text) in BASE {
        let read: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| ManifestError(format!("{file}: {error}")))?;
        made.extend(read);
    }
    // As kustomize does it: with another name for another content, a change of it restarts the daemons.
    let digest = format!("{:x}", Sha256::digest(config));
    let name = format!("{CONFIG_MAP}-{}", digest.get(..10).unwrap_or_default());
    let daemon_set = made
        .iter_mut()
        .find(|object| object["kind"] == "DaemonSet")
        .ok_or_else(|| ManifestError("expected a DaemonSet".to_owned()))?;
    let namespace = daemon_set["metadata"]["namespace"].clone();
    let volumes = daemon_set.pointer_mut("/spec/template/spec/volumes").and_then(Value::as_array_mut);
    let mounted = volumes
        .into_iter()
        .flatten()
        .filter_map(|volume| volume.pointer_mut("/configMap/name"))
        .find(|mounted| *mounted == CONFIG_MAP)
        .ok_or_else(|| ManifestError(format!("expected a volume of the ConfigMap {CONFIG_MAP}")))?;
    *mounted = json!(name);
    if let (Some(image), Some(there)) =
        (image, daemon_set.pointer_mut("/spec/template/spec/containers/0/image"))
    {
        *there = json!(image);
    }
    let config_map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {CONFIG_FILE: config},
    });
    made.insert(made.len() - 1, config_map);
    Ok(made)
}

/// The same as YAML.
pub(super) fn yaml(objects: &[Value]) -> Result<String, ManifestError> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(object).map_err(|error| ManifestError(error.to_string()))?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (String, Vec<Value>) {
        let range = |text: &str| BTreeSet::from([text.parse().unwrap()]);
        let mut pods = range("10.1.0.0/16");
        pods.extend(range("fd00:1::/56"));
        let config = config(&Ranges { pods, services: range("10.2.0.0/16") }, Some(&range("192.0.2.0/24")));
        let objects = objects(&config, Some("registry.example/meshd:1")).unwrap();
        (config, objects)
    }

    #[test]
    fn the_base_is_embedded_as_a_whole_and_in_its_order() {
        let kustomization: Value =
            serde_saphyr::from_str(include_str!("../../../deploy/base/kustomization.yaml")).unwrap();
        assert_eq!(kustomization["resources"], json!(BASE.map(|(name, _)| name)));
    }

    #[test]
    fn the_configuration_is_that_of_the_quick_start_with_the_cluster_s_networks() {
        let (config, _) = made();
        let read: Value = serde_saphyr::from_str(&config).unwrap();
        let mut expected: Value = serde_saphyr::from_str(CONFIG).unwrap();
        expected["cluster-cidr"] = json!(["10.1.0.0/16", "fd00:1::/56"]);
        expected["service-cidr"] = json!(["10.2.0.0/16"]);
        expected["node-cidr"] = json!(["192.0.2.0/24"]);
        assert_eq!(read, expected);
    }

    #[test]
    fn the_objects_are_those_of_deploy_with_the_configuration_mounted_and_before_the_daemons() {
        let (config, objects) = made();
        let kinds: Vec<&str> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds[0], "Namespace");
        let [.., config_map, daemon_set] = &objects[..] else { panic!("{kinds:?}") };
        assert_eq!((&config_map["kind"], &daemon_set["kind"]), (&json!("ConfigMap"), &json!("DaemonSet")));
        assert_eq!(config_map["data"][CONFIG_FILE], json!(config));
        let text = daemon_set.to_string();
        let name = config_map["metadata"]["name"].as_str().unwrap();
        assert!(
            text.contains(&format!("\"name\":\"{name}\"")) && name.starts_with("meshd-config-"),
            "{text}"
        );
        assert!(text.contains("registry.example/meshd:1") && !text.contains("localhost/meshd"), "{text}");
        let other = super::objects("cluster-cidr: []\n", None).unwrap();
        assert_ne!(other[other.len() - 2]["metadata"]["name"], config_map["metadata"]["name"]);
        let again: Vec<Value> = serde_saphyr::from_multiple(&yaml(&objects).unwrap()).unwrap();
        assert_eq!(again, objects);
    }
}
