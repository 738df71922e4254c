//! Threaded NAPI of a link.

use std::path::PathBuf;

use plan::network::LinkName;

use crate::error::HostError;

/// Has the kernel receive a link's packets in threads, which the scheduler can spread over the CPUs, and not on the CPU
/// that took the interrupt (`Documentation/networking/napi.rst`, "Threaded NAPI"). For WireGuard that is a thread for
/// each peer. Returns whether that changed anything.
///
/// Fails as long as the link has no peer, before Linux 5.12, and where `/sys` is read-only or is not that of the
/// thread's network namespace.
pub fn set_threaded(link: &LinkName) -> Result<bool, HostError> {
    let path = PathBuf::from(format!("/sys/class/net/{link}/threaded"));
    let failed = |operation, source| HostError::Threads { operation, path: path.clone(), source };
    let found = std::fs::read_to_string(&path).map_err(|source| failed("read", source))?;
    if found.trim_end() == "1" {
        return Ok(false);
    }
    std::fs::write(&path, "1").map_err(|source| failed("write", source))?;
    Ok(true)
}
