//! The network configuration on standard input, checked.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::call::Attachment;
use crate::error::CniError;
use crate::node_file::MTU;

/// A version of the specification that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.4.0
    V0_4_0,
    /// 1.0.0
    V1_0_0,
    /// 1.1.0
    V1_1_0,
}

impl SpecVersion {
    /// All versions, the oldest first.
    pub const ALL: [Self; 3] = [Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// The plugin's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    /// Version that input and output are in.
    pub version: SpecVersion,
    /// Where the daemon writes what the plugin must know.
    pub node_file: PathBuf,
    /// Where the plugin keeps who has which address.
    pub state_dir: PathBuf,
    /// MTU of pods; none takes the daemon's.
    pub mtu: Option<u32>,
    /// What ADD returned, for CHECK; DEL and ADD don't read it.
    pub previous: Option<Previous>,
    /// What GC leaves alone; none if the runtime named nothing.
    pub valid: Option<Vec<Attachment>>,
}

/// The parts of a former result that CHECK compares with the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Previous {
    /// Interfaces, in the order that addresses refer to.
    #[serde(default)]
    pub interfaces: Vec<PreviousInterface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<PreviousIp>,
}

/// An interface of a former result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PreviousInterface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default)]
    pub mac: Option<String>,
    /// The namespace it is in; empty for the node's own.
    #[serde(default)]
    pub sandbox: Option<String>,
}

/// An address of a former result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PreviousIp {
    /// The address with its length.
    pub address: IpNetwork,
    /// Its gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Index of its interface.
    #[serde(default)]
    pub interface: Option<usize>,
}

/// The configuration as it stands in the input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    cni_version: Option<String>,
    name: Option<String>,
    node_file: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    mtu: Option<u32>,
    prev_result: Option<serde_json::Value>,
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
    /// Where the daemon writes the node file unless told otherwise.
    pub const NODE_FILE: &str = "/run/meshd/node.json";
    /// Where the plugin keeps its state unless told otherwise.
    pub const STATE_DIR: &str = "/var/lib/cni/meshd";

    /// Reads and checks a configuration.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let raw: RawConf = serde_json::from_slice(input).map_err(|source| CniError::Decode { source })?;
        // Without a version the configuration is of 0.1.0 or 0.2.0 (CNI specification, section 1).
        let text = raw.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
        let Some(version) = SpecVersion::parse(&text) else {
            return Err(CniError::Version { found: text.chars().take(32).collect() });
        };
        let invalid = |option, expected| Err(CniError::Conf { option, expected });
        if !raw.name.as_deref().is_some_and(is_identifier) {
            return invalid("name", "a letter or digit, then letters, digits, '_', '.' and '-'");
        }
        let asked = |value: &Option<serde_json::Value>| match value {
            None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => None,
            Some(serde_json::Value::Object(map)) if map.is_empty() => None,
            Some(other) => Some(other.to_string().chars().take(64).collect()),
        };
        if let Some(value) = asked(&raw.ipam) {
            return Err(CniError::Unsupported {
                option: "ipam",
                value,
                instead: "the plugin gives out the node's podCIDRs",
            });
        }
        if let Some(value) = asked(&raw.ip_masq) {
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
            return invalid("mtu", "1280 to 65535 bytes");
        }
        // A former result that can't be read matters to CHECK alone, which says so.
        let previous = raw.prev_result.and_then(|value| serde_json::from_value(value).ok());
        let valid = raw.valid_attachments.map(|list| {
            list.into_iter()
                .map(|raw| Attachment { container: raw.container, interface: raw.ifname })
                .collect()
        });
        Ok(Self {
            version,
            node_file: raw.node_file.unwrap_or_else(|| Self::NODE_FILE.into()),
            state_dir: raw.state_dir.unwrap_or_else(|| Self::STATE_DIR.into()),
            mtu: raw.mtu,
            previous,
            valid,
        })
    }

    /// The configuration of a VERSION call, of which only the version counts, if there is one that we speak.
    pub(crate) fn for_version(input: &[u8]) -> Self {
        Self {
            version: version_of(input).unwrap_or(SpecVersion::V1_1_0),
            node_file: Self::NODE_FILE.into(),
            state_dir: Self::STATE_DIR.into(),
            mtu: None,
            previous: None,
            valid: None,
        }
    }
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: what the CNI specification (sections 1 and 2) says
/// of the names of networks and of the ids of containers.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) && text.len() <= 255
}

/// The version of an input that may otherwise be anything.
pub(crate) fn version_of(input: &[u8]) -> Option<SpecVersion> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Only {
        cni_version: String,
    }
    SpecVersion::parse(&serde_json::from_slice::<Only>(input).ok()?.cni_version)
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
        assert_eq!(conf.node_file, PathBuf::from(Conf::NODE_FILE));
        assert_eq!(conf.previous, None);
        assert_eq!(
            conf.valid,
            Some(vec![Attachment { container: "c".to_owned(), interface: "eth0".to_owned() }])
        );
    }
}
