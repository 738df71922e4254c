//! The fake API server behaves like a real one: the same requests to both must have the same results.
#![expect(clippy::unwrap_used, reason = "functions that tests share fail as tests do")]

mod essence;
mod walk;

use std::collections::BTreeSet;
use std::time::Duration;

use lab::require::{self, Need};
use lab::{ApiKind, ApiServer, Family, Lab};
use serde_json::{Value, json};

use essence::{essence, event_essence};
use walk::{Walk, collect, get, http_request};

const MERGE: &str = "application/merge-patch+json";

fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap_or("0").parse().unwrap()
}

fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}, "annotations": {"first": "1"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "198.18.0.1"}]},
    })
}

fn annotate(key: &str, value: impl Into<Value>) -> Value {
    json!({"metadata": {"annotations": {key: value.into()}}})
}

fn access(walk: &mut Walk<'_>) {
    let get = |path| ("GET", path, "", Value::Null);
    for user in ["nobody", "stranger", "n1", "admin"] {
        walk.step(user, get("/api/v1/nodes"));
        walk.step(user, get("/api/v1/nodes/n9"));
        walk.step(user, get("/version"));
    }
    walk.step("n1", get("/api/v1/namespaces/default/endpoints/kubernetes"));
    walk.step("n1", get("/api/v1/namespaces/default/endpoints/other"));
    walk.step("admin", get("/api/v1/namespaces/default/endpoints/other"));
    walk.step("admin", get("/api/v1/no-such-thing"));
    walk.step("admin", get("/apis/no.such.group/v1/things"));
    walk.step("admin", ("POST", "/api/v1/nodes/n1", "application/json", json!({})));
}

fn creation(walk: &mut Walk<'_>) {
    let create = |body| ("POST", "/api/v1/nodes", "application/json", body);
    let dry = walk.step("admin", ("POST", "/api/v1/nodes?dryRun=All", "application/json", node("n1")));
    walk.note("a dry run gives no revision", json!(revision_of(&dry)));
    let made = walk.step("admin", create(node("n1")));
    assert!(revision_of(&made) > 0);
    walk.step("admin", create(node("n1")));
    walk.step("admin", create(json!({"metadata": {"name": "n2", "labels": {"color": "blue"}}})));
    walk.step("admin", create(json!({"metadata": {"name": "n3"}, "spec": {"podCIDRs": ["10.244.3.0/24"]}})));
    let broken = [
        json!({"metadata": {}}),
        json!({"metadata": {"name": "No_Good"}}),
        json!({"metadata": {"name": "broken", "resourceVersion": "5"}}),
        json!({"metadata": {"name": "broken"}, "spec": {"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}}),
        json!({"metadata": {"name": "broken"}, "spec": {"podCIDRs": ["10.0.0.0"]}}),
        json!({"metadata": {"name": "broken", "annotations": {"long": "x".repeat(256 * 1024 + 1)}}}),
        json!({"metadata": {"name": "broken", "annotations": {"number": 5}}}),
        json!("{\"metadata\": "),
        json!("[1]"),
    ];
    for body in broken {
        walk.step("admin", create(body));
        // If only one of the servers accepts it, that is one difference, not two.
        let _not_there = walk.api.delete_node("broken");
    }
    walk.step("n1", create(node("n4")));
    walk.step("admin", ("POST", "/api/v1/nodes?dryRun=Some", "application/json", node("n4")));
}

fn patches(walk: &mut Walk<'_>) {
    let patch = |body| ("PATCH", "/api/v1/nodes/n1", MERGE, body);
    let before = walk.step("admin", ("GET", "/api/v1/nodes/n1", "", Value::Null));
    let (uid, version) = (before["metadata"]["uid"].clone(), before["metadata"]["resourceVersion"].clone());
    let same = walk.step("n1", patch(annotate("first", "1")));
    walk.note("no change, no revision", json!(revision_of(&same) == revision_of(&before)));
    let changed = walk.step("n1", patch(annotate("meshd.dev/state", "{}")));
    walk.note("a change, a revision", json!(revision_of(&changed) > revision_of(&before)));
    let dry = walk.step("n1", ("PATCH", "/api/v1/nodes/n1?dryRun=All", MERGE, annotate("dry", "1")));
    walk.note("a dry run keeps the revision", json!(revision_of(&dry) == revision_of(&changed)));
    walk.step("n1", patch(annotate("first", Value::Null)));
    walk.step("n1", patch(annotate("first", Value::Null)));
    walk.step("n1", patch(json!({"metadata": {"uid": uid, "annotations": {"with-uid": "1"}}})));
    walk.step("n1", patch(json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000000", "annotations": {"bad-uid": "1"}}})));
    walk.step("n1", patch(json!({"metadata": {"resourceVersion": version, "annotations": {"stale": "1"}}})));
    let now = walk.step("n1", ("GET", "/api/v1/nodes/n1", "", Value::Null));
    let version = &now["metadata"]["resourceVersion"];
    walk.step("n1", patch(json!({"metadata": {"resourceVersion": version, "annotations": {"fresh": "1"}}})));
    walk.step("n1", patch(json!({"metadata": {"name": "n2"}})));
    walk.step("n1", patch(annotate("number", 5)));
    walk.step("n1", patch(annotate("long", "x".repeat(1 << 20))));
    walk.step("n1", patch(json!("{\"metadata\": ")));
    walk.step("n1", patch(json!("[1]")));
    walk.step("n1", ("PATCH", "/api/v1/nodes/n1", "application/json", annotate("media", "1")));
    walk.step("admin", patch(json!({"spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}})));
    walk.step("admin", patch(json!({"spec": {"podCIDRs": null, "podCIDR": null}})));
    walk.step("admin", ("PATCH", "/api/v1/nodes/n2", MERGE, json!({"spec": {"podCIDR": "10.244.2.0/24"}})));
    walk.step("admin", patch(json!({"status": {"addresses": []}, "spec": {"unschedulable": true}})));
    let status = json!({"spec": {"unschedulable": null}, "status": {"addresses": [{"type": "InternalIP", "address": "198.18.0.7"}]}});
    walk.step("admin", ("PATCH", "/api/v1/nodes/n1/status", MERGE, status));
    walk.step("admin", ("PATCH", "/api/v1/nodes/n9", MERGE, annotate("a", "1")));
    walk.step("admin", patch(json!({"metadata": {"labels": {"color": "red"}, "annotations": null}})));
}

fn fence(walk: &mut Walk<'_>) {
    for path in
        ["/api/v1/nodes/n2", "/api/v1/nodes/n2?dryRun=All", "/api/v1/nodes/n9", "/api/v1/nodes/n1/status"]
    {
        walk.step("n1", ("PATCH", path, MERGE, annotate("forged", "1")));
    }
    walk.step("n1", ("DELETE", "/api/v1/nodes/n1", "", Value::Null));
    walk.step("n1", ("GET", "/api/v1/namespaces/default/events", "", Value::Null));
    walk.step("nobody", ("PATCH", "/api/v1/nodes/n2", MERGE, annotate("forged", "1")));
    walk.step("stranger", ("PATCH", "/api/v1/nodes/n2", MERGE, annotate("forged", "1")));
}

fn lists(walk: &mut Walk<'_>) {
    let mut list = |query: &str| walk.step("n1", ("GET", &format!("/api/v1/nodes?{query}"), "", Value::Null));
    list("");
    list("fieldSelector=metadata.name%3Dn2");
    list("labelSelector=color%3Dblue");
    list("labelSelector=color%3Dblue&limit=1");
    list("resourceVersion=0&limit=1");
    list("resourceVersion=x");
    list("limit=x");
    list("continue=garbage");
    list("resourceVersion=999999999");
    let first = list("limit=2");
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    walk.api.patch_node("n3", &annotate("between-pages", "1")).unwrap();
    // Tokens are base64, whose characters beyond letters and digits mean something in a query.
    let token = token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let path = format!("/api/v1/nodes?limit=2&continue={token}");
    let second = walk.api.run("n1", |client| async move { get(&client, &path).await }).unwrap();
    walk.note("the second page", essence(&second));
    walk.note("is of the first one's revision", json!(revision_of(&second) == revision_of(&first)));
    walk.note("and of its state", second["items"][0]["metadata"]["annotations"]["between-pages"].clone());
}

fn watches(walk: &mut Walk<'_>) {
    let start = walk.revision();
    let mut revisions = Vec::new();
    for (name, key) in [("n1", "a"), ("n2", "b"), ("n1", "c")] {
        revisions.push(revision_of(&walk.api.patch_node(name, &annotate(key, "1")).unwrap()));
    }
    walk.api.delete_node("n3").unwrap();
    revisions.push(revision_of(&walk.api.create_node(node("n4")).unwrap()));
    let events = walk.watch("n1", &format!("resourceVersion={start}&timeoutSeconds=2"));
    walk.note("a watch from before", events.iter().map(event_essence).collect());
    let seen: Vec<u64> = events.iter().map(|event| revision_of(&event["object"])).collect();
    let deletion = seen.get(3).copied().unwrap_or_default();
    assert!(deletion > revisions[2] && deletion < revisions[3], "{seen:?}");
    revisions.insert(3, deletion);
    walk.note("revisions are those of the answers", json!(seen == revisions));

    let later = revisions[1];
    let events = walk.watch("n1", &format!("resourceVersion={later}&timeoutSeconds=1"));
    walk.note("a watch from between", events.iter().map(event_essence).collect());
    for query in ["timeoutSeconds=1", "resourceVersion=0&timeoutSeconds=1"] {
        let mut events = walk.watch("n1", query);
        // Which of the existing objects comes first is not promised.
        events.sort_by_key(|event| event["object"]["metadata"]["name"].to_string());
        walk.note(&format!("a watch with {query}"), events.iter().map(event_essence).collect());
    }
    let events = walk
        .watch("n1", &format!("resourceVersion={start}&timeoutSeconds=1&fieldSelector=metadata.name%3Dn2"));
    walk.note("a watch of one node", events.iter().map(event_essence).collect());
    let now = walk.revision();
    let quiet = format!(
        "timeoutSeconds=5&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dn2&resourceVersion={now}"
    );
    walk.note("a watch with bookmarks and nothing to say", json!(walk.watch("n1", &quiet)));
    walk.api.patch_node("n1", &annotate("d", "1")).unwrap();
    walk.note("a watch with bookmarks that missed something before", json!(walk.watch("n1", &quiet)));
    let (events, changed) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| walk.watch("n1", &quiet));
        std::thread::sleep(Duration::from_millis(700));
        let changed = walk.api.patch_node("n1", &annotate("e", "1")).unwrap();
        (watching.join().unwrap(), revision_of(&changed))
    });
    // The real server sends some events twice.
    let kinds: BTreeSet<_> = events.iter().map(|event| event_essence(event).to_string()).collect();
    walk.note("a watch with bookmarks that misses something", json!(kinds));
    let said: BTreeSet<_> = events.iter().map(|event| revision_of(&event["object"]) == changed).collect();
    walk.note("bookmarks say how far we are", json!(said));
    walk.note("a watch of the future", json!(walk.watch("n1", "resourceVersion=999999999&timeoutSeconds=1")));
    walk.step("n1", ("GET", "/api/v1/nodes?watch=true&resourceVersion=x", "", Value::Null));
    walk.step("nobody", ("GET", "/api/v1/nodes?watch=true", "", Value::Null));
}

/// A watch that is open while things happen.
fn live_watch(walk: &mut Walk<'_>) {
    let start = walk.revision();
    let api = walk.api;
    let events = std::thread::scope(|scope| {
        let path = format!("/api/v1/nodes?watch=true&resourceVersion={start}&timeoutSeconds=4");
        let watching = scope
            .spawn(move || api.run("n2", |client| async move { collect(&client, &path).await }).unwrap());
        std::thread::sleep(Duration::from_millis(500));
        api.patch_node("n2", &annotate("live", "1")).unwrap();
        api.patch_node("n2", &annotate("live", "1")).unwrap();
        api.patch_node("n2", &annotate("live", Value::Null)).unwrap();
        api.patch_node_status(
            "n2",
            &json!({"status": {"addresses": [{"type": "InternalIP", "address": "198.18.0.9"}]}}),
        )
        .unwrap();
        watching.join().unwrap()
    });
    walk.note("a live watch", events.iter().map(event_essence).collect());
}

fn events(walk: &mut Walk<'_>) {
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e1", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "PeerRejected", "action": "Reject", "type": "Warning",
        "note": "podCIDR overlaps", "reportingController": "meshd.dev/meshd", "reportingInstance": "n1",
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": "n2", "namespace": "default"},
    });
    walk.step("n1", ("POST", path, "application/json", event.clone()));
    walk.step("n1", ("POST", path, "application/json", event.clone()));
    // About objects without a namespace: which namespace they may be in is not the same in all versions.
    for (name, place, about) in
        [("e2", "default", None), ("e3", "kube-system", None), ("e4", "kube-system", Some("default"))]
    {
        let mut other = event.clone();
        other["metadata"] = json!({"name": name, "namespace": place});
        other["regarding"]["namespace"] = json!(about);
        walk.step("n1", ("POST", &path.replace("default", place), "application/json", other));
    }
    let old = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e5"}, "reason": "Old", "message": "of the old group",
        "involvedObject": {"kind": "Node", "name": "n2"}, "source": {"component": "meshd"}, "type": "Normal",
    });
    walk.step("n1", ("POST", "/api/v1/namespaces/default/events", "application/json", old.clone()));
    walk.step("n1", ("POST", "/api/v1/namespaces/kube-system/events", "application/json", old));
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}});
    walk.step("n1", ("PATCH", &format!("{path}/e1"), MERGE, series.clone()));
    walk.step("n1", ("PATCH", &format!("{path}/e9"), MERGE, series));
    let mut elsewhere = event;
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    walk.step("n1", ("POST", path, "application/json", elsewhere));
    walk.step("nobody", ("POST", path, "application/json", json!({})));
    let seen = walk.api.events().unwrap();
    let ours: Vec<_> = seen.iter().filter(|event| event["reason"] == "PeerRejected").collect();
    walk.note(
        "the administrator reads it",
        json!(ours.iter().map(|event| &event["note"]).collect::<Vec<_>>()),
    );
}

fn deletions(walk: &mut Walk<'_>) {
    let wrong = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    walk.step("admin", ("DELETE", "/api/v1/nodes/n4", "application/json", wrong));
    walk.step("admin", ("DELETE", "/api/v1/nodes/n4?dryRun=All", "", Value::Null));
    walk.step("admin", ("DELETE", "/api/v1/nodes/n4", "", Value::Null));
    walk.step("admin", ("DELETE", "/api/v1/nodes/n4", "", Value::Null));
}

fn stopped_and_started(walk: &mut Walk<'_>) {
    let old = walk.revision();
    walk.api.patch_node("n1", &annotate("last", "1")).unwrap();
    walk.api.stop().unwrap();
    let refused = walk.api.node("n1").unwrap_err();
    walk.note(
        "nobody is there",
        json!(matches!(refused, lab::kube::ApiError::Request { source: kube::Error::Api(_), .. })),
    );
    walk.api.resume().unwrap();
    walk.step("n1", ("GET", "/api/v1/nodes", "", Value::Null));
    let events = walk.watch("n1", &format!("resourceVersion={old}&timeoutSeconds=2"));
    walk.note("a watch from before the start", events.iter().map(event_essence).collect());
    walk.step("n1", ("GET", &format!("/api/v1/nodes?resourceVersion={old}"), "", Value::Null));
    let now = walk.revision();
    walk.note(
        "a watch from now",
        json!(walk.watch("n1", &format!("resourceVersion={now}&timeoutSeconds=1"))),
    );
}

fn wiped(walk: &mut Walk<'_>) {
    // Far enough that the revisions after a restart are lower.
    let before = walk.api.node("n1").unwrap();
    let rounds = if walk.api.kind() == ApiKind::Fake { 20 } else { 800 };
    walk.api
        .run("admin", |client| async move {
            for round in 0..rounds {
                let path = "/api/v1/nodes/n1";
                let body = annotate("round", round.to_string()).to_string();
                client.send(http_request("PATCH", path, MERGE, body)).await.unwrap();
            }
        })
        .unwrap();
    let old: u64 = walk.revision().parse().unwrap();
    walk.api.wipe().unwrap();
    walk.step("n1", ("GET", "/api/v1/nodes", "", Value::Null));
    walk.note("revisions start over", json!(walk.revision().parse::<u64>().unwrap() < old));
    let again = walk.api.create_node(node("n1")).unwrap();
    walk.note("the same name, another node", json!(again["metadata"]["uid"] != before["metadata"]["uid"]));
    walk.note(
        "a watch from another life",
        json!(walk.watch("n1", &format!("resourceVersion={old}&timeoutSeconds=1"))),
    );
    walk.step("n1", ("PATCH", "/api/v1/nodes/n1", MERGE, annotate("again", "1")));
    walk.step("n1", ("PATCH", "/api/v1/nodes/n2", MERGE, annotate("again", "1")));
}

fn whole_walk(api: &ApiServer) -> Vec<(String, Value)> {
    let mut walk = Walk { api, trail: Vec::new() };
    for part in [
        access,
        creation,
        patches,
        fence,
        lists,
        watches,
        live_watch,
        events,
        deletions,
        stopped_and_started,
        wiped,
    ] {
        part(&mut walk);
    }
    walk.trail
}

fn lab(kind: ApiKind, family: Family, fence: bool) -> Lab {
    Lab::builder().nodes(1).family(family).api(kind).register(false).fence(fence).build().unwrap()
}

#[test]
fn the_fake_answers_as_a_real_server_does() {
    require::all(&[Need::Namespaces, Need::KubeApiserver]);
    let (fake, real) = std::thread::scope(|scope| {
        let run = |kind| scope.spawn(move || whole_walk(lab(kind, Family::Dual, true).api()));
        let (fake, real) = (run(ApiKind::Fake), run(ApiKind::Real));
        (fake.join().unwrap(), real.join().unwrap())
    });
    assert_eq!(fake.len(), real.len());
    let differ = fake.iter().zip(&real).filter(|((_, one), (_, other))| one != other);
    let differ: Vec<_> = differ
        .map(|((what, fake), (_, real))| format!("{what}\n  fake     {fake}\n  real     {real}\n"))
        .collect();
    assert!(differ.is_empty(), "{} of {} steps differ:\n{}", differ.len(), real.len(), differ.join(""));
}

#[test]
fn without_the_fence_a_node_may_change_another_on_both_servers() {
    require::all(&[Need::Namespaces, Need::KubeApiserver]);
    for (kind, family) in [(ApiKind::Fake, Family::V6), (ApiKind::Real, Family::V6)] {
        let lab = lab(kind, family, false);
        let mut walk = Walk { api: lab.api(), trail: Vec::new() };
        walk.api.create_node(node("n2")).unwrap();
        walk.step("n1", ("PATCH", "/api/v1/nodes/n2", MERGE, annotate("forged", "1")));
        assert_eq!(walk.trail[0].1["code"], 200, "{kind:?}");
        assert!(lab.api().url().contains("[2001:db8:18::fa]"));
    }
}

#[test]
fn a_node_reaches_its_server_with_its_kubeconfig_over_the_underlay() {
    require::all(&[Need::Namespaces]);
    let lab = Lab::builder().nodes(2).build().unwrap();
    let node = lab.node("n2").unwrap();
    let config = String::from_utf8(node.read(lab::KUBECONFIG).unwrap()).unwrap();
    assert!(config.contains(lab.api().token("n2").unwrap()) && config.contains(lab.api().url()));
    let host = lab.api().host().end();
    let source = lab::Flow::new(&node.end(), &host, lab::IpVersion::V4, lab::Protocol::Tcp).must_pass();
    assert_eq!(source, node.address(lab::IpVersion::V4).unwrap());
    let made = lab.api().node("n2").unwrap();
    assert_eq!(made["spec"]["podCIDRs"], json!(["10.244.2.0/24", "fd00:10:244:2::/64"]));
    lab.unregister("n2").unwrap();
    assert!(lab.api().node("n2").is_err());
    assert_eq!(lab.api().requests().unwrap()["delete nodes"], 1);
}
