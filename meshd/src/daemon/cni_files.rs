//! What the CNI side needs: the node file, the network configuration and the plugin itself.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::SpecVersion;
use cni::conflist::ChainedPlugin;
use cni::node_file::NodeFile;
use cni::probe::{ProbeError, require_version};

use crate::chain::Chain;
use crate::config::Config;
use crate::file::{self, FileError};

/// Name of the configuration in the runtime's directory; runtimes take the first by name.
pub(crate) const CONFLIST: &str = "10-meshd.conflist";
pub(crate) use cni::conflist::PLUGIN;
/// Name of the node file in the run directory.
pub(crate) const NODE_FILE: &str = "node.json";

/// Timeout of a chained plugin's VERSION call. It takes milliseconds; the loop waits for it, so that the list is not
/// written twice, once for each change of a plugin's binary.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);

/// Modification time and length of a binary: if either differs it is another binary.
type Stamp = (SystemTime, u64);

/// The chained plugins that are installed, each with the binary that was probed and whether it supports CNI 1.1.0.
#[derive(Debug, Default)]
pub(super) struct ChainedPlugins(BTreeMap<ChainedPlugin, (Stamp, bool)>);

impl ChainedPlugins {
    /// Whether the binaries installed now are those that were probed last.
    pub(super) fn are_current(&self, bin_dir: &Path) -> bool {
        let probed = self.0.iter().map(|(plugin, (stamp, _))| (*plugin, *stamp));
        probed.eq(installed(bin_dir))
    }

    /// Probes each binary that has not been probed yet, all at once.
    fn probe(&mut self, bin_dir: &Path, timeout: Duration) {
        let installed: BTreeMap<ChainedPlugin, Stamp> = installed(bin_dir).collect();
        self.0.retain(|plugin, (stamp, _)| installed.get(plugin) == Some(stamp));
        let outdated = installed.into_iter().filter(|(plugin, _)| !self.0.contains_key(plugin));
        let probed: Vec<_> = std::thread::scope(|scope| {
            let probes: Vec<_> = outdated
                .map(|(plugin, stamp)| {
                    let path = bin_dir.join(plugin.name());
                    let probe = move || require_version(&path, SpecVersion::V1_1_0, timeout);
                    (plugin, stamp, scope.spawn(probe))
                })
                .collect();
            let joined = probes.into_iter().map(|(plugin, stamp, probe)| (plugin, stamp, probe.join()));
            joined.collect()
        });
        for (plugin, stamp, outcome) in probed {
            let supports = match outcome {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    report_unsupported(plugin, &error);
                    false
                }
                Err(panic) => std::panic::resume_unwind(panic),
            };
            self.0.insert(plugin, (stamp, supports));
        }
    }
}

fn report_unsupported(plugin: ChainedPlugin, error: &ProbeError) {
    tracing::warn!(
        event = "CniVersionLimited",
        plugin = plugin.name(),
        error = %Chain(error),
        "CNI 1.1.0 is not offered because of a chained plugin, so the runtime calls neither GC nor STATUS"
    );
}

fn installed(bin_dir: &Path) -> impl Iterator<Item = (ChainedPlugin, Stamp)> {
    ChainedPlugin::ALL.into_iter().filter_map(move |plugin| {
        let found = std::fs::metadata(bin_dir.join(plugin.name())).ok().filter(std::fs::Metadata::is_file)?;
        Some((plugin, (found.modified().ok()?, found.len())))
    })
}

/// Writes the node file.
pub(super) fn write_node_file(config: &Config, node: &NodeFile) -> Result<bool, FileError> {
    file::replace(&config.run_dir.join(NODE_FILE), node.render().as_bytes(), 0o644)
}

/// Whether plugin and configuration are still in place. Compares lengths only, because every turn asks; contents are
/// compared when the daemon starts.
pub(super) fn are_there(config: &Config) -> bool {
    let len = |path: &Path| std::fs::metadata(path).map(|found| found.len()).ok();
    let plugin = plugin_source().ok().and_then(|source| len(&source));
    plugin.is_some()
        && len(&config.cni_bin_dir.join(PLUGIN)) == plugin
        && len(&config.cni_conf_dir.join(CONFLIST)).is_some_and(|len| len > 0)
}

/// Installs the plugin, then the configuration that names it: in this order a runtime that sees the
/// configuration finds the plugin.
pub(super) fn install(config: &Config, chained: &mut ChainedPlugins) -> Result<bool, CniFilesError> {
    let source = plugin_source().map_err(|source| CniFilesError::Find { source })?;
    let target = config.cni_bin_dir.join(PLUGIN);
    let copied = copy(&source, &target)?;
    chained.probe(&config.cni_bin_dir, VERSION_TIMEOUT);
    let text = list(config.run_dir.join(NODE_FILE), chained);
    let written = file::replace(&config.cni_conf_dir.join(CONFLIST), text.as_bytes(), 0o644)?;
    Ok(copied || written)
}

fn list(node_file: PathBuf, chained: &ChainedPlugins) -> String {
    cni::conflist::render(&cni::conflist::Options {
        node_file,
        chained: chained.0.keys().copied().collect(),
        chained_support_1_1_0: chained.0.values().all(|(_, supports)| *supports),
        ..cni::conflist::Options::default()
    })
}

/// The plugin is beside the daemon's own binary, in the image as in a build.
fn plugin_source() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or_else(|| Path::new("/")).join(PLUGIN))
}

fn copy(source: &Path, target: &Path) -> Result<bool, CniFilesError> {
    let failed =
        |error| CniFilesError::Copy { from: source.to_owned(), to: target.to_owned(), source: error };
    let text = std::fs::read(source).map_err(failed)?;
    Ok(file::replace(target, &text, 0o755)?)
}

/// Why the CNI side could not be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum CniFilesError {
    /// The path of the daemon's own binary is not known.
    #[error("find the CNI plugin beside the daemon's binary")]
    Find {
        /// The cause.
        source: io::Error,
    },
    /// The plugin could not be copied.
    #[error("copy the CNI plugin from {} to {}", from.display(), to.display())]
    Copy {
        /// Where it is.
        from: PathBuf,
        /// Where it should be.
        to: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    const NEW: &str = r#"echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0","1.1.0"]}'"#;
    const OLD: &str = r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#;
    /// Far longer than a script takes on a busy machine.
    const LONG: Duration = Duration::from_mins(1);

    fn install(bin_dir: &Path, plugin: &str, script: &str) {
        let path = bin_dir.join(plugin);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Plugins and versions of the list for what is installed.
    fn rendered(chained: &ChainedPlugins) -> (Vec<String>, Vec<String>) {
        let list: serde_json::Value =
            serde_json::from_str(&list("/run/meshd/node.json".into(), chained)).unwrap();
        let texts = |value: &serde_json::Value, key: &str| -> Vec<String> {
            let items = value.as_array().unwrap().iter();
            items.map(|item| item.get(key).unwrap_or(item).as_str().unwrap().to_owned()).collect()
        };
        (texts(&list["plugins"], "type"), texts(&list["cniVersions"], "-"))
    }

    #[test]
    fn the_list_offers_1_1_0_only_if_every_chained_plugin_supports_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut chained = ChainedPlugins::default();
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0", "1.1.0"], "without chained plugins");
        install(dir.path(), "portmap", NEW);
        for (script, versions, timeout) in [
            (NEW, &["0.4.0", "1.0.0", "1.1.0"][..], LONG),
            (OLD, &["0.4.0", "1.0.0"], LONG),
            ("echo 'not json, but longer than before'", &["0.4.0", "1.0.0"], LONG),
            ("sleep 3600", &["0.4.0", "1.0.0"], Duration::from_millis(500)),
        ] {
            install(dir.path(), "bandwidth", script);
            assert!(!chained.are_current(dir.path()), "{script}");
            let started = Instant::now();
            chained.probe(dir.path(), timeout);
            assert!(started.elapsed() < LONG, "{script}");
            assert!(chained.are_current(dir.path()), "{script}");
            let (plugins, offered) = rendered(&chained);
            assert_eq!(plugins, ["mesh-cni", "portmap", "bandwidth"]);
            assert_eq!(offered, versions, "{script}");
        }
        std::fs::remove_file(dir.path().join("bandwidth")).unwrap();
        assert!(!chained.are_current(dir.path()));
        chained.probe(dir.path(), LONG);
        assert_eq!(rendered(&chained).0, ["mesh-cni", "portmap"]);
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0", "1.1.0"]);
    }

    #[test]
    fn a_binary_is_probed_once() {
        let dir = tempfile::tempdir().unwrap();
        let calls = dir.path().join("calls");
        let count = || std::fs::read_to_string(&calls).unwrap().lines().count();
        let script = format!("echo >>{}; {NEW}", calls.display());
        install(dir.path(), "portmap", &script);
        let mut chained = ChainedPlugins::default();
        chained.probe(dir.path(), LONG);
        chained.probe(dir.path(), LONG);
        assert_eq!(count(), 1);
        install(dir.path(), "portmap", &format!("{script} # another binary"));
        chained.probe(dir.path(), LONG);
        assert_eq!(count(), 2);
    }
}
