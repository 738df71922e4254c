//! The fuzz targets' code, so that their corpora also run as ordinary tests.

use std::path::PathBuf;

use crate::audit::{Format, Line, end_of_file, export, report, verify};
use crate::pq::Message;
use crate::store::{SealingKey, format};

/// Parses bytes as a trail and processes it as an auditor would, and as a daemon that starts. A trail without findings
/// consists of complete lines and nothing else. A line that can be read is never written again with the same number.
///
/// # Panics
///
/// If that does not hold.
pub fn trail(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let verdict = verify(&[(PathBuf::from("audit.jsonl"), text.clone())]);
    let lines: Vec<&Line> = verdict.lines.iter().collect();
    for format in [Format::Jsonl, Format::Csv, Format::Ocsf] {
        let _ = export(&lines, format);
    }
    let _ = report(&[&verdict.lines], 0, 1);
    let _ = verdict.gaps();
    let (head, unreadable) = end_of_file(bytes);
    let is_text = std::str::from_utf8(bytes).is_ok();
    if let Some(last) = verdict.lines.last().filter(|_| is_text) {
        assert!(head.seq >= last.seq);
    }
    if verdict.findings.is_empty() {
        assert!(unreadable == 0 || !is_text);
        assert_eq!(verdict.lines.len(), text.split_terminator('\n').count());
        assert!(!text.contains('\r'));
    }
}

/// Reads bytes as a key file: as it is, and with the checksum that belongs to what is in it. What is read must be written and
/// read again the same, and have the keys that its journal names.
///
/// # Panics
///
/// If that does not hold.
pub fn key_file(bytes: &[u8]) {
    let key = SealingKey::new([7; 32]);
    assert!(key.open(bytes).is_err(), "sealed without the key");
    let checked = format::with_checksum(bytes);
    for text in [Some(bytes), checked.as_deref()].into_iter().flatten() {
        let Ok(keys) = format::parse(text) else { continue };
        assert!(keys.journal.keys().all(|key| keys.private(&key).is_some()));
        let written = format::render(&keys, true);
        assert_eq!(format::parse(&written).map(|keys| format::render(&keys, true)), Ok(written));
    }
}

/// Decodes bytes as a message about preshared keys. What is decoded must encode to the same bytes.
///
/// # Panics
///
/// If that does not hold.
pub fn pq_message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_key_files_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/key_file");
        let (mut count, mut read) = (0, 0);
        for entry in std::fs::read_dir(dir).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            key_file(&bytes);
            read +=
                usize::from(format::with_checksum(&bytes).is_some_and(|text| format::parse(&text).is_ok()));
            count += 1;
        }
        assert!(count >= 8 && read >= 4, "{count} files, {read} key files in the corpus");
    }

    #[test]
    fn the_corpus_of_preshared_key_messages_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/pq_message");
        let mut count = 0;
        let mut read = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            pq_message(&bytes);
            read += usize::from(Message::decode(&bytes).is_ok());
            count += 1;
        }
        assert!(count >= 14 && read >= 9, "{count} files, {read} messages in the corpus");
    }
}
