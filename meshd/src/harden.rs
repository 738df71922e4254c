//! Keeps secrets in this process's memory: no core dumps, no reading by others, no swap.

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// What could not be done. None of it stops the daemon; each is said aloud.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shortfalls(Vec<String>);

impl Shortfalls {
    /// One warning for each.
    pub(crate) fn warn(&self) {
        for shortfall in &self.0 {
            tracing::warn!("{shortfall}");
        }
    }

    /// In words, for the status.
    pub(crate) fn words(&self) -> Vec<String> {
        self.0.clone()
    }
}

/// Call it first, before any secret is in memory.
pub(crate) fn process() -> Shortfalls {
    let mut shortfalls = Vec::new();
    let mut tried = |what: &str, done: io::Result<()>| {
        if let Err(error) = done {
            shortfalls.push(format!("{what}: {error}"));
        }
    };
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    tried("core dumps are not switched off", setrlimit(Resource::Core, none).map_err(Into::into));
    // Also keeps other processes of the same user from reading the memory (ptrace(2), proc(5)).
    tried(
        "core dumps and reading by others are not switched off",
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Into::into),
    );
    tried("memory is not locked, so secrets may be swapped out; grant the capability IPC_LOCK", lock());
    Shortfalls(shortfalls)
}

/// Locks what is and what will be in memory, each page when it is first touched. Only where there is no limit: with one
/// the process would end at it.
fn lock() -> io::Result<()> {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !capable {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(Into::into)
}
