//! A client for the API server, from a kubeconfig file or the pod's service account.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};

/// Creates a client. Sends nothing yet, so this works while the API server is unreachable.
pub async fn client(
    kubeconfig: Option<&Path>,
) -> Result<(kube::Client, Option<std::net::IpAddr>), ConnectError> {
    let config = match kubeconfig {
        Some(path) => {
            let unusable = |source| ConnectError::Kubeconfig { path: path.to_owned(), source };
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(unusable)?
        }
        None => kube::Config::incluster()?,
    };
    let host = config.cluster_url.host().unwrap_or_default();
    let server = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let client =
        kube::Client::try_from(config).map_err(|source| ConnectError::Client { source: Box::new(source) })?;
    Ok((client, server))
}

/// Why no client could be created.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig can't be used.
    #[error("use kubeconfig {}: expected a file with a cluster, a user and a current context", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: kube::config::KubeconfigError,
    },
    /// There is no service account.
    #[error("use the pod's service account: outside a cluster set --kubeconfig")]
    InCluster(#[from] kube::config::InClusterError),
    /// The client can't be built from the configuration.
    #[error("set up the client for the API server")]
    Client {
        /// The cause.
        source: Box<kube::Error>,
    },
}
