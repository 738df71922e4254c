//! The paths that worked last and this node's own list of endpoints on disk: after a restart those paths are tried first, and
//! the list's number does not go back.

use std::net::SocketAddr;

use keyring::Slot;
use plan::annotation::Endpoints;
use plan::node::{NodeName, NodeUid};
use plan::paths::{Candidate, Kind, Remembered};
use serde::{Deserialize, Serialize};

use crate::state_file::{Format, StateFile};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "paths.json";

/// Longest file that is read: 2 slots of 10,000 nodes, and 200 bytes for each.
pub(super) const FORMAT: Format = Format { name: FILE, version: 1, field: "paths", max_len: 4 << 20 };

/// The file that holds them.
pub(super) type PathsFile = StateFile<SavedPaths>;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedPaths {
    /// The node that wrote it: what a cloned disk brings along is not used.
    node: NodeName,
    /// Its own list of endpoints, as in its annotation.
    endpoints: Option<String>,
    /// The path to each slot of each peer.
    paths: Vec<SavedPath>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedPath {
    uid: NodeUid,
    slot: Slot,
    kind: Kind,
    to: SocketAddr,
}

impl SavedPaths {
    pub(super) fn new(node: NodeName, endpoints: Option<&Endpoints>, paths: Remembered) -> Self {
        let saved = |((uid, slot), Candidate { kind, to }): ((NodeUid, Slot), Candidate)| SavedPath {
            uid,
            slot,
            kind,
            to,
        };
        let paths = paths.into_iter().map(saved).collect();
        Self { node, endpoints: endpoints.map(Endpoints::render), paths }
    }

    /// Whether `node` wrote it.
    pub(super) fn is_of(&self, node: &NodeName) -> bool {
        self.node == *node
    }

    /// The list of endpoints.
    pub(super) fn endpoints(&self) -> Option<Endpoints> {
        Endpoints::parse(self.endpoints.as_deref()?).ok()
    }

    /// Whether it has this list.
    pub(super) fn has(&self, endpoints: Option<&Endpoints>) -> bool {
        self.endpoints == endpoints.map(Endpoints::render)
    }

    /// The paths whose endpoints may be used.
    pub(super) fn paths(&self, is_usable: impl Fn(SocketAddr) -> bool) -> Remembered {
        let usable = self.paths.iter().filter(|path| is_usable(path.to));
        usable
            .map(|SavedPath { uid, slot, kind, to }| {
                ((uid.clone(), *slot), Candidate { kind: *kind, to: *to })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_list_come_back_without_endpoints_that_may_not_be_used() {
        let path = |to: &str| Candidate { kind: Kind::Punched, to: to.parse().unwrap() };
        let place = |uid: &str| (NodeUid::new(uid), Slot::B);
        let good = Remembered::from([(place("u2"), path("192.0.2.1:4000"))]);
        let mut all = good.clone();
        all.insert(place("u3"), path("10.244.0.1:4000"));
        let list = Endpoints { sequence: 7, nat: true, ..Endpoints::default() };
        let node = NodeName::new("n1");
        let directory = tempfile::tempdir().unwrap();
        let saved = SavedPaths::new(node.clone(), Some(&list), all);
        PathsFile::in_directory(directory.path(), FORMAT).save(saved).unwrap();
        let read = PathsFile::in_directory(directory.path(), FORMAT).load().unwrap().unwrap();
        assert!(read.is_of(&node) && !read.is_of(&NodeName::new("n2")));
        assert!(read.has(Some(&list)) && !read.has(None));
        assert_eq!(read.endpoints(), Some(list));
        assert_eq!(read.paths(|to| to.ip().to_string() != "10.244.0.1"), good);
    }
}
