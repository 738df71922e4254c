//! Protects secrets in this process's memory: no core dumps, no access by other processes, no swap.

use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// Memory protections that could not be set up. The daemon runs without them, but reports each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MissingProtections(Vec<String>);

impl MissingProtections {
    /// Logs a warning for each.
    pub(crate) fn warn(&self) {
        for protection in &self.0 {
            tracing::warn!(event = "MemoryProtectionMissing", "{protection}");
        }
    }

    /// As text, for the status.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.clone()
    }
}

/// Sets up the protections. Call it before any secret is in memory.
pub(crate) fn process() -> MissingProtections {
    let mut missing = Vec::new();
    let mut attempt = |what: &str, done: io::Result<()>| {
        if let Err(error) = done {
            missing.push(format!("{what}: {error}"));
        }
    };
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    attempt("core dumps can't be disabled", setrlimit(Resource::Core, none).map_err(Into::into));
    // Also keeps other processes of the same user from reading the memory (ptrace(2), proc(5)).
    attempt(
        "core dumps and access by other processes can't be disabled",
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Into::into),
    );
    attempt("memory is not locked, so secrets may be swapped out; grant the capability IPC_LOCK", lock());
    MissingProtections(missing)
}

/// Locks current and future pages, each when it is first touched. Only without a limit (`RLIMIT_MEMLOCK`): otherwise
/// allocations would fail at it.
fn lock() -> io::Result<()> {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !capable {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(Into::into)
}
