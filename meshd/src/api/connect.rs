//! A client for the API server, from a kubeconfig file or the pod's service account.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};

/// Makes a client. Nothing is sent yet, so this works while the API server is away.
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

/// Why there is no client.
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
    /// There is no service account here.
    #[error("use the pod's service account: outside a cluster set --kubeconfig")]
    InCluster(#[from] kube::config::InClusterError),
    /// The configuration makes no client.
    #[error("set up the client for the API server")]
    Client {
        /// The cause.
        source: Box<kube::Error>,
    },
}
