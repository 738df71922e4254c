//! Other network namespaces: open one, run something inside.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::HostError;

/// An open network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: File,
    path: PathBuf,
}

impl NetworkNamespace {
    /// Opens the namespace that is mounted at, or linked from, a path.
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let failed = |source| HostError::Namespace { operation: "open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        // The nsfs file system alone has such files; any other file at the path is a left-over mount point.
        let kind = rustix::fs::fstatfs(&file).map_err(|errno| failed(errno.into()))?.f_type;
        if kind != NSFS_MAGIC {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Whether there is a namespace at a path. A file of another kind is the mount point of one that is gone.
    pub fn is_at(path: &Path) -> Result<bool, HostError> {
        match Self::open(path) {
            Ok(_) => Ok(true),
            Err(HostError::Namespace { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this is the namespace that the calling thread is in.
    pub fn is_own(&self) -> Result<bool, HostError> {
        let own = Self::open(Path::new("/proc/thread-self/ns/net"))?;
        let identity = |namespace: &Self| {
            let failed =
                |source| HostError::Namespace { operation: "inspect", path: namespace.path.clone(), source };
            namespace.file.metadata().map(|data| (data.dev(), data.ino())).map_err(failed)
        };
        Ok(identity(&own)? == identity(self)?)
    }

    /// The descriptor, for netlink messages that name a namespace.
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` inside, on a thread of its own: the calling thread stays where it is.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, HostError> {
        let failed = |source| HostError::Namespace { operation: "enter", path: self.path.clone(), source };
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<T, rustix::io::Errno>(work())
            });
            match inside.map_err(failed)?.join() {
                Ok(done) => done.map_err(|errno| failed(errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// `NSFS_MAGIC` (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
