use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::pq::{StaticKeys, StoredPreshared};
use crate::rotation::PeerId;
use crate::{PerSlot, PresharedKey, PublicKey};

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

fn peer(number: u32) -> PeerId {
    PeerId::new(format!("00000000-0000-4000-8000-{number:012}"))
}

/// Keys of a peer; the secret of slot a is this byte over and over.
fn kept(byte: u8, epoch: u64) -> PerSlot<StoredPreshared> {
    let public = PublicKey::from_bytes(&[9; 32]).unwrap();
    let statics = StaticKeys { own: public, peer: public };
    let a = StoredPreshared { epoch, key: Some((PresharedKey::from_bytes(&[byte; 32]).unwrap(), statics)) };
    PerSlot { a, b: StoredPreshared { epoch: epoch + 1, key: None } }
}

struct Fixture {
    folder: tempfile::TempDir,
    store: FileStore,
    keys: NodeKeys,
}

impl Fixture {
    /// An empty store that appends from the first peer on.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Self::store(&folder, None);
        let mut keys = NodeKeys::cold(1, 0).unwrap();
        store.save(&keys).unwrap();
        assert_eq!(store.load_preshared(&mut keys).unwrap(), None);
        Self { folder, store, keys }
    }

    fn store(folder: &tempfile::TempDir, sealed: Option<u8>) -> FileStore {
        let protection =
            sealed.map_or(Protection::PlainOnDisk, |byte| Protection::Sealed(SealingKey::new([byte; 32])));
        let mut store = FileStore::open(&folder.path().join("keys"), protection).unwrap();
        store.replaced_up_to = Some(0);
        store
    }

    fn set(&mut self, number: u32, byte: u8, epoch: u64) {
        self.keys.store_preshared(peer(number), kept(byte, epoch));
        self.store.store_preshared(&self.keys, &[peer(number)], SECOND).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("keys").join(name)
    }

    fn log(&self) -> Vec<u8> {
        std::fs::read(self.path("preshared.log")).unwrap()
    }

    fn write(&self, text: &[u8]) {
        let path = self.path("preshared.log");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// What a daemon that starts now has: number, secret byte and epoch of each peer, and how many records were damaged.
fn started(folder: &tempfile::TempDir) -> (Vec<(PeerId, u8, u64)>, Option<DamagedPreshared>) {
    let mut store = Fixture::store(folder, None);
    let mut keys = store.load().unwrap().unwrap();
    let damaged = store.load_preshared(&mut keys).unwrap();
    (shown(&keys), damaged)
}

fn shown(keys: &NodeKeys) -> Vec<(PeerId, u8, u64)> {
    let one = |id: &PeerId| {
        let kept = keys.preshared_of(id);
        let secret = kept.a.key.as_ref().map_or(0, |(key, _)| key.expose()[0]);
        assert_eq!(kept.b.epoch, kept.a.epoch + 1);
        (id.clone(), secret, kept.a.epoch)
    };
    keys.preshared_peers().map(one).collect()
}

#[test]
fn a_crash_at_any_byte_leaves_what_was_whole() {
    let mut fixture = Fixture::new();
    let mut ends = Vec::new();
    for (number, byte, epoch) in [(1, 11, 1), (2, 12, 1), (1, 13, 2)] {
        fixture.set(number, byte, epoch);
        ends.push(fixture.log().len());
    }
    let whole = fixture.log();
    let (one, two, again) = ((peer(1), 11, 1), (peer(2), 12, 1), (peer(1), 13, 2));
    let header = ends[0] - (ends[1] - ends[0]);
    for len in 0..=whole.len() {
        fixture.write(&whole[..len]);
        let (found, damaged) = started(&fixture.folder);
        let expected = match ends.iter().filter(|end| len >= **end).count() {
            0 => vec![],
            1 => vec![one.clone()],
            2 => vec![one.clone(), two.clone()],
            _ => vec![again.clone(), two.clone()],
        };
        assert_eq!(found, expected, "{len} bytes");
        assert_eq!(damaged.is_some(), len < header, "{len} bytes: {damaged:?}");
        // And it goes on from there.
        let mut store = Fixture::store(&fixture.folder, None);
        let mut keys = store.load().unwrap().unwrap();
        assert_eq!(store.load_preshared(&mut keys).unwrap(), None, "{len} bytes");
        keys.store_preshared(peer(3), kept(14, 5));
        store.store_preshared(&keys, &[peer(3)], SECOND).unwrap();
        assert_eq!(started(&fixture.folder).0.len(), expected.len() + 1, "{len} bytes");
    }
}

#[test]
fn damage_costs_the_records_it_is_in_and_the_file_is_kept_aside() {
    let mut fixture = Fixture::new();
    for number in 1..=3 {
        fixture.set(number, 10, 1);
    }
    let whole = fixture.log();
    let record = (whole.len() - 40) / 3;
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        fixture.write(&changed);
        let (found, damaged) = started(&fixture.folder);
        if at < 40 {
            assert_eq!(found, [], "byte {at} of the header");
        } else {
            let of = u32::try_from((at - 40) / record).unwrap() + 1;
            // Where a length was changed, the next records may not be found.
            let in_length = (at - 40) % record < 2;
            let others = found.iter().all(|(id, ..)| *id != peer(of));
            assert!(others && (in_length || found.len() == 2), "byte {at}: {found:?}");
            if in_length && damaged.is_none() {
                // It looks like a record that was not written to its end.
                continue;
            }
        }
        let text = damaged.unwrap_or_else(|| panic!("byte {at}")).to_string();
        assert!(text.contains("preshared.log.damaged"), "{text}");
        let aside = fixture.path("preshared.log.damaged");
        assert_eq!(std::fs::read(&aside).unwrap(), changed, "byte {at}");
        assert_eq!(std::fs::metadata(&aside).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(started(&fixture.folder), (found, None), "byte {at}: the next start finds it in order");
    }
}

#[test]
fn the_keys_of_a_former_key_file_of_any_size_move_into_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = NodeKeys::cold(1, 0).unwrap();
    // 4 MiB were the limit, near 8,160 peers.
    for number in 0..10_000 {
        let mut both = kept(7, 3);
        both.b.key = kept(8, 4).a.key;
        keys.store_preshared(peer(number), both);
    }
    Fixture::store(&folder, None).save(&keys).unwrap();
    let path = Fixture::store(&folder, None).path();
    assert!(std::fs::metadata(&path).unwrap().len() > 4 << 20);
    assert_eq!(started(&folder).0.len(), 10_000);
    assert!(std::fs::metadata(&path).unwrap().len() < 2048, "they are no longer in the key file");
    let log = folder.path().join("keys/preshared.log");
    assert_eq!(std::fs::metadata(&log).unwrap().mode() & 0o7777, 0o600);
    assert!(std::fs::metadata(&log).unwrap().len() < 260 * 10_000, "bytes a peer");
    assert_eq!(started(&folder).0.len(), 10_000);
    // A former version that runs in between writes its own: the log's are the older ones then.
    let mut former = NodeKeys::cold(1, 0).unwrap();
    former.store_preshared(peer(5), kept(8, 9));
    Fixture::store(&folder, None).save(&former).unwrap();
    assert_eq!(started(&folder).0, [(peer(5), 8, 9)]);
    assert_eq!(started(&folder).0, [(peer(5), 8, 9)]);
}

#[test]
fn superseded_keys_leave_the_disk_within_a_minute_and_in_a_small_mesh_at_once() {
    let mut fixture = Fixture::new();
    let has = |fixture: &Fixture, byte: u8| fixture.log().windows(32).any(|part| part == [byte; 32]);
    for number in 1..=9 {
        fixture.set(number, 20, 1);
    }
    fixture.set(1, 21, 2);
    assert!(has(&fixture, 21));
    fixture.keys.forget_preshared(&peer(1));
    fixture.store.store_preshared(&fixture.keys, &[peer(1)], 2 * SECOND).unwrap();
    // A start would clean up: it reads a copy.
    let copy = tempfile::tempdir().unwrap();
    let keys_at = copy.path().join("keys");
    std::fs::create_dir(&keys_at).unwrap();
    std::fs::set_permissions(&keys_at, std::fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["keys.json", "preshared.log"] {
        std::fs::copy(fixture.path(name), keys_at.join(name)).unwrap();
    }
    assert_eq!(started(&copy).0.len(), 8, "one that was forgotten is not found again");
    fixture.store.erase_superseded(&fixture.keys, 60 * SECOND).unwrap();
    assert!(has(&fixture, 21), "the control of this test");
    fixture.store.erase_superseded(&fixture.keys, 61 * SECOND).unwrap();
    assert!(!has(&fixture, 21));
    // Half of the records are enough: nine writes for eight peers.
    for (epoch, byte) in (3..).zip(30..39) {
        fixture.set(2, byte, epoch);
    }
    assert!(!has(&fixture, 30) && has(&fixture, 38));
    fixture.store.replaced_up_to = None;
    fixture.set(2, 40, 20);
    fixture.set(2, 41, 21);
    assert!(!has(&fixture, 38) && !has(&fixture, 40) && has(&fixture, 41));
    assert_eq!(started(&fixture.folder).0.len(), 8);
}

#[test]
fn a_write_that_fails_changes_nothing_and_the_next_one_repairs_the_file() {
    let mut fixture = Fixture::new();
    fixture.set(1, 11, 1);
    let before = fixture.log();
    // Neither written nor cut off again: what a disk with errors does.
    let read_only = File::open(fixture.path("preshared.log")).unwrap();
    fixture.store.log.as_mut().unwrap().set_file(read_only);
    fixture.keys.store_preshared(peer(2), kept(12, 1));
    let failed = fixture.store.store_preshared(&fixture.keys, &[peer(2)], SECOND);
    assert!(matches!(failed, Err(StoreError::Write { .. })), "{failed:?}");
    assert_eq!(fixture.log(), before);
    fixture.store.store_preshared(&fixture.keys, &[peer(2)], SECOND).unwrap();
    assert_eq!(started(&fixture.folder).0, [(peer(1), 11, 1), (peer(2), 12, 1)]);
}

#[test]
fn a_sealed_log_shows_nothing_and_its_records_have_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Fixture::store(&folder, Some(1));
    let mut keys = NodeKeys::cold(1, 0).unwrap();
    store.save(&keys).unwrap();
    store.load_preshared(&mut keys).unwrap();
    for number in 1..=2 {
        keys.store_preshared(peer(number), kept(11, 1));
        store.store_preshared(&keys, &[peer(number)], SECOND).unwrap();
    }
    let path = folder.path().join("keys/preshared.log");
    let text = std::fs::read(&path).unwrap();
    assert!(!text.windows(32).any(|part| part == [11; 32]));
    assert!(!text.windows(8).any(|part| part == b"00000000"));
    let started = |byte| {
        let mut store = Fixture::store(&folder, Some(byte));
        let mut keys = NodeKeys::cold(1, 0).unwrap();
        let damaged = store.load_preshared(&mut keys).unwrap();
        (shown(&keys).len(), damaged.is_some())
    };
    assert_eq!(started(1), (2, false));
    let (head, records) = text.split_at(40);
    let (one, two) = records.split_at(records.len() / 2);
    std::fs::write(&path, [head, two, one].concat()).unwrap();
    assert_eq!(started(1), (0, true), "no record is taken for the one before or after it");
    std::fs::write(&path, &text).unwrap();
    assert_eq!(started(2), (0, true), "another sealing key");
}
