//! Why a node, or a part of what it publishes, was refused: a code for programs, a sentence for people.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::Slot;

use super::addresses::MAX_CLOSED;
use super::announcement::SETTLE;
use super::keys::GENERATION_STEP;
use super::ledger::MAX_LISTED;
use crate::annotation::{AnnotationError, names};
use crate::names::HostName;
use crate::node::NodeUid;
use crate::renewal::RenewalError;

/// A reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The state annotation can't be read.
    State(AnnotationError),
    /// The endpoints annotation can't be read.
    Endpoints(AnnotationError),
    /// The state annotation was written for another Node.
    ForeignUid,
    /// The generation is lower than the last accepted one: an older state was restored.
    GenerationWentBack {
        /// The generation in the annotation.
        found: u64,
        /// The last accepted one.
        known: u64,
    },
    /// The keys changed, the generation did not.
    GenerationReused {
        /// The generation.
        found: u64,
    },
    /// The generation is far ahead of the last accepted one.
    GenerationJumped {
        /// The generation in the annotation.
        found: u64,
        /// The last accepted one.
        known: u64,
    },
    /// The node proves none of its keys.
    ProofMissing,
    /// The proof of a key is not by that key, or is for another state.
    ProofInvalid {
        /// The slot.
        slot: Slot,
    },
    /// The key is this node's own.
    OwnKey {
        /// The slot.
        slot: Slot,
    },
    /// The key is this node's own, and the other node proves that it has the private key.
    OwnKeyShared {
        /// The slot.
        slot: Slot,
    },
    /// The private key is that of another node, which proved it first.
    KeyShared {
        /// The slot.
        slot: Slot,
        /// UID of the node that has it.
        holder: NodeUid,
    },
    /// Another node has the key.
    KeyTaken {
        /// The slot.
        slot: Slot,
        /// UID of the node that has it.
        holder: NodeUid,
    },
    /// A podCIDR that is no prefix, or overlaps another one of the same node.
    PodCidrInvalid {
        /// What was found.
        found: String,
    },
    /// A podCIDR outside the cluster's ranges.
    PodCidrOutside {
        /// The podCIDR.
        pod_cidr: IpNetwork,
    },
    /// A podCIDR that overlaps another node's.
    PodCidrTaken {
        /// The podCIDR.
        pod_cidr: IpNetwork,
        /// UID of the node that has it.
        holder: NodeUid,
    },
    /// A node address that is no IP address.
    AddressInvalid {
        /// What was found.
        found: String,
    },
    /// A node address that can't belong to one node.
    AddressSpecial {
        /// The address.
        address: IpAddr,
    },
    /// A node address inside the pod or service ranges.
    AddressInClusterRange {
        /// The address.
        address: IpAddr,
    },
    /// A node address outside the ranges that node addresses must lie in.
    AddressOutside {
        /// The address.
        address: IpAddr,
    },
    /// The API server's address, claimed by a node without the control-plane role.
    AddressOfApiServer {
        /// The address.
        address: IpAddr,
    },
    /// A node address that another node has.
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// UID of the node that has it.
        holder: NodeUid,
    },
    /// A node address that other nodes list as well, and that belongs to none of them so far.
    AddressContested {
        /// The address.
        address: IpAddr,
        /// UIDs of the others, of a few if there are many.
        others: Vec<NodeUid>,
    },
    /// More addresses than a node can have.
    AddressesCut {
        /// How many the Node lists.
        listed: usize,
    },
    /// An operator's endpoint that can't be used.
    ConfigEndpoint {
        /// What was found.
        found: String,
    },
    /// An operator's endpoint is a name that has never been resolved.
    ConfigEndpointUnresolved {
        /// The name.
        name: HostName,
    },
    /// An operator's keepalive that is no number of seconds.
    ConfigKeepalive {
        /// What was found.
        found: String,
    },
    /// An operator's request for new keys without a time.
    ConfigRenewal {
        /// What was found.
        found: String,
    },
}

impl Reason {
    /// A stable name for programs: logs, metrics and `-o json`.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::State(error) | Self::Endpoints(error) => error.code(),
            Self::ForeignUid => "uid-foreign",
            Self::GenerationWentBack { .. } => "generation-went-back",
            Self::GenerationReused { .. } => "generation-reused",
            Self::GenerationJumped { .. } => "generation-jumped",
            Self::ProofMissing => "proof-missing",
            Self::ProofInvalid { .. } => "proof-invalid",
            Self::OwnKey { .. } => "key-own",
            Self::OwnKeyShared { .. } | Self::KeyShared { .. } => "key-shared",
            Self::KeyTaken { .. } => "key-taken",
            Self::PodCidrInvalid { .. } => "pod-cidr-invalid",
            Self::PodCidrOutside { .. } => "pod-cidr-outside",
            Self::PodCidrTaken { .. } => "pod-cidr-taken",
            Self::AddressInvalid { .. } => "address-invalid",
            Self::AddressSpecial { .. } => "address-special",
            Self::AddressInClusterRange { .. } => "address-in-cluster-range",
            Self::AddressOutside { .. } => "address-outside",
            Self::AddressOfApiServer { .. } => "address-of-api-server",
            Self::AddressTaken { .. } => "address-taken",
            Self::AddressContested { .. } => "address-contested",
            Self::AddressesCut { .. } => "addresses-cut",
            Self::ConfigEndpoint { .. } => "config-endpoint",
            Self::ConfigEndpointUnresolved { .. } => "config-endpoint-unresolved",
            Self::ConfigKeepalive { .. } => "config-keepalive",
            Self::ConfigRenewal { .. } => "config-renewal",
        }
    }
}

impl fmt::Display for Reason {
    #[expect(clippy::too_many_lines, reason = "one sentence for each reason")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(error) => write!(f, "{}: {error}", names::STATE),
            Self::Endpoints(error) => write!(f, "{}: {error}", names::ENDPOINTS),
            Self::ForeignUid => {
                write!(f, "{} was written for another Node: expected this Node's UID", names::STATE)
            }
            Self::GenerationWentBack { found, known } => {
                write!(
                    f,
                    "generation {found} is older than {known}, the last accepted one: accepted when it has stood for {} seconds",
                    SETTLE.as_secs()
                )
            }
            Self::GenerationReused { found } => {
                write!(
                    f,
                    "other keys under generation {found}: accepted when they have stood for {} seconds",
                    SETTLE.as_secs()
                )
            }
            Self::GenerationJumped { found, known } => {
                write!(
                    f,
                    "generation {found} is more than {GENERATION_STEP} ahead of {known}, the last accepted one: accepted when it has stood for {} seconds",
                    SETTLE.as_secs()
                )
            }
            Self::ProofMissing => write!(
                f,
                "{} proves none of its keys: expected proofs, or the option accept-unproven for nodes that have never shown any",
                names::STATE
            ),
            Self::ProofInvalid { slot } => {
                write!(
                    f,
                    "the proof of the key of slot {slot} is not valid: expected one by that key for this state"
                )
            }
            Self::OwnKeyShared { slot } => {
                write!(
                    f,
                    "the private key of slot {slot} is also this node's: expected a key of its own; where one of the two is a copy, run `meshd rotate --emergency` on it"
                )
            }
            Self::KeyShared { slot, holder } => {
                write!(
                    f,
                    "the private key of slot {slot} is also that of the node with UID {holder}, which had it first: expected a key of its own; on a copied node run `meshd rotate --emergency`"
                )
            }
            Self::OwnKey { slot } => {
                write!(f, "the key of slot {slot} is this node's own: expected a key of its own")
            }
            Self::KeyTaken { slot, holder } => {
                write!(
                    f,
                    "the key of slot {slot} belongs to the node with UID {holder}: expected a key of its own"
                )
            }
            Self::PodCidrInvalid { found } => {
                write!(f, "podCIDR {found:?}: expected disjoint prefixes such as 10.244.1.0/24")
            }
            Self::PodCidrOutside { pod_cidr } => {
                write!(f, "podCIDR {pod_cidr} is outside the cluster's pod ranges (option cluster-cidr)")
            }
            Self::PodCidrTaken { pod_cidr, holder } => {
                write!(
                    f,
                    "podCIDR {pod_cidr} overlaps that of the node with UID {holder}, which had it first"
                )
            }
            Self::AddressInvalid { found } => write!(f, "node address {found:?}: expected an IP address"),
            Self::AddressSpecial { address } => {
                write!(f, "node address {address}: expected a unicast address that is not link-local")
            }
            Self::AddressInClusterRange { address } => {
                write!(f, "node address {address} lies in the cluster's pod or service ranges")
            }
            Self::AddressesCut { listed } => write!(
                f,
                "the Node lists {listed} addresses: it can have the first {MAX_LISTED}; what pods send to the others is \
                 dropped, up to the {MAX_CLOSED}th"
            ),
            Self::AddressOutside { address } => {
                write!(
                    f,
                    "node address {address} is outside the ranges for node addresses (option node-cidr)"
                )
            }
            Self::AddressOfApiServer { address } => {
                write!(
                    f,
                    "node address {address} is the API server's: expected the control-plane role on the Node"
                )
            }
            Self::AddressTaken { address, holder } => {
                write!(
                    f,
                    "node address {address} belongs to the node with UID {holder}: expected an address of its own"
                )
            }
            Self::AddressContested { address, others } => {
                write!(
                    f,
                    "node address {address} is also listed by the node with UID {}: expected that exactly one of them completes a handshake there",
                    joined(others)
                )
            }
            Self::ConfigEndpoint { found } => write!(
                f,
                "{} {found:?}: expected an address outside the cluster, of a family that this node has, or a name that stands for one, such as 192.0.2.1 or node.example.org:51840",
                names::CONFIG_ENDPOINT
            ),
            Self::ConfigEndpointUnresolved { name } => write!(
                f,
                "{} {name}: can't be resolved; until it is, the endpoints that the node publishes are tried",
                names::CONFIG_ENDPOINT
            ),
            Self::ConfigKeepalive { found } => {
                write!(f, "{} {found:?}: expected seconds from 0 to 65535", names::CONFIG_KEEPALIVE)
            }
            Self::ConfigRenewal { found } => {
                write!(f, "{} {found:?}: {RenewalError}", names::CONFIG_RENEWAL)
            }
        }
    }
}

fn joined(nodes: &[NodeUid]) -> String {
    nodes.iter().map(NodeUid::as_str).collect::<Vec<_>>().join(", ")
}

/// Enough of a foreign text to recognize it by.
pub(super) fn quoted(text: &str) -> String {
    text.chars().take(64).collect()
}
