//! The manifests in `deploy/` against the code that they run: what they name exists, what they grant is used.

#![expect(clippy::unwrap_used, reason = "what a manifest lacks fails the test that asks for it")]

mod admission;
mod daemonset;
mod kustomization;
mod policies;
mod rbac;
mod server;

use std::path::PathBuf;

use serde_json::Value;

/// Names under which the manifests know the daemon.
const NAMESPACE: &str = "meshd";
const SERVICE_ACCOUNT: &str = "meshd";

/// The folder of the kustomize base.
fn base() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/base")
}

/// The text of a file in the base.
fn text(file: &str) -> String {
    std::fs::read_to_string(base().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The objects in a file of the base.
fn objects(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The only object in a file of the base.
fn object(file: &str) -> Value {
    let [object] = <[Value; 1]>::try_from(objects(file)).unwrap_or_else(|found| panic!("{file}: {found:?}"));
    object
}

/// What stands at a JSON pointer; fails the test if there is nothing.
#[track_caller]
fn at<'a>(object: &'a Value, pointer: &str) -> &'a Value {
    object.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer} in {object}"))
}

/// The text at a JSON pointer; fails the test if there is none.
#[track_caller]
fn string<'a>(object: &'a Value, pointer: &str) -> &'a str {
    at(object, pointer).as_str().unwrap_or_else(|| panic!("no text at {pointer} in {object}"))
}

/// The list at a JSON pointer; fails the test if there is none.
#[track_caller]
fn list<'a>(object: &'a Value, pointer: &str) -> &'a Vec<Value> {
    at(object, pointer).as_array().unwrap_or_else(|| panic!("no list at {pointer} in {object}"))
}
