//! What a process costs: CPU time from a cgroup of its own where there is cgroup v2, else from its threads; memory from
//! `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The daemon's process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    cgroup: Option<PathBuf>,
}

impl Process {
    /// Moves the process to a cgroup of its own if that can be written to.
    pub(crate) fn isolate(pid: u32) -> Self {
        Self { pid, cgroup: cgroup(pid) }
    }

    /// Where its CPU time is read.
    pub(crate) fn source(&self) -> &'static str {
        if self.cgroup.is_some() { "cgroup v2, cpu.stat" } else { "/proc/PID/task/*/schedstat" }
    }

    /// CPU time of all its threads since its start, or since it was moved.
    pub(crate) fn cpu(&self) -> Duration {
        let counted = self.cgroup.as_ref().and_then(|cgroup| {
            let text = fs::read_to_string(cgroup.join("cpu.stat")).ok()?;
            let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            usage.trim().parse().ok().map(Duration::from_micros)
        });
        counted.unwrap_or_else(|| self.threads().values().sum())
    }

    /// CPU time of its running threads, by name.
    pub(crate) fn threads(&self) -> BTreeMap<String, Duration> {
        lab::threads::cpu_times(self.pid)
    }

    /// Time that its main thread was ready to run and had no CPU.
    pub(crate) fn waited(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid)).unwrap_or_default();
        let nanos = text.split_whitespace().nth(1).and_then(|text| text.parse().ok());
        Duration::from_nanos(nanos.unwrap_or_default())
    }

    /// Resident memory now and at most, in KiB.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            // Fails while the process runs; an empty cgroup costs nothing.
            let _ = fs::remove_dir(cgroup);
        }
    }
}

fn cgroup(pid: u32) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    let cgroup = Path::new(mount.split(' ').nth(1)?).join(format!("meshd-bench-scale-{pid}"));
    fs::create_dir(&cgroup).ok()?;
    if fs::write(cgroup.join("cgroup.procs"), pid.to_string()).is_ok() {
        return Some(cgroup);
    }
    let _ = fs::remove_dir(&cgroup);
    None
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Keeps the calling thread, or the process `pid`, on the first CPU or off it. With two CPUs or fewer nothing is kept apart:
/// the API server needs one too.
pub(crate) fn place(pid: Option<u32>, on_first: bool) {
    let cpus = cpus();
    if cpus <= 2 {
        return;
    }
    let mut set = nix::sched::CpuSet::new();
    let wanted = if on_first { 0..1 } else { 1..cpus };
    for cpu in wanted {
        // Beyond what the set can name: that CPU is not used.
        let _ = set.set(cpu);
    }
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    // Not allowed: the report's lateness shows what it costs.
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(pid), &set);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_some_time_and_memory() {
        let process = Process { pid: std::process::id(), cgroup: None };
        assert!(process.cpu() > Duration::ZERO && process.memory().0 > 1000);
        assert!(process.memory().1 >= process.memory().0);
    }
}
