//! What can go wrong with a cluster.

use std::path::PathBuf;

/// A cluster could not be started, used or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A program was not found.
    #[error(
        "find {program} in {}; run scripts/cluster-assets.sh, or put it into the directory KUBEBUILDER_ASSETS",
        looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
    )]
    NoProgram {
        /// Which.
        program: &'static str,
        /// The directories that were searched.
        looked: Vec<PathBuf>,
    },
    /// A program does not say which version of Kubernetes it is.
    #[error("ask {} for its version: expected \"Kubernetes vX.Y.Z\", got {said:?}", program.display())]
    Version {
        /// The program.
        program: PathBuf,
        /// What came instead.
        said: String,
    },
    /// The machine has cgroups of version 2 only.
    #[error(
        "no cgroup hierarchy of version 1 in /sys/fs/cgroup: the nodes of a cluster can't be kept apart on this \
         machine yet; boot it with systemd.unified_cgroup_hierarchy=0"
    )]
    NoCgroups,
    /// Nodes need rights that only root has.
    #[error("a cluster needs root: kubelet and runc run with all rights of the machine's root")]
    NotRoot,
    /// Another cluster has the id.
    #[error("there is a cluster {0} already; delete it (make cluster-delete CLUSTER={0}) or use another id")]
    Exists(String),
    /// No cluster has the id.
    #[error("there is no cluster {id} in {}", directory.display())]
    None {
        /// Which was asked for.
        id: String,
        /// Where clusters are recorded.
        directory: PathBuf,
    },
    /// An id that can't be part of a path.
    #[error("the id of a cluster: expected letters, digits and hyphens, got {0:?}")]
    BadId(String),
    /// Processes of a deleted cluster did not end.
    #[error("delete cluster {id}: process {pid} did not end")]
    StillRuns {
        /// The cluster.
        id: String,
        /// The process.
        pid: u32,
    },
    /// A second Node with the keys of a node could not be created.
    #[error("impersonate {node}: {what}")]
    Impersonate {
        /// The node.
        node: String,
        /// What is wrong.
        what: String,
    },
    /// A network policy that the small enforcer does not know.
    #[error("enforce NetworkPolicies: {0}")]
    Policy(String),
    /// meshd could not be removed from a node, or has left something.
    #[error("uninstall meshd from {node}: {what}")]
    Uninstall {
        /// The node.
        node: String,
        /// What is wrong, or what is left.
        what: String,
    },
    /// A step of the start did not succeed in time.
    #[error("{step} of cluster {id}: not within {seconds} s; {said}; logs: {}", logs.display())]
    NotReady {
        /// What was waited for.
        step: String,
        /// The cluster.
        id: String,
        /// How long.
        seconds: u64,
        /// What was seen last.
        said: String,
        /// The directory of the logs.
        logs: PathBuf,
    },
    /// The record of a cluster is not what this version writes.
    #[error("read {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A part of the lab failed.
    #[error(transparent)]
    Lab(crate::Error),
}

impl From<crate::Error> for ClusterError {
    fn from(error: crate::Error) -> Self {
        Self::Lab(error)
    }
}

impl From<crate::kube::ApiError> for ClusterError {
    fn from(error: crate::kube::ApiError) -> Self {
        Self::Lab(error.into())
    }
}
