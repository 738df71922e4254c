//! What the node's own configuration, firewall and routing say about whether the mesh can work on it.
//!
//! Read by the shell as plain data and judged here, without touching anything.

mod facts;
mod findings;
mod outside;
mod own_network;

pub use facts::{DroppingChain, Facts, FilterHook, ForeignRoute, ForeignRule, ForeignVeth, NetworkManager};
pub use findings::{Code, Expected, Finding, findings};
pub use outside::pods_outside;
pub use own_network::{Covered, OwnAddress, covered};
