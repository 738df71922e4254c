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
pub(crate) use cni::loopback::PLUGIN as LOOPBACK;
/// Name of the node file in the run directory.
pub(crate) const NODE_FILE: &str = "node.json";

/// Timeout of a chained plugin's VERSION call, which takes milliseconds.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);
/// When a plugin that could not be started, or did not answer in time, is probed again.
const PROBE_RETRY: Duration = Duration::from_mins(5);

/// Modification time and length of a binary: if either differs it is another binary.
type Stamp = (SystemTime, u64);

/// The chained plugins that are installed, each with the binary that was probed and whether it supports CNI 1.1.0.
#[derive(Debug, Default)]
pub(super) struct ChainedPlugins {
    probed: BTreeMap<ChainedPlugin, Support>,
    /// Whether a probe is running.
    probing: bool,
    /// Whether the list was not written since the last probe.
    changed: bool,
}

#[derive(Clone, Debug)]
struct Support {
    stamp: Stamp,
    supports: bool,
    /// When to probe the same binary again.
    retry_at: Option<Duration>,
}

/// Plugins to probe.
#[derive(Debug)]
pub(super) struct Probe {
    plugins: Vec<(ChainedPlugin, Stamp, PathBuf)>,
    timeout: Duration,
}

/// The result of a probe.
#[derive(Debug)]
pub(super) struct Probed {
    plugin: ChainedPlugin,
    stamp: Stamp,
    outcome: Result<(), ProbeError>,
}

impl ChainedPlugins {
    /// Whether every binary that is installed now has been probed, and no other one is known.
    pub(super) fn are_probed(&self, bin_dir: &Path) -> bool {
        let probed = self.probed.iter().map(|(plugin, support)| (*plugin, support.stamp));
        probed.eq(installed(bin_dir))
    }

    /// The plugins because of which 1.1.0 is not offered.
    pub(super) fn limited_by(&self) -> Vec<String> {
        let limiting = self.probed.iter().filter(|(_, support)| !support.supports);
        limiting.map(|(plugin, _)| plugin.name().to_owned()).collect()
    }

    /// Whether the list is out of date.
    pub(super) const fn have_changed(&self) -> bool {
        self.changed
    }

    /// Forgets plugins that are gone, and returns those to probe; none while a probe is running. `now` is monotonic.
    pub(super) fn start_probe(&mut self, bin_dir: &Path, now: Duration) -> Option<Probe> {
        let installed: BTreeMap<ChainedPlugin, Stamp> = installed(bin_dir).collect();
        let known = self.probed.len();
        self.probed.retain(|plugin, _| installed.contains_key(plugin));
        self.changed |= self.probed.len() != known;
        let is_due = |plugin: &ChainedPlugin, stamp: &Stamp| {
            let known = self.probed.get(plugin).filter(|known| known.stamp == *stamp);
            known.is_none_or(|known| known.retry_at.is_some_and(|at| at <= now))
        };
        let due = installed.into_iter().filter(|(plugin, stamp)| is_due(plugin, stamp));
        let plugins: Vec<_> =
            due.map(|(plugin, stamp)| (plugin, stamp, bin_dir.join(plugin.name()))).collect();
        if plugins.is_empty() || self.probing {
            return None;
        }
        self.probing = true;
        Some(Probe { plugins, timeout: VERSION_TIMEOUT })
    }

    /// Takes the result of a probe.
    pub(super) fn finish_probe(&mut self, results: Vec<Probed>, now: Duration) {
        self.probing = false;
        for Probed { plugin, stamp, outcome } in results {
            let former = self.probed.get(&plugin);
            let supports = outcome.is_ok();
            let is_news = former.is_none_or(|former| former.stamp != stamp || former.supports != supports);
            let retry = matches!(outcome, Err(ProbeError::Timeout { .. } | ProbeError::Start { .. }));
            if let (Err(error), true) = (&outcome, is_news) {
                report_unsupported(plugin, error);
            }
            self.changed |= is_news;
            let retry_at = retry.then_some(now + PROBE_RETRY);
            self.probed.insert(plugin, Support { stamp, supports, retry_at });
        }
    }
}

impl Probe {
    /// Runs the plugins one after the other, outside the loop. A plugin that can't even be killed counts as one that does
    /// not answer.
    pub(super) async fn run(self) -> Vec<Probed> {
        let Self { plugins, timeout } = self;
        let all = plugins.clone();
        let probes = tokio::task::spawn_blocking(move || {
            let probe = |(plugin, stamp, path): (ChainedPlugin, Stamp, PathBuf)| Probed {
                plugin,
                stamp,
                outcome: require_version(&path, SpecVersion::V1_1_0, timeout),
            };
            plugins.into_iter().map(probe).collect()
        });
        let limit = timeout.saturating_mul(u32::try_from(all.len() + 1).unwrap_or(u32::MAX));
        match tokio::time::timeout(limit, probes).await {
            Ok(Ok(results)) => results,
            Ok(Err(_)) | Err(_) => all
                .into_iter()
                .map(|(plugin, stamp, _)| Probed {
                    plugin,
                    stamp,
                    outcome: Err(ProbeError::Timeout { timeout }),
                })
                .collect(),
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
        && config.cni_bin_dir.join(LOOPBACK).symlink_metadata().is_ok()
}

/// Installs the plugin, and `loopback` where there is none, then the configuration that names the plugin: in this order a
/// runtime that sees the configuration finds both.
pub(super) fn install(config: &Config, chained: &mut ChainedPlugins) -> Result<bool, CniFilesError> {
    let source = plugin_source().map_err(|source| CniFilesError::Find { source })?;
    // The plugin last: what is the same as the one that is installed is known to be ours.
    let mut copied = false;
    if is_loopback_ours(&config.cni_bin_dir) {
        copied |= copy(&source, &config.cni_bin_dir.join(LOOPBACK))?;
    }
    copied |= copy(&source, &config.cni_bin_dir.join(PLUGIN))?;
    let text = list(config.run_dir.join(NODE_FILE), chained);
    let written = file::replace(&config.cni_conf_dir.join(CONFLIST), text.as_bytes(), 0o644)?;
    chained.changed = false;
    Ok(copied || written)
}

fn list(node_file: PathBuf, chained: &ChainedPlugins) -> String {
    cni::conflist::render(&cni::conflist::Options {
        node_file,
        chained: chained.probed.keys().copied().collect(),
        chained_support_1_1_0: chained.probed.values().all(|support| support.supports),
        ..cni::conflist::Options::default()
    })
}

/// Whether the name `loopback` is free, or leads to a plugin of ours. One of the node's stays, and so does a link to one,
/// even if it leads to where this process can't see.
pub(crate) fn is_loopback_ours(bin_dir: &Path) -> bool {
    let loopback = bin_dir.join(LOOPBACK);
    let len = match loopback.symlink_metadata() {
        Ok(found) if found.is_file() => found.len(),
        Ok(_) => return false,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    let ours = [Some(bin_dir.join(PLUGIN)), plugin_source().ok()].into_iter().flatten();
    let same = |path: PathBuf| {
        std::fs::metadata(&path).is_ok_and(|found| found.len() == len)
            && matches!((std::fs::read(&path), std::fs::read(&loopback)), (Ok(one), Ok(other)) if one == other)
    };
    ours.into_iter().any(same)
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

    /// Probes what is due at `now` seconds; returns the number of plugins that were.
    async fn probe(chained: &mut ChainedPlugins, dir: &Path, timeout: Duration, now: u64) -> usize {
        let now = Duration::from_secs(now);
        let Some(probe) = chained.start_probe(dir, now) else { return 0 };
        assert!(chained.start_probe(dir, now).is_none(), "one probe at a time");
        let results = Probe { timeout, ..probe }.run().await;
        let count = results.len();
        chained.finish_probe(results, now);
        count
    }

    #[tokio::test]
    async fn the_list_offers_1_1_0_only_if_every_chained_plugin_supports_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut chained = ChainedPlugins::default();
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0", "1.1.0"], "without chained plugins");
        for (script, versions, timeout) in [
            (NEW, &["0.4.0", "1.0.0", "1.1.0"][..], LONG),
            (OLD, &["0.4.0", "1.0.0"], LONG),
            ("echo 'not json, but longer than before'", &["0.4.0", "1.0.0"], LONG),
            ("sleep 3600", &["0.4.0", "1.0.0"], Duration::from_millis(500)),
        ] {
            install(dir.path(), "bandwidth", script);
            assert!(!chained.are_probed(dir.path()), "{script}");
            let started = Instant::now();
            probe(&mut chained, dir.path(), timeout, 0).await;
            assert!(started.elapsed() < LONG, "{script}");
            assert!(chained.are_probed(dir.path()) && chained.have_changed(), "{script}");
            let (plugins, offered) = rendered(&chained);
            assert_eq!(plugins, ["mesh-cni", "bandwidth"]);
            assert_eq!(offered, versions, "{script}");
            let limited = versions.len() == 2;
            assert_eq!(chained.limited_by(), if limited { vec!["bandwidth"] } else { Vec::new() });
        }
        std::fs::remove_file(dir.path().join("bandwidth")).unwrap();
        assert!(!chained.are_probed(dir.path()));
        assert_eq!(probe(&mut chained, dir.path(), LONG, 0).await, 0);
        assert!(chained.are_probed(dir.path()));
        assert_eq!(rendered(&chained).0, ["mesh-cni"]);
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0", "1.1.0"]);
    }

    #[tokio::test]
    async fn a_plugin_that_does_not_answer_in_time_is_probed_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let slow = dir.path().join("slow");
        std::fs::write(&slow, "").unwrap();
        install(dir.path(), "bandwidth", &format!("[ -e {} ] && sleep 3600; {NEW}", slow.display()));
        let mut chained = ChainedPlugins::default();
        assert_eq!(probe(&mut chained, dir.path(), Duration::from_millis(500), 0).await, 1);
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0"]);
        std::fs::remove_file(&slow).unwrap();
        assert_eq!(probe(&mut chained, dir.path(), LONG, PROBE_RETRY.as_secs() - 1).await, 0);
        assert_eq!(probe(&mut chained, dir.path(), LONG, PROBE_RETRY.as_secs()).await, 1);
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(probe(&mut chained, dir.path(), LONG, 2 * PROBE_RETRY.as_secs()).await, 0);
    }

    #[test]
    fn a_loopback_of_the_node_s_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let loopback = dir.path().join(LOOPBACK);
        assert!(is_loopback_ours(dir.path()), "there is none");
        std::fs::write(dir.path().join(PLUGIN), "ours").unwrap();
        std::fs::write(&loopback, "ours").unwrap();
        assert!(is_loopback_ours(dir.path()));
        std::fs::write(&loopback, "them").unwrap();
        assert!(!is_loopback_ours(dir.path()));
        std::fs::remove_file(&loopback).unwrap();
        std::os::unix::fs::symlink("/nowhere/in/this/container", &loopback).unwrap();
        assert!(!is_loopback_ours(dir.path()), "a link that the runtime may be able to follow");
    }

    #[tokio::test]
    async fn portmap_is_not_chained() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "portmap", OLD);
        let mut chained = ChainedPlugins::default();
        assert_eq!(probe(&mut chained, dir.path(), LONG, 0).await, 0);
        assert_eq!(rendered(&chained).0, ["mesh-cni"]);
        assert_eq!(rendered(&chained).1, ["0.4.0", "1.0.0", "1.1.0"]);
    }

    #[tokio::test]
    async fn a_binary_is_probed_once() {
        let dir = tempfile::tempdir().unwrap();
        let calls = dir.path().join("calls");
        let count = || std::fs::read_to_string(&calls).unwrap().lines().count();
        let script = format!("echo >>{}; {NEW}", calls.display());
        install(dir.path(), "bandwidth", &script);
        let mut chained = ChainedPlugins::default();
        probe(&mut chained, dir.path(), LONG, 0).await;
        probe(&mut chained, dir.path(), LONG, 0).await;
        assert_eq!(count(), 1);
        install(dir.path(), "bandwidth", &format!("{script} # another binary"));
        probe(&mut chained, dir.path(), LONG, 0).await;
        assert_eq!(count(), 2);
    }
}
