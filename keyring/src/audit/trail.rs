//! The trail's files: lines are appended and on disk before anything depends on them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::event::{Event, NodeRef};
use super::head::Head;
use super::line::Line;

/// Name of the file that lines are appended to. Full files are named `audit-NUMBER.jsonl` after their first
/// line.
const FILE: &str = "audit.jsonl";

/// Longest file that is read, in bytes: one is archived before it is a tenth as long.
const MAX_FILE_LEN: u64 = 128 << 20;

/// What was found when a trail was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Bytes of an incomplete last line, left by a crash, that were removed.
    pub torn: u64,
    /// The file was damaged: the name under which it was archived, and how many of its lines can't be read.
    pub damaged: Option<(String, u64)>,
}

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
    /// that reaches `limit` bytes is archived; `keep` archived files are kept.
    ///
    /// An incomplete last line is removed. A file with lines that can't be read is archived as it is, for `verify` to
    /// report, and the trail goes on in a new file: damage never keeps the daemon from starting.
    pub fn open(directory: &Path, limit: u64, keep: usize) -> Result<(Self, Opening), TrailError> {
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
        let mut bytes = Vec::new();
        let whole = (&mut file).take(MAX_FILE_LEN).read_to_end(&mut bytes).map_err(failed("read"))?;
        let too_long = whole as u64 >= MAX_FILE_LEN;
        let mut end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if End::of(&bytes[end..]).last.is_some() && !too_long {
            // Only the newline is missing.
            file.write_all(b"\n").map_err(failed("repair"))?;
            bytes.push(b'\n');
            end = bytes.len();
        }
        let torn = if too_long { 0 } else { (bytes.len() - end) as u64 };
        if torn > 0 {
            file.set_len(end as u64).map_err(failed("repair"))?;
        }
        let found = End::of(&bytes[..end]);
        let head = if found.lines == 0 || found.last.is_none() {
            // What is archived says where this file began.
            let before = last_archived(directory).map_err(failed("read"))?;
            before.after(found.lines)
        } else {
            found.head()
        };
        let first = found.first.unwrap_or_else(|| head.seq.saturating_add(1));
        let (directory, len) = (directory.to_owned(), end as u64);
        let mut trail = Self { directory, file, len, first, head, limit, keep };
        let mut opening = Opening { torn, damaged: None };
        if too_long || found.unreadable > 0 {
            let name = trail.archive().map_err(failed("archive"))?;
            opening.damaged = Some((name, found.unreadable));
        }
        Ok((trail, opening))
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

    /// Renames the file after its first line and starts a new one; returns the name.
    fn archive(&mut self) -> io::Result<String> {
        let path = self.directory.join(FILE);
        let name = |first| format!("audit-{first:020}.jsonl");
        // There can be such a file only if one of the two is damaged.
        while self.directory.join(name(self.first)).symlink_metadata().is_ok() {
            self.first = self.first.saturating_add(1);
        }
        let name = name(self.first);
        std::fs::rename(&path, self.directory.join(&name))?;
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        File::open(&self.directory)?.sync_all()?;
        (self.file, self.len, self.first) = (file, 0, self.head.seq.saturating_add(1));
        let archived = archived_files(&self.directory)?;
        for old in archived.iter().take(archived.len().saturating_sub(self.keep)) {
            std::fs::remove_file(old)?;
        }
        Ok(name)
    }
}

/// Where a file of a trail ends.
#[derive(Debug, Default)]
struct End {
    /// Number of the first line that can be read.
    first: Option<u64>,
    /// The last line that can be read.
    last: Option<Head>,
    lines: u64,
    unreadable: u64,
    /// Lines behind the last one that can be read.
    behind: u64,
}

impl End {
    /// Errors in the chain are for `verify` to report; here only matters what can be read.
    fn of(bytes: &[u8]) -> Self {
        let mut end = Self::default();
        // A newline ends a line; only a damaged file has something behind the last one.
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            end.lines += 1;
            if let Some(line) = std::str::from_utf8(line).ok().and_then(|line| Line::parse(line).ok()) {
                end.first = end.first.or(Some(line.seq));
                (end.last, end.behind) = (Some(line.head()), 0);
            } else {
                end.unreadable += 1;
                end.behind += 1;
            }
        }
        end
    }

    /// The head. Lines that can't be read keep their numbers, which witnesses may have recorded; their hash is unknown.
    fn head(&self) -> Head {
        let last = self.last.unwrap_or_default();
        if self.behind == 0 {
            last
        } else {
            Head { seq: last.seq.saturating_add(self.behind), hash: [0; 32] }
        }
    }

    /// The head of a file of `lines` lines behind this one, none of which can be read.
    fn after(mut self, lines: u64) -> Head {
        self.behind = self.behind.saturating_add(lines);
        self.head()
    }
}

/// Where a daemon would go on behind a file of a trail, and how many of its lines can't be read. For the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn end_of_file(bytes: &[u8]) -> (Head, u64) {
    let end = End::of(bytes);
    (end.head(), end.unreadable)
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

/// Removes the files of a trail and of the witness trail in it, and then its directory unless something else is in it.
/// Of a symbolic link only the link is removed: what it leads to was put elsewhere by somebody. Returns whether there was
/// anything to remove.
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
    let mut found = remove(&directory.join(super::WITNESS_DIRECTORY))?;
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
        let read = read_file(&path);
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

/// A file of a trail, as far as it is not longer than any.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_LEN).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where the archived files end.
fn last_archived(directory: &Path) -> io::Result<End> {
    match archived_files(directory)?.pop() {
        Some(path) => Ok(End::of(&read_file(&path)?)),
        None => Ok(End::default()),
    }
}

/// An operation on the trail's files failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the audit trail {}", path.display())]
pub struct TrailError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}
