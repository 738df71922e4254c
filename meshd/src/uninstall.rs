//! Removes what meshd has put on this node: first what lets traffic in, the guard last. The audit trail stays unless it is
//! asked for: it is evidence of what happened to the node's keys.

use std::fmt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Node;
use keyring::audit;
use kube::Api;
use kube::api::{Patch, PatchParams};
use linux::{Handle, guard, host_ports};
use plan::annotation::names;
use serde_json::json;

use crate::api::{self, API_TIMEOUT, WRITE_TIMEOUT, written};
use crate::chain::Chain;
use crate::config::Config;
use crate::control::{self, Request};
use crate::{cache, file};

/// What to remove beyond what is on the node's network and disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// The annotations on the Node; needs the API server.
    pub(crate) annotations: bool,
    /// The audit trail.
    pub(crate) audit_trail: bool,
}

/// What was removed, a line each, and the audit trail that was not.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    lines: Vec<String>,
    kept_trail: Option<PathBuf>,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            writeln!(f, "No meshd state was found on this node.")?;
        }
        self.lines.iter().try_for_each(|line| writeln!(f, "- {line}"))?;
        if !self.lines.is_empty() {
            writeln!(
                f,
                "The kernel's settings stay (forwarding, and accept_ra of links with routes from router advertisements): \
                 others may rely on them."
            )?;
        }
        if let Some(trail) = &self.kept_trail {
            writeln!(
                f,
                "Kept the audit trail in {}: it is the evidence of what happened to this node's keys.\nTo remove it too, \
                 archive it if you need to and run `meshd uninstall --purge-audit`.",
                trail.display()
            )?;
        }
        Ok(())
    }
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The daemon would restore what is removed.
    #[error("meshd is running on this node and would restore what is removed: stop it first")]
    Running,
    /// Pods are attached, so nothing was removed yet.
    #[error("nothing was removed")]
    Pods(#[source] cni::CniError),
    /// Netlink could not be opened.
    #[error("open netlink")]
    Host(#[source] linux::HostError),
    /// Some things could not be removed; all others were.
    #[error("not everything could be removed: {}", .0.join("; "))]
    Left(Vec<String>),
}

/// Removes everything in `scope`. Failures are collected; the guard is removed only if there were none: it does no harm
/// by itself, and what would be left could leak without it.
pub(crate) async fn run(config: &Config, scope: Scope) -> Result<Removed, UninstallError> {
    if control::ask(&config.run_dir.join("meshd.sock"), &Request::Status).is_ok() {
        return Err(UninstallError::Running);
    }
    let host = Handle::open().map_err(UninstallError::Host)?;
    let addresses = cni::forget(Path::new(cni::STATE_DIR)).map_err(UninstallError::Pods)?;
    let mut work = Work::default();
    work.note("the CNI plugin's addresses", Ok(addresses));
    let ports = host_ports::remove().map_err(|error| Chain(&error).to_string());
    work.note(format!("nft table inet {}", host_ports::TABLE), ports);
    if scope.annotations {
        work.note("annotations on the Node", remove_annotations(config).await);
    }
    let trail = config.state_dir.join(audit::DIRECTORY);
    if scope.audit_trail {
        let outcome = audit::remove(&trail).map_err(|error| Chain(&error).to_string());
        work.note(format!("audit trail {}", trail.display()), outcome);
    }
    work.files(config);
    work.network(&host, config).await;
    if work.failed.is_empty() {
        work.note("nft table inet meshd", guard::remove().map_err(|error| Chain(&error).to_string()));
    } else {
        work.failed.push("the guard stays until everything else is removed".to_owned());
    }
    if work.failed.is_empty() {
        Ok(Removed { lines: work.removed, kept_trail: trail.exists().then_some(trail) })
    } else {
        Err(UninstallError::Left(work.failed))
    }
}

#[derive(Default)]
struct Work {
    removed: Vec<String>,
    failed: Vec<String>,
}

impl Work {
    fn note(&mut self, what: impl fmt::Display, outcome: Result<bool, String>) {
        match outcome {
            Ok(true) => self.removed.push(what.to_string()),
            Ok(false) => {}
            Err(cause) => self.failed.push(format!("{what}: {cause}")),
        }
    }

    /// The CNI configuration first: from then on no pod is attached that would lose its network a moment later.
    fn files(&mut self, config: &Config) {
        let socket = |link: &plan::network::LinkName| config.wireguard_dir.join(format!("{link}.sock"));
        let cache = config.state_dir.join(cache::FORMAT.name);
        let log = config.state_dir.join(cache::LOG.name);
        let relay = config.state_dir.join(crate::daemon::RELAY_FILE);
        let paths = config.state_dir.join(crate::daemon::PATHS_FILE);
        let files = [
            config.cni_conf_dir.join(crate::daemon::CONFLIST),
            config.cni_bin_dir.join(crate::daemon::PLUGIN),
            config.run_dir.join(crate::daemon::NODE_FILE),
            config.run_dir.join("meshd.sock"),
            cache.clone(),
            log.clone(),
            relay.clone(),
            paths.clone(),
            config.run_dir.join(control::BIRTHPLACE).join("sock"),
            config.key_dir.join("keys.json"),
            config.key_dir.join("keys.json.new"),
            socket(&config.links.a),
            socket(&config.links.b),
        ];
        // By its contents, so before the plugin.
        let bin_dir = &config.cni_bin_dir;
        let loopback =
            crate::daemon::is_loopback_ours(bin_dir).then(|| bin_dir.join(crate::daemon::LOOPBACK));
        for path in loopback.into_iter().chain(files) {
            // A crash while the file was replaced leaves a temporary one.
            for path in [file::temporary(&path), path] {
                self.note(path.display(), file::remove(&path).map_err(|error| error.to_string()));
            }
        }
        for name in keyring::store::PRESHARED_FILES {
            let path = config.key_dir.join(name);
            self.note(path.display(), file::remove(&path).map_err(|error| error.to_string()));
        }
        for path in [cache, log, relay, paths].iter().flat_map(|path| file::damaged(path)) {
            self.note(path.display(), file::remove(&path).map_err(|error| error.to_string()));
        }
        // Directories that are shared with others stay; those of meshd are removed once they are empty.
        let birthplace = config.run_dir.join(control::BIRTHPLACE);
        for directory in [&config.key_dir, &birthplace, &config.run_dir, &config.state_dir] {
            self.note(directory.display(), remove_empty(directory));
        }
    }

    async fn network(&mut self, host: &Handle, config: &Config) {
        for rule in host.rules().await.unwrap_or_default() {
            let outcome = host.remove_rule(&rule).await;
            self.note(
                format!("rule {rule}"),
                outcome.map(|()| true).map_err(|error| Chain(&error).to_string()),
            );
        }
        let accepts = guard::iptables::remove().map_err(|error| Chain(&error).to_string());
        self.note("accept rules in iptables' chains FORWARD and INPUT", accepts);
        for route in host.routes().await.unwrap_or_default() {
            let outcome = host.remove_route(&route).await;
            self.note(
                format!("route {route}"),
                outcome.map(|()| true).map_err(|error| Chain(&error).to_string()),
            );
        }
        for (_, link) in config.links.iter() {
            let outcome = host.delete_link(link).await;
            self.note(format!("link {link}"), outcome.map_err(|error| Chain(&error).to_string()));
        }
    }
}

fn remove_empty(directory: &Path) -> Result<bool, String> {
    match std::fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            // Busy: a mount point, as in a pod, which the runtime removes. Not a directory: a link to one, which was
            // put there by somebody else.
            std::io::ErrorKind::NotFound
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::DirectoryNotEmpty
            | std::io::ErrorKind::ResourceBusy => Ok(false),
            _ => Err(error.to_string()),
        },
    }
}

async fn remove_annotations(config: &Config) -> Result<bool, String> {
    let (client, _) = api::connect::client(config.kubeconfig.as_deref())
        .await
        .map_err(|error| Chain(&error).to_string())?;
    let nodes = Api::<Node>::all(client);
    let found = written("read the Node", API_TIMEOUT, nodes.get_opt(&config.node_name)).await;
    let found = found.map_err(|error| Chain(&error).to_string())?;
    let annotations = found.and_then(|node| node.metadata.annotations).unwrap_or_default();
    if ![names::STATE, names::ENDPOINTS].iter().any(|name| annotations.contains_key(*name)) {
        return Ok(false);
    }
    let body = json!({"metadata": {"annotations": {names::STATE: null, names::ENDPOINTS: null}}});
    let parameters =
        PatchParams { field_manager: Some(api::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let body = Patch::Merge(&body);
    let patched = nodes.patch_metadata(&config.node_name, &parameters, &body);
    let patched = written("remove the annotations", WRITE_TIMEOUT, patched).await;
    patched.map(|_| true).map_err(|error| Chain(&error).to_string())
}
