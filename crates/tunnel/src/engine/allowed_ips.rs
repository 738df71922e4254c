//! Longest-prefix match over the allowed IPs of all peers, immutable once built.
//!
//! Prefixes nest or are disjoint, so they cut the address space into ranges that each have one owner. A lookup
//! is a binary search over the sorted starts of those ranges: no pointers to follow, no lock.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// A table from addresses to owners.
#[derive(Debug)]
pub(crate) struct AllowedIps<T> {
    v4: Ranges<u32, T>,
    v6: Ranges<u128, T>,
}

impl<T: Clone> AllowedIps<T> {
    /// Builds the table. Prefixes must differ once their host bits are cleared; of equal ones the last wins.
    pub(crate) fn new(prefixes: impl IntoIterator<Item = (IpNetwork, T)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, owner) in prefixes {
            match prefix {
                IpNetwork::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits(), owner)),
                IpNetwork::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits(), owner)),
            }
        }
        Self { v4: Ranges::new(v4, |end| end.checked_add(1)), v6: Ranges::new(v6, |end| end.checked_add(1)) }
    }

    /// The owner of the longest prefix that contains `address`.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => self.v4.owner(address.to_bits()),
            IpAddr::V6(address) => self.v6.owner(address.to_bits()),
        }
    }
}

impl<T> Default for AllowedIps<T> {
    fn default() -> Self {
        Self { v4: Ranges::default(), v6: Ranges::default() }
    }
}

/// Ranges that cover the space from the first start on; each reaches to the next start.
#[derive(Debug)]
struct Ranges<K, T> {
    starts: Vec<K>,
    owners: Vec<Option<T>>,
}

impl<K, T> Default for Ranges<K, T> {
    fn default() -> Self {
        Self { starts: Vec::new(), owners: Vec::new() }
    }
}

impl<K: Ord + Copy, T: Clone> Ranges<K, T> {
    /// Flattens `(first, last, owner)` intervals that nest or are disjoint.
    fn new(mut intervals: Vec<(K, K, T)>, next: impl Fn(K) -> Option<K>) -> Self {
        // Stable, outermost first at equal starts, so that an inner interval overwrites from its start.
        intervals.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut ranges = Self::default();
        let mut open: Vec<(K, T)> = Vec::new();
        for (first, last, owner) in intervals {
            ranges.close(&mut open, &next, |end| end < first);
            ranges.begin(first, Some(owner.clone()));
            open.push((last, owner));
        }
        ranges.close(&mut open, &next, |_| true);
        ranges
    }

    /// Ends open intervals from the innermost out while `ended`; after each, the next outer one continues.
    fn close(&mut self, open: &mut Vec<(K, T)>, next: impl Fn(K) -> Option<K>, ended: impl Fn(K) -> bool) {
        while let Some((end, _)) = open.last()
            && ended(*end)
        {
            let after = next(*end);
            open.pop();
            if let Some(after) = after {
                self.begin(after, open.last().map(|(_, owner)| owner.clone()));
            }
        }
    }

    fn begin(&mut self, start: K, owner: Option<T>) {
        if self.starts.last() == Some(&start) {
            self.owners.pop();
        } else {
            self.starts.push(start);
        }
        self.owners.push(owner);
    }

    fn owner(&self, key: K) -> Option<&T> {
        let behind = self.starts.partition_point(|start| *start <= key);
        self.owners.get(behind.checked_sub(1)?)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn table(prefixes: &[(&str, u8)]) -> AllowedIps<u8> {
        AllowedIps::new(prefixes.iter().map(|(text, owner)| (text.parse().unwrap(), *owner)))
    }

    #[test]
    fn the_longest_prefix_owns_the_address() {
        let table = table(&[("10.0.0.0/8", 1), ("10.1.0.0/16", 2), ("10.1.2.3/32", 3), ("fd00::/8", 4)]);
        for (address, owner) in [
            ("10.0.0.1", Some(1)),
            ("10.1.0.0", Some(2)),
            ("10.1.2.3", Some(3)),
            ("10.1.2.4", Some(2)),
            ("10.1.255.255", Some(2)),
            ("10.2.0.0", Some(1)),
            ("11.0.0.0", None),
            ("9.255.255.255", None),
            ("fd00::1", Some(4)),
            ("fe00::", None),
            ("::ffff:10.0.0.1", None),
        ] {
            assert_eq!(table.owner(address.parse().unwrap()).copied(), owner, "{address}");
        }
    }

    #[test]
    fn default_routes_reach_the_ends_of_the_space() {
        let table = table(&[("0.0.0.0/0", 1), ("255.255.255.255/32", 2), ("::/0", 3), ("::/128", 4)]);
        assert_eq!(table.owner(Ipv4Addr::UNSPECIFIED.into()), Some(&1));
        assert_eq!(table.owner(Ipv4Addr::BROADCAST.into()), Some(&2));
        assert_eq!(table.owner(Ipv6Addr::UNSPECIFIED.into()), Some(&4));
        assert_eq!(table.owner(Ipv6Addr::from([0xff; 16]).into()), Some(&3));
    }

    fn prefix() -> impl Strategy<Value = IpNetwork> {
        // Few distinct bits, so that prefixes nest and touch often.
        let v4 =
            (prop::sample::select(vec![0u32, 0x0a00_0000, 0x0a01_0000, 0x0a01_02ff, u32::MAX]), 0u8..=32)
                .prop_map(|(bits, len)| (IpAddr::V4(Ipv4Addr::from_bits(bits)), len));
        let v6 = (prop::sample::select(vec![0u128, 1 << 64, 0xfd << 120, u128::MAX]), 0u8..=128)
            .prop_map(|(bits, len)| (IpAddr::V6(Ipv6Addr::from_bits(bits)), len));
        prop_oneof![v4, v6].prop_map(|(address, len)| {
            let prefix = IpNetwork::new(address, len).unwrap();
            IpNetwork::new(prefix.network(), len).unwrap()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_through_all_prefixes(
            prefixes in prop::collection::btree_map(prefix(), any::<u8>(), 0..40),
            random in prop::collection::vec(any::<u32>(), 8),
        ) {
            let table = AllowedIps::new(prefixes.clone());
            let edges = prefixes.keys().flat_map(|net| [net.network(), net.broadcast()]);
            let beyond = prefixes.keys().filter_map(|net| match net.broadcast() {
                IpAddr::V4(a) => a.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
                IpAddr::V6(a) => a.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
            });
            let random = random.into_iter().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
            for address in edges.chain(beyond).chain(random).collect::<Vec<_>>() {
                prop_assert_eq!(table.owner(address), naive(&prefixes, address), "{}", address);
            }
        }
    }

    fn naive(prefixes: &BTreeMap<IpNetwork, u8>, address: IpAddr) -> Option<&u8> {
        let holding = prefixes.iter().filter(|(prefix, _)| prefix.contains(address));
        holding.max_by_key(|(prefix, _)| prefix.prefix()).map(|(_, owner)| owner)
    }
}
