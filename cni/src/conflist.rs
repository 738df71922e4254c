//! The network configuration that the daemon puts before the container runtime.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::conf;
use crate::version::SpecVersion;

/// The network's name.
pub const NETWORK: &str = "meshd";
/// Name of the plugin's binary.
pub const PLUGIN: &str = "mesh-cni";

/// A plugin that may follow ours in the list. It is named in the list if it is installed. Host ports are our own plugin's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainedPlugin {
    /// Pods' bandwidth annotations.
    Bandwidth,
}

impl ChainedPlugin {
    /// All of them, in their order in the list.
    pub const ALL: [Self; 1] = [Self::Bandwidth];

    /// Name of its binary.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
        }
    }

    fn conf(self) -> Value {
        let capability = match self {
            Self::Bandwidth => "bandwidth",
        };
        json!({"type": self.name(), "capabilities": {capability: true}})
    }
}

/// What the configuration depends on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the daemon writes the node file.
    pub node_file: PathBuf,
    /// Where the plugin keeps its state.
    pub state_dir: PathBuf,
    /// The installed plugins that follow ours.
    pub chained: Vec<ChainedPlugin>,
    /// Whether each of them supports 1.1.0 ([`require_version`](crate::probe::require_version)).
    pub chained_support_1_1_0: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_file: conf::NODE_FILE.into(),
            state_dir: conf::STATE_DIR.into(),
            chained: Vec::new(),
            chained_support_1_1_0: true,
        }
    }
}

/// Renders the configuration.
///
/// `cniVersion` is 1.0.0, the latest that containerd 1.6 and 1.7 and CRI-O before 1.31 read. `cniVersions` lists all:
/// runtimes that know the key (CNI 1.1) take the highest that they support themselves, and from 1.1.0 on they call GC
/// and STATUS; the others ignore it. All plugins of a list are called with one version, so 1.1.0 is listed only if
/// all support it.
pub fn render(options: &Options) -> String {
    let mut plugins = vec![json!({
        "type": PLUGIN, "nodeFile": options.node_file, "stateDir": options.state_dir,
        "capabilities": {"portMappings": true},
    })];
    plugins.extend(options.chained.iter().map(|plugin| plugin.conf()));
    let mut versions = SpecVersion::ALL.to_vec();
    if !options.chained_support_1_1_0 {
        versions.retain(|version| *version < SpecVersion::V1_1_0);
    }
    let list = json!({
        "cniVersion": SpecVersion::V1_0_0.as_str(),
        "cniVersions": versions.into_iter().map(SpecVersion::as_str).collect::<Vec<_>>(),
        "name": NETWORK,
        "plugins": plugins,
    });
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(options: &Options) -> Value {
        serde_json::from_str(&render(options)).unwrap()
    }

    #[test]
    fn only_installed_plugins_are_listed() {
        let types = |list: &Value| -> Vec<String> {
            let plugins = list["plugins"].as_array().unwrap();
            plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
        };
        let all = list(&Options { chained: ChainedPlugin::ALL.to_vec(), ..Options::default() });
        assert_eq!(types(&all), ["mesh-cni", "bandwidth"]);
        assert_eq!(all["plugins"][0]["capabilities"], json!({"portMappings": true}));
        assert_eq!(types(&list(&Options::default())), ["mesh-cni"]);
    }

    #[test]
    fn the_plugin_reads_what_is_rendered_in_every_version() {
        let options = Options {
            node_file: "/run/other/node.json".into(),
            state_dir: "/var/lib/other".into(),
            ..Options::default()
        };
        let list = list(&options);
        for version in list["cniVersions"].as_array().unwrap() {
            let mut conf = list["plugins"][0].clone();
            conf["cniVersion"] = version.clone();
            conf["name"] = list["name"].clone();
            let conf = conf::Conf::parse(conf.to_string().as_bytes()).unwrap();
            assert_eq!(
                (conf.node_file, conf.state_dir),
                (options.node_file.clone(), options.state_dir.clone())
            );
        }
    }

    #[test]
    fn a_version_is_listed_only_if_all_plugins_support_it() {
        let versions = |options: &Options| list(options)["cniVersions"].clone();
        let with = |chained_support_1_1_0| Options {
            chained: vec![ChainedPlugin::Bandwidth],
            chained_support_1_1_0,
            ..Options::default()
        };
        assert_eq!(versions(&Options::default()), json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(versions(&with(true)), json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(versions(&with(false)), json!(["0.4.0", "1.0.0"]));
        assert_eq!(list(&with(false))["cniVersion"], "1.0.0");
    }
}
