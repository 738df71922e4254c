//! The clusters of this checkout: what is recorded of each, and how one is deleted, however it ended.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::ClusterError;
use super::cgroups::Cgroups;
use crate::error::Error;

/// Processes of a killed cluster are gone after so long, also on a busy machine.
const GONE_WITHIN: Duration = Duration::from_mins(1);

/// A process that the kernel can't have replaced by another one of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

/// A host of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// `n1`, `api`, `outside`.
    pub name: String,
    /// The process that has its namespaces: what `nsenter -t` takes.
    pub holder: Process,
}

/// A running cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The process that everything of it ends with.
    pub process: Process,
    /// Its hosts.
    pub hosts: Vec<HostRecord>,
    /// Version of Kubernetes.
    pub version: String,
    /// `ipv4`, `ipv6` or `dual`.
    pub family: String,
    /// kube-proxy's mode.
    pub proxy_mode: String,
    /// `PATH` with the cluster's programs.
    pub search_path: String,
}

/// Where the clusters of this checkout are recorded: one directory each.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Process {
    /// A process that runs now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may contain anything; the state is the third field and the start the 22nd: proc(5).
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, started })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

impl Records {
    /// Those below `cluster` in Cargo's target directory.
    pub fn open() -> Result<Self, ClusterError> {
        Ok(Self(crate::target_dir()?.join("cluster")))
    }

    /// The directory of a cluster: its record, its logs, its kubeconfig.
    pub fn directory(&self, id: &str) -> PathBuf {
        self.0.join(id)
    }

    /// Takes an id, or the first number that is free, and creates the directory.
    pub fn reserve(&self, id: Option<&str>) -> Result<String, ClusterError> {
        fs::create_dir_all(&self.0).map_err(|source| file("create", &self.0, source))?;
        let take = |id: &str| match fs::create_dir(self.directory(id)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(file("create", &self.directory(id), source)),
        };
        if let Some(id) = id {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if id.is_empty() || !id.bytes().all(fits) {
                return Err(ClusterError::BadId(id.to_owned()));
            }
            return if take(id)? { Ok(id.to_owned()) } else { Err(ClusterError::Exists(id.to_owned())) };
        }
        for number in 1_u32.. {
            let id = number.to_string();
            if take(&id)? {
                return Ok(id);
            }
        }
        Err(ClusterError::BadId(String::new()))
    }

    /// The ids of all clusters, also of those that ended by themselves and have not been deleted.
    pub fn ids(&self) -> Result<Vec<String>, ClusterError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(file("list", &self.0, source)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<String> = names.collect();
        ids.sort();
        Ok(ids)
    }

    /// Reads a record; none if the cluster has not come so far.
    pub fn load(&self, id: &str) -> Result<Option<Record>, ClusterError> {
        let path = self.directory(id).join("cluster.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| ClusterError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file("read", &path, source)),
        }
    }

    /// Writes a record.
    pub fn save(&self, record: &Record) -> Result<(), ClusterError> {
        let path = self.directory(&record.id).join("cluster.json");
        let bytes = serde_json::to_vec_pretty(record)
            .map_err(|source| ClusterError::Record { path: path.clone(), source })?;
        let new = path.with_extension("new");
        fs::write(&new, bytes).map_err(|source| file("write", &new, source))?;
        fs::rename(&new, &path).map_err(|source| file("create", &path, source))
    }

    /// Ends a cluster and removes all that is left of it: processes, cgroups, files. Namespaces, links and mounts end with the
    /// processes. Works as well on what a killed cluster, or one that was never complete, has left.
    pub fn delete(&self, id: &str) -> Result<(), ClusterError> {
        let directory = self.directory(id);
        if !directory.is_dir() {
            return Err(ClusterError::None { id: id.to_owned(), directory: self.0.clone() });
        }
        let record = self.load(id)?;
        let processes = record.iter().flat_map(|record| {
            [record.process].into_iter().chain(record.hosts.iter().map(|host| host.holder))
        });
        let processes: Vec<Process> = processes.collect();
        // Its end closes the pipes that keep the hosts.
        if let Some(process) = processes.first().filter(|process| process.is_alive()) {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            let _ended_meanwhile = pid.map(|pid| kill_process(pid, Signal::TERM));
        }
        let since = Instant::now();
        for process in processes {
            while process.is_alive() {
                if since.elapsed() >= GONE_WITHIN {
                    return Err(ClusterError::StillRuns { id: id.to_owned(), pid: process.pid });
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        Cgroups::of(id)?.remove(GONE_WITHIN)?;
        fs::remove_dir_all(&directory).map_err(|source| file("remove", &directory, source))
    }
}

fn file(action: &'static str, path: &Path, source: io::Error) -> ClusterError {
    ClusterError::Lab(Error::File { action, path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_id_alone() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
        assert_eq!(Process::of(0), None);
    }

    #[test]
    fn ids_are_taken_once_and_are_no_paths() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records(directory.path().join("clusters"));
        assert_eq!(records.reserve(None).unwrap(), "1");
        assert_eq!(records.reserve(Some("a-2")).unwrap(), "a-2");
        assert_eq!(records.reserve(None).unwrap(), "2");
        assert!(matches!(records.reserve(Some("1")), Err(ClusterError::Exists(_))));
        for bad in ["", "..", "a/b"] {
            assert!(matches!(records.reserve(Some(bad)), Err(ClusterError::BadId(_))), "{bad}");
        }
        assert_eq!(records.ids().unwrap(), ["1", "2", "a-2"]);
        // One that never got so far as to be recorded.
        records.delete("a-2").unwrap();
        assert_eq!(records.ids().unwrap(), ["1", "2"]);
        assert!(matches!(records.delete("a-2"), Err(ClusterError::None { .. })));
    }
}
