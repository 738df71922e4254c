//! The Nodes of the fake API server, their history, and the rules by which they change. Pure: time and ids are arguments.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::status::Status;

/// Largest size of all annotations of an object together, keys and values, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// How many changes are remembered for watches.
const HISTORY: usize = 10_000;

/// How many lists may be paged through at once.
const SNAPSHOTS: usize = 32;

type Nodes = BTreeMap<String, Arc<Value>>;

/// All Nodes, with recent history.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    revision: u64,
    nodes: Nodes,
    history: VecDeque<Change>,
    /// Watches may start at this revision or later.
    oldest: u64,
    /// Lists that are being paged through, by their revision.
    snapshots: VecDeque<(u64, Nodes)>,
}

/// Something that happened to a Node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// When, in the order of the store.
    pub(crate) revision: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(crate) kind: &'static str,
    /// The Node after it; for `DELETED` the last state, with the revision of the deletion.
    pub(crate) object: Arc<Value>,
}

/// What a request depends on beside its content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestContext<'a> {
    /// RFC 3339, in seconds.
    pub(crate) now: &'a str,
    /// A fresh UID for an object that may be created.
    pub(crate) uid: &'a str,
    /// Whether everything is checked and nothing is kept.
    pub(crate) dry_run: bool,
}

/// Which part of a Node a patch changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but `status`.
    Main,
    /// All but `spec`.
    Status,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Page {
    pub(crate) revision: u64,
    pub(crate) items: Vec<Arc<Value>>,
    /// Where the next page starts, and how many items it and those after it have.
    pub(crate) rest: Option<(String, usize)>,
}

impl Store {
    /// No Nodes, at the first revision.
    pub(crate) fn new() -> Self {
        Self {
            revision: 1,
            nodes: Nodes::new(),
            history: VecDeque::new(),
            oldest: 1,
            snapshots: VecDeque::new(),
        }
    }

    /// The current revision.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Forgets all history, as a server that starts again does. The Nodes stay, and pages of lists too: they come from
    /// etcd.
    pub(crate) fn forget(&mut self) {
        self.history.clear();
        self.oldest = self.revision;
    }

    /// One Node.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Value>, Status> {
        self.nodes.get(name).cloned().ok_or_else(|| Status::not_found("nodes", name))
    }

    /// A page of all Nodes that `matches` lets through: from the start, or from where an earlier page ended.
    pub(crate) fn list(
        &mut self,
        matches: impl Fn(&str, &Value) -> bool,
        limit: usize,
        from: Option<(u64, &str)>,
    ) -> Result<Page, Status> {
        let (revision, nodes, start) = match from {
            None => (self.revision, &self.nodes, ""),
            Some((revision, start)) => {
                let kept = self.snapshots.iter().find(|(kept, _)| *kept == revision).map(|(_, nodes)| nodes);
                let message =
                    "The provided continue parameter is too old to display a consistent list result.";
                (revision, kept.ok_or_else(|| Status::expired(message))?, start)
            }
        };
        let mut left = nodes.range(start.to_owned()..);
        let found = left.by_ref().filter(|(name, node)| matches(name, node));
        let items = found
            .take(if limit == 0 { usize::MAX } else { limit })
            .map(|(_, node)| Arc::clone(node))
            .collect();
        // As etcd does it: whether what is left matches shows only on the next page.
        let count = left.clone().count();
        let rest = left.next().map(|(name, _)| (name.clone(), count));
        if rest.is_some() && from.is_none() {
            self.snapshots.push_back((revision, self.nodes.clone()));
            if self.snapshots.len() > SNAPSHOTS {
                self.snapshots.pop_front();
            }
        }
        Ok(Page { revision, items, rest })
    }

    /// Changes after a revision, in order. Fails if some of them are forgotten.
    pub(crate) fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Change>, Status> {
        if revision < self.oldest {
            return Err(Status::expired(format!("too old resource version: {revision} ({})", self.oldest)));
        }
        Ok(self.history.iter().filter(move |change| change.revision > revision))
    }

    /// All Nodes as if each had just been added: what a watch starts with that says no revision.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Value>> {
        self.nodes.values()
    }

    /// Creates a Node; returns it.
    pub(crate) fn create(
        &mut self,
        mut node: Value,
        context: RequestContext<'_>,
    ) -> Result<Arc<Value>, Status> {
        let name = text(&node, "/metadata/name").unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Status::invalid(
                "Node",
                "",
                "metadata.name",
                "Required value: name or generateName is required",
            ));
        }
        if text(&node, "/metadata/resourceVersion").is_some_and(|version| !version.is_empty()) {
            return Err(Status::internal("resourceVersion should not be set on objects to be created"));
        }
        if !decodes(&node) {
            return Err(Status::bad_request("json: cannot unmarshal metadata into a map of strings"));
        }
        node["apiVersion"] = json!("v1");
        node["kind"] = json!("Node");
        node["metadata"]["uid"] = json!(context.uid);
        node["metadata"]["creationTimestamp"] = json!(context.now);
        normalize(&mut node);
        validate(&node)?;
        if self.nodes.contains_key(&name) {
            return Err(Status::already_exists("nodes", &name));
        }
        Ok(self.keep(&name, "ADDED", node, context.dry_run))
    }

    /// Applies a JSON merge patch (RFC 7386) to a Node; returns the result. A patch that changes nothing makes
    /// no new revision.
    pub(crate) fn patch(
        &mut self,
        name: &str,
        part: Part,
        patch: &Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, Status> {
        let old = self.get(name)?;
        let mut new = (*old).clone();
        merge(&mut new, patch);
        let said = |field: &str| text(patch, &format!("/metadata/{field}")).map(str::to_owned);
        if let Some(other) = said("name").filter(|other| other != name) {
            let message =
                format!("the name of the object ({other}) does not match the name on the URL ({name})");
            return Err(Status::bad_request(message));
        }
        if said("resourceVersion")
            .is_some_and(|version| text(&old, "/metadata/resourceVersion") != Some(&version))
        {
            let cause =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(Status::conflict("nodes", name, cause));
        }
        if let Some(uid) = said("uid").filter(|uid| text(&old, "/metadata/uid") != Some(uid)) {
            let cause = format!("Invalid value: {uid:?}: field is immutable");
            return Err(Status::invalid("Node", name, "metadata.uid", &cause));
        }
        if !decodes(&new) {
            return Err(Status::unprocessable("json: cannot unmarshal metadata into a map of strings"));
        }
        let protected = if part == Part::Main { "status" } else { "spec" };
        for (field, pointer) in [
            ("uid", "/metadata"),
            ("creationTimestamp", "/metadata"),
            ("resourceVersion", "/metadata"),
            (protected, ""),
        ] {
            let before = old.pointer(&format!("{pointer}/{field}")).cloned();
            if let Some(object) = new.pointer_mut(pointer).and_then(Value::as_object_mut) {
                match before {
                    Some(before) => object.insert(field.to_owned(), before),
                    None => object.remove(field),
                };
            }
        }
        normalize(&mut new);
        validate_change(&old, &new)?;
        validate(&new)?;
        if new == *old {
            return Ok(old);
        }
        Ok(self.keep(name, "MODIFIED", new, dry_run))
    }

    /// Deletes a Node; returns its last state. A uid, if given, has to be its uid.
    pub(crate) fn delete(
        &mut self,
        name: &str,
        uid: Option<&str>,
        dry_run: bool,
    ) -> Result<Arc<Value>, Status> {
        let node = self.get(name)?;
        let real = text(&node, "/metadata/uid").unwrap_or_default();
        if let Some(uid) = uid.filter(|uid| *uid != real) {
            let cause = format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({real}). The object might have \
                 been deleted and then recreated"
            );
            return Err(Status::conflict("Node", name, &cause));
        }
        if !dry_run {
            self.keep(name, "DELETED", (*node).clone(), false);
            self.nodes.remove(name);
        }
        Ok(node)
    }

    /// Gives a changed Node its revision and remembers the change; a dry run only says what would be kept.
    fn keep(&mut self, name: &str, kind: &'static str, mut node: Value, dry_run: bool) -> Arc<Value> {
        if dry_run {
            return Arc::new(node);
        }
        self.revision += 1;
        node["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(node);
        self.nodes.insert(name.to_owned(), Arc::clone(&object));
        self.history.push_back(Change { revision: self.revision, kind, object: Arc::clone(&object) });
        if self.history.len() > HISTORY {
            self.oldest = self.history.pop_front().map_or(self.oldest, |forgotten| forgotten.revision);
        }
        object
    }
}

/// JSON merge patch, RFC 7386, section 2.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|object| object.remove(key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

/// The string at a JSON pointer.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// Brings a Node into the form that the real server's types give it: `spec` and `status` are there, empty maps of
/// metadata are not, and `podCIDR`, the older spelling of the first of `podCIDRs`, agrees with it if one was left out.
fn normalize(node: &mut Value) {
    for part in ["spec", "status"] {
        if node[part].is_null() {
            node[part] = json!({});
        }
    }
    if let Some(metadata) = node["metadata"].as_object_mut() {
        for map in ["annotations", "labels"] {
            if metadata.get(map).is_some_and(|map| map.is_null() || *map == json!({})) {
                metadata.remove(map);
            }
        }
    }
    let Some(spec) = node["spec"].as_object_mut() else { return };
    let single = spec.get("podCIDR").cloned().filter(|range| !range.is_null());
    let first = spec.get("podCIDRs").and_then(|ranges| ranges.get(0)).cloned();
    match (single, first) {
        (Some(single), None) => drop(spec.insert("podCIDRs".into(), json!([single]))),
        (None, Some(first)) => drop(spec.insert("podCIDR".into(), first)),
        _ => {}
    }
}

/// Whether the parts of the metadata that are maps of strings are that.
fn decodes(node: &Value) -> bool {
    let strings = |map: &Value| map.as_object().is_some_and(|map| map.values().all(Value::is_string));
    ["annotations", "labels"]
        .iter()
        .map(|map| &node["metadata"][*map])
        .all(|map| map.is_null() || strings(map))
}

/// The rules that a Node on its own has to keep.
fn validate(node: &Value) -> Result<(), Status> {
    let name = text(node, "/metadata/name").unwrap_or_default();
    let invalid = |field: &str, cause: &str| Err(Status::invalid("Node", name, field, cause));
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = [name.bytes().next(), name.bytes().last()].into_iter().flatten();
    if name.len() > 253 || !name.bytes().all(fine) || ends.into_iter().any(|byte| b"-.".contains(&byte)) {
        return invalid("metadata.name", "Invalid value: a DNS-1123 subdomain is expected");
    }
    let annotations = node.pointer("/metadata/annotations").and_then(Value::as_object);
    let pairs = annotations.into_iter().flatten();
    let size: usize = pairs.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_LIMIT {
        return invalid("metadata.annotations", "Too long: must have at most 262144 bytes");
    }
    let ranges: Vec<&str> = node
        .pointer("/spec/podCIDRs")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |ranges| ranges.iter().filter_map(Value::as_str).collect());
    if ranges.iter().any(|range| !range.contains('/') || range.parse::<ipnetwork::IpNetwork>().is_err()) {
        return invalid("spec.podCIDRs", "Invalid value: must be a valid CIDR value");
    }
    let v6 = ranges.iter().filter(|range| range.contains(':')).count();
    if v6 > 1 || ranges.len() - v6 > 1 {
        return invalid(
            "spec.podCIDRs",
            "Invalid value: may specify no more than one CIDR for each IP family",
        );
    }
    Ok(())
}

/// The rules that a changed Node has to keep towards what it was: its podCIDRs, once set, stay.
fn validate_change(old: &Value, new: &Value) -> Result<(), Status> {
    let ranges = |node: &Value| node.pointer("/spec/podCIDRs").cloned().unwrap_or(json!([]));
    let name = text(old, "/metadata/name").unwrap_or_default();
    if ranges(old) != json!([]) && ranges(old) != ranges(new) {
        let cause = "Forbidden: node updates may not change podCIDR except from \"\" to valid";
        return Err(Status::invalid("Node", name, "spec.podCIDRs", cause));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
