//! The base as a whole: every file is in it, and every object belongs to the daemon.

use std::collections::BTreeSet;

use super::{NAMESPACE, SERVICE_ACCOUNT, base, list, object, objects, string, text};

#[test]
fn every_file_of_the_base_is_in_the_kustomization() {
    let kustomization = object("kustomization.yaml");
    let resources = list(&kustomization, "/resources").iter().map(|file| file.as_str().unwrap().to_owned());
    let generator = &list(&kustomization, "/configMapGenerator")[0];
    let generated = list(generator, "/files").iter().map(|file| file.as_str().unwrap().to_owned());
    let named: BTreeSet<String> =
        resources.chain(generated).chain(["kustomization.yaml".to_owned()]).collect();
    let entries = std::fs::read_dir(base()).unwrap();
    let found: BTreeSet<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(named, found);
}

#[test]
fn the_base_has_these_objects_and_no_others() {
    let kustomization = object("kustomization.yaml");
    let files = list(&kustomization, "/resources").iter().map(|file| file.as_str().unwrap());
    let found: Vec<String> = files
        .flat_map(objects)
        .map(|object| {
            let namespace =
                object.pointer("/metadata/namespace").and_then(|name| name.as_str()).unwrap_or("");
            format!("{} {namespace}/{}", string(&object, "/kind"), string(&object, "/metadata/name"))
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
fn namespace_and_service_account_are_those_that_the_rest_names() {
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
    // Pod Security would refuse the host network and the host's folders at any lower level.
    let labels = &object("namespace.yaml")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

#[test]
fn the_image_has_the_version_of_the_workspace() {
    let image = object("daemonset.yaml")["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    assert_eq!(image, format!("meshd:{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn no_manifest_names_a_registry() {
    // Where images come from is the operator's choice; a host in a name has a dot or a port before the first slash.
    let daemon = text("daemonset.yaml");
    for line in daemon.lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
        assert!(!line.contains('/'), "{line}");
    }
}
