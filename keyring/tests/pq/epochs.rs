//! Epochs that somebody moves far away: nothing is lost, nothing spins, and the pair is soon back.

use std::time::Duration;

use keyring::Slot;
use keyring::pq::{Message, PqSettings, Refusal};

use super::world::{Action, World};

/// How soon a pair must have new keys once whoever moved its epochs is gone.
const SOON: Duration = Duration::from_secs(30);
/// Epochs on a disk or in a message: far away, the highest, and beyond.
const DISTANT: [u64; 6] = [100, 5_000_000, (1 << 48) - 1, 1 << 48, u64::MAX - 1, u64::MAX];

/// A world in which every key is proven.
fn proven() -> World {
    let mut world = World::new([PqSettings::default(); 2]);
    world.run(Duration::from_secs(10));
    assert!(world.is_proven(), "{world:?}");
    world
}

/// One end gets a new static key, as in a rotation, and the pair needs a new preshared key for that slot.
fn must_agree_soon(world: &mut World, byte: u8) {
    let agreed = world.seen.len();
    world.act(Action::Drain(Some(Slot::B)));
    world.act(Action::Turn(false));
    world.act(Action::Turn(true));
    world.act(Action::Wait(2000));
    world.replace_static(0, Slot::B, byte);
    world.run(SOON);
    assert!(world.is_proven() && world.seen.len() > agreed, "{world:?}");
    world.act(Action::Drain(None));
}

#[test]
fn an_epoch_on_disk_that_is_far_from_the_peer_s_heals_before_and_after_restarts_and_rotations() {
    for end in [false, true] {
        for epoch in DISTANT {
            let mut world = proven();
            world.act(Action::Misnumber(end, epoch));
            world.act(Action::Start(end));
            world.calm(Duration::from_secs(5));
            must_agree_soon(&mut world, 99);
            // Again, after restarts of either end.
            world.act(Action::Crash(!end));
            world.calm(Duration::from_secs(5));
            must_agree_soon(&mut world, 98);
            world.act(Action::Crash(end));
            world.calm(Duration::from_secs(5));
            must_agree_soon(&mut world, 97);
        }
    }
}

/// Runs a world in which every offer is refused as outdated.
fn outdate(world: &mut World, time: Duration, epoch: u64) {
    let until = world.now + time;
    while world.now < until {
        world.act(Action::Wait(50));
        let is_offer = |message: &Message| matches!(message, Message::Offer(_));
        while let Some(Message::Offer(offer)) = world.intercept(is_offer) {
            let why = Refusal::Stale { epoch };
            let refusal = Message::Refuse { slot: offer.slot, epoch: offer.epoch, why };
            world.forge(0, offer.slot.other(), refusal);
        }
        world.act(Action::Deliver(0));
        for end in [false, true] {
            world.act(Action::Turn(end));
        }
    }
}

#[test]
fn a_peer_that_calls_every_offer_outdated_slows_it_down_and_the_pair_is_back_soon_after() {
    for epoch in DISTANT {
        let mut world = World::new([PqSettings::default(); 2]);
        outdate(&mut world, Duration::from_mins(2), epoch);
        assert!(world.seen.is_empty());
        // One per slot every four seconds, and a few at first.
        assert!((10..75).contains(&world.generated()), "{} keys generated", world.generated());
        world.run(SOON);
        assert!(world.is_proven(), "{epoch}: {world:?}");
    }
}

#[test]
fn the_highest_epoch_is_refused_from_either_message() {
    let mut world = World::new([PqSettings::default(); 2]);
    let Message::Offer(mut offer) = world.catch(|message| matches!(message, Message::Offer(_))) else {
        unreachable!()
    };
    let (slot, epoch) = (offer.slot, offer.epoch);
    let why = Refusal::Stale { epoch: u64::MAX };
    world.forge(0, slot.other(), Message::Refuse { slot, epoch, why });
    let Message::Offer(next) = world.catch(|message| matches!(message, Message::Offer(_))) else {
        unreachable!()
    };
    assert_eq!(next.epoch, epoch + 1);
    offer.epoch = u64::MAX;
    world.forge(1, slot.other(), Message::Offer(offer));
    world.run(Duration::from_secs(10));
    assert!(world.is_proven(), "{world:?}");
}
