//! A client for the API server, from a kubeconfig file or the pod's service account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// How long a connection is idle before the kernel asks the other end whether it is still there, and between two such
/// questions. A watch is idle while nothing changes: it costs one small packet and its answer every 8 s.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(2));
/// After how long without an answer a connection is closed (`TCP_USER_TIMEOUT` in `tcp(7)`, which keepalive probes heed as
/// well). A NAT that has forgotten the connection says nothing, and a watch over it would wait until its end.
const DEAD_AFTER: Duration = Duration::from_secs(12);
/// How long a new connection may take, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    let client = watchful(config).map_err(|source| ConnectError::Client { source: Box::new(source) })?;
    Ok((client, server))
}

/// A client that notices within [`DEAD_AFTER`] that a connection is dead; kube's own sets no option on its sockets.
fn watchful(config: kube::Config) -> Result<kube::Client, kube::Error> {
    if config.proxy_url.is_some() {
        // Proxies are not built in: this says so.
        return kube::Client::try_from(config);
    }
    let mut sockets = HttpConnector::new();
    sockets.enforce_http(false);
    sockets.set_keepalive(Some(KEEPALIVE.0));
    sockets.set_keepalive_interval(Some(KEEPALIVE.1));
    sockets.set_tcp_user_timeout(Some(DEAD_AFTER));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(sockets)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_write_timeout(config.write_timeout);
    let http = HttpClient::builder(TokioExecutor::new()).build(connector);
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
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
