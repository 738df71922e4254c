//! The numbers of a pair's exchanges, and how far one end follows the other.
//!
//! The initiator counts, the responder accepts only a number that is a little higher than the last. If both have lost
//! track of each other, say because one has an old file, the initiator follows the responder's number, in either
//! direction: at once if it is near, else only after the responder has named it [`CONFIRMATIONS`] times, each time in
//! answer to another offer. So a single message moves a number by [`WINDOW`] at most, and one that was moved far away comes
//! back by itself.

/// How far an epoch may be ahead of the last one: more offers than are lost in a row.
const WINDOW: u64 = 64;
/// How often a distant epoch must be named before it is believed.
const CONFIRMATIONS: u32 = 3;
/// Number of epochs: the one after the last is the first again, so that no epoch is an end. Nobody gets that far by
/// counting; an epoch that is not below it is damage, or an attack.
const EPOCHS: u64 = 1 << 48;

/// The last epoch of a pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epochs {
    newest: u64,
    /// A distant epoch that the peer has named, and how often.
    named: Option<(u64, u32)>,
}

/// An epoch from disk. One that does not exist starts again.
pub(super) const fn restored(epoch: u64) -> u64 {
    if epoch < EPOCHS { epoch } else { 0 }
}

/// How far one epoch is ahead of another; none if it does not exist.
const fn ahead(epoch: u64, of: u64) -> Option<u64> {
    if epoch < EPOCHS { Some((epoch + EPOCHS - of) % EPOCHS) } else { None }
}

impl Epochs {
    pub(super) const fn new(newest: u64) -> Self {
        Self { newest, named: None }
    }

    pub(super) const fn newest(&self) -> u64 {
        self.newest
    }

    /// Initiator: the epoch of the next exchange.
    pub(super) const fn next(&mut self) -> u64 {
        self.newest = (self.newest + 1) % EPOCHS;
        self.newest
    }

    /// Responder: whether an offer is a little ahead of the last one.
    pub(super) const fn is_next(&self, epoch: u64) -> bool {
        matches!(ahead(epoch, self.newest), Some(1..=WINDOW))
    }

    /// Responder: an offer was accepted.
    pub(super) const fn accept(&mut self, epoch: u64) {
        self.newest = epoch;
    }

    /// Initiator: the responder names its last epoch because it refuses an offer. Returns whether this end follows.
    pub(super) const fn follow(&mut self, named: u64) -> bool {
        let Some(ahead) = ahead(named, self.newest) else { return false };
        if ahead <= WINDOW {
            *self = Self::new(named);
            return true;
        }
        let times = match self.named {
            // It may have advanced by an offer that came late.
            Some((before, times)) if named.abs_diff(before) <= WINDOW => times + 1,
            _ => 1,
        };
        if times >= CONFIRMATIONS {
            *self = Self::new(named);
            return true;
        }
        self.named = Some((named, times));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_moves_an_epoch_only_a_little() {
        let epochs = Epochs::new(100);
        for (epoch, next) in [(0, false), (100, false), (101, true), (164, true), (165, false)] {
            assert_eq!(epochs.is_next(epoch), next, "{epoch}");
        }
        assert!(!Epochs::new(EPOCHS - 1).is_next(EPOCHS) && !epochs.is_next(u64::MAX));
        for named in [0, 99, 165, EPOCHS, u64::MAX] {
            let mut epochs = epochs;
            assert!(!epochs.follow(named) && epochs.newest() == 100, "{named}");
        }
        for named in [100, 164] {
            let mut epochs = epochs;
            assert!(epochs.follow(named) && epochs.newest() == named, "{named}");
        }
    }

    #[test]
    fn a_distant_epoch_is_followed_in_either_direction_once_it_is_confirmed() {
        for named in [7, 1_000_000, EPOCHS - 2] {
            let mut epochs = Epochs::new(500);
            assert!(!epochs.follow(named) && !epochs.follow(named) && epochs.follow(named));
            assert_eq!(epochs.next(), named + 1);
        }
        let mut epochs = Epochs::new(500);
        for named in [7, 1_000_000, 7, 1_000_000, 7] {
            assert!(!epochs.follow(named), "different ones confirm nothing");
        }
        for _ in 0..100 {
            assert!(!epochs.follow(u64::MAX) && !epochs.follow(EPOCHS), "these are never followed");
        }
    }

    #[test]
    fn the_last_epoch_is_followed_by_the_first_and_others_do_not_exist() {
        let mut last = Epochs::new(EPOCHS - 1);
        assert!(last.is_next(0) && last.is_next(63) && !last.is_next(64) && !last.is_next(EPOCHS));
        assert_eq!((last.next(), last.next()), (0, 1));
        assert_eq!([(1 << 48) - 1, 1 << 48, u64::MAX].map(restored), [(1 << 48) - 1, 0, 0]);
    }
}
