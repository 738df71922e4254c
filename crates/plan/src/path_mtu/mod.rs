//! Which endpoints' path MTUs to ask the kernel for: all that are new, and so many of the others in a second.
//!
//! A path MTU that the kernel learns from ICMP comes without a notice, so what is known is asked again in turn. What
//! comes with a notice (links, addresses, routes) makes all of it unknown.
//!
//! What the kernel knows is an upper bound; [`search`] finds what passes.

pub mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// How many endpoints are asked for again in turns within a second at most: with turns in every second up to this many are a
/// second old at most, 1,000 eight seconds. Turns that follow each other sooner share them.
const AGAIN: usize = 128;

/// The path MTUs that are known.
#[derive(Clone, Debug, Default)]
pub struct PathMtus {
    /// MTU in bytes, and the turn in which it was asked for; no MTU where there is no route.
    known: BTreeMap<IpAddr, (Option<u32>, u64)>,
    turn: u64,
    /// When endpoints were asked for again last in a turn.
    again_at: Option<Duration>,
}

impl PathMtus {
    /// Forgets everything: the kernel's links, addresses or routes have changed.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// Begins a turn: which of the endpoints to ask for. Those that are no longer endpoints are forgotten.
    pub fn to_ask(&mut self, now: Duration, endpoints: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.turn += 1;
        let since = self.again_at.map_or(SECOND, |at| now.saturating_sub(at).min(SECOND));
        let room = usize::try_from(AGAIN as u128 * since.as_millis() / SECOND.as_millis()).unwrap_or(AGAIN);
        // Less time than one takes goes on counting.
        if room > 0 {
            self.again_at = Some(now);
        }
        self.known.retain(|address, _| endpoints.contains(address));
        let mut by_age: Vec<(u64, IpAddr)> =
            self.known.iter().map(|(address, (_, asked))| (*asked, *address)).collect();
        by_age.sort_unstable();
        let again = by_age.into_iter().take(room).map(|(_, address)| address);
        let new = endpoints.iter().filter(|address| !self.known.contains_key(*address)).copied();
        new.chain(again).collect()
    }

    /// The endpoints that were asked for the longest ago, with what is known, to be asked for between two turns: at least
    /// `fewest`, and so many that each is in one of `rounds`.
    pub fn oldest(&mut self, (fewest, rounds): (usize, usize)) -> Vec<(IpAddr, Option<u32>)> {
        self.turn += 1;
        let count = fewest.max(self.known.len().div_ceil(rounds.max(1)));
        let mut by_age: Vec<(u64, IpAddr, Option<u32>)> =
            self.known.iter().map(|(address, (mtu, asked))| (*asked, *address, *mtu)).collect();
        if count < by_age.len() {
            by_age.select_nth_unstable(count);
        }
        by_age.into_iter().take(count).map(|(_, address, mtu)| (address, mtu)).collect()
    }

    /// Takes the kernel's answer.
    pub fn learn(&mut self, address: IpAddr, mtu: Option<u32>) {
        self.known.insert(address, (mtu, self.turn));
    }

    /// The known MTUs in bytes.
    pub fn mtus(&self) -> BTreeMap<IpAddr, u32> {
        self.known.iter().filter_map(|(address, (mtu, _))| Some((*address, (*mtu)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u32) -> BTreeSet<IpAddr> {
        (0..count).map(|number| std::net::Ipv4Addr::from(0x0a00_0000 + number).into()).collect()
    }

    /// A turn in the second that is given.
    fn turn(mtus: &mut PathMtus, second: u64, endpoints: &BTreeSet<IpAddr>) -> usize {
        let asked = mtus.to_ask(Duration::from_secs(second), endpoints);
        for address in &asked {
            mtus.learn(*address, Some(1500));
        }
        asked.len()
    }

    #[test]
    fn between_turns_each_endpoint_is_asked_for_within_the_rounds() {
        for count in [0, 10, 5_000] {
            let (mut mtus, all) = (PathMtus::default(), endpoints(count));
            turn(&mut mtus, 1, &all);
            let mut asked = BTreeSet::new();
            for _ in 0..120 {
                for (address, mtu) in mtus.oldest((4, 120)) {
                    assert_eq!(mtu, Some(1500));
                    mtus.learn(address, mtu);
                    asked.insert(address);
                }
            }
            assert_eq!(asked, all);
        }
    }

    #[test]
    fn few_endpoints_are_asked_for_in_every_second() {
        let (mut mtus, few) = (PathMtus::default(), endpoints(128));
        assert_eq!((turn(&mut mtus, 1, &few), turn(&mut mtus, 2, &few)), (128, 128));
    }

    #[test]
    fn turns_within_a_second_ask_again_for_no_more_than_one() {
        let (mut mtus, many) = (PathMtus::default(), endpoints(1_000));
        turn(&mut mtus, 1, &many);
        let again: usize = (1..=1_000)
            .map(|milliseconds| {
                let asked = mtus.to_ask(Duration::from_secs(1) + Duration::from_millis(milliseconds), &many);
                for address in &asked {
                    mtus.learn(*address, Some(1500));
                }
                asked.len()
            })
            .sum();
        assert!((100..=AGAIN).contains(&again), "{again}");
    }

    #[test]
    fn many_are_asked_for_in_turn_and_none_is_left_out() {
        let (mut mtus, many) = (PathMtus::default(), endpoints(1_000));
        assert_eq!(turn(&mut mtus, 1, &many), 1_000, "what is new is asked for at once");
        let mut again = BTreeSet::new();
        for second in 2..10 {
            let asked = mtus.to_ask(Duration::from_secs(second), &many);
            assert_eq!(asked.len(), AGAIN);
            for address in asked {
                mtus.learn(address, Some(1400));
                again.insert(address);
            }
        }
        assert_eq!(again, many);
        assert!(mtus.mtus().values().all(|mtu| *mtu == 1400));
    }

    #[test]
    fn a_notice_makes_all_unknown_and_a_former_endpoint_is_forgotten() {
        let (mut mtus, many) = (PathMtus::default(), endpoints(1_000));
        turn(&mut mtus, 1, &many);
        mtus.clear();
        assert_eq!(turn(&mut mtus, 2, &many), 1_000);
        turn(&mut mtus, 3, &endpoints(2));
        assert_eq!(mtus.mtus().len(), 2);
    }

    #[test]
    fn an_endpoint_without_a_route_has_no_mtu() {
        let mut mtus = PathMtus::default();
        let few = endpoints(2);
        for (address, mtu) in mtus.to_ask(SECOND, &few).into_iter().zip([None, Some(9000)]) {
            mtus.learn(address, mtu);
        }
        assert_eq!(mtus.mtus().into_values().collect::<Vec<_>>(), [9000]);
    }
}
