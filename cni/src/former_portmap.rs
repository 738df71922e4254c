//! Host ports of pods that an earlier version attached, which was chained with `portmap`.
//!
//! `portmap` made rules of its own for each of them, which lie before ours, and which nobody else knows how to remove. It
//! is no longer in the network configuration, so the runtime does not call it when such a pod is deleted. The plugin does
//! instead, as the CNI specification lets plugins call others (section 4).

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;

/// Its binary, and its type in the configuration.
const PORTMAP: &str = "portmap";

/// Calls `portmap` to remove the rules of an attachment, if the runtime names host ports and the plugin is there.
pub(crate) fn unmap(conf: &Conf, attachment: &Attachment, dirs: &[PathBuf]) -> Result<(), CniError> {
    let Some(ports @ Value::Array(list)) = &conf.port_mappings else { return Ok(()) };
    let Some(binary) = dirs.iter().map(|dir| dir.join(PORTMAP)).find(|path| path.is_file()) else {
        return Ok(());
    };
    if list.is_empty() {
        return Ok(());
    }
    // Its chains are named after the network and the container.
    let input = json!({
        "cniVersion": conf.version.as_str(), "name": conf.name, "type": PORTMAP,
        "runtimeConfig": {"portMappings": ports},
    });
    let failed = |message: &str| CniError::Portmap { message: message.trim().chars().take(256).collect() };
    let path = std::env::join_paths(dirs).unwrap_or_default();
    let mut child = Command::new(&binary)
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", &attachment.container)
        .env("CNI_IFNAME", &attachment.interface)
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    if let Some(mut to) = child.stdin.take() {
        to.write_all(input.to_string().as_bytes()).map_err(|error| failed(&error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(&error.to_string()))?;
    if output.status.success() { Ok(()) } else { Err(failed(&String::from_utf8_lossy(&output.stdout))) }
}
