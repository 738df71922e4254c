//! When something is due, by subject: the earliest without a look at all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// At most one moment for each subject.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    due: BTreeMap<K, Duration>,
    ordered: BTreeSet<(Duration, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), ordered: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Sets when a subject is due; with `None` it is not.
    pub fn set(&mut self, subject: &K, due: Option<Duration>) {
        let former = self.due.get(subject).copied();
        if former == due {
            return;
        }
        if let Some(former) = former {
            self.ordered.remove(&(former, subject.clone()));
            self.due.remove(subject);
        }
        if let Some(due) = due {
            self.due.insert(subject.clone(), due);
            self.ordered.insert((due, subject.clone()));
        }
    }

    /// The earliest moment at which one is due.
    pub fn first(&self) -> Option<Duration> {
        self.ordered.first().map(|(due, _)| *due)
    }

    /// The subjects that are due by now, the earliest first.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = &K> {
        self.ordered.iter().take_while(move |(due, _)| *due <= now).map(|(_, subject)| subject)
    }

    /// Forgets the subjects that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.due.retain(|subject, _| keep(subject));
        self.ordered.retain(|(_, subject)| keep(subject));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_first_is_the_least_of_all(
            steps in prop::collection::vec((0..8_u8, prop::option::of(0..20_u64), any::<bool>()), 0..60),
            now in 0..20_u64,
        ) {
            let (mut timers, mut naive) = (Timers::default(), BTreeMap::new());
            let now = Duration::from_secs(now);
            for (subject, due, forget) in steps {
                let due = due.map(Duration::from_secs);
                timers.set(&subject, due);
                naive.remove(&subject);
                naive.extend(due.map(|due| (subject, due)));
                if forget {
                    timers.retain(|one| one % 3 != subject % 3);
                    naive.retain(|one, _| one % 3 != subject % 3);
                }
                prop_assert_eq!(timers.first(), naive.values().min().copied());
                let mut expected: Vec<(Duration, u8)> =
                    naive.iter().filter(|(_, due)| **due <= now).map(|(one, due)| (*due, *one)).collect();
                expected.sort_unstable();
                let expected: Vec<u8> = expected.into_iter().map(|(_, one)| one).collect();
                prop_assert_eq!(timers.due(now).copied().collect::<Vec<u8>>(), expected);
            }
        }
    }
}
