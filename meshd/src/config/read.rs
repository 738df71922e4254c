//! Reads one [`Config`] from flags, environment and file; every error names the option and its source.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use keyring::PerSlot;
use keyring::rotation::{RotationPolicy, RotationPolicyError, RotationSettings};
use serde_json::Value;

use super::options::{self, OPTIONS, OptionSpec, Optional, Parse, Valued};
use super::value::{Expected, Storage};
use super::{Config, KeyStorage};

/// Unparsed values by option name, one map per source.
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
    /// No source.
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
    /// An invalid value.
    #[error("option {option} ({origin}): {found:?}: expected {expected}")]
    Value {
        /// Name of the option.
        option: String,
        /// Where the value came from.
        origin: Source,
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
    /// An unknown key in the file.
    #[error("option {option:?} ({origin}): expected one of the options that `meshd run --help` lists")]
    Unknown {
        /// The key.
        option: String,
        /// The file.
        origin: Source,
    },
    /// Two options that contradict each other.
    #[error("options {first} and {second}: expected {expected}")]
    Conflict {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// What was expected.
        expected: Expected,
    },
    /// Options of the rotation that contradict each other.
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

/// Reads the configuration from its sources.
pub fn from_sources(sources: &Sources) -> Result<Config, ConfigError> {
    let file = match &sources.file {
        Some((path, text)) => file_values(path, text)?,
        None => BTreeMap::new(),
    };
    let values = Values { sources, file };
    let rotation = rotation(&values)?;
    let config = Config {
        node_name: values.get(&options::NODE_NAME)?,
        kubeconfig: values.find(&options::KUBECONFIG)?,
        cluster_cidrs: values.non_empty(&options::CLUSTER_CIDR)?,
        service_cidrs: values.non_empty(&options::SERVICE_CIDR)?,
        node_cidrs: values.find(&options::NODE_CIDR)?.unwrap_or_default(),
        accept_unproven: values.get(&options::ACCEPT_UNPROVEN)?,
        close_external_ips: values.get(&options::CLOSE_EXTERNAL_IPS)?,
        input_from_pods: values.get(&options::INPUT_FROM_PODS)?,
        guard_owner: values.get(&options::GUARD_OWNER)?,
        open_node_cidrs: values.find(&options::OPEN_NODE_CIDRS)?.unwrap_or_default(),
        api_servers: values.find(&options::API_SERVER_ADDRESS)?.unwrap_or_default(),
        endpoints: values.find(&options::ENDPOINT)?.unwrap_or_default(),
        nat: values.get(&options::NAT)?,
        links: PerSlot { a: values.get(&options::INTERFACE_A)?, b: values.get(&options::INTERFACE_B)? },
        ports: PerSlot { a: values.get(&options::PORT_A)?, b: values.get(&options::PORT_B)? },
        backend: values.get(&options::BACKEND)?,
        threaded_napi: values.get(&options::THREADED_NAPI)?,
        udp_offload: values.get(&options::UDP_OFFLOAD)?,
        tun_offload: values.get(&options::TUN_OFFLOAD)?,
        mtu: values.find(&options::MTU)?,
        table: values.get(&options::TABLE)?,
        rule_priority: values.get(&options::RULE_PRIORITY)?,
        control_port: values.get(&options::CONTROL_PORT)?,
        relay_ports: values.get(&options::RELAY_PORTS)?,
        relay_rate: values.get(&options::RELAY_RATE)?,
        probe_interval: values.get(&options::PROBE_INTERVAL)?,
        pq: pq(&values, &rotation)?,
        rotation,
        key_dir: values.get(&options::KEY_DIR)?,
        key_storage: key_storage(&values)?,
        state_dir: values.get(&options::STATE_DIR)?,
        run_dir: values.get(&options::RUN_DIR)?,
        wireguard_dir: values.get(&options::WIREGUARD_DIR)?,
        sysctl_dir: values.get(&options::SYSCTL_DIR)?,
        cni_conf_dir: values.get(&options::CNI_CONF_DIR)?,
        cni_bin_dir: values.get(&options::CNI_BIN_DIR)?,
        listen: values.get(&options::LISTEN)?,
        metrics_per_peer: values.get(&options::METRICS_PER_PEER)?,
        log_json: values.get(&options::LOG_FORMAT)?,
        log_filter: values.get(&options::LOG_LEVEL)?,
    };
    refuse_conflicts(&config)?;
    Ok(config)
}

fn rotation(values: &Values<'_>) -> Result<RotationPolicy, ConfigError> {
    let settings = RotationSettings {
        interval: values.get(&options::ROTATION_INTERVAL)?,
        jitter: values.get(&options::ROTATION_JITTER)?,
        max_age: values.find(&options::MAX_KEY_AGE)?,
        drain: values.get(&options::ROTATION_DRAIN)?,
        timeout: values.get(&options::ROTATION_TIMEOUT)?,
    };
    RotationPolicy::new(settings).map_err(|source| ConfigError::Rotation { source })
}

fn pq(values: &Values<'_>, rotation: &RotationPolicy) -> Result<keyring::pq::PqSettings, ConfigError> {
    let usual = keyring::pq::PqSettings::default();
    Ok(keyring::pq::PqSettings {
        mode: values.get(&options::PQ)?,
        interval: values.get(&options::PQ_INTERVAL)?,
        // Shorter than the timeout of a rotation, which waits for preshared keys.
        rotation_wait: usual.rotation_wait.min(rotation.timeout() / 2),
        ..usual
    })
}

fn key_storage(values: &Values<'_>) -> Result<KeyStorage, ConfigError> {
    let conflict = |expected| ConfigError::Conflict { first: "key-storage", second: "sealing-key", expected };
    let sealing = values.find(&options::SEALING_KEY)?;
    match (values.get(&options::KEY_STORAGE)?, sealing) {
        (Storage::Tmpfs, None) => Ok(KeyStorage::Tmpfs),
        (Storage::PlainOnDisk, None) => Ok(KeyStorage::PlainOnDisk),
        (Storage::Sealed, Some(source)) => Ok(KeyStorage::Sealed(source)),
        (Storage::Sealed, None) => Err(conflict("a sealing-key with key-storage sealed")),
        (_, Some(_)) => Err(conflict("key-storage sealed with a sealing-key")),
    }
}

fn refuse_conflicts(config: &Config) -> Result<(), ConfigError> {
    let conflict = |first, second, expected| Err(ConfigError::Conflict { first, second, expected });
    if config.ports.a == config.ports.b {
        return conflict("port-a", "port-b", "two different ports");
    }
    if [config.ports.a, config.ports.b].contains(&config.control_port) {
        return conflict("control-port", "port-a and port-b", "a port that no slot uses");
    }
    if [config.ports.a, config.ports.b].iter().any(|port| config.relay_ports.contains(port)) {
        return conflict("relay-ports", "port-a and port-b", "ports that no slot uses");
    }
    if config.links.a == config.links.b {
        return conflict("interface-a", "interface-b", "two different names");
    }
    let overlap = config
        .cluster_cidrs
        .iter()
        .any(|cluster| config.service_cidrs.iter().any(|service| plan::prefix::overlap(*cluster, *service)));
    if overlap {
        return conflict("cluster-cidr", "service-cidr", "CIDRs that don't overlap");
    }
    Ok(())
}

/// The file's values as text, with lists joined by commas as in the other sources.
fn file_values(path: &Path, text: &str) -> Result<BTreeMap<String, String>, ConfigError> {
    let mapping: BTreeMap<String, Value> = if text.trim().is_empty() {
        BTreeMap::new()
    } else {
        serde_saphyr::from_str(text).map_err(|source| ConfigError::Yaml { path: path.to_owned(), source })?
    };
    let origin = Source::File(path.to_owned());
    let mut values = BTreeMap::new();
    for (option, value) in mapping {
        let Some(known) = OPTIONS.iter().find(|known| known.name == option) else {
            return Err(ConfigError::Unknown { option: shortened(&option), origin });
        };
        let Some(text) = word(known, &value).or_else(|| scalar_or_list(&value)) else {
            let found = shortened(&value.to_string());
            return Err(ConfigError::Value {
                option,
                origin,
                found,
                expected: "a value or a list of values",
            });
        };
        values.insert(option, text);
    }
    Ok(values)
}

/// The word `on` or `off` of an option that has it: without quotes, YAML 1.1 reads both as booleans.
fn word(option: &OptionSpec, value: &Value) -> Option<String> {
    let word = if value.as_bool()? { "on" } else { "off" };
    option.value.split('|').any(|known| known == word).then(|| word.to_owned())
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

/// Looks options up: flag, then environment, then file, then default.
struct Values<'a> {
    sources: &'a Sources,
    file: BTreeMap<String, String>,
}

impl Values<'_> {
    fn text(&self, option: &OptionSpec) -> (Option<&str>, Source) {
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

    fn parsed<T>(&self, option: &OptionSpec, parse: Parse<T>) -> Result<Option<T>, ConfigError> {
        let (text, origin) = self.text(option);
        let Some(text) = text else { return Ok(None) };
        let refused = |expected| ConfigError::Value {
            option: option.name.to_owned(),
            origin,
            found: shortened(text),
            expected,
        };
        parse(text).map(Some).map_err(refused)
    }

    /// The value of an option that may be absent.
    fn find<T>(&self, option: &Optional<T>) -> Result<Option<T>, ConfigError> {
        self.parsed(&option.spec, option.parse)
    }

    /// The value of an option that is required or has a default.
    fn get<T>(&self, option: &Valued<T>) -> Result<T, ConfigError> {
        self.parsed(&option.spec, option.parse)?.ok_or_else(|| missing(&option.spec))
    }

    /// A required list.
    fn non_empty<T>(&self, option: &Valued<Vec<T>>) -> Result<Vec<T>, ConfigError> {
        let values = self.get(option)?;
        if values.is_empty() { Err(missing(&option.spec)) } else { Ok(values) }
    }
}

fn missing(option: &OptionSpec) -> ConfigError {
    ConfigError::Missing { option: option.name, value: option.value, environment: option.environment() }
}

/// The start of a value, which may be megabytes long.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
