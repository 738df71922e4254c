//! The manifests and a real API server: it accepts them, and they grant what the daemon needs and nothing else.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use lab::kube::ADMIN;
use lab::require::{self, Need};
use lab::{ApiKind, Lab};
use serde_json::{Value, json};

use super::kustomization::rendered;
use super::overlay;
use super::{NAMESPACE, SERVICE_ACCOUNT, at, list, object, string};

/// The API server is too old for these kinds; policies.rs evaluates them.
const TOO_NEW: [&str; 2] = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];

#[test]
fn a_real_server_accepts_the_manifests_and_grants_what_they_say() {
    require::all(&[Need::Namespaces, Need::KubeApiserver]);
    let lab = Lab::builder().nodes(1).api(ApiKind::Real).build().unwrap();
    lab.api()
        .run(ADMIN, |client| async move {
            manifests_are_accepted(&client).await;
            patched_manifests_are_accepted(&client).await;
            mistakes_are_refused(&client).await;
            the_template_makes_a_pod(&client).await;
            rights_are_granted_as_written(&client).await;
        })
        .unwrap();
}

/// Applies each manifest whose kind the server knows with a dry run, then those that others depend on for real.
async fn manifests_are_accepted(client: &Client) {
    let mut unknown = Vec::new();
    for manifest in rendered() {
        let kind = string(&manifest, "/kind").to_owned();
        if !is_known(client, &manifest).await {
            unknown.push(kind);
            continue;
        }
        apply(client, &manifest, true).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        if kind != "DaemonSet" {
            apply(client, &manifest, false).await.unwrap();
        }
    }
    assert!(
        unknown.iter().all(|kind| TOO_NEW.contains(&kind.as_str())),
        "the server does not know {unknown:?}"
    );
}

/// The `DaemonSet` of every overlay, some of which patch it.
async fn patched_manifests_are_accepted(client: &Client) {
    for overlay in overlay::files("deploy/overlays") {
        let objects = overlay::rendered(&format!("deploy/overlays/{overlay}"));
        let daemon = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
        apply(client, daemon, true).await.unwrap_or_else(|error| panic!("{overlay}: {error}"));
    }
}

/// Negative control: a dry run does refuse invalid manifests.
async fn mistakes_are_refused(client: &Client) {
    let daemon = object("daemonset.yaml");
    let with = |pointer: &str, name: &str, value: Value| {
        let mut wrong = daemon.clone();
        wrong.pointer_mut(pointer).unwrap()[name] = value;
        wrong
    };
    let pod = "/spec/template/spec";
    for (what, wrong) in [
        ("a field that does not exist", with(pod, "hostNetworks", json!(true))),
        ("a value of the wrong type", with(pod, "hostNetwork", json!("yes"))),
        ("a mount without a volume", with(&format!("{pod}/volumes/0"), "name", json!("other"))),
        ("a template without the selector's label", with("/spec/template/metadata", "labels", json!({}))),
        (
            "a port beyond the last",
            with(&format!("{pod}/containers/0/ports/0"), "containerPort", json!(65536)),
        ),
    ] {
        assert!(apply(client, &wrong, true).await.is_err(), "{what} was accepted");
    }
}

/// Creates a pod as the controller of the `DaemonSet` does.
async fn the_template_makes_a_pod(client: &Client) {
    let template = object("daemonset.yaml");
    let template = at(&template, "/spec/template");
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": template["spec"], "metadata": template["metadata"]});
    pod["metadata"]["name"] = json!("meshd-dry-run");
    pod["metadata"]["namespace"] = json!(NAMESPACE);
    pod["spec"]["nodeName"] = json!("n1");
    let created = apply(client, &pod, true).await.unwrap();
    // The service account's own token is not mounted as well.
    let mounts = list(&created.data, "/spec/containers/0/volumeMounts").clone();
    let tokens = mounts.iter().filter(|mount| string(mount, "/mountPath").contains("serviceaccount"));
    assert_eq!(tokens.count(), 1, "{mounts:?}");
    assert_eq!(at(&created.data, "/spec/priority"), 2_000_001_000, "the priority of system-node-critical");
}

async fn rights_are_granted_as_written(client: &Client) {
    let rights = [
        ("", "nodes", "", "get", true),
        ("", "nodes", "", "list", true),
        ("", "nodes", "", "watch", true),
        ("", "nodes", "", "patch", true),
        ("", "nodes", "", "create", false),
        ("", "nodes", "", "update", false),
        ("", "nodes", "", "delete", false),
        ("", "nodes", "", "deletecollection", false),
        ("", "nodes/status", "", "patch", false),
        ("", "nodes/proxy", "", "get", false),
        ("default", "endpoints", "kubernetes", "get", true),
        ("default", "endpoints", "other", "get", false),
        ("default", "endpoints", "", "list", false),
        ("kube-system", "endpoints", "kubernetes", "get", false),
        (NAMESPACE, "configmaps", "meshd-config", "get", false),
        (NAMESPACE, "pods", "", "create", false),
        (NAMESPACE, "secrets", "", "list", false),
        (NAMESPACE, "serviceaccounts/token", SERVICE_ACCOUNT, "create", false),
    ];
    for (namespace, resource, name, verb, expected) in rights {
        let allowed = may(client, namespace, resource, name, verb).await;
        assert_eq!(allowed, expected, "{verb} {resource} {name} in {namespace:?}");
    }
}

async fn may(client: &Client, namespace: &str, resource: &str, name: &str, verb: &str) -> bool {
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}")),
            groups: Some(vec!["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()]),
            resource_attributes: Some(ResourceAttributes {
                namespace: filled(namespace),
                resource: filled(resource),
                subresource: filled(subresource),
                name: filled(name),
                verb: filled(verb),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviewed = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    reviewed.status.unwrap().allowed
}

/// Server-side apply, which refuses unknown fields; with a dry run it writes nothing.
async fn apply(client: &Client, manifest: &Value, dry_run: bool) -> Result<DynamicObject, kube::Error> {
    let resource = resource(manifest);
    let api: Api<DynamicObject> = match manifest.pointer("/metadata/namespace").and_then(Value::as_str) {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    // Forced, since the lab created a role of the same name for its own users.
    let parameters = PatchParams { dry_run, ..PatchParams::apply("manifests").force() };
    api.patch(string(manifest, "/metadata/name"), &parameters, &Patch::Apply(manifest)).await
}

async fn is_known(client: &Client, manifest: &Value) -> bool {
    let resource = resource(manifest);
    let kinds = if resource.group.is_empty() {
        client.list_core_api_resources(&resource.version).await
    } else {
        client.list_api_group_resources(&resource.api_version).await
    };
    kinds.unwrap().resources.iter().any(|known| known.kind == resource.kind)
}

fn resource(manifest: &Value) -> ApiResource {
    let version = string(manifest, "/apiVersion");
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, string(manifest, "/kind")))
}
