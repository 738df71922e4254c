//! The network configuration that the daemon puts before the container runtime.

use std::path::PathBuf;

use serde_json::json;

use crate::conf::Conf;

/// What goes into the configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the daemon writes the node file.
    pub node_file: PathBuf,
    /// Where the plugin keeps its state.
    pub state_dir: PathBuf,
    /// Whether the `portmap` plugin is there, for host ports.
    pub portmap: bool,
    /// Whether the `bandwidth` plugin is there, for pods' bandwidth annotations.
    pub bandwidth: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_file: Conf::NODE_FILE.into(),
            state_dir: Conf::STATE_DIR.into(),
            portmap: false,
            bandwidth: false,
        }
    }
}

/// Writes the configuration. Its version is 1.0.0, which every runtime that is still supported reads;
/// runtimes that speak 1.1.0 use GC and STATUS with it as soon as they find it there.
pub fn render(options: &Options) -> String {
    let mut plugins = vec![json!({
        "type": "mesh-cni",
        "nodeFile": options.node_file,
        "stateDir": options.state_dir,
    })];
    if options.portmap {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    if options.bandwidth {
        plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
    }
    let list = json!({"cniVersion": "1.0.0", "name": "meshd", "plugins": plugins});
    format!("{list:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_that_are_not_there_are_not_named() {
        let all = render(&Options { portmap: true, bandwidth: true, ..Options::default() });
        assert!(all.contains("portmap") && all.contains("bandwidth"));
        let own = render(&Options::default());
        assert!(!own.contains("portmap") && !own.contains("bandwidth"));
        let list: serde_json::Value = serde_json::from_str(&own).unwrap();
        let mut conf = list["plugins"][0].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        conf["name"] = list["name"].clone();
        Conf::parse(conf.to_string().as_bytes()).unwrap();
    }
}
