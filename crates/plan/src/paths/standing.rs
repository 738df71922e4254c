//! Which addresses on the node's links stay: one that comes and goes, such as a virtual one that moves between nodes, must
//! not have the node publish something else or doubt its paths each time.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::network::LinkAddress;
use crate::prefix;

/// How long an address has to be there.
const STANDS_AFTER: Duration = Duration::from_secs(30);

/// The addresses that are there, and since when; none for those that were there at first.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    since: Option<BTreeMap<IpNetwork, Option<Duration>>>,
}

impl Standing {
    /// Those of `present` that are `listed` by the Node, and of the others, except for single addresses without a network, those
    /// that have been there for 30 s or since this was asked for the first time. What lasts shorter than the time
    /// between two questions is not seen; virtual addresses are mostly single ones.
    pub fn of(
        &mut self,
        now: Duration,
        present: &[LinkAddress],
        listed: impl Fn(&LinkAddress) -> bool,
    ) -> Vec<LinkAddress> {
        let former = self.since.take();
        let since = |link: &LinkAddress| match &former {
            None => None,
            Some(former) => former.get(&link.address).copied().unwrap_or(Some(now)),
        };
        let known: BTreeMap<IpNetwork, Option<Duration>> =
            present.iter().map(|link| (link.address, since(link))).collect();
        let stays = |link: &LinkAddress| {
            let since = known.get(&link.address).copied().flatten();
            since.is_none_or(|since| now >= since + STANDS_AFTER)
        };
        let stands = |link: &&LinkAddress| listed(link) || (!prefix::is_host(link.address) && stays(link));
        let standing = present.iter().filter(stands).cloned().collect();
        self.since = Some(known);
        standing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(last: u8) -> LinkAddress {
        LinkAddress { address: format!("192.0.2.{last}/24").parse().unwrap(), kind: None }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_address_counts_at_the_start_if_it_is_listed_or_once_it_has_stayed() {
        let mut standing = Standing::default();
        let none = |_: &LinkAddress| false;
        assert_eq!(standing.of(at(0), &[link(1)], none), [link(1)]);
        assert_eq!(standing.of(at(1), &[link(1), link(2)], none), [link(1)]);
        assert_eq!(standing.of(at(2), &[link(1), link(2)], |found| *found == link(2)), [link(1), link(2)]);
        assert_eq!(standing.of(at(30), &[link(1), link(2)], none), [link(1)]);
        assert_eq!(standing.of(at(31), &[link(1), link(2)], none), [link(1), link(2)]);
        assert_eq!(standing.of(at(32), &[link(2)], none), [link(2)], "one that goes is gone");
        let single = LinkAddress { address: "203.0.113.1/32".parse().unwrap(), kind: None };
        assert_eq!(standing.of(at(33), std::slice::from_ref(&single), none), []);
        assert_eq!(standing.of(at(99), std::slice::from_ref(&single), none), []);
        assert_eq!(standing.of(at(99), std::slice::from_ref(&single), |_| true), [single]);
    }

    #[test]
    fn one_that_comes_and_goes_never_counts() {
        let mut standing = Standing::default();
        standing.of(at(0), &[link(1)], |_| false);
        for second in 1..200 {
            let present = if second % 20 == 0 { vec![link(1)] } else { vec![link(1), link(2)] };
            assert_eq!(standing.of(at(second), &present, |_| false), [link(1)], "{second}");
        }
    }
}
