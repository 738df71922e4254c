//! What `kubectl apply -k` makes of an overlay.
//!
//! Supports only what our overlays use of kustomize, and fails if one uses more. It is stricter where kustomize says
//! nothing: a patch has to find what it changes or deletes, and every file of the directory has to be used. Names of
//! generated objects have no digest appended, and entries of lists keep the order of the base.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{list, objects, parse, read, repository, string};

/// The objects of the base.
pub(super) fn base_objects() -> Vec<Value> {
    let kustomization = super::object("kustomization.yaml");
    list(&kustomization, "/resources").iter().flat_map(|file| objects(file.as_str().unwrap())).collect()
}

/// The objects that an overlay makes: those of the base with its patches, then the ones that it generates.
pub(super) fn rendered(overlay: &str) -> Vec<Value> {
    let path = format!("{overlay}/kustomization.yaml");
    let kustomization = parse(&path, &read(&path)).remove(0);
    expect_fields(&kustomization, &["apiVersion", "kind", "resources", "configMapGenerator"], &["patches"]);
    assert_eq!(kustomization["resources"], json!(["../../base"]), "{overlay}");
    let mut used: BTreeSet<String> = ["kustomization.yaml".to_owned()].into();
    let mut result = base_objects();
    for patch in kustomization.get("patches").and_then(Value::as_array).into_iter().flatten() {
        if let Some(file) = patch.get("path") {
            expect_fields(patch, &["path"], &[]);
            let file = file.as_str().unwrap();
            used.insert(file.to_owned());
            for patch in parse(file, &read(&format!("{overlay}/{file}"))) {
                merge(target(&mut result, &patch["kind"], &patch["metadata"]["name"]), &patch, "");
            }
        } else if patch.get("target").is_none() {
            apply_inline(&mut result, patch);
        } else {
            expect_fields(patch, &["target", "patch"], &[]);
            if patch["target"].get("name").is_none() {
                delete_kind(&mut result, patch);
                continue;
            }
            expect_fields(&patch["target"], &["kind", "name"], &[]);
            let target = target(&mut result, &patch["target"]["kind"], &patch["target"]["name"]);
            for operation in
                parse(overlay, string(patch, "/patch")).iter().flat_map(|list| list.as_array().unwrap())
            {
                append(target, operation);
            }
        }
    }
    for generator in list(&kustomization, "/configMapGenerator") {
        expect_fields(generator, &["name", "namespace", "files"], &[]);
        let files: Vec<&str> = list(generator, "/files").iter().map(|file| file.as_str().unwrap()).collect();
        used.extend(files.iter().map(|file| (*file).to_owned()));
        let data: Map<String, Value> = files
            .into_iter()
            .map(|file| (file.to_owned(), json!(read(&format!("{overlay}/{file}")))))
            .collect();
        result.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": generator["name"], "namespace": generator["namespace"]},
            "data": data,
        }));
    }
    assert_eq!(used, files(overlay), "{overlay}: files that are used, and those that are there");
    result
}

/// Applies a strategic merge patch that is in the kustomization itself.
pub(super) fn apply_inline(objects: &mut [Value], patch: &Value) {
    expect_fields(patch, &["patch"], &[]);
    for patch in parse("patch", string(patch, "/patch")) {
        merge(target(objects, &patch["kind"], &patch["metadata"]["name"]), &patch, "");
    }
}

/// Deletes all objects of a kind, of which there has to be one.
fn delete_kind(objects: &mut Vec<Value>, patch: &Value) {
    expect_fields(&patch["target"], &["kind"], &[]);
    let deletion = parse("patch", string(patch, "/patch")).remove(0);
    expect_fields(&deletion, &["apiVersion", "kind", "metadata", "$patch"], &[]);
    let kind = &patch["target"]["kind"];
    assert_eq!((&deletion["kind"], &deletion["$patch"]), (kind, &json!("delete")));
    let before = objects.len();
    objects.retain(|object| object["kind"] != *kind);
    assert!(objects.len() < before, "a patch deletes every {kind}, of which the base has none");
}

/// The names of the files in a directory of the repository.
pub(super) fn files(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(repository(directory)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn expect_fields(object: &Value, needed: &[&str], allowed: &[&str]) {
    let found: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let needed: BTreeSet<&str> = needed.iter().copied().collect();
    let known: BTreeSet<&str> = needed.iter().chain(allowed).copied().collect();
    assert!(found.is_superset(&needed) && found.is_subset(&known), "{found:?} in {object}");
}

/// The object that a patch is for.
fn target<'a>(objects: &'a mut [Value], kind: &Value, name: &Value) -> &'a mut Value {
    let found =
        objects.iter_mut().find(|object| object["kind"] == *kind && object["metadata"]["name"] == *name);
    found.unwrap_or_else(|| panic!("a patch for {kind} {name}, which the base does not have"))
}

/// A strategic merge patch: objects are merged field by field, lists entry by entry.
fn merge(target: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(fields) => {
            for (name, value) in fields {
                merge(&mut target[name.as_str()], value, name);
            }
        }
        // Without a merge key in the API a list is replaced as a whole.
        Value::Array(_) if field == "add" => *target = patch.clone(),
        Value::Array(entries) => {
            let key = merge_key(field);
            let list = target.as_array_mut().unwrap_or_else(|| panic!("{field} is no list in the base"));
            for entry in entries {
                let place = list.iter().position(|found| found[key] == entry[key]);
                match (place, entry.get("$patch").and_then(Value::as_str)) {
                    (Some(place), Some("delete")) => drop(list.remove(place)),
                    (Some(place), None) => merge(&mut list[place], entry, ""),
                    (None, None) => list.push(entry.clone()),
                    (_, directive) => panic!("{directive:?} of {entry}, which is not in {field}"),
                }
            }
        }
        scalar => *target = scalar.clone(),
    }
}

/// The field that identifies an entry of a list of a pod, by the API's `patchMergeKey`.
fn merge_key(field: &str) -> &'static str {
    match field {
        "containers" | "volumes" => "name",
        "volumeMounts" => "mountPath",
        _ => panic!("the merge key of {field} is not known here"),
    }
}

/// An operation of a JSON patch (RFC 6902): appends to a list.
fn append(target: &mut Value, operation: &Value) {
    expect_fields(operation, &["op", "path", "value"], &[]);
    assert_eq!(operation["op"], "add");
    let path = string(operation, "/path");
    let path = path.strip_suffix("/-").unwrap_or_else(|| panic!("{path} is not the end of a list"));
    let list = target.pointer_mut(path).and_then(Value::as_array_mut);
    list.unwrap_or_else(|| panic!("no list at {path}")).push(operation["value"].clone());
}

#[test]
fn a_patch_replaces_deletes_and_adds() {
    let mut found = json!({"containers": [{"name": "a", "image": "x", "volumeMounts": [
        {"name": "v", "mountPath": "/old"}, {"name": "w", "mountPath": "/stays"},
    ]}]});
    let patch = json!({"containers": [{"name": "a", "image": "y", "volumeMounts": [
        {"mountPath": "/old", "$patch": "delete"}, {"name": "v", "mountPath": "/new"},
    ]}]});
    merge(&mut found, &patch, "");
    let expected = json!({"containers": [{"name": "a", "image": "y", "volumeMounts": [
        {"name": "w", "mountPath": "/stays"}, {"name": "v", "mountPath": "/new"},
    ]}]});
    assert_eq!(found, expected);
}

#[test]
#[should_panic(expected = "which is not in volumeMounts")]
fn a_patch_that_deletes_nothing_is_a_mistake() {
    let patch = json!({"volumeMounts": [{"mountPath": "/other", "$patch": "delete"}]});
    merge(&mut json!({"volumeMounts": []}), &patch, "");
}
