//! The trail's files: lines are appended and on disk before anybody relies on them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::event::{Event, NodeRef};
use super::line::{Head, Line};

/// Name of the file that grows. Full ones are called `audit-NUMBER.jsonl` by their first line.
const FILE: &str = "audit.jsonl";

/// A trail that is written. Only one process can.
#[derive(Debug)]
pub struct Trail {
    folder: PathBuf,
    file: File,
    len: u64,
    /// First line of the growing file.
    first: u64,
    head: Head,
    limit: u64,
    keep: usize,
}

impl Trail {
    /// Opens the trail in `folder`, which is made if it is missing, and goes on where it ends. A file that reaches
    /// `limit` bytes is put aside; `keep` such files stay. The number of bytes that a crash left of a last line, and
    /// that were cut off, is the second value.
    pub fn open(folder: &Path, limit: u64, keep: usize) -> Result<(Self, u64), TrailError> {
        let path = folder.join(FILE);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |source| TrailError { operation, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make"))?;
        let open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = open.map_err(failed("open"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed("lock (another daemon may be writing it)")(errno.into()))?;
        let mut text = String::new();
        let whole = file.read_to_string(&mut text).map_err(failed("read"))?;
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        let torn = (whole - end) as u64;
        if torn > 0 {
            file.set_len(end as u64).map_err(failed("repair"))?;
            file.seek(io::SeekFrom::End(0)).map_err(failed("repair"))?;
        }
        let mut lines = text[..end].lines();
        // What is wrong in the middle is for `verify` to say; here only the end matters.
        let first = lines.clone().next().and_then(|line| Line::parse(line).ok()).map(|line| line.seq);
        let last = match lines.next_back() {
            Some(line) => Line::parse(line).ok(),
            None => last_of_aside(folder).map_err(failed("read"))?,
        };
        let head = last.map(|line| line.head()).unwrap_or_default();
        let first = first.unwrap_or(head.seq + 1);
        let trail = Self { folder: folder.to_owned(), file, len: end as u64, first, head, limit, keep };
        Ok((trail, torn))
    }

    /// Where the trail ends.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Appends events. When this returns they are on disk; when it fails none of them counts.
    pub fn append(
        &mut self,
        time: u64,
        boot: &str,
        node: &NodeRef,
        events: &[Event],
    ) -> Result<Head, TrailError> {
        let path = self.folder.join(FILE);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |source| TrailError { operation, path, source }
        };
        if self.len >= self.limit {
            self.put_aside().map_err(failed("put aside"))?;
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
            // Half a line would break the chain; if it can't be cut off now it is at the next start.
            let _ = self.file.set_len(self.len);
            return Err(failed("append to")(source));
        }
        self.len += text.len() as u64;
        self.head = head;
        Ok(head)
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let path = self.folder.join(FILE);
        std::fs::rename(&path, self.folder.join(format!("audit-{:020}.jsonl", self.first)))?;
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        File::open(&self.folder)?.sync_all()?;
        (self.file, self.len, self.first) = (file, 0, self.head.seq + 1);
        let aside = aside(&self.folder)?;
        for old in aside.iter().take(aside.len().saturating_sub(self.keep)) {
            std::fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// The files of a trail, in order. A file is taken for a trail of its own.
pub fn files(place: &Path) -> Result<Vec<PathBuf>, TrailError> {
    let failed = |source| TrailError { operation: "find", path: place.to_owned(), source };
    if std::fs::metadata(place).map_err(failed)?.is_file() {
        return Ok(vec![place.to_owned()]);
    }
    let mut files = aside(place).map_err(failed)?;
    files.push(place.join(FILE));
    Ok(files)
}

/// Removes the files of a trail, and then its directory unless something else is in it. Returns whether there was a trail.
pub fn remove(directory: &Path) -> Result<bool, TrailError> {
    let failed = |source| TrailError { operation: "remove", path: directory.to_owned(), source };
    if !directory.is_dir() {
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

fn aside(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_prefix("audit-").is_some_and(|rest| rest.strip_suffix(".jsonl").is_some()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn last_of_aside(folder: &Path) -> io::Result<Option<Line>> {
    let Some(path) = aside(folder)?.pop() else { return Ok(None) };
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().next_back().and_then(|line| Line::parse(line).ok()))
}

/// A file of the trail could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the audit trail {}", path.display())]
pub struct TrailError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}
