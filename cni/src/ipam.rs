//! Chooses addresses: pure, from what a node has and what is taken to the next one that is free.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The next free address after `last`, over all `ranges` of one family and round again. An address that was
/// just freed comes last, so that packets still in flight to its previous pod reach no other.
///
/// The network's own address is never given out, nor the broadcast address of IPv4 (RFC 1122 section
/// 3.2.1.3; the former is the subnet-router anycast address of IPv6, RFC 4291 section 2.6.1). `None` if all
/// are taken.
pub(crate) fn next_free(
    ranges: &[IpNetwork],
    taken: &BTreeSet<IpAddr>,
    last: Option<IpAddr>,
) -> Option<IpAddr> {
    let spans: Vec<Span> = ranges.iter().filter_map(|range| Span::of(*range)).collect();
    let at = last.and_then(|last| {
        let number = number(last);
        spans.iter().position(|span| span.v4 == last.is_ipv4() && (span.first..=span.last).contains(&number))
    });
    let Some(at) = at else { return spans.iter().find_map(|span| span.search(taken)) };
    let after_last = number(last?).saturating_add(1);
    let (before, from) = spans.split_at(at);
    let (current, after) = from.split_first()?;
    let rest = Span { first: after_last, ..*current };
    let begin = Span { last: after_last - 1, ..*current };
    let order = [rest].into_iter().chain(after.iter().copied()).chain(before.iter().copied()).chain([begin]);
    order.into_iter().find_map(|span| span.search(taken))
}

/// Addresses from first to last.
#[derive(Clone, Copy)]
struct Span {
    v4: bool,
    first: u128,
    last: u128,
}

impl Span {
    /// The usable addresses of a range. Ranges of one or two addresses have no room for reserved ones.
    fn of(range: IpNetwork) -> Option<Self> {
        let v4 = range.is_ipv4();
        let (network, end) = match range {
            IpNetwork::V4(net) => (number(net.network().into()), number(net.broadcast().into())),
            IpNetwork::V6(net) => (number(net.network().into()), number(net.broadcast().into())),
        };
        let small = end - network < 2;
        let first = if small { network } else { network + 1 };
        let last = if v4 && !small { end - 1 } else { end };
        (first <= last).then_some(Self { v4, first, last })
    }

    fn search(self, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        (self.first..=self.last).map(|number| self.address(number)).find(|address| !taken.contains(address))
    }

    fn address(self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(short) if self.v4 => IpAddr::V4(short.into()),
            _ => IpAddr::V6(number.into()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_go_round_and_a_freed_one_comes_last() {
        let ranges = ranges(&["10.0.0.0/29"]);
        let mut taken: BTreeSet<IpAddr> = ["10.0.0.1".parse().unwrap()].into();
        let mut last = None;
        let mut given = Vec::new();
        while let Some(address) = next_free(&ranges, &taken, last) {
            taken.insert(address);
            given.push(address.to_string());
            last = Some(address);
            if given.len() == 3 {
                taken.remove(&"10.0.0.2".parse().unwrap());
            }
        }
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
    }

    #[test]
    fn a_full_range_is_followed_by_the_next_one() {
        let ranges = ranges(&["10.0.0.4/31", "10.0.1.0/30"]);
        let mut taken = BTreeSet::new();
        let mut last = None;
        for expected in ["10.0.0.4", "10.0.0.5", "10.0.1.1", "10.0.1.2"] {
            let address = next_free(&ranges, &taken, last).unwrap();
            assert_eq!(address.to_string(), expected);
            taken.insert(address);
            last = Some(address);
        }
        assert_eq!(next_free(&ranges, &taken, last), None);
    }

    #[test]
    fn a_last_address_of_another_range_is_no_obstacle() {
        let last = Some("192.0.2.1".parse().unwrap());
        assert_eq!(
            next_free(&ranges(&["fd00::/64"]), &BTreeSet::new(), last).unwrap().to_string(),
            "fd00::1"
        );
    }

    /// What may be given out of a range, in order, written in the plainest form.
    fn usable(range: IpNetwork) -> Vec<IpAddr> {
        let all: Vec<IpAddr> = range.iter().collect();
        match (all.len(), range) {
            (..=2, _) => all,
            (_, IpNetwork::V4(_)) => all[1..all.len() - 1].to_vec(),
            (_, IpNetwork::V6(_)) => all[1..].to_vec(),
        }
    }

    /// Small ranges of one family that don't overlap.
    fn any_ranges() -> impl Strategy<Value = Vec<IpNetwork>> {
        (any::<bool>(), prop::collection::vec(0_u8..5, 1..4)).prop_map(|(v4, sizes)| {
            let range = |(number, bits): (usize, &u8)| {
                let text = if v4 {
                    format!("10.9.{number}.0/{}", 32 - bits)
                } else {
                    format!("fd00:{number}::/{}", 128 - bits)
                };
                text.parse().unwrap()
            };
            sizes.iter().enumerate().map(range).collect()
        })
    }

    proptest! {
        /// Pods and the node itself take and free addresses; each one given out is the first free one after
        /// the last, round all ranges, and none is refused while one is free.
        #[test]
        fn the_next_free_one_round_all_ranges_is_given(
            ranges in any_ranges(),
            steps in prop::collection::vec(any::<u8>(), 1..200),
        ) {
            let usable: Vec<IpAddr> = ranges.iter().copied().flat_map(usable).collect();
            let mut taken: BTreeSet<IpAddr> = usable.first().copied().into_iter().collect();
            let mut last = None;
            for step in steps {
                if step % 3 == 0 && !taken.is_empty() {
                    let victim = *taken.iter().nth(usize::from(step) % taken.len()).unwrap();
                    taken.remove(&victim);
                    continue;
                }
                let after = last.and_then(|last| usable.iter().position(|known| *known == last)).map_or(0, |at| at + 1);
                let round = usable.iter().cycle().skip(after).take(usable.len());
                let expected = round.copied().find(|address| !taken.contains(address));
                let given = next_free(&ranges, &taken, last);
                prop_assert_eq!(given, expected);
                taken.extend(given);
                last = given.or(last);
            }
        }
    }
}
