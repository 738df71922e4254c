use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::pq::StoredPreshared;
use crate::rotation::PeerId;
use crate::{PerSlot, PrivateKey};

fn store() -> (tempfile::TempDir, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(&directory.path().join("keys"), Protection::PlainOnDisk).unwrap();
    (directory, store)
}

#[test]
fn what_was_saved_is_loaded() {
    let (_folder, store) = store();
    assert!(store.load().unwrap().is_none());
    let keys = NodeKeys::cold(7, 0).unwrap();
    store.save(&keys).unwrap();
    let loaded = store.load().unwrap().unwrap();
    assert_eq!(loaded.journal.generation, 7);
    assert_eq!(loaded.journal, keys.journal);
    let secrets = |keys: &NodeKeys| -> Vec<_> { keys.named().map(|key| *key.expose()).collect() };
    assert_eq!(secrets(&loaded), secrets(&keys));
    assert_ne!(secrets(&keys)[0], secrets(&keys)[1]);
}

#[test]
fn a_key_that_the_journal_does_not_name_is_not_written() {
    let (_folder, store) = store();
    let mut keys = NodeKeys::cold(1, 0).unwrap();
    let spare = PrivateKey::generate().unwrap();
    let text = spare.to_base64();
    let public = keys.hold(spare);
    store.save(&keys).unwrap();
    assert!(!std::fs::read_to_string(store.path()).unwrap().contains(text.as_str()));
    assert!(store.load().unwrap().unwrap().private(&public).is_none());
    assert!(keys.destroy(&public) && keys.private(&public).is_none());
    let named = keys.journal.slots.a.key;
    assert!(!keys.destroy(&named) && keys.private(&named).is_some());
}

#[test]
fn a_missing_or_mismatched_key_is_detected() {
    let (_folder, store) = store();
    let keys = NodeKeys::cold(1, 0).unwrap();
    store.save(&keys).unwrap();
    let text = std::fs::read_to_string(store.path()).unwrap();
    let ours = keys.private(&keys.journal.slots.b.key).unwrap().to_base64();
    let other = PrivateKey::generate().unwrap().to_base64();
    for damaged in [text.replace(ours.as_str(), &other), text.replace(&format!(",\"{}\"", ours.as_str()), "")]
    {
        assert_ne!(damaged, text);
        std::fs::write(store.path(), damaged).unwrap();
        let error = store.load().unwrap_err();
        assert!(matches!(error, StoreError::Format { source: FormatError::Incomplete, .. }), "{error:?}");
    }
}

#[test]
fn file_and_directory_are_private() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&store.path()), 0o600);
    assert_eq!(mode(store.path().parent().unwrap()), 0o700);
}

#[test]
fn a_second_save_replaces_the_first_and_leaves_no_copy() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    store.save(&NodeKeys::cold(2, 0).unwrap()).unwrap();
    assert_eq!(store.load().unwrap().unwrap().journal.generation, 2);
    assert_eq!(std::fs::read_dir(store.path().parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn every_truncated_file_is_an_error_and_never_a_new_identity() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    let whole = std::fs::read(store.path()).unwrap();
    // The last byte is the newline; without it the object is still complete.
    for len in 0..whole.len() - 1 {
        std::fs::write(store.path(), &whole[..len]).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Format { .. })), "{len} bytes");
    }
}

#[test]
fn a_changed_value_is_detected() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    let text = std::fs::read_to_string(store.path()).unwrap();
    std::fs::write(store.path(), text.replace("\"generation\":1,\"prefer\"", "\"generation\":9,\"prefer\""))
        .unwrap();
    let error = store.load().unwrap_err();
    assert!(matches!(error, StoreError::Format { source: FormatError::Checksum, .. }), "{error:?}");
}

#[test]
fn a_newer_version_is_reported() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    let text = std::fs::read_to_string(store.path()).unwrap();
    std::fs::write(store.path(), text.replace("{\"v\":3", "{\"v\":4")).unwrap();
    let error = store.load().unwrap_err();
    assert!(
        matches!(error, StoreError::Format { source: FormatError::Version { found: 4, .. }, .. }),
        "{error:?}"
    );
}

#[test]
fn open_modes_are_refused() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    std::fs::set_permissions(store.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Mode { found: 0o640, .. })));
    let directory = store.path().parent().unwrap().to_owned();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(
        FileStore::open(&directory, Protection::PlainOnDisk),
        Err(StoreError::Mode { found: 0o755, .. })
    ));
}

#[test]
fn links_are_refused() {
    let (directory, store) = store();
    let elsewhere = directory.path().join("elsewhere");
    std::fs::write(&elsewhere, "{}").unwrap();
    std::os::unix::fs::symlink(&elsewhere, store.path()).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Link { .. })));
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(store.path().parent().unwrap(), &link).unwrap();
    assert!(matches!(FileStore::open(&link, Protection::PlainOnDisk), Err(StoreError::NotADirectory { .. })));
}

#[test]
fn another_owner_is_refused() {
    assert!(rustix::process::geteuid().is_root(), "needs root: only root can give a file to somebody else");
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    std::os::unix::fs::chown(store.path(), Some(65534), None).unwrap();
    assert!(matches!(store.load(), Err(StoreError::Owner { found: 65534, .. })));
}

#[test]
fn a_full_disk_keeps_the_old_keys() {
    let (_folder, store) = store();
    store.save(&NodeKeys::cold(1, 0).unwrap()).unwrap();
    // A directory in the temporary file's place makes the write fail as a full disk does: before the rename.
    std::fs::create_dir(store.path().with_file_name(TEMPORARY)).unwrap();
    assert!(matches!(store.save(&NodeKeys::cold(2, 0).unwrap()), Err(StoreError::Write { .. })));
    assert_eq!(store.load().unwrap().unwrap().journal.generation, 1);
}

#[test]
fn no_error_shows_a_secret() {
    let (_folder, store) = store();
    let keys = NodeKeys::cold(1, 0).unwrap();
    store.save(&keys).unwrap();
    let secret = keys.private(&keys.journal.slots.a.key).unwrap().to_base64();
    let text = std::fs::read_to_string(store.path()).unwrap();
    for damaged in [
        text.replace("\"checksum\":", "\"checksum\""),
        text.replace('=', "!"),
        text.replace("\"keys\":[\"", "\"keys\":[\"x"),
    ] {
        std::fs::write(store.path(), damaged).unwrap();
        let error = store.load().unwrap_err();
        let shown =
            format!("{error} {error:?} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(!shown.contains(secret.trim_end_matches('=')), "{shown}");
    }
}

/// A store in the same directory, sealed with a key of this byte.
fn sealed(store: &FileStore, byte: u8) -> FileStore {
    let protection = Protection::Sealed(SealingKey::new([byte; 32]));
    FileStore::open(store.path().parent().unwrap(), protection).unwrap()
}

#[test]
fn by_default_a_directory_on_a_disk_is_refused() {
    let (directory, _store) = store();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(in_memory(memory.path()).unwrap(), "/dev/shm is expected to be a tmpfs");
    FileStore::open(&memory.path().join("keys"), Protection::Tmpfs).unwrap();
    // Whatever /tmp is here, the process's own settings are on no disk and on no tmpfs either.
    assert!(!in_memory(Path::new("/proc/self")).unwrap());
    if !in_memory(directory.path()).unwrap() {
        let refused = FileStore::open(&directory.path().join("other"), Protection::Tmpfs).unwrap_err();
        assert!(matches!(refused, StoreError::OnDisk { .. }), "{refused:?}");
    }
}

#[test]
fn a_sealed_file_opens_only_with_its_key() {
    let (_folder, plain) = store();
    let store = sealed(&plain, 1);
    let keys = NodeKeys::cold(7, 0).unwrap();
    store.save(&keys).unwrap();
    let text = std::fs::read(store.path()).unwrap();
    for key in keys.named() {
        let secret = key.to_base64();
        assert!(!text.windows(secret.len()).any(|part| part == secret.as_bytes()));
    }
    assert!(!text.windows(10).any(|part| part == b"generation"));
    assert_eq!(store.load().unwrap().unwrap().journal, keys.journal);
    let refused = sealed(&plain, 2).load().unwrap_err();
    assert!(matches!(refused, StoreError::Seal { source: SealError::WrongKey, .. }), "{refused:?}");
    assert!(matches!(plain.load(), Err(StoreError::IsSealed { .. })));
    store.save(&keys).unwrap();
    assert_ne!(std::fs::read(store.path()).unwrap(), text, "a nonce is never used twice");
}

#[test]
fn a_sealed_file_that_is_changed_anywhere_is_refused() {
    let (_folder, plain) = store();
    let store = sealed(&plain, 1);
    store.save(&NodeKeys::cold(7, 0).unwrap()).unwrap();
    let whole = std::fs::read(store.path()).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(store.path(), &changed).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Seal { .. })), "byte {at}");
        std::fs::write(store.path(), &whole[..at]).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Seal { .. })), "{at} bytes");
    }
}

#[test]
fn a_plain_file_is_not_taken_for_a_sealed_one() {
    let (_folder, plain) = store();
    plain.save(&NodeKeys::cold(7, 0).unwrap()).unwrap();
    let refused = sealed(&plain, 1).load().unwrap_err();
    assert!(matches!(refused, StoreError::Seal { source: SealError::NotSealed, .. }), "{refused:?}");
}

#[test]
fn a_sealing_key_is_32_bytes_that_nobody_else_may_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let write = |text: &[u8], mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        SealingKey::read(&path)
    };
    let raw = [7; 32];
    let text =
        [base64::Engine::encode(&base64::engine::general_purpose::STANDARD, raw).as_bytes(), b"\n"].concat();
    let (_folder, plain) = store();
    sealed(&plain, 7).save(&NodeKeys::cold(7, 0).unwrap()).unwrap();
    let file = std::fs::read(plain.path()).unwrap();
    for right in [raw.as_slice(), &text] {
        write(right, 0o400).unwrap().open(&file).unwrap();
    }
    for wrong in [b"".as_slice(), &raw[..31], &[7; 33], &text[..40], b"no key, but a line of words as long"] {
        assert!(matches!(write(wrong, 0o600), Err(SealError::NotAKey { .. })), "{wrong:?}");
    }
    assert!(matches!(write(&raw, 0o440), Err(SealError::Mode { found: 0o440, .. })));
    assert!(matches!(SealingKey::read(&directory.path().join("none")), Err(SealError::Read { .. })));
}

/// Keys with one preshared key on one slot, and the epoch of one on the other.
fn ring_with_preshared() -> (NodeKeys, crate::PresharedId) {
    let mut keys = NodeKeys::cold(1, 0).unwrap();
    let preshared = crate::PresharedKey::from_bytes(&[0x33; 32]).unwrap();
    let id = preshared.id();
    let peer = PrivateKey::generate().unwrap().public();
    let statics = crate::pq::StaticKeys { own: keys.journal.slots.a.key, peer };
    let a = StoredPreshared { epoch: 7, key: Some((preshared, statics)) };
    let b = StoredPreshared { epoch: 8, key: None };
    keys.store_preshared(PeerId::new("u2"), PerSlot { a, b });
    (keys, id)
}

#[test]
fn preshared_keys_are_stored_with_what_they_are_bound_to() {
    let (_folder, store) = store();
    let (keys, id) = ring_with_preshared();
    store.save(&keys).unwrap();
    let mut loaded = store.load().unwrap().unwrap();
    assert_eq!(loaded.preshared(&id).unwrap().expose(), &[0x33; 32]);
    let peer = PeerId::new("u2");
    let (was, is) = (keys.preshared_of(&peer), loaded.preshared_of(&peer));
    assert_eq!((is.a.epoch, is.b.epoch), (7, 8));
    assert_eq!(
        is.a.key.as_ref().map(|(_, statics)| *statics),
        was.a.key.as_ref().map(|(_, statics)| *statics)
    );
    assert!(is.b.key.is_none());
    loaded.forget_preshared(&peer);
    assert!(loaded.preshared(&id).is_none());
    store.save(&loaded).unwrap();
    let text = std::fs::read_to_string(store.path()).unwrap();
    assert!(!text.contains("MzMzMz") && !text.contains(&id.to_string()), "{text}");
}

#[test]
fn a_missing_or_different_preshared_key_is_detected() {
    let (_folder, store) = store();
    store.save(&ring_with_preshared().0).unwrap();
    let text = std::fs::read_to_string(store.path()).unwrap();
    let base64 = crate::PresharedKey::from_bytes(&[0x33; 32]).unwrap().to_base64();
    let other = crate::PresharedKey::from_bytes(&[0x34; 32]).unwrap().to_base64();
    for (damaged, expected) in [
        (text.replace(base64.as_str(), &other), FormatError::Incomplete),
        (text.replace(&format!("\"{}\"", base64.as_str()), ""), FormatError::Incomplete),
        (text.replace("\"epoch\":7", "\"epoch\":6"), FormatError::Checksum),
    ] {
        assert_ne!(damaged, text);
        std::fs::write(store.path(), damaged).unwrap();
        let error = store.load().unwrap_err();
        assert!(matches!(&error, StoreError::Format { source, .. } if *source == expected), "{error:?}");
    }
}

#[test]
fn a_file_of_the_previous_version_is_read_and_has_no_preshared_keys() {
    use sha2::{Digest as _, Sha256};
    let (_folder, store) = store();
    let keys = NodeKeys::cold(5, 0).unwrap();
    let journal = serde_json::to_string(&keys.journal).unwrap();
    let texts: Vec<String> = keys.named().map(|key| key.to_base64().to_string()).collect();
    let (keys_text, checksum) = (serde_json::to_string(&texts).unwrap(), Sha256::digest(&journal));
    let text =
        format!("{{\"v\":2,\"journal\":{journal},\"keys\":{keys_text},\"checksum\":\"{checksum:x}\"}}\n");
    std::fs::write(store.path(), text).unwrap();
    std::fs::set_permissions(store.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let loaded = store.load().unwrap().unwrap();
    assert_eq!(loaded.journal, keys.journal);
    assert!(loaded.preshared_stored().is_empty());
}
