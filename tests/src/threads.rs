//! What the threads of a process cost.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// CPU time of each of a process's running threads, by name; threads of one name together. Empty if there is no such process.
///
/// The kernel counts it in nanoseconds: time on the CPU, time of waiting for it, time slices
/// (`/proc/PID/task/TID/schedstat`, `Documentation/scheduler/sched-stats.rst`).
pub fn cpu_times(pid: u32) -> BTreeMap<String, Duration> {
    let mut times = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten().map(|entry| entry.path()) {
        // A thread may end meanwhile.
        let Ok(name) = fs::read_to_string(task.join("comm")) else { continue };
        let on_cpu = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let nanos = on_cpu.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or_default();
        *times.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanos);
    }
    times
}
