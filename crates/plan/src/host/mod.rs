//! What the node's own configuration, firewall and routing say about whether the mesh can work on it.
//!
//! Read by the shell as plain data and judged here, without touching anything.

mod own_network;

pub use own_network::{Covered, OwnAddress, covered};
