//! Where the built programs of the workspace are: beside the test or demo that runs.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The path of a program of the workspace, for example `meshd`. Cargo does not build the programs of other packages
/// when it builds a test, so they have to be built before: `cargo build -p meshd -p cni`.
pub fn bin(name: &str) -> Result<PathBuf, Error> {
    let path = profile_dir()?.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let hint = "not built; run `cargo build --bins` with the same profile first";
    Err(Error::File { action: "find", path, source: io::Error::new(io::ErrorKind::NotFound, hint) })
}

/// The directory of this build profile, `target/debug` for example.
pub(crate) fn profile_dir() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(|source| Error::File {
        action: "find",
        path: "the running program".into(),
        source,
    })?;
    let dir = own.parent().unwrap_or_else(|| Path::new("/"));
    // Tests are in `deps`, examples in `examples`, programs in the directory itself.
    let in_subfolder = ["deps", "examples"].iter().any(|name| dir.ends_with(name));
    Ok(if in_subfolder { dir.parent().unwrap_or(dir) } else { dir }.to_path_buf())
}

/// Cargo's target directory.
pub fn target_dir() -> Result<PathBuf, Error> {
    let profile = profile_dir()?;
    Ok(profile.parent().unwrap_or(&profile).to_path_buf())
}
