//! Owns the guard's table, so that no other process changes or removes it, `nft flush ruleset` included.
//!
//! A table with the flags `owner` and `persist` (Linux 6.9) belongs to the netlink socket that created it. Changes over any
//! other socket fail, or pass over it. When the socket is closed, at the latest with its process, the table stays with all
//! rules and has no owner; the next socket that gives it the flag again is its owner (`nf_tables_updtable` and
//! `nft_rcv_nl_event` in `net/netfilter/nf_tables_api.c`). Older kernels have the table without an owner.

use std::thread;
use std::time::{Duration, Instant};

use netlink::{NetlinkError, Socket};
use netlink_packet_netfilter::nftables::TableFlags;
use plan::network::Guard;
use rustix::io::Errno;
use tracing::warn;

use super::{Drops, GUARD, is_in_place, rules, settled_drops, stands};
use crate::error::HostError;
use crate::nft::TableHead;
use crate::nft::generation::{FilterState, LastAnswer};
use crate::nft::wire::{self, Change, Family, Netfilter};

/// The flags of a table that belongs to a socket and outlives it. The crate that names the second one misspells it.
const OWNED: TableFlags = TableFlags::Owner.union(TableFlags::Persisent);

/// How often it is tried again whether another process has given the table up.
const OWNER_POLL: Duration = Duration::from_millis(100);

/// Writes the guard over one socket, which owns the table where the kernel can do that. It belongs to the network namespace
/// of the thread that first writes.
#[derive(Debug)]
pub struct GuardOwner {
    wanted: bool,
    /// Whether the kernel has refused the flags.
    unsupported: bool,
    /// The socket that owns the table. Closed after a failure: answers that nobody reads would fill it.
    socket: Option<Socket<Netfilter>>,
    /// Whether a guard was in place. The table changes its owner without a new generation of nftables, but only with the
    /// socket.
    last_seen: LastAnswer<Guard, bool>,
    /// The guard that was set last.
    last_set: Option<Guard>,
    record: GuardRecord,
}

/// What has become of the guard since this process began to hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardRecord {
    /// How often it was found missing or changed.
    pub repairs: u64,
    /// When that was last.
    pub repaired: Option<Instant>,
    /// Packets with a pod address that left unencrypted, as counted by tables that were replaced since.
    escaped: u64,
    /// Those that the present table has counted, and that were sent by this process to see whether they are caught.
    own: u64,
}

impl GuardOwner {
    /// One that owns the table if `wanted`, and only writes it otherwise.
    pub fn new(wanted: bool) -> Self {
        Self {
            wanted,
            unsupported: false,
            socket: None,
            last_seen: LastAnswer::default(),
            last_set: None,
            record: GuardRecord::default(),
        }
    }

    /// What has become of the guard since this process began to hold it, what its present table has counted, and how many packets
    /// with a pod address left unencrypted in all.
    pub fn account(&self) -> Result<(GuardRecord, Drops, u64), HostError> {
        let drops = settled_drops()?;
        let escaped = drops.escaped().saturating_sub(self.record.own);
        Ok((self.record, drops, self.record.escaped + escaped))
    }

    /// Leaves out packets of this process's own that were seen, and not dropped.
    pub const fn leave_out(&mut self, packets: u64) {
        self.record.own += packets;
    }

    /// Takes what the table has counted, and whether it was as it was set, before it is replaced: counters begin anew then.
    fn take_account(&mut self) {
        let Some(former) = &self.last_set else { return };
        // What can't be read is not known to be right.
        if !self.is_in_place(former).unwrap_or(false) {
            self.record.repairs += 1;
            self.record.repaired = Some(Instant::now());
        }
        let own = std::mem::take(&mut self.record.own);
        self.record.escaped += settled_drops().unwrap_or_default().escaped().saturating_sub(own);
    }

    /// Whether the table belongs to this process.
    fn owns(&self) -> Result<bool, HostError> {
        let Some(port) = self.socket.as_ref().map(Socket::port) else { return Ok(false) };
        Ok(GUARD.head()?.is_some_and(|head| head.flags.contains(OWNED) && head.owner == Some(port)))
    }

    /// Whether exactly this guard is in place, and belongs to this process where the kernel can do that. A table that had an
    /// owner is not what one without an owner sets: version 0.1, which may come after it, cannot change that.
    pub fn is_in_place(&self, guard: &Guard) -> Result<bool, HostError> {
        let is_as_wanted =
            if self.owning() { self.owns()? } else { GUARD.flags()?.is_some_and(|flags| flags.is_empty()) };
        Ok(is_as_wanted && is_in_place(guard)?)
    }

    /// The same. The table is not read again while nothing in nftables has changed since.
    pub fn stays_in_place(&mut self, state: FilterState, guard: &Guard) -> Result<bool, HostError> {
        let mut last_seen = std::mem::take(&mut self.last_seen);
        let seen = last_seen.get(state, guard, || self.is_in_place(guard));
        self.last_seen = last_seen;
        seen
    }

    /// Puts the guard in place, owned where the kernel can do that, and replaces what was there. Blocks for one exchange with
    /// the kernel.
    pub fn set(&mut self, guard: &Guard) -> Result<(), HostError> {
        if guard.cluster.is_empty() {
            return Err(HostError::EmptyGuard);
        }
        self.take_account();
        self.last_seen.forget();
        let (sets, chains) = (rules::sets(guard), rules::chains(guard));
        let replacement = |flags| GUARD.replacement(flags, &sets, &chains);
        if self.owning() {
            match self.write(replacement(OWNED)) {
                Err(error) if is_unknown_flag(&error) => {}
                written => {
                    written.map_err(failed)?;
                    self.last_set = Some(guard.clone());
                    return Ok(());
                }
            }
        }
        // Without an owner there is nothing that a socket has to be kept for.
        self.socket = None;
        self.write(replacement(TableFlags::empty())).map_err(failed)?;
        self.socket = None;
        self.unsupported = self.wanted;
        self.last_set = Some(guard.clone());
        Ok(())
    }

    /// Puts this guard in place unless every rule of it stands. Then the table is kept as it is, and taken over if its owner
    /// is gone; one that never had an owner is replaced when the guard is set the next time.
    ///
    /// If another guard belongs to another process, it waits so long for that to end. Blocks.
    pub fn keep_or_set(&mut self, guard: &Guard, patience: Duration) -> Result<(), HostError> {
        let until = Instant::now() + patience;
        loop {
            match self.keep_or_set_once(guard) {
                Err(HostError::GuardOwned { .. }) if Instant::now() < until => thread::sleep(OWNER_POLL),
                done => return done,
            }
        }
    }

    fn keep_or_set_once(&mut self, guard: &Guard) -> Result<(), HostError> {
        if !stands(guard)? {
            return self.set(guard);
        }
        self.take_over();
        Ok(())
    }

    /// Becomes the owner of a table whose owner is gone, and leaves what is in it as it is. If that fails, the table is found
    /// not to belong to this process, and set again.
    fn take_over(&mut self) {
        let orphaned = |head: TableHead| head.flags == TableFlags::Persisent;
        let taken = match GUARD.head() {
            Ok(head) if self.owning() && head.is_some_and(orphaned) => self
                .transact(vec![GUARD.creation(Some(OWNED))])
                .map_err(|source| HostError::netlink("take over", GUARD.subject.clone(), source)),
            read => read.map(drop),
        };
        if let Err(error) = taken {
            warn!(event = "GuardNotTakenOver", %error, "the guard does not belong to this process yet");
        }
    }

    /// Whether a guard that is in place belongs to this process. Known after the first write.
    pub const fn owning(&self) -> bool {
        self.wanted && !self.unsupported
    }

    /// Writes. After a failure the table, which keeps what was in it, belongs to the next socket at once: otherwise anybody
    /// could change it until a write succeeds.
    fn write(&mut self, changes: Vec<Change>) -> Result<(), NetlinkError> {
        let written = self.transact(changes);
        if written.is_err() {
            self.take_over();
        }
        written
    }

    fn transact(&mut self, changes: Vec<Change>) -> Result<(), NetlinkError> {
        self.last_seen.forget();
        let mut socket = self.socket.take().map_or_else(Socket::open, Ok)?;
        wire::transact_on(&mut socket, changes.into_iter().map(|change| (Family::Inet, change)).collect())?;
        self.socket = Some(socket);
        Ok(())
    }
}

/// What this process owns it could have written, so a table that has an owner belongs to another one.
fn failed(source: NetlinkError) -> HostError {
    if source.errno() == Some(Errno::PERM.raw_os_error())
        && let Ok(Some(TableHead { owner: Some(port), .. })) = GUARD.head()
    {
        return HostError::GuardOwned { port, source };
    }
    HostError::netlink("put in place", GUARD.subject.clone(), source)
}

/// Kernels before 6.9 refuse the flags as unsupported, those before 5.12 as invalid.
fn is_unknown_flag(error: &NetlinkError) -> bool {
    [Errno::OPNOTSUPP, Errno::INVAL].iter().any(|errno| error.errno() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

    use std::process::Command;

    use super::*;
    use crate::guard::{Drops, drops, exists, remove};
    use crate::nft::test_namespace::{in_namespace, nft};

    fn guard() -> Guard {
        Guard {
            cluster: ["10.244.0.0/16".parse().unwrap()].into(),
            mesh_links: ["mesh-a".parse().unwrap()].into(),
            closed: ["192.0.2.7".parse().unwrap()].into(),
            ..Guard::default()
        }
    }

    /// An owner that has set the guard; `None` where the kernel has no owned tables that persist.
    fn owning() -> Option<GuardOwner> {
        let mut owner = GuardOwner::new(true);
        owner.set(&guard()).unwrap();
        if !owner.owning() {
            // Then it is a table as before.
            assert!(owner.is_in_place(&guard()).unwrap() && !owner.owns().unwrap());
            assert!(kernel() < (6, 9), "Linux {:?} has such tables", kernel());
            return None;
        }
        assert!(owner.owns().unwrap());
        Some(owner)
    }

    fn kernel() -> (u32, u32) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-', '+']).map(|number| number.trim().parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    fn handle_of_the_table() -> String {
        let listed = nft("-a list table inet meshd");
        listed.lines().next().unwrap().rsplit_once("handle ").unwrap().1.to_owned()
    }

    const CHANGES: [&str; 9] = [
        "delete table inet meshd",
        "flush table inet meshd",
        "flush chain inet meshd egress",
        "flush set inet meshd closed4",
        "add element inet meshd closed4 { 203.0.113.9 }",
        "insert rule inet meshd egress accept",
        "add chain inet meshd mine",
        "rename chain inet meshd egress other",
        "add table inet meshd { flags dormant ; }",
    ];

    #[test]
    fn nobody_else_changes_or_removes_a_guard_that_is_owned() {
        in_namespace(|| {
            let Some(mut owner) = owning() else { return };
            for change in CHANGES {
                let done = Command::new("nft").args(change.split(' ')).output().unwrap();
                assert!(!done.status.success(), "{change}");
            }
            nft("add table inet other");
            nft("flush ruleset");
            assert_eq!(nft("list tables").trim(), "table inet meshd", "the others are flushed");
            assert!(
                super::super::set(&guard()).is_err() && remove().is_err(),
                "over another socket of this process"
            );
            assert!(owner.is_in_place(&guard()).unwrap());
            // The owner itself can.
            let mut other = guard();
            other.closed.insert("192.0.2.8".parse().unwrap());
            owner.set(&other).unwrap();
            assert!(owner.is_in_place(&other).unwrap());
            assert_eq!(drops().unwrap(), Drops::default(), "and everybody can read it");
        });
    }

    #[test]
    fn a_guard_whose_owner_is_gone_stays_and_is_taken_over_as_it_is() {
        in_namespace(|| {
            let Some(owner) = owning() else { return };
            let handle = handle_of_the_table();
            drop(owner);
            assert!(is_in_place(&guard()).unwrap());
            let mut next = GuardOwner::new(true);
            assert!(!next.is_in_place(&guard()).unwrap(), "not its own yet");
            next.keep_or_set(&guard(), Duration::ZERO).unwrap();
            assert!(next.owns().unwrap() && next.is_in_place(&guard()).unwrap());
            assert_eq!(handle_of_the_table(), handle, "the same table, with its counters");
            drop(next);
            // The last one is refused: the flag `persist` stays, which nft 1.0.6 does not know.
            for change in &CHANGES[..CHANGES.len() - 1] {
                nft(change);
                let mut next = GuardOwner::new(true);
                assert!(!next.is_in_place(&guard()).unwrap(), "{change}");
                next.set(&guard()).unwrap();
                assert!(next.owns().unwrap() && next.is_in_place(&guard()).unwrap(), "{change}");
            }
            assert!(remove().unwrap() && !exists().unwrap(), "as meshd uninstall does");
        });
    }

    #[test]
    fn a_guard_that_another_process_owns_is_waited_for() {
        in_namespace(|| {
            let Some(owner) = owning() else { return };
            let port = owner.socket.as_ref().unwrap().port();
            let cluster = ["10.9.0.0/16".parse().unwrap()].into();
            let other = Guard { cluster, ..Guard::default() };
            for wanted in [true, false] {
                let mut next = GuardOwner::new(wanted);
                let refused = next.keep_or_set(&other, Duration::ZERO).unwrap_err();
                assert!(matches!(refused, HostError::GuardOwned { port: of, .. } if of == port));
                assert_eq!(refused.errno(), Some(Errno::PERM.raw_os_error()));
                // The one that stands is not touched.
                next.keep_or_set(&guard(), Duration::ZERO).unwrap();
            }
            let ends = thread::spawn(move || {
                thread::sleep(OWNER_POLL * 3);
                drop(owner);
            });
            let mut next = GuardOwner::new(true);
            next.keep_or_set(&other, Duration::from_secs(10)).unwrap();
            assert!(next.owns().unwrap() && next.is_in_place(&other).unwrap());
            ends.join().unwrap();
        });
    }

    #[test]
    fn a_guard_that_never_had_an_owner_is_kept_until_it_is_set() {
        in_namespace(|| {
            if owning().is_none() {
                return;
            }
            super::super::set(&guard()).unwrap();
            let handle = handle_of_the_table();
            let mut owner = GuardOwner::new(true);
            owner.keep_or_set(&guard(), Duration::ZERO).unwrap();
            assert_eq!(handle_of_the_table(), handle);
            assert!(!owner.is_in_place(&guard()).unwrap());
            owner.set(&guard()).unwrap();
            assert!(owner.owns().unwrap() && owner.is_in_place(&guard()).unwrap());
        });
    }

    #[test]
    fn a_change_is_seen_although_the_table_was_in_place_before() {
        in_namespace(|| {
            // Without an owner, so that others can change the table.
            let mut owner = GuardOwner::new(false);
            let stays = |owner: &mut GuardOwner| {
                let state = FilterState::read(Duration::ZERO);
                owner.stays_in_place(state, &guard()).unwrap()
            };
            assert!(!stays(&mut owner));
            for change in CHANGES {
                owner.set(&guard()).unwrap();
                assert!(stays(&mut owner) && stays(&mut owner), "{change}");
                nft(change);
                assert!(!stays(&mut owner) && !stays(&mut owner), "{change}");
            }
        });
    }

    #[test]
    fn an_owner_that_fails_to_write_keeps_the_table() {
        in_namespace(|| {
            let Some(mut owner) = owning() else { return };
            let handle = handle_of_the_table();
            let nonsense = || vec![GUARD.creation(Some(TableFlags::from_bits_retain(0x80)))];
            for _ in 0..3 {
                let state = FilterState::read(Duration::ZERO);
                assert!(owner.stays_in_place(state, &guard()).unwrap());
                owner.write(nonsense()).unwrap_err();
                assert!(owner.owns().unwrap() && owner.is_in_place(&guard()).unwrap());
                nft("flush ruleset");
                assert_eq!(handle_of_the_table(), handle, "the same table, and nobody else's");
            }
            // Another process was faster: what was seen before does not count any more.
            let state = FilterState::read(Duration::ZERO);
            assert!(owner.stays_in_place(state, &guard()).unwrap());
            owner.socket = None;
            let mut faster = GuardOwner::new(true);
            faster.take_over();
            assert!(faster.owns().unwrap());
            owner.write(nonsense()).unwrap_err();
            assert!(!owner.stays_in_place(state, &guard()).unwrap() && faster.owns().unwrap());
        });
    }

    #[test]
    fn an_owner_that_is_not_wanted_leaves_the_table_to_everybody() {
        in_namespace(|| {
            drop(owning());
            let mut owner = GuardOwner::new(false);
            owner.keep_or_set(&guard(), Duration::ZERO).unwrap();
            assert!(is_in_place(&guard()).unwrap());
            let has_owner_support = GUARD.flags().unwrap() == Some(TableFlags::Persisent);
            assert_eq!(owner.is_in_place(&guard()).unwrap(), !has_owner_support, "its flags stay with it");
            owner.set(&guard()).unwrap();
            assert!(owner.is_in_place(&guard()).unwrap() && !owner.owns().unwrap());
            // As version 0.1 does, which says that its table has no flags even if there is one.
            let mut changes = vec![GUARD.creation(Some(TableFlags::empty()))];
            changes.extend(GUARD.replacement(TableFlags::empty(), &[], &[]));
            wire::transact("put in place", &GUARD, changes).unwrap();
            owner.set(&guard()).unwrap();
            nft("flush ruleset");
            assert!(!owner.is_in_place(&guard()).unwrap());
        });
    }
}
