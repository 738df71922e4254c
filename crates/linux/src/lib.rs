//! The Linux side of a mesh node: links, addresses, routes, rules, the guard, settings, namespaces.
//!
//! Everything here is one exchange with the kernel: it decides nothing and remembers nothing. What should be
//! is decided in `plan`, whose types are used as they are.
//!
//! A [`Handle`] belongs to the network namespace of the thread that opens it.

mod error;
pub mod guard;
mod handle;
mod link;
mod message;
mod monitor;
pub mod napi;
pub mod netns;
mod route;
mod rule;
mod socket;
pub mod sysctl;
pub mod veth;

pub use error::{HostError, Subject};
pub use handle::Handle;
pub use link::LinkState;
pub use monitor::Notice;
pub use route::Underlay;

/// How the names of pods' interfaces on the node begin. The guard lets them carry pod addresses and holds
/// each to its own; the CNI plugin names them.
pub const POD_LINK_PREFIX: &str = "mveth";
