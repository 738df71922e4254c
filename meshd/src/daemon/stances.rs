//! What all peers have announced, as the rotation knows it: what is passed on to it is what it does not know yet.

use std::collections::{BTreeMap, BTreeSet};

use keyring::rotation::{Input, PeerId, Stance};

/// The peers with their announcements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stances {
    known: BTreeMap<PeerId, Stance>,
}

impl Stances {
    /// Takes all peers; returns what the rotation has to know.
    pub(super) fn set(&mut self, stances: impl Iterator<Item = Stance>) -> Vec<Input> {
        let stances: BTreeMap<PeerId, Stance> = stances.map(|stance| (stance.id.clone(), stance)).collect();
        let gone: Vec<PeerId> =
            self.known.keys().filter(|known| !stances.contains_key(*known)).cloned().collect();
        self.change(&gone, stances.into_values())
    }

    /// Takes the peers that are gone, and those that are new or announce something else.
    pub(super) fn change(&mut self, gone: &[PeerId], stances: impl Iterator<Item = Stance>) -> Vec<Input> {
        let mut others = false;
        for peer in gone {
            others |= self.known.remove(peer).is_some();
        }
        let mut inputs = Vec::new();
        for stance in stances {
            let former = self.known.insert(stance.id.clone(), stance.clone());
            others |= former.is_none();
            if former.as_ref() != Some(&stance) {
                inputs.push(Input::Stance(stance));
            }
        }
        if others {
            let peers: BTreeSet<PeerId> = self.known.keys().cloned().collect();
            inputs.insert(0, Input::Peers(peers));
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use keyring::Slot;
    use proptest::prelude::*;

    use super::*;

    fn stances(generations: &[u64]) -> impl Iterator<Item = Stance> {
        // A generation of zero is that of a peer that is not there.
        let there = generations.iter().enumerate().filter(|(_, generation)| **generation > 0);
        let stance = |(number, generation): (usize, &u64)| Stance {
            id: PeerId::new(format!("u{number}")),
            generation: *generation,
            prefer: Slot::A,
            drain: None,
            installed: false,
        };
        there.map(stance)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn changes_tell_the_rotation_the_same_as_all_peers(
            worlds in prop::collection::vec(prop::collection::vec(0..3_u64, 5), 1..12),
        ) {
            let (mut all, mut some) = (Stances::default(), Stances::default());
            let mut former = vec![0; 5];
            for world in worlds {
                let gone: Vec<PeerId> = (0..5)
                    .filter(|number| world[*number] == 0)
                    .map(|number| PeerId::new(format!("u{number}")))
                    .collect();
                let is_other = |stance: &Stance| !stances(&former).any(|one| one == *stance);
                let others: Vec<Stance> = stances(&world).filter(is_other).collect();
                let told = [some.change(&gone, others.into_iter()), all.set(stances(&world))];
                let [some_told, all_told] = told.map(|inputs| format!("{inputs:?}"));
                prop_assert_eq!(some_told, all_told);
                prop_assert_eq!(&some, &all);
                former = world;
            }
        }
    }
}
