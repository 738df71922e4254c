//! The broken networks, as `broken.toml` has them.

use std::collections::BTreeSet;

use serde::Deserialize;

/// A network, and what the suite has to find.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    /// For `ONLY` and file names.
    pub(crate) name: String,
    /// What is wrong with it.
    pub(crate) what: String,
    /// Whether its cluster has meshd. One without is broken before the suite's pods are made, since it has no network yet.
    pub(crate) meshd: bool,
    /// The rows that fail, or are not determined.
    pub(crate) fails: BTreeSet<String>,
    /// How it is broken.
    #[serde(rename = "break")]
    pub(crate) breaking: Vec<Step>,
    /// How that is undone; nothing where the cluster is deleted afterwards.
    #[serde(default)]
    pub(crate) mend: Vec<Step>,
}

/// A shell script on a host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Its name, or `nodes` for each node.
    pub(crate) on: String,
    /// The script.
    pub(crate) run: String,
}

/// All of them, or those with these names.
pub(crate) fn read(only: &[&str]) -> Result<Vec<Network>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        network: Vec<Network>,
    }
    let File { mut network } =
        toml::from_str(include_str!("broken.toml")).map_err(|error| format!("read broken.toml: {error}"))?;
    if let Some(unknown) = only.iter().find(|name| network.iter().all(|network| network.name != **name)) {
        return Err(format!("no network is called {unknown}"));
    }
    network.retain(|network| only.is_empty() || only.contains(&network.name.as_str()));
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaks_comes_last_and_all_else_is_mended() {
        let networks = read(&[]).unwrap();
        let shared: Vec<&Network> = networks.iter().filter(|network| network.meshd).collect();
        let (_last, before) = shared.split_last().unwrap();
        for network in before {
            assert!(!network.mend.is_empty(), "{}", network.name);
            assert!(!network.fails.contains("E1"), "{}: the capture counts from the beginning", network.name);
        }
        assert!(networks.iter().all(|network| !network.fails.is_empty()));
    }

    #[test]
    fn a_name_that_there_is_not_is_an_error() {
        assert_eq!(read(&["wrong-keys"]).unwrap().len(), 1);
        read(&["wrong-keys", "none"]).unwrap_err();
    }
}
