//! A request to the fake API server as a value: what its path and query ask for, and whether its user may. Pure.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use serde_json::{Value, json};

use super::status::Status;
use crate::kube::users::User;

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/api/v1/nodes`
    Nodes,
    /// `/api/v1/nodes/NAME`, with `/status` or not.
    Node { name: String, status: bool },
    /// Events of a namespace, or one of them by name, in either API group.
    Events { group: &'static str, namespace: Option<String>, name: Option<String> },
    /// `/api/v1/namespaces/NAMESPACE/endpoints/NAME`
    Endpoints { namespace: String, name: String },
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
}

/// The query of a request, with the values that the fake server understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) dry_run: bool,
    /// None if it was not given, or empty.
    pub(crate) revision: Option<u64>,
    pub(crate) limit: usize,
    pub(crate) timeout_seconds: Option<u64>,
    /// The only Node that is asked for.
    pub(crate) name: Option<String>,
    /// Labels that a Node has to have, with these values.
    pub(crate) labels: Vec<(String, String)>,
    /// Revision and name that the next page starts with.
    pub(crate) page: Option<(u64, String)>,
}

impl Target {
    /// What a path leads to.
    pub(crate) fn parse(path: &str) -> Result<Self, Status> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let own = |text: &str| text.to_owned();
        Ok(match parts.as_slice() {
            ["version"] => Self::Version,
            ["healthz" | "livez" | "readyz"] => Self::Health,
            ["api", "v1", "nodes"] => Self::Nodes,
            ["api", "v1", "nodes", name] => Self::Node { name: own(name), status: false },
            ["api", "v1", "nodes", name, "status"] => Self::Node { name: own(name), status: true },
            ["api", "v1", "namespaces", namespace, "endpoints", name] => {
                Self::Endpoints { namespace: own(namespace), name: own(name) }
            }
            ["api", "v1", rest @ ..] => events("", rest)?,
            ["apis", "events.k8s.io", "v1", rest @ ..] => events("events.k8s.io", rest)?,
            _ => return Err(Status::no_such_path()),
        })
    }

    /// Resource, API group and namespace as refusals name them.
    pub(crate) fn resource(&self) -> (&'static str, &'static str, Option<&str>, Option<&str>) {
        match self {
            Self::Nodes => ("nodes", "", None, None),
            Self::Node { name, status: false } => ("nodes", "", None, Some(name)),
            Self::Node { name, status: true } => ("nodes/status", "", None, Some(name)),
            Self::Events { group, namespace, name } => {
                ("events", group, namespace.as_deref(), name.as_deref())
            }
            Self::Endpoints { namespace, name } => ("endpoints", "", Some(namespace), Some(name)),
            Self::Version => ("version", "", None, None),
            Self::Health => ("health", "", None, None),
        }
    }

    /// Refuses what a user may not do. `verb` is Kubernetes' (`get`, `list`, `watch`, `create`, `patch`, `delete`).
    /// With the fence, a node's user may patch its own Node only.
    pub(crate) fn authorize(&self, verb: &str, user: Option<&User>, fence: bool) -> Result<(), Status> {
        let open = matches!(self, Self::Version | Self::Health);
        let allowed = match user {
            None => open,
            Some(User { node: None, .. }) => true,
            Some(User { node: Some(own), .. }) => match self {
                Self::Version | Self::Health => true,
                Self::Nodes => matches!(verb, "list" | "watch"),
                Self::Node { name, status: false } => match verb {
                    "get" => true,
                    "patch" => !fence || name == own,
                    _ => false,
                },
                Self::Node { status: true, .. } => false,
                Self::Events { .. } => matches!(verb, "create" | "patch"),
                Self::Endpoints { .. } => verb == "get",
            },
        };
        if allowed {
            return Ok(());
        }
        let (resource, group, namespace, name) = self.resource();
        let who = user.map_or("system:anonymous", |user| &user.name);
        let place = namespace.map_or_else(
            || "at the cluster scope".to_owned(),
            |namespace| format!("in the namespace \"{namespace}\""),
        );
        let cause =
            format!("User \"{who}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}");
        Err(Status::forbidden(
            &qualified(resource.split('/').next().unwrap_or_default(), group),
            name,
            &cause,
        ))
    }
}

impl Query {
    /// Parses the query; what the fake server does not understand is refused, not ignored.
    pub(crate) fn parse(pairs: &BTreeMap<String, String>) -> Result<Self, Status> {
        let value = |key: &str| pairs.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let number = |key: &'static str| {
            let parsed = value(key).map(|text| text.parse::<u64>().map_err(|_not_a_number| (key, text)));
            let cause = |(key, text)| {
                (
                    key,
                    format!(
                        "{key}: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                    ),
                )
            };
            parsed.transpose().map_err(cause).map_err(|(key, message)| match key {
                "resourceVersion" => Status::internal(message),
                _ => Status::bad_request(message),
            })
        };
        let flag = |key: &str| matches!(value(key), Some("true" | "1"));
        let dry_run = match value("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                let cause = format!("Unsupported value: {other:?}: supported values: \"All\"");
                return Err(Status::invalid("Options", "", "dryRun", &cause));
            }
        };
        let unsupported =
            |what: &str| Status::bad_request(format!("the lab's fake API server does not support {what}"));
        let name = match value("fieldSelector").map(|selector| selector.split_once('=')) {
            None => None,
            Some(Some(("metadata.name", name))) => Some(name.trim_start_matches('=').to_owned()),
            Some(_) => return Err(unsupported("this field selector")),
        };
        let labels = value("labelSelector").into_iter().flat_map(|selector| selector.split(','));
        let labels = labels.map(|label| match label.split_once('=') {
            Some((key, value)) if !key.ends_with('!') => {
                Ok((key.to_owned(), value.trim_start_matches('=').to_owned()))
            }
            _ => Err(unsupported("this label selector")),
        });
        Ok(Self {
            watch: flag("watch"),
            bookmarks: flag("allowWatchBookmarks"),
            dry_run,
            revision: number("resourceVersion")?,
            limit: number("limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0),
            timeout_seconds: number("timeoutSeconds")?,
            name,
            labels: labels.collect::<Result<_, _>>()?,
            page: value("continue").map(decode_page).transpose()?,
        })
    }

    /// Whether a Node is among those asked for.
    pub(crate) fn matches(&self, name: &str, node: &Value) -> bool {
        let has = |(key, value): &(String, String)| node["metadata"]["labels"][key.as_str()] == json!(value);
        self.name.as_deref().is_none_or(|wanted| wanted == name) && self.labels.iter().all(has)
    }
}

/// A resource with its API group, as refusals name it.
pub(crate) fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// The token that leads to the next page of a list.
pub(crate) fn encode_page(revision: u64, start: &str) -> String {
    BASE64_STANDARD_NO_PAD.encode(json!({"v": "lab/v1", "rv": revision, "start": start}).to_string())
}

fn decode_page(token: &str) -> Result<(u64, String), Status> {
    let decoded: Option<Value> =
        BASE64_STANDARD_NO_PAD.decode(token).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let parts =
        decoded.as_ref().and_then(|page| Some((page["rv"].as_u64()?, page["start"].as_str()?.to_owned())));
    parts.ok_or_else(|| Status::bad_request("continue key is not valid"))
}

fn events(group: &'static str, rest: &[&str]) -> Result<Target, Status> {
    let (namespace, name) = match rest {
        ["events"] => (None, None),
        ["namespaces", namespace, "events"] => (Some(*namespace), None),
        ["namespaces", namespace, "events", name] => (Some(*namespace), Some(*name)),
        _ => return Err(Status::no_such_path()),
    };
    Ok(Target::Events { group, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &[(&str, &str)]) -> Result<Query, Status> {
        Query::parse(&text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn selectors_that_are_not_understood_are_refused() {
        for pair in [
            ("fieldSelector", "spec.unschedulable=true"),
            ("labelSelector", "a in (b)"),
            ("labelSelector", "a!=b"),
        ] {
            assert_eq!(query(&[pair]).unwrap_err().code(), 400, "{pair:?}");
        }
        let one = query(&[("fieldSelector", "metadata.name=n1"), ("labelSelector", "a=b,c==d")]).unwrap();
        let node = json!({"metadata": {"labels": {"a": "b", "c": "d"}}});
        assert!(one.matches("n1", &node) && !one.matches("n2", &node) && !one.matches("n1", &json!({})));
    }

    #[test]
    fn a_page_token_leads_where_it_was_made_for_and_garbage_nowhere() {
        let page = query(&[("continue", &encode_page(7, "n3"))]).unwrap().page;
        assert_eq!(page, Some((7, "n3".to_owned())));
        assert_eq!(query(&[("continue", "%%%")]).unwrap_err().code(), 400);
    }

    #[test]
    fn paths_lead_to_what_they_say() {
        let events = |group, namespace: Option<&str>, name: Option<&str>| Target::Events {
            group,
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        };
        assert_eq!(Target::parse("/api/v1/events"), Ok(events("", None, None)));
        let path = "/apis/events.k8s.io/v1/namespaces/default/events/x";
        assert_eq!(Target::parse(path), Ok(events("events.k8s.io", Some("default"), Some("x"))));
        for path in ["/", "/api/v1", "/api/v1/pods", "/api/v1/nodes/n1/proxy", "/apis/apps/v1/deployments"] {
            assert_eq!(Target::parse(path).unwrap_err().code(), 404, "{path}");
        }
    }
}
