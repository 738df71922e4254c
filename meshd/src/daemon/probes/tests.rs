use super::*;

const INTERVAL: Duration = Duration::from_secs(30);

/// A time in seconds since the phase of n2, at whose multiples of the interval it is probed.
fn at(probes: &Probes, second: u64) -> Duration {
    phase(probes.jitter_seed, INTERVAL, &PeerId::new("n2")) + Duration::from_secs(second)
}

fn way(up: bool, sent: u64, received: u64) -> Way {
    let limits = Limits { smallest: 1280, largest: 1420 };
    Way { endpoint: "192.0.2.1:51840".parse().ok(), up, limits, traffic: (sent, received) }
}

fn set(probes: &mut Probes, now: Duration, ways: PerSlot<Way>) {
    probes.set_ways(now, [(PeerId::new("n2"), ways)].into());
}

/// Probes of one peer on whose slot a packets are sent.
fn watching() -> Probes {
    let mut probes = Probes::new(INTERVAL, u64::MAX);
    set(&mut probes, Duration::ZERO, PerSlot { a: way(true, 0, 0), b: way(false, 0, 0) });
    probes
}

/// Runs `seconds` on a path that answers, after 3 ms, the probes that `passes` lets through.
fn play(probes: &mut Probes, from: u64, seconds: u64, passes: impl Fn(&Probe) -> bool) -> usize {
    let peer = PeerId::new("n2");
    let mut sent = 0;
    for tenth in from * 10..(from + seconds) * 10 {
        let now = at(probes, 0) + Duration::from_millis(tenth * 100);
        for probe in probes.due(now, [(&peer, Slot::A)].into_iter()) {
            sent += 1;
            if passes(&probe) {
                probes.receive(now + Duration::from_millis(3), &peer, probe.over, probe.nonce);
            }
        }
    }
    sent
}

fn up_to(mtu: u32) -> impl Fn(&Probe) -> bool {
    move |probe| probe.size.is_none_or(|size| size <= mtu)
}

fn mtu(probes: &Probes) -> u32 {
    probes.passes().map(|(_, _, mtu)| mtu).min().unwrap_or(1420)
}

#[test]
fn a_working_path_is_measured_once_per_interval() {
    let mut probes = watching();
    // The first round also asks whether the peer answers probes with a size.
    assert_eq!(play(&mut probes, 0, 300, |_| true), 21);
    let round_trip = Some(Duration::from_millis(3));
    let stats = PathStats { round_trip, full_size: Some(true), source: Source::Route };
    assert_eq!(probes.path(&PeerId::new("n2")), stats);
    assert_eq!(probes.path(&PeerId::new("n3")), PathStats::default());
}

#[test]
fn peers_are_probed_fifty_a_second_and_then_each_at_its_own_time() {
    let peers: Vec<PeerId> = (0..1000).map(|number| PeerId::new(format!("n{number}"))).collect();
    let mut probes = Probes::new(INTERVAL, 7);
    let ways = PerSlot { a: way(true, 0, 0), b: way(false, 0, 0) };
    probes.set_ways(Duration::from_secs(100), peers.iter().map(|peer| (peer.clone(), ways)).collect());
    let mut sent: BTreeMap<PeerId, Vec<u64>> = BTreeMap::new();
    let mut busiest = 0;
    for second in 100..340 {
        let now = Duration::from_secs(second);
        let due = probes.due(now, peers.iter().map(|peer| (peer, Slot::A)));
        let rounds = due.iter().filter(|probe| probe.size.is_none()).count();
        assert!(rounds <= 50, "{rounds} rounds in second {second}");
        if second < 120 {
            assert_eq!(rounds, 50, "new peers are not kept waiting for longer than that takes");
        } else if second >= 160 {
            busiest = busiest.max(due.len());
        }
        for probe in due {
            probes.receive(now, &probe.peer, probe.over, probe.nonce);
            if probe.size.is_none() {
                sent.entry(probe.peer).or_default().push(second);
            }
        }
    }
    assert!(busiest < 2 * 3 * peers.len() / 30, "{busiest} in one second, of 67 on average");
    for (peer, times) in sent {
        assert!(times[0] < 140, "{peer:?}: {times:?}");
        let at_rest: Vec<u64> = times.into_iter().filter(|time| *time >= 160).collect();
        assert!(at_rest.len() > 3, "{peer:?}: {at_rest:?}");
        assert!(at_rest.windows(2).all(|pair| pair[1] - pair[0] == 30), "{peer:?}: {at_rest:?}");
    }
    let with = |seed| phase(seed, INTERVAL, &peers[2]);
    assert_ne!(with(7), with(8), "nodes that start together do not probe a peer together");
}

#[test]
fn the_interval_grows_with_the_mesh_and_losses_are_looked_into_at_once() {
    let peers: Vec<PeerId> = (0..5000).map(|number| PeerId::new(format!("n{number}"))).collect();
    let mut probes = Probes::new(INTERVAL, 7);
    let ways = PerSlot { a: way(true, 0, 0), b: way(false, 0, 0) };
    probes.set_ways(Duration::ZERO, peers.iter().map(|peer| (peer.clone(), ways)).collect());
    assert_eq!(probes.record(Duration::ZERO, &peers[0]).interval, Some(Duration::from_secs(100)));
    let due = |probes: &mut Probes, second: u64| {
        let due = probes.due(Duration::from_secs(second), peers.iter().map(|peer| (peer, Slot::A)));
        due.into_iter().filter(|probe| probe.size.is_none()).count()
    };
    let sent: usize = (0..100).map(|second| due(&mut probes, second)).sum();
    // None is answered: those that were lost twice are asked again besides.
    assert!(sent > 5000 + 4000, "{sent}");
    probes.set_ways(Duration::from_secs(100), peers[..50].iter().map(|peer| (peer.clone(), ways)).collect());
    assert_eq!(probes.record(Duration::ZERO, &peers[0]).interval, Some(INTERVAL));
}

#[test]
fn losses_do_not_move_a_peers_time() {
    let mut probes = watching();
    let peer = PeerId::new("n2");
    play(&mut probes, 0, 31, |_| true);
    play(&mut probes, 31, 45, |_| false);
    let before = at(&probes, 89) + Duration::from_millis(999);
    assert!(probes.due(before, [(&peer, Slot::A)].into_iter()).is_empty());
    assert_eq!(probes.due(at(&probes, 90), [(&peer, Slot::A)].into_iter()).len(), 2);
}

#[test]
fn a_narrower_path_lowers_the_mtu_and_a_wider_one_raises_it_after_twenty_intervals() {
    let mut probes = watching();
    play(&mut probes, 0, 30, |_| true);
    play(&mut probes, 30, 1, up_to(1340));
    assert_eq!(mtu(&probes), 1420, "not after fewer than three losses");
    play(&mut probes, 31, 10, up_to(1340));
    assert!((1324..=1340).contains(&mtu(&probes)), "{}", mtu(&probes));
    assert_eq!(probes.path(&PeerId::new("n2")).source, Source::Probed);
    play(&mut probes, 41, 550, |_| true);
    assert!(mtu(&probes) <= 1340);
    play(&mut probes, 591, 60, |_| true);
    assert_eq!(mtu(&probes), 1420);
}

#[test]
fn no_answer_at_all_says_nothing_about_sizes() {
    let mut probes = watching();
    play(&mut probes, 0, 30, |_| true);
    play(&mut probes, 30, 600, |_| false);
    let stats = PathStats { round_trip: None, full_size: Some(true), source: Source::Route };
    assert_eq!(probes.path(&PeerId::new("n2")), stats);
}

#[test]
fn what_is_sent_brings_the_next_probe_forward() {
    let peer = PeerId::new("n2");
    for (sent, received, expected, why) in [
        (0, 0, 0, "an idle pair"),
        (1_000, 0, 0, "less than a packet of full size"),
        (3_000, 0, 2, "nothing comes back"),
        (3_000, 100, 0, "something comes back"),
        (300_000, 100_000, 2, "much is sent"),
    ] {
        let mut probes = watching();
        play(&mut probes, 0, 5, |_| true);
        for second in 5..9 {
            let rest = second - 4;
            let a = way(true, sent * u64::from(rest > 1), received * rest);
            let now = at(&probes, second);
            set(&mut probes, now, PerSlot { a, b: way(false, 0, 0) });
        }
        let now = at(&probes, 9);
        assert_eq!(probes.due(now, [(&peer, Slot::A)].into_iter()).len(), expected, "{why}");
    }
}

#[test]
fn the_other_slot_is_probed_when_its_path_is_new_and_the_answer_of_a_slot_counts_for_it_alone() {
    let mut probes = watching();
    play(&mut probes, 0, 5, |_| true);
    let now = at(&probes, 5);
    set(&mut probes, now, PerSlot { a: way(true, 0, 0), b: way(true, 0, 0) });
    let on_b = |probe: &Probe| probe.over == Slot::A || up_to(1300)(probe);
    assert!(play(&mut probes, 5, 20, on_b) > 3);
    let narrow: Vec<_> = probes.passes().map(|(_, slot, mtu)| (slot, mtu <= 1300)).collect();
    assert_eq!(narrow, [(Slot::B, true)]);
    assert_eq!(play(&mut probes, 25, 4, on_b), 0);
}

#[test]
fn three_lost_probes_within_seconds_are_evidence_until_one_is_answered() {
    let mut probes = watching();
    let peer = PeerId::new("n2");
    let record = |probes: &Probes, second| probes.record(at(probes, second), &peer);
    play(&mut probes, 0, 31, |_| true);
    let none_lost = record(&probes, 31);
    assert_eq!((none_lost.interval, none_lost.unanswered_for), (Some(INTERVAL), None));
    assert!(none_lost.since_answer.is_some_and(|since| since < Duration::from_secs(1)));
    // The next one is sent at 60 s, and then every 2 s.
    play(&mut probes, 31, 35, |_| false);
    assert_eq!(record(&probes, 65).unanswered_for, None);
    play(&mut probes, 66, 1, |_| false);
    assert_eq!(record(&probes, 66).unanswered_for, Some(Duration::from_secs(6)));
    // No more than one per interval from then on: two probes each.
    assert_eq!(play(&mut probes, 67, 300, |_| false), 20);
    assert_eq!(record(&probes, 367).unanswered_for, Some(Duration::from_secs(307)));
    play(&mut probes, 367, 30, |_| true);
    assert_eq!(record(&probes, 397).unanswered_for, None);
}

#[test]
fn late_answers_are_none_and_zero_switches_probes_off() {
    let mut probes = watching();
    let peer = PeerId::new("n2");
    for probe in probes.due(Duration::ZERO, [(&peer, Slot::A)].into_iter()) {
        probes.receive(Duration::from_secs(3), &peer, probe.over, probe.nonce);
    }
    assert_eq!(probes.path(&peer), PathStats::default());
    let mut off = Probes::new(Duration::ZERO, 7);
    set(&mut off, Duration::ZERO, PerSlot { a: way(true, 0, 0), b: way(true, 0, 0) });
    assert_eq!(play(&mut off, 0, 100, |_| true), 0);
}

#[test]
fn a_round_ends_although_its_peer_can_not_be_asked_any_more() {
    let mut probes = watching();
    let peer = PeerId::new("n2");
    assert!(!probes.due(at(&probes, 0), [(&peer, Slot::A)].into_iter()).is_empty());
    assert!(probes.next_step(at(&probes, 0)).is_some());
    assert!(probes.due(at(&probes, 3), std::iter::empty()).is_empty());
    assert_eq!(probes.next_step(at(&probes, 3)), None);
}

#[test]
fn a_slot_whose_path_is_lost_does_not_bound_the_mtu() {
    let mut probes = watching();
    set(&mut probes, Duration::ZERO, PerSlot { a: way(true, 0, 0), b: way(true, 0, 0) });
    play(&mut probes, 0, 20, |probe| probe.over == Slot::A || up_to(1300)(probe));
    assert!(mtu(&probes) <= 1300);
    let now = at(&probes, 20);
    set(&mut probes, now, PerSlot { a: way(true, 0, 0), b: way(false, 0, 0) });
    assert_eq!(mtu(&probes), 1420);
}

#[test]
fn a_slot_whose_daemon_was_away_is_asked_again() {
    let mut probes = watching();
    play(&mut probes, 0, 5, |_| true);
    let now = at(&probes, 5);
    set(&mut probes, now, PerSlot { a: way(true, 0, 0), b: way(true, 0, 0) });
    play(&mut probes, 5, 20, |probe| probe.over == Slot::A);
    play(&mut probes, 25, 60, |probe| probe.over == Slot::A || up_to(1300)(probe));
    assert!(mtu(&probes) <= 1300);
}

#[test]
fn what_no_probe_can_reach_is_left_to_the_route() {
    let limits = Limits { smallest: 1280, largest: 65_440 };
    let mut probes = Probes::new(INTERVAL, 7);
    let wide = Way { limits, ..way(true, 0, 0) };
    set(&mut probes, Duration::ZERO, PerSlot { a: wide, b: way(false, 0, 0) });
    let largest = std::cell::Cell::new(0);
    play(&mut probes, 0, 100, |probe| {
        largest.set(largest.get().max(probe.size.unwrap_or_default()));
        true
    });
    assert_eq!(largest.get(), LARGEST_PROBED);
    assert_eq!(probes.passes().count(), 0);
}
