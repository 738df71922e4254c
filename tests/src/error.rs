//! What can go wrong while a lab is built or used; tests mostly unwrap it, so the text has to be enough.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A lab could not do what it was asked to.
#[expect(clippy::error_impl_error, reason = "read with its crate's name, as in lab::Error")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A new set of namespaces could not be created.
    #[error("create the namespaces of {host}; needs root, or a user namespace with CAP_SYS_ADMIN")]
    CreateSpace {
        /// Host that they were for.
        host: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The private directories of a host could not be mounted.
    #[error("mount {what} at {}", path.display())]
    Mount {
        /// Kind of file system, or what is bound there.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A thread could not enter namespaces that exist.
    #[error("enter the namespaces of {host}")]
    Enter {
        /// Whose.
        host: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A program could not be started or waited for.
    #[error("run {program} in {host}")]
    Run {
        /// The program with its arguments.
        program: String,
        /// Where.
        host: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("{program} in {host} ended with {status}: {}", stderr.trim())]
    Failed {
        /// The program with its arguments.
        program: String,
        /// Where it ran.
        host: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its standard error, or its standard output if that is empty.
        stderr: String,
    },
    /// A file of the lab's could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`, `create` and so on.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A list of a host's files would miss some of them, so it proves nothing.
    #[error("list the files of {host}: a file planted in {} was not found", path.display())]
    Blind {
        /// Whose files.
        host: String,
        /// The directory.
        path: PathBuf,
    },
    /// A socket of the lab's own traffic failed where that says nothing about the mesh (binding, options).
    #[error("{action} in {host}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// In whose network namespace.
        host: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something has no address of the wanted IP version.
    #[error("{host} has no {version} address")]
    NoAddress {
        /// What was asked.
        host: String,
        /// `ipv4` or `ipv6`.
        version: &'static str,
    },
    /// A lab has no such node.
    #[error("the lab has no node {0}")]
    NoNode(String),
    /// A lab has no such site, or is on one switch.
    #[error("the lab has no site {0}")]
    NoSite(String),
    /// Something did not happen in time.
    #[error("{what} did not happen within {within:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
    },
    /// A CNI call failed.
    #[error(transparent)]
    Cni(#[from] crate::cni::CniError),
    /// An API server could not be started or used.
    #[error(transparent)]
    Api(#[from] crate::kube::ApiError),
    /// Neither root nor a user namespace is available.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
}

/// The error with all its causes on one line, as tests and the demo print it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
