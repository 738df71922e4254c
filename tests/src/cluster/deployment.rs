//! meshd on a cluster, from its manifests: an overlay with the cluster's own networks, as an operator writes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ClusterError;
use super::config::Shape;
use super::programs::Version;
use crate::error::Error;

/// Where the manifests are copied to, in the directory of a cluster.
pub(super) const MANIFESTS: &str = "deploy";
/// The overlay in there.
pub(super) const OVERLAY: &str = "overlays/cluster";

/// Copies the manifests to a directory and adds an overlay with the cluster's options. Returns that overlay, for
/// `kubectl apply -k`.
///
/// kubectl before 1.21 takes no directories as resources (kustomize 2.0.3). For it the overlay has the files of the base.
pub(super) fn write(
    manifests: &Path,
    to: &Path,
    shape: Shape,
    kubectl: Version,
) -> Result<PathBuf, ClusterError> {
    copy(manifests, to)?;
    let overlay = to.join(OVERLAY);
    fs::create_dir_all(&overlay).map_err(|source| file("create", &overlay, source))?;
    // Tokens name their node from 1.32 on. Before that the policies refuse what meshd does, or do not exist.
    let with_policies = shape.version.is_at_least(32);
    let (resources, behavior) = match (kubectl.is_at_least(21), with_policies) {
        (true, true) => (vec!["../../base".to_owned()], "create"),
        (true, false) => (vec!["../without-policies".to_owned()], "replace"),
        (false, _) => (take_in(&to.join("base"), &overlay, with_policies)?, "create"),
    };
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\n\
         kind: Kustomization\n\
         resources: [{}]\n\
         configMapGenerator:\n  - name: meshd-config\n    namespace: meshd\n    behavior: {behavior}\n    \
         files: [config.yaml]\n",
        resources.join(", ")
    );
    for (name, text) in
        [("kustomization.yaml", kustomization), ("config.yaml", format!("{:#}\n", shape.meshd_config()))]
    {
        let path = overlay.join(name);
        fs::write(&path, text).map_err(|source| file("write", &path, source))?;
    }
    Ok(overlay)
}

/// Copies the base's manifests into an overlay, the policies if they are wanted, and returns their names.
fn take_in(base: &Path, overlay: &Path, policies: bool) -> Result<Vec<String>, ClusterError> {
    copy(base, overlay)?;
    let entries = fs::read_dir(base).map_err(|source| file("list", base, source))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let taken = |name: &String| name != "kustomization.yaml" && (policies || !name.starts_with("policy-"));
    Ok(names.filter(taken).collect())
}

fn copy(from: &Path, to: &Path) -> Result<(), ClusterError> {
    fs::create_dir_all(to).map_err(|source| file("create", to, source))?;
    let entries = fs::read_dir(from).map_err(|source| file("list", from, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| file("list", from, source))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(|source| file("copy", &path, source))?;
        }
    }
    Ok(())
}

fn file(action: &'static str, path: &Path, source: io::Error) -> ClusterError {
    ClusterError::Lab(Error::File { action, path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use crate::cluster::ProxyMode;

    /// The kustomization that is written for a server and a kubectl of these minor versions.
    fn written(server: u32, kubectl: u32) -> String {
        let directory = tempfile::tempdir().unwrap();
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
        let version = |minor| Version { major: 1, minor };
        let shape = Shape { version: version(server), family: Family::Dual, proxy_mode: ProxyMode::Iptables };
        let overlay = write(Path::new(manifests), directory.path(), shape, version(kubectl)).unwrap();
        let config = fs::read_to_string(overlay.join("config.yaml")).unwrap();
        assert!(config.contains("10.244.0.0/16") && config.contains("fd00:10:244::/48"), "{config}");
        fs::read_to_string(overlay.join("kustomization.yaml")).unwrap()
    }

    #[test]
    fn policies_are_left_out_where_the_server_has_no_use_for_them() {
        assert!(written(32, 32).contains("resources: [../../base]\n"));
        assert!(written(31, 32).contains("resources: [../without-policies]\n"));
        let old = written(20, 20);
        assert!(old.contains("daemonset.yaml") && !old.contains("policy") && !old.contains(".."), "{old}");
        assert!(written(32, 20).contains("policy-own-node.yaml"));
    }
}
