//! What the API server says of one Node, trimmed to what the mesh reads, and not believed yet.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One Node as the API server has it. All texts are raw: whoever may write the Node wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// `metadata.name`
    pub name: NodeName,
    /// `metadata.uid`
    pub uid: NodeUid,
    /// `metadata.creationTimestamp` as RFC 3339 text in UTC; sorts by age, read for nothing else.
    pub created: String,
    /// `spec.podCIDRs`; set once by the controller manager, nobody can change them later.
    pub pod_cidrs: Vec<String>,
    /// Addresses of types `InternalIP` and `ExternalIP` in `status.addresses`; the kubelet writes what it likes.
    pub addresses: Vec<String>,
    /// Whether the Node has the control-plane role label, which a kubelet can't give itself.
    pub control_plane: bool,
    /// The annotation `meshd.dev/state`.
    pub state: Option<String>,
    /// The annotation `meshd.dev/endpoints`.
    pub endpoints: Option<String>,
    /// The annotation `config.meshd.dev/endpoint`.
    pub config_endpoint: Option<String>,
    /// The annotation `config.meshd.dev/keepalive`.
    pub config_keepalive: Option<String>,
    /// The annotation `config.meshd.dev/renew-keys-before`.
    #[serde(default)]
    pub config_renewal: Option<String>,
}

/// Name of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(String);

/// UID of a Node: a Node that is deleted and made again has another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeUid(String);

impl NodeName {
    /// Takes a name as the API server gave it.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NodeUid {
    /// Takes a UID as the API server gave it.
    pub fn new(uid: impl Into<String>) -> Self {
        Self(uid.into())
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
