//! The CNI plugin of the mesh: attaches pods to their node, and hands out the addresses of its podCIDRs.
//!
//! It runs for milliseconds, once for each pod that comes or goes. What it needs to know of the mesh stands in
//! one file that the daemon writes ([`node_file`]); it talks to nobody else.
//!
//! ```text
//!   runtime ──environment, JSON──▶ call ──▶ command ──▶ store (one file a pod, under a lock)
//!   runtime ◀──────result, error────────────────┘  └──▶ linux::veth (links, addresses, routes)
//! ```
//!
//! The protocol is that of the CNI specification, versions 0.4.0, 1.0.0 and 1.1.0.

pub mod call;
mod command;
pub mod conf;
pub mod conflist;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod ipam;
pub mod node_file;
pub mod result;
mod store;

pub use error::CniError;

/// Removes the plugin's own state; says whether there was any. Fails while pods are attached: their addresses
/// would be given to others.
pub fn forget(state_dir: &std::path::Path) -> Result<bool, CniError> {
    store::forget(state_dir)
}

/// Performs one call; returns what is to be printed on standard output.
pub fn run(call: &call::Call) -> Result<String, CniError> {
    command::run(call)
}
