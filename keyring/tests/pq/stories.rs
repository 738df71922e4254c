//! Single runs that a reader can follow.

use std::time::Duration;

use keyring::Slot;
use keyring::pq::{Input, Message, Mode, Note, PqSettings, Protection, Refusal};

use super::world::{Action, World};

fn settings(mode: Mode) -> PqSettings {
    PqSettings { mode, ..PqSettings::default() }
}

fn world(low: Mode, high: Mode) -> World {
    World::new([settings(low), settings(high)])
}

/// A world in which every key is proven.
fn proven() -> World {
    let mut world = world(Mode::Prefer, Mode::Prefer);
    world.run(Duration::from_secs(10));
    assert!(world.is_proven(), "{world:?}");
    world
}

#[test]
fn both_slots_are_soon_proven_and_no_packet_is_lost() {
    let world = proven();
    assert_eq!(world.lost, 0);
    assert!(world.passed > 50);
    for slot in Slot::ALL {
        assert_eq!(world.secret(0, slot), world.secret(1, slot));
        assert_eq!(world.on_disk(0, slot), world.on_disk(1, slot));
        assert_eq!(world.machine(1).report(world.now).get(slot).protection, Protection::Proven);
    }
    assert_ne!(world.secret(0, Slot::A), world.secret(0, Slot::B));
    // Each end sends on the slot that the other prefers again.
    assert_eq!((world.tx(0), world.tx(1)), (Slot::B, Slot::A));
}

#[test]
fn keys_are_renewed_on_both_slots_and_never_reused() {
    let mut world = proven();
    let first = Slot::ALL.map(|slot| world.engine(0, slot));
    world.run(Duration::from_hours(1) + Duration::from_mins(10));
    assert!(world.is_proven());
    let second = Slot::ALL.map(|slot| world.engine(0, slot));
    assert!(second.iter().all(|id| !first.contains(id)));
    assert_eq!(world.seen.len(), 4);
    assert_eq!(world.lost, 0);
}

#[test]
fn a_renewal_that_was_put_off_waits_and_what_a_new_static_key_needs_does_not() {
    let mut world = proven();
    let first = Slot::ALL.map(|slot| world.engine(0, slot));
    let until = world.now + Duration::from_hours(3);
    for end in 0..2 {
        world.machine_mut(end).put_off_renewal(until);
    }
    world.run(Duration::from_hours(2));
    assert_eq!(Slot::ALL.map(|slot| world.engine(0, slot)), first, "both are two hours old");
    world.replace_static(1, Slot::B, 99);
    world.run(Duration::from_secs(20));
    assert!(world.is_proven(), "{world:?}");
    assert_ne!(world.engine(0, Slot::B), first[1]);
    assert_eq!(world.engine(0, Slot::A), first[0]);
    world.run(Duration::from_hours(2));
    assert_ne!(world.engine(0, Slot::A), first[0], "once the time has come");
}

#[test]
fn two_pairs_never_have_the_same_key() {
    let mut other = world(Mode::Prefer, Mode::Prefer);
    other.replace_static(0, Slot::A, 77);
    other.run(Duration::from_secs(10));
    assert!(other.is_proven());
    // The exchanges are identical; only one static key differs.
    assert_ne!(other.secret(0, Slot::A), proven().secret(0, Slot::A));
}

#[test]
fn a_new_static_key_ends_the_preshared_key_of_its_slot_at_both_ends_and_on_disk() {
    let mut world = proven();
    let before = world.engine(0, Slot::B);
    world.act(Action::Drain(Some(Slot::B)));
    world.act(Action::Turn(false));
    world.act(Action::Turn(true));
    world.act(Action::Wait(2000));
    world.replace_static(1, Slot::B, 99);
    for end in 0..2 {
        assert_eq!(world.machine(end).preshared(Slot::B), None);
        assert_eq!(world.on_disk(end, Slot::B), None);
        assert!(!world.machine(end).protected(Slot::B, world.now), "a rotation must wait for the new one");
        assert!(world.machine(end).proven(Slot::A));
    }
    world.run(Duration::from_secs(3));
    assert!(world.is_proven(), "agreed on while the slot is drained: {world:?}");
    assert!((0..2).all(|end| world.machine(end).protected(Slot::B, world.now)));
    assert_ne!(world.engine(0, Slot::B), before);
}

#[test]
fn a_rotation_waits_only_so_long_for_a_peer_without_a_key() {
    let mut world = proven();
    world.replace_static(0, Slot::B, 99);
    assert!(!world.machine(0).protected(Slot::B, world.now));
    let later = world.now + PqSettings::default().rotation_wait;
    assert!(world.machine(0).protected(Slot::B, later));
}

#[test]
fn with_require_nothing_passes_without_a_key_or_counts_before_it_is_proven() {
    let mut world = world(Mode::Require, Mode::Prefer);
    for slot in Slot::ALL {
        assert!(!world.machine(0).carries(slot) && world.machine(1).carries(slot));
        assert!(!world.machine(0).protected(slot, world.now + Duration::from_hours(1)));
    }
    world.run(Duration::from_secs(10));
    assert!(Slot::ALL.into_iter().all(|slot| world.machine(0).carries(slot)));
}

#[test]
fn nodes_with_new_uids_keep_their_keys_and_agree_under_the_new_ones() {
    let mut world = world(Mode::Prefer, Mode::Prefer);
    world.run(Duration::from_secs(20));
    assert!(world.is_proven());
    let before = Slot::ALL.map(|slot| world.engine(0, slot));
    let agreed = world.seen.len();
    world.act(Action::Rename(true));
    world.act(Action::Rename(false));
    world.run(Duration::from_secs(2));
    assert_eq!(Slot::ALL.map(|slot| world.engine(0, slot)), before);
    world.run(PqSettings::default().interval * 2);
    assert!(world.seen.len() > agreed + 1 && world.is_proven_soon());
}

#[test]
fn a_peer_that_uses_none_gets_none_and_reports_it() {
    let mut world = world(Mode::Require, Mode::Off);
    world.run(Duration::from_mins(5));
    assert_eq!(world.machine(0).willing(), Some(false));
    assert!(world.seen.is_empty());
    for slot in Slot::ALL {
        assert!(!world.machine(0).carries(slot));
        assert_eq!(world.machine(0).report(world.now).get(slot).protection, Protection::None);
    }
    assert!(
        World::new([settings(Mode::Off), settings(Mode::Require)]).machine(0).protected(Slot::A, world.now)
    );
}

#[test]
fn a_peer_that_no_longer_uses_keys_removes_none() {
    let mut world = proven();
    let held = world.engine(0, Slot::A);
    let hello = keyring::pq::Hello {
        number: u64::MAX,
        answers: None,
        willing: false,
        held: keyring::PerSlot::default(),
    };
    world.forge(0, Slot::A, Message::Hello(hello));
    world.act(Action::Turn(false));
    assert_eq!(world.engine(0, Slot::A), held);
    assert!(world.machine(0).proven(Slot::A) && world.machine(0).proven(Slot::B));
}

fn is_accept(message: &Message) -> bool {
    matches!(message, Message::Accept(_))
}

/// A world that has just started a renewal, with the answer intercepted.
fn renewing() -> (World, keyring::pq::Accept) {
    let mut world = proven();
    let Message::Accept(accept) = world.catch(is_accept) else { unreachable!() };
    (world, accept)
}

#[test]
fn a_modified_ciphertext_is_refused_and_the_old_key_stays() {
    let (mut world, accept) = renewing();
    let slot = accept.slot;
    let (held, over) = (world.engine(0, slot), slot.other());
    let mut changed = accept.clone();
    changed.material[0] ^= 1;
    world.forge(0, over, Message::Accept(changed));
    assert!(world.notes.contains(&(0, Note::ConfirmationFailed(slot, accept.epoch))));
    assert_eq!(world.machine(0).refused(), Some(Refusal::Changed));
    assert_eq!((world.machine(0).preshared(slot), world.on_disk(0, slot)), (held, held));
    // The genuine one arrives too late: its offer was cancelled.
    world.forge(0, over, Message::Accept(accept));
    assert_eq!(world.machine(0).preshared(slot), held);
    world.calm(Duration::from_mins(2));
    assert!(world.is_proven_soon());
    assert_ne!(world.engine(0, slot), held);
}

#[test]
fn a_modified_proof_is_refused() {
    let (mut world, mut accept) = renewing();
    accept.tag[31] ^= 0x80;
    let (slot, epoch) = (accept.slot, accept.epoch);
    world.forge(0, slot.other(), Message::Accept(accept));
    assert!(world.notes.contains(&(0, Note::ConfirmationFailed(slot, epoch))));
}

#[test]
fn a_confirmation_that_proves_nothing_changes_nothing() {
    let (mut world, accept) = renewing();
    let (slot, epoch) = (accept.slot, accept.epoch);
    let held = world.engine(1, slot);
    world.forge(1, slot.other(), Message::Confirm { slot, epoch, tag: [7; 32] });
    assert!(world.notes.contains(&(1, Note::ConfirmationFailed(slot, epoch))));
    assert_eq!((world.machine(1).preshared(slot), world.on_disk(1, slot)), (held, held));
}

#[test]
fn a_late_answer_is_not_used() {
    let (mut world, accept) = renewing();
    let (slot, held) = (accept.slot, world.engine(0, accept.slot));
    for _ in 0..35 {
        world.act(Action::Wait(100));
        while world.intercept(|_| true).is_some() {}
    }
    world.forge(0, slot.other(), Message::Accept(accept));
    assert_eq!(world.machine(0).preshared(slot), held);
}

#[test]
fn replayed_messages_of_an_old_exchange_change_nothing() {
    let mut world = world(Mode::Prefer, Mode::Prefer);
    let offer = world.catch(|message| matches!(message, Message::Offer(_)));
    world.run(Duration::from_secs(20));
    assert!(world.is_proven());
    let Message::Offer(old) = offer.clone() else { unreachable!() };
    let held = world.engine(1, old.slot);
    world.forge(1, old.slot.other(), offer);
    let refused = world.intercept(|message| matches!(message, Message::Refuse { .. }));
    // Two exchanges have completed since: one for each slot.
    let why = Refusal::Stale { epoch: 2 };
    assert_eq!(refused, Some(Message::Refuse { slot: old.slot, epoch: old.epoch, why }));
    assert_eq!(world.machine(1).avoid(world.now), None);
    assert_eq!(world.engine(1, old.slot), held);
}

#[test]
fn an_offer_for_other_static_keys_is_refused() {
    let mut world = world(Mode::Prefer, Mode::Prefer);
    let Message::Offer(mut offer) = world.catch(|message| matches!(message, Message::Offer(_))) else {
        unreachable!()
    };
    offer.epoch += 1;
    let (slot, epoch) = (offer.slot, offer.epoch);
    world.forge(1, slot.other(), Message::Offer(offer));
    let refused = world.intercept(|message| matches!(message, Message::Refuse { .. }));
    assert_eq!(refused, Some(Message::Refuse { slot, epoch, why: Refusal::Keys }));
}

#[test]
fn a_full_disk_keeps_the_old_key_at_either_end() {
    for end in [false, true] {
        let mut world = proven();
        world.run(Duration::from_mins(53));
        world.act(Action::DiskFull(end));
        world.run(Duration::from_mins(20));
        assert!(
            world
                .notes
                .iter()
                .any(|(at, note)| *at == usize::from(end) && matches!(note, Note::NotStored(..)))
        );
        assert!(world.is_proven() && world.seen.len() == 4, "{world:?}");
        assert_eq!(world.lost, 0);
    }
}

#[test]
fn an_end_that_lost_all_keys_recovers_and_the_other_never_drops_a_proven_key() {
    for end in [false, true] {
        let mut world = proven();
        world.act(Action::Forget(end));
        world.act(Action::Start(end));
        world.calm(Duration::from_secs(29));
        let other = usize::from(!end);
        assert!(
            Slot::ALL.into_iter().all(|slot| world.machine(other).preshared(slot).is_some()),
            "given up too soon"
        );
        world.run(Duration::from_mins(2));
        assert!(world.is_proven(), "{world:?}");
        assert!(
            world.notes.iter().any(|(at, note)| *at == other && matches!(note, Note::GivenUp(Slot::A, _)))
        );
    }
}

#[test]
fn a_restart_continues_with_the_keys_on_disk() {
    for end in [false, true] {
        let mut world = proven();
        world.act(Action::Crash(end));
        world.act(Action::Wait(20_000));
        world.calm(Duration::from_mins(2));
        assert!(world.is_proven(), "{world:?}");
        assert_eq!(world.seen.len(), 2);
    }
}

#[test]
fn a_slot_of_a_dead_port_is_avoided_and_its_keys_are_left_alone() {
    let mut world = proven();
    world.act(Action::Block(Slot::A, true));
    world.run(Duration::from_mins(3));
    assert_eq!((world.tx(0), world.tx(1)), (Slot::B, Slot::B));
    assert_eq!(world.seen.len(), 2);
    assert!(world.machine(0).proven(Slot::B));
}

#[test]
fn a_key_removed_from_the_engine_is_noticed() {
    let mut world = proven();
    let entry = Some(keyring::pq::Entry { preshared: None, handshake: true });
    world.handle(0, Input::Engine(keyring::PerSlot { a: entry, b: entry }));
    assert!(!world.machine(0).proven(Slot::A));
    assert_eq!(world.machine(0).report(world.now).a.protection, Protection::Set);
}
