//! One node's state machine, driven by a caller that performs every effect at once: what happens, and in
//! which order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use keyring::rotation::{
    Ask, Cause, Effect, Input, Journal, Note, Now, PeerId, Rotation, RotationPolicy, RotationSettings,
    Stance, Step,
};
use keyring::{PerSlot, PrivateKey, PublicKey, Slot};

const TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(1);
const BORN: u64 = 1_000_000;

/// How a peer behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// Does what it is asked to.
    Follows,
    /// Is alive on the slot that is not drained, and receives nothing on the other one.
    OldSlotOnly,
    /// Is alive, and never learns of the current announcement.
    Ignorant,
    /// Is silent.
    Dead,
}

struct Story {
    machine: Rotation,
    now: Duration,
    peers: BTreeMap<PeerId, Peer>,
    disk: Journal,
    disk_answers: bool,
    disk_full: bool,
    made: u8,
    inputs: VecDeque<Input>,
    did: Vec<Effect>,
}

fn key(byte: u8) -> PublicKey {
    PrivateKey::from_bytes(&[byte; 32]).unwrap().public()
}

fn settings() -> RotationSettings {
    RotationSettings {
        interval: Duration::from_hours(1),
        jitter: 0,
        max_age: Some(Duration::from_hours(2)),
        drain: DRAIN,
        timeout: TIMEOUT,
    }
}

impl Story {
    fn new(peers: &[(&str, Peer)]) -> Self {
        Self::resumed(peers, Journal::cold(1, PerSlot { a: key(1), b: key(2) }, BORN), Duration::ZERO)
    }

    fn resumed(peers: &[(&str, Peer)], disk: Journal, now: Duration) -> Self {
        let policy = RotationPolicy::new(settings()).unwrap();
        let at = Now { elapsed: now, unix: BORN + now.as_secs() };
        let (machine, effects) = Rotation::resume(policy, PeerId::new("own"), disk.clone(), 0, at);
        let peers: BTreeMap<_, _> = peers.iter().map(|(name, peer)| (PeerId::new(*name), *peer)).collect();
        let names: BTreeSet<PeerId> = peers.keys().cloned().collect();
        let mut story = Self {
            machine,
            now,
            peers,
            disk,
            disk_answers: true,
            disk_full: false,
            made: 100,
            inputs: VecDeque::new(),
            did: Vec::new(),
        };
        story.perform(effects);
        story.handle(Input::Connected(true));
        story.handle(Input::Peers(names));
        story
    }

    fn at(&self) -> Now {
        Now { elapsed: self.now, unix: BORN + self.now.as_secs() }
    }

    /// One input after the other, with all effects of each, as the daemon's loop does it.
    fn handle(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            let effects = self.machine.handle(self.at(), input);
            self.perform(effects);
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.did.push(effect.clone());
            let generation = self.machine.journal().generation;
            match effect {
                Effect::Generate(count) => {
                    let keys = (0..count).map(|_| self.fresh()).collect();
                    self.inputs.push_back(Input::Generated(keys));
                }
                Effect::Persist(_) if self.disk_full => self.inputs.push_back(Input::PersistFailed),
                Effect::Persist(journal) if self.disk_answers => {
                    self.disk = journal;
                    self.inputs.push_back(Input::Persisted);
                }
                Effect::Apply => self.inputs.push_back(Input::Applied(generation)),
                Effect::Announce => self.inputs.push_back(Input::Published(generation)),
                Effect::Ask(ask) => self.answer(ask),
                Effect::Persist(_) | Effect::Destroy(_) | Effect::Note(_) => {}
            }
        }
    }

    fn fresh(&mut self) -> PublicKey {
        self.made += 1;
        key(self.made)
    }

    fn answer(&mut self, Ask { peer, nonce, over }: Ask) {
        let journal = self.machine.journal();
        let tx = journal.drain().unwrap_or_else(|| journal.standby()).other();
        let answer = |seen| Input::Answer { peer: peer.clone(), nonce, seen, tx, over, protected: true };
        let input = match self.peers[&peer] {
            Peer::Follows => answer(journal.generation),
            Peer::OldSlotOnly if Some(over) != journal.drain() => answer(journal.generation),
            Peer::Ignorant => answer(journal.generation - 1),
            Peer::OldSlotOnly | Peer::Dead => return,
        };
        self.inputs.push_back(input);
    }

    /// Advances time in small steps, for at most this long, until the condition holds.
    fn wait(&mut self, most: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let started = self.now;
        while !holds(self) {
            assert!(
                self.now < started + most,
                "not within {most:?}: {:?}, {:?}",
                self.machine.journal(),
                self.notes()
            );
            self.now += Duration::from_millis(50);
            self.handle(Input::Tick);
        }
        self.now.saturating_sub(started)
    }

    fn rotate(&mut self, cause: Cause) {
        self.did.clear();
        self.handle(Input::Rotate(cause));
    }

    fn finished(&self) -> bool {
        self.notes().iter().any(|note| matches!(note, Note::Finished(_)))
    }

    fn rolled_back(&self) -> bool {
        self.notes().iter().any(|note| matches!(note, Note::RolledBack(..)))
    }

    fn notes(&self) -> Vec<Note> {
        let note = |effect: &Effect| if let Effect::Note(note) = effect { Some(note.clone()) } else { None };
        self.did.iter().filter_map(note).collect()
    }

    fn keys(&self) -> PerSlot<PublicKey> {
        self.machine.journal().slots.map(|record| record.key)
    }

    /// The positions of all effects of a kind.
    fn when(&self, wanted: impl Fn(&Effect) -> bool) -> Vec<usize> {
        self.did.iter().enumerate().filter(|(_, effect)| wanted(effect)).map(|(at, _)| at).collect()
    }
}

#[test]
fn both_keys_are_replaced_one_after_the_other_and_each_step_is_reported() {
    let mut story = Story::new(&[("p", Peer::Follows)]);
    story.rotate(Cause::Request);
    let took = story.wait(Duration::from_secs(5), Story::finished);
    let peer = || PeerId::new("p");
    let (first, second) = (key(101), key(102));
    let notes: Vec<Note> = story
        .notes()
        .into_iter()
        .map(|note| match note {
            Note::Destroyed(slot, key, _) => Note::Destroyed(slot, key, Duration::ZERO),
            Note::Finished(_) => Note::Finished(Duration::ZERO),
            other => other,
        })
        .collect();
    assert_eq!(
        notes,
        [
            Note::Begun(Cause::Request),
            Note::Staged(Slot::B, first),
            Note::Draining(Slot::B, key(2)),
            Note::Acknowledged(peer(), Slot::B),
            Note::Installed(Slot::B, first),
            Note::Verified(peer(), Slot::B, first),
            Note::Active(Slot::B, first),
            Note::Destroyed(Slot::B, key(2), Duration::ZERO),
            Note::Staged(Slot::A, second),
            Note::Draining(Slot::A, key(1)),
            Note::Acknowledged(peer(), Slot::A),
            Note::Installed(Slot::A, second),
            Note::Destroyed(Slot::A, key(1), Duration::ZERO),
            Note::Verified(peer(), Slot::A, second),
            Note::Finished(Duration::ZERO),
        ]
    );
    assert_eq!(story.keys(), PerSlot { a: second, b: first });
    assert_eq!(story.machine.journal().step, Step::Steady);
    assert_eq!(story.disk, *story.machine.journal());
    assert!(took >= DRAIN * 2, "two slots are drained for {DRAIN:?} each, not {took:?}");
}

#[test]
fn nothing_is_announced_before_it_is_on_disk() {
    let mut story = Story::new(&[("p", Peer::Follows)]);
    story.disk_answers = false;
    story.rotate(Cause::Request);
    for _ in 0..1000 {
        story.now += Duration::from_millis(100);
        story.handle(Input::Tick);
    }
    assert!(matches!(story.did.as_slice(), [Effect::Generate(1), Effect::Persist(_)]), "{:?}", story.did);
    assert_eq!(story.keys(), PerSlot { a: key(1), b: key(2) });
}

#[test]
fn a_key_is_destroyed_after_it_has_left_the_disk_and_the_device() {
    let mut story = Story::new(&[("p", Peer::Follows)]);
    story.rotate(Cause::Request);
    story.wait(Duration::from_secs(5), Story::finished);
    for old in [key(1), key(2)] {
        let gone = story.when(|effect| matches!(effect, Effect::Destroy(record) if record.key == old));
        let keeps = |effect: &Effect| matches!(effect, Effect::Persist(journal) if journal.keys().any(|key| key == old));
        let last_kept = *story.when(keeps).last().unwrap();
        let applied =
            story.when(|effect| *effect == Effect::Apply).into_iter().filter(|at| *at > last_kept).count();
        assert!(gone.len() == 1 && gone[0] > last_kept && applied > 0, "{old:?}: {:?}", story.did);
    }
}

#[test]
fn a_peer_that_never_acknowledges_keeps_the_old_keys_in_use() {
    let mut story = Story::new(&[("good", Peer::Follows), ("stuck", Peer::Ignorant)]);
    story.rotate(Cause::Request);
    story.wait(TIMEOUT * 3, Story::rolled_back);
    assert_eq!(story.keys(), PerSlot { a: key(1), b: key(2) });
    assert_eq!(story.machine.blocked(), Some(&(Slot::B, vec![PeerId::new("stuck")])));
    assert!(story.when(|effect| matches!(effect, Effect::Note(Note::Installed(..)))).is_empty());
    assert!(story.notes().contains(&Note::Blocked(Slot::B, vec![PeerId::new("stuck")])));
    assert!(!story.finished());
}

#[test]
fn a_key_over_which_a_live_peer_does_not_answer_is_rolled_back() {
    let mut story = Story::new(&[("good", Peer::Follows), ("half", Peer::OldSlotOnly)]);
    story.rotate(Cause::Request);
    story.wait(TIMEOUT * 3, Story::rolled_back);
    story.wait(TIMEOUT, |story| story.machine.journal().step == Step::Steady);
    assert_eq!(story.keys(), PerSlot { a: key(1), b: key(2) });
    assert_eq!(story.machine.blocked(), Some(&(Slot::B, vec![PeerId::new("half")])));
    let destroyed = |note: &Note| matches!(note, Note::Destroyed(Slot::B, gone, _) if *gone == key(101));
    assert!(story.notes().iter().any(destroyed), "the failed key is gone: {:?}", story.notes());
    // Repaired: the next attempt succeeds.
    story.peers.insert(PeerId::new("half"), Peer::Follows);
    story.rotate(Cause::Request);
    story.wait(TIMEOUT, Story::finished);
    assert_eq!(story.machine.blocked(), None);
}

#[test]
fn a_blocked_rotation_is_not_retried_at_once() {
    let mut story = Story::new(&[("half", Peer::OldSlotOnly)]);
    story.now = Duration::from_hours(1);
    story.did.clear();
    story.wait(TIMEOUT * 3, Story::rolled_back);
    let started = |story: &Story| story.notes().contains(&Note::Begun(Cause::Age));
    assert!(started(&story));
    story.did.clear();
    let pause = story.wait(TIMEOUT * 20, started);
    assert!(pause > TIMEOUT * 8, "{pause:?}");
}

#[test]
fn a_dead_peer_is_skipped_and_waited_for_again_when_it_comes_back() {
    let mut story = Story::new(&[("good", Peer::Follows), ("dead", Peer::Dead)]);
    story.rotate(Cause::Request);
    story.wait(TIMEOUT * 6, Story::finished);
    assert!(story.notes().contains(&Note::Skipped(PeerId::new("dead"))));

    story.rotate(Cause::Request);
    story.wait(TIMEOUT * 2, |story| story.notes().contains(&Note::Skipped(PeerId::new("dead"))));
    let staged = story.machine.journal().clone();
    assert!(matches!(staged.step, Step::Draining { .. }));
    story.peers.insert(PeerId::new("dead"), Peer::Ignorant);
    story.handle(Input::PeerAlive(PeerId::new("dead")));
    story.wait(TIMEOUT * 3, Story::rolled_back);
}

#[test]
fn a_key_past_its_maximum_age_waits_for_no_peer() {
    let mut story = Story::new(&[("half", Peer::OldSlotOnly)]);
    story.now = Duration::from_hours(2) + Duration::from_secs(1);
    story.did.clear();
    story.wait(TIMEOUT * 6, |story| story.machine.journal().prefer == Slot::B);
    assert!(story.notes().contains(&Note::Forced(PeerId::new("half"))));
    // Without the oldest key there is time again: the other one is not forced.
    story.wait(TIMEOUT * 2, |story| story.keys().a != key(1));
    story.did.clear();
    story.wait(TIMEOUT * 2, |story| {
        story.notes().contains(&Note::Blocked(Slot::A, vec![PeerId::new("half")]))
    });
    story.peers.insert(PeerId::new("half"), Peer::Follows);
    story.wait(TIMEOUT, Story::finished);
}

#[test]
fn an_emergency_replaces_both_at_once_even_during_a_rotation() {
    for ticks in 0..80 {
        let mut story = Story::new(&[("p", Peer::Follows)]);
        story.rotate(Cause::Request);
        for _ in 0..ticks {
            story.now += Duration::from_millis(50);
            story.handle(Input::Tick);
        }
        let before: BTreeSet<PublicKey> = story.machine.journal().keys().collect();
        story.rotate(Cause::Emergency);
        let PerSlot { a, b } = story.keys();
        assert!(a != b && !before.contains(&a) && !before.contains(&b), "after {ticks} ticks");
        assert_eq!(story.machine.journal().step, Step::Steady);
        let destroyed: BTreeSet<PublicKey> = story
            .did
            .iter()
            .filter_map(|effect| if let Effect::Destroy(record) = effect { Some(record.key) } else { None })
            .collect();
        assert_eq!(destroyed, before, "after {ticks} ticks");
    }
}

#[test]
fn a_failed_write_keeps_the_previous_state_and_is_retried() {
    let mut story = Story::new(&[("p", Peer::Follows)]);
    story.disk_full = true;
    story.rotate(Cause::Request);
    assert_eq!(story.keys(), PerSlot { a: key(1), b: key(2) });
    assert!(
        story.did.iter().any(|effect| matches!(effect, Effect::Destroy(record) if record.key == key(101)))
    );
    assert!(story.notes().is_empty(), "nothing happened: {:?}", story.notes());
    story.disk_full = false;
    let again = story.wait(TIMEOUT * 2, |story| story.notes().contains(&Note::Begun(Cause::Request)));
    assert!(again >= TIMEOUT / 10 * 9, "{again:?}");
    story.wait(TIMEOUT, Story::finished);
}

#[test]
fn a_restart_at_any_step_reaches_the_same_end() {
    let peers = [("p", Peer::Follows)];
    let mut story = Story::new(&peers);
    story.rotate(Cause::Request);
    story.wait(TIMEOUT, Story::finished);
    let persisted =
        |effect: &Effect| if let Effect::Persist(journal) = effect { Some(journal.clone()) } else { None };
    let journals: Vec<Journal> = story.did.iter().filter_map(persisted).collect();
    assert_eq!(journals.len(), 6);
    for journal in journals {
        let staged: BTreeSet<PublicKey> = journal.keys().collect();
        let unfinished = journal.step != Step::Steady;
        let mut again = Story::resumed(&peers, journal.clone(), story.now);
        again.wait(TIMEOUT, |story| story.machine.journal().step == Step::Steady);
        let PerSlot { a, b } = again.keys();
        assert!(!unfinished || again.finished(), "{journal:?}");
        assert!(again.machine.journal().generation >= journal.generation);
        for old in [key(1), key(2)] {
            assert!(a != old && b != old, "{journal:?}");
            let destroyed =
                again.notes().iter().any(|note| matches!(note, Note::Destroyed(_, gone, _) if *gone == old));
            assert_eq!(destroyed, staged.contains(&old), "{old:?} of {journal:?}");
        }
    }
}

#[test]
fn no_rotation_starts_while_a_peer_drains_the_other_slot() {
    let mut story = Story::new(&[("p", Peer::Follows)]);
    let drains = |drain, generation| {
        Input::Stance(Stance { id: PeerId::new("p"), generation, prefer: Slot::B, drain, installed: false })
    };
    story.handle(drains(Some(Slot::A), 5));
    story.rotate(Cause::Request);
    assert_eq!(story.machine.waits_for(), [PeerId::new("p")]);
    assert_eq!((story.did.len(), story.machine.poll_timeout()), (0, None));
    // The same slot is not a conflict, and neither is none.
    story.handle(drains(None, 6));
    story.wait(TIMEOUT, Story::finished);
}

#[test]
fn a_key_is_not_replaced_while_nothing_can_be_announced() {
    let mut story = Story::new(&[("p", Peer::Follows)]);
    story.handle(Input::Connected(false));
    story.rotate(Cause::Request);
    for _ in 0..600 {
        story.now += Duration::from_millis(100);
        story.handle(Input::Tick);
    }
    assert!(matches!(story.machine.journal().step, Step::Draining { .. }));
    story.handle(Input::Connected(true));
    story.wait(TIMEOUT, Story::finished);
}

#[test]
fn packets_on_a_drained_slot_delay_it_but_not_for_ever() {
    let installed = |story: &Story| story.notes().iter().any(|note| matches!(note, Note::Installed(..)));
    let mut quiet = Story::new(&[("p", Peer::Follows)]);
    quiet.rotate(Cause::Request);
    let alone = quiet.wait(TIMEOUT, installed);
    let mut story = Story::new(&[("p", Peer::Follows)]);
    story.rotate(Cause::Request);
    let started = story.now;
    while !installed(&story) {
        story.now += Duration::from_millis(50);
        story.handle(Input::SlotTraffic(Slot::B));
        assert!(story.now <= started + DRAIN * 4, "for ever");
    }
    assert!(alone >= DRAIN && story.now >= started + DRAIN * 2, "{alone:?}, until {:?}", story.now);
}
