//! The Kubernetes side: Nodes in, own annotations out, and what the API server lets this daemon do.

pub mod connect;
pub mod events;
pub mod fence;
pub mod nodes;
pub mod publish;
pub mod servers;

/// How this daemon names itself as the owner of fields and events.
pub const FIELD_MANAGER: &str = "meshd";
