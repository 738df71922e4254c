//! Container images made of files, without a registry and a builder: what `ctr images import` reads.
//!
//! An archive has a configuration, one layer, and a manifest that names both, as `docker save` writes them.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::ClusterError;
use crate::error::Error;

/// What an image contains.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// Its full name with a tag.
    pub name: &'a str,
    /// Files on the machine, and their paths in the image.
    pub files: &'a [(&'a Path, &'a str)],
    /// Symbolic links in the image, and what they lead to.
    pub links: &'a [(&'a str, &'a str)],
    /// What a container of it runs.
    pub entrypoint: &'a [&'a str],
}

impl Image<'_> {
    /// Writes the archive. The same files give the same archive.
    pub fn write(&self, archive: &Path) -> Result<(), ClusterError> {
        let directory = tempfile::tempdir().map_err(|source| file("create", Path::new("/tmp"), source))?;
        let at = |name: &str| directory.path().join(name);
        self.lay_out(&at("root"))?;
        tar(&at("root"), &at("layer.tar"), &["."])?;
        let layer = digest(&at("layer.tar"))?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
            "history": [{"created_by": "meshd"}],
        });
        write(&at("config.json"), config.to_string().as_bytes())?;
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        write(&at("manifest.json"), manifest.to_string().as_bytes())?;
        // Renamed last: an archive that is there is complete.
        let partial = archive.with_extension(format!("{}.new", std::process::id()));
        tar(directory.path(), &partial, &["manifest.json", "config.json", "layer.tar"])?;
        fs::rename(&partial, archive).map_err(|source| file("create", archive, source))
    }

    fn lay_out(&self, root: &Path) -> Result<(), ClusterError> {
        let place = |path: &str| -> Result<PathBuf, ClusterError> {
            let path = root.join(path.trim_start_matches('/'));
            let above = path.parent().unwrap_or(root);
            fs::create_dir_all(above).map_err(|source| file("create", above, source))?;
            Ok(path)
        };
        for (from, to) in self.files {
            let to = place(to)?;
            fs::copy(from, &to).map_err(|source| file("copy", from, source))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
                .map_err(|source| file("change the mode of", &to, source))?;
        }
        for (link, target) in self.links {
            let link = place(link)?;
            symlink(target, &link).map_err(|source| file("create", &link, source))?;
        }
        Ok(())
    }
}

/// Packs entries of a directory in this order, with nothing in it that depends on the machine.
fn tar(directory: &Path, archive: &Path, entries: &[&str]) -> Result<(), ClusterError> {
    let mut command = Command::new("tar");
    command.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
        "--format=ustar",
    ]);
    command.arg("-C").arg(directory).arg("-cf").arg(archive).args(entries);
    let output = command.output().map_err(|source| file("pack", archive, source))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(file("pack", archive, io::Error::other(said)))
}

fn digest(path: &Path) -> Result<String, ClusterError> {
    let failed = |source| file("read", path, source);
    let (mut input, mut hash) = (fs::File::open(path).map_err(failed)?, Sha256::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = input.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            return Ok(format!("{:x}", hash.finalize()));
        }
        hash.update(buffer.get(..length).unwrap_or_default());
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ClusterError> {
    fs::write(path, bytes).map_err(|source| file("write", path, source))
}

fn file(action: &'static str, path: &Path, source: io::Error) -> ClusterError {
    ClusterError::Lab(Error::File { action, path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_archive_with_a_manifest_first() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "text").unwrap();
        let image = Image {
            name: "localhost/test:1",
            files: &[(&program, "/bin/program")],
            links: &[("/bin/other", "program")],
            entrypoint: &["/bin/program"],
        };
        let archives = ["one.tar", "two.tar"].map(|name| {
            let archive = directory.path().join(name);
            image.write(&archive).unwrap();
            fs::read(archive).unwrap()
        });
        assert_eq!(archives[0], archives[1]);
        // A reader that stops early has to have seen the manifest.
        assert!(archives[0].starts_with(b"manifest.json\0"));
        let names = [b"RepoTags".as_slice(), b"localhost/test:1", b"bin/program", b"bin/other"];
        for name in names {
            assert!(archives[0].windows(name.len()).any(|window| window == name));
        }
    }
}
