//! The admission policies: their settings, and which requests they admit.

use plan::annotation::{MAX_LEN, names};
use serde_json::{Value, json};

use super::admission::{Policy, Request};
use super::overlay::rendered;
use super::{NAMESPACE, SERVICE_ACCOUNT, list, objects, string, text};

/// The policies about the daemon's account and annotations.
const DAEMON: [&str; 2] = ["policy-own-node.yaml", "policy-annotations.yaml"];
const POD_CIDRS: &str = "policy-pod-cidrs.yaml";
const FILES: [&str; 3] = [DAEMON[0], DAEMON[1], POD_CIDRS];
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";
const BREAK_GLASS: &str = "meshd.dev:break-glass";

#[test]
fn policies_fail_closed_and_are_enforced() {
    for file in FILES {
        let [policy, binding] = <[Value; 2]>::try_from(objects(file)).unwrap();
        assert_eq!(policy["kind"], "ValidatingAdmissionPolicy");
        assert_eq!(binding["kind"], "ValidatingAdmissionPolicyBinding");
        for object in [&policy, &binding] {
            assert_eq!(object["apiVersion"], "admissionregistration.k8s.io/v1");
        }
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
        assert_eq!(binding["spec"]["validationActions"], json!(["Deny", "Audit"]));
        assert_eq!(binding["spec"].get("matchResources"), None, "{file}: the binding narrows the policy");
        assert_eq!(
            policy["spec"]["matchConstraints"],
            json!({"resourceRules": [{
                "apiGroups": [""],
                "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["nodes", "nodes/status"],
            }]})
        );
        for validation in list(&policy, "/spec/validations") {
            assert!(
                !string(validation, "/message").is_empty() && !string(validation, "/expression").is_empty()
            );
        }
    }
}

#[test]
fn policies_refer_to_the_daemons_account_and_to_its_annotations() {
    let account = format!("\"system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}\"");
    for file in DAEMON {
        let policy = text(file);
        assert_eq!(policy.matches(&account).count(), 1, "{file}");
        assert_eq!(policy.matches("system:serviceaccount:").count(), 1, "{file}");
        for own in [names::STATE, names::ENDPOINTS] {
            assert!(own.starts_with("meshd.dev/"));
        }
        for operators in [names::CONFIG_ENDPOINT, names::CONFIG_KEEPALIVE] {
            assert!(!operators.starts_with("meshd.dev/"));
        }
        let prefixes = policy.split(".startsWith(\"").skip(1).map(|rest| rest.split_once('"').unwrap().0);
        assert!(
            prefixes.clone().count() >= 2 && prefixes.into_iter().all(|prefix| prefix == "meshd.dev/"),
            "{file}"
        );
    }
}

/// Kubelets may do neither, whatever group or token they have; the daemon's account is none of these either.
#[test]
fn who_may_set_pod_cidrs_is_a_short_list() {
    let policy = objects(POD_CIDRS).remove(0);
    let conditions: Vec<&str> =
        list(&policy, "/spec/matchConditions").iter().map(|entry| string(entry, "/expression")).collect();
    let named: Vec<&str> = conditions.iter().flat_map(|text| text.split('"').skip(1).step_by(2)).collect();
    assert_eq!(
        named,
        [
            "system:kube-controller-manager",
            "system:serviceaccount:kube-system:node-controller",
            "system:cloud-controller-manager",
            "system:serviceaccount:kube-system:cloud-controller-manager",
            "system:masters",
            "kubeadm:cluster-admins",
            BREAK_GLASS,
        ]
    );
}

#[test]
fn what_the_cluster_needs_passes() {
    let policies = policies();
    for (name, request) in legitimate() {
        assert_eq!(refusals(&policies, &request), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_nobody_may_do_is_refused() {
    let policies = policies();
    for (name, request) in forged() {
        assert!(!refusals(&policies, &request).is_empty(), "{name} was admitted");
    }
}

/// The overlays of clusters whose controller manager allots nothing name the account that does.
#[test]
fn an_overlay_lets_one_more_account_set_pod_cidrs_and_no_other() {
    let allocator = || allot(by("system:serviceaccount:nodeipam:node-ipam-controller", |_| {}));
    assert!(!refusals(&policies(), &allocator()).is_empty(), "the base knows this account");
    for overlay in ["deploy/overlays/eks", "deploy/overlays/aks"] {
        let found = rendered(overlay);
        let found = found.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
        let policies: Vec<Policy> = found.map(Policy::compile).collect();
        assert_eq!(refusals(&policies, &allocator()), Vec::<String>::new(), "{overlay}");
        for (name, request) in legitimate() {
            assert_eq!(refusals(&policies, &request), Vec::<String>::new(), "{overlay}: {name}");
        }
        for (name, request) in forged() {
            assert!(!refusals(&policies, &request).is_empty(), "{overlay}: {name} was admitted");
        }
    }
}

#[test]
fn every_validation_is_needed() {
    for policy in 0..FILES.len() {
        for validation in 0..policies()[policy].validations.len() {
            let mut without = policies();
            let removed = without[policy].validations.remove(validation);
            let admitted = forged().into_iter().any(|(_, request)| refusals(&without, &request).is_empty());
            assert!(admitted, "no request is refused by this validation alone: {}", removed.message);
        }
    }
}

#[test]
fn the_longest_annotation_that_the_daemon_reads_is_the_longest_that_it_may_write() {
    let policies = policies();
    let patch = |len| daemon("n1", "n1", |node| annotate(node, names::STATE, &"x".repeat(len)));
    assert!(refusals(&policies, &patch(MAX_LEN)).is_empty());
    assert!(!refusals(&policies, &patch(MAX_LEN + 1)).is_empty());
}

fn policies() -> Vec<Policy> {
    FILES.iter().map(|file| Policy::compile(&objects(file)[0])).collect()
}

fn refusals(policies: &[Policy], request: &Request) -> Vec<String> {
    policies.iter().flat_map(|policy| policy.refusals(request)).collect()
}

fn legitimate() -> Vec<(&'static str, Request)> {
    let mut requests = daily();
    requests.extend(allotments());
    requests
}

/// Requests that no policy is about.
fn daily() -> Vec<(&'static str, Request)> {
    vec![
        ("the daemon publishes its state", daemon("n1", "n1", |node| annotate(node, names::STATE, "new"))),
        (
            "the daemon publishes its endpoints",
            daemon("n1", "n1", |node| annotate(node, names::ENDPOINTS, "new")),
        ),
        ("the daemon removes its annotations", daemon("n1", "n1", |node| remove(node, names::STATE))),
        (
            "the kubelet reports its status",
            with_status(kubelet(|node| node["status"]["capacity"] = json!({"cpu": "2"}))),
        ),
        ("the kubelet annotates", kubelet(|node| annotate(node, "volumes.example/attached", "true"))),
        ("the kubelet creates its Node", joining(|_| {})),
        ("a kubelet joins with a taint", joining(|node| node["spec"]["unschedulable"] = json!(true))),
        ("a Node without a spec's fields is created", joining(|node| node["spec"] = json!({}))),
        (
            "a Node without annotations is created",
            joining(|node| drop(fields(node, "metadata").remove("annotations"))),
        ),
        (
            "kubeadm join annotates the Node that the kubelet created",
            kubelet(|node| annotate(node, "kubeadm.alpha.kubernetes.io/cri-socket", "unix:///run/x.sock")),
        ),
        (
            "the cloud controller initializes the Node",
            Request {
                groups: accounts(),
                ..by("system:serviceaccount:kube-system:cloud-node-manager", |node| {
                    node["spec"]["providerID"] = json!("cloud:///1");
                    node["spec"]["taints"] = json!([]);
                })
            },
        ),
        ("an operator sets an endpoint", admin(|node| annotate(node, names::CONFIG_ENDPOINT, "192.0.2.1"))),
        ("an administrator taints", admin(|node| node["spec"]["unschedulable"] = json!(true))),
        (
            "break-glass revokes a key",
            Request {
                groups: vec!["system:authenticated".to_owned(), BREAK_GLASS.to_owned()],
                ..admin(|node| remove(node, names::STATE))
            },
        ),
    ]
}

/// Whoever allots podCIDRs, and administrators, set them.
fn allotments() -> Vec<(&'static str, Request)> {
    let in_groups = |groups: &[&str], request: Request| Request {
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..request
    };
    vec![
        ("the controller manager allots podCIDRs", allot(by("system:kube-controller-manager", |_| {}))),
        (
            "the node controller of kubeadm, kind and k3s allots podCIDRs",
            allot(by("system:serviceaccount:kube-system:node-controller", |_| {})),
        ),
        ("a cloud controller allots podCIDRs", allot(by("system:cloud-controller-manager", |_| {}))),
        (
            "a cloud controller in a pod allots podCIDRs",
            allot(by("system:serviceaccount:kube-system:cloud-controller-manager", |_| {})),
        ),
        ("an administrator sets podCIDRs", allot(admin(|_| {}))),
        (
            "an administrator creates a Node with podCIDRs",
            created(admin(|node| drop(fields(node, "metadata").remove("annotations")))),
        ),
        (
            "an administrator of kubeadm's sets podCIDRs",
            allot(in_groups(&["kubeadm:cluster-admins"], by("kubernetes-admin", |_| {}))),
        ),
        ("break-glass sets podCIDRs", allot(in_groups(&[BREAK_GLASS], by("somebody", |_| {})))),
    ]
}

fn forged() -> Vec<(&'static str, Request)> {
    let mut requests = about_the_daemon();
    requests.extend(about_pod_cidrs());
    requests
}

/// Nobody but those in [`allotments`] sets podCIDRs.
fn about_pod_cidrs() -> Vec<(&'static str, Request)> {
    vec![
        (
            "a kubelet creates its Node with podCIDRs",
            joining(|node| node["spec"]["podCIDRs"] = json!(["10.244.0.0/16"])),
        ),
        (
            "a kubelet creates its Node with a podCIDR",
            joining(|node| node["spec"]["podCIDR"] = json!("10.244.0.0/16")),
        ),
        ("a kubelet sets podCIDRs before they are allotted", allot(kubelet(|_| {}))),
        (
            "somebody who may change Nodes sets podCIDRs",
            allot(Request {
                groups: accounts(),
                ..by("system:serviceaccount:kube-system:autoscaler", |_| {})
            }),
        ),
        (
            "the node controller's name in another namespace",
            allot(by("system:serviceaccount:default:node-controller", |_| {})),
        ),
    ]
}

fn about_the_daemon() -> Vec<(&'static str, Request)> {
    let state = |node: &mut Value| annotate(node, names::STATE, "forged");
    let own = |change: fn(&mut Value)| daemon("n1", "n1", change);
    vec![
        ("another node's state", daemon("n1", "n2", state)),
        ("own state without a claim", Request { extra: [].into(), ..daemon("n1", "n1", state) }),
        ("own state with an empty claim", daemon("", "n1", state)),
        ("own Node created", created(daemon("n1", "n1", state))),
        ("own status", with_status(daemon("n1", "n1", state))),
        ("own taints", own(|node| node["spec"]["taints"] = json!([]))),
        ("own podCIDRs", own(|node| node["spec"]["podCIDRs"] = json!(["10.244.0.0/16"]))),
        (
            "own labels",
            own(|node| node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = json!("")),
        ),
        (
            "own owners",
            own(|node| node["metadata"]["ownerReferences"] = json!([{"kind": "Pod", "name": "x"}])),
        ),
        ("own finalizers", own(|node| node["metadata"]["finalizers"] = json!(["x.example/stay"]))),
        ("a new foreign annotation", own(|node| annotate(node, "other.example/new", "x"))),
        ("another value of a foreign annotation", own(|node| annotate(node, "other.example/x", "y"))),
        ("a foreign annotation removed", own(|node| remove(node, "other.example/x"))),
        ("the operator's endpoint", own(|node| annotate(node, names::CONFIG_ENDPOINT, "192.0.2.1"))),
        ("an annotation of a mebibyte", own(|node| annotate(node, names::STATE, &"x".repeat(1 << 20)))),
        ("the kubelet's own key", kubelet(state)),
        ("the kubelet's own key through the status", with_status(kubelet(state))),
        ("a Node that is created with a key", joining(state)),
        ("an administrator's key", admin(state)),
        ("a new annotation with the daemon's prefix", admin(|node| annotate(node, "meshd.dev/other", "x"))),
        ("a key removed", admin(|node| remove(node, names::STATE))),
        (
            "the daemon's name in another namespace",
            Request { user: "system:serviceaccount:default:meshd".to_owned(), ..daemon("n1", "n1", state) },
        ),
    ]
}

/// The daemon changes the Node `name`, with a token whose node claim is `claim`.
fn daemon(claim: &str, name: &str, change: impl FnOnce(&mut Value)) -> Request {
    Request {
        user: format!("system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"),
        groups: vec!["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()],
        extra: [(NODE_CLAIM.to_owned(), vec![claim.to_owned()])].into(),
        ..update(name, change)
    }
}

/// The user changes n1.
fn by(user: &str, change: impl FnOnce(&mut Value)) -> Request {
    Request { user: user.to_owned(), ..update("n1", change) }
}

/// The groups of a service account.
fn accounts() -> Vec<String> {
    ["system:serviceaccounts", "system:authenticated"].map(str::to_owned).to_vec()
}

/// The request sets podCIDRs on a Node that has none.
fn allot(mut request: Request) -> Request {
    unallotted(&mut request.before);
    request
}

/// The kubelet of n1 creates its Node, which has neither podCIDRs nor annotations yet, with a change.
fn joining(change: impl FnOnce(&mut Value)) -> Request {
    created(kubelet(|node| {
        unallotted(node);
        node["metadata"]["annotations"] = json!({});
        change(node);
    }))
}

/// The request creates the Node.
fn created(request: Request) -> Request {
    Request { operation: "CREATE", before: Value::Null, ..request }
}

/// Takes the podCIDRs from a Node.
fn unallotted(node: &mut Value) {
    for field in ["podCIDR", "podCIDRs"] {
        fields(node, "spec").remove(field);
    }
}

/// The kubelet of n1 changes its Node.
fn kubelet(change: impl FnOnce(&mut Value)) -> Request {
    Request {
        user: "system:node:n1".to_owned(),
        groups: vec!["system:nodes".to_owned(), "system:authenticated".to_owned()],
        ..update("n1", change)
    }
}

/// An administrator changes n1.
fn admin(change: impl FnOnce(&mut Value)) -> Request {
    Request {
        user: "admin".to_owned(),
        groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
        ..update("n1", change)
    }
}

fn with_status(request: Request) -> Request {
    Request { subresource: "status", ..request }
}

fn update(name: &str, change: impl FnOnce(&mut Value)) -> Request {
    let before = node(name);
    let mut after = before.clone();
    change(&mut after);
    Request {
        user: String::new(),
        groups: Vec::new(),
        extra: [].into(),
        operation: "UPDATE",
        subresource: "",
        before,
        after,
    }
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": format!("uid-{name}"),
            "labels": {"kubernetes.io/hostname": name},
            "annotations": {names::STATE: "old", "other.example/x": "x"},
        },
        "spec": {
            "podCIDR": "10.244.1.0/24",
            "podCIDRs": ["10.244.1.0/24"],
            "taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}],
        },
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    })
}

fn annotate(node: &mut Value, name: &str, value: &str) {
    node["metadata"]["annotations"][name] = json!(value);
}

fn remove(node: &mut Value, name: &str) {
    fields(&mut node["metadata"], "annotations").remove(name);
}

fn fields<'a>(object: &'a mut Value, name: &str) -> &'a mut serde_json::Map<String, Value> {
    object[name].as_object_mut().unwrap()
}
