//! Kernel settings of the network namespace, below `/proc/sys/net`.

use std::path::{Path, PathBuf};

use crate::error::HostError;

/// Reads a setting, without the line's end. `None` if the kernel has no such setting, for example because
/// the link that it belongs to is not there.
pub fn read(name: &str) -> Result<Option<String>, HostError> {
    let path = path(name)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HostError::Sysctl { operation: "read", path, source }),
    }
}

/// Writes a setting.
pub fn write(name: &str, value: &str) -> Result<(), HostError> {
    let path = path(name)?;
    std::fs::write(&path, value).map_err(|source| HostError::Sysctl { operation: "write", path, source })
}

/// Names are paths with slashes: a link's name may hold a dot.
fn path(name: &str) -> Result<PathBuf, HostError> {
    let usual = name.starts_with("net/") && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if usual { Ok(Path::new("/proc/sys").join(name)) } else { Err(HostError::SysctlName { name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_network_settings() {
        for name in ["kernel/hostname", "net/../kernel/hostname", "net//x", "/net/x", "net/./x", "net/"] {
            assert!(matches!(path(name), Err(HostError::SysctlName { .. })), "{name}");
        }
        assert!(read("net/ipv4/ip_forward").unwrap().is_some());
        assert_eq!(read("net/ipv4/conf/no-such-link/rp_filter").unwrap(), None);
    }
}
