//! The control plane of a cluster on a host of its own: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use super::ClusterError;
use super::config::{DIRECTORY, Shape};
use super::programs::Programs;
use crate::command::Command;
use crate::daemon::Daemon;
use crate::host::Host;
use crate::kube::ApiError;
use crate::kube::real::{CERTIFICATES, PORT, RealApi};
use crate::kube::users;

/// A name in the server's certificate, for clients that reach it by an address that is not.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// The processes of the control plane, and the users that it knows.
#[derive(Debug)]
pub(super) struct ControlPlane {
    // Dropped in order: clients before the server.
    managers: Vec<Daemon>,
    api: RealApi,
    users: Vec<User>,
    certificate: String,
    host: Host,
}

/// A user with a static token. What it may do is in Kubernetes' own roles.
#[derive(Debug)]
struct User {
    name: String,
    group: &'static str,
    token: String,
}

impl ControlPlane {
    /// Starts all and waits until the server is ready.
    pub(super) fn start(
        host: Host,
        shape: Shape,
        programs: &Programs,
        nodes: &[String],
    ) -> Result<Self, ClusterError> {
        let users = users_of(nodes).map_err(|source| ApiError::Start { what: "users", source })?;
        let lines: Vec<String> = users.iter().map(User::line).collect();
        let mut api = RealApi::start(&host, lines.join("\n"), &shape.api_server())?;
        let certificate = api.wait_ready(&host)?;
        let mut own = Self { managers: Vec::new(), api, users, certificate, host };
        let managers = [
            ("kube-controller-manager", shape.controller_manager(CERTIFICATES)),
            ("kube-scheduler", shape.scheduler()),
        ];
        for (name, arguments) in managers {
            let kubeconfig = own.kubeconfig(&format!("system:{name}"), None)?;
            own.host.write(Path::new(DIRECTORY).join(format!("{name}.kubeconfig")), kubeconfig)?;
            let daemon = own.host.command(programs.path(name)?).args(arguments).daemon(name)?;
            own.managers.push(daemon);
        }
        own.host.write(Path::new(DIRECTORY).join("kubeconfig"), own.kubeconfig(users::ADMIN, None)?)?;
        Ok(own)
    }

    /// Kills the API server. Its clients stay.
    pub(super) fn stop_api(&mut self) {
        self.api.stop_server();
    }

    /// Starts the API server again and waits until it is ready.
    pub(super) fn start_api(&mut self) -> Result<(), ClusterError> {
        self.api.launch_server(&self.host)?;
        self.api.wait_ready(&self.host)?;
        Ok(())
    }

    /// All processes.
    pub(super) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.managers.iter().chain(self.api.daemons())
    }

    /// The host that it runs on.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Where the server listens.
    pub(super) fn address(&self) -> Result<SocketAddr, ClusterError> {
        let address = self.host.addresses().first().copied();
        Ok(SocketAddr::new(address.ok_or(ApiError::NoUser("a host without addresses".into()))?, PORT))
    }

    /// A kubeconfig of a user; for a client outside the lab, with the address at which it reaches the server.
    pub(super) fn kubeconfig(&self, user: &str, via: Option<SocketAddr>) -> Result<String, ClusterError> {
        let known = self.users.iter().find(|known| known.name == user);
        let known = known.ok_or_else(|| ApiError::NoUser(user.to_owned()))?;
        let server = format!("https://{}", via.map_or_else(|| self.address(), Ok)?);
        let mut config = users::kubeconfig(&server, Some(&self.certificate), user, &known.token);
        if let Some(cluster) = config.pointer_mut("/clusters/0/cluster").filter(|_| via.is_some()) {
            cluster["tls-server-name"] = SERVER_NAME.into();
        }
        Ok(config.to_string())
    }

    /// kubectl on the control plane's host, as the administrator.
    pub(super) fn kubectl(&self, programs: &Programs) -> Result<Command<'_>, ClusterError> {
        // Its cache of the server's kinds is below HOME.
        let command = self.host.command(programs.kubectl()?).env("HOME", DIRECTORY);
        Ok(command.env("KUBECONFIG", format!("{DIRECTORY}/kubeconfig")))
    }
}

impl User {
    /// A line of the file of tokens.
    fn line(&self) -> String {
        format!("{},{},{},\"{}\"", self.token, self.name, self.name, self.group)
    }
}

/// The user of a node's kubelet.
pub(super) fn kubelet_user(node: &str) -> String {
    format!("system:node:{node}")
}

fn users_of(nodes: &[String]) -> io::Result<Vec<User>> {
    let fixed = [
        (users::ADMIN, "system:masters"),
        ("system:kube-controller-manager", ""),
        ("system:kube-scheduler", ""),
        ("system:kube-proxy", ""),
    ];
    let fixed = fixed.into_iter().map(|(name, group)| (name.to_owned(), group));
    let kubelets = nodes.iter().map(|node| (kubelet_user(node), "system:nodes"));
    fixed.chain(kubelets).map(|(name, group)| Ok(User { name, group, token: users::token()? })).collect()
}
