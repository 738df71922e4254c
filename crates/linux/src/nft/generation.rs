//! The generation of nftables: a number that is another one after each change of any table. What was read is true as long
//! as the number is the same, so a turn that finds it unchanged reads nothing else.

use std::time::Duration;

use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};

use super::wire::{self, Family};
use crate::error::{HostError, Subject};

/// How long an answer counts at most. The kernel takes away a table whose owner's socket was closed without a new
/// generation (`nft_rcv_nl_event` in `net/netfilter/nf_tables_api.c`).
const LONGEST: Duration = Duration::from_mins(1);

/// A point in time and the generation of nftables then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterState {
    /// `None` if the kernel did not tell it: then nothing that was read before counts.
    generation: Option<u32>,
    /// Monotonic.
    at: Duration,
}

impl FilterState {
    /// Reads the generation in the network namespace of this thread. Blocks for one exchange with the kernel.
    pub fn read(now: Duration) -> Self {
        Self { generation: generation().unwrap_or_default(), at: now }
    }

    /// Whether what was read at the earlier point in time is still true.
    fn confirms(self, earlier: Self) -> bool {
        self.generation.is_some()
            && self.generation == earlier.generation
            && self.at.saturating_sub(earlier.at) < LONGEST
    }
}

/// The last answer to a question about nftables.
#[derive(Debug)]
pub struct LastAnswer<Q, A> {
    known: Option<(FilterState, Q, A)>,
}

impl<Q, A> Default for LastAnswer<Q, A> {
    fn default() -> Self {
        Self { known: None }
    }
}

impl<Q: Clone + PartialEq, A: Clone> LastAnswer<Q, A> {
    /// The answer to this question: the last one if it was the same question and nothing has changed, else what is read
    /// now. The state must have been read before.
    pub fn get(
        &mut self,
        state: FilterState,
        question: &Q,
        read: impl FnOnce() -> Result<A, HostError>,
    ) -> Result<A, HostError> {
        if let Some((known_at, asked, answer)) = &self.known
            && state.confirms(*known_at)
            && asked == question
        {
            return Ok(answer.clone());
        }
        self.known = None;
        let answer = read()?;
        self.known = Some((state, question.clone(), answer.clone()));
        Ok(answer)
    }

    /// Has the next question read.
    pub fn forget(&mut self) {
        self.known = None;
    }
}

/// `None` if the kernel's answer has no number.
fn generation() -> Result<Option<u32>, HostError> {
    let request = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
    let found = wire::get_in("read the generation of", Subject::Filters, Family::Unspec, request)?;
    let Some(NfTablesMessage::NewGen(GenMessage { attributes })) = found else { return Ok(None) };
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        GenAttribute::Id(id) => Some(id),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::nft::test_namespace::{in_namespace, nft};

    const SECOND: Duration = Duration::from_secs(1);

    fn state(generation: Option<u32>, seconds: u32) -> FilterState {
        FilterState { generation, at: seconds * SECOND }
    }

    #[test]
    fn an_answer_counts_for_the_same_question_while_nothing_changes_and_for_a_minute() {
        let mut last = LastAnswer::default();
        let mut read = Vec::new();
        let steps = [
            (Some(7), 0, "guard"),
            (Some(7), 59, "guard"),
            (Some(7), 59, "other guard"),
            (Some(8), 59, "other guard"),
            (Some(8), 60, "other guard"),
            (Some(8), 119, "other guard"),
            (None, 120, "other guard"),
            (None, 120, "other guard"),
        ];
        for (step, (generation, seconds, question)) in steps.into_iter().enumerate() {
            let answer = last.get(state(generation, seconds), &question, || {
                read.push(step);
                Ok(question)
            });
            assert_eq!(answer.unwrap(), question);
        }
        assert_eq!(read, [0, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn what_could_not_be_read_or_is_forgotten_is_read_again() {
        let mut last = LastAnswer::default();
        let now = state(Some(7), 0);
        assert!(last.get(now, &(), || Ok(true)).unwrap());
        last.forget();
        last.get(now, &(), || Err(HostError::EmptyGuard)).unwrap_err();
        assert!(!last.get(now, &(), || Ok(false)).unwrap());
        assert!(!last.get(now, &(), || Ok(true)).unwrap(), "known");
    }

    #[test]
    fn each_change_of_any_table_has_a_new_generation_and_reading_has_none() {
        in_namespace(|| {
            let read = || FilterState::read(SECOND);
            let mut last = read();
            assert!(last.generation.is_some());
            let changes = [
                "add table ip other",
                "add chain ip other input { type filter hook input priority 0 ; policy drop ; }",
                "add rule ip other input counter accept",
                "add set ip other hosts { type ipv4_addr ; }",
                "add element ip other hosts { 192.0.2.7 }",
                "flush chain ip other input",
                "add chain ip other input { policy accept ; }",
                "delete table ip other",
                "add table inet meshd",
                "flush ruleset",
            ];
            for change in changes {
                nft(change);
                let state = read();
                assert!(!state.confirms(last), "{change}");
                nft("list ruleset");
                assert!(read().confirms(state), "{change}");
                last = state;
            }
        });
    }
}
