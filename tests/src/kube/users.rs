//! Who may talk to an API server of the lab: one administrator, and one user per node with what meshd may do there.

use std::fs::File;
use std::io::{self, Read};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

/// The administrator's name.
pub const ADMIN: &str = "admin";

/// The group that all nodes' users are in.
pub(crate) const GROUP: &str = "meshd";

/// A user with its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    /// `admin`, or `meshd-` and the node's name.
    pub(crate) name: String,
    /// The node whose user it is; none for the administrator.
    pub(crate) node: Option<String>,
    /// Bearer token.
    pub(crate) token: String,
}

/// All users of a server.
#[derive(Clone, Debug)]
pub(crate) struct Users(Vec<User>);

impl Users {
    /// The administrator and one user for each node, with fresh tokens.
    pub(crate) fn create(nodes: impl IntoIterator<Item = String>) -> io::Result<Self> {
        let admin = User { name: ADMIN.to_owned(), node: None, token: token()? };
        let nodes = nodes
            .into_iter()
            .map(|node| Ok(User { name: format!("meshd-{node}"), node: Some(node), token: token()? }));
        std::iter::once(Ok(admin)).chain(nodes).collect::<io::Result<_>>().map(Self)
    }

    /// The user of a node, or [`ADMIN`].
    pub(crate) fn of(&self, node: &str) -> Option<&User> {
        self.0
            .iter()
            .find(|user| user.node.as_deref() == Some(node) || (user.node.is_none() && node == ADMIN))
    }

    /// The user with a token.
    pub(crate) fn with_token(&self, token: &str) -> Option<&User> {
        self.0.iter().find(|user| user.token == token)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &User> {
        self.0.iter()
    }
}

/// A kubeconfig for one user, as JSON, which is YAML too. `ca` is a PEM file's content.
pub(crate) fn kubeconfig(server: &str, ca: Option<&str>, user: &str, token: &str) -> Value {
    let mut cluster = json!({"server": server});
    if let Some(ca) = ca {
        cluster["certificate-authority-data"] = json!(BASE64_STANDARD.encode(ca));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
    })
}

/// The objects that let nodes' users do on a real server what meshd does: watch Nodes, change their own (any, without
/// the fence), read the API server's endpoints, write events.
pub(crate) fn access_objects(users: &Users, fence: bool) -> Vec<(&'static str, Value)> {
    let rules = json!([
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["endpoints"], "verbs": ["get"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    ]);
    let mut objects = role("meshd", &rules, &json!({"kind": "Group", "name": GROUP}));
    for user in users.iter() {
        let Some(node) = &user.node else { continue };
        let mut rule = json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]});
        if fence {
            rule["resourceNames"] = json!([node]);
        }
        objects.extend(role(&user.name, &json!([rule]), &json!({"kind": "User", "name": user.name})));
    }
    objects
}

fn role(name: &str, rules: &Value, subject: &Value) -> Vec<(&'static str, Value)> {
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    let mut subject = subject.clone();
    subject["apiGroup"] = json!(group);
    let metadata = json!({"name": name});
    let reference = json!({"apiGroup": group, "kind": "ClusterRole", "name": name});
    vec![
        (
            "clusterroles",
            json!({"apiVersion": version, "kind": "ClusterRole", "metadata": metadata, "rules": rules}),
        ),
        (
            "clusterrolebindings",
            json!({
                "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": metadata,
                "roleRef": reference, "subjects": [subject],
            }),
        ),
    ]
}

pub(crate) fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_is_found_by_node_and_by_token_only() {
        let users = Users::create(["n1".to_owned(), "n2".to_owned()]).unwrap();
        let user = users.of("n2").unwrap();
        assert_eq!((user.name.as_str(), user.node.as_deref()), ("meshd-n2", Some("n2")));
        assert_eq!(users.with_token(&user.token), Some(user));
        assert_eq!(users.of(ADMIN).unwrap().node, None);
        assert!(users.of("n3").is_none() && users.with_token("").is_none());
    }
}
