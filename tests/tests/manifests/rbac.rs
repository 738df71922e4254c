//! RBAC: each right has its reason, each is used by the code, and the code needs no others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{NAMESPACE, SERVICE_ACCOUNT, list, object, string, text};

/// A right: the resource and the verb.
type Right = (String, String);

#[test]
fn every_rule_has_one_verb_and_its_reason_as_a_comment() {
    for file in ["clusterrole.yaml", "role.yaml"] {
        let role = text(file);
        let lines: Vec<&str> = role.lines().map(str::trim).collect();
        let verbs: Vec<(usize, &str)> = lines
            .iter()
            .enumerate()
            .filter_map(|(number, line)| Some((number, line.strip_prefix("verbs: [")?.strip_suffix(']')?)))
            .collect();
        let rules = lines.iter().filter(|line| line.starts_with("- apiGroups:")).count();
        assert_eq!(verbs.len(), rules, "{file}: a rule has an unexpected format");
        for (number, verb) in verbs {
            assert!(
                verb.chars().all(|letter| letter.is_ascii_lowercase()),
                "{file}: expected one verb per rule, found: {verb}"
            );
            let start = lines[..number].iter().rposition(|line| line.starts_with("- apiGroups:")).unwrap();
            let reason = lines[..start].iter().rev().take_while(|line| line.starts_with("# ")).last();
            let expected = format!("# {verb}: ");
            assert!(
                reason.is_some_and(|reason| reason.starts_with(&expected)),
                "{file}: no reason for {verb}"
            );
        }
    }
}

#[test]
fn rights_are_those_that_the_code_uses() {
    let granted = [granted("clusterrole.yaml"), granted("role.yaml")].concat();
    assert_eq!(
        granted.iter().cloned().collect::<BTreeSet<_>>().len(),
        granted.len(),
        "granted twice: {granted:?}"
    );
    assert_eq!(granted.into_iter().collect::<BTreeSet<_>>(), used_by_the_daemon());
}

#[test]
fn only_the_api_servers_own_endpoints_can_be_read() {
    let role = object("role.yaml");
    assert_eq!(string(&role, "/metadata/namespace"), "default");
    let endpoints = list(&role, "/rules").iter().filter(|rule| rule["resources"][0] == "endpoints");
    for rule in endpoints {
        assert_eq!(rule["resourceNames"], serde_json::json!(["kubernetes"]));
    }
}

#[test]
fn only_the_daemons_account_is_bound_to_the_roles() {
    for (file, role) in [("clusterrolebinding.yaml", "clusterrole.yaml"), ("rolebinding.yaml", "role.yaml")] {
        let binding = object(file);
        let role = object(role);
        assert_eq!(string(&binding, "/roleRef/kind"), string(&role, "/kind"));
        assert_eq!(string(&binding, "/roleRef/name"), string(&role, "/metadata/name"));
        assert_eq!(binding["metadata"]["namespace"], role["metadata"]["namespace"]);
        let expected = serde_json::json!([
            {"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": NAMESPACE}
        ]);
        assert_eq!(binding["subjects"], expected);
    }
}

fn granted(file: &str) -> Vec<Right> {
    let role = object(file);
    let mut rights = Vec::new();
    for rule in list(&role, "/rules") {
        assert_eq!(rule["apiGroups"], serde_json::json!([""]), "{file}");
        for resource in list(rule, "/resources") {
            for verb in list(rule, "/verbs") {
                rights.push((resource.as_str().unwrap().to_owned(), verb.as_str().unwrap().to_owned()));
            }
        }
    }
    rights
}

/// The rights that the calls in the daemon's source need. Each source file uses one kind only, so that every call in it is
/// known to be about that kind.
fn used_by_the_daemon() -> BTreeSet<Right> {
    let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../meshd/src");
    let mut rights = BTreeSet::new();
    for path in rust_files(&sources) {
        let source = std::fs::read_to_string(&path).unwrap();
        let kinds: BTreeSet<&str> = source
            .split("Api::<")
            .skip(1)
            .filter_map(|rest| rest.split_once('>'))
            .map(|(kind, _)| kind)
            .collect();
        assert!(kinds.len() <= 1, "{}: more than one kind: {kinds:?}", path.display());
        for kind in kinds {
            let resource = match kind {
                "Node" | "ObservedNode" => "nodes",
                "Endpoints" => "endpoints",
                "Event" => "events",
                other => panic!("{}: unknown resource of {other}", path.display()),
            };
            let verbs = verbs_in(&source);
            assert!(!verbs.is_empty(), "{}: {kind} is not used", path.display());
            rights.extend(verbs.into_iter().map(|verb| (resource.to_owned(), verb.to_owned())));
        }
        let elsewhere = ["Api<", "Recorder", "Client::request", "client.request"]
            .iter()
            .find(|word| source.contains(**word));
        assert_eq!(elsewhere, None, "{}: a use of the API that this test can't analyse", path.display());
    }
    rights
}

/// The verbs of the calls of `kube::Api` in source code. Maps have a `get` too, but it is not awaited.
fn verbs_in(source: &str) -> BTreeSet<&'static str> {
    let calls: [(&str, &[&str]); 12] = [
        ("watcher(", &["list", "watch"]),
        (".list(", &["list"]),
        (".watch(", &["watch"]),
        (".get_opt(", &["get"]),
        (".get_metadata(", &["get"]),
        (".patch(", &["patch"]),
        (".patch_metadata(", &["patch"]),
        (".patch_status(", &["patch"]),
        (".replace(", &["update"]),
        (".create(", &["create"]),
        (".delete(", &["delete"]),
        (".delete_collection(", &["deletecollection"]),
    ];
    let mut verbs: BTreeSet<&'static str> = calls
        .iter()
        .filter(|(call, _)| source.contains(call))
        .flat_map(|(_, verbs)| verbs.iter().copied())
        .collect();
    let mut after = source.split(".get(").skip(1);
    if after.any(|rest| rest.split_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(".await")))
    {
        verbs.insert("get");
    }
    verbs
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn verbs_are_found_in_calls_and_not_in_maps() {
    assert_eq!(verbs_in("names.get(name).cloned()"), BTreeSet::new());
    assert_eq!(verbs_in("api.get(\"kubernetes\").await?"), BTreeSet::from(["get"]));
    assert_eq!(verbs_in("api.get(\"kubernetes\")\n    .await?"), BTreeSet::from(["get"]));
    assert_eq!(verbs_in("watcher(api, config)"), BTreeSet::from(["list", "watch"]));
    assert_eq!(verbs_in("nodes.delete(name, &parameters)"), BTreeSet::from(["delete"]));
}
