//! This node's keys and their rotation: performs the disk effects of the state machine, and buffers the
//! others for the loop.

use std::time::{Duration, SystemTime};

use keyring::rotation::{
    Ask, Cause, Effect, Input, Journal, Note, Now, PeerId, Rotation, RotationPolicy, Stance,
};
use keyring::store::{FileStore, Protection, SealError, SealingKey, StoreError};
use keyring::{KeyError, NOISE, NodeKeys, PerSlot, PrivateKey, Proof, PublicKey};
use plan::annotation::State;
use plan::node::NodeUid;
use plan::renewal::Renewal;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::stances::Stances;
use crate::chain::Chain;
use crate::config::{Config, KeyStorage, SealingSource};
use crate::fault;

/// The key file, its contents, and the state machine that replaces the keys.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) store: FileStore,
    pub(super) ring: NodeKeys,
    policy: RotationPolicy,
    pub(super) started: Instant,
    jitter_seed: u64,
    /// None until the own Node's UID is known: announcements are made in its name.
    machine: Option<(NodeUid, Rotation)>,
    announced: bool,
    /// The last announcement with its proofs.
    proven: Option<State>,
    /// Whether the own Node has shown this daemon's announcement.
    shown: bool,
    /// Whether the loop should run a turn because of an effect.
    turn: bool,
    tally: Tally,
    asks: Vec<Ask>,
    notes: Vec<Note>,
    stances: Stances,
    /// The last request for immediate replacement that was fulfilled.
    fulfilled_request: Option<Renewal>,
    /// What was wrong with the file of the preshared keys.
    pub(super) damaged: Option<String>,
}

impl Keys {
    /// Loads the keys, or generates them if there never were any.
    pub(super) fn open(config: &Config) -> Result<Self, KeysError> {
        let mut store = FileStore::open(&config.key_dir, protection(&config.key_storage)?)?;
        let damaged;
        let keys = if let Some(mut keys) = store.load()? {
            damaged = store.load_preshared(&mut keys)?;
            if let Some(journal) = keys.journal.restarted() {
                warn!(
                    event = "GenerationRestarted",
                    generation = keys.journal.generation,
                    "the generation is beyond what peers accept; it starts from 1 again"
                );
                keys.journal = journal;
                store.save(&keys)?;
            }
            info!(
                event = "KeysLoaded", generation = keys.journal.generation,
                rotation_step = ?keys.journal.step,
                "loaded keys"
            );
            keys
        } else {
            let mut keys = NodeKeys::cold(1, unix())?;
            store.save(&keys)?;
            // Those of a former key file are bound to other static keys, and are not used.
            damaged = store.load_preshared(&mut keys)?;
            for (slot, record) in keys.journal.slots.iter() {
                info!(event = "KeyCreated", %slot, key = %record.key.fingerprint(), "generated a key");
            }
            keys
        };
        if let Some(error) = &damaged {
            error!(
                event = "PresharedKeysDamaged", %error,
                "the file of the preshared keys was damaged; starting with those that are whole"
            );
        }
        let jitter_seed = getrandom::u64().map_err(KeyError::Random)?;
        Ok(Self {
            store,
            ring: keys,
            policy: config.rotation,
            started: Instant::now(),
            jitter_seed,
            machine: None,
            announced: false,
            proven: None,
            shown: false,
            turn: false,
            tally: Tally::default(),
            asks: Vec::new(),
            notes: Vec::new(),
            stances: Stances::default(),
            fulfilled_request: None,
            damaged: damaged.as_ref().map(ToString::to_string),
        })
    }

    /// Starts the rotation in the name of the own Node, or restarts it if that is another one.
    pub(super) fn set_identity(&mut self, uid: &NodeUid) {
        if self.machine.as_ref().is_some_and(|(known, _)| known == uid) {
            return;
        }
        let own = uid.peer_id();
        let (machine, effects) =
            Rotation::resume(self.policy, own, self.ring.journal.clone(), self.jitter_seed, self.now());
        self.machine = Some((uid.clone(), machine));
        self.stances = Stances::default();
        self.announced = false;
        self.shown = false;
        self.perform(effects);
    }

    /// Passes an input to the state machine and performs the effects.
    pub(super) fn handle(&mut self, input: Input) {
        let now = self.now();
        if let Some((_, machine)) = &mut self.machine {
            let effects = machine.handle(now, input);
            self.perform(effects);
        }
    }

    /// Sets the peers and their announcements; only changes are passed on.
    pub(super) fn set_stances(&mut self, stances: impl Iterator<Item = Stance>) {
        for input in self.stances.set(stances) {
            self.handle(input);
        }
    }

    /// The same for the peers that are gone, and for those that are new or announce something else.
    pub(super) fn set_changed_stances(&mut self, gone: &[PeerId], stances: impl Iterator<Item = Stance>) {
        for input in self.stances.change(gone, stances) {
            self.handle(input);
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Generate(count) => match self.generate(count) {
                    Ok(keys) => {
                        fault::arm();
                        self.handle(Input::Generated(keys));
                    }
                    Err(error) => {
                        error!(
                            event = "KeyCreationFailed", error = %Chain(&error),
                            "can't generate keys; the current ones stay in use"
                        );
                        self.handle(Input::PersistFailed);
                    }
                },
                Effect::Persist(journal) => {
                    let answer = self.persist(journal);
                    self.handle(answer);
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
                            "refused to destroy a key that the journal names"
                        );
                    }
                }
                Effect::Note(note) => {
                    log_note(&note);
                    self.tally.count(&note);
                    self.notes.push(note);
                }
            }
        }
    }

    fn generate(&mut self, count: usize) -> Result<Vec<PublicKey>, KeyError> {
        (0..count).map(|_| Ok(self.ring.hold(PrivateKey::generate()?))).collect()
    }

    /// The journal is written to disk before anything is announced.
    fn persist(&mut self, journal: Journal) -> Input {
        fault::point("journal.before");
        let former = std::mem::replace(&mut self.ring.journal, journal);
        if let Err(error) = self.store.save(&self.ring) {
            error!(
                event = "RotationNotStored", error = %Chain(&error),
                "can't write the rotation's next step to disk; it stays in the current one"
            );
            self.ring.journal = former;
            return Input::PersistFailed;
        }
        fault::point("journal.after");
        Input::Persisted
    }

    /// Sets an operator's request to renew keys.
    pub(super) fn set_renewal(&mut self, request: Option<Renewal>) {
        let Some(request) = request else { return self.handle(Input::RenewBefore(None)) };
        let created = self.ring.journal.slots.iter().map(|(_, record)| record.created).min();
        let due = request.before <= unix() && created.is_some_and(|created| created < request.before);
        // Once per request, even if the clock was set forward and new keys look older than they are.
        if request.at_once && due && self.machine.is_some() && self.fulfilled_request != Some(request) {
            self.fulfilled_request = Some(request);
            self.handle(Input::Rotate(Cause::Emergency));
        }
        self.handle(Input::RenewBefore(Some(request.before)));
    }

    /// The private keys and the preshared keys.
    pub(super) const fn ring(&self) -> &NodeKeys {
        &self.ring
    }

    /// The public key of each slot.
    pub(super) fn public(&self) -> PerSlot<PublicKey> {
        PerSlot::from_fn(|slot| self.ring.journal.slots.get(slot).key)
    }

    /// The private key of a public key, if it is the node's own.
    pub(super) fn private(&self, public: &PublicKey) -> Option<&PrivateKey> {
        self.ring.private(public)
    }

    /// The journal on disk, from which announcements are made.
    pub(super) const fn journal(&self) -> &Journal {
        &self.ring.journal
    }

    /// Whether the journal may be announced: the node matches it.
    pub(super) const fn announced(&self) -> bool {
        self.announced
    }

    /// The announcement with proofs by the keys that it names: signed once for each change. `published` is what the own
    /// Node shows of it already.
    pub(super) fn prove(
        &mut self,
        announcement: &State,
        published: Option<State>,
    ) -> Result<State, KeysError> {
        if let Some(proven) = self.proven.as_ref().filter(|proven| proven.unproven() == *announcement) {
            return Ok(proven.clone());
        }
        let proven = match published {
            Some(published) => published,
            None => self.sign(announcement)?,
        };
        self.proven = Some(proven.clone());
        Ok(proven)
    }

    fn sign(&self, announcement: &State) -> Result<State, KeysError> {
        let mut noise = [0; NOISE];
        getrandom::fill(&mut noise).map_err(KeyError::Random)?;
        let signed = announcement.prove(|slot, statement| {
            let key = self.ring.private(&announcement.slots.get(slot).key)?;
            Some(Proof::sign(key, statement, &noise))
        });
        signed.ok_or(KeysError::NoPrivateKey)
    }

    /// Takes that the own Node shows the announcement.
    pub(super) fn set_shown(&mut self) {
        self.shown = true;
        self.handle(Input::Published(self.ring.journal.generation));
    }

    /// Whether the own Node has shown an announcement since this daemon started.
    pub(super) const fn shown(&self) -> bool {
        self.shown
    }

    /// What peers must take into account; none before the own Node is known.
    pub(super) fn stance(&self) -> Option<Stance> {
        self.machine.as_ref().map(|(_, machine)| machine.stance())
    }

    /// The rotation; none before the own Node is known.
    pub(super) fn rotation(&self) -> Option<&Rotation> {
        self.machine.as_ref().map(|(_, machine)| machine)
    }

    /// When [`Input::Tick`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.rotation()?.poll_timeout()?;
        self.started.checked_add(due)
    }

    /// Whether the loop should run a turn now; resets the flag.
    pub(super) const fn take_turn(&mut self) -> bool {
        std::mem::replace(&mut self.turn, false)
    }

    /// An unpredictable number.
    pub(super) const fn jitter_seed(&self) -> u64 {
        self.jitter_seed
    }

    /// Counters since the daemon started.
    pub(super) const fn tally(&self) -> Tally {
        self.tally
    }

    /// The current time for the state machine.
    pub(super) fn now(&self) -> Now {
        Now { elapsed: self.started.elapsed(), unix: unix() }
    }

    /// Takes the questions to send to peers.
    pub(super) fn take_asks(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asks)
    }

    /// Takes the events since the last call.
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
                "private keys are stored on disk without encryption (key-storage plain-on-disk)"
            );
            Ok(Protection::PlainOnDisk)
        }
        KeyStorage::Sealed(SealingSource::File(path)) => Ok(Protection::Sealed(SealingKey::read(path)?)),
        KeyStorage::Sealed(SealingSource::Credential(name)) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or_else(|| KeysError::NoCredentials { name: name.clone() })?;
            Ok(Protection::Sealed(SealingKey::read(&std::path::Path::new(&directory).join(name))?))
        }
    }
}

/// Rotations since the daemon started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Completed rotations.
    pub(super) finished: u64,
    /// Rotations that were rolled back.
    pub(super) rolled_back: u64,
    /// Duration of the last completed one.
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

/// Seconds since 1970; zero if the clock is before that. Only ages depend on it.
fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

/// Logs one line for each event.
fn log_note(note: &Note) {
    let uids = |peers: &[PeerId]| peers.iter().map(PeerId::as_str).collect::<Vec<_>>().join(", ");
    match note {
        Note::Begun(cause) => info!(event = "RotationStarted", trigger = ?cause, "rotation: started"),
        Note::Staged(slot, key) => {
            info!(event = "RotationKeyStored", %slot, key = %key.fingerprint(), "rotation: new key on disk");
        }
        Note::Draining(slot, key) => {
            info!(event = "RotationDraining", %slot, key = %key.fingerprint(), "rotation: draining the slot");
        }
        Note::Installed(slot, key) => {
            info!(
                event = "RotationKeyInstalled", %slot, key = %key.fingerprint(),
                "rotation: new key installed"
            );
        }
        Note::Acknowledged(peer, slot) => {
            info!(
                event = "RotationAcknowledged", peer_uid = %peer, %slot,
                "rotation: peer no longer sends on the slot"
            );
        }
        Note::Verified(peer, slot, key) => {
            info!(
                event = "RotationKeyVerified", peer_uid = %peer, %slot, key = %key.fingerprint(),
                "rotation: peer answers over the new key"
            );
        }
        Note::Active(slot, key) => {
            info!(event = "RotationKeyActive", %slot, key = %key.fingerprint(), "rotation: key preferred");
        }
        Note::Skipped(peer) => {
            warn!(
                event = "RotationPeerSkipped", peer_uid = %peer,
                "rotation: peer does not respond; not waiting for it"
            );
        }
        Note::Forced(peer) => {
            warn!(
                event = "RotationPeerForced", peer_uid = %peer,
                "rotation: peer does not follow; the keys are too old to wait for it"
            );
        }
        Note::Blocked(slot, peers) => {
            warn!(
                event = "RotationBlocked", %slot, peer_uids = uids(peers),
                "RotationBlocked: peers are alive but do not follow"
            );
        }
        Note::RolledBack(slot, key, peers) => {
            warn!(
                event = "RotationRolledBack", %slot, key = %key.fingerprint(), peer_uids = uids(peers),
                "RotationBlocked: rolled back"
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
            info!(
                event = "GenerationAdvanced",
                generation, "raised the generation above the one found on the own Node"
            );
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
    /// A credential is configured, but systemd provides none.
    #[error(
        "option sealing-key: credential {name}: CREDENTIALS_DIRECTORY is not set; expected systemd to set it: add LoadCredential={name}:FILE to the unit"
    )]
    NoCredentials {
        /// Its name.
        name: String,
    },
    /// The announcement names a key that is not in the ring.
    #[error("sign the announcement: expected the private key of each slot")]
    NoPrivateKey,
    /// A key could not be generated.
    #[error("generate this node's keys")]
    Make(#[from] KeyError),
}
