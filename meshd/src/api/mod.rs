//! The Kubernetes side: Nodes in, own annotations out, and what the API server lets this daemon do.

pub mod connect;
pub mod events;
pub mod fence;
pub mod nodes;
pub mod publish;
pub mod servers;

use std::time::Duration;

/// Field manager of patches and component of Events.
pub const FIELD_MANAGER: &str = "meshd";

/// How long the API server may take to answer one question.
pub const API_TIMEOUT: Duration = Duration::from_secs(3);
