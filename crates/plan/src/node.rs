//! One Node from the API server, trimmed to what the mesh reads, and not validated yet.

use std::fmt;
use std::sync::Arc;

use keyring::SharedText;
use keyring::rotation::PeerId;
use serde::{Deserialize, Serialize};

/// Label of Nodes that may serve as relays. The prefix is one that kubelets can't set (admission plugin `NodeRestriction`).
pub const RELAY_LABEL: &str = "meshd.node-restriction.kubernetes.io/relay";

/// One Node as the API server has it. All texts are raw and untrusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// `metadata.name`
    pub name: NodeName,
    /// `metadata.uid`
    pub uid: NodeUid,
    /// `metadata.creationTimestamp` as RFC 3339 text in UTC; used for sorting by age only.
    pub created: String,
    /// `spec.podCIDRs`; set once by the controller manager, and immutable from then on.
    pub pod_cidrs: Vec<String>,
    /// Addresses of types `InternalIP` and `ExternalIP` in `status.addresses`; written by the kubelet, unchecked.
    pub addresses: Vec<String>,
    /// Those of `addresses` that are of type `ExternalIP` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<String>,
    /// Where the node is: the annotation `config.meshd.dev/location`, else the labels of region and zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Whether the Node has the control-plane role label, which a kubelet can't give itself.
    pub control_plane: bool,
    /// Whether the Node has the label [`RELAY_LABEL`] with the value `true`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relay: bool,
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

/// Name of a Node. A clone shares the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// UID of a Node: one that is deleted and created again has another. A clone shares the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct NodeUid(SharedText);

impl NodeName {
    /// Takes a name as the API server gave it.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NodeUid {
    /// Takes a UID as the API server gave it.
    pub fn new(uid: impl AsRef<str>) -> Self {
        Self(SharedText::new(uid.as_ref()))
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same where a node is a peer, with the same text.
    pub fn peer_id(&self) -> PeerId {
        PeerId::shared(self.0.clone())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<String> for NodeName {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<String> for NodeUid {
    fn from(uid: String) -> Self {
        Self::new(uid)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.as_str().to_owned()
    }
}

impl From<NodeUid> for String {
    fn from(uid: NodeUid) -> Self {
        uid.as_str().to_owned()
    }
}
