//! The base and the overlay of the quick start as a whole: every file is used, and every object belongs to the daemon.

use std::collections::BTreeSet;

use serde_json::Value;

use super::overlay::{self, base_objects, files};
use super::{BASE, NAMESPACE, QUICKSTART, SERVICE_ACCOUNT, list, object, read, string};

#[test]
fn every_file_of_the_base_is_in_the_kustomization() {
    let kustomization = object("kustomization.yaml");
    let resources = list(&kustomization, "/resources").iter().map(|file| file.as_str().unwrap().to_owned());
    let named: BTreeSet<String> = resources.chain(["kustomization.yaml".to_owned()]).collect();
    assert_eq!(named, files(BASE));
}

#[test]
fn the_quickstart_adds_the_configuration_to_the_base_and_nothing_else() {
    assert_eq!(files(QUICKSTART), ["config.yaml".to_owned(), "kustomization.yaml".to_owned()].into());
    let added: Vec<Value> = rendered().into_iter().skip(base_objects().len()).collect();
    let [config_map] = &added[..] else { panic!("{added:?}") };
    assert_eq!(string(config_map, "/kind"), "ConfigMap");
    assert_eq!(rendered()[..base_objects().len()], base_objects());
}

#[test]
fn the_two_settings_of_every_cluster_are_at_the_top_of_the_configuration() {
    let text = read(&format!("{QUICKSTART}/config.yaml"));
    let settings: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    assert_eq!(settings[..2], ["cluster-cidr", "service-cidr"]);
}

#[test]
fn the_base_alone_has_no_configuration() {
    // Pods wait for the ConfigMap then: better than daemons that guard the networks of another cluster.
    assert!(base_objects().iter().all(|object| object["kind"] != "ConfigMap"));
    assert_eq!(object("kustomization.yaml").get("configMapGenerator"), None);
}

#[test]
fn the_base_has_these_objects_and_no_others() {
    let found: Vec<String> = base_objects()
        .iter()
        .map(|object| {
            let namespace =
                object.pointer("/metadata/namespace").and_then(|name| name.as_str()).unwrap_or("");
            format!("{} {namespace}/{}", string(object, "/kind"), string(object, "/metadata/name"))
        })
        .collect();
    assert_eq!(
        found,
        [
            "Namespace /meshd",
            "ValidatingAdmissionPolicy /meshd-own-node",
            "ValidatingAdmissionPolicyBinding /meshd-own-node",
            "ValidatingAdmissionPolicy /meshd-annotations",
            "ValidatingAdmissionPolicyBinding /meshd-annotations",
            "ValidatingAdmissionPolicy /meshd-pod-cidrs",
            "ValidatingAdmissionPolicyBinding /meshd-pod-cidrs",
            "ServiceAccount meshd/meshd",
            "ClusterRole /meshd",
            "ClusterRoleBinding /meshd",
            "Role default/meshd",
            "RoleBinding default/meshd",
            "DaemonSet meshd/meshd",
        ]
    );
}

#[test]
fn namespace_and_service_account_have_the_names_that_other_manifests_refer_to() {
    assert_eq!(string(&object("namespace.yaml"), "/metadata/name"), NAMESPACE);
    let account = object("serviceaccount.yaml");
    assert_eq!(string(&account, "/metadata/namespace"), NAMESPACE);
    assert_eq!(string(&account, "/metadata/name"), SERVICE_ACCOUNT);
    assert_eq!(account["automountServiceAccountToken"], false);
    let daemon = object("daemonset.yaml");
    assert_eq!(string(&daemon, "/metadata/namespace"), NAMESPACE);
    assert_eq!(string(&daemon, "/spec/template/spec/serviceAccountName"), SERVICE_ACCOUNT);
}

#[test]
fn the_namespace_admits_the_daemon() {
    // Any stricter level of Pod Security refuses the host network and host paths.
    let labels = &object("namespace.yaml")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

/// The objects that `kubectl apply -k` makes of the quickstart.
pub(super) fn rendered() -> Vec<Value> {
    overlay::rendered(QUICKSTART)
}

/// The `ConfigMap` of the quickstart.
pub(super) fn config_map() -> Value {
    rendered().into_iter().find(|object| object["kind"] == "ConfigMap").unwrap()
}
