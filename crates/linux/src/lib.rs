//! The Linux side of a mesh node: links, addresses, routes, rules, the guard, host ports, settings,
//! namespaces.
//!
//! Each call is one exchange with the kernel and keeps no state. What the node's network should be is decided in
//! `plan`, whose types are used as they are.
//!
//! A [`Handle`] belongs to the network namespace of the thread that opens it.

mod error;
mod facts;
pub mod guard;
mod handle;
pub mod host_ports;
mod link;
mod message;
mod monitor;
pub mod napi;
pub mod netns;
mod nft;
mod route;
mod rule;
mod socket;
pub mod sysctl;
pub mod veth;

pub use error::{HostError, Subject};
pub use facts::FactSources;
pub use handle::Handle;
pub use link::LinkState;
pub use monitor::{Notice, Notices, RouteNotice};
pub use nft::generation::{FilterState, LastAnswer};
pub use route::Underlay;

/// Prefix of the names of pods' interfaces on the node. The guard accepts pod addresses on them, on each its own; the
/// CNI plugin creates them.
pub const POD_LINK_PREFIX: &str = "mveth";
