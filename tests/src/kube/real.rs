//! A real kube-apiserver with etcd, on a host of the lab.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use kube::api::{Api, PostParams};

use super::assets::Assets;
use super::users::{self, Users};
use super::{ApiError, convert};
use crate::address::{self, IpVersion};
use crate::daemon::Daemon;
use crate::host::Host;

/// Port that the server listens on, in the namespace of its own host.
pub(crate) const PORT: u16 = 6443;

/// Everything that the two programs write, on the host's own tmpfs.
const DIR: &str = "/run/lab/kube";

/// How long the server may take; two shared cores that also compile something have needed half a minute.
const READY_WITHIN: Duration = Duration::from_mins(2);

/// Where the server keeps its key and certificate, on the host's own tmpfs.
pub(crate) const CERTIFICATES: &str = "/run/lab/kube/certs";

/// The two programs, while they run.
#[derive(Debug)]
pub(crate) struct RealApi {
    assets: Assets,
    tokens: String,
    arguments: Vec<String>,
    etcd: Option<Daemon>,
    server: Option<Daemon>,
}

impl RealApi {
    /// Starts both, with the lines of the file of tokens and with arguments besides those that every server here needs.
    pub(crate) fn start(host: &Host, tokens: String, more: &[String]) -> Result<Self, ApiError> {
        let assets = Assets::find()?;
        let arguments = [&arguments(host), more].concat();
        let mut api = Self { assets, tokens, arguments, etcd: None, server: None };
        api.launch(host)?;
        Ok(api)
    }

    /// Starts both programs with the data that is there.
    pub(crate) fn launch(&mut self, host: &Host) -> Result<(), ApiError> {
        let on_host = |error| ApiError::Host(Box::new(error));
        host.write(Path::new(DIR).join("tokens"), &self.tokens).map_err(on_host)?;
        let etcd = host.command(&self.assets.etcd).args([
            &format!("--data-dir={DIR}/etcd"),
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--logger=zap",
        ]);
        self.etcd = Some(etcd.daemon("etcd").map_err(on_host)?);
        self.launch_server(host)
    }

    /// Starts the server, beside an etcd that runs.
    pub(crate) fn launch_server(&mut self, host: &Host) -> Result<(), ApiError> {
        let on_host = |error| ApiError::Host(Box::new(error));
        let server = host.command(&self.assets.kube_apiserver).args(&self.arguments);
        self.server = Some(server.daemon("kube-apiserver").map_err(on_host)?);
        Ok(())
    }

    /// Kills both programs; the data stays.
    pub(crate) fn stop(&mut self) {
        self.server = None;
        self.etcd = None;
    }

    /// Kills the server alone; etcd goes on.
    pub(crate) fn stop_server(&mut self) {
        self.server = None;
    }

    /// The two programs.
    pub(crate) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.etcd.iter().chain(&self.server)
    }

    /// Stops both and removes etcd's data.
    pub(crate) fn wipe(&mut self, host: &Host) -> Result<(), ApiError> {
        self.stop();
        let removed = host.run(|| std::fs::remove_dir_all(Path::new(DIR).join("etcd")));
        let removed = removed.map_err(|error| ApiError::Host(Box::new(error)))?;
        removed.map_err(|source| ApiError::Start { what: "with an empty etcd", source })
    }

    /// Waits until the server says that it is ready; returns the certificate that vouches for it.
    pub(crate) fn wait_ready(&mut self, host: &Host) -> Result<String, ApiError> {
        let since = Instant::now();
        while since.elapsed() < READY_WITHIN {
            // The certificate is there before the port is, and the port before the server is ready.
            let certificate = host.read(Path::new(DIR).join("certs/apiserver.crt"));
            if let Ok(certificate) = certificate {
                let certificate = String::from_utf8_lossy(&certificate).into_owned();
                if ready(host, &certificate) {
                    return Ok(certificate);
                }
            }
            if self.server.as_ref().is_some_and(|server| matches!(server.ended(), Ok(Some(_)))) {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let log = self.server.as_ref().and_then(|server| server.log().ok()).unwrap_or_default();
        let from = log.len().saturating_sub(2000);
        let log = log.get(from..).unwrap_or(&log).to_owned();
        Err(ApiError::NotReady { what: "kube-apiserver", within: since.elapsed(), log })
    }
}

fn arguments(host: &Host) -> Vec<String> {
    // The first address decides: with it the server advertises itself, and of its version are the services.
    let address = host.addresses().first().copied();
    let version = address.map_or(IpVersion::V4, IpVersion::of);
    let advertised = address.map(|address| address.to_string()).unwrap_or_default();
    let any = if version == IpVersion::V4 { "0.0.0.0" } else { "::" };
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={advertised}"),
        format!("--bind-address={any}"),
        format!("--secure-port={PORT}"),
        format!("--cert-dir={CERTIFICATES}"),
        format!("--token-auth-file={DIR}/tokens"),
        // The server makes a key and a certificate for itself if there are none; the same key signs the tokens of
        // service accounts.
        format!("--service-account-key-file={CERTIFICATES}/apiserver.key"),
        format!("--service-account-signing-key-file={CERTIFICATES}/apiserver.key"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged".into(),
    ]
}

/// What a server of a lab needs besides: services of one IP version, and Nodes that may have two podCIDRs.
pub(crate) fn for_a_lab(host: &Host) -> Vec<String> {
    let version = host.addresses().first().map_or(IpVersion::V4, |address| IpVersion::of(*address));
    vec![
        format!("--service-cluster-ip-range={}", address::service_range(version)),
        // Alpha in this version; without it the second podCIDR of a Node is silently dropped.
        "--feature-gates=IPv6DualStack=true".into(),
    ]
}

/// The lines of the file of tokens for the users of a lab.
pub(crate) fn tokens(users: &Users) -> String {
    users.iter().map(token_line).collect::<Vec<_>>().join("\n")
}

/// Whether the server answers `/readyz` with 200.
fn ready(host: &Host, certificate: &str) -> bool {
    let Some(address) = host.addresses().first().copied() else { return false };
    let server = match address {
        std::net::IpAddr::V4(_) => format!("https://{address}:{PORT}"),
        std::net::IpAddr::V6(_) => format!("https://[{address}]:{PORT}"),
    };
    let config = users::kubeconfig(&server, Some(certificate), "nobody", "").to_string();
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async {
            let client = super::client(&config, "nobody").await.ok()?;
            let request = axum::http::Request::get("/readyz").body(Vec::new()).ok()?;
            client.request_text(request).await.ok()
        })
    };
    host.net().run(ask).ok().flatten().is_some()
}

/// Lets the nodes' users do what meshd does.
pub(crate) async fn grant(client: Client, users: &Users, fence: bool) -> Result<(), ApiError> {
    let post = PostParams::default();
    for (resource, object) in users::access_objects(users, fence) {
        let subject = format!("{resource} {}", object["metadata"]["name"]);
        let failed = |source| ApiError::Request { action: "create", subject: subject.clone(), source };
        if resource == "clusterroles" {
            let role: ClusterRole = convert(&subject, object)?;
            Api::all(client.clone()).create(&post, &role).await.map(drop).map_err(failed)?;
        } else {
            let binding: ClusterRoleBinding = convert(&subject, object)?;
            Api::all(client.clone()).create(&post, &binding).await.map(drop).map_err(failed)?;
        }
    }
    Ok(())
}

fn token_line(user: &users::User) -> String {
    let group = if user.node.is_some() { users::GROUP } else { "system:masters" };
    format!("{},{},{},\"{group}\"", user.token, user.name, user.name)
}
