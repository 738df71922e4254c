//! From flags, environment and file to one [`Config`]; every refusal names the option and its source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use keyring::PerSlot;
use keyring::rotation::{RotationPolicy, RotationPolicyError, RotationSettings};
use serde_json::Value;

use super::value::{self, Expected};
use super::{Config, KeyStorage, OPTIONS, OptionSpec};

/// Raw values by option name, one map a source.
#[derive(Debug, Default)]
pub struct Sources {
    /// From the command line.
    pub flags: BTreeMap<String, String>,
    /// From environment variables.
    pub environment: BTreeMap<String, String>,
    /// The YAML file and its text.
    pub file: Option<(PathBuf, String)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag on the command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The YAML file.
    File(PathBuf),
    /// No source had a value.
    Nowhere,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment variable"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Nowhere => f.write_str("not set"),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that can't be taken.
    #[error("option {option} ({source_}): {found:?}: expected {expected}")]
    Value {
        /// Name of the option.
        option: String,
        /// Where the value came from.
        source_: Source,
        /// The value, at most 80 characters of it.
        found: String,
        /// What was expected.
        expected: Expected,
    },
    /// A required option without a value.
    #[error(
        "option {option}: no value: expected {value}; set --{option}, {environment} or {option} in the configuration file"
    )]
    Missing {
        /// Name of the option.
        option: &'static str,
        /// Shape of the value.
        value: &'static str,
        /// Name of its environment variable.
        environment: String,
    },
    /// A key in the file that is no option.
    #[error("option {option:?} ({source_}): expected one of the options that `meshd run --help` lists")]
    Unknown {
        /// The key.
        option: String,
        /// The file.
        source_: Source,
    },
    /// Two options that can't stand together.
    #[error("options {first} and {second}: expected {expected}")]
    Conflict {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// What was expected.
        expected: Expected,
    },
    /// Options of the rotation that can't stand together.
    #[error("options rotation-interval, rotation-jitter, max-key-age, rotation-drain and rotation-timeout")]
    Rotation {
        /// What is wrong.
        source: RotationPolicyError,
    },
    /// The file is not a YAML mapping.
    #[error("option config: {}: expected a YAML mapping from option names to values", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_saphyr::Error,
    },
    /// The file can't be read.
    #[error("option config: read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Reads the configuration out of its sources.
pub fn from_sources(sources: &Sources) -> Result<Config, ConfigError> {
    let file = match &sources.file {
        Some((path, text)) => file_values(path, text)?,
        None => BTreeMap::new(),
    };
    let values = Values { sources, file };
    let rotation = rotation(&values)?;
    let config = Config {
        node_name: values.one("node-name", value::node_name)?,
        kubeconfig: values.maybe("kubeconfig", value::file)?,
        cluster_cidrs: values.filled_list("cluster-cidr", value::cidr)?,
        service_cidrs: values.filled_list("service-cidr", value::cidr)?,
        node_cidrs: values.list("node-cidr", value::cidr)?,
        api_servers: values.list("api-server-address", value::address)?.into_iter().collect(),
        endpoints: values.list("endpoint", value::address)?,
        nat: values.one("nat", value::boolean)?,
        links: PerSlot {
            a: values.one("interface-a", value::link)?,
            b: values.one("interface-b", value::link)?,
        },
        ports: PerSlot { a: values.one("port-a", value::port)?, b: values.one("port-b", value::port)? },
        backend: values.one("backend", value::backend)?,
        threaded_napi: values.one("threaded-napi", value::boolean)?,
        mtu: values.maybe("mtu", value::mtu)?,
        table: values.one("table", value::table)?,
        rule_priority: values.one("rule-priority", value::priority)?,
        control_port: values.one("control-port", value::port)?,
        probe_interval: values.one("probe-interval", value::time)?,
        pq: pq(&values, &rotation)?,
        rotation,
        key_dir: values.one("key-dir", value::folder)?,
        key_storage: key_storage(&values)?,
        state_dir: values.one("state-dir", value::folder)?,
        run_dir: values.one("run-dir", value::folder)?,
        wireguard_dir: values.one("wireguard-dir", value::folder)?,
        sysctl_dir: values.one("sysctl-dir", value::folder)?,
        cni_conf_dir: values.one("cni-conf-dir", value::folder)?,
        cni_bin_dir: values.one("cni-bin-dir", value::folder)?,
        listen: values.one("listen", value::socket)?,
        log_json: values.one("log-format", value::log_json)?,
        log_filter: values.one("log-level", value::log_filter)?,
    };
    refuse_conflicts(&config)?;
    Ok(config)
}

fn rotation(values: &Values<'_>) -> Result<RotationPolicy, ConfigError> {
    let settings = RotationSettings {
        interval: values.one("rotation-interval", value::time)?,
        jitter: values.one("rotation-jitter", value::percent)?,
        max_age: values.maybe("max-key-age", value::time)?,
        drain: values.one("rotation-drain", value::time)?,
        timeout: values.one("rotation-timeout", value::time)?,
    };
    RotationPolicy::new(settings).map_err(|source| ConfigError::Rotation { source })
}

fn pq(values: &Values<'_>, rotation: &RotationPolicy) -> Result<keyring::pq::PqSettings, ConfigError> {
    let usual = keyring::pq::PqSettings::default();
    Ok(keyring::pq::PqSettings {
        mode: values.one("pq", value::pq_mode)?,
        interval: values.one("pq-interval", value::pq_interval)?,
        // A rotation that waited to its own end would be given up.
        rotation_wait: usual.rotation_wait.min(rotation.timeout() / 2),
        ..usual
    })
}

fn key_storage(values: &Values<'_>) -> Result<KeyStorage, ConfigError> {
    let conflict = |expected| ConfigError::Conflict { first: "key-storage", second: "sealing-key", expected };
    let sealing = values.maybe("sealing-key", value::sealing)?;
    match (values.one("key-storage", value::storage)?, sealing) {
        (value::Storage::Tmpfs, None) => Ok(KeyStorage::Tmpfs),
        (value::Storage::PlainOnDisk, None) => Ok(KeyStorage::PlainOnDisk),
        (value::Storage::Sealed, Some(source)) => Ok(KeyStorage::Sealed(source)),
        (value::Storage::Sealed, None) => Err(conflict("a sealing-key where keys are sealed")),
        (_, Some(_)) => Err(conflict("key-storage sealed where there is a sealing-key")),
    }
}

fn refuse_conflicts(config: &Config) -> Result<(), ConfigError> {
    let conflict = |first, second, expected| Err(ConfigError::Conflict { first, second, expected });
    if config.ports.a == config.ports.b {
        return conflict("port-a", "port-b", "two different ports");
    }
    if [config.ports.a, config.ports.b].contains(&config.control_port) {
        return conflict("control-port", "port-a and port-b", "another port than the slots'");
    }
    if config.links.a == config.links.b {
        return conflict("interface-a", "interface-b", "two different names");
    }
    let overlap = config
        .cluster_cidrs
        .iter()
        .any(|cluster| config.service_cidrs.iter().any(|service| plan::prefix::overlap(*cluster, *service)));
    if overlap {
        return conflict("cluster-cidr", "service-cidr", "ranges that don't overlap");
    }
    Ok(())
}

/// The file's values as text; lists joined by commas, since that is how every source writes them.
fn file_values(path: &Path, text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let mapping: BTreeMap<String, Value> = if text.trim().is_empty() {
        BTreeMap::new()
    } else {
        serde_saphyr::from_str(text).map_err(|source| ConfigError::Yaml { path: path.to_owned(), source })?
    };
    let source_ = Source::File(path.to_owned());
    let mut values = BTreeMap::new();
    for (option, value) in mapping {
        if !OPTIONS.iter().any(|known| known.name == option) {
            return Err(ConfigError::Unknown { option: shortened(&option), source_ });
        }
        let Some(text) = scalar_or_list(&value) else {
            let found = shortened(&value.to_string());
            return Err(ConfigError::Value {
                option,
                source_,
                found,
                expected: "a value or a list of values",
            });
        };
        values.insert(option, text);
    }
    Ok(values)
}

fn scalar_or_list(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        Value::Array(items) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| if item.is_array() { None } else { scalar_or_list(item) }).collect();
            Some(texts?.join(","))
        }
        Value::Null | Value::Object(_) => None,
    }
}

/// Looks each option up: flag, then environment, then file, then default.
struct Values<'a> {
    sources: &'a Sources,
    file: BTreeMap<String, String>,
}

impl Values<'_> {
    fn raw(&self, option: &OptionSpec) -> (Option<&str>, Source) {
        if let Some(text) = self.sources.flags.get(option.name) {
            return (Some(text), Source::Flag);
        }
        if let Some(text) = self.sources.environment.get(option.name) {
            return (Some(text), Source::Environment);
        }
        match (self.file.get(option.name), &self.sources.file) {
            (Some(text), Some((path, _))) => (Some(text), Source::File(path.clone())),
            _ => (option.default, Source::Nowhere),
        }
    }

    fn maybe<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(option) = OPTIONS.iter().find(|option| option.name == name) else {
            return Err(ConfigError::Unknown { option: name.to_owned(), source_: Source::Nowhere });
        };
        let (text, source_) = self.raw(option);
        let Some(text) = text else { return Ok(None) };
        let refused = |expected| ConfigError::Value {
            option: name.to_owned(),
            source_,
            found: shortened(text),
            expected,
        };
        parse(text).map(Some).map_err(refused)
    }

    fn one<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<T, ConfigError> {
        self.maybe(name, parse)?.ok_or_else(|| missing(name))
    }

    fn list<T>(
        &self,
        name: &'static str,
        one: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Vec<T>, ConfigError> {
        Ok(self.maybe(name, |text| value::list(text, &one))?.unwrap_or_default())
    }

    fn filled_list<T>(
        &self,
        name: &'static str,
        one: impl Fn(&str) -> Result<T, Expected>,
    ) -> Result<Vec<T>, ConfigError> {
        let values = self.list(name, one)?;
        if values.is_empty() { Err(missing(name)) } else { Ok(values) }
    }
}

fn missing(name: &'static str) -> ConfigError {
    let option = OPTIONS.iter().find(|option| option.name == name);
    ConfigError::Missing {
        option: name,
        value: option.map_or("a value", |option| option.value),
        environment: option.map_or_else(String::new, OptionSpec::environment),
    }
}

/// Enough of a value to recognize it by; a value may be megabytes long.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
