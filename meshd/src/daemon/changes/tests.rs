//! Whoever keeps something about members keeps the same, whether all members are set or those that are others than before.

use std::path::Path;
use std::time::Duration;

use keyring::{PerSlot, PrivateKey, Slot};
use plan::admission::Admission;
use plan::annotation::{Endpoints, Phase, SlotState, State};
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::config::{Config, Sources, from_sources};
use crate::daemon::keys::Keys;
use crate::daemon::peer_channel::PeerChannel;
use crate::daemon::pq::Pairs;
use crate::daemon::witness::{PeerHeads, Witness};

/// What a Node is like; with a life of zero it is no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Draw {
    life: u8,
    generation: u8,
    key: u8,
    pods: u8,
    drains: bool,
}

fn draw() -> impl Strategy<Value = Draw> {
    (0..4_u8, 1..4_u8, 0..3_u8, any::<bool>(), any::<bool>()).prop_map(
        |(life, generation, key, swaps, drains)| Draw {
            life: life.min(2),
            generation,
            key,
            pods: u8::from(swaps),
            drains,
        },
    )
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes(&[number + 1; 32]).unwrap()
}

fn member(number: u8, draw: Draw) -> Member {
    let uid = NodeUid::new(format!("u{number}-{}", draw.life));
    let slot = |slot: u8, port| SlotState {
        key: key(40 * slot + 4 * number + draw.key).public(),
        generation: 1,
        port,
    };
    let state = State {
        uid: uid.clone(),
        generation: u64::from(draw.generation),
        slots: PerSlot { a: slot(0, 51840), b: slot(1, 51841) },
        prefer: Slot::A,
        drain: draw.drains.then_some(Slot::B),
        phase: Phase::Steady,
        proofs: None,
    };
    Member {
        uid,
        pod_cidrs: vec![format!("10.244.{}.0/24", 2 * number + draw.pods).parse().unwrap()],
        addresses: Vec::new(),
        state,
        endpoint: None,
        prescribed: None,
        name: None,
        reach: Endpoints::default(),
        published: 1,
        location: None,
        nat: false,
        relay: false,
        keepalive: None,
    }
}

fn admission(draws: &[Draw]) -> Admission {
    let mut admission = Admission::default();
    let own = member(9, Draw { life: 1, generation: 1, key: 0, pods: 0, drains: false });
    admission.world.own = Some(plan::admission::Own {
        uid: own.uid,
        pod_cidrs: own.pod_cidrs,
        addresses: Vec::new(),
        location: None,
        relay: false,
        renewal: None,
    });
    let there = draws.iter().zip(0..).filter(|(draw, _)| draw.life > 0);
    admission.world.peers =
        there.map(|(draw, number)| (NodeName::new(format!("n{number}")), member(number, *draw))).collect();
    admission
}

fn config(directory: &Path) -> Config {
    let directory = directory.to_str().unwrap();
    let flags = [
        ("node-name", "n9"),
        ("cluster-cidr", "10.244.0.0/16"),
        ("service-cidr", "10.96.0.0/16"),
        ("key-dir", directory),
        ("key-storage", "plain-on-disk"),
    ];
    let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    from_sources(&Sources { flags, ..Sources::default() }).unwrap()
}

/// Everything that keeps something about members.
struct Keepers {
    keys: Keys,
    channel: PeerChannel,
    pairs: Pairs,
    witness: Witness,
    _directory: tempfile::TempDir,
}

impl Keepers {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory.path().join("keys"));
        let mut keys = Keys::open(&config).unwrap();
        keys.set_identity(&NodeUid::new("u9-1"));
        let channel = PeerChannel::new(&config, 1, mpsc::channel(1).0);
        let (witness, _) = Witness::open(&directory.path().join("trail"), PeerHeads::default()).unwrap();
        Self { keys, channel, pairs: Pairs::new(config.pq), witness, _directory: directory }
    }

    fn set(&mut self, now: Duration, admission: &Admission, changes: Option<&Changes<'_>>) {
        let stance = self.keys.stance();
        if let Some(changes) = changes {
            self.channel.set_changed(changes);
            self.pairs.set_changed(changes, stance, &mut self.keys);
        } else {
            self.channel.set_members(admission, &self.keys);
            self.pairs.set_peers(admission, stance, &mut self.keys);
        }
        self.witness.record(now, admission, changes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_members_are_kept_as_if_all_had_been_set(
        worlds in prop::collection::vec(prop::collection::vec(draw(), 4), 1..10),
        seconds in prop::collection::vec(0..700_u64, 10),
    ) {
        let (mut all, mut some) = (Keepers::new(), Keepers::new());
        let (mut former, mut now) = (admission(&[]), Duration::ZERO);
        for keepers in [&mut all, &mut some] {
            keepers.set(now, &former, None);
        }
        for (draws, seconds) in worlds.iter().zip(seconds) {
            now += Duration::from_secs(seconds);
            let next = admission(draws);
            all.set(now, &next, None);
            some.set(now, &next, Some(&Changes::between(&former.world, &next.world)));
            prop_assert_eq!(some.channel.members(), all.channel.members());
            prop_assert_eq!(some.pairs.members(), all.pairs.members());
            prop_assert_eq!(some.witness.waiting_events(), all.witness.waiting_events());
            former = next;
        }
    }
}

/// One peer that announces another generation all the time has used up its quota; what it announced last is recorded when
/// that is allowed again, although nothing is new then.
#[test]
fn what_waits_for_its_quota_is_recorded_without_a_change() {
    let (mut all, mut some) = (Keepers::new(), Keepers::new());
    let mut former = admission(&[]);
    let draw = |generation| Draw { life: 1, generation, key: 0, pods: 0, drains: false };
    for second in 0..1000_u64 {
        let next = admission(&[draw(u8::try_from(second.min(99)).unwrap())]);
        let now = Duration::from_secs(second);
        all.set(now, &next, None);
        some.set(now, &next, Some(&Changes::between(&former.world, &next.world)));
        former = next;
    }
    assert_eq!(some.witness.waiting_events(), all.witness.waiting_events());
}
