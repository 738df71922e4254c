//! Kernel settings of the network namespace, below `/proc/sys/net`.

use std::path::PathBuf;

use crate::error::HostError;

/// Reads a setting in `/proc/sys`, without the line's end. `None` if the kernel has no such setting, for example
/// because the link that it belongs to is not there.
pub fn read(name: &str) -> Result<Option<String>, HostError> {
    Sysctls::default().read(name)
}

/// Writes a setting in `/proc/sys`.
pub fn write(name: &str, value: &str) -> Result<(), HostError> {
    Sysctls::default().write(name, value)
}

/// The settings in some directory.
///
/// In a container without privileges `/proc/sys` is read-only, and runtimes refuse to mount anything over it; the
/// node's `/proc/sys/net` mounted elsewhere can be written. Wherever it is mounted, it shows the settings of the
/// reader's own network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctls {
    directory: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::at("/proc/sys")
    }
}

impl Sysctls {
    /// The settings in `directory`, which contains `net`.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Reads a setting, without the line's end. `None` if the kernel has no such setting.
    pub fn read(&self, name: &str) -> Result<Option<String>, HostError> {
        let path = self.path(name)?;
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HostError::Sysctl { operation: "read", path, source }),
        }
    }

    /// Writes a setting.
    pub fn write(&self, name: &str, value: &str) -> Result<(), HostError> {
        let path = self.path(name)?;
        std::fs::write(&path, value).map_err(|source| HostError::Sysctl { operation: "write", path, source })
    }

    /// Names are paths with slashes: a link's name may hold a dot.
    fn path(&self, name: &str) -> Result<PathBuf, HostError> {
        let below = |part: &str| !part.is_empty() && part != "." && part != "..";
        if name.starts_with("net/") && name.split('/').all(below) {
            Ok(self.directory.join(name))
        } else {
            Err(HostError::SysctlName { name: name.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_network_settings() {
        for name in ["kernel/hostname", "net/../kernel/hostname", "net//x", "/net/x", "net/./x", "net/"] {
            assert!(matches!(Sysctls::default().path(name), Err(HostError::SysctlName { .. })), "{name}");
        }
        assert!(read("net/ipv4/ip_forward").unwrap().is_some());
        assert_eq!(read("net/ipv4/conf/no-such-link/rp_filter").unwrap(), None);
    }

    #[test]
    fn another_directory_is_read_and_written_instead() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("net/ipv4")).unwrap();
        let sysctls = Sysctls::at(directory.path());
        assert_eq!(sysctls.read("net/ipv4/ip_forward").unwrap(), None);
        sysctls.write("net/ipv4/ip_forward", "made up").unwrap();
        assert_eq!(sysctls.read("net/ipv4/ip_forward").unwrap().as_deref(), Some("made up"));
        assert_eq!(std::fs::read_to_string(directory.path().join("net/ipv4/ip_forward")).unwrap(), "made up");
    }
}
