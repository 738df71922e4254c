//! Where the programs of a cluster are, and which version of Kubernetes they are.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ClusterError;
use crate::kube::assets::Assets;

/// The directory that `scripts/cluster-assets.sh` fills, below the user's cache.
const CACHED: &str = "meshd/cluster-1.20.2-1";

/// A version of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// `1` in 1.20.2.
    pub major: u32,
    /// `20` in 1.20.2.
    pub minor: u32,
}

/// The programs of a cluster.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The version of the API server; all of Kubernetes' programs are from the same place.
    pub version: Version,
    /// The directories that the programs are in.
    directories: Vec<PathBuf>,
}

/// All that has to be found before a cluster is started. `kubectl` may be elsewhere, see [`Programs::kubectl`].
const NEEDED: [&str; 9] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
];

impl Version {
    /// Reads `Kubernetes v1.20.2`, as the programs print it.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, version) = text.split_once('v')?;
        let mut numbers = version.split(['.', '+', '-', '\n']).map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }

    /// Whether it is 1.`minor` or later.
    pub fn is_at_least(self, minor: u32) -> bool {
        self >= Self { major: 1, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Programs {
    /// Searches `KUBEBUILDER_ASSETS` if that is set, then the cache. Kubernetes' programs all come from
    /// `KUBEBUILDER_ASSETS` if that is set: an API server of one version with kubelets of another works for a few minors only.
    pub fn find() -> Result<Self, ClusterError> {
        let server = Assets::find().map_err(|error| ClusterError::Lab(error.into()))?.kube_apiserver;
        let beside = server.parent().unwrap_or_else(|| Path::new("/")).to_path_buf();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        let cache = cache.unwrap_or_default().join(CACHED);
        let mixed = set("KUBEBUILDER_ASSETS").is_some();
        for program in NEEDED {
            let of_kubernetes = program.starts_with("kube");
            let searched = if of_kubernetes && mixed { vec![&beside] } else { vec![&beside, &cache] };
            if !searched.iter().any(|directory| directory.join(program).is_file()) {
                let looked = searched.into_iter().cloned().collect();
                return Err(ClusterError::NoProgram { program, looked });
            }
        }
        let version = Self::version(&server)?;
        Ok(Self { version, directories: vec![beside, cache] })
    }

    /// The path of a program.
    pub fn path(&self, program: &'static str) -> Result<PathBuf, ClusterError> {
        let paths = self.directories.iter().map(|directory| directory.join(program));
        paths
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| ClusterError::NoProgram { program, looked: self.directories.clone() })
    }

    /// `PATH` for programs of the cluster, which call each other by name.
    pub fn search_path(&self) -> String {
        let own = self.directories.iter().map(|directory| directory.display().to_string());
        let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        own.chain(system.map(str::to_owned)).collect::<Vec<_>>().join(":")
    }

    /// The one in `KUBEBUILDER_ASSETS`, else the machine's own, else that of the cache, which is old.
    pub fn kubectl(&self) -> Result<PathBuf, ClusterError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let beside = self.directories.first().map(|directory| directory.join("kubectl"));
        let found = std::env::split_paths(&path).map(|directory| directory.join("kubectl"));
        let found = beside.into_iter().chain(found).find(|path| path.is_file());
        found.map_or_else(|| self.path("kubectl"), Ok)
    }

    /// kubectl's version.
    pub fn kubectl_version(&self) -> Result<Version, ClusterError> {
        let program = self.kubectl()?;
        let failed = |said: String| ClusterError::Version { program: program.clone(), said };
        let output = Command::new(&program).args(["version", "--client", "--output=json"]).output();
        let said = output.map_err(|error| failed(error.to_string()))?.stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let json: Option<serde_json::Value> = serde_json::from_str(&said).ok();
        let version = json.as_ref().and_then(|json| json.pointer("/clientVersion/gitVersion")?.as_str());
        version.and_then(Version::parse).ok_or_else(|| failed(said))
    }

    fn version(server: &Path) -> Result<Version, ClusterError> {
        let failed = |said: String| ClusterError::Version { program: server.into(), said };
        let output =
            Command::new(server).arg("--version").output().map_err(|error| failed(error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Version::parse(&said).ok_or_else(|| failed(said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        let version = |minor| Some(Version { major: 1, minor });
        assert_eq!(Version::parse("Kubernetes v1.20.2\n"), version(20));
        assert_eq!(Version::parse("Kubernetes v1.36.0-rc.1+abc"), version(36));
        assert_eq!(Version::parse("Kubernetes v2"), None);
        assert_eq!(Version::parse("nothing"), None);
        assert!(version(20) < version(30));
    }

    #[test]
    fn the_cache_is_the_directory_that_the_script_fills() {
        let value = |script: &str, name: &str| {
            let path = format!("{}/../scripts/{script}", env!("CARGO_MANIFEST_DIR"));
            let script = std::fs::read_to_string(path).unwrap();
            script.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
        };
        let cache = value("cluster-assets.sh", "cache=${XDG_CACHE_HOME:-$HOME/.cache}/");
        let version = value("kube-source.sh", "kube_version=");
        let directory = value("cluster-assets.sh", "assets=$cache/").replace("$kube_version", &version);
        assert_eq!(CACHED, format!("{cache}/{directory}"));
    }
}
