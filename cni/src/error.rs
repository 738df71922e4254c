//! Errors of the plugin, with the codes of the CNI specification (section 5, and 50 and 51 of STATUS).

use std::io;
use std::path::PathBuf;

use linux::HostError;
use serde_json::json;

use crate::version::{SpecVersion, version_of};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A version of the specification that is not supported.
    #[error("CNI version {found:?}: expected 0.4.0, 1.0.0 or 1.1.0")]
    Version {
        /// The version.
        found: String,
    },
    /// An environment variable is missing or invalid.
    #[error("environment variable {name}={found:?}: expected a value that the CNI specification allows")]
    Environment {
        /// Its name.
        name: &'static str,
        /// Its value, at most 64 characters of it.
        found: String,
    },
    /// The input is no JSON object of the expected shape.
    #[error("read the network configuration: expected a JSON object of the specification's shape")]
    Decode {
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The input is far longer than any configuration.
    #[error("network configuration longer than {limit} bytes")]
    InputTooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// A value in the configuration is invalid.
    #[error("network configuration, {option}: expected {expected}")]
    Conf {
        /// The key.
        option: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// The daemon has not written the node file.
    #[error("{} is not there: expected meshd to run on this node; it writes the file once it has read its Node", path.display())]
    NoDaemon {
        /// The file.
        path: PathBuf,
    },
    /// The node file is of another version.
    #[error("{} is not what this version of the plugin reads: expected daemon and plugin of one version", path.display())]
    NodeFile {
        /// The file.
        path: PathBuf,
    },
    /// The daemon reports that pods can't be attached now.
    #[error("pods can't be attached yet: {reason}")]
    NotReady {
        /// Why.
        reason: String,
        /// Whether the guard is in place all the same.
        guard: bool,
    },
    /// The guard is not in the kernel as the daemon set it.
    #[error(
        "nft table inet meshd lacks rules for the cluster's ranges: expected them as meshd sets them; it restores them when it runs"
    )]
    NoGuard,
    /// All addresses of a family are taken.
    #[error("no free address in {ranges}: expected fewer pods on this node, or a larger podCIDR")]
    Exhausted {
        /// The ranges.
        ranges: String,
    },
    /// Another pod has the host port.
    #[error(
        "host port {port}/{protocol}: it leads to container {container} already: expected a port that no pod on this node has"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: linux::host_ports::Protocol,
        /// The other pod's container.
        container: String,
    },
    /// The node itself listens on the host port.
    #[error(
        "host port {port}/{protocol}: meshd listens on it on this node: expected another port, or another one in meshd's options port-a, port-b, control-port, relay-ports, listen"
    )]
    PortOfNode {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: linux::host_ports::Protocol,
    },
    /// The plugin that an earlier version of this one was chained with failed.
    #[error("portmap DEL, for a pod that was attached by an earlier version: {message}")]
    Portmap {
        /// What it said, at most 256 characters of it.
        message: String,
    },
    /// Another call holds the lock for too long.
    #[error("wait for the lock {}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// There is no network namespace at the path.
    #[error("environment variable CNI_NETNS={}: expected the path of a network namespace", path.display())]
    NoNamespace {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: HostError,
    },
    /// The namespace is the node's own: everything would be set up twice in one place.
    #[error("environment variable CNI_NETNS={}: expected a pod's network namespace, found the node's own", path.display())]
    OwnNamespace {
        /// The path.
        path: PathBuf,
    },
    /// The configuration requests something unsupported.
    #[error("network configuration, {option}={value}: not supported: {instead}")]
    Unsupported {
        /// The key.
        option: &'static str,
        /// Its value, at most 64 characters of it.
        value: String,
        /// Who does it instead.
        instead: &'static str,
    },
    /// CHECK was called for a container that is not attached.
    #[error("container {container}, interface {interface}: not attached")]
    NotAttached {
        /// The container's id.
        container: String,
        /// The interface's name.
        interface: String,
    },
    /// CHECK found something other than what ADD created.
    #[error("the attachment differs from what ADD created: {what}: expected {expected}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// What was expected.
        expected: String,
    },
    /// The state can't be removed while pods are attached.
    #[error("{count} pods are attached: expected them to be deleted or moved to another node first")]
    Attached {
        /// How many.
        count: usize,
    },
    /// CHECK was called without the result of ADD.
    #[error("CHECK without prevResult: expected the result of ADD")]
    NoPrevious,
    /// A file could not be read or written.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Standard input could not be read.
    #[error("read the network configuration from standard input")]
    Input(#[from] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Several things could not be released; all others were.
    #[error("release {count} attachments: the first error follows")]
    Several {
        /// How many.
        count: usize,
        /// The first.
        source: Box<Self>,
    },
}

impl CniError {
    /// The code of the specification, or one of our own from 100 up.
    pub const fn code(&self) -> u32 {
        match self {
            Self::Version { .. } => 1,
            Self::Unsupported { .. } => 2,
            Self::NotAttached { .. } => 3,
            Self::Environment { .. } | Self::NoNamespace { .. } | Self::OwnNamespace { .. } => 4,
            Self::Io { .. } | Self::Input(_) => 5,
            Self::Decode { .. } | Self::InputTooLong { .. } => 6,
            Self::Conf { .. } | Self::NoPrevious => 7,
            Self::NoDaemon { .. }
            | Self::NodeFile { .. }
            | Self::NotReady { .. }
            | Self::NoGuard
            | Self::Locked { .. } => 11,
            Self::Host(_) => 100,
            Self::Mismatch { .. } => 101,
            Self::Exhausted { .. } => 102,
            Self::Several { .. } => 103,
            Self::Attached { .. } => 104,
            Self::PortTaken { .. } => 105,
            Self::Portmap { .. } => 106,
            Self::PortOfNode { .. } => 107,
        }
    }

    /// The code that STATUS gives: 50 if pods can't be attached, 51 if those that are attached may be cut off as well.
    pub(crate) const fn status_code(&self) -> u32 {
        match self {
            Self::NoDaemon { .. }
            | Self::NodeFile { .. }
            | Self::NotReady { guard: false, .. }
            | Self::NoGuard => 51,
            Self::NotReady { .. } | Self::Exhausted { .. } | Self::Locked { .. } => 50,
            other => other.code(),
        }
    }

    /// The error as the runtime reads it, in the version that it used. `status` says whether it
    /// called STATUS, which has codes of its own.
    pub(crate) fn render(&self, input: &[u8], status: bool) -> String {
        let version = version_of(input).unwrap_or(SpecVersion::V1_0_0);
        self.render_in(version.as_str(), if status { self.status_code() } else { self.code() })
    }

    /// The error as the runtime reads it, in this version and with this code.
    pub(crate) fn render_in(&self, version: &str, code: u32) -> String {
        let mut details = Vec::new();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            details.push(error.to_string());
            cause = error.source();
        }
        let document = json!({
            "cniVersion": version,
            "code": code,
            "msg": self.to_string(),
            "details": details.join(": "),
        });
        format!("{document:#}\n")
    }
}
