//! The plugin `loopback`, which some runtimes call before any other (containerd up to 1.7, CRI-O): sets `lo` up.
//!
//! Where the node has none, ours is installed under that name. Runtimes call it with a configuration of their own, of CNI
//! 0.1.0 (which has no version in it) to 1.1.0.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use linux::netns::NetworkNamespace;
use linux::veth::{self, End};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::CommandName;
use crate::error::CniError;

/// Name of its binary.
pub const PLUGIN: &str = "loopback";
/// The versions that it supports, the oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The link.
const LINK: &str = "lo";

/// Its configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conf {
    #[serde(default = "first_version")]
    cni_version: String,
    /// The result of plugins before it, which it passes on.
    prev_result: Option<Value>,
}

fn first_version() -> String {
    VERSIONS[0].to_owned()
}

/// Performs one call, as [`run`](crate::run) does for the plugin of the mesh.
pub fn run(environment: impl Fn(&str) -> Option<String>, input: impl Read) -> Result<String, String> {
    let mut text = Vec::new();
    let outcome = crate::read(input, &mut text).and_then(|()| perform(&environment, &text));
    outcome.map_err(|error| error.render_in(&version_of(&text), error.code()))
}

/// The version of an input that may otherwise be anything.
fn version_of(input: &[u8]) -> String {
    let found = serde_json::from_slice::<Conf>(input).map(|conf| conf.cni_version);
    found.ok().filter(|version| VERSIONS.contains(&version.as_str())).unwrap_or_else(|| "1.0.0".to_owned())
}

fn perform(environment: &impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<String, CniError> {
    let variable = |name: &'static str| environment(name).filter(|value| !value.is_empty());
    let name = variable("CNI_COMMAND").unwrap_or_default();
    let Some(command) = CommandName::parse(&name) else {
        return Err(CniError::Environment { name: "CNI_COMMAND", found: name.chars().take(32).collect() });
    };
    if command == CommandName::Version {
        let document = json!({"cniVersion": version_of(input), "supportedVersions": VERSIONS});
        return Ok(format!("{document:#}\n"));
    }
    let conf: Conf = serde_json::from_slice(input).map_err(|source| CniError::Decode { source })?;
    if !VERSIONS.contains(&conf.cni_version.as_str()) {
        return Err(CniError::Version { found: conf.cni_version.chars().take(32).collect() });
    }
    let netns = || {
        let path = variable("CNI_NETNS").map(PathBuf::from);
        path.ok_or(CniError::Environment { name: "CNI_NETNS", found: String::new() })
    };
    let open = |path: PathBuf| {
        NetworkNamespace::open(&path).map_err(|source| CniError::NoNamespace { path, source })
    };
    match command {
        CommandName::Add => {
            let path = netns()?;
            let namespace = open(path.clone())?;
            let end = namespace.run(|| veth::set_loopback(true).and_then(|()| veth::inspect(LINK)))??;
            let sandbox = path.display().to_string();
            let result = conf.prev_result.unwrap_or_else(|| {
                result(&conf.cni_version, &sandbox, &end.map(|end| end.addresses).unwrap_or_default())
            });
            Ok(format!("{result:#}\n"))
        }
        CommandName::Check => {
            let end = open(netns()?)?.run(|| veth::inspect(LINK))??;
            if end.is_some_and(|End { up, .. }| up) {
                return Ok(String::new());
            }
            Err(CniError::Mismatch { what: "the loopback", expected: "lo to be up".to_owned() })
        }
        CommandName::Del => {
            // The namespace may be gone, and then so is what ADD did.
            if let Some(path) = variable("CNI_NETNS").map(PathBuf::from)
                && NetworkNamespace::is_at(&path)?
            {
                open(path)?.run(|| veth::set_loopback(false))??;
            }
            Ok(String::new())
        }
        CommandName::Status | CommandName::Gc | CommandName::Version => Ok(String::new()),
    }
}

/// The result in the shape of each version (section 5 of the specification, and its earlier releases).
fn result(version: &str, sandbox: &str, addresses: &[IpAddr]) -> Value {
    let prefix = |address: IpAddr| format!("{address}/{}", if address.is_ipv4() { 8 } else { 128 });
    let mut result = json!({"cniVersion": version, "dns": {}});
    if version.starts_with("0.1.") || version.starts_with("0.2.") {
        for address in addresses {
            let family = if address.is_ipv4() { "ip4" } else { "ip6" };
            result[family] = json!({"ip": prefix(*address)});
        }
        return result;
    }
    let ip = |address: &IpAddr| {
        let mut ip = json!({"address": prefix(*address), "interface": 0});
        if version.starts_with("0.") {
            ip["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
        }
        ip
    };
    result["interfaces"] = json!([{"name": LINK, "mac": "00:00:00:00:00:00", "sandbox": sandbox}]);
    result["ips"] = addresses.iter().map(ip).collect();
    result
}
