//! A container runtime's side of the CNI protocol: the configuration list, the calls, the results and errors.
//!
//! After the specification's sections 1 to 5 (`cni.dev/docs/spec`, version 1.1.0). No library of a runtime is used, so
//! what a plugin gets here is what the text of the specification says and nothing more.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::host::Host;

/// Where runtimes search for configuration lists.
pub const CONFIG_DIR: &str = "/etc/cni/net.d";
/// Where runtimes search for plugins.
pub const PLUGIN_DIR: &str = "/opt/cni/bin";

/// A CNI call could not be made, or the plugin refused it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// There is no configuration list (yet).
    #[error("no *.conflist in {CONFIG_DIR} of {0}: its network is not ready")]
    NotReady(String),
    /// A configuration list or a result is not the JSON that the specification wants.
    #[error("parse {what}")]
    Parse {
        /// What was parsed.
        what: String,
        /// Why it can't be.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration list lacks something that the specification demands.
    #[error("{what}: expected {expected}")]
    Shape {
        /// What was parsed.
        what: String,
        /// What it lacks.
        expected: &'static str,
    },
    /// The plugin's binary is in none of the directories.
    #[error("no plugin {plugin} in {path}")]
    NoPlugin {
        /// Its type.
        plugin: String,
        /// The directories, separated by colons.
        path: String,
    },
    /// The plugin answered with an error object.
    #[error("{plugin} {command}: code {code}: {msg} {details}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The code: below 100 the specification's, from 100 the plugin's own.
        code: u64,
        /// Its short text.
        msg: String,
        /// Its long text, often empty.
        details: String,
    },
    /// The plugin failed without an error object, against the specification.
    #[error(
        "{plugin} {command} ended with {status} and no error object; stdout {stdout:?}, stderr {stderr:?}"
    )]
    Mute {
        /// Its type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it printed.
        stdout: String,
        /// What it logged.
        stderr: String,
    },
}

/// A configuration list as read from a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Name of the network.
    pub name: String,
    /// Version of the protocol that the calls use.
    pub version: String,
    /// The plugins' own configurations, in the order of ADD.
    pub plugins: Vec<Map<String, Value>>,
}

/// One interface of one container: what all calls about it have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: a path that the node sees; none for a DEL after the namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// One call of one plugin, spelled out: for tests that want to send something unusual.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// `CNI_COMMAND`.
    pub command: &'static str,
    /// The plugin's binary.
    pub binary: &'a Path,
    /// What it is about; none for STATUS, GC and VERSION.
    pub attachment: Option<&'a Attachment>,
    /// What the plugin reads.
    pub stdin: Vec<u8>,
}

impl Call<'_> {
    /// Runs the plugin in the host and returns what it did, whether it succeeded or not.
    pub fn run(&self, host: &Host) -> Result<Output, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = host
            .command(self.binary)
            .env_clear()
            .env("PATH", path)
            .env("CNI_COMMAND", self.command)
            .env("CNI_PATH", PLUGIN_DIR)
            .input(self.stdin.clone());
        if let Some(attachment) = self.attachment {
            command = command
                .env("CNI_CONTAINERID", &attachment.container_id)
                .env("CNI_IFNAME", &attachment.ifname)
                .env("CNI_NETNS", attachment.netns.as_deref().unwrap_or_else(|| Path::new("")));
        }
        command.output()
    }
}

impl NetworkConfig {
    /// The list that a runtime would take on this host: the first by name in [`CONFIG_DIR`].
    pub fn load(host: &Host) -> Result<Self, Error> {
        let found = host.run(|| first_list(Path::new(CONFIG_DIR)))?.map_err(|source| Error::File {
            action: "read",
            path: CONFIG_DIR.into(),
            source,
        })?;
        let (path, bytes) = found.ok_or_else(|| CniError::NotReady(host.name().to_owned()))?;
        Ok(Self::parse(&path.to_string_lossy(), &bytes)?)
    }

    /// Parses a configuration list; `what` is for messages.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self, CniError> {
        let shape = |expected| CniError::Shape { what: what.to_owned(), expected };
        let list: Value = serde_json::from_slice(bytes)
            .map_err(|source| CniError::Parse { what: what.to_owned(), source })?;
        let text = |key: &str| list.get(key).and_then(Value::as_str).map(str::to_owned);
        let plugins =
            list.get("plugins").and_then(Value::as_array).ok_or_else(|| shape("a list of plugins"))?;
        Ok(Self {
            name: text("name").ok_or_else(|| shape("a name"))?,
            version: text("cniVersion").ok_or_else(|| shape("a cniVersion"))?,
            plugins: plugins
                .iter()
                .map(|plugin| plugin.as_object().filter(|plugin| plugin.contains_key("type")).cloned())
                .collect::<Option<_>>()
                .ok_or_else(|| shape("plugins that are objects with a type"))?,
        })
    }

    /// What one plugin of the list reads on its standard input (specification, section 3, "Deriving execution
    /// configuration"): its own configuration with the list's name and version, without `capabilities`, and with the
    /// previous result or other keys of the call.
    pub fn stdin(&self, plugin: &Map<String, Value>, extra: &[(&str, Value)]) -> Vec<u8> {
        let mut config = plugin.clone();
        config.remove("capabilities");
        config.insert("name".into(), json!(self.name));
        config.insert("cniVersion".into(), json!(self.version));
        for (key, value) in extra {
            config.insert((*key).into(), value.clone());
        }
        Value::Object(config).to_string().into_bytes()
    }

    /// ADD through all plugins; returns the last one's result. On failure the attachment is deleted again, as the
    /// specification asks of runtimes, and the failure of ADD is returned.
    pub fn add(&self, host: &Host, attachment: &Attachment) -> Result<Value, Error> {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            match self.step(host, "ADD", plugin, Some(attachment), &previous(&result)) {
                Ok(next) => result = next,
                Err(error) => {
                    let _the_first_error_counts = self.del(host, attachment, None);
                    return Err(error);
                }
            }
        }
        Ok(result)
    }

    /// CHECK through all plugins with the result of ADD.
    pub fn check(&self, host: &Host, attachment: &Attachment, result: &Value) -> Result<(), Error> {
        let extra = previous(result);
        let mut all = self.plugins.iter();
        all.try_for_each(|plugin| self.step(host, "CHECK", plugin, Some(attachment), &extra).map(drop))
    }

    /// DEL through all plugins in reverse, with the result of ADD if it is known. All are called even if one fails.
    pub fn del(&self, host: &Host, attachment: &Attachment, result: Option<&Value>) -> Result<(), Error> {
        let extra = previous(result.unwrap_or(&Value::Null));
        let calls = self.plugins.iter().rev();
        let outcomes: Vec<_> =
            calls.map(|plugin| self.step(host, "DEL", plugin, Some(attachment), &extra)).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// STATUS of all plugins: whether an ADD could succeed now.
    pub fn status(&self, host: &Host) -> Result<(), Error> {
        self.plugins.iter().try_for_each(|plugin| self.step(host, "STATUS", plugin, None, &[]).map(drop))
    }

    /// GC through all plugins: everything that belongs to other attachments than these goes.
    pub fn gc(&self, host: &Host, valid: &[Attachment]) -> Result<(), Error> {
        let valid: Vec<_> = valid
            .iter()
            .map(|attachment| json!({"containerID": attachment.container_id, "ifname": attachment.ifname}))
            .collect();
        let extra = [("cni.dev/valid-attachments", json!(valid))];
        self.plugins.iter().try_for_each(|plugin| self.step(host, "GC", plugin, None, &extra).map(drop))
    }

    fn step(
        &self,
        host: &Host,
        command: &'static str,
        plugin: &Map<String, Value>,
        attachment: Option<&Attachment>,
        extra: &[(&str, Value)],
    ) -> Result<Value, Error> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let binary = find_plugin(host, kind)?;
        let call = Call { command, binary: &binary, attachment, stdin: self.stdin(plugin, extra) };
        let output = call.run(host)?;
        if output.status.success() {
            return parse_result(kind, &output.stdout).map_err(Error::from);
        }
        Err(refusal(kind, command, &output).into())
    }
}

/// The addresses in a result, IPv4 first.
pub fn addresses(result: &Value) -> Vec<std::net::IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts = ips.iter().filter_map(|ip| ip.get("address")?.as_str()?.split('/').next());
    let mut addresses: Vec<std::net::IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_by_key(std::net::IpAddr::is_ipv6);
    addresses
}

/// The error that a failed plugin reports in its output.
pub fn refusal(plugin: &str, command: &'static str, output: &Output) -> CniError {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let object: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let field = |key: &str| object.as_ref().and_then(|object| object.get(key));
    match (field("code").and_then(Value::as_u64), field("msg").and_then(Value::as_str)) {
        (Some(code), Some(msg)) => CniError::Plugin {
            plugin: plugin.to_owned(),
            command,
            code,
            msg: msg.to_owned(),
            details: field("details").and_then(Value::as_str).unwrap_or_default().to_owned(),
        },
        _ => CniError::Mute {
            plugin: plugin.to_owned(),
            command,
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        },
    }
}

fn previous(result: &Value) -> Vec<(&'static str, Value)> {
    if result.is_null() { Vec::new() } else { vec![("prevResult", result.clone())] }
}

fn parse_result(plugin: &str, stdout: &[u8]) -> Result<Value, CniError> {
    if stdout.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(stdout)
        .map_err(|source| CniError::Parse { what: format!("the result of {plugin}"), source })
}

fn find_plugin(host: &Host, kind: &str) -> Result<PathBuf, Error> {
    let path = Path::new(PLUGIN_DIR).join(kind);
    // A slash would lead out of the directory, which the specification forbids.
    if !kind.contains('/') && host.run(|| path.is_file())? {
        return Ok(path);
    }
    Err(CniError::NoPlugin { plugin: kind.to_owned(), path: PLUGIN_DIR.to_owned() }.into())
}

fn first_list(dir: &Path) -> io::Result<Option<(PathBuf, Vec<u8>)>> {
    let entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    let lists = entries.into_iter().map(|entry| entry.path());
    let first = lists.filter(|path| path.extension().is_some_and(|extension| extension == "conflist")).min();
    first.map(|path| std::fs::read(&path).map(|bytes| (path, bytes))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_reads_its_own_keys_with_the_lists_name_and_the_previous_result() {
        let list = json!({
            "name": "mesh", "cniVersion": "1.0.0",
            "plugins": [{"type": "mesh-cni", "mtu": 1420, "capabilities": {"portMappings": true}}],
        });
        let config = NetworkConfig::parse("test", list.to_string().as_bytes()).unwrap();
        let stdin = config.stdin(&config.plugins[0], &previous(&json!({"ips": []})));
        let got: Value = serde_json::from_slice(&stdin).unwrap();
        let want = json!({
            "name": "mesh", "cniVersion": "1.0.0", "type": "mesh-cni", "mtu": 1420, "prevResult": {"ips": []},
        });
        assert_eq!(got, want);
    }

    #[test]
    fn lists_that_the_specification_does_not_know_are_refused() {
        for (list, expected) in [
            ("[]", "a list of plugins"),
            (r#"{"plugins": []}"#, "a name"),
            (r#"{"plugins": [], "name": "n"}"#, "a cniVersion"),
            (
                r#"{"plugins": [{}], "name": "n", "cniVersion": "1.0.0"}"#,
                "plugins that are objects with a type",
            ),
        ] {
            let error = NetworkConfig::parse("test", list.as_bytes()).unwrap_err();
            assert!(error.to_string().ends_with(expected), "{list}: {error}");
        }
    }

    #[test]
    fn addresses_of_a_result_come_ipv4_first() {
        let result =
            json!({"ips": [{"address": "fd00::5/64"}, {"address": "10.244.1.5/24", "gateway": "x"}]});
        assert_eq!(
            addresses(&result),
            ["10.244.1.5".parse::<std::net::IpAddr>().unwrap(), "fd00::5".parse().unwrap()]
        );
    }
}
