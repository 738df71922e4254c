//! This node's keys and their rotation: performs what the machine asks of the disk, and keeps the rest for the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use keyring::pq::Kept;
use keyring::rotation::{Ask, Cause, Effect, Input, Journal, Note, Now, PeerId, Policy, Rotation, Stance};
use keyring::store::{FileStore, Protection, SealError, SealingKey, StoreError};
use keyring::{KeyError, NodeKeys, PerSlot, PrivateKey, PublicKey};
use plan::node::NodeUid;
use plan::renewal::Renewal;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::chain::Chain;
use crate::config::{Config, KeyStorage, SealingSource};
use crate::fault;

/// The key file, what is in it, and the machine that replaces it.
#[derive(Debug)]
pub(super) struct Keys {
    store: FileStore,
    ring: NodeKeys,
    policy: Policy,
    started: Instant,
    chance: u64,
    /// None until our Node's UID is known: announcements are made in its name.
    machine: Option<(NodeUid, Rotation)>,
    announced: bool,
    /// Whether the loop should turn because the machine wants something of it.
    turn: bool,
    tally: Tally,
    asks: Vec<Ask>,
    notes: Vec<Note>,
    stances: BTreeMap<PeerId, Stance>,
    peers: BTreeSet<PeerId>,
    /// The last wish for haste that was fulfilled.
    replaced_at_once: Option<Renewal>,
}

impl Keys {
    /// Loads the keys, or makes them if there have never been any.
    pub(super) fn open(config: &Config) -> Result<Self, KeysError> {
        let store = FileStore::open(&config.key_dir, protection(&config.key_storage)?)?;
        let keys = if let Some(keys) = store.load()? {
            info!(
                event = "KeysLoaded", generation = keys.journal.generation,
                rotation_step = ?keys.journal.step,
                "loaded keys"
            );
            keys
        } else {
            let keys = NodeKeys::cold(1, unix())?;
            store.save(&keys)?;
            for (slot, record) in keys.journal.slots.iter() {
                info!(event = "KeyCreated", %slot, key = %record.key.fingerprint(), "made a new key");
            }
            keys
        };
        let mut chance = [0; 8];
        getrandom::fill(&mut chance).map_err(KeyError::Random)?;
        Ok(Self {
            store,
            ring: keys,
            policy: config.rotation,
            started: Instant::now(),
            chance: u64::from_be_bytes(chance),
            machine: None,
            announced: false,
            turn: false,
            tally: Tally::default(),
            asks: Vec::new(),
            notes: Vec::new(),
            stances: BTreeMap::new(),
            peers: BTreeSet::new(),
            replaced_at_once: None,
        })
    }

    /// Starts the rotation in the name of our Node, or anew if our Node is another one.
    pub(super) fn speak_for(&mut self, uid: &NodeUid) {
        if self.machine.as_ref().is_some_and(|(known, _)| known == uid) {
            return;
        }
        let own = PeerId::new(uid.as_str());
        let (machine, effects) =
            Rotation::resume(self.policy, own, self.ring.journal.clone(), self.chance, self.now());
        self.machine = Some((uid.clone(), machine));
        self.stances.clear();
        self.peers.clear();
        self.announced = false;
        self.perform(effects);
    }

    /// Tells the machine something, and performs what follows.
    pub(super) fn tell(&mut self, input: Input) {
        let now = self.now();
        if let Some((_, machine)) = &mut self.machine {
            let effects = machine.handle(now, input);
            self.perform(effects);
        }
    }

    /// The peers with what they announce; only what is new is passed on.
    pub(super) fn see(&mut self, stances: impl Iterator<Item = Stance>) {
        let stances: BTreeMap<PeerId, Stance> = stances.map(|stance| (stance.id.clone(), stance)).collect();
        let peers: BTreeSet<PeerId> = stances.keys().cloned().collect();
        if peers != self.peers {
            self.peers.clone_from(&peers);
            self.tell(Input::Peers(peers));
        }
        let former = std::mem::replace(&mut self.stances, stances.clone());
        for stance in stances.into_values().filter(|stance| former.get(&stance.id) != Some(stance)) {
            self.tell(Input::Stance(stance));
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Generate(count) => match self.generate(count) {
                    Ok(keys) => {
                        fault::arm();
                        self.tell(Input::Generated(keys));
                    }
                    Err(error) => {
                        error!(
                            event = "KeyCreationFailed", error = %Chain(&error),
                            "no new keys can be made; the present ones stay"
                        );
                        self.tell(Input::PersistFailed);
                    }
                },
                Effect::Persist(journal) => {
                    let answer = self.persist(journal);
                    self.tell(answer);
                }
                Effect::Apply => {
                    self.announced = false;
                    self.turn = true;
                }
                Effect::Announce => {
                    self.announced = true;
                    self.turn = true;
                }
                Effect::Ask(ask) => self.asks.push(ask),
                Effect::Destroy(record) => {
                    fault::point("destroy.before");
                    if !self.ring.destroy(&record.key) {
                        error!(
                            event = "KeyDestructionRefused", key = %record.key.fingerprint(),
                            "a key that the journal names was to be destroyed"
                        );
                    }
                }
                Effect::Note(note) => {
                    tell_log(&note);
                    self.tally.count(&note);
                    self.notes.push(note);
                }
            }
        }
    }

    fn generate(&mut self, count: usize) -> Result<Vec<PublicKey>, KeyError> {
        (0..count).map(|_| Ok(self.ring.hold(PrivateKey::generate()?))).collect()
    }

    /// The journal goes to disk before anybody hears of it.
    fn persist(&mut self, journal: Journal) -> Input {
        fault::point("journal.before");
        let former = std::mem::replace(&mut self.ring.journal, journal);
        if let Err(error) = self.store.save(&self.ring) {
            error!(
                event = "RotationNotStored", error = %Chain(&error),
                "the rotation's next step can't be kept; the present one stays"
            );
            self.ring.journal = former;
            return Input::PersistFailed;
        }
        fault::point("journal.after");
        Input::Persisted
    }

    /// Takes an operator's wish.
    pub(super) fn renew(&mut self, wish: Option<Renewal>) {
        let Some(wish) = wish else { return self.tell(Input::RenewBefore(None)) };
        let created = self.ring.journal.slots.iter().map(|(_, record)| record.created).min();
        let come = wish.before <= unix() && created.is_some_and(|created| created < wish.before);
        // Once for each wish, even if the clock was set forward and new keys look older than they are.
        if wish.at_once && come && self.machine.is_some() && self.replaced_at_once != Some(wish) {
            self.replaced_at_once = Some(wish);
            self.tell(Input::Rotate(Cause::Emergency));
        }
        self.tell(Input::RenewBefore(Some(wish.before)));
    }

    /// Puts what is to be kept of preshared keys on disk, in one write. If that fails what was kept before stands.
    pub(super) fn keep_preshared(&mut self, all: Vec<(PeerId, PerSlot<Kept>)>) -> bool {
        let keep = |ring: &mut NodeKeys, (peer, kept): (PeerId, PerSlot<Kept>)| {
            let former = ring.keep_preshared(peer.clone(), kept);
            (peer, former)
        };
        let former: Vec<_> = all.into_iter().map(|one| keep(&mut self.ring, one)).collect();
        let saved = self.store.save(&self.ring);
        if let Err(error) = &saved {
            error!(
                event = "PresharedKeysNotStored", error = %Chain(error),
                "preshared keys can't be kept; those that were stay"
            );
            for one in former {
                drop(keep(&mut self.ring, one));
            }
        }
        saved.is_ok()
    }

    /// Wipes the preshared keys with a node that is gone.
    pub(super) fn forget_preshared(&mut self, peer: &PeerId) {
        self.ring.forget_preshared(peer);
        if let Err(error) = self.store.save(&self.ring) {
            warn!(
                event = "PresharedKeysNotDeleted", error = %Chain(&error),
                "preshared keys of a node that is gone are still on disk"
            );
        }
    }

    /// The private keys and the preshared keys.
    pub(super) const fn ring(&self) -> &NodeKeys {
        &self.ring
    }

    /// The public key of each slot.
    pub(super) fn public(&self) -> PerSlot<PublicKey> {
        PerSlot::from_fn(|slot| self.ring.journal.slots.get(slot).key)
    }

    /// The private key that belongs to a public one, if it is ours.
    pub(super) fn private(&self, public: &PublicKey) -> Option<&PrivateKey> {
        self.ring.private(public)
    }

    /// What stands on disk, and so what is or will be announced.
    pub(super) const fn journal(&self) -> &Journal {
        &self.ring.journal
    }

    /// Whether the journal may be announced: the node is as it says.
    pub(super) const fn announced(&self) -> bool {
        self.announced
    }

    /// What others must heed of us; none before our Node is known.
    pub(super) fn stance(&self) -> Option<Stance> {
        self.machine.as_ref().map(|(_, machine)| machine.stance())
    }

    /// The rotation; none before our Node is known.
    pub(super) fn rotation(&self) -> Option<&Rotation> {
        self.machine.as_ref().map(|(_, machine)| machine)
    }

    /// When the machine wants to be told that time has passed.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.rotation()?.poll_timeout()?;
        self.started.checked_add(due)
    }

    /// Whether the loop should turn now; asked once.
    pub(super) const fn take_turn(&mut self) -> bool {
        std::mem::replace(&mut self.turn, false)
    }

    /// A number that nobody could foretell.
    pub(super) const fn chance(&self) -> u64 {
        self.chance
    }

    /// What has been counted since the daemon started.
    pub(super) const fn tally(&self) -> Tally {
        self.tally
    }

    /// The time as the machine sees it.
    pub(super) fn now(&self) -> Now {
        Now { elapsed: self.started.elapsed(), unix: unix() }
    }

    /// Questions to peers that are to be sent now.
    pub(super) fn take_asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    /// What has happened to keys since this was last called.
    pub(super) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }
}

fn protection(storage: &KeyStorage) -> Result<Protection, KeysError> {
    match storage {
        KeyStorage::Tmpfs => Ok(Protection::Tmpfs),
        KeyStorage::PlainOnDisk => {
            warn!(
                event = "KeysUnprotected",
                "private keys are kept on the disk as they are (key-storage plain-on-disk)"
            );
            Ok(Protection::PlainOnDisk)
        }
        KeyStorage::Sealed(SealingSource::File(path)) => Ok(Protection::Sealed(SealingKey::read(path)?)),
        KeyStorage::Sealed(SealingSource::Credential(name)) => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| KeysError::NoCredentials { name: name.clone() })?;
            Ok(Protection::Sealed(SealingKey::read(&std::path::Path::new(&folder).join(name))?))
        }
    }
}

/// Rotations since the daemon started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Rotations that went through.
    pub(super) finished: u64,
    /// Rotations that were given up.
    pub(super) rolled_back: u64,
    /// How long the last one took that went through.
    pub(super) last: Option<Duration>,
}

impl Tally {
    const fn count(&mut self, note: &Note) {
        match note {
            Note::Finished(took) => {
                self.finished += 1;
                self.last = Some(*took);
            }
            Note::RolledBack(..) => self.rolled_back += 1,
            _ => {}
        }
    }
}

/// Seconds since 1970. A clock before that is as wrong as any other, and only ages depend on it.
fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

/// One line for each event in the life of a key.
fn tell_log(note: &Note) {
    let names = |peers: &[PeerId]| peers.iter().map(PeerId::as_str).collect::<Vec<_>>().join(", ");
    match note {
        Note::Begun(cause) => info!(event = "RotationStarted", trigger = ?cause, "rotation: begins"),
        Note::Staged(slot, key) => info!(
            event = "RotationKeyStored", %slot, key = %key.fingerprint(),
            "rotation: new key stored"
        ),
        Note::Draining(slot, key) => info!(
            event = "RotationDraining", %slot, key = %key.fingerprint(),
            "rotation: peers leave the slot"
        ),
        Note::Installed(slot, key) => info!(
            event = "RotationKeyInstalled", %slot, key = %key.fingerprint(),
            "rotation: new key in its slot"
        ),
        Note::Acknowledged(peer, slot) => info!(
            event = "RotationAcknowledged", peer_uid = %peer, %slot,
            "rotation: acknowledged"
        ),
        Note::Verified(peer, slot, key) => {
            info!(
                event = "RotationKeyVerified", peer_uid = %peer, %slot, key = %key.fingerprint(),
                "rotation: answers over the new key"
            );
        }
        Note::Active(slot, key) => info!(
            event = "RotationKeyActive", %slot, key = %key.fingerprint(),
            "rotation: now preferred"
        ),
        Note::Skipped(peer) => warn!(
            event = "RotationPeerSkipped", peer_uid = %peer,
            "rotation: silent; not waited for"
        ),
        Note::Forced(peer) => warn!(
            event = "RotationPeerForced", peer_uid = %peer,
            "rotation: does not follow, but the keys are too old to wait"
        ),
        Note::Blocked(slot, peers) => {
            warn!(
                event = "RotationBlocked", %slot, peer_uids = names(peers),
                "rotation: alive, but does not follow"
            );
        }
        Note::RolledBack(slot, key, peers) => {
            warn!(
                event = "RotationRolledBack", %slot, key = %key.fingerprint(), peer_uids = names(peers),
                "rotation: rolled back"
            );
        }
        Note::Destroyed(slot, key, age) => {
            info!(
                event = "KeyDestroyed", %slot, key = %key.fingerprint(), age_seconds = age.as_secs(),
                "rotation: key destroyed"
            );
        }
        Note::Finished(took) => {
            info!(event = "RotationFinished", seconds = took.as_secs_f64(), "rotation: finished");
        }
        Note::Outgrown(generation) => {
            info!(event = "GenerationAdvanced", generation, "took a generation above the one on our Node");
        }
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The key file can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sealing key can't be used.
    #[error("option sealing-key")]
    Sealing(#[from] SealError),
    /// A credential is asked for, and systemd gave none.
    #[error(
        "option sealing-key: credential {name}: expected systemd to set CREDENTIALS_DIRECTORY; set LoadCredential={name}:FILE in the unit"
    )]
    NoCredentials {
        /// Its name.
        name: String,
    },
    /// A key could not be made.
    #[error("make this node's keys")]
    Make(#[from] KeyError),
}
