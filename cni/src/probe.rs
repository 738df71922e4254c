//! Which versions of the specification another plugin supports: one VERSION call, with a timeout.

use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::child::{self, ChildError};
use crate::version::SpecVersion;

/// Why a plugin can't be relied on to support a version.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be started.
    #[error("start the plugin: expected an executable that runs here")]
    Start {
        /// The cause.
        source: io::Error,
    },
    /// It did not answer in time; it was killed.
    #[error("no answer to VERSION within {timeout:?}")]
    Timeout {
        /// The time that it had.
        timeout: Duration,
    },
    /// Its output or its exit status could not be read.
    #[error("read the plugin's answer to VERSION")]
    Read {
        /// The cause.
        source: io::Error,
    },
    /// It failed.
    #[error("VERSION failed: {status}")]
    Failed {
        /// How it exited.
        status: ExitStatus,
    },
    /// Its answer is not one of the specification's.
    #[error("the answer to VERSION is not a JSON object with supportedVersions")]
    Answer,
    /// It supports other versions.
    #[error("supports CNI {found}: expected {wanted} among them")]
    Unsupported {
        /// The version that was asked for.
        wanted: &'static str,
        /// The versions it named, at most 64 characters of them.
        found: String,
    },
}

/// Asks a plugin for its versions and fails unless `version` is one of them. Blocks until the plugin has exited, at
/// most for `timeout`; a plugin that takes longer is killed with everything that it started.
pub fn require_version(plugin: &Path, version: SpecVersion, timeout: Duration) -> Result<(), ProbeError> {
    let mut command = Command::new(plugin);
    command
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        // VERSION needs none of these, but plugins built with an old libcni refuse it without them.
        .envs(["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"].map(|name| (name, "dummy")));
    let input = json!({"cniVersion": SpecVersion::V1_0_0.as_str()}).to_string();
    let (status, text) = child::run(&mut command, &input, timeout).map_err(|error| match error {
        ChildError::Start(source) => ProbeError::Start { source },
        ChildError::Read(source) => ProbeError::Read { source },
        ChildError::Timeout => ProbeError::Timeout { timeout },
    })?;
    if !status.success() {
        return Err(ProbeError::Failed { status });
    }
    judge(&text, version)
}

fn judge(text: &[u8], version: SpecVersion) -> Result<(), ProbeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        supported_versions: Vec<String>,
    }
    let answer: Answer = serde_json::from_slice(text).map_err(|_| ProbeError::Answer)?;
    let wanted = version.as_str();
    if answer.supported_versions.iter().any(|found| found == wanted) {
        return Ok(());
    }
    let found = answer.supported_versions.join(", ");
    Err(ProbeError::Unsupported { wanted, found: found.escape_debug().take(64).collect() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    /// Far longer than a script takes on a busy machine.
    const LONG: Duration = Duration::from_mins(1);

    fn probe(script: &str, timeout: Duration) -> Result<(), ProbeError> {
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("plugin");
        std::fs::write(&plugin, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        loop {
            match require_version(&plugin, SpecVersion::V1_1_0, timeout) {
                // A process that another thread is starting has the script open for writing until it executes its own
                // program.
                Err(ProbeError::Start { source }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                outcome => return outcome,
            }
        }
    }

    #[test]
    fn a_plugin_supports_the_versions_that_it_names() {
        let new = r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.1.0"]}'"#;
        probe(new, LONG).unwrap();
        let old = new.replace("1.1.0", "1.0.0");
        let error = probe(&old, LONG).unwrap_err();
        assert!(
            matches!(&error, ProbeError::Unsupported { found, .. } if found == "0.4.0, 1.0.0"),
            "{error}"
        );
        assert!(matches!(probe(&format!("{new}; exit 1"), LONG), Err(ProbeError::Failed { .. })));
    }

    #[test]
    fn anything_else_is_no_answer() {
        for script in ["echo nonsense", "true", "echo '{\"supportedVersions\":\"1.1.0\"}'", "echo '[]'"] {
            assert!(matches!(probe(script, LONG), Err(ProbeError::Answer)), "{script}");
        }
        let endless = "while :; do echo '          '; done";
        assert!(matches!(probe(endless, LONG), Err(ProbeError::Failed { .. } | ProbeError::Answer)));
        let missing = require_version(Path::new("/nonexistent/plugin"), SpecVersion::V1_1_0, LONG);
        assert!(matches!(missing, Err(ProbeError::Start { .. })));
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join("alive");
        let path = alive.display();
        // The child keeps the output open; the second script closes it and stays.
        for script in [
            format!("(sleep 2; touch {path}) & sleep 3600"),
            format!("exec >&-; sleep 2; touch {path}; sleep 3600"),
        ] {
            let started = Instant::now();
            let timeout = Duration::from_millis(200);
            assert!(matches!(probe(&script, timeout), Err(ProbeError::Timeout { .. })), "{script}");
            assert!(started.elapsed() < LONG, "{script}");
        }
        std::thread::sleep(Duration::from_secs(3));
        assert!(!alive.exists(), "a process of the plugin's went on");
    }
}
