use super::*;
use proptest::prelude::*;

const RAISE: Duration = Duration::from_mins(10);
const ROUND: Duration = Duration::from_millis(300);
const IPV4: Limits = Limits { smallest: MIN_IPV4_MTU, largest: 1420 };
const DUAL: Limits = Limits { smallest: 1280, largest: 1420 };

/// A path and the search along it, which takes a round whenever one is wanted, and each 30 s.
struct Trip {
    search: Search,
    now: Duration,
    regular: Duration,
    rounds: usize,
    bytes: u64,
}

impl Trip {
    fn new(limits: Limits) -> Self {
        let search = Search::new(limits, RAISE);
        Self { search, now: Duration::ZERO, regular: Duration::ZERO, rounds: 0, bytes: 0 }
    }

    /// Runs for some time on a path on which `passes` says what is answered: none is the small probe.
    fn run(&mut self, duration: Duration, mut passes: impl FnMut(Option<u32>) -> bool) -> &mut Self {
        let until = self.now + duration;
        while self.now < until {
            if self.now >= self.regular || self.search.due().is_some_and(|due| due <= self.now) {
                self.rounds += 1;
                self.regular = self.now + Duration::from_secs(30);
                let sizes = self.search.begin(self.now);
                let small = passes(None);
                for size in sizes {
                    self.bytes += u64::from(size);
                    let before = self.search.size();
                    if passes(Some(size)) {
                        self.search.answered(self.now, size);
                        assert!(self.search.size() <= before.max(size), "raised beyond what was answered");
                    }
                }
                let before = self.search.size();
                self.search.end(self.now, small);
                assert!(self.search.size() <= before, "raised without an answer");
            }
            self.now += ROUND;
        }
        self
    }

    fn up_to(&mut self, mtu: u32, duration: Duration) -> &mut Self {
        self.run(duration, |size| size.is_none_or(|size| size <= mtu))
    }
}

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn a_path_is_confirmed_at_once_and_probed_no_more_than_before() {
    let mut trip = Trip::new(DUAL);
    assert_eq!((trip.search.size(), trip.search.source()), (1420, Source::Unknown));
    trip.up_to(1420, SECONDS(1));
    assert_eq!((trip.search.size(), trip.search.source(), trip.rounds), (1420, Source::Route, 1));
    let bytes = trip.bytes;
    trip.up_to(1420, SECONDS(3000));
    assert!((100..=101).contains(&(trip.rounds - 1)), "{}", trip.rounds);
    assert_eq!(trip.bytes - bytes, 1420 * (trip.rounds as u64 - 1));
}

#[test]
fn a_narrower_path_is_found_to_16_bytes_and_a_wider_one_again() {
    for (limits, narrow, source) in [
        (DUAL, 1340, Source::Probed),
        (DUAL, 1283, Source::Floor),
        (IPV4, 1240, Source::Probed),
        (IPV4, 840, Source::Probed),
        (IPV4, 580, Source::Floor),
        (Limits { smallest: 1280, largest: 8920 }, 1420, Source::Probed),
        (Limits { smallest: 1280, largest: 8920 }, 8000, Source::Probed),
        (Limits { smallest: MIN_IPV4_MTU, largest: 820 }, 700, Source::Probed),
    ] {
        let mut trip = Trip::new(limits);
        trip.up_to(limits.largest, SECONDS(29));
        // The regular round is due after 30 s, and two more follow at once.
        trip.up_to(narrow, SECONDS(3));
        assert!(trip.search.size() <= narrow, "{narrow}: lowered at once, to {}", trip.search.size());
        trip.up_to(narrow, SECONDS(30));
        let found = trip.search.size();
        assert!(found <= narrow && found + STEP >= narrow, "{narrow}: {found}");
        assert_eq!(trip.search.source(), source, "{narrow}: {found}");
        assert_eq!(trip.search.passes(), Some(true));
        trip.up_to(limits.largest, RAISE + SECONDS(5));
        assert_eq!((trip.search.size(), trip.search.source()), (limits.largest, Source::Route), "{narrow}");
    }
}

#[test]
fn not_even_the_floor_passes() {
    let mut trip = Trip::new(DUAL);
    trip.up_to(1200, SECONDS(5));
    assert_eq!((trip.search.size(), trip.search.source()), (1280, Source::Floor));
    assert!(trip.search.is_too_small() && trip.search.passes() == Some(false));
    let rounds = trip.rounds;
    trip.up_to(1200, SECONDS(300));
    assert!(trip.rounds - rounds <= 11, "{} rounds", trip.rounds - rounds);
    trip.up_to(1290, SECONDS(31));
    assert!(!trip.search.is_too_small());
}

#[test]
fn a_daemon_that_answers_no_size_lowers_nothing_and_losses_of_all_probes_neither() {
    let mut trip = Trip::new(IPV4);
    trip.run(SECONDS(1000), |size| size.is_none());
    assert_eq!((trip.search.size(), trip.search.source()), (1420, Source::Unknown));
    trip.up_to(1420, SECONDS(31));
    assert_eq!(trip.search.source(), Source::Route, "it was replaced by one that does");
    trip.run(SECONDS(1000), |_| false);
    assert_eq!((trip.search.size(), trip.search.source()), (1420, Source::Route));
}

#[test]
fn another_path_keeps_the_size_until_it_is_known_and_then_gets_its_own() {
    let mut trip = Trip::new(IPV4);
    trip.up_to(1340, SECONDS(5));
    let found = trip.search.size();
    assert!(found < 1341);
    trip.search.move_to_other_path();
    assert_eq!(trip.search.size(), found);
    trip.up_to(1420, SECONDS(2));
    assert_eq!((trip.search.size(), trip.search.source()), (1420, Source::Route), "a wider one");
    trip.search.move_to_other_path();
    trip.up_to(900, SECONDS(1));
    assert!(trip.search.size() <= 900, "a narrower one");
}

#[test]
fn the_route_bounds_what_is_tried_and_what_it_allows_more_is_tried_at_once() {
    let mut trip = Trip::new(DUAL);
    // Nothing answered yet: the route is followed.
    trip.search.set_limits(Limits { largest: 1360, ..DUAL });
    assert_eq!(trip.search.size(), 1360);
    trip.up_to(9000, SECONDS(1));
    trip.search.set_limits(Limits { largest: 1300, ..DUAL });
    assert_eq!(trip.search.size(), 1300);
    trip.search.set_limits(Limits { largest: 8920, ..DUAL });
    assert_eq!(trip.search.size(), 1300, "not before it was answered");
    trip.up_to(9000, SECONDS(1));
    assert_eq!(trip.search.size(), 8920);
}

#[test]
fn an_answer_to_what_was_not_asked_for_changes_nothing_beyond_the_route() {
    let mut search = Search::new(DUAL, RAISE);
    search.begin(Duration::ZERO);
    search.answered(Duration::ZERO, 9000);
    search.answered(Duration::ZERO, 100);
    assert_eq!(search.size(), 1420);
}

/// Losses of any size, in percent each way, from a generator with a fixed seed.
fn lossy(percent: u64, mtu: u32) -> impl FnMut(Option<u32>) -> bool {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move |size| {
        let mut arrives = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % 100 >= percent
        };
        let (there, back) = (arrives(), arrives());
        there && back && size.is_none_or(|size| size <= mtu)
    }
}

#[test]
fn a_path_that_loses_packets_of_any_size_seldom_lowers_the_mtu_and_never_for_long() {
    for (percent, allowed) in [(2, 1), (10, 25), (20, 50)] {
        let mut trip = Trip::new(DUAL);
        trip.up_to(1420, SECONDS(1));
        let mut passes = lossy(percent, 1420);
        let mut lowered = 0;
        // Two hours with a round each 3 s, as on a busy path.
        for _ in 0..2400 {
            trip.regular = trip.now;
            trip.run(SECONDS(3), &mut passes);
            lowered += u32::from(trip.search.size() < 1420);
        }
        assert!(lowered * 100 <= allowed * 2400, "{percent} %: {lowered} of 2400");
    }
}

#[test]
fn a_lossy_path_that_has_widened_is_used_to_the_full_again() {
    let mut trip = Trip::new(DUAL);
    trip.up_to(1300, SECONDS(60));
    assert!(trip.search.size() <= 1300);
    trip.run(RAISE * 2, lossy(10, 1420));
    assert_eq!(trip.search.size(), 1420);
}

proptest! {
    /// Paths that narrow, widen and are exchanged, while every fifth probe or answer is lost; in the end none is lost, and the
    /// size is what passes, to 16 bytes.
    #[test]
    fn random_paths_are_found(
        smallest in prop::sample::select(vec![MIN_IPV4_MTU, 1280]),
        largest in 1280_u32..9000,
        changes in prop::collection::vec((576_u32..9000, 1_u64..2000, any::<bool>()), 1..6),
        losses in prop::collection::vec(0_u8..5, 64..256),
    ) {
        let mut trip = Trip::new(Limits { smallest, largest });
        let mut losses = losses.iter().cycle();
        let mut narrow = 9000;
        for (mtu, seconds, moved) in changes {
            narrow = mtu;
            if moved {
                trip.search.move_to_other_path();
            }
            trip.run(SECONDS(seconds), |size| *losses.next().unwrap() > 0 && size.is_none_or(|size| size <= mtu));
        }
        trip.up_to(narrow, RAISE + SECONDS(60));
        let (found, passes) = (trip.search.size(), narrow.min(largest));
        if passes < smallest {
            prop_assert_eq!(found, smallest);
            prop_assert!(trip.search.is_too_small());
        } else {
            prop_assert!(found <= passes && found + STEP >= passes, "{} of {}", found, passes);
        }
        let rounds = trip.rounds;
        trip.up_to(narrow, SECONDS(500));
        // One search may fall into it: three rounds for each of ten bisections.
        prop_assert!(trip.rounds - rounds <= 60, "{} rounds", trip.rounds - rounds);
    }
}
