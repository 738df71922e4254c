//! What a run measures, from the environment.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Failure, fleet};

/// All scenarios, in the order in which they run.
pub(crate) const SCENARIOS: [&str; 9] =
    ["start", "idle", "rss", "scrape", "change", "drift", "storm", "rotate_own", "join"];

/// The settings of a run.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Numbers of peers.
    pub(crate) sizes: Vec<usize>,
    /// The program that is measured.
    pub(crate) daemon: PathBuf,
    /// How long the idle daemon is measured.
    pub(crate) idle: Duration,
    /// Changes of each kind.
    pub(crate) changes: usize,
    /// How long all peers may take to agree on preshared keys.
    pub(crate) settle: Duration,
    /// Whether missed goals don't fail the run.
    pub(crate) ignore_goals: bool,
    only: Vec<String>,
}

impl Settings {
    /// `N`, `QUICK`, `DAEMON`, `SCENARIOS` and `IGNORE_GOALS`, read by `get`.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let set = |name: &str| get(name).is_some_and(|value| !value.is_empty() && value != "0");
        let quick = set("QUICK");
        let sizes = get("N").filter(|text| !text.is_empty());
        let sizes = sizes.unwrap_or_else(|| if quick { "50,500" } else { "50,1000,5000" }.to_owned());
        let size = |text: &str| match text.trim().parse() {
            Ok(size) if (1..fleet::MOST / 2).contains(&size) => Ok(size),
            _ => Err(format!("N={text}: expected numbers of peers from 1 to {}", fleet::MOST / 2 - 1)),
        };
        let only: Vec<String> = get("SCENARIOS")
            .unwrap_or_default()
            .split(',')
            .filter(|name| !name.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        if let Some(unknown) = only.iter().find(|name| !SCENARIOS.contains(&name.as_str())) {
            return Err(format!("SCENARIOS={unknown}: expected some of {}", SCENARIOS.join(",")).into());
        }
        let daemon = match get("DAEMON").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => lab::target_dir()?.join("release/meshd"),
        };
        let daemon = std::fs::canonicalize(&daemon)
            .map_err(|error| format!("find the daemon at {}: {error}", daemon.display()))?;
        // The daemon installs it, and is not ready before.
        let plugin = daemon.with_file_name("mesh-cni");
        if !plugin.is_file() {
            return Err(
                format!("find the CNI plugin at {}: build it beside the daemon", plugin.display()).into()
            );
        }
        let time = |quick_seconds, seconds| Duration::from_secs(if quick { quick_seconds } else { seconds });
        Ok(Self {
            sizes: sizes.split(',').map(size).collect::<Result<_, _>>()?,
            daemon,
            idle: time(10, 60),
            changes: if quick { 10 } else { 50 },
            settle: time(180, 1800),
            ignore_goals: set("IGNORE_GOALS"),
            only,
        })
    }

    /// Whether a scenario is to run.
    pub(crate) fn runs(&self, scenario: &str) -> bool {
        // The others need a daemon that was started.
        scenario == "start" || self.only.is_empty() || self.only.iter().any(|name| name == scenario)
    }

    /// Whether the daemon is a debug build, which says little about cost.
    pub(crate) fn is_debug(&self) -> bool {
        self.daemon.components().any(|part| part.as_os_str() == "debug")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<Settings, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("meshd").display().to_string();
        for program in ["meshd", "mesh-cni"] {
            std::fs::write(directory.path().join(program), "").unwrap();
        }
        Settings::read(|name| {
            let found = given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            found.or_else(|| (name == "DAEMON").then(|| own.clone()))
        })
    }

    #[test]
    fn sizes_and_scenarios_are_those_that_are_asked_for() {
        let quick = read(&[("QUICK", "1")]).unwrap();
        assert_eq!((quick.sizes, quick.idle), (vec![50, 500], Duration::from_secs(10)));
        let some = read(&[("N", "7, 4000"), ("SCENARIOS", "idle,join")]).unwrap();
        assert_eq!(some.sizes, [7, 4000]);
        assert!(some.runs("idle") && some.runs("start") && !some.runs("storm"));
        for wrong in [("N", "0"), ("N", "many"), ("N", "9000"), ("SCENARIOS", "idel"), ("DAEMON", "/nowhere")]
        {
            assert!(read(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
