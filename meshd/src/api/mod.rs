//! The Kubernetes side: Nodes in, own annotations out, and what the API server lets this daemon do.

pub mod connect;
pub mod events;
pub mod fence;
pub mod nodes;
pub mod publish;
pub mod servers;

/// Field manager of patches and component of Events.
pub const FIELD_MANAGER: &str = "meshd";
