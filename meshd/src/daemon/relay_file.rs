//! The leases of a relay on disk, so that ports and addresses stay over a restart.

use relay::SavedLease;

use crate::state_file::{Format, StateFile};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "relay.json";

/// Longest file that is read: every port leased, and 250 bytes a lease.
pub(super) const FORMAT: Format = Format { name: FILE, version: 1, field: "leases", max_len: 8 << 20 };

/// The file that holds the leases.
pub(super) type RelayFile = StateFile<Vec<SavedLease>>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keyring::Slot;
    use keyring::rotation::PeerId;
    use relay::{Limits, Relay};

    use super::*;

    #[test]
    fn leases_come_back_as_they_were() {
        let limits = Limits { ports: 24_000..=24_009, bytes_per_second: 1, pair_bytes_per_second: 1 };
        let mut relay = Relay::new(Duration::ZERO, limits);
        let [one, two] = ["u1", "u2"].map(PeerId::new);
        let seen = Some("[2001:db8::1]:51840".parse().unwrap());
        relay.ask(Duration::ZERO, &one, &two, Slot::B, seen).unwrap();
        let directory = tempfile::tempdir().unwrap();
        RelayFile::in_directory(directory.path(), FORMAT).save(relay.saved()).unwrap();
        let mut restarted = RelayFile::in_directory(directory.path(), FORMAT);
        assert_eq!(restarted.load().unwrap(), Some(relay.saved()));
    }
}
