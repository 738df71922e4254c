//! API servers of a lab.

use std::io;
use std::path::PathBuf;

use serde_json::Value;

use crate::host::Host;

pub mod assets;

/// An API server could not be started or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// kube-apiserver or etcd is nowhere to be found.
    #[error("find {program} in {}; run scripts/setup.sh test", looked.display())]
    NoAssets {
        /// Which.
        program: &'static str,
        /// The last folder that was looked in.
        looked: PathBuf,
        /// What looking there gave.
        #[source]
        source: io::Error,
    },
}

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiKind {
    /// None.
    None,
    /// Stand-in.
    StandIn,
    /// Real.
    Real,
}

/// A running server.
#[derive(Debug)]
pub struct ApiServer;

impl ApiServer {
    pub(crate) fn start(_kind: ApiKind, _host: Host, _nodes: &[String], _fence: bool) -> Result<Self, ApiError> {
        Ok(Self)
    }
    pub(crate) fn create_node(&self, _node: Value) -> Result<(), ApiError> {
        Ok(())
    }
    pub(crate) fn delete_node(&self, _name: &str) -> Result<(), ApiError> {
        Ok(())
    }
    pub(crate) fn kubeconfig(&self, _user: &str) -> String {
        String::new()
    }
}
