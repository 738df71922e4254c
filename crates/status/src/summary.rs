//! All peers in a few numbers, and the ten in the worst state: as large at 5,000 peers as at 50. Pure.

use keyring::PerSlot;
use keyring::pq::Protection;
use serde::{Deserialize, Serialize};

use super::reach::{Reach, ReachCounts};

/// How many of the peers in trouble are named.
pub const WORST: usize = 10;

/// What can be wrong with a peer, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// It is not reached.
    Down,
    /// Pods' packets to it are dropped: a preshared key is required, and none is proven.
    Blocked,
    /// Pods' packets pass without a preshared key although both nodes want one.
    Stripped,
    /// Packets of the smallest allowed MTU are lost on the path.
    TooSmall,
}

impl Trouble {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Down, Self::Blocked, Self::Stripped, Self::TooSmall];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Blocked => "blocked",
            Self::Stripped => "stripped",
            Self::TooSmall => "too_small",
        }
    }
}

/// What a summary needs to know of a peer.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Name of its Node.
    pub node: &'a str,
    /// Whether it is reached.
    pub state: Reach,
    /// Whether pod traffic with it is blocked.
    pub blocked: bool,
    /// Whether pods' packets have passed without a preshared key for long.
    pub stripped: bool,
    /// Whether packets of the MTU's size arrive; none while unknown.
    pub full_size_passes: Option<bool>,
    /// MTU of the routes to it, in bytes.
    pub mtu: u32,
    /// The preshared key of each slot.
    pub protection: PerSlot<Protection>,
}

impl Facts<'_> {
    /// The worst that is wrong with the peer; none if it is well.
    pub fn trouble(&self) -> Option<Trouble> {
        Trouble::ALL.into_iter().find(|trouble| self.has(*trouble))
    }

    fn has(&self, trouble: Trouble) -> bool {
        match trouble {
            Trouble::Down => self.state == Reach::Down,
            Trouble::Blocked => self.blocked,
            Trouble::Stripped => self.stripped,
            Trouble::TooSmall => self.full_size_passes == Some(false),
        }
    }
}

/// Slots of peers by the state of their preshared key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresharedCounts {
    /// Without one.
    pub none: u64,
    /// Those on which one is being negotiated.
    pub offered: u64,
    /// With one that no handshake has used yet.
    pub set: u64,
    /// With one that a handshake has used.
    pub proven: u64,
}

/// Peers with which something is wrong, by what it is. One may count more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleCounts {
    /// [`Trouble::Blocked`].
    pub blocked: u64,
    /// [`Trouble::Stripped`].
    pub stripped: u64,
    /// [`Trouble::TooSmall`].
    pub too_small: u64,
}

/// A peer with the worst that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TroubledPeer {
    /// What it is.
    pub trouble: Trouble,
    /// Name of its Node.
    pub node: String,
}

/// All peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many are reached.
    pub reach: ReachCounts,
    /// State of the preshared keys.
    pub preshared_keys: PresharedCounts,
    /// What is wrong with those that are not well, besides not being reached.
    pub troubles: TroubleCounts,
    /// The smallest MTU of the routes to a peer, in bytes.
    pub smallest_mtu: Option<u32>,
    /// The peers in the worst state, at most [`WORST`], the worst first.
    pub worst: Vec<TroubledPeer>,
}

impl Summary {
    /// Adds a peer.
    pub fn add(&mut self, peer: &Facts<'_>) {
        self.reach.add(peer.state);
        for (_, protection) in peer.protection.iter() {
            *match protection {
                Protection::None => &mut self.preshared_keys.none,
                Protection::Offered => &mut self.preshared_keys.offered,
                Protection::Set => &mut self.preshared_keys.set,
                Protection::Proven => &mut self.preshared_keys.proven,
            } += 1;
        }
        self.troubles.blocked += u64::from(peer.has(Trouble::Blocked));
        self.troubles.stripped += u64::from(peer.has(Trouble::Stripped));
        self.troubles.too_small += u64::from(peer.has(Trouble::TooSmall));
        self.smallest_mtu = self.smallest_mtu.into_iter().chain([peer.mtu]).min();
        if let Some(trouble) = peer.trouble() {
            self.add_worst(trouble, peer.node);
        }
    }

    fn add_worst(&mut self, trouble: Trouble, node: &str) {
        // By name among equals, so that the same ones stay named from one scrape to the next.
        let at = self.worst.partition_point(|known| (known.trouble, known.node.as_str()) < (trouble, node));
        if at < WORST {
            self.worst.insert(at, TroubledPeer { trouble, node: node.to_owned() });
            self.worst.truncate(WORST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &str) -> Facts<'_> {
        Facts {
            node,
            state: Reach::Up,
            blocked: false,
            stripped: false,
            full_size_passes: Some(true),
            mtu: 1420,
            protection: PerSlot { a: Protection::Proven, b: Protection::Set },
        }
    }

    #[test]
    fn the_worst_come_first_and_only_ten_are_named_in_any_order_of_arrival() {
        let peers: Vec<String> = (0..5000).map(|number| format!("n{number:04}")).collect();
        let all = |order: &mut dyn Iterator<Item = &String>| {
            let mut summary = Summary::default();
            for name in order {
                let state = if name.ends_with("77") { Reach::Down } else { Reach::Idle };
                let stripped = name.as_str() < "n0003";
                let full_size_passes = Some(name != "n0000" && name != "n0003");
                summary.add(&Facts { state, stripped, full_size_passes, ..peer(name) });
            }
            summary
        };
        let summary = all(&mut peers.iter());
        assert_eq!(summary, all(&mut peers.iter().rev()));
        assert_eq!((summary.reach.down, summary.reach.idle), (50, 4950));
        assert_eq!(summary.troubles, TroubleCounts { blocked: 0, stripped: 3, too_small: 2 });
        assert_eq!((summary.preshared_keys.proven, summary.preshared_keys.set), (5000, 5000));
        let down: Vec<String> = (0..10).map(|number| format!("n{number:02}77")).collect();
        let named: Vec<&str> = summary.worst.iter().map(|peer| peer.node.as_str()).collect();
        assert_eq!(named, down);
        let mut few = Summary::default();
        for (name, stripped) in [("n1", false), ("n3", true), ("n2", true)] {
            few.add(&Facts { stripped, mtu: 1280, ..peer(name) });
        }
        few.add(&Facts { blocked: true, ..peer("n4") });
        let named: Vec<(&str, Trouble)> =
            few.worst.iter().map(|peer| (peer.node.as_str(), peer.trouble)).collect();
        assert_eq!(named, [("n4", Trouble::Blocked), ("n2", Trouble::Stripped), ("n3", Trouble::Stripped)]);
        assert_eq!(few.smallest_mtu, Some(1280));
    }
}
