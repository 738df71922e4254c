//! Where kube-apiserver and etcd are.

use std::path::PathBuf;

use super::ApiError;

/// Version of the server that the set-up builds; the name of its directory in the cache.
const CACHED: &str = "meshd/kube-1.20.2-2";

/// The programs of a real API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// Its store.
    pub etcd: PathBuf,
}

impl Assets {
    /// Searches `KUBEBUILDER_ASSETS` if that is set, else in the cache that `scripts/setup.sh test` fills.
    pub fn find() -> Result<Self, ApiError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = || {
            let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
            base.unwrap_or_default().join(CACHED)
        };
        let directory = set("KUBEBUILDER_ASSETS").unwrap_or_else(cache);
        let program = |program: &'static str| {
            let path = directory.join(program);
            match std::fs::metadata(&path) {
                Ok(_) => Ok(path),
                Err(source) => Err(ApiError::NoAssets { program, looked: directory.clone(), source }),
            }
        };
        Ok(Self { kube_apiserver: program("kube-apiserver")?, etcd: program("etcd")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_the_directory_that_the_set_up_fills() {
        let value = |script: &str, name: &str| {
            let path = format!("{}/../scripts/{script}", env!("CARGO_MANIFEST_DIR"));
            let script = std::fs::read_to_string(path).unwrap();
            script.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
        };
        let cache = value("kube-assets.sh", "cache=${XDG_CACHE_HOME:-$HOME/.cache}/");
        let version = value("kube-source.sh", "kube_version=");
        let directory = value("kube-assets.sh", "assets=$cache/").replace("$kube_version", &version);
        assert_eq!(CACHED, format!("{cache}/{directory}"));
    }
}
