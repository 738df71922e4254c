//! The manifests in `deploy/` against the code that they run: what they name exists, what they grant is used.

#![expect(clippy::unwrap_used, reason = "a test that misses something in a manifest has failed")]

mod admission;
mod daemonset;
mod distributions;
mod documents;
mod image;
mod kustomization;
mod overlay;
mod policies;
mod rbac;
mod server;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The namespace and the service account of the daemon in the manifests.
const NAMESPACE: &str = "meshd";
const SERVICE_ACCOUNT: &str = "meshd";

/// The kustomize base.
const BASE: &str = "deploy/base";
/// The overlay that the README applies.
const QUICKSTART: &str = "deploy/overlays/quickstart";

/// The path of a file or directory in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The content of a file in the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The content of a file in the base.
fn text(file: &str) -> String {
    read(&format!("{BASE}/{file}"))
}

/// The objects in YAML text; `path` is for the error.
fn parse(path: &str, yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The objects in a file of the base.
fn objects(file: &str) -> Vec<Value> {
    parse(file, &text(file))
}

/// The only object in a file of the base.
fn object(file: &str) -> Value {
    let [object] = <[Value; 1]>::try_from(objects(file)).unwrap_or_else(|found| panic!("{file}: {found:?}"));
    object
}

/// The value at a JSON pointer; fails the test if there is none.
#[track_caller]
fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer} in {object}"))
}

/// The string at a JSON pointer; fails the test if there is none.
#[track_caller]
fn string<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).as_str().unwrap_or_else(|| panic!("no string at {pointer} in {object}"))
}

/// The list at a JSON pointer; fails the test if there is none.
#[track_caller]
fn list<'a>(object: &'a Value, pointer: &str) -> &'a Vec<Value> {
    at(object, pointer).as_array().unwrap_or_else(|| panic!("no list at {pointer} in {object}"))
}
