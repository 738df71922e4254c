//! The network configuration that the daemon puts before the container runtime.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::json;

use crate::conf::{Conf, SpecVersion};

/// The network's name.
pub const NETWORK: &str = "meshd";
/// Name of the plugin's binary.
pub const PLUGIN: &str = "mesh-cni";

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
    /// Whether those of them that are there speak 1.1.0 ([`speaks`] tells). Without any it does not matter.
    pub chained_speak_1_1_0: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_file: Conf::NODE_FILE.into(),
            state_dir: Conf::STATE_DIR.into(),
            portmap: false,
            bandwidth: false,
            chained_speak_1_1_0: false,
        }
    }
}

/// Writes the configuration.
///
/// `cniVersion` is 1.0.0, the latest that containerd 1.6 and 1.7 and CRI-O before 1.31 read. `cniVersions`
/// names all: runtimes that know the key (CNI 1.1) take the highest that they speak themselves, and from 1.1.0
/// on they call GC and STATUS; the others pass over it. All plugins of a list are called with one version, so
/// 1.1.0 is named only if all speak it.
pub fn render(options: &Options) -> String {
    let mut plugins =
        vec![json!({"type": PLUGIN, "nodeFile": options.node_file, "stateDir": options.state_dir})];
    if options.portmap {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    if options.bandwidth {
        plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
    }
    let mut versions = SpecVersion::ALL.to_vec();
    if plugins.len() > 1 && !options.chained_speak_1_1_0 {
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

/// Asks a plugin which versions it speaks, and tells whether `version` is one of them. Blocks for as long as
/// the plugin runs. Fails if it can't be started; a plugin that answers with anything else speaks none.
pub fn speaks(plugin: &Path, version: SpecVersion) -> io::Result<bool> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        supported_versions: Vec<String>,
    }
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // Plugins may answer without reading.
        let _ = write!(input, "{}", json!({"cniVersion": SpecVersion::V1_0_0.as_str()}));
    }
    let output = child.wait_with_output()?;
    let answer: Option<Answer> = serde_json::from_slice(&output.stdout).ok();
    Ok(output.status.success()
        && answer.is_some_and(|answer| answer.supported_versions.iter().any(|text| text == version.as_str())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::Value;

    use super::*;

    fn list(options: &Options) -> Value {
        serde_json::from_str(&render(options)).unwrap()
    }

    #[test]
    fn plugins_that_are_not_there_are_not_named() {
        let types = |list: &Value| -> Vec<String> {
            let plugins = list["plugins"].as_array().unwrap();
            plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
        };
        let all = list(&Options { portmap: true, bandwidth: true, ..Options::default() });
        assert_eq!(types(&all), ["mesh-cni", "portmap", "bandwidth"]);
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
            let conf = Conf::parse(conf.to_string().as_bytes()).unwrap();
            assert_eq!(
                (conf.node_file, conf.state_dir),
                (options.node_file.clone(), options.state_dir.clone())
            );
        }
    }

    #[test]
    fn a_version_is_named_only_if_all_plugins_speak_it() {
        let versions = |options: &Options| list(options)["cniVersions"].clone();
        let with = |chained_speak_1_1_0| Options { portmap: true, chained_speak_1_1_0, ..Options::default() };
        assert_eq!(versions(&Options::default()), json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(versions(&with(true)), json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(versions(&with(false)), json!(["0.4.0", "1.0.0"]));
        assert_eq!(list(&with(false))["cniVersion"], "1.0.0");
    }

    #[test]
    fn plugins_are_asked_what_they_speak() {
        let folder = tempfile::tempdir().unwrap();
        let plugin = folder.path().join("plugin");
        let speaks_new = |script: &str| {
            std::fs::write(&plugin, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
            speaks(&plugin, SpecVersion::V1_1_0)
        };
        let old = r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#;
        assert!(!speaks_new(old).unwrap());
        assert!(speaks_new(&old.replace("\"0.4.0\"", "\"1.1.0\"")).unwrap());
        assert!(!speaks_new("echo nonsense").unwrap());
        assert!(!speaks_new("exit 1").unwrap());
        assert!(speaks(&folder.path().join("none"), SpecVersion::V1_1_0).is_err());
    }
}
