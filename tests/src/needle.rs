//! Searches for a secret wherever it could have been left: in the memory of a process, in files, in text.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::Error;
use crate::host::Host;
use crate::inventory;
use crate::mounts::{OUTER_PROC, PRIVATE};

/// A 32-byte secret in every encoding in which it could be written.
#[derive(Clone, Debug)]
pub struct Secret {
    forms: Vec<Vec<u8>>,
}

impl Secret {
    /// Takes the raw bytes.
    pub fn new(raw: &[u8; 32]) -> Self {
        let text = |parts: Vec<String>, between: &str| parts.join(between).into_bytes();
        let decimal: Vec<String> = raw.iter().map(u8::to_string).collect();
        let hex = |upper: bool| {
            raw.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
        };
        let base64 = BASE64.encode(raw);
        let forms = vec![
            raw.to_vec(),
            // Without the last digits, so that padding and the alphabet for URLs make no difference more than needed.
            base64.trim_end_matches('=').as_bytes().to_vec(),
            base64.replace('+', "-").replace('/', "_").trim_end_matches('=').as_bytes().to_vec(),
            text(hex(false), ""),
            text(hex(true), ""),
            text(decimal.clone(), ","),
            text(decimal, ", "),
        ];
        Self { forms }
    }

    /// Takes base64. None if it does not decode to 32 bytes.
    pub fn from_base64(text: &str) -> Option<Self> {
        let raw: [u8; 32] = BASE64.decode(text).ok()?.try_into().ok()?;
        Some(Self::new(&raw))
    }

    /// The forms, raw bytes first.
    pub fn forms(&self) -> &[Vec<u8>] {
        &self.forms
    }

    /// How often the secret occurs in some bytes, in any form.
    pub fn count(&self, bytes: &[u8]) -> usize {
        let distinct: std::collections::BTreeSet<&Vec<u8>> = self.forms.iter().collect();
        distinct.into_iter().map(|form| memmem(bytes, form)).sum()
    }

    fn longest(&self) -> usize {
        self.forms.iter().map(Vec::len).max().unwrap_or_default()
    }
}

/// How often `needle` occurs in `hay`. Searches for the first byte first, since all memory of a process is searched.
fn memmem(hay: &[u8], needle: &[u8]) -> usize {
    let Some(first) = needle.first() else { return 0 };
    let mut found = 0;
    let mut from = 0;
    while let Some(at) = hay.get(from..).and_then(|rest| rest.iter().position(|byte| byte == first)) {
        let start = from + at;
        if hay.get(start..start + needle.len()) == Some(needle) {
            found += 1;
        }
        from = start + 1;
    }
    found
}

/// How often the secret occurs in the memory of a process: all that it may read. Needs root.
pub fn in_memory(pid: u32, secret: &Secret) -> io::Result<usize> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found = 0;
    for line in BufReader::new(File::open(format!("/proc/{pid}/maps"))?).lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        // The kernel's own pages can't be read this way.
        if !rights.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
            continue;
        }
        let Some((from, to)) = range.split_once('-') else { continue };
        let parse = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
        found += in_range(&memory, parse(from)?, parse(to)?, secret);
    }
    Ok(found)
}

fn in_range(memory: &File, from: u64, to: u64, secret: &Secret) -> usize {
    const PART: usize = 1 << 20;
    let overlap = secret.longest();
    let mut found = 0;
    let mut at = from;
    let mut kept: Vec<u8> = Vec::new();
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(PART).min(PART);
        let mut part = vec![0; len];
        // A page that was never touched, or that is gone by now, holds nothing.
        let read = memory.read_at(&mut part, at).unwrap_or_default();
        if read == 0 {
            at += len as u64;
            kept.clear();
            continue;
        }
        let before = secret.count(&kept);
        kept.extend_from_slice(&part[..read]);
        found += secret.count(&kept) - before;
        kept.drain(..kept.len().saturating_sub(overlap));
        at += read as u64;
    }
    found
}

/// The files of a host in which the secret is found, in the places that an [`Inventory`](crate::Inventory) covers.
/// Plants another secret in each of these places, and fails with [`Error::Blind`] unless that is found everywhere.
pub fn in_host(host: &Host, secret: &Secret) -> Result<Vec<PathBuf>, Error> {
    // Any bytes will do that nothing else writes.
    let decoy: [u8; 32] = *b"\xc3lab: planted to be found again\x9d";
    let places = PRIVATE.map(Path::new);
    host.run(|| {
        let controls = inventory::plant(&places, &decoy)?;
        let failed = |source| Error::File { action: "search", path: "/".into(), source };
        let found = in_files(&places, &Secret::new(&decoy)).map_err(failed)?;
        inventory::check(&controls, &found, host.name())?;
        in_files(&places, secret).map_err(failed)
    })?
}

/// The files below some directories in which the secret is found. Directories that are missing hold nothing.
pub fn in_files(directories: &[&Path], secret: &Secret) -> io::Result<Vec<PathBuf>> {
    // The outer /proc shows the whole machine; namespaces are no files that could be read.
    let skipped = [Path::new(OUTER_PROC), Path::new("/run/netns")];
    let mut found = Vec::new();
    for directory in directories {
        inventory::walk(directory, &skipped, &mut |path, metadata| {
            if !metadata.is_file() {
                return Ok(());
            }
            let contents = inventory::present(std::fs::read(path))?;
            if contents.is_some_and(|bytes| secret.count(&bytes) > 0) {
                found.push(path.to_owned());
            }
            Ok(())
        })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_and_another_secret_is_not() {
        let raw: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7 + 3).unwrap());
        let secret = Secret::new(&raw);
        let other = Secret::new(&[0x5a; 32]);
        for form in secret.forms() {
            let hay = [b"before ".as_slice(), form, b" after"].concat();
            assert!(secret.count(&hay) > 0);
            assert_eq!(other.count(&hay), 0);
        }
        assert!(Secret::from_base64("c2hvcnQ=").is_none());
    }

    #[test]
    fn a_secret_in_the_memory_of_another_process_is_found() {
        use std::os::unix::ffi::OsStrExt as _;

        let raw: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).unwrap().wrapping_mul(91) ^ 0x3c);
        let secret = Secret::new(&raw);
        // The search holds forms of its own, so another process is searched. The environment is in its memory.
        let count = |value: &[u8]| {
            let mut sleep = std::process::Command::new("sleep");
            let mut child =
                sleep.arg("60").env("NEEDLE", std::ffi::OsStr::from_bytes(value)).spawn().unwrap();
            let found = in_memory(child.id(), &secret);
            child.kill().unwrap();
            child.wait().unwrap();
            found.unwrap()
        };
        assert!(count(&secret.forms()[1]) > 0);
        assert!(count(&secret.forms()[3]) > 0);
        assert_eq!(count(b"nothing"), 0);
    }

    #[test]
    fn a_secret_in_a_file_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let secret = Secret::new(&[7; 32]);
        std::fs::create_dir(directory.path().join("deep")).unwrap();
        std::fs::write(directory.path().join("deep/file"), BASE64.encode([7; 32])).unwrap();
        std::fs::write(directory.path().join("other"), BASE64.encode([8; 32])).unwrap();
        let found = in_files(&[directory.path(), Path::new("/nowhere")], &secret).unwrap();
        assert_eq!(found, [directory.path().join("deep/file")]);
    }
}
