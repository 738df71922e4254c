//! Two ends and a network that loses, repeats, reorders and replays, over restarts and rotations.

use std::collections::{BTreeMap, BTreeSet};

use keyring::{PrivateKey, Slot};

use super::*;

/// Pseudo-random numbers (xorshift64*).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % most
    }
}

fn private(number: u64) -> PrivateKey {
    let mut bytes = [1; 32];
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(&bytes).unwrap()
}

/// Whatever arrives, with a valid MAC or without: nothing panics, replies are few, and only what this session was sent is
/// opened, once.
#[test]
fn no_datagram_upsets_a_session() {
    let mut dice = Dice(9);
    let (ours, theirs) = (private(1), private(2));
    let keys = ChannelKeys::derive(&ours, &theirs.public(), Slot::A).unwrap();
    let of_peer = ChannelKeys::derive(&theirs, &ours.public(), Slot::A).unwrap();
    let mut session = Session::new(&mut || Some(dice.next())).unwrap();
    let mut opened = BTreeSet::new();
    for round in 0..40_000_u64 {
        let now = Duration::from_millis(round);
        let mut datagram: Vec<u8> = (0..dice.below(80)).map(|_| dice.next().to_be_bytes()[0]).collect();
        if datagram.len() >= 2 && dice.below(4) > 0 {
            (datagram[0], datagram[1]) = (VERSION, dice.next().to_be_bytes()[0] % 4);
        }
        if datagram.len() >= 10 && dice.below(2) > 0 {
            datagram[2..10].copy_from_slice(&session.receiver.to_be_bytes());
        }
        let valid = dice.below(4) > 0;
        if valid {
            datagram = sealed(&of_peer, datagram);
        }
        let receiver = session.receiver;
        let Opened { body, reply } = session.open(now, &keys, &datagram, &mut || Some(dice.next()));
        assert!(reply.len() <= 2, "{} replies to {datagram:?}", reply.len());
        if let Ok(Some(_)) = body {
            assert!(valid && datagram[2..10] == receiver.to_be_bytes(), "{datagram:?}");
            assert!(opened.insert(datagram), "opened twice");
        }
    }
    assert!(opened.len() > 1000, "only {} of them were messages", opened.len());
}

struct End {
    session: Session,
    keys: ChannelKeys,
    /// The static keys that it knows: its own and the peer's.
    known: [u64; 2],
    /// How often it has started.
    life: u32,
    accepted: BTreeSet<u64>,
}

/// What is known of a message when it is sent: the static keys, and the life of the end that it is for.
type Sent = (usize, [u64; 2], u32);

struct World {
    ends: [End; 2],
    statics: [u64; 2],
    now: Duration,
    dice: Dice,
    flying: Vec<(usize, Vec<u8>)>,
    history: Vec<(usize, Vec<u8>)>,
    ids: u64,
    /// A message that waits for a welcome is sent when that arrives.
    sent: BTreeMap<u64, Sent>,
    refused: BTreeMap<Refused, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let statics = [1, 2];
        let ends = [0, 1].map(|end| End {
            session: Session::new(&mut || Some(dice.next())).unwrap(),
            keys: ChannelKeys::derive(&private(statics[end]), &private(statics[1 - end]).public(), Slot::A)
                .unwrap(),
            known: [statics[end], statics[1 - end]],
            life: 0,
            accepted: BTreeSet::new(),
        });
        Self {
            ends,
            statics,
            now: Duration::ZERO,
            dice,
            flying: Vec::new(),
            history: Vec::new(),
            ids: 0,
            sent: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    fn fly(&mut self, from: usize, datagrams: Vec<Vec<u8>>) {
        for datagram in datagrams {
            if datagram[1] == MESSAGE {
                let id = u64::from_be_bytes(datagram[HEADER_LEN..][..8].try_into().unwrap());
                self.sent.insert(id, (from, self.ends[from].known, self.ends[1 - from].life));
            }
            self.history.push((1 - from, datagram.clone()));
            self.flying.push((1 - from, datagram));
        }
    }

    fn send(&mut self, from: usize) {
        let id = self.ids;
        self.ids += 1;
        let end = &mut self.ends[from];
        let dice = &mut self.dice;
        let datagrams = end.session.seal(self.now, &end.keys, &id.to_be_bytes(), &mut || Some(dice.next()));
        self.fly(from, datagrams);
    }

    fn arrive(&mut self, to: usize, datagram: &[u8]) {
        let end = &mut self.ends[to];
        let dice = &mut self.dice;
        let Opened { body, reply } =
            end.session.open(self.now, &end.keys, datagram, &mut || Some(dice.next()));
        match body {
            Ok(Some(body)) => {
                let id = u64::from_be_bytes(body.try_into().unwrap());
                let (from, known, life) = self.sent[&id];
                assert_eq!(from, 1 - to, "reflected");
                assert!(end.accepted.insert(id), "message {id} was accepted twice");
                assert_eq!(
                    [known[1], known[0]],
                    end.known,
                    "sent with keys that are not those of the present"
                );
                assert_eq!(life, end.life, "sent before a restart");
            }
            Ok(None) => {}
            Err(why) => *self.refused.entry(why).or_default() += 1,
        }
        self.fly(to, reply);
    }

    fn learn(&mut self, end: usize) {
        let known = [self.statics[end], self.statics[1 - end]];
        if self.ends[end].known != known {
            self.ends[end].known = known;
            self.ends[end].keys =
                ChannelKeys::derive(&private(known[0]), &private(known[1]).public(), Slot::A).unwrap();
        }
    }

    fn restart(&mut self, end: usize) {
        let dice = &mut self.dice;
        self.ends[end].session = Session::new(&mut || Some(dice.next())).unwrap();
        self.ends[end].life += 1;
    }

    fn act(&mut self) {
        let end = self.dice.below(2);
        match self.dice.below(100) {
            0..30 => self.send(end),
            30..70 if !self.flying.is_empty() => {
                let at = self.dice.below(self.flying.len());
                let (to, datagram) = self.flying.swap_remove(at);
                self.arrive(to, &datagram);
            }
            70..75 if !self.flying.is_empty() => {
                let at = self.dice.below(self.flying.len());
                self.flying.swap_remove(at);
            }
            75..88 if !self.history.is_empty() => self.replay(),
            88..95 => self.now += Duration::from_millis(u64::try_from(self.dice.below(500)).unwrap()),
            95..97 => self.restart(end),
            97 => {
                self.statics[end] = self.dice.next();
                self.learn(end);
            }
            _ => self.learn(end),
        }
    }

    /// Something that was sent arrives, at the end that it was sent to or at the one that has sent it.
    fn replay(&mut self) {
        let at = self.dice.below(self.history.len());
        let (to, datagram) = self.history[at].clone();
        let to = if self.dice.below(8) == 0 { 1 - to } else { to };
        self.arrive(to, &datagram);
    }

    /// Everything arrives from here on, but replays go on; returns how long it takes until messages pass both ways.
    fn recover(&mut self) -> Duration {
        self.flying.clear();
        let since = self.now;
        for end in 0..2 {
            self.learn(end);
        }
        let before = [0, 1].map(|end| self.ends[end].accepted.len());
        while (0..2).any(|end| self.ends[end].accepted.len() == before[end]) {
            assert!(self.now < since + Duration::from_mins(1), "no message passes: {:?}", self.refused);
            self.now += Duration::from_millis(50);
            for end in 0..2 {
                self.send(end);
            }
            self.replay();
            while !self.flying.is_empty() {
                let (to, datagram) = self.flying.remove(0);
                self.arrive(to, &datagram);
            }
        }
        self.now.saturating_sub(since)
    }
}

#[test]
fn nothing_is_accepted_twice_and_honest_messages_soon_pass_again() {
    let mut longest = Duration::ZERO;
    let mut refused = BTreeMap::new();
    for seed in 1..=400 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.act();
        }
        longest = longest.max(world.recover());
        for (why, count) in world.refused {
            *refused.entry(why).or_insert(0) += count;
        }
    }
    println!("recovered after at most {longest:?}; refused: {refused:?}");
    // Each end's hello may have to wait for the longest interval between two.
    assert!(longest <= 2 * MAX_HELLO_INTERVAL + Duration::from_millis(100), "{longest:?}");
    for why in [Refused::Mac, Refused::Replay, Refused::Stale] {
        assert!(refused.get(&why).is_some_and(|count| *count > 1000), "{refused:?}");
    }
}

/// Delivers everything in the order in which it was sent.
fn settle(world: &mut World) {
    while !world.flying.is_empty() {
        let (to, datagram) = world.flying.remove(0);
        world.arrive(to, &datagram);
    }
}

#[test]
fn the_first_message_arrives_after_one_round_trip_and_the_next_ones_at_once() {
    let mut world = World::new(7);
    world.send(0);
    assert_eq!(world.flying.len(), 1, "a hello");
    settle(&mut world);
    assert_eq!(world.ends[1].accepted, [0].into());
    // The other end has learnt everything as well.
    world.send(1);
    assert_eq!(world.flying.len(), 1);
    settle(&mut world);
    assert_eq!(world.ends[0].accepted, [1].into());
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn a_rotation_needs_no_new_session() {
    let mut world = World::new(7);
    world.send(0);
    settle(&mut world);
    world.statics[0] = 77;
    world.learn(0);
    world.learn(1);
    let recorded = world.history.clone();
    world.send(0);
    settle(&mut world);
    assert_eq!(world.ends[1].accepted, [0, 1].into());
    assert_eq!(world.history.len(), recorded.len() + 1);
    for (to, datagram) in recorded {
        world.arrive(to, &datagram);
    }
    assert_eq!(world.refused.keys().collect::<Vec<_>>(), [&Refused::Mac]);
}

#[test]
fn replayed_hellos_and_welcomes_change_nothing() {
    let mut world = World::new(7);
    for _ in 0..5 {
        world.restart(1);
        world.now += Duration::from_secs(3);
        world.send(0);
        world.send(1);
        settle(&mut world);
    }
    let recorded = world.history.clone();
    let numbers = |world: &World| {
        world.ends.each_ref().map(|end| (end.session.receiver, end.session.peer, end.session.sender))
    };
    let before = numbers(&world);
    for (to, datagram) in recorded.iter().chain(&recorded) {
        world.now += Duration::from_millis(1);
        world.arrive(*to, datagram);
        settle(&mut world);
    }
    assert_eq!(numbers(&world), before);
}

#[test]
fn a_flood_of_recorded_hellos_causes_few() {
    let mut world = World::new(7);
    world.send(0);
    settle(&mut world);
    let (to, old) = world.history[0].clone();
    world.restart(0);
    world.send(0);
    settle(&mut world);
    let before = world.history.len();
    for _ in 0..1000 {
        world.now += Duration::from_millis(1);
        world.arrive(to, &old);
        settle(&mut world);
    }
    assert!(world.history.len() <= before + 20, "{} datagrams", world.history.len() - before);
}

#[test]
fn every_changed_bit_and_every_truncated_datagram_is_refused() {
    let mut world = World::new(7);
    world.send(0);
    settle(&mut world);
    world.send(0);
    let (to, datagram) = world.flying.remove(0);
    for bit in 0..8 * datagram.len() {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        world.arrive(to, &changed);
    }
    for len in 0..datagram.len() {
        world.arrive(to, &datagram[..len]);
    }
    assert_eq!(world.ends[to].accepted.len(), 1);
    assert!(world.flying.is_empty(), "nothing is answered");
    world.arrive(to, &datagram);
    assert_eq!(world.ends[to].accepted.len(), 2);
}

#[test]
fn a_peer_with_many_sender_numbers_is_still_heard_and_none_is_forgotten() {
    let mut world = World::new(7);
    for _ in 0..3 * MAX_SENDERS {
        world.restart(0);
        world.now += Duration::from_secs(3);
        for _ in 0..3 {
            world.send(0);
            settle(&mut world);
            world.now += Duration::from_millis(250);
        }
    }
    assert!(world.ends[1].accepted.len() > 8 * MAX_SENDERS, "{}", world.ends[1].accepted.len());
    assert!(world.ends[1].session.senders.len() <= MAX_SENDERS);
    // The model checks that none is accepted again.
    for (to, datagram) in world.history.clone() {
        world.arrive(to, &datagram);
    }
}

#[test]
fn few_and_only_short_messages_wait_and_not_for_long() {
    let mut world = World::new(7);
    let end = &mut world.ends[0];
    for number in 0..100 {
        let mut random = || Some(number);
        end.session.seal(Duration::from_secs(1), &end.keys, &[0; MAX_WAITING_LEN + 1], &mut random);
        assert!(end.session.waiting.is_empty());
    }
    for number in 0..100 {
        end.session.seal(Duration::from_secs(1), &end.keys, &[0; MAX_WAITING_LEN], &mut || Some(number));
    }
    assert_eq!(end.session.waiting.len(), MAX_WAITING);
    end.session.seal(Duration::from_secs(9), &end.keys, &[0; MAX_WAITING_LEN + 1], &mut || Some(7));
    assert!(end.session.waiting.is_empty());
    assert_eq!((end.session.take_unsent(), end.session.take_unsent()), (100 + 100 - 4 + 1, 0));
}
