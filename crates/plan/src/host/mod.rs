//! What the node's own configuration, firewall and routing say about whether the mesh can work on it.
//!
//! Read by the shell as plain data and judged here, without touching anything.

mod facts;
mod findings;
mod own_network;

pub use facts::{DroppingChain, Facts, FilterHook, ForeignRoute, ForeignRule, NetworkManager};
pub use findings::{Code, Expected, Finding, findings};
pub use own_network::{Covered, OwnAddress, covered};
