//! What the CNI side needs: the node file, the network configuration and the plugin itself.

use std::io;
use std::path::{Path, PathBuf};

use cni::node_file::NodeFile;

use crate::config::Config;
use crate::file::{self, FileError};

/// Name of the configuration in the runtime's directory; runtimes take the first by name.
pub(crate) const CONFLIST: &str = "10-meshd.conflist";
/// Name of the plugin's binary.
pub(crate) const PLUGIN: &str = "mesh-cni";
/// Name of the node file in the run directory.
pub(crate) const NODE_FILE: &str = "node.json";

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
pub(super) fn install(config: &Config) -> Result<bool, CniFilesError> {
    let source = plugin_source().map_err(|source| CniFilesError::Find { source })?;
    let target = config.cni_bin_dir.join(PLUGIN);
    let copied = copy(&source, &target)?;
    let has = |name: &str| config.cni_bin_dir.join(name).is_file();
    let options = cni::conflist::Options {
        node_file: config.run_dir.join(NODE_FILE),
        portmap: has("portmap"),
        bandwidth: has("bandwidth"),
        ..cni::conflist::Options::default()
    };
    let text = cni::conflist::render(&options);
    let written = file::replace(&config.cni_conf_dir.join(CONFLIST), text.as_bytes(), 0o644)?;
    Ok(copied || written)
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
