//! Reports of one and of several observers, and what is published of them.

use super::*;

const OWN: [u8; 4] = [10, 0, 0, 5];

fn own() -> BTreeSet<IpAddr> {
    [OWN.into()].into()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What observers at `203.0.113.N` report on slot a.
fn reported(reports: &[(u8, &str)]) -> Observations {
    let mut observations = Observations::default();
    for (observer, seen) in reports {
        let uid = NodeUid::new(format!("u{observer}"));
        let at = Duration::from_secs((*observer).into());
        observations.report(at, uid, Slot::A, socket(seen), [203, 0, 113, *observer].into());
    }
    observations
}

#[test]
fn the_kind_of_nat_follows_from_what_several_observers_agree_on() {
    let (one, other, third) = ("198.51.100.1:7001", "198.51.100.1:7002", "198.51.100.1:7003");
    let local = "10.0.0.5:51840";
    for (reports, expected) in [
        (&[][..], Mapping::Unknown),
        (&[(1, local)], Mapping::None),
        (&[(1, one)], Mapping::Unknown),
        (&[(1, one), (2, one)], Mapping::Easy),
        (&[(1, one), (2, other)], Mapping::Hard),
        (&[(1, one), (2, one), (3, other)], Mapping::Easy),
        (&[(1, one), (2, other), (3, third)], Mapping::Hard),
        (&[(1, local), (2, one), (3, one)], Mapping::Easy),
    ] {
        assert_eq!(reported(reports).mapping(&own()), expected, "{reports:?}");
    }
    let external: BTreeSet<IpAddr> = [OWN.into(), [198, 51, 100, 1].into()].into();
    assert_eq!(reported(&[(1, one), (2, one)]).mapping(&external), Mapping::None, "a cloud's own address");
}

#[test]
fn an_address_that_has_changed_replaces_the_former_one_once_two_observers_have_seen_it() {
    let (external, after, other) = ("198.51.100.1:51840", "198.51.100.2:51840", "198.51.100.3:51840");
    let own: BTreeSet<IpAddr> = [OWN.into(), [198, 51, 100, 1].into()].into();
    for (changes, expected, published) in [
        (&[][..], Mapping::None, &[][..]),
        // One may lie.
        (&[(1, after)], Mapping::None, &[]),
        (&[(1, after), (2, other)], Mapping::None, &[]),
        (&[(1, after), (2, after)], Mapping::Easy, &[after]),
        (&[(1, after), (2, after), (3, other)], Mapping::Easy, &[after]),
        // Those that see the former one still, or again, say so.
        (&[(1, after), (2, after), (3, external), (4, external), (5, external)], Mapping::None, &[]),
    ] {
        let before: Vec<(u8, &str)> = (1..=5).map(|observer| (observer, external)).collect();
        let mut observations = reported(&before);
        for ((observer, seen), second) in changes.iter().zip(10..) {
            let uid = NodeUid::new(format!("u{observer}"));
            let at = Duration::from_secs(second);
            observations.report(at, uid, Slot::A, socket(seen), [203, 0, 113, *observer].into());
        }
        assert_eq!(observations.mapping(&own), expected, "{changes:?}");
        observations.publish(Duration::from_secs(20), &own, None);
        let (found, _) = observations.publish(Duration::from_secs(22), &own, None);
        let published: Vec<SocketAddr> = published.iter().map(|text| socket(text)).collect();
        assert_eq!(found.a, published, "{changes:?}");
    }
}

#[test]
fn what_several_observers_agree_on_is_published_alone_and_nothing_of_a_hard_nat() {
    let mut observations =
        reported(&[(1, "198.51.100.1:9"), (2, "198.51.100.1:7"), (3, "198.51.100.1:7"), (4, "10.9.9.9:8")]);
    let (now, later) = (Duration::from_secs(10), Duration::from_secs(11));
    let shown = (PerSlot::default(), Mapping::Unknown);
    assert_eq!(observations.publish(now, &own(), None), shown, "not at once");
    let (published, mapping) = observations.publish(later, &own(), None);
    assert_eq!((published.a, mapping), (vec![socket("198.51.100.1:7")], Mapping::Easy));
    let mut hard = reported(&[(1, "198.51.100.1:9"), (2, "198.51.100.1:7")]);
    hard.publish(now, &own(), None);
    assert_eq!(hard.publish(later, &own(), None), (PerSlot::default(), Mapping::Hard));
}

#[test]
fn a_nat_that_changes_all_the_time_is_published_three_times_and_then_once_a_minute() {
    let mut observations = Observations::default();
    let mut changes = 0;
    let mut shown = None;
    for second in 0..600 {
        let seen = SocketAddr::new([198, 51, 100, 1].into(), 1_000 + u16::try_from(second / 5).unwrap());
        for observer in [1, 2] {
            let uid = NodeUid::new(format!("u{observer}"));
            let now = Duration::from_secs(second);
            observations.report(now, uid, Slot::A, seen, [203, 0, 113, observer].into());
        }
        let published = observations.publish(Duration::from_secs(second), &own(), None);
        changes += u32::from(shown.is_some() && shown.as_ref() != Some(&published));
        shown = Some(published);
    }
    assert!((10..=14).contains(&changes), "{changes}");
}

#[test]
fn after_a_start_what_the_node_shows_stays_until_peers_have_reported() {
    let shown = Endpoints {
        observed: PerSlot { a: vec![socket("198.51.100.1:7")], b: Vec::new() },
        mapping: Mapping::Easy,
        ..Endpoints::default()
    };
    let mut observations = Observations::default();
    let published = observations.publish(Duration::from_secs(1), &own(), Some(&shown));
    assert_eq!(published, (shown.observed.clone(), Mapping::Easy));
    let mut reporting = observations.clone();
    for observer in [1, 2] {
        let uid = NodeUid::new(format!("u{observer}"));
        let (at, seen) = (Duration::from_secs(2), socket("198.51.100.1:7"));
        reporting.report(at, uid, Slot::A, seen, [203, 0, 113, observer].into());
    }
    assert_eq!(reporting.publish(Duration::from_secs(3), &own(), Some(&shown)), published);
    observations.publish(Duration::from_secs(62), &own(), Some(&shown));
    let gone = observations.publish(Duration::from_secs(64), &own(), Some(&shown));
    assert_eq!(gone, (PerSlot::default(), Mapping::Unknown), "nobody has reported it for a minute");
}

#[test]
fn reports_are_bounded_and_end_with_their_observer() {
    let all: Vec<(u8, &str)> = (1..=100).map(|observer| (observer, "198.51.100.1:7")).collect();
    let mut observations = reported(&all);
    assert_eq!(observations.reports.a.len(), MAX_OBSERVERS);
    assert!(observations.displaced() > 0);
    assert!(!observations.reports.a.contains_key(&NodeUid::new("u1")), "the oldest makes room");
    let now = Duration::from_secs(100);
    observations.retain(now, |uid| uid.as_str() == "u90");
    assert_eq!(observations.reports.a.len(), 1);
    observations.retain(now + REPORT_TTL, |_| true);
    assert!(observations.reports.a.is_empty(), "it was not repeated");
}

#[test]
fn addresses_of_the_node_come_before_others_on_links_and_internal_networks_are_left_out() {
    let link = |address: &str, kind: Option<&str>| LinkAddress {
        address: address.parse().unwrap(),
        kind: kind.map(str::to_owned),
    };
    let on_links = [
        link("10.0.2.15/24", None),
        link("192.168.56.12/24", None),
        link("172.17.0.1/16", Some("bridge")),
        link("192.0.2.7/24", Some("bridge")),
        link("127.0.0.1/8", None),
    ];
    let listed = ["192.0.2.7", "203.0.113.9"].map(|text| text.parse().unwrap());
    let (published, left_out) = published_addresses(&listed, &on_links, |_| true);
    let expected: Vec<IpAddr> =
        ["192.0.2.7", "10.0.2.15", "192.168.56.12"].map(|text| text.parse().unwrap()).into();
    assert_eq!((published, left_out), (expected, 0));
    let many: Vec<LinkAddress> = (1..=11).map(|last| link(&format!("10.0.0.{last}/24"), None)).collect();
    let (published, left_out) = published_addresses(&[], &many, |_| true);
    assert_eq!((published.len(), left_out), (MAX_PUBLISHED, 3));
}

/// Reports of observers at these addresses, in this order.
fn reported_from(reports: &[([u8; 4], &str)]) -> Observations {
    let mut observations = Observations::default();
    for ((observer, seen), second) in reports.iter().zip(0_u32..) {
        let uid = NodeUid::new(format!("u{second}"));
        observations.report(seconds(second), uid, Slot::A, socket(seen), (*observer).into());
    }
    observations
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

/// What is published once reports have been gathered.
fn published(mut observations: Observations) -> Vec<SocketAddr> {
    observations.publish(seconds(100), &own(), None);
    observations.publish(seconds(102), &own(), None).0.a
}

#[test]
fn so_many_at_one_address_displace_nobody_elsewhere() {
    let mut reports = vec![([203, 0, 113, 1], "198.51.100.1:7")];
    reports.extend((0..2 * MAX_OBSERVERS).map(|_| ([203, 0, 113, 9], "198.51.100.1:8")));
    let observations = reported_from(&reports);
    assert!(observations.reports.a.contains_key(&NodeUid::new("u0")), "the oldest, and alone at its address");
}

#[test]
fn a_few_mapped_addresses_are_published_public_ones_first_and_none_of_the_node_s_own() {
    // Each is reported by two observers.
    let seen = ["10.9.9.9:7", "10.0.0.5:51840", "198.51.100.2:7", "198.51.100.1:7"];
    let mut reports: Vec<([u8; 4], &str)> = Vec::new();
    for (seen, network) in seen.into_iter().zip(0..) {
        reports.extend([1, 2].map(|observer| ([203, 0, network, observer], seen)));
    }
    assert_eq!(published(reported_from(&reports)), ["198.51.100.1:7", "198.51.100.2:7"].map(socket));
    reports.retain(|(_, seen)| *seen != "198.51.100.2:7");
    assert_eq!(published(reported_from(&reports)), ["198.51.100.1:7", "10.9.9.9:7"].map(socket));
}

#[test]
fn what_has_changed_stays_so_when_it_is_repeated() {
    let (before, after) = ("198.51.100.1:7", "198.51.100.2:7");
    let mut observations = reported(&[(1, before), (2, before), (3, before), (4, before)]);
    for second in [10, 20] {
        for observer in [1, 2] {
            let uid = NodeUid::new(format!("u{observer}"));
            observations.report(seconds(second), uid, Slot::A, socket(after), [203, 0, 113, observer].into());
        }
    }
    assert_eq!(published(observations), [socket(after)]);
}

#[test]
fn a_neighbour_that_sees_an_internal_address_tells_nothing_about_the_nat() {
    let observations = reported(&[(1, "198.51.100.1:7"), (2, "10.9.9.9:7")]);
    assert_eq!(observations.mapping(&own()), Mapping::Unknown);
}

#[test]
fn nothing_is_left_of_reports_about_other_addresses_of_the_node() {
    let mut observations = reported(&[(1, "198.51.100.1:7"), (2, "198.51.100.1:7")]);
    assert_eq!(observations.mapping(&own()), Mapping::Easy);
    observations.clear();
    assert_eq!(observations.mapping(&own()), Mapping::Unknown);
}
