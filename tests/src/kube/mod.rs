//! API servers of a lab, on a host of their own on the underlay: a real kube-apiserver with etcd, or a fake one.
//!
//! Both are used in the same way: users with tokens and kubeconfigs, stop, start, start with an empty store.

pub mod assets;
pub(crate) mod real;
pub(crate) mod users;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

use crate::address::IpVersion;
use crate::host::Host;
use crate::nodeapi;
use crate::nodeapi::Fake;
use real::RealApi;
pub use users::ADMIN;
use users::Users;

/// An API server could not be started or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// kube-apiserver or etcd was not found.
    #[error("find {program} in {}; run scripts/setup.sh test", looked.display())]
    NoAssets {
        /// Which.
        program: &'static str,
        /// The directory that was searched.
        looked: PathBuf,
        /// What looking there gave.
        #[source]
        source: io::Error,
    },
    /// A server could not be started.
    #[error("start {what}")]
    Start {
        /// What was to be started, or what for.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A part of the lab failed that the server needs.
    #[error("use the API server's host")]
    Host(#[source] Box<crate::Error>),
    /// A server was started but does not answer.
    #[error("{what} was not ready within {within:?}; its log ends with: {log}")]
    NotReady {
        /// Which.
        what: &'static str,
        /// How long was waited.
        within: Duration,
        /// The last lines of its log.
        log: String,
    },
    /// No such user.
    #[error("the API server has no user for {0}")]
    NoUser(String),
    /// A generated kubeconfig is not accepted.
    #[error("make a client for {user}")]
    Client {
        /// Whose.
        user: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// A generated kubeconfig cannot be read.
    #[error("read the kubeconfig of {user}")]
    Kubeconfig {
        /// Whose.
        user: String,
        /// Why not.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// A request failed.
    #[error("{action} {subject}")]
    Request {
        /// What was asked.
        action: &'static str,
        /// About what.
        subject: String,
        /// What came back.
        #[source]
        source: kube::Error,
    },
    /// An object is not what its kind says.
    #[error("convert {subject}")]
    Convert {
        /// What.
        subject: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// Which API server a lab has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiKind {
    /// None at all.
    None,
    /// A fake server for Nodes: ready at once.
    Fake,
    /// kube-apiserver with etcd: ready after some seconds.
    Real,
}

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    backend: Mutex<Backend>,
    kind: ApiKind,
    server: String,
    ca: Option<String>,
    users: Users,
    fence: bool,
    host: Host,
}

#[derive(Debug)]
enum Backend {
    Fake(Fake),
    Real(RealApi),
}

impl ApiServer {
    /// Starts a server on a host. There is a user for each of these nodes, and some for nodes that may come later.
    pub(crate) fn start(kind: ApiKind, host: Host, nodes: u8, fence: bool) -> Result<Self, ApiError> {
        let spare = nodes.saturating_add(8);
        let users = Users::create((1..=spare).map(|number| format!("n{number}")))
            .map_err(|source| ApiError::Start { what: "users", source })?;
        let address = *host.addresses().first().ok_or(ApiError::NoUser("a host without addresses".into()))?;
        let server = url(kind, address);
        let (backend, ca) = if kind == ApiKind::Real {
            let mut real = RealApi::start(&host, real::tokens(&users), &real::for_a_lab(&host))?;
            let ca = real.wait_ready(&host)?;
            (Backend::Real(real), Some(ca))
        } else {
            let fake = Fake::start(host.net(), address, users.clone(), fence)
                .map_err(|source| ApiError::Start { what: "the fake API server", source })?;
            (Backend::Fake(fake), None)
        };
        let api = Self { backend: Mutex::new(backend), kind, server, ca, users, fence, host };
        if kind == ApiKind::Real {
            api.run(ADMIN, |client| real::grant(client, &api.users, fence))??;
        }
        Ok(api)
    }

    /// Which server it is.
    pub fn kind(&self) -> ApiKind {
        self.kind
    }

    /// Its URL, as in the kubeconfigs.
    pub fn url(&self) -> &str {
        &self.server
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The bearer token of a node's user, or of [`ADMIN`].
    pub fn token(&self, user: &str) -> Result<&str, ApiError> {
        Ok(&self.users.of(user).ok_or_else(|| ApiError::NoUser(user.to_owned()))?.token)
    }

    /// A kubeconfig for a node's user, or for [`ADMIN`]. JSON, which is YAML.
    pub fn kubeconfig(&self, user: &str) -> Result<String, ApiError> {
        Ok(self.kubeconfig_with(user, self.token(user)?))
    }

    /// The same for a node that has only one IP version, if the server has an address of it.
    pub(crate) fn kubeconfig_over(&self, version: IpVersion, user: &str) -> Result<String, ApiError> {
        let addresses = self.host.addresses();
        let address = addresses.into_iter().find(|address| IpVersion::of(*address) == version);
        let server = address.map_or_else(|| self.server.clone(), |address| url(self.kind, address));
        Ok(users::kubeconfig(&server, self.ca.as_deref(), user, self.token(user)?).to_string())
    }

    /// A kubeconfig with any token, for requests that have to be refused.
    pub fn kubeconfig_with(&self, user: &str, token: &str) -> String {
        users::kubeconfig(&self.server, self.ca.as_deref(), user, token).to_string()
    }

    /// Runs a future with a client of a node's user, or of [`ADMIN`], in the server's own network namespace.
    pub fn run<T: Send, Fut: Future<Output = T>>(
        &self,
        user: &str,
        work: impl FnOnce(Client) -> Fut + Send,
    ) -> Result<T, ApiError> {
        self.run_with(&self.kubeconfig(user)?, user, work)
    }

    /// The same with a kubeconfig.
    pub fn run_with<T: Send, Fut: Future<Output = T>>(
        &self,
        kubeconfig: &str,
        user: &str,
        work: impl FnOnce(Client) -> Fut + Send,
    ) -> Result<T, ApiError> {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| ApiError::Start { what: "a client", source })?;
            runtime.block_on(async { Ok(work(client(kubeconfig, user).await?).await) })
        };
        self.host.net().run(run).map_err(|error| ApiError::Host(Box::new(error)))?
    }

    /// Creates a Node.
    pub fn create_node(&self, node: Value) -> Result<Value, ApiError> {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let node: Node = convert(&name, node)?;
        let post = PostParams::default();
        self.nodes("create Node", &name, |nodes| async move { nodes.create(&post, &node).await })
    }

    /// Reads a Node.
    pub fn node(&self, name: &str) -> Result<Value, ApiError> {
        self.nodes("read Node", name, |nodes| async move { nodes.get(name).await })
    }

    /// Changes a Node by a merge patch, as the administrator.
    pub fn patch_node(&self, name: &str, patch: &Value) -> Result<Value, ApiError> {
        let params = PatchParams::default();
        self.nodes("patch Node", name, |nodes| async move {
            nodes.patch(name, &params, &Patch::Merge(patch)).await
        })
    }

    /// Changes a Node's status by a merge patch, as the administrator.
    pub fn patch_node_status(&self, name: &str, patch: &Value) -> Result<Value, ApiError> {
        let params = PatchParams::default();
        let work =
            |nodes: Api<Node>| async move { nodes.patch_status(name, &params, &Patch::Merge(patch)).await };
        self.nodes("patch the status of Node", name, work)
    }

    /// Deletes a Node.
    pub fn delete_node(&self, name: &str) -> Result<(), ApiError> {
        let request = |source| ApiError::Request { action: "delete Node", subject: name.to_owned(), source };
        let delete =
            |client| async move { Api::<Node>::all(client).delete(name, &DeleteParams::default()).await };
        self.run(ADMIN, delete)?.map(drop).map_err(request)
    }

    /// All events, oldest first, as `events.k8s.io/v1` has them.
    pub fn events(&self) -> Result<Vec<Value>, ApiError> {
        use k8s_openapi::api::events::v1::Event;
        let request = |source| ApiError::Request { action: "list", subject: "events".into(), source };
        let list = |client| async move { Api::<Event>::all(client).list(&ListParams::default()).await };
        let mut events = self.run(ADMIN, list)?.map_err(request)?.items;
        events.sort_by(|one, other| one.metadata.creation_timestamp.cmp(&other.metadata.creation_timestamp));
        events
            .into_iter()
            .map(|event| convert("an event", serde_json::to_value(event).unwrap_or_default()))
            .collect()
    }

    /// All Events that were created through the core group, as daemons do: the fake server keeps the groups apart, a real
    /// server shows each Event in both.
    pub fn core_events(&self) -> Result<Vec<Value>, ApiError> {
        use k8s_openapi::api::core::v1::Event;
        let request = |source| ApiError::Request { action: "list", subject: "core events".into(), source };
        let list = |client| async move { Api::<Event>::all(client).list(&ListParams::default()).await };
        let events = self.run(ADMIN, list)?.map_err(request)?.items;
        events
            .into_iter()
            .map(|event| convert("an event", serde_json::to_value(event).unwrap_or_default()))
            .collect()
    }

    /// Requests of each kind since the start, by Kubernetes' verb and the resource: `patch nodes`, `create events`,
    /// `list nodes`. Only the fake server counts them.
    pub fn requests(&self) -> Option<BTreeMap<String, u64>> {
        match &*self.lock() {
            Backend::Fake(server) => Some(server.requests()),
            Backend::Real(_) => None,
        }
    }

    /// From now on, GETs of single objects are never answered, as by a server with an overloaded store. Lists, watches and
    /// changes are. Only the fake server can do that; says whether it does.
    pub fn hang_gets(&self) -> bool {
        match &*self.lock() {
            Backend::Fake(server) => {
                server.hang_gets();
                true
            }
            Backend::Real(_) => false,
        }
    }

    /// From now on, patches of Nodes are never answered. Only the fake server can do that; says whether it does.
    pub fn hang_patches(&self) -> bool {
        match &*self.lock() {
            Backend::Fake(server) => {
                server.hang_patches();
                true
            }
            Backend::Real(_) => false,
        }
    }

    /// Stops the server at once (SIGKILL): connections are cut, the port is closed. Its data stays.
    pub fn stop(&self) -> Result<(), ApiError> {
        match &mut *self.lock() {
            Backend::Fake(server) => server.stop(),
            Backend::Real(server) => server.stop(),
        }
        Ok(())
    }

    /// Starts it again after [`stop`](Self::stop). Watches from before get 410: a restarted server has no
    /// history of changes.
    pub fn resume(&self) -> Result<(), ApiError> {
        match &mut *self.lock() {
            Backend::Fake(server) => {
                server.resume().map_err(|source| ApiError::Start { what: "the fake API server", source })
            }
            Backend::Real(server) => {
                server.launch(&self.host)?;
                server.wait_ready(&self.host).map(drop)
            }
        }
    }

    /// Stops it if it runs, and starts it with nothing: no Nodes, resource versions from the beginning. The users and
    /// what they may do are there again.
    pub fn wipe(&self) -> Result<(), ApiError> {
        self.stop()?;
        match &mut *self.lock() {
            Backend::Fake(server) => server.wipe(),
            Backend::Real(server) => server.wipe(&self.host)?,
        }
        self.resume()?;
        if self.kind == ApiKind::Real {
            self.run(ADMIN, |client| real::grant(client, &self.users, self.fence))??;
        }
        Ok(())
    }

    fn nodes<Fut: Future<Output = kube::Result<Node>>>(
        &self,
        action: &'static str,
        name: &str,
        work: impl FnOnce(Api<Node>) -> Fut + Send,
    ) -> Result<Value, ApiError> {
        let failed = |source| ApiError::Request { action, subject: name.to_owned(), source };
        let node = self.run(ADMIN, |client| work(Api::all(client)))?.map_err(failed)?;
        serde_json::to_value(node).map_err(|source| ApiError::Convert { subject: name.to_owned(), source })
    }

    fn lock(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn url(kind: ApiKind, address: IpAddr) -> String {
    let (scheme, port) = if kind == ApiKind::Real { ("https", real::PORT) } else { ("http", nodeapi::PORT) };
    format!("{scheme}://{}", SocketAddr::new(address, port))
}

async fn client(kubeconfig: &str, user: &str) -> Result<Client, ApiError> {
    let failed = |source| ApiError::Kubeconfig { user: user.to_owned(), source };
    let parsed = Kubeconfig::from_yaml(kubeconfig).map_err(failed)?;
    let mut config =
        Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await.map_err(failed)?;
    // What a server says is what a test wants to see, not what it says after some retries.
    config.default_retry = false;
    Client::try_from(config).map_err(|source| ApiError::Client { user: user.to_owned(), source })
}

fn convert<T: serde::de::DeserializeOwned>(subject: &str, value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|source| ApiError::Convert { subject: subject.to_owned(), source })
}
