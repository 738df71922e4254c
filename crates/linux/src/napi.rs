//! Which threads of the kernel receive a link's packets.

use std::path::PathBuf;

use plan::network::LinkName;

use crate::error::HostError;

/// Has the kernel receive a link's packets in threads of their own, which the scheduler can spread over the CPUs, and not
/// on whichever CPU an interrupt came to (`Documentation/networking/napi.rst`, "Threaded NAPI"). For WireGuard that is a
/// thread for each peer. Says whether it was otherwise before.
///
/// Fails before the link has a peer, and where `/sys` can't be written, is not that of the thread's network namespace, or belongs to a kernel before 5.12.
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
