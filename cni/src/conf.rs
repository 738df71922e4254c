//! The network configuration on standard input, checked.

use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::attachment::{Attachment, is_identifier};
use crate::error::CniError;
use crate::node_file::{MTU, MTU_EXPECTED};
use crate::version::{SpecVersion, version_of};

/// Where the daemon writes the node file unless the configuration says otherwise.
pub(crate) const NODE_FILE: &str = "/run/meshd/node.json";
/// Where the plugin keeps its state unless the configuration says otherwise.
pub const STATE_DIR: &str = "/var/lib/cni/meshd";

/// The plugin's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conf {
    /// Version that input and output are in.
    pub(crate) version: SpecVersion,
    /// The network's name.
    pub(crate) name: String,
    /// Where the daemon writes what the plugin must know.
    pub(crate) node_file: PathBuf,
    /// Where the plugin keeps who has which address.
    pub(crate) state_dir: PathBuf,
    /// MTU of pods; none takes the daemon's.
    pub(crate) mtu: Option<u32>,
    /// What ADD returned, for CHECK; DEL and ADD don't read it.
    pub(crate) previous: Option<Previous>,
    /// The host ports as the runtime gave them; only ADD and CHECK read them, so that a mistake never keeps a pod from
    /// being deleted.
    pub(crate) port_mappings: Option<serde_json::Value>,
    /// What GC leaves alone; none if the runtime named nothing.
    pub(crate) valid: Option<Vec<Attachment>>,
}

/// The parts of a former result that CHECK compares with the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Previous {
    /// Interfaces.
    #[serde(default)]
    pub(crate) interfaces: Vec<PreviousInterface>,
    /// Addresses.
    #[serde(default)]
    pub(crate) ips: Vec<PreviousIp>,
}

/// An interface of a former result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct PreviousInterface {
    /// Its name.
    pub(crate) name: String,
    /// Its Ethernet address.
    #[serde(default)]
    pub(crate) mac: Option<String>,
}

/// An address of a former result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct PreviousIp {
    /// The address with its length.
    pub(crate) address: IpNetwork,
}

/// The configuration as it is in the input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    cni_version: Option<String>,
    name: Option<String>,
    node_file: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    mtu: Option<u32>,
    prev_result: Option<serde_json::Value>,
    runtime_config: Option<serde_json::Value>,
    ipam: Option<serde_json::Value>,
    ip_masq: Option<serde_json::Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

impl Conf {
    /// Reads and checks a configuration.
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        let raw: RawConf = serde_json::from_slice(input).map_err(|source| CniError::Decode { source })?;
        // Without a version the configuration is of 0.1.0 or 0.2.0 (CNI specification, section 1).
        let text = raw.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
        let Some(version) = SpecVersion::parse(&text) else {
            return Err(CniError::Version { found: text.chars().take(32).collect() });
        };
        let invalid = |option, expected| Err(CniError::Conf { option, expected });
        let Some(name) = raw.name.filter(|name| is_identifier(name)) else {
            return invalid("name", "a letter or digit, then letters, digits, '_', '.' and '-'");
        };
        let requested = |value: &Option<serde_json::Value>| match value {
            None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => None,
            Some(serde_json::Value::Object(map)) if map.is_empty() => None,
            Some(other) => Some(other.to_string().chars().take(64).collect()),
        };
        if let Some(value) = requested(&raw.ipam) {
            return Err(CniError::Unsupported {
                option: "ipam",
                value,
                instead: "the plugin gives out the node's podCIDRs",
            });
        }
        if let Some(value) = requested(&raw.ip_masq) {
            return Err(CniError::Unsupported { option: "ipMasq", value, instead: "the daemon masquerades" });
        }
        let absolute = |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| path.is_absolute());
        if !absolute(&raw.node_file) {
            return invalid("nodeFile", "an absolute path");
        }
        if !absolute(&raw.state_dir) {
            return invalid("stateDir", "an absolute path");
        }
        if raw.mtu.is_some_and(|mtu| !MTU.contains(&mtu)) {
            return invalid("mtu", MTU_EXPECTED);
        }
        // A previous result that can't be read matters to CHECK alone, which reports it.
        let previous = raw.prev_result.and_then(|value| serde_json::from_value(value).ok());
        let valid = raw.valid_attachments.map(|list| {
            list.into_iter()
                .map(|raw| Attachment { container: raw.container, interface: raw.ifname })
                .collect()
        });
        let port_mappings =
            raw.runtime_config.and_then(|mut given| Some(given.get_mut("portMappings")?.take()));
        Ok(Self {
            version,
            name,
            node_file: raw.node_file.unwrap_or_else(|| NODE_FILE.into()),
            state_dir: raw.state_dir.unwrap_or_else(|| STATE_DIR.into()),
            mtu: raw.mtu,
            previous,
            port_mappings,
            valid,
        })
    }

    /// Whether the runtime names host ports.
    pub(crate) fn names_ports(&self) -> bool {
        matches!(&self.port_mappings, Some(serde_json::Value::Array(list)) if !list.is_empty())
    }

    /// The configuration of a VERSION call, of which only the version counts, if it is a supported one.
    pub(crate) fn for_version(input: &[u8]) -> Self {
        Self {
            version: version_of(input).unwrap_or(SpecVersion::V1_1_0),
            name: String::new(),
            node_file: NODE_FILE.into(),
            state_dir: STATE_DIR.into(),
            mtu: None,
            previous: None,
            port_mappings: None,
            valid: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named() {
        for (text, code) in [
            (r#"{"cniVersion":"1.0.0"}"#, 7),
            (r#"{"cniVersion":"0.3.1","name":"n"}"#, 1),
            (r#"{"name":"n"}"#, 1),
            (r#"{"cniVersion":"9.0.0","name":"n"}"#, 1),
            (r#"{"cniVersion":"1.0.0","name":"n","mtu":9}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n","stateDir":"x"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n","nodeFile":"x"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"../n"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"n","mtu":"1400"}"#, 6),
            (r#"{"cniVersion":"1.0.0","name":"n","ipam":{"type":"host-local"}}"#, 2),
            (r#"{"cniVersion":"1.0.0","name":"n","ipMasq":true}"#, 2),
            (r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"ifname":"eth0"}]}"#, 6),
            ("", 6),
            ("[", 6),
            ("null", 6),
        ] {
            assert_eq!(Conf::parse(text.as_bytes()).unwrap_err().code(), code, "{text}");
        }
    }

    #[test]
    fn unknown_fields_of_runtimes_and_lists_are_passed_over() {
        let text = r#"{"cniVersion":"1.1.0","name":"n","type":"mesh-cni","runtimeConfig":{"portMappings":[]},
            "capabilities":{"x":true},"ipam":{},"ipMasq":false,"prevResult":7,"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}"#;
        let conf = Conf::parse(text.as_bytes()).unwrap();
        assert_eq!(conf.version, SpecVersion::V1_1_0);
        assert_eq!(conf.node_file, PathBuf::from(NODE_FILE));
        assert_eq!(conf.previous, None);
        assert_eq!(
            conf.valid,
            Some(vec![Attachment { container: "c".to_owned(), interface: "eth0".to_owned() }])
        );
    }
}
