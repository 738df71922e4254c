//! The trail's files: lines are appended and on disk before anything depends on them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::event::{Event, NodeRef};
use super::head::Head;
use super::line::Line;

/// Name of the file that lines are appended to. Full files are named `audit-NUMBER.jsonl` after their first
/// line.
const FILE: &str = "audit.jsonl";

/// A trail opened for writing. Only one process can.
#[derive(Debug)]
pub struct Trail {
    directory: PathBuf,
    file: File,
    len: u64,
    /// Number of the file's first line.
    first: u64,
    head: Head,
    limit: u64,
    keep: usize,
}

impl Trail {
    /// Opens the trail in `directory`, which is created if it is missing, and continues where it ends. A file
    /// that reaches `limit` bytes is archived; `keep` archived files are kept. Also returns how many bytes of
    /// an incomplete last line, left by a crash, were removed.
    pub fn open(directory: &Path, limit: u64, keep: usize) -> Result<(Self, u64), TrailError> {
        let path = directory.join(FILE);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |source| TrailError { operation, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create"))?;
        let open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = open.map_err(failed("open"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed("lock (is another daemon writing it?)")(errno.into()))?;
        let mut text = String::new();
        let whole = file.read_to_string(&mut text).map_err(failed("read"))?;
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        let torn = (whole - end) as u64;
        if torn > 0 {
            file.set_len(end as u64).map_err(failed("repair"))?;
            file.seek(io::SeekFrom::End(0)).map_err(failed("repair"))?;
        }
        let mut lines = text[..end].lines();
        // Errors in the middle are for `verify` to report; here only the end matters.
        let first = lines.clone().next().and_then(|line| Line::parse(line).ok()).map(|line| line.seq);
        let last = match lines.next_back() {
            Some(line) => Line::parse(line).ok(),
            None => last_archived_line(directory).map_err(failed("read"))?,
        };
        let head = last.map(|line| line.head()).unwrap_or_default();
        let first = first.unwrap_or(head.seq + 1);
        let trail = Self { directory: directory.to_owned(), file, len: end as u64, first, head, limit, keep };
        Ok((trail, torn))
    }

    /// Where the trail ends.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Appends events. They are on disk when this returns; if it fails, none of them is part of the trail.
    pub fn append(
        &mut self,
        time: u64,
        boot: &str,
        node: &NodeRef,
        events: &[Event],
    ) -> Result<Head, TrailError> {
        let path = self.directory.join(FILE);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |source| TrailError { operation, path, source }
        };
        if self.len >= self.limit {
            self.archive().map_err(failed("archive"))?;
        }
        let (mut text, mut head) = (String::new(), self.head);
        for event in events {
            let (line, next) = Line::write(&head, time, boot, node, event);
            text += &line;
            text.push('\n');
            head = next;
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // An incomplete line would break the chain; if it can't be removed now it is at the next start.
            let _ = self.file.set_len(self.len);
            return Err(failed("append to")(source));
        }
        self.len += text.len() as u64;
        self.head = head;
        Ok(head)
    }

    fn archive(&mut self) -> io::Result<()> {
        let path = self.directory.join(FILE);
        std::fs::rename(&path, self.directory.join(format!("audit-{:020}.jsonl", self.first)))?;
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        File::open(&self.directory)?.sync_all()?;
        (self.file, self.len, self.first) = (file, 0, self.head.seq + 1);
        let archived = archived_files(&self.directory)?;
        for old in archived.iter().take(archived.len().saturating_sub(self.keep)) {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// The files of a trail, in order. A path to a file is taken as a trail of one file.
pub fn files(place: &Path) -> Result<Vec<PathBuf>, TrailError> {
    let failed = |source| TrailError { operation: "find", path: place.to_owned(), source };
    if std::fs::metadata(place).map_err(failed)?.is_file() {
        return Ok(vec![place.to_owned()]);
    }
    let mut files = archived_files(place).map_err(failed)?;
    files.push(place.join(FILE));
    Ok(files)
}

/// Removes the files of a trail, and then its directory unless something else is in it. Of a symbolic link only the link
/// is removed: what it leads to was put elsewhere by somebody. Returns whether there was anything to remove.
pub fn remove(directory: &Path) -> Result<bool, TrailError> {
    let failed = |source| TrailError { operation: "remove", path: directory.to_owned(), source };
    let kind = match std::fs::symlink_metadata(directory) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(source) => return Err(failed(source)),
    };
    if kind.is_symlink() {
        return std::fs::remove_file(directory).map(|()| true).map_err(failed);
    }
    if !kind.is_dir() {
        return Ok(false);
    }
    let mut found = false;
    for file in files(directory)? {
        match std::fs::remove_file(&file) {
            Ok(()) => found = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(TrailError { operation: "remove", path: file, source }),
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(found),
        Err(error) => Err(failed(error)),
        Ok(()) => Ok(true),
    }
}

/// The text of each file of a trail.
pub fn read(place: &Path) -> Result<Vec<(PathBuf, String)>, TrailError> {
    let text = |path: PathBuf| {
        let read = std::fs::read(&path);
        let bytes = read.map_err(|source| TrailError { operation: "read", path: path.clone(), source })?;
        Ok((path, String::from_utf8_lossy(&bytes).into_owned()))
    };
    files(place)?.into_iter().map(text).collect()
}

fn archived_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_prefix("audit-").is_some_and(|rest| rest.strip_suffix(".jsonl").is_some()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn last_archived_line(directory: &Path) -> io::Result<Option<Line>> {
    let Some(path) = archived_files(directory)?.pop() else { return Ok(None) };
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().next_back().and_then(|line| Line::parse(line).ok()))
}

/// An operation on the trail's files failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the audit trail {}", path.display())]
pub struct TrailError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}
